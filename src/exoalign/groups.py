"""`Group`: one prompt with its K completions, the unit that everything in this package works on; `GroupBatch`: its tensors.

A group is plain, frozen Python: it is read from a file, sampled, rewarded, written to Parquet and handed to the trainer,
each stage adding a field with `dataclasses.replace`. K may differ from group to group. Importing this module loads no torch.

Shape legend: B groups, K completions (the largest K of the batch), P prompt tokens, L completion tokens (the longest).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from exoalign.errors import DataError

if TYPE_CHECKING:
    import torch


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]
"""Text that the completion continues as it stands, or the turns of a conversation that the chat template renders."""

Completion = str | tuple[Message, ...]
"""One reply as text, or a trajectory: the turns that follow the prompt, the assistant's first and last, others between them."""


def prompt_text(prompt: Prompt) -> str:
    """The prompt as people read it: the text itself, or the turns with their roles (a single turn without)."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)


def completion_text(completion: Completion) -> str:
    """The completion as people read it: as `prompt_text`."""
    return prompt_text(completion)


@dataclass(frozen=True)
class Group:
    """One prompt and its K completions, validated when it is made.

    Attributes:
        prompt: text, or the turns of a conversation.
        completions: the K replies, each as text or (after a conversation) as a trajectory of turns, K >= 1.
        rewards: a finite reward for each completion, or None.
        scores: what each scorer said, a finite number for each completion under its name; rewards are composed of them.
        winner: index of the preferred completion, or None.
        prompt_ids: the prompt's token ids (special tokens of the template included), or None before tokenisation.
        completion_ids: token ids of each completion, with the end-of-turn token where the reply ended by itself. Sampled
            ids are kept as they were drawn and never made again from the text.
        completion_masks: for each completion, whether each token counts in its log-prob: True at what the assistant wrote,
            False at the other turns of a trajectory. None where all tokens count.
        sampler_logprobs: log mu(y_k|x) in nats, summed over tokens, under the distribution that was sampled from.
        reference_logprobs: log pi_ref(y_k|x) in nats, summed over tokens.
        provenance: where the group comes from (source row, sampler settings, reference fingerprint, ...).

    Raises:
        DataError: if lengths differ, a number is not finite, the winner is out of range or a part is empty.
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    rewards: tuple[float, ...] | None = None
    winner: int | None = None
    prompt_ids: tuple[int, ...] | None = None
    completion_ids: tuple[tuple[int, ...], ...] | None = None
    completion_masks: tuple[tuple[bool, ...], ...] | None = None
    sampler_logprobs: tuple[float, ...] | None = None
    reference_logprobs: tuple[float, ...] | None = None
    scores: Mapping[str, tuple[float, ...]] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        freeze = object.__setattr__
        freeze(self, "provenance", MappingProxyType(dict(self.provenance)))
        if not isinstance(self.prompt, str):
            freeze(self, "prompt", tuple(self._message(turn, "the prompt") for turn in self.prompt))
        if isinstance(self.completions, str):
            raise DataError(f"{self.where}: the completions are no tuple of texts; expected one text for each of the K")
        freeze(self, "completions", tuple(self._completion(completion) for completion in self.completions))
        k = self.k
        if k == 0:
            raise DataError(f"{self.where}: a group needs at least one completion, found none")
        if self.completion_ids is not None:
            freeze(self, "completion_ids", tuple(tuple(ids) for ids in self.completion_ids))
        if self.prompt_ids is not None:
            freeze(self, "prompt_ids", tuple(self.prompt_ids))
        for name in ("rewards", "sampler_logprobs", "reference_logprobs"):
            values = getattr(self, name)
            if values is not None:
                freeze(self, name, self._numbers(values, name))
        if self.scores is not None:
            columns = {str(name): self._numbers(values, f"scores.{name}") for name, values in self.scores.items()}
            freeze(self, "scores", MappingProxyType(columns))
        if self.winner is not None:
            if self.winner not in range(k):
                raise DataError(f"{self.where}: winner is {self.winner!r}; expected an index from 0 to {k - 1}")
            freeze(self, "winner", int(self.winner))
        if self.completion_ids is not None:
            if len(self.completion_ids) != k:
                raise DataError(
                    f"{self.where}: token ids of {len(self.completion_ids)} completions for {k} completions"
                )
            if not all(self.completion_ids):
                raise DataError(f"{self.where}: a completion has no token; expected at least the end-of-turn token")
        if self.prompt_ids is not None and not self.prompt_ids:
            raise DataError(f"{self.where}: the prompt has no token, so the first token of a completion has no context")
        if self.completion_masks is not None:
            self._check_masks()

    def _check_masks(self) -> None:
        masks = tuple(tuple(bool(x) for x in mask) for mask in self.completion_masks or ())
        object.__setattr__(self, "completion_masks", masks)
        lengths = [len(ids) for ids in self.completion_ids or ()]
        if [len(mask) for mask in masks] != lengths:
            raise DataError(
                f"{self.where}: masks of {[len(mask) for mask in masks]} tokens for completions of {lengths} tokens"
            )
        if not all(any(mask) for mask in masks):
            raise DataError(f"{self.where}: a completion has no token that counts; expected one turn of the assistant")

    def _completion(self, completion: Any) -> Completion:
        if isinstance(completion, str):
            return completion
        if not isinstance(completion, tuple | list) or isinstance(completion, Message):
            found = type(completion).__name__
            raise DataError(
                f"{self.where}: the completions are no tuple of texts: one is {found}; expected text or turns"
            )
        turns = tuple(self._message(turn, "a completion") for turn in completion)
        if isinstance(self.prompt, str):
            raise DataError(f"{self.where}: a completion is a conversation and the prompt is text; give both alike")
        if not turns or turns[0].role != "assistant" or turns[-1].role != "assistant":
            roles = ", ".join(turn.role for turn in turns) or "none"
            raise DataError(
                f"{self.where}: a completion has the turns {roles}; expected the assistant's first and last"
            )
        return turns

    def _message(self, turn: Any, part: str) -> Message:
        values = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else turn
        if not isinstance(values, tuple | list) or [type(value) for value in values] != [str, str]:
            source = self.provenance.get("source") or "group"
            raise DataError(f"{source}: a turn of {part} is {str(turn)[:60]}; expected (role, content) as text")
        return Message(*values)

    def _numbers(self, values: Iterable[Any], name: str) -> tuple[float, ...]:
        numbers = tuple(self._number(value, f"{name}[{i}]") for i, value in enumerate(values))
        if len(numbers) != self.k:
            raise DataError(f"{self.where}: {len(numbers)} {name} for {self.k} completions; expected one for each")
        return numbers

    def _number(self, value: Any, name: str) -> float:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        except (TypeError, ValueError):
            raise DataError(f"{self.where}: {name} is {str(value)[:60]!r}; expected a finite number") from None
        if not math.isfinite(number):
            raise DataError(f"{self.where}: {name} is {number}; expected a finite number")
        return number

    def __reduce__(self) -> tuple[Any, ...]:
        state = [getattr(self, f.name) for f in fields(self)]
        return (type(self), tuple(dict(v) if isinstance(v, MappingProxyType) else v for v in state))

    @property
    def k(self) -> int:
        """Number of completions."""
        return len(self.completions)

    @property
    def counted_tokens(self) -> tuple[int, ...]:
        """How many tokens of each completion count in its log-prob: all without masks, none (an empty tuple) without ids."""
        if self.completion_masks is not None:
            return tuple(map(sum, self.completion_masks))
        return tuple(map(len, self.completion_ids or ()))

    @property
    def marked_ids(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of each completion, `~i` (negative) for an i that does not count: with the prompt's, all that tells one."""
        if self.completion_masks is None:
            return self.completion_ids or ()
        pairs = zip(self.completion_ids or (), self.completion_masks, strict=True)
        return tuple(tuple(i if m else ~i for i, m in zip(ids, mask, strict=True)) for ids, mask in pairs)

    @property
    def where(self) -> str:
        """Where the group comes from, for error messages: its source row, else the beginning of its prompt."""
        return str(self.provenance.get("source") or f"group {prompt_text(self.prompt)[:40]!r}")


@dataclass(frozen=True)
class GroupBatch:
    """B groups as padded tensors, ragged K included: a completion of length 0 is absent.

    Attributes:
        prompt_ids: [B, P] int64, padded on the right.
        prompt_lengths: [B] int64.
        completion_ids: [B, K, L] int64, padded on the right.
        completion_lengths: [B, K] int64, 0 where a group has fewer than K completions.
        completion_masks: [B, K, L] bool, True at tokens that count in the log-prob, or None where all do.
        rewards: [B, K] float32, or None.
        winner: [B] int64, or None.
        reference_logprobs: [B, K] float32 in nats, or None.
        proposal: c = log pi_ref - log mu [B, K] float32 in nats, or None where all completions were drawn from pi_ref.
    """

    prompt_ids: torch.Tensor
    prompt_lengths: torch.Tensor
    completion_ids: torch.Tensor
    completion_lengths: torch.Tensor
    completion_masks: torch.Tensor | None = None
    rewards: torch.Tensor | None = None
    winner: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None
    proposal: torch.Tensor | None = None

    @property
    def mask(self) -> torch.Tensor:
        """[B, K] bool, True at real completions."""
        return self.completion_lengths > 0

    @property
    def shape(self) -> tuple[int, int]:
        """(B, K)."""
        b, k = self.completion_lengths.shape
        return b, k

    def take(self, groups: Sequence[int], completions: Sequence[int] | None = None) -> GroupBatch:
        """Some groups of the batch, of them some completions (all K when None), padded no longer than they need.

        The winner stays only with all completions: it is an index into them.
        """
        rows = list(groups)
        columns = list(range(self.shape[1])) if completions is None else list(completions)
        lengths = self.completion_lengths[rows][:, columns]

        def per_completion(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values[rows][:, columns]

        return GroupBatch(
            prompt_ids=self.prompt_ids[rows, : int(self.prompt_lengths[rows].max())],
            prompt_lengths=self.prompt_lengths[rows],
            completion_ids=self.completion_ids[rows][:, columns, : int(lengths.max())],
            completion_lengths=lengths,
            completion_masks=(
                None if self.completion_masks is None else self.completion_masks[rows][:, columns, : int(lengths.max())]
            ),
            rewards=per_completion(self.rewards),
            winner=None if self.winner is None or completions is not None else self.winner[rows],
            reference_logprobs=per_completion(self.reference_logprobs),
            proposal=per_completion(self.proposal),
        )

    def as_dict(self) -> dict[str, torch.Tensor]:
        """The tensors by name, None left out: what a data loader hands on and `GroupBatch(**inputs)` takes back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def check_groups(groups: Sequence[Group], *, needs: str) -> None:
    """Refuse groups that an objective cannot use.

    Args:
        groups: the training data.
        needs: "rewards" or "winner".

    Raises:
        DataError: naming the first group without what is needed, with one completion only, or (winner) with K other than 2.
    """
    if not groups:
        raise DataError("no groups to train on: the data is empty")
    for group in groups:
        if getattr(group, needs) is None:
            other = "exo_rw or dpo_rw" if needs == "winner" else "exo_pref or dpo_pref"
            raise DataError(
                f"{group.where}: the objective needs `{needs}`, which this group lacks; add it or use {other}"
            )
        if group.k < 2:
            raise DataError(f"{group.where}: found 1 completion, expected at least 2: one alone holds no preference")
        if needs == "winner" and group.k != 2:
            raise DataError(
                f"{group.where}: found {group.k} completions, expected 2; with rewards use exo_rw or dpo_rw"
            )
