"""Sampling with transformers' `generate`: large batches sorted by prompt length, ids and sampler log-probs kept.

`generate` decodes greedily over scores that leave one token: the one that `SeededChoice` drew. So each completion has its own
random numbers, the log-prob of each drawn token is noted at no cost, and nothing that a model's own generation settings
say (a repetition penalty, a default top-k) changes the distribution unseen.

Shape legend: R rows (completions), V vocabulary, T new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from exoalign.data.tokenize import prompt_ids, vocabulary
from exoalign.errors import DataError, ModelError
from exoalign.groups import Group, Prompt, prompt_text
from exoalign.models import token_ids
from exoalign.sampling.protocol import SamplingSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Report = Callable[[int], None]


class SeededChoice(LogitsProcessor):
    """Draws each row's next token by inverting its cumulative distribution at the row's own uniform number.

    Args:
        uniforms: [R, T] in [0, 1).
        temperature: logits are divided by it.
        top_p: nucleus that is kept.
    """

    def __init__(self, uniforms: Tensor, *, temperature: float, top_p: float) -> None:
        self.uniforms, self.temperature = uniforms, temperature
        self.nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[R, V] logits -> [R, V] scores that leave the drawn token only."""
        scaled = scores.float() / self.temperature
        if self.nucleus is not None:
            scaled = self.nucleus(input_ids, scaled)
        log_mu = torch.log_softmax(scaled, -1)
        wide = log_mu.float() if log_mu.device.type == "mps" else log_mu.double()  # Apple's GPUs have no float64
        cumulative = wide.exp().cumsum(-1)
        total = cumulative[:, -1:]
        if not bool(torch.isfinite(total).all()):
            raise ModelError(
                "the model's logits hold NaN or infinity: its weights are broken, or overflow in this precision"
            )
        # u < total, so the first place above u exists and its token has mass
        u = torch.minimum(
            self.uniforms[:, len(self.logprobs), None] * total, torch.nextafter(total, total.new_zeros(()))
        )
        token = torch.searchsorted(cumulative, u, right=True)
        self.logprobs.append(log_mu.gather(1, token).squeeze(1))
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


