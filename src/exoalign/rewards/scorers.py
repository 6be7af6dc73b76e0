"""`Scorer`: anything that gives every completion of a group a number, in a column of its own; rewards are composed of these."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from exoalign.config_reward import TRAINED, RewardSection, ScorerSection
from exoalign.errors import RewardError
from exoalign.files import checksum
from exoalign.groups import Group
from exoalign.rewards.functions import check_arguments, resolve_reward, scores_of
from exoalign.rewards.server import ServerScorer

PACKAGES = {"sentiment": "vaderSentiment", "readability": "textstat", "if_verifiable": "if-verifiable"}
"""The packages that functions which ship take their numbers from."""


class Scorer(Protocol):
    """A reward function with its arguments, a reward model, a server: higher is better.

    Attributes:
        name: of its column.
        together: groups that it wants in one call (64 where a scorer has no such attribute): its numbers may depend on them,
            by rounding, and they are lost together where scoring is killed.
    """

    name: str

    def identity(self) -> dict[str, Any]:
        """What its numbers depend on, as JSON values: arguments, checksums of code and weights, an address, ..."""
        ...

    def __call__(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """A finite number for each completion of each group, groups in their order.

        Raises:
            ExoalignError: naming the row where a number cannot be had.
        """
        ...


class FunctionScorer:
    """A reward function with its arguments. It is a `Scorer`.

    Args:
        function: a short name or `module:function`.
        arguments: by name, as JSON values.
        name: of its column; the function's where none is given.

    Raises:
        RewardError: if there is no such function, or it does not take these arguments.
    """

    together = 1

    def __init__(self, function: str, arguments: Mapping[str, Any] | None = None, *, name: str | None = None) -> None:
        self.function, self.arguments = function, dict(arguments or {})
        self.name = name or function.rpartition(":")[2]
        self._told = f"reward function {function}"
        self._function = resolve_reward(function)
        check_arguments(self._told, self._function, self.arguments)

    def identity(self) -> dict[str, Any]:
        """The name and the arguments; one's own code may change, so the checksum of its file; the version of a package."""
        found: dict[str, Any] = {"function": self.function, "arguments": self.arguments}
        if ":" in self.function:
            file = getattr(sys.modules.get(self.function.partition(":")[0]), "__file__", None)
            found["code"] = checksum(Path(file)) if file else None
        elif self.function in PACKAGES:
            try:
                found["version"] = version(PACKAGES[self.function])
            except PackageNotFoundError:  # it lies on the path without having been installed
                found["version"] = None
        return found

    def __call__(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """A number for each completion; see `scores_of`."""
        return scores_of(groups, self._function, name=self._told, arguments=self.arguments)


def build_scorers(section: RewardSection, *, trained: Path | None = None, bf16: bool = False) -> list[Scorer]:
    """The scorers that a recipe asks for, checked and loaded.

    Args:
        section: which ones.
        trained: the folder of the run's own reward model.
        bf16: reward models compute under bfloat16 autocast.

    Raises:
        RewardError, ModelError, ConfigError: if one cannot be had.
    """
    return [_scorer(one, trained, bf16) for one in section.all]


def record_of(section: RewardSection) -> dict[str, Any]:
    """What the rewards depend on, as JSON values, without loading a model: what a stage of scoring is made with.

    Of `trained` only that it is: the run knows what its reward model is made from.

    Raises:
        RewardError: if a function cannot be found, or does not take its arguments.
        ModelError: if a model is not there.
    """
    columns = {one.column: {**_identity(one), "weight": one.weight, "clip": one.clip} for one in section.all}
    return {"columns": columns, "normalise": section.normalise}


def _identity(section: ScorerSection) -> dict[str, Any]:
    if section.model is None:
        return _scorer(section, None, False).identity()
    from exoalign.models import identity

    own = section.model == TRAINED
    return {
        "model": TRAINED if own else identity(section.model, section.revision),
        "input": section.input,
        "positive_label": section.positive_label,
    }


def _scorer(section: ScorerSection, trained: Path | None, bf16: bool) -> Scorer:
    if section.function is not None:
        return FunctionScorer(section.function, section.arguments, name=section.column)
    if section.server is not None:
        return ServerScorer(
            section.server,
            name=section.column,
            batch_size=section.batch_size,
            concurrency=section.concurrency,
            timeout=section.timeout,
            retries=section.retries,
        )
    if section.judge is not None:
        from exoalign.rewards.judge_scorer import JudgeScorer

        return JudgeScorer(section.judge, name=section.column)
    path = section.model
    if path == TRAINED:
        if trained is None:
            raise RewardError(f"reward: `model: {TRAINED}` is the run's own reward model, and the run trains none")
        path = str(trained)
    from exoalign.rewards.model import RewardModel

    assert path is not None
    return RewardModel(
        path,
        name=section.column,
        reads=section.input,
        positive_label=section.positive_label,
        bf16=bf16,
        revision=section.revision,
        trust_remote_code=section.trust_remote_code,
    )
