"""What every sampling backend offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from exoalign.groups import Group, Prompt


@dataclass(frozen=True)
class SamplingSettings:
    """The distribution that completions are drawn from, and how many.

    Attributes:
        k: completions for each prompt.
        temperature: logits are divided by it.
        top_p: the smallest set of tokens with at least this probability is kept; 1 keeps all.
        max_new_tokens: completions end here at the latest, then without an end-of-turn token.
        seed: completion k of prompt i depends on (seed, i, k) alone, whatever it is batched with (up to the rounding of
            the model's own forward pass).
    """

    k: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)


class Sampler(Protocol):
    """Draws K completions for each prompt."""

    def sample(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, sources: Sequence[str] | None = None
    ) -> list[Group]:
        """One group for each prompt, in order, with token ids, sampler log-probs and provenance (`sources` in it)."""
        ...
