"""Examples for supervised fine-tuning: groups of one completion, the reply to learn, out of every kind of data.

| data | prompt | completion |
|---|---|---|
| pairs, K-way, rankings, ratings, Parquet | the group's | the winner, else the first of those with the highest reward |
| `prompt, completion` or `prompt, chosen` | the prompt | the reply |
| `messages` | the turns before the assistant's first | the turns from there on; the assistant's count |
| `text` | the beginning-of-sequence token, or without one the text's first | the rest, and the end of text |

So whatever is done to groups (tokenised, cut, kept, packed, computed by the kernels) is done to examples alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from exoalign.data.formats import Place, stream_groups
from exoalign.data.mix import choose
from exoalign.data.set_aside import SetAside
from exoalign.data.texts import PLAIN, example_row
from exoalign.data.token_report import TokenReport
from exoalign.data.tokenize import prompt_ids, stream_tokenized
from exoalign.errors import DataError
from exoalign.groups import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def stream_examples(source: Place, aside: SetAside, *, limit: int | None = None) -> Iterator[Group]:
    """Read examples one at a time: see `formats.stream_groups`, whose arguments and account of rows are the same.

    Raises:
        DataError: with the place, for a malformed row, or a group whose best completion is not known.
    """
    return (best(group) for group in stream_groups(source, aside, limit=limit, make=example_row))


def best(group: Group) -> Group:
    """The group with its best completion alone, and nothing that only a choice among several needs.

    Raises:
        DataError: naming the group, if it has several completions and neither winner nor rewards.
    """
    if group.k > 1:
        rewards = group.rewards
        if group.winner is not None:
            group = choose(group, [group.winner])
        elif rewards is not None:
            group = choose(group, [max(range(group.k), key=lambda k: rewards[k])])
        else:
            raise DataError(
                f"{group.where}: {group.k} completions and neither winner nor rewards, so none is the one to learn; score"
                " them first, or give one completion"
            )
    return replace(group, rewards=None, winner=None, sampler_logprobs=None, reference_logprobs=None)


def stream_example_ids(
    examples: Iterable[Group], tokenizer: PreTrainedTokenizerBase, *, report: TokenReport | None = None
) -> Iterator[Group]:
    """Token ids of examples, as `tokenize.stream_tokenized` gives them to groups.

    A plain text follows the beginning-of-sequence token; where the tokenizer puts none, the text's own first token is its
    prompt, as nothing can predict it.
    """
    if prompt_ids(tokenizer, ""):
        return stream_tokenized(examples, tokenizer, report=report)
    # `_from_the_first` takes the place of this prompt, which no model sees
    nothing = (tokenizer.eos_token_id,)
    marked = (replace(group, prompt_ids=nothing) if _is_plain(group) else group for group in examples)
    return (
        _from_the_first(group) if _is_plain(group) else group
        for group in stream_tokenized(marked, tokenizer, report=report)
    )


def with_prompt_learnt(group: Group) -> Group:
    """The example with all tokens behind its first one as the completion, and all of them count: for `loss_on: all`."""
    assert group.prompt_ids is not None
    assert group.completion_ids is not None
    (completion,) = group.completion_ids
    every = (*group.prompt_ids[1:], *completion)
    return replace(group, prompt_ids=group.prompt_ids[:1], completion_ids=(every,), completion_masks=None)


def _is_plain(group: Group) -> bool:
    return bool(group.provenance.get(PLAIN))


def _from_the_first(group: Group) -> Group:
    assert group.completion_ids is not None
    (ids,) = group.completion_ids
    return replace(group, prompt_ids=ids[:1], completion_ids=(ids[1:],))
