"""Token ids, made once. Content is tokenised apart from the template, so special tokens that a user typed stay text.

A prompt given as text is continued as it stands (with the tokenizer's beginning-of-sequence token where it has one); a
prompt given as messages is rendered by the chat template. A completion is its content and the token that ends a turn; of a
trajectory the template's text between its turns too, which its mask leaves out of the log-prob.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from exoalign.data.token_report import TokenReport, boundary_holds, boundary_window
from exoalign.data.turns import Piece, Turns, roles
from exoalign.errors import DataError, ModelError
from exoalign.groups import Completion, Group, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Seams = dict[tuple[int, int], tuple[Piece, Piece]]
"""(group, completion) -> the text before a reply with which its first tokens may merge, and the reply's first turn."""

CHUNK_GROUPS = 1024
"""Groups whose texts go through the tokenizer in one call: enough for all cores, little enough to hold."""


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
        return [*_bos(tokenizer), *content_ids(tokenizer, prompt)]
    pieces = Turns(tokenizer).prompt(prompt)
    ids = _Ids(tokenizer, pieces)
    return [i for piece in pieces for i in ids.of(piece)]


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short name that two tokenizers share when they give the same ids to the same tokens."""
    return _vocabulary(tokenizer, len(tokenizer))


@lru_cache(maxsize=2)
def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> str:
    """Worked out once for each `size` of the tokenizer, which grows with its tokens: 0.1 s at every call would be long."""
    return hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode("utf-8", "replace")).hexdigest()[:16]


def tokenize(
    groups: Sequence[Group],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int | None = None,
    report: TokenReport | None = None,
) -> list[Group]:
    """Give every group its token ids; ids that are there already are kept.

    Args:
        groups: the groups.
        tokenizer: the policy's tokenizer.
        context: the model's context length in tokens, if it is known.
        report: counts what was made, and checks that the prompt ids are a prefix of the whole; None checks nothing.

    Raises:
        DataError: naming the group, if it is longer than the context, a prompt cannot be used, or its ids are those of another
            tokenizer.
        ModelError: if the tokenizer has no end-of-sequence token, or (naming the group) no usable chat template.
    """
    return list(stream_tokenized(groups, tokenizer, context=context, report=report))


def stream_tokenized(
    groups: Iterable[Group],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int | None = None,
    report: TokenReport | None = None,
) -> Iterator[Group]:
    """As `tokenize`, for groups that are read as they are needed: some thousand are held at a time."""
    return _stream(iter(groups), _Tokenizing(tokenizer, context, report))


def _stream(groups: Iterator[Group], tokenizing: _Tokenizing) -> Iterator[Group]:
    while chunk := list(islice(groups, CHUNK_GROUPS)):
        yield from tokenizing.chunk(chunk)


def _bos(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The beginning-of-sequence token as a tuple, empty where the tokenizer does not begin texts with one."""
    return tuple(i for i in tokenizer("")["input_ids"] if i == tokenizer.bos_token_id)


