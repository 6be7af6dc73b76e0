"""Groups, prompts and texts into rows of each common format, and of TRL's.

| kind | a row |
|---|---|
| `pairs`, `trl-preference` | `prompt, chosen, rejected`; `pairs` has `score_chosen, score_rejected` where there are rewards |
| `trl-preference-implicit` | `chosen, rejected`, each with the prompt before it |
| `kway` | `prompt, completions, rewards` |
| `ratings` | `prompt, completion, rating`, one row for each completion |
| `rankings` | `prompt, completions, ranks`, 1 for the best |
| `trl-unpaired` | `prompt, completion, label`: true for the best, false for the worst |
| `prompts`, `trl-prompt-only` | `prompt` |
| `text`, `trl-language-modeling` | `text` (or `messages`): the prompt with the best completion |

A winner without rewards counts 1, the others 0. Of equal rewards the first stands for all. Replies to conversations are written
as messages, one turn or more, so that a column holds one type. Nothing is left out silently: groups that the kind cannot
hold are set aside with a reason, and values that it has no place for are counted.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from exoalign.data.formats import PromptRow, Record, TextRow
from exoalign.data.set_aside import SetAside
from exoalign.errors import DataError
from exoalign.groups import Completion, Group, Message, Prompt

Row = dict[str, Any]


@dataclass
class Account:
    """What a conversion leaves out.

    Attributes:
        aside: the rows of groups that the kind cannot hold, with reasons.
        unwritten: how many values of groups that were written had no place, by what they are; and how many rows had a value in
            a column that is not read.
    """

    aside: SetAside = field(default_factory=SetAside)
    unwritten: Counter[str] = field(default_factory=Counter)

    def refuse(self, group: Group, reason: str) -> None:
        """Set the rows of a group aside."""
        for where in group.provenance.get("rows", [group.where]):
            self.aside.add(reason, where)


def check_kind(kind: str, pairs: str = "best_worst") -> None:
    """Refuse a kind that there is not, and all pairs of a kind that has none.

    Raises:
        DataError: with the nearest one and the list, or the kinds that have pairs.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, 1)
        hint = f"; did you mean `{near[0]}`?" if near else "."
        raise DataError(f"no kind `{kind}`{hint} There are: {', '.join(KINDS)}")
    if pairs == "all" and KINDS[kind] not in _ALL_PAIRS:
        names = ", ".join(name for name, rows in KINDS.items() if rows in _ALL_PAIRS)
        raise DataError(f"all pairs were asked for, and {kind} has none; expected one of {names}")


def to_rows(items: Iterable[Record], kind: str, account: Account, *, pairs: str = "best_worst") -> Iterator[Row]:
    """Turn groups, prompts or texts into the rows of one kind.

    Args:
        items: what was read.
        kind: a key of `KINDS`.
        account: filled with what is left out.
        pairs: for pairs out of K completions: `best_worst` for one pair, `all` for each two whose rewards differ.

    Raises:
        DataError: for an unknown kind, and for prompts or texts where the kind needs completions.
    """
    check_kind(kind, pairs)
    for item in items:
        if isinstance(item, Group):
            _count_internal(item, account)
            yield from KINDS[kind](item, account, pairs)
        elif isinstance(item, PromptRow) and kind in ("prompts", "trl-prompt-only"):
            yield {"prompt": _written(item.prompt)}
        elif isinstance(item, TextRow) and kind in ("text", "trl-language-modeling"):
            yield _text_row(item.text)
        else:
            found = "only a prompt" if isinstance(item, PromptRow) else "only text for SFT"
            fit = "`prompts`" if isinstance(item, PromptRow) else "`text`"
            raise DataError(f"{item.source}: found {found}, which cannot become {kind}; it can be {fit}")


def _pairs(group: Group, account: Account, pairs: str) -> Iterator[Row]:
    for best, worst in _choices(group, account, pairs):
        row = _pair_row(group, best, worst)
        if group.rewards is not None and group.rewards[best] < group.rewards[worst]:
            account.unwritten["rewards that contradict their winner"] += 2  # no reader would take such a pair
        elif group.rewards is not None:
            row |= {"score_chosen": group.rewards[best], "score_rejected": group.rewards[worst]}
        yield row


def _trl_pairs(group: Group, account: Account, pairs: str) -> Iterator[Row]:
    for best, worst in _choices(group, account, pairs):
        account.unwritten["rewards"] += 2 * (group.rewards is not None)
        yield _pair_row(group, best, worst)


def _implicit_pairs(group: Group, account: Account, pairs: str) -> Iterator[Row]:
    for best, worst in _choices(group, account, pairs):
        chosen, rejected = (_joined(group.prompt, group.completions[i]) for i in (best, worst))
        account.unwritten["rewards"] += 2 * (group.rewards is not None)
        yield {"chosen": _written(chosen), "rejected": _written(rejected)}


def _unpaired(group: Group, account: Account, pairs: str) -> Iterator[Row]:
    for best, worst in _choices(group, account, "best_worst"):
        account.unwritten["rewards"] += 2 * (group.rewards is not None)
        for index, label in ((best, True), (worst, False)):
            completion = _reply(group, index)
            yield {"prompt": _written(group.prompt), "completion": completion, "label": label}


