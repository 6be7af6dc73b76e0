"""What every sampling backend offers: `Sampler` draws completions, each a `Draw`; `assemble` makes a prompt's into a group."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from exoalign.groups import Group, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Finish = Literal["stop", "length", "stop_string"]


@dataclass(frozen=True)
class SamplingSettings:
    """The distribution that completions are drawn from, and how many.

    Attributes:
        k: completions for each prompt.
        temperature: logits are divided by it.
        top_p: of the tokens that `top_k` left, the smallest set with at least this probability is kept; 1 keeps all.
        max_new_tokens: completions end here at the latest, then without an end-of-turn token.
        seed: completion k of prompt i depends on (seed, i, k) alone, whatever it is batched with (up to the rounding of
            the model's own forward pass).
        top_k: this many of the likeliest tokens are kept; 0 keeps all.
        stop: texts at which a completion ends.
    """

    k: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    top_k: int = 0
    stop: tuple[str, ...] = ()

    @property
    def truncated(self) -> bool:
        """Whether some tokens are never drawn, so that the sampler's distribution is not the model's."""
        return self.top_p < 1 or self.top_k > 0

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, as JSON holds them."""
        return {**asdict(self), "stop": list(self.stop)}


@dataclass(frozen=True)
class Draw:
    """One completion.

    Attributes:
        prompt, k: the number of its prompt, and which of the prompt's completions it is, from 0.
        ids: token ids as they were drawn, with the end token, or up to the token that completed a stop string.
        text: without special tokens, cut before a stop string.
        sampler_logprob: log-probability of the ids in nats under what drew them: after temperature, top-k and top-p.
        model_logprob: that under the model at the same temperature; None where the backend cannot tell it.
        finish: "stop" at an end token, "stop_string", or "length".
    """

    prompt: int
    k: int
    ids: tuple[int, ...]
    text: str
    sampler_logprob: float
    model_logprob: float | None
    finish: Finish

    def as_dict(self) -> dict[str, Any]:
        """The completion as JSON values, without its place."""
        return {
            "ids": list(self.ids),
            "text": self.text,
            "sampler_logprob": self.sampler_logprob,
            "model_logprob": self.model_logprob,
            "finish": self.finish,
        }

    @classmethod
    def from_dict(cls, key: tuple[int, int], value: Mapping[str, Any]) -> Draw:
        """The completion at a place, out of what `as_dict` gave."""
        return cls(*key, **{**value, "ids": tuple(value["ids"])})


class Sampler(Protocol):
    """Draws K completions for each prompt."""

    tokenizer: PreTrainedTokenizerBase

    def encode(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, sources: Sequence[str] | None = None
    ) -> list[list[int]]:
        """Token ids of the prompts, all of which have some and leave room for `max_new_tokens`; else a DataError."""
        ...

    def draw(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        sources: Sequence[str] | None = None,
        *,
        skip: Collection[tuple[int, int]] = (),
    ) -> Iterator[list[Draw]]:
        """Completions as they come, some at a time, in any order, but for those that `skip` names by (prompt, k).

        What is drawn does not depend on `skip`: completions that were drawn before, and those drawn beside them now, are
        those of one run.
        """
        ...

    def sample(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, sources: Sequence[str] | None = None
    ) -> list[Group]:
        """One group for each prompt, in order: all that `draw` gives, each prompt's made into a group by `assemble`."""
        ...

    def provenance(self, settings: SamplingSettings) -> dict[str, Any]:
        """What is kept with each group, as JSON values: all that completions depend on besides their prompts.

        `tokenizer` is its vocabulary's fingerprint; `sampler` holds the backend, the model's name and its weights'
        fingerprint, the type it computes in, the size of a batch and the settings.
        """
        ...


def assemble(
    prompt: Prompt, source: str, prompt_ids: Sequence[int], draws: Sequence[Draw], provenance: Mapping[str, Any]
) -> Group:
    """The group of a prompt's completions, given in order of k.

    Args:
        prompt: the prompt.
        source: the row that it stands in.
        prompt_ids: its token ids.
        draws: its completions.
        provenance: as `Sampler.provenance` gives it.
    """
    kept: dict[str, Any] = {"source": source, **provenance, "finish": [draw.finish for draw in draws]}
    if all(draw.model_logprob is not None for draw in draws):
        kept["model_logprobs"] = [draw.model_logprob for draw in draws]
    return Group(
        prompt,
        tuple(draw.text for draw in draws),
        prompt_ids=tuple(prompt_ids),
        completion_ids=tuple(draw.ids for draw in draws),
        sampler_logprobs=tuple(draw.sampler_logprob for draw in draws),
        provenance=kept,
    )


def sampled(
    sampler: Sampler, prompts: Sequence[Prompt], settings: SamplingSettings, sources: Sequence[str] | None
) -> list[Group]:
    """`Sampler.sample` out of the rest of the protocol."""
    sources = sources or numbered(prompts)
    ids = sampler.encode(prompts, settings, sources)
    found = {(draw.prompt, draw.k): draw for draws in sampler.draw(prompts, settings, sources) for draw in draws}
    kept = sampler.provenance(settings)
    return [
        assemble(prompt, source, ids[i], [found[i, k] for k in range(settings.k)], kept)
        for i, (prompt, source) in enumerate(zip(prompts, sources, strict=True))
    ]


def numbered(prompts: Sequence[Prompt]) -> list[str]:
    """Names for prompts whose rows are not known."""
    return [f"prompt {i + 1}" for i in range(len(prompts))]


def batches(
    lengths: Sequence[int], k: int, size: int, skip: Collection[tuple[int, int]]
) -> list[list[tuple[int, int]]]:
    """(prompt, k) of each batch, by length of the prompt: little padding is needed, and a prompt's K stand together.

    A batch is left out where all of it is done, and whole otherwise: so its numbers are the same, whatever was done before.
    """
    done = set(skip)
    jobs = [(i, j) for i in sorted(range(len(lengths)), key=lambda i: lengths[i]) for j in range(k)]
    found = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    return [batch for batch in found if not done.issuperset(batch)]
