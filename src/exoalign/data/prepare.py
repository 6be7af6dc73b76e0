"""From the data of a recipe to groups with token ids: read, choose completions, split, tokenise, fit, mix; kept by the cache.

Everything is streamed from the source into the cache's file: what is held in memory does not grow with the data, unless the
cache cannot keep it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from exoalign.config_data import DataSection, SourceSection, as_list
from exoalign.config_sft import LossOn
from exoalign.data.contents import Commits, content_of, tokens_record
from exoalign.data.examples import stream_example_ids, stream_examples, with_prompt_learnt
from exoalign.data.formats import stream_groups
from exoalign.data.group_table import GroupTable, join
from exoalign.data.mix import Side, mix, split, subsample
from exoalign.data.set_aside import SetAside
from exoalign.data.sources import Source
from exoalign.data.token_cache import Kept, keep, tokenizer_record
from exoalign.data.token_report import TokenReport
from exoalign.data.tokenize import prompt_ids, stream_tokenized
from exoalign.data.truncate import Truncated, fit
from exoalign.errors import DataError
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


@dataclass(frozen=True)
class Sides:
    """What is trained on, and what is held out (None where nothing is)."""

    train: Prepared
    heldout: Prepared | None

    @property
    def made_from(self) -> dict[str, Any]:
        """What both depend on, as JSON values."""
        return {"train": self.train.made_from, "heldout": self.heldout.made_from if self.heldout else None}


def sources_of(data: DataSection, side: Side) -> list[SourceSection] | None:
    """The data sets that one side is read from, None where nothing is held out. Of a share of them (`holdout`) all is read,
    whatever their weights.
    """
    if side == "train":
        return as_list(data.train, data.limit)
    if data.evaluation is not None:
        return as_list(data.evaluation, data.evaluation_limit)
    if data.holdout is None:
        return None
    return [source.model_copy(update={"weight": None}) for source in as_list(data.train, data.limit)]


def prepare(
    data: DataSection,
    side: Side,
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int | None,
    seed: int,
    cache: Path,
    commits: Commits | None = None,
    loss_on: LossOn | None = None,
) -> Prepared | None:
    """The groups to train on or those held out, with token ids.

    Args:
        data: the recipe's section.
        side: `train`, or `heldout`: `evaluation` where it is given, else the share `holdout` of the training prompts: of all
            data sets all that is held out, whatever their weights.
        tokenizer: the policy's.
        context: the model's context length in tokens, if it is known.
        seed: of the split, of the mixing and of `completions.choose: random`.
        cache: the folder of tokenised groups.
        commits: of the hub's data sets; give both sides the same, so that they are of one commit.
        loss_on: make examples for supervised fine-tuning (see `examples`), of which these tokens count; None makes groups to
            compare completions of.

    Returns:
        None where nothing is held out.

    Raises:
        ExoalignError: naming the row, the data set or the setting.
    """
    sources = sources_of(data, side)
    if sources is None:
        return None
    settings: dict[str, Any] = {
        "completions": data.completions.model_dump(),
        "side": side if data.holdout is not None else None,
        "holdout": data.holdout,
        "seed": seed if data.holdout is not None or data.completions.choose == "random" else None,
        "max_prompt_tokens": data.max_prompt_tokens,
        "max_completion_tokens": data.max_completion_tokens,
        "truncation": data.truncation,
        "context": context,
        **({} if loss_on is None else {"loss_on": loss_on}),
    }
    tokens = tokenizer_record(tokenizer)
    commits = commits or Commits(cache)
    parts, contents, notes = [], [], list[str]()
    for source in sources:
        described = source.model_dump(exclude={"weight"})
        content = content_of(source_of(source), commits)
        notes += content.notes
        read = source.model_copy(update={"revision": content.revision})
        stream = _Stream(read, data, side if data.holdout is not None else None, tokenizer, context, seed, loss_on)
        record = {"source": described, "content": content.record, "settings": settings, "tokenizer": tokens}
        part = keep(cache, None if content.record is None else record, stream, name=source.path)
        parts.append(part)
        notes += part.told["notes"]
        known = content.record or tokens_record(part.groups)
        here = {} if "commit" in known else {"path": None}  # a file may be moved: its bytes say which it is
        contents.append({**described, **here, **known})
    if not any(len(part.groups) for part in parts):
        found = f"no group to {'hold out' if side == 'heldout' else 'train on'}; expected at least one"
        change = "the budgets" if any(part.told["tried"] for part in parts) else "`data.holdout`"
        raise DataError("\n".join([f"{found}; change {change} or the data", *notes]))
    weights = [source.weight for source in sources]
    groups, told = mixed(sources, [part.groups for part in parts], weights, seed)
    return Prepared(
        groups,
        {
            "sources": contents,
            "weights": weights,
            "mix_seed": seed if any(weights) else None,
            **settings,
            "count": len(groups),
        },
        [line for source, part in zip(sources, parts, strict=True) for line in _lines(source, part)] + told,
        notes,
        frozenset(value for part in parts for value in part.told["temperatures"]),
    )


def _lines(source: SourceSection, part: Kept) -> list[str]:
    told = [f"{source.path}: {line}" for line in part.told["lines"]]
    if part.path is None:
        return told
    where = f"{part.path}, {part.path.stat().st_size / 1e6:.1f} MB"
    return [
        *told,
        f"{source.path}: token ids from the cache ({where})" if part.reused else f"token ids kept in {where}",
    ]


@dataclass
class _Stream:
    """Makes the groups of one data set for the cache."""

    source: SourceSection
    data: DataSection
    side: Side | None
    tokenizer: PreTrainedTokenizerBase
    context: int | None
    seed: int
    loss_on: LossOn | None

    def __call__(self, told: dict[str, Any]) -> Iterator[Group]:
        aside, report = SetAside(), TokenReport()
        cuts = Truncated(f"{self.source.path} ({self.side or 'all'})")
        read = 0
        temperatures: set[float] = set()

        def counted(groups: Iterable[Group]) -> Iterator[Group]:
            nonlocal read
            for group in groups:
                read += 1
                temperatures.update(_temperature(group))
                yield replace(group, reference_logprobs=None)  # they may be another model's

        rows = stream_groups if self.loss_on is None else stream_examples
        groups = counted(rows(source_of(self.source), aside, limit=self.source.limit))
        chosen = self.data.completions
        groups = (subsample(group, how=chosen.choose, k=chosen.k, seed=self.seed) for group in groups)
        if self.side is not None and self.data.holdout is not None:
            groups = split(groups, holdout=self.data.holdout, seed=self.seed, side=self.side)
        with_ids = stream_tokenized if self.loss_on is None else stream_example_ids
        fitting = fit(
            with_ids(groups, self.tokenizer, report=report),
            max_prompt_tokens=self.data.max_prompt_tokens,
            max_completion_tokens=self.data.max_completion_tokens,
            policy=cast("Policy | list[Policy]", self.data.truncation),
            context=self.context,
            counts=cuts,
            # what tokenising puts first, if anything: some tokenizers name a bos token that only begins a turn
            bos=next(iter(prompt_ids(self.tokenizer, "")), None),
        )
        yield from map(with_prompt_learnt, fitting) if self.loss_on == "all" else fitting
        notes = [*aside.lines(), *cuts.lines()]
        if self.source.limit is not None and read < self.source.limit:
            notes.append(f"{self.source.path}: {read} usable groups, {self.source.limit} were asked for")
        if not cuts.kept:
            found = "no groups"
            if cuts.read:
                found = f"none of {cuts.read} groups is left within the budgets"
            elif read:
                found = f"none of {read} groups is on the side `{self.side}` of the split"
            if self.side is None or not read:
                raise DataError("\n".join([f"{self.source.path}: {found}; expected at least one", *notes]))
            notes.insert(0, f"{self.source.path}: {found}")  # of a share there may be none in a small data set
        made, *doubts = report.lines()
        told.update(lines=[made], notes=[*notes, *doubts], temperatures=sorted(temperatures), tried=cuts.read)


def _temperature(group: Group) -> list[float]:
    """The temperature in a group's provenance as a list, empty where it is none: foreign files write there what they like."""
    sampler = group.provenance.get("sampler")
    value = sampler.get("temperature") if isinstance(sampler, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        return []
    return [float(value)]


def source_of(section: SourceSection) -> Source:
    """A data set of a recipe as what the readers take."""
    return Source(section.path, section.adapter, section.split, section.subset, section.revision)


def mixed(
    sources: Sequence[SourceSection], parts: Sequence[Sequence[Group]], weights: Sequence[float | None], seed: int
) -> tuple[Sequence[Group], list[str]]:
    """The groups of several data sets: one after the other, or with weights in turns; and what was taken of each.

    Raises:
        DataError: if a data set has no share.
    """
    if len(parts) == 1:
        return parts[0], []
    sizes = [len(part) for part in parts]
    given = [(i, weight) for i, weight in enumerate(weights) if weight is not None and sizes[i]]
    if given:
        drawn = mix([sizes[i] for i, _ in given], [weight for _, weight in given], seed=seed)
        picks = [(given[number][0], row) for number, row in drawn]
    else:
        picks = [(i, row) for i, n in enumerate(sizes) for row in range(n)]
    taken = [sum(number == i for number, _ in picks) for i in range(len(parts))]
    lines = [
        f"{source.path}: {n} of {size} groups, {n / max(len(picks), 1):.1%} of the mixture"
        for source, n, size in zip(sources, taken, sizes, strict=True)
    ]
    if any(size and not n for n, size in zip(taken, sizes, strict=True)):
        raise DataError("\n".join(["a data set has no share in the mixture; raise its weight or take it out", *lines]))
    tables = [part for part in parts if isinstance(part, GroupTable)]
    if len(tables) < len(parts):  # the cache could not keep them all
        return [parts[number][row] for number, row in picks], lines
    if not given:
        return join(tables), lines
    starts = list(itertools.accumulate(sizes, initial=0))
    return join(tables).take([starts[number] + row for number, row in picks]), lines
