"""From the data of a recipe to groups with token ids: read, choose completions, split, tokenise, fit, mix; kept by the cache.

Everything is streamed from the source into the cache's file: what is held in memory does not grow with the data.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from exoalign.config_data import DataSection, SourceSection, as_list
from exoalign.data.formats import stream_groups
from exoalign.data.group_table import GroupTable, join
from exoalign.data.mix import Side, mix, split, subsample
from exoalign.data.set_aside import SetAside
from exoalign.data.sources import Source
from exoalign.data.token_cache import Kept, keep, source_record, tokenizer_record
from exoalign.data.token_report import TokenReport
from exoalign.data.tokenize import stream_tokenized
from exoalign.data.truncate import Truncated, fit
from exoalign.errors import DataError
from exoalign.files import checksum
from exoalign.groups import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from exoalign.data.truncate import Policy


@dataclass(frozen=True)
class Prepared:
    """Groups that are ready for training.

    Attributes:
        groups: with token ids, on the disk wherever the cache can keep them.
        made_from: what they depend on besides the tokenizer, as JSON values.
        lines: what was done, for the terminal.
        notes: what the user should mind: rows set aside, what was cut or looks wrong.
        temperatures: at which the completions were sampled, where their provenance says so.
    """

    groups: Sequence[Group]
    made_from: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    temperatures: frozenset[float] = frozenset()


def prepare(
    data: DataSection,
    side: Side,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int | None,
    seed: int,
    cache: Path,
) -> Prepared | None:
    """The groups to train on or those held out, with token ids.

    Args:
        data: the recipe's section.
        side: `train`, or `heldout`: `evaluation` where it is given, else the share `holdout` of the training prompts.
        tokenizer: the policy's.
        context: the model's context length in tokens, if it is known.
        seed: of the split, of the mixing and of `completions.choose: random`.
        cache: the folder of tokenised groups.

    Returns:
        None where nothing is held out.

    Raises:
        ExoalignError: naming the row, the data set or the setting.
    """
    if side == "heldout" and data.evaluation is not None:
        sources = as_list(data.evaluation, data.evaluation_limit)
    elif side == "heldout" and data.holdout is None:
        return None
    else:
        sources = as_list(data.train, data.limit)
    settings: dict[str, Any] = {
        "completions": data.completions.model_dump(),
        "side": side if data.holdout is not None else None,
        "holdout": data.holdout,
        "seed": seed if data.holdout is not None or data.completions.choose == "random" else None,
        "max_prompt_tokens": data.max_prompt_tokens,
        "max_completion_tokens": data.max_completion_tokens,
        "truncation": data.truncation,
        "context": context,
    }
    tokens = tokenizer_record(tokenizer)
    parts, contents = [], []
    for source in sources:
        described = source.model_dump(exclude={"weight"})
        content = source_record(source.path, source.revision)
        stream = _Stream(source, data, side if data.holdout is not None else None, tokenizer, context, seed)
        record = {
            "source": described,
            # without a commit the hub's data may change: then nothing finds this record again
            "content": content or time.time_ns(),
            "settings": settings,
            "tokenizer": tokens,
        }
        part = keep(cache, record, stream, name=source.path)
        parts.append(part)
        known = content or {"tokens": checksum(part.path) if part.path else len(part.groups)}
        here = {} if "commit" in known else {"path": None}  # a file may be moved: its bytes say which it is
        contents.append({**described, **here, **known})
    groups, mixed = _mixed(sources, [part.groups for part in parts], seed)
    weights = [source.weight for source in sources]
    return Prepared(
        groups,
        {
            "sources": contents,
            "weights": weights,
            "seed": seed if any(weights) else None,
            **settings,
            "count": len(groups),
        },
        [line for source, part in zip(sources, parts, strict=True) for line in _lines(source, part)] + mixed,
        [note for part in parts for note in part.told["notes"]],
        frozenset(value for part in parts for value in part.told["temperatures"]),
    )


def _lines(source: SourceSection, part: Kept) -> list[str]:
    if part.path is None:
        return part.told["lines"]
    where = f"{part.path}, {part.path.stat().st_size / 1e6:.1f} MB"
    return [f"{source.path}: {line}" for line in part.told["lines"]] + (
        [f"{source.path}: token ids from the cache ({where})"] if part.reused else [f"token ids kept in {where}"]
    )


@dataclass
class _Stream:
    """Makes the groups of one data set for the cache."""

    source: SourceSection
    data: DataSection
    side: Side | None
    tokenizer: PreTrainedTokenizerBase
    context: int | None
    seed: int

    def __call__(self, told: dict[str, Any]) -> Iterator[Group]:
        aside, report = SetAside(), TokenReport()
        cuts = Truncated(f"{self.source.path} ({self.side or 'all'})")
        read = 0
        temperatures: set[float] = set()

        def counted(groups: Iterable[Group]) -> Iterator[Group]:
            nonlocal read
            for group in groups:
                read += 1
                temperature = group.provenance.get("sampler", {}).get("temperature")
                temperatures.update([] if temperature is None else [temperature])
                yield replace(group, reference_logprobs=None)  # they may be another model's

        groups = counted(itertools.islice(stream_groups(as_source(self.source), aside), self.source.limit))
        chosen = self.data.completions
        groups = (subsample(group, how=chosen.choose, k=chosen.k, seed=self.seed) for group in groups)
        if self.side is not None and self.data.holdout is not None:
            groups = split(groups, holdout=self.data.holdout, seed=self.seed, side=self.side)
        groups = stream_tokenized(groups, self.tokenizer, report=report)
        yield from fit(
            groups,
            max_prompt_tokens=self.data.max_prompt_tokens,
            max_completion_tokens=self.data.max_completion_tokens,
            policy=cast("Policy | list[Policy]", self.data.truncation),
            context=self.context,
            counts=cuts,
            bos=self.tokenizer.bos_token_id,
        )
        notes = [*aside.lines(), *cuts.lines()]
        if self.source.limit is not None and read < self.source.limit:
            notes.append(f"{self.source.path}: {read} usable groups, {self.source.limit} were asked for")
        if not cuts.kept:
            of = (
                f"none of {read} groups is on the side `{self.side}` of the split"
                if read and self.side
                else "no groups"
            )
            raise DataError("\n".join([f"{self.source.path}: {of}; expected at least one", *notes]))
        made, *doubts = report.lines()
        told.update(lines=[made], notes=[*notes, *doubts], temperatures=sorted(temperatures))


def as_source(section: SourceSection) -> Source:
    """A data set of a recipe as what the readers take."""
    return Source(section.path, section.adapter, section.split, section.subset, section.revision)


def _mixed(
    sources: Sequence[SourceSection], parts: Sequence[Sequence[Group]], seed: int
) -> tuple[Sequence[Group], list[str]]:
    """The groups of several data sets: one after the other, or with weights in turns; and what was taken of each."""
    if len(parts) == 1:
        return parts[0], []
    weights = [source.weight for source in sources if source.weight is not None]
    sizes = [len(part) for part in parts]
    picks = mix(sizes, weights, seed=seed) if weights else [(i, row) for i, n in enumerate(sizes) for row in range(n)]
    taken = [sum(number == i for number, _ in picks) for i in range(len(parts))]
    lines = [
        f"{source.path}: {n} of {size} groups, {n / max(len(picks), 1):.1%} of the mixture"
        for source, n, size in zip(sources, taken, sizes, strict=True)
    ]
    if not all(taken):
        raise DataError("\n".join(["a data set has no share in the mixture; raise its weight or take it out", *lines]))
    tables = [part for part in parts if isinstance(part, GroupTable)]
    if len(tables) < len(parts):  # the cache could not keep them all
        return [parts[number][row] for number, row in picks], lines
    if not weights:
        return join(tables), lines
    starts = list(itertools.accumulate(sizes, initial=0))
    return join(tables).take([starts[number] + row for number, row in picks]), lines
