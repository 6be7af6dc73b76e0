"""What a reward model learns from: preferences or labelled texts out of a recipe's data sets, read, checked, split and mixed.

They are words here and get their ids in training, by the reward model's own tokenizer. Like tokenised groups they lie in the
cache, so that what is held in memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exoalign.config_data import DataSection, SourceSection
from exoalign.config_reward_model import RewardModelSection
from exoalign.data.contents import Commits, content_of
from exoalign.data.formats import stream_groups
from exoalign.data.labelled import stream_labelled
from exoalign.data.mix import Side, side_of, subsample
from exoalign.data.prepare import Prepared, mixed, source_of, sources_of
from exoalign.data.set_aside import SetAside
from exoalign.data.token_cache import keep
from exoalign.errors import DataError
from exoalign.groups import Group, completion_text


def reward_data(
    section: RewardModelSection, side: Side, *, seed: int, cache: Path, commits: Commits | None = None
) -> Prepared | None:
    """The groups to train a reward model on or those held out, without token ids.

    Args:
        section: the recipe's; its `data` and `kind` are read.
        side: `train`, or `heldout`: `evaluation` where it is given, else the share `holdout` of the training prompts (of texts
            with labels: of the texts).
        seed: of the split, of the mixing and of `completions.choose: random`.
        cache: the folder of groups.
        commits: of the hub's data sets; give both sides the same.

    Returns:
        None where nothing is held out.

    Raises:
        DataError: naming the row or the group that the kind of reward model cannot learn from.
    """
    data = section.data
    sources = sources_of(data, side)
    if sources is None:
        return None
    settings = {
        "kind": section.kind,
        "completions": data.completions.model_dump(),
        "side": side if data.holdout is not None else None,
        "holdout": data.holdout,
        "seed": seed if data.holdout is not None or data.completions.choose == "random" else None,
    }
    commits = commits or Commits(cache)
    parts, contents, notes = [], [], list[str]()
    for source in sources:
        content = content_of(source_of(source), commits)
        notes += content.notes
        read = source.model_copy(update={"revision": content.revision})
        described = source.model_dump(exclude={"weight"})
        record = {"source": described, "content": content.record, "reward_data": settings}
        stream = _Stream(read, data, section.kind == "classifier", settings["side"], seed)
        part = keep(cache, None if content.record is None else record, stream, name=source.path)
        parts.append(part)
        notes += part.told["notes"]
        known = content.record or {"words": _words(part.groups)}
        contents.append({**described, **({} if "commit" in known else {"path": None}), **known})
    if not any(len(part.groups) for part in parts):
        found = f"no group to {'hold out' if side == 'heldout' else 'train on'}; expected at least one"
        raise DataError("\n".join([f"{found}; change `data.holdout` or the data", *notes]))
    weights = [source.weight for source in sources]
    groups, lines = mixed(sources, [part.groups for part in parts], weights, seed)
    if section.kind == "ranking":
        notes += _check_ranking(groups, margin=section.margin)
    made_from = {
        "sources": contents,
        "weights": weights,
        "mix_seed": seed if any(weights) else None,
        **settings,
        "count": len(groups),
    }
    return Prepared(groups, made_from, lines, notes)


@dataclass
class _Stream:
    """Makes the groups of one data set for the cache."""

    source: SourceSection
    data: DataSection
    labelled: bool
    side: Any
    seed: int

    def __call__(self, told: dict[str, Any]) -> Iterator[Group]:
        aside, read = SetAside(), 0
        rows = stream_labelled if self.labelled else stream_groups
        chosen = self.data.completions
        for group in rows(source_of(self.source), aside, limit=self.source.limit):
            read += 1
            if not self.labelled:
                group = subsample(group, how=chosen.choose, k=chosen.k, seed=self.seed)
            if self.side is not None and self._side(group) != self.side:
                continue
            yield Group(group.prompt, group.completions, group.rewards, group.winner, provenance=group.provenance)
        notes = aside.lines()
        if self.source.limit is not None and read < self.source.limit:
            notes.append(f"{self.source.path}: {read} usable groups, {self.source.limit} were asked for")
        told.update(notes=notes)

    def _side(self, group: Group) -> Side:
        assert self.data.holdout is not None
        key = completion_text(group.completions[0]) if self.labelled else group.prompt
        return side_of(key, holdout=self.data.holdout, seed=self.seed)


def _check_ranking(groups: Sequence[Group], *, margin: bool) -> list[str]:
    """Refuse groups that compare nothing, and tell how many have only ties."""
    tied = 0
    for group in groups:
        if group.k < 2:
            raise DataError(f"{group.where}: found 1 completion, expected at least 2: one alone holds no preference")
        if group.winner is None and group.rewards is None:
            raise DataError(
                f"{group.where}: has neither winner nor rewards; expected pairs, or completions with rewards or ranks, or"
                " `kind: classifier` with rows `text, label`"
            )
        if group.winner is not None and group.k != 2:
            raise DataError(f"{group.where}: a winner among {group.k} completions; expected 2, or a reward for each")
        if margin and (group.winner is None or group.rewards is None):
            raise DataError(
                f"{group.where}: `margin` needs pairs that say by how much the winner is better, as `margin` or as scores;"
                " add them, or leave `margin` out"
            )
        tied += group.winner is None and len(set(group.rewards or ())) == 1
    if tied == len(groups):
        raise DataError("all completions of every group are tied: there is no preference to learn")
    return [f"{tied} of {len(groups)} groups have only ties, from which nothing is learnt"] if tied else []


def as_ranking(group: Group) -> Group:
    """A pair with a winner as a ranking, so that pairs and rankings can be one batch."""
    if group.winner is None:
        return group
    rewards = tuple(float(k == group.winner) for k in range(group.k))
    return replace(group, winner=None, rewards=rewards)


def _words(groups: Iterable[Group]) -> str:
    """What groups are known by where nothing is known of their source: a hash over all that is learnt from."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(json.dumps([group.prompt, group.completions, group.rewards, group.winner]).encode())
    return digest.hexdigest()
