"""A trained reward model as a scorer: any `AutoModelForSequenceClassification`, with its own tokenizer and chat template.

With one label its logit is the reward. With more it is a classifier, and the reward is log p / (1 - p) of one label, which for
two labels is the difference of their logits.

Groups are scored from the longest to the shortest, in passes of about as many tokens each: a decoder computes the prompt of a
group once for all its completions, an encoder gets rows padded to the longest of their pass. The result does not depend on what
a completion is scored with, but for rounding. `one_by_one` is the slow, obvious twin.

Shape legend: B groups, K completions, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from exoalign import models
from exoalign.data.collate import collate
from exoalign.errors import ConfigError, RewardError
from exoalign.groups import Group
from exoalign.logprobs.engine import completion_scores, shares_prefix
from exoalign.logprobs.passes import fill, split
from exoalign.logprobs.readout import pad_id_of, score_head
from exoalign.logprobs.rows import device_of
from exoalign.models import autocast
from exoalign.rewards.inputs import Ids, Reads, RewardInputs, longest_input, together
from exoalign.rewards.load import load_reward_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 4096
"""Tokens in a pass where nobody says otherwise; an input that is longer makes a pass of its own."""


def reward_of(logits: Tensor, positive: int = 1) -> Tensor:
    """The reward that logits say: the only one, or the log-odds log p / (1 - p) of the label `positive`.

    Args:
        logits: [..., C].
        positive: which label is good, where there are several.

    Returns:
        [...].

    >>> reward_of(torch.tensor([1.0, 3.0])).item()
    2.0
    """
    if logits.shape[-1] == 1:
        return logits[..., 0]
    others = [label for label in range(logits.shape[-1]) if label != positive]
    return logits[..., positive] - logits[..., others].logsumexp(-1)  # log p - log(1 - p)


class RewardModel:
    """Scores completions by a reward model. It is a `Scorer`: called with groups, it gives a tuple of K numbers for each.

    Args:
        path: a folder or a hub id of a sequence classification model.
        name: what its rewards are called.
        reads: of a text prompt, `whole` (prompt and completion) or `completion` alone. A conversation is always read whole.
        positive_label: of a classifier, the number or the name of the good label.
        tokens_per_batch: tokens in a pass.
        bf16: compute under bfloat16 autocast.
        revision, trust_remote_code, device: as `load_reward_model`.
        report: called with the number of groups that are done.

    Attributes:
        inputs: how many inputs were made, and how many of them were cut.

    Raises:
        ModelError: if the model cannot be loaded.
        ConfigError: if it has no such label.
    """

    def __init__(
        self,
        path: str,
        *,
        name: str = "reward_model",
        reads: Reads = "whole",
        positive_label: int | str | None = None,
        tokens_per_batch: int = TOKENS,
        bf16: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
        device: str | torch.device | None = None,
        report: Callable[[int], None] | None = None,
    ) -> None:
        remote: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        self.name, self.bf16, self.tokens_per_batch, self._report = name, bf16, tokens_per_batch, report
        self.model = load_reward_model(path, device=device, **remote).eval()
        self.tokenizer = models.load_tokenizer(path, **remote)
        self.positive = label_number(self.model, positive_label, path)
        self._files = models.identity(path, revision)
        decoder = score_head(self.model) is not None
        self.inputs = RewardInputs(
            self.tokenizer,
            max_tokens=longest_input(self.model, self.tokenizer),
            reads=reads,
            pad_id=pad_id_of(self.model) if decoder else None,  # what a decoder reads does not see what follows
        )

    def identity(self) -> dict[str, Any]:
        """What its rewards depend on, as JSON values."""
        return {
            "reward_model": self._files,
            "reads": self.inputs.reads,
            "positive_label": self.positive if self.model.config.num_labels > 1 else None,
            "bf16": self.bf16,
        }

    def lines(self) -> list[str]:
        """What was cut, for the user."""
        return self.inputs.lines()

    @torch.no_grad()
    def __call__(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """The rewards of each group's completions, in order.

        Raises:
            DataError, ModelError: naming the group whose input cannot be made.
            RewardError: naming the completion whose reward is not finite.
        """
        parts = [(i, ks, part) for i, ids in enumerate(map(self.inputs.of, groups)) for ks, part in together(ids, 0)]
        found = [[math.nan] * group.k for group in groups]
        prompts = [len(part.prompt_ids or ()) for _, _, part in parts]
        completions = [[len(ids) for ids in part.completion_ids or ()] for _, _, part in parts]
        shared = shares_prefix(self.model)
        longest = max((p + max(row) for p, row in zip(prompts, completions, strict=True)), default=0)
        most = max(self.tokens_per_batch, longest)
        for passes in split(prompts, completions, most, shared=shared, together=fill(self.model)):
            for one in passes:
                batch = collate([parts[number][2] for number in one.groups])
                if one.completions is not None:
                    batch = batch.take([0], one.completions)
                with autocast(device_of(self.model), bf16=self.bf16):
                    values = reward_of(completion_scores(self.model, batch), self.positive).tolist()
                for number, row in zip(one.groups, values, strict=True):
                    i, ks, _ = parts[number]
                    columns = range(len(ks)) if one.completions is None else one.completions
                    for value, column in zip(row, columns, strict=False):  # behind a group's own K stand absent ones
                        found[i][ks[column]] = value
            if self._report is not None:
                self._report(sum(parts[number][1][0] == 0 for number in passes[0].groups))
        return [self._finite(group, row) for group, row in zip(groups, found, strict=True)]

    @torch.no_grad()
    def one_by_one(self, groups: Sequence[Group]) -> list[tuple[float, ...]]:
        """The same, each completion by itself through the model's own forward: what `__call__` is compared with."""
        return [tuple(self._alone(ids) for ids in self.inputs.of(group)) for group in groups]

    def _alone(self, ids: Ids) -> float:
        device = device_of(self.model)
        with autocast(device, bf16=self.bf16):
            logits = self.model(input_ids=torch.tensor([ids], device=device)).logits[0]
        return float(reward_of(logits.float(), self.positive))

    def _finite(self, group: Group, row: Sequence[float]) -> tuple[float, ...]:
        for k, value in enumerate(row):
            if not math.isfinite(value):
                raise RewardError(
                    f"{group.where}, completion {k + 1}: the reward model {self.name} says {value}; expected a finite number:"
                    " its weights hold NaN or infinity, or overflow in this precision"
                )
        return tuple(row)


def label_number(model: PreTrainedModel, label: int | str | None, path: str) -> int:
    """The number of a label given by its number or name; label 1 where none is given.

    Raises:
        ConfigError: if there is no such label, naming those there are, or the model has only one.
    """
    config: Any = model.config
    names = [str(config.id2label.get(i, i)) for i in range(config.num_labels)]
    if len(names) == 1:
        if label is not None:
            raise ConfigError(f"reward model {path} has one label, whose logit is the reward; leave positive_label out")
        return 0
    known = {name.casefold(): number for number, name in enumerate(names)}
    number = 1 if label is None else known.get(label.casefold(), -1) if isinstance(label, str) else label
    if number not in range(len(names)):
        told = ", ".join(f"{i} ({name})" for i, name in enumerate(names))
        raise ConfigError(f"positive_label is {label!r}; reward model {path} has the labels {told}")
    return number
