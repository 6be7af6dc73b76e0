"""One group as the model sees it, printed before training: a glance shows a wrong template, a missing end or a wrong mask."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from exoalign.errors import DataError
from exoalign.groups import Group
from exoalign.progress import plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_group(group: Group, tokenizer: PreTrainedTokenizerBase) -> str:
    """The group's ids decoded, special tokens in `[[ ]]`, control characters inert.

    Each completion is broken where its mask changes: `+` begins what counts in the log-prob, `-` what does not; further lines
    of the same stretch are indented.

    Raises:
        DataError: if the group has no token ids.

    Example of what is returned::

        rows.jsonl:3: what the model sees; [[ ]] special token, + counts in the log-prob, - does not
        prompt, 21 tokens
          - [[<|im_start|>]]user
            Hi[[<|im_end|>]]
            [[<|im_start|>]]assistant
        completion 1 of 2, 6 tokens, 6 count, preferred
          + Hello[[<|im_end|>]]
    """
    if group.prompt_ids is None or group.completion_ids is None:
        raise DataError(f"{group.where}: has no token ids; call exoalign.tokenize first")
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    lines = [
        f"{plain(group.where)}: what the model sees; [[ ]] special token, + counts in the log-prob, - does not",
        f"prompt, {len(group.prompt_ids)} tokens",
        *_stretch("-", group.prompt_ids, tokenizer, special),
    ]
    for k, ids in enumerate(group.completion_ids):
        mask = group.completion_masks[k] if group.completion_masks is not None else (True,) * len(ids)
        notes = [f"completion {k + 1} of {group.k}", f"{len(ids)} tokens", f"{sum(mask)} count"]
        notes += [f"reward {group.rewards[k]:g}"] if group.rewards is not None else []
        notes += ["preferred"] if group.winner == k else []
        lines.append(", ".join(notes))
        for counts, pairs in groupby(zip(mask, ids, strict=True), key=lambda pair: pair[0]):
            lines += _stretch("+" if counts else "-", [i for _, i in pairs], tokenizer, special)
    return "\n".join(lines)


def _stretch(sign: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, special: set[int]) -> list[str]:
    text = ""
    for is_special, run in groupby(ids, key=special.__contains__):
        if is_special:
            text += "".join(f"[[{tokenizer.convert_ids_to_tokens(i)}]]" for i in run)
        else:
            text += str(tokenizer.decode(list(run), clean_up_tokenization_spaces=False))
    first, *rest = plain(text).split("\n")
    return [f"  {sign} {first}", *(f"    {line}" for line in rest)]
