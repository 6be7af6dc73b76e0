"""Budgets for the tokens of prompts and completions. What is too long is an error, unless the recipe chooses what to lose.

| policy | what is too long |
|---|---|
| `error` | stops with the row and its lengths |
| `drop` | its group is left out |
| `truncate_prompt_left` | the prompt loses its beginning, but for the beginning-of-sequence token |
| `truncate_completion_right` | the completion loses its end, the end-of-turn token with it: none is invented |

The last two may be given together. Whatever is cut or left out is counted: groups in = groups out + groups left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from exoalign.data.set_aside import Tally
from exoalign.errors import ConfigError, DataError
from exoalign.groups import Group
from exoalign.progress import plain

Policy = Literal["error", "drop", "truncate_prompt_left", "truncate_completion_right"]


@dataclass
class Truncated:
    """What budgets cost one split, filled by `fit`.

    Attributes:
        split: its name, for the user.
        read: groups that came in.
        kept: groups that went out, whole or cut.
        cut: for each kind of cut, how many groups went out with it, and the first of them.
        dropped: for each reason, how many groups did not go out, and the first of them.
    """

    split: str = "data"
    read: int = 0
    kept: int = 0
    cut: dict[str, Tally] = field(default_factory=dict)
    dropped: dict[str, Tally] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """A sentence for each kind of cut and each reason to leave out; none where everything fits."""
        return [
            plain(
                f"{self.split}: {rows.count} of {self.read} group{'' if self.read == 1 else 's'} {verb}: {kind} ({rows})"
            )
            for verb, kinds in (("cut", self.cut), ("left out", self.dropped))
            for kind, rows in kinds.items()
        ]


@dataclass(frozen=True)
class _Budget:
    prompt: int | None
    completion: int | None
    context: int | None
    policies: tuple[str, ...]
    bos: int | None


class _LeftOutError(Exception):
    """A group is not to go out, for the reason that is its text."""


def fit(
    groups: Iterable[Group],
    *,
    max_prompt_tokens: int | None,
    max_completion_tokens: int | None,
    policy: Policy | Sequence[Policy],
    context: int | None,
    counts: Truncated,
    bos: int | None = None,
) -> Iterator[Group]:
    """Pass on the groups that fit their budgets, those that do not after the policy.

    A cut group keeps its texts; its provenance says `truncated`, and log-probs of the whole completions are taken from it.
    Where both sides may be cut and prompt and completion do not fit the context together, the completion may fill half of it
    and whatever else the prompt leaves.

    Args:
        groups: groups with token ids.
        max_prompt_tokens: tokens of a prompt at most; None for no limit.
        max_completion_tokens: tokens of a completion at most, its end-of-turn token included; None for no limit.
        policy: one policy, or both that truncate.
        context: tokens of a prompt and its longest completion together at most; None for no limit.
        counts: gets what was cut and left out.
        bos: id of the beginning-of-sequence token, which a prompt that begins with it keeps.

    Raises:
        ConfigError: at once, if a budget is not positive or the policies do not go together.
        DataError: while iterating, naming the group: for one that is too long (`error`, or a side that may not be cut) or has
            no token ids.
    """
    policies = (policy,) if isinstance(policy, str) else tuple(policy)
    known = get_args(Policy)
    for name in policies:
        if name not in known:
            raise ConfigError(f"the truncation policy is {name!r}; expected {', '.join(known[:-1])} or {known[-1]}")
    if not policies or (len(policies) > 1 and set(policies) != set(known[2:])):
        raise ConfigError(
            f"the truncation policies are {', '.join(policies) or 'none'}; expected one, or {known[2]} and {known[3]}"
        )
    for key, value in (
        ("max_prompt_tokens", max_prompt_tokens),
        ("max_completion_tokens", max_completion_tokens),
        ("context", context),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"{key} is {value}; expected at least 1 token, or none for no limit")
    return _fit(groups, _Budget(max_prompt_tokens, max_completion_tokens, context, policies, bos), counts)


def _fit(groups: Iterable[Group], budget: _Budget, counts: Truncated) -> Iterator[Group]:
    for group in groups:
        counts.read += 1
        try:
            fitting, cuts = _cut(group, budget)
        except _LeftOutError as reason:
            counts.dropped.setdefault(str(reason), Tally()).add(group.where)
            continue
        for kind in cuts:
            counts.cut.setdefault(kind, Tally()).add(group.where)
        counts.kept += 1
        yield fitting


def _cut(group: Group, budget: _Budget) -> tuple[Group, list[str]]:
    """The group within its budget, with the kinds of cut that it took."""
    prompt, completions, masks = group.prompt_ids, group.completion_ids, group.completion_masks
    if prompt is None or completions is None:
        raise DataError(f"{group.where}: has no token ids; call exoalign.tokenize first")
    longest = max(map(len, completions))
    most_prompt = _least(budget.prompt, len(prompt))
    most_completion = _least(budget.completion, longest)
    cuts_left, cuts_right = "truncate_prompt_left" in budget.policies, "truncate_completion_right" in budget.policies
    if most_prompt < len(prompt) and not cuts_left:
        raise _too_long(group, budget, f"prompt of {len(prompt)} tokens", "max_prompt_tokens", budget.prompt)
    if most_completion < longest and not cuts_right:
        raise _too_long(group, budget, f"completion of {longest} tokens", "max_completion_tokens", budget.completion)
    if budget.context is not None and most_prompt + most_completion > budget.context:
        found = f"prompt of {most_prompt} and completion of {most_completion} tokens"
        if not cuts_left and not cuts_right:
            raise _too_long(group, budget, found, "the context", budget.context)
        if cuts_right:
            share = budget.context - budget.context // 2 if cuts_left else 0
            most_completion = min(most_completion, max(budget.context - most_prompt, share))
        if cuts_left:
            most_prompt = min(most_prompt, budget.context - most_completion)
        if most_completion < 1 or most_prompt < 1:
            raise _LeftOutError(f"the {'prompt' if most_completion < 1 else 'completion'} alone fills the context")
    if most_prompt >= len(prompt) and most_completion >= longest:
        return group, []
    return _with(group, _left(prompt, most_prompt, budget.bos), completions, masks, most_completion)


def _with(
    group: Group,
    prompt: tuple[int, ...],
    completions: tuple[tuple[int, ...], ...],
    masks: tuple[tuple[bool, ...], ...] | None,
    most: int,
) -> tuple[Group, list[str]]:
    shorter = tuple(ids[:most] for ids in completions)
    new: dict[str, Any] = {"prompt_ids": prompt, "completion_ids": shorter}
    if masks is not None:
        new["completion_masks"] = tuple(mask[:most] for mask in masks)
        if not all(map(any, new["completion_masks"])):
            raise _LeftOutError("of a completion no token is left that counts")
    if len(set(shorter)) < len(set(completions)):
        raise _LeftOutError("completions that differed are the same once cut")
    cuts = []
    if prompt != group.prompt_ids:
        cuts.append("the prompt lost its beginning")
    if shorter != completions:
        cuts.append("a completion lost its end, and its end-of-turn token with it")
    new["provenance"] = {**group.provenance, "truncated": cuts}
    return replace(group, sampler_logprobs=None, reference_logprobs=None, **new), cuts


def _left(prompt: tuple[int, ...], most: int, bos: int | None) -> tuple[int, ...]:
    """The last `most` tokens, the beginning of the sequence among them if the prompt has it."""
    if most >= len(prompt):
        return prompt
    begin = prompt[:1] if prompt[0] == bos else ()
    if most <= len(begin):
        raise _LeftOutError("of the prompt nothing is left but the beginning-of-sequence token")
    return (*begin, *prompt[len(prompt) - most + len(begin) :])


def _least(limit: int | None, length: int) -> int:
    return length if limit is None else min(limit, length)


def _too_long(group: Group, budget: _Budget, found: str, key: str, most: int | None) -> Exception:
    if "drop" in budget.policies:
        return _LeftOutError(f"longer than {key} allows ({most} tokens)")
    cuts = {
        "max_prompt_tokens": "truncate_prompt_left",
        "max_completion_tokens": "truncate_completion_right",
        "the context": "truncate_prompt_left or truncate_completion_right",
    }
    change, keys = f"raise {key}", f"data.{key}, data.truncation"
    if key == "the context":
        change, keys = "give a model with a longer one", "data.truncation"
    return DataError(
        f"{group.where}: {found}, but {key} allows {most}; {change}, shorten or remove the row, or choose the policy"
        f" drop or {cuts[key]} (in a recipe: {keys})"
    )
