"""Token ids, made once. Content is tokenised apart from the template, so special tokens that a user typed stay text.

A prompt given as text is continued as it stands (with the tokenizer's beginning-of-sequence token where it has one); a
prompt given as messages is rendered by the chat template. A completion is its content and the token that ends a turn.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from exoalign.errors import DataError, ModelError
from exoalign.groups import Group, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SLOT = "\ue000{}\ue001"  # private-use characters: no template and no text has them by accident


def content_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of text in which `<|im_end|>` and its like are plain characters."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Ids of a prompt.

    Raises:
        DataError: if a role is no plain name: the template puts it between its special tokens.
        ModelError: if messages are given and the tokenizer has no usable chat template.
    """
    if isinstance(prompt, str):
        bos = [i for i in tokenizer("")["input_ids"] if i == tokenizer.bos_token_id]
        return bos + content_ids(tokenizer, prompt)
    if not tokenizer.chat_template:
        raise ModelError(
            "the prompt is a conversation, but the tokenizer has no chat template; give the prompt as text"
        )
    for turn in prompt:
        if not re.fullmatch(r"\w[\w .-]*", turn.role):
            raise DataError(
                f"the role {turn.role[:60]!r} of a prompt is no plain name; expected user, assistant or its like"
            )
    turns = [{"role": turn.role, "content": _SLOT.format(i)} for i, turn in enumerate(prompt)]
    try:
        rendered: Any = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates are programs and raise what they like
        raise ModelError(f"the chat template refuses the roles {[t.role for t in prompt]}: {error}") from error
    parts = re.split("\ue000(\\d+)\ue001", rendered)
    if parts[1::2] != [str(i) for i in range(len(prompt))]:
        raise ModelError("the chat template drops or repeats a turn, so its content cannot be tokenised apart")
    ids: list[int] = []
    for i, part in enumerate(parts):
        if i % 2:
            ids += content_ids(tokenizer, prompt[int(part)].content)
        elif part:
            ids += tokenizer(part, add_special_tokens=False)["input_ids"]
    return ids


def end_of_turn(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> int:
    """The token that ends a reply: after text the end-of-sequence token, in a conversation what the template puts there."""
    eos = int(tokenizer.eos_token_id)
    if isinstance(prompt, str):
        return eos
    reply = _SLOT.format("reply")
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": reply}]
    try:
        rendered: Any = tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception:  # a template may want other turns than these
        return eos
    after = tokenizer(rendered.rpartition(reply)[2], add_special_tokens=False)["input_ids"][:1]
    return int(after[0]) if after and after[0] in tokenizer.added_tokens_decoder else eos


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short name that two tokenizers share when they give the same ids to the same tokens."""
    return hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode("utf-8", "replace")).hexdigest()[:16]


def _check_ids(group: Group, name: str, size: int) -> None:
    """Refuse ids that another tokenizer made."""
    largest = max((i for ids in (group.prompt_ids or (), *(group.completion_ids or ())) for i in ids), default=0)
    made_by = group.provenance.get("tokenizer", name)
    if (group.prompt_ids or group.completion_ids) and (made_by != name or largest >= size):
        raise DataError(
            f"{group.where}: its token ids are another tokenizer's"
            + (f" (id {largest}, and this one has {size})" if largest >= size else "")
            + "; give the model that the completions were sampled from, or the text without ids"
        )


def tokenize(groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase, *, context: int | None = None) -> list[Group]:
    """Give every group its token ids; ids that are there already are kept.

    Args:
        groups: the groups.
        tokenizer: the policy's tokenizer.
        context: the model's context length in tokens, if it is known.

    Raises:
        DataError: naming the group, if it is longer than the context, a prompt cannot be used, or its ids are those of another
            tokenizer.
        ModelError: if the tokenizer has no end-of-sequence token, or (naming the group) no usable chat template.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no end-of-sequence token, so a completion has no end; set `eos_token`")
    done, name, size = [], vocabulary(tokenizer), len(tokenizer)
    for group in groups:
        _check_ids(group, name, size)
        if group.prompt_ids is None:
            try:
                ids = prompt_ids(tokenizer, group.prompt)
            except (DataError, ModelError) as error:
                raise type(error)(f"{group.where}: {error}") from error
            group = replace(group, prompt_ids=tuple(ids))
        if group.completion_ids is None:
            end = end_of_turn(tokenizer, group.prompt)
            texts = [text for text in group.completions if isinstance(text, str)]
            if len(texts) < group.k:
                raise DataError(f"{group.where}: a trajectory, whose turns cannot be tokenised yet")
            replies = tuple((*content_ids(tokenizer, text), end) for text in texts)
            group = replace(group, completion_ids=replies, provenance={**group.provenance, "tokenizer": name})
        assert group.prompt_ids is not None
        assert group.completion_ids is not None
        longest = max(map(len, group.completion_ids))
        if context is not None and len(group.prompt_ids) + longest > context:
            raise DataError(
                f"{group.where}: prompt of {len(group.prompt_ids)} and completion of {longest} tokens,"
                f" but the model's context is {context}; shorten or remove the row"
            )
        done.append(group)
    return done