class TransformersSampler:
    """Samples from a causal model with `generate`.

    Args:
        model: a causal language model; bfloat16 weights are the fastest where the hardware has them.
        tokenizer: its tokenizer.
        batch_size: completions in one batch.
        name: the model's name or fingerprint, kept in the provenance.
        report: called with the number of completions that a batch has finished.

    Raises:
        ModelError: if neither the model nor its tokenizer names a token that ends a completion.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 64,
        name: str = "",
        report: Report | None = None,
    ) -> None:
        self.model, self.tokenizer, self.batch_size, self.name = model, tokenizer, batch_size, name
        self.report = report or (lambda n: None)
        self.vocabulary = vocabulary(tokenizer)
        self.ends = sorted({*token_ids(model.generation_config.eos_token_id), *token_ids(tokenizer.eos_token_id)})
        if not self.ends:
            raise ModelError("the tokenizer has no end-of-sequence token, so a completion has no end; set `eos_token`")

    def sample(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, sources: Sequence[str] | None = None
    ) -> list[Group]:
        """K completions for each prompt; see `Sampler`.

        Raises:
            DataError: naming the prompt, if it has no token or leaves no room for `max_new_tokens` in the context.
            ModelError: if the model's logits are not finite.
        """
        sources = sources or [f"prompt {i + 1}" for i in range(len(prompts))]
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        ids = encode_prompts(self.tokenizer, prompts, sources, context=context, room=settings.max_new_tokens)
        drawn: dict[tuple[int, int], tuple[list[int], float]] = {}
        # sorted by length: prompts of a batch then need little padding; all K of a prompt stand together
        jobs = [(i, k) for i in sorted(range(len(ids)), key=lambda i: len(ids[i])) for k in range(settings.k)]
        for start in range(0, len(jobs), self.batch_size):
            batch = jobs[start : start + self.batch_size]
            drawn.update(zip(batch, self._draw([ids[i] for i, _ in batch], batch, settings), strict=True))
            self.report(len(batch))
        return [
            self._group(prompt, source, ids[i], [drawn[i, k] for k in range(settings.k)], settings)
            for i, (prompt, source) in enumerate(zip(prompts, sources, strict=True))
        ]

    @torch.inference_mode()
    def _draw(
        self, prompts: list[list[int]], jobs: list[tuple[int, int]], settings: SamplingSettings
    ) -> list[tuple[list[int], float]]:
        device, width = self.model.device, max(map(len, prompts))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.ends[0]
        input_ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
        attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        seeds = [np.random.default_rng([settings.seed, i, k]).random(settings.max_new_tokens) for i, k in jobs]
        choice = SeededChoice(
            torch.tensor(np.stack(seeds), device=device), temperature=settings.temperature, top_p=settings.top_p
        )
        with _as_a_sampler(self.model, eos_token_id=self.ends, pad_token_id=pad):
            generate: Any = self.model.generate
            output = generate(
                input_ids=input_ids,
                attention_mask=attention,
                max_new_tokens=settings.max_new_tokens,
                do_sample=False,
                logits_processor=LogitsProcessorList([choice]),
            )
        tokens = output[:, width:].tolist()
        logprobs = torch.stack(choice.logprobs, 1).double().cpu().numpy()
        lengths = [self._length(row) for row in tokens]
        return [(row[:n], float(log[:n].sum())) for row, log, n in zip(tokens, logprobs, lengths, strict=True)]

    def _length(self, tokens: list[int]) -> int:
        """Tokens up to and including the first that ends the completion."""
        return next((n + 1 for n, token in enumerate(tokens) if token in self.ends), len(tokens))

    def _group(
        self,
        prompt: Prompt,
        source: str,
        ids: list[int],
        completions: list[tuple[list[int], float]],
        settings: SamplingSettings,
    ) -> Group:
        return Group(
            prompt,
            tuple(str(self.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens, _ in completions),
            prompt_ids=tuple(ids),
            completion_ids=tuple(tuple(tokens) for tokens, _ in completions),
            sampler_logprobs=tuple(logprob for _, logprob in completions),
            provenance={
                "source": source,
                "tokenizer": self.vocabulary,
                "sampler": {"model": self.name, "dtype": str(self.model.dtype), **settings.as_dict()},
                "finish": ["stop" if tokens[-1] in self.ends else "length" for tokens, _ in completions],
            },
        )


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sources: Sequence[str],
    *,
    context: int | None,
    room: int,
) -> list[list[int]]:
    """Token ids of prompts that fit the context with `room` new tokens.

    Raises:
        DataError: naming the first prompt that has no token or does not fit.
    """
    encoded = []
    for prompt, source in zip(prompts, sources, strict=True):
        try:
            ids = prompt_ids(tokenizer, prompt)
        except (DataError, ModelError) as error:
            raise type(error)(f"{source}: {error}") from error
        if not ids:
            raise DataError(f"{source}: the prompt has no token; expected at least one to sample after")
        if context is not None and len(ids) + room > context:
            raise DataError(
                f"{source}: the prompt has {len(ids)} tokens ({prompt_text(prompt)[:40]!r}): with max_new_tokens {room} that"
                f" is more than the model's context of {context}; shorten the prompt or lower sample.max_new_tokens"
            )
        encoded.append(ids)
    return encoded


@contextmanager
def _as_a_sampler(model: PreTrainedModel, **settings: Any) -> Iterator[None]:
    """No dropout, and generation settings with nothing but what is given; the model's own state comes back afterwards."""
    kept, training = model.generation_config, model.training
    model.generation_config = GenerationConfig(**settings)
    model.eval()
    try:
        yield
    finally:
        model.generation_config = kept
        model.train(training)
