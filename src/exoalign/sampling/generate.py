"""Sampling with transformers' `generate`: large batches sorted by prompt length, ids and log-probs kept.

`generate` decodes greedily over scores that leave one token: the one that `SeededChoice` drew. So each completion has its own
random numbers, the log-prob of each drawn token is noted at no cost, and nothing that a model's own generation settings
say (a repetition penalty, a default top-k) changes the distribution unseen.

Shape legend: P distinct prompts, R rows (completions), W width of the padded prompts, T new tokens.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from exoalign.data.tokenize import vocabulary
from exoalign.errors import ModelError
from exoalign.groups import Group, Prompt
from exoalign.models import fingerprint, token_ids
from exoalign.sampling.choice import SeededChoice, StopText, before_stop
from exoalign.sampling.encode import encode_prompts
from exoalign.sampling.prefill import distinct, expanded_cache, shares
from exoalign.sampling.protocol import Draw, Finish, SamplingSettings, batches, numbered, sampled

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Report = Callable[[int], None]
Job = tuple[int, int]
"""A prompt's number and which of its completions."""


class TransformersSampler:
    """Samples from a causal model with `generate`.

    Args:
        model: a causal language model; bfloat16 weights are the fastest where the hardware has them.
        tokenizer: its tokenizer.
        batch_size: completions in one batch.
        name: the model's name, kept in the provenance beside the fingerprint of its weights.
        report: called with the number of completions that a batch has finished.
        share_prefill: let completions of one prompt share its prefill; False for comparison.

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
        share_prefill: bool = True,
    ) -> None:
        self.model, self.tokenizer, self.batch_size, self.name = model, tokenizer, batch_size, name
        self.report = report or (lambda n: None)
        self.share_prefill: bool | None = None if share_prefill else False  # None: not tried yet
        self.vocabulary = vocabulary(tokenizer)
        self.ends = sorted({*token_ids(model.generation_config.eos_token_id), *token_ids(tokenizer.eos_token_id)})
        if not self.ends:
            raise ModelError("the tokenizer has no end-of-sequence token, so a completion has no end; set `eos_token`")

    def encode(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, sources: Sequence[str] | None = None
    ) -> list[list[int]]:
        """Token ids of the prompts.

        Raises:
            DataError: naming the prompt, if it has no token or leaves no room for `max_new_tokens` in the context.
        """
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        names = sources or numbered(prompts)
        return encode_prompts(self.tokenizer, prompts, names, context=context, room=settings.max_new_tokens)

    def draw(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        sources: Sequence[str] | None = None,
        *,
        skip: Collection[Job] = (),
    ) -> Iterator[list[Draw]]:
        """Completions, those of a batch at a time; see `Sampler`.

        Raises:
            DataError: as `encode`.
            ModelError: if the model's logits are not finite.
        """
        ids, done = self.encode(prompts, settings, sources), set(skip)
        for batch in batches([len(p) for p in ids], settings.k, self.batch_size, done):
            drawn = [draw for draw in self._fitting(ids, batch, settings) if (draw.prompt, draw.k) not in done]
            yield drawn
            self.report(len(drawn))

    def sample(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, sources: Sequence[str] | None = None
    ) -> list[Group]:
        """K completions for each prompt; see `Sampler`.

        Raises:
            DataError: as `encode`.
            ModelError: if the model's logits are not finite.
        """
        return sampled(self, prompts, settings, sources)

    def provenance(self, settings: SamplingSettings) -> dict[str, Any]:
        """What is kept with each group; see `Sampler`."""
        sampler = {
            "backend": "transformers",
            "model": self.name,
            "fingerprint": fingerprint(self.model),
            "dtype": str(self.model.dtype),
            "batch_size": self.batch_size,
            **settings.as_dict(),
        }
        return {"tokenizer": self.vocabulary, "sampler": sampler}

    def _fitting(self, ids: list[list[int]], batch: list[Job], settings: SamplingSettings) -> list[Draw]:
        """A batch's completions; one that does not fit into memory is drawn in halves."""
        try:
            return self._draw(ids, batch, settings)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        half = len(batch) // 2
        logger.warning(
            "%d completions at once do not fit into memory: drawn in halves; lower sample.batch_size", len(batch)
        )
        torch.cuda.empty_cache()  # does nothing where CUDA is not in use
        return self._fitting(ids, batch[:half], settings) + self._fitting(ids, batch[half:], settings)

    @torch.inference_mode()
    def _draw(self, ids: list[list[int]], batch: list[Job], settings: SamplingSettings) -> list[Draw]:
        device, (prompts, places) = self.model.device, distinct([i for i, _ in batch])
        lengths = [len(ids[i]) for i in prompts]
        width = max(lengths)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.ends[0]
        input_ids = torch.tensor([[pad] * (width - len(ids[i])) + ids[i] for i in prompts], device=device)
        attention = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in prompts], device=device)
        rows = torch.tensor(places, device=device)
        seeds = [np.random.default_rng([settings.seed, i, k]).random(settings.max_new_tokens) for i, k in batch]
        uniforms = torch.from_numpy(np.stack(seeds))
        choice = SeededChoice(
            (uniforms.float() if device.type == "mps" else uniforms).to(device),
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )
        stop = StopText(self.tokenizer, settings.stop, len(batch)) if settings.stop else None
        with _as_a_sampler(self.model, eos_token_id=self.ends, pad_token_id=pad):
            own: Any = self.model.generate
            generate: Any = functools.partial(own, do_sample=False)
            cache = {}
            if min(lengths) > 1 and len(prompts) < len(batch) and self.share_prefill is not False:
                if self.share_prefill is None:
                    self.share_prefill = shares(generate, input_ids, attention, self.model.dtype)
                if self.share_prefill:
                    cache["past_key_values"] = expanded_cache(generate, input_ids, attention, rows)
            output = generate(
                input_ids=input_ids[rows],
                attention_mask=attention[rows],
                max_new_tokens=settings.max_new_tokens,
                logits_processor=LogitsProcessorList([choice]),
                stopping_criteria=StoppingCriteriaList([] if stop is None else [stop]),
                **cache,
            )
        tokens = output[:, width:].tolist()
        by_sampler, by_model = (
            torch.stack(steps, 1).double().cpu().numpy() for steps in (choice.sampler_logprobs, choice.model_logprobs)
        )
        found = []
        for row, (i, k) in enumerate(batch):
            finish, n = self._finish(tokens[row], None if stop is None else stop.lengths[row])
            text = str(self.tokenizer.decode(tokens[row][:n], skip_special_tokens=True))
            text = before_stop(text, settings.stop) if finish == "stop_string" else text
            sums = float(by_sampler[row, :n].sum()), float(by_model[row, :n].sum())
            found.append(Draw(i, k, tuple(tokens[row][:n]), text, *sums, finish))
        return found

    def _finish(self, tokens: list[int], stopped: int | None) -> tuple[Finish, int]:
        """How a row ended, and its length: an end token, a stop string or neither, whichever came first."""
        end = next((n + 1 for n, token in enumerate(tokens) if token in self.ends), None)
        if end is not None and (stopped is None or end <= stopped):
            return "stop", end
        return ("length", len(tokens)) if stopped is None else ("stop_string", stopped)


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