def _kway(group: Group, account: Account, pairs: str) -> Iterator[Row]:
    values = _values(group, account)
    if values is not None:
        if group.winner is not None and sum(v >= values[group.winner] for v in values) > 1:
            account.unwritten["winners that are not alone at the highest reward"] += 1
        yield {"prompt": _written(group.prompt), "completions": _replies(group), "rewards": list(values)}


def _rankings(group: Group, account: Account, pairs: str) -> Iterator[Row]:
    values = _values(group, account)
    if values is None:
        return
    if len(set(values)) < len(values):
        account.refuse(group, "equal rewards, which ranks cannot hold")
        return
    account.unwritten["rewards, of which ranks keep the order"] += len(group.rewards or ())
    order = sorted(values, reverse=True)
    ranks = [order.index(value) + 1 for value in values]
    yield {"prompt": _written(group.prompt), "completions": _replies(group), "ranks": ranks}


def _ratings(group: Group, account: Account, pairs: str) -> Iterator[Row]:
    for i, value in enumerate(_values(group, account, least=1) or ()):
        completion = _reply(group, i)
        yield {"prompt": _written(group.prompt), "completion": completion, "rating": value}


def _prompts(group: Group, account: Account, pairs: str) -> Iterator[Row]:
    account.unwritten["completions"] += group.k
    yield {"prompt": _written(group.prompt)}


def _text(group: Group, account: Account, pairs: str) -> Iterator[Row]:
    values = _values(group, account, least=1)
    if values is None:
        return
    best = values.index(max(values)) if group.winner is None else group.winner
    account.unwritten["completions"] += group.k - 1
    account.unwritten["rewards"] += len(group.rewards or ())
    yield _text_row(_joined(group.prompt, group.completions[best]))


KINDS: dict[str, Callable[[Group, Account, str], Iterator[Row]]] = {
    "pairs": _pairs,
    "kway": _kway,
    "ratings": _ratings,
    "rankings": _rankings,
    "prompts": _prompts,
    "text": _text,
    "trl-preference": _trl_pairs,
    "trl-preference-implicit": _implicit_pairs,
    "trl-unpaired": _unpaired,
    "trl-prompt-only": _prompts,
    "trl-language-modeling": _text,
}
_ALL_PAIRS = (_pairs, _trl_pairs, _implicit_pairs)
PAIRS = ("best_worst", "all")


def _values(group: Group, account: Account, *, least: int = 2) -> Sequence[float] | None:
    """A number for each completion, or None after setting the group aside."""
    if group.k < least:
        account.refuse(group, "one completion only")
    elif group.rewards is None and group.winner is None:
        account.refuse(group, "neither rewards nor a winner")
    else:
        return group.rewards or [float(i == group.winner) for i in range(group.k)]
    return None


def _choices(group: Group, account: Account, pairs: str) -> list[tuple[int, int]]:
    """The pairs (better, worse) of a group; a winner of two decides, whatever the rewards."""
    values = _values(group, account)
    if values is None:
        return []
    if group.winner is not None and group.k == 2:
        return [(group.winner, 1 - group.winner)]
    if len(set(values)) == 1:
        account.refuse(group, "all rewards are equal: no pair")
        return []
    if pairs == "all":
        found = [sorted(pair, key=lambda i: -values[i]) for pair in combinations(range(group.k), 2)]
    else:
        found = [[values.index(max(values)), values.index(min(values))]]
    differing = [(i, j) for i, j in found if values[i] != values[j]]
    kept = [(i, j) for i, j in differing if group.completions[i] != group.completions[j]]
    if not kept:
        account.refuse(group, "chosen and rejected are the same text")
        return []
    account.unwritten["pairs of equal rewards"] += len(found) - len(differing)
    account.unwritten["pairs of the same text"] += len(differing) - len(kept)
    account.unwritten["completions that are in no pair"] += group.k - len({i for pair in kept for i in pair})
    return kept


def _count_internal(group: Group, account: Account) -> None:
    """Token ids, log-probs and scores belong to a run, not to a data set: no kind has a place for them."""
    for name in ("prompt_ids", "completion_ids", "sampler_logprobs", "reference_logprobs", "scores"):
        account.unwritten[f"groups' {name}"] += getattr(group, name) is not None


def _pair_row(group: Group, best: int, worst: int) -> Row:
    chosen, rejected = (_reply(group, i) for i in (best, worst))
    return {"prompt": _written(group.prompt), "chosen": chosen, "rejected": rejected}


def _reply(group: Group, index: int) -> Any:
    completion = group.completions[index]
    if isinstance(completion, str) and not isinstance(group.prompt, str):
        completion = (Message("assistant", completion),)
    return _written(completion)


def _replies(group: Group) -> list[Any]:
    return [_reply(group, i) for i in range(group.k)]


def _joined(prompt: Prompt, completion: Completion) -> Prompt:
    """The prompt and what follows it, as one text or one conversation."""
    if isinstance(completion, str):
        return prompt + completion if isinstance(prompt, str) else (*prompt, Message("assistant", completion))
    return (*prompt, *completion)  # `Group` allows turns after turns only


def _written(text: Prompt) -> Any:
    return text if isinstance(text, str) else [turn._asdict() for turn in text]


def _text_row(text: Prompt) -> Row:
    return {"text": text} if isinstance(text, str) else {"messages": _written(text)}