class _Ids:
    """The ids of many pieces, equal ones made once, in one call of the tokenizer for each kind."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pieces: Iterable[Piece]) -> None:
        kinds: tuple[dict[str, tuple[int, ...]], ...] = ({"": ()}, {"": ()})
        for piece in pieces:
            kinds[piece.template].setdefault(piece.text, ())
        for template, known in enumerate(kinds):
            texts = [text for text in known if text]
            if texts:
                encoded: Any = tokenizer(
                    texts,
                    add_special_tokens=False,
                    split_special_tokens=not template,
                    return_attention_mask=False,
                    return_token_type_ids=False,
                )
                known.update(zip(texts, map(tuple, encoded["input_ids"]), strict=True))
        self._kinds = kinds

    def of(self, piece: Piece) -> tuple[int, ...]:
        return self._kinds[piece.template][piece.text]


class _Tokenizing:
    """What stays the same for all groups of a stream."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int | None, report: TokenReport | None) -> None:
        self.tokenizer, self.context, self.report = tokenizer, context, report
        self.name, self.size = vocabulary(tokenizer), len(tokenizer)
        self.bos = _bos(tokenizer)
        self._turns: Turns | None = None
        self._tails: dict[str, str] = {}

    @property
    def turns(self) -> Turns:
        if self._turns is None:  # only a conversation needs a template
            self._turns = Turns(self.tokenizer)
        return self._turns

    def chunk(self, groups: list[Group]) -> list[Group]:
        """The groups with their ids."""
        laid_out = [self._pieces(group) for group in groups]
        seams: Seams = {} if self.report is None else self._seams(groups, laid_out)
        windows = {place: Piece(boundary_window(a.text, b.text), False, False) for place, (a, b) in seams.items()}
        every = (piece for prompt, completions in laid_out for part in (prompt, *completions) for piece in part)
        ids = _Ids(self.tokenizer, (*every, *(before for before, _ in seams.values()), *windows.values()))
        done = [
            self._with_ids(group, prompt, completions, ids)
            for group, (prompt, completions) in zip(groups, laid_out, strict=True)
        ]
        if self.report is not None:
            self._check_seams(self.report, groups, seams, windows, ids)
            for group, made in zip(groups, done, strict=True):
                self.report.count(made, checked=_has_no_ids(group))
                if not isinstance(group.prompt, str) and _has_no_ids(group):
                    self.report.check_turns(made, self.turns)
        return done

    def _seams(self, groups: list[Group], laid_out: list[tuple[list[Piece], list[list[Piece]]]]) -> Seams:
        """Where replies meet prompts: after a template its text behind the last special token, which nothing merges with."""
        seams: Seams = {}
        for i, (group, (prompt, completions)) in enumerate(zip(groups, laid_out, strict=True)):
            if _has_no_ids(group):
                last = prompt[-1]
                before = Piece(self._tail(last.text), False, False) if last.template else last
                seams |= {(i, k): (before, reply[0]) for k, reply in enumerate(completions) if before.text}
        return seams

    def _tail(self, text: str) -> str:
        if text not in self._tails:
            tail = text
            for token in self.tokenizer.added_tokens_decoder.values():
                _, found, rest = tail.rpartition(token.content)
                if found:
                    tail = rest.lstrip() if token.rstrip else rest
            self._tails[text] = tail
        return self._tails[text]

    def _check_seams(
        self,
        report: TokenReport,
        groups: list[Group],
        seams: Seams,
        windows: dict[tuple[int, int], Piece],
        ids: _Ids,
    ) -> None:
        """Compare the boundaries: in their windows, and whole where a window is in doubt."""
        doubtful = {
            place: Piece(before.text + reply.text, False, False)
            for place, (before, reply) in seams.items()
            if not boundary_holds(ids.of(before), ids.of(reply), ids.of(windows[place]))
        }
        wholes = _Ids(self.tokenizer, doubtful.values())
        for (i, k), whole in doubtful.items():
            before, reply = seams[i, k]
            report.check_text(groups[i].where, ids.of(before), ids.of(reply), wholes.of(whole), self.tokenizer)

    def _pieces(self, group: Group) -> tuple[list[Piece], list[list[Piece]]]:
        """The prompt and the completions as far as they need ids."""
        _check_ids(group, self.name, self.size)
        text = group.prompt
        prompt: list[Piece] = []
        completions: list[list[Piece]] = []
        if group.completion_ids is None and self.tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token, so a completion has no end; set `eos_token`")
        try:
            if group.prompt_ids is None:
                prompt = [Piece(text, False, False)] if isinstance(text, str) else self.turns.prompt(text)
            if group.completion_ids is None:
                completions = [self._reply(text, completion) for completion in group.completions]
        except (DataError, ModelError) as error:
            raise type(error)(f"{group.where}: {error}") from error
        return prompt, completions

    def _reply(self, prompt: Prompt, completion: Completion) -> list[Piece]:
        if not isinstance(prompt, str):
            return self.turns.completion(prompt, completion)
        assert isinstance(completion, str)  # a Group has no trajectory after text
        return [Piece(completion, False, True)]

    def _with_ids(self, group: Group, prompt: list[Piece], completions: list[list[Piece]], ids: _Ids) -> Group:
        new: dict[str, Any] = {}
        if group.prompt_ids is None:
            begin = self.bos if isinstance(group.prompt, str) else ()
            new["prompt_ids"] = (*begin, *(i for piece in prompt for i in ids.of(piece)))
        if group.completion_ids is None:
            ends = [self._end(group.prompt, completion) for completion in group.completions]
            pairs = [_ids_and_mask(pieces, ids, end) for pieces, end in zip(completions, ends, strict=True)]
            new["completion_ids"] = tuple(made for made, _ in pairs)
            if not all(isinstance(completion, str) for completion in group.completions):
                new["completion_masks"] = tuple(mask for _, mask in pairs)
            new["provenance"] = {**group.provenance, "tokenizer": self.name}
        if new:
            group = replace(group, **new)
        assert group.prompt_ids is not None
        assert group.completion_ids is not None
        longest = max(map(len, group.completion_ids))
        if self.context is not None and len(group.prompt_ids) + longest > self.context:
            raise DataError(
                f"{group.where}: prompt of {len(group.prompt_ids)} and completion of {longest} tokens,"
                f" but the model's context is {self.context}; shorten or remove the row"
            )
        return group

    def _end(self, prompt: Prompt, completion: Completion) -> int:
        """The token that ends a reply: after text end-of-sequence, in a conversation what the template puts there."""
        end: int | None = self.tokenizer.eos_token_id
        if not isinstance(prompt, str):
            end = self.turns.end(
                (*roles(prompt), *(("assistant",) if isinstance(completion, str) else roles(completion)))
            )
        assert end is not None
        return int(end)


def _ids_and_mask(pieces: list[Piece], ids: _Ids, end: int) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The ids of a completion and which of them count: the assistant's, and the first `end` behind each of its turns."""
    made: list[int] = []
    mask: list[bool] = []
    after_assistant = False
    for piece in pieces:
        new = ids.of(piece)
        made += new
        mask += [piece.counts] * len(new)
        if piece.template and after_assistant and end in new:
            mask[len(mask) - len(new) + new.index(end)] = True
        after_assistant = piece.counts
    return (*made, end), (*mask, True)


def _has_no_ids(group: Group) -> bool:
    return group.prompt_ids is None and group.completion_ids is None


def _check_ids(group: Group, name: str, size: int) -> None:
    """Refuse what is no id, and ids that another tokenizer made."""
    ids = [i for part in (group.prompt_ids or (), *(group.completion_ids or ())) for i in part]
    if None in ids or min(ids, default=0) < 0:
        raise DataError(
            f"{group.where}: a token id is {'null' if None in ids else min(ids)}; expected numbers from 0 to {size - 1}; give"
            " the ids that the completions were sampled with, or the text without ids"
        )
    largest = max(ids, default=0)
    made_by = group.provenance.get("tokenizer", name)
    if (group.prompt_ids or group.completion_ids) and (made_by != name or largest >= size):
        raise DataError(
            f"{group.where}: its token ids are another tokenizer's"
            + (f" (id {largest}, and this one has {size})" if largest >= size else "")
            + "; give the model that the completions were sampled from, or the text without ids"
        )
