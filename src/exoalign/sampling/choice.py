"""How the next token is drawn, and when a text ends a completion: what `generate` is given of ours.

Shape legend: R rows (completions), V vocabulary, T new tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria, TopKLogitsWarper, TopPLogitsWarper

from exoalign.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SeededChoice(LogitsProcessor):
    """Draws each row's next token by inverting its cumulative distribution at the row's own uniform number.

    Args:
        uniforms: [R, T] in [0, 1).
        temperature: logits are divided by it.
        top_k: the likeliest tokens that are kept (of equals with the last all); 0 keeps all.
        top_p: nucleus that is kept of these.

    Attributes:
        sampler_logprobs: for each step [R] float64, of the drawn tokens under what they were drawn from.
        model_logprobs: the same under the model at the temperature.
    """

    def __init__(self, uniforms: Tensor, *, temperature: float, top_k: int = 0, top_p: float = 1.0) -> None:
        self.uniforms, self.temperature = uniforms, temperature
        self.warpers: list[Any] = [TopKLogitsWarper(top_k)] if top_k > 0 else []
        if top_p < 1:
            self.warpers.append(TopPLogitsWarper(top_p))
        self.sampler_logprobs: list[Tensor] = []
        self.model_logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[R, V] logits -> [R, V] scores that leave the drawn token only."""
        wide = torch.float32 if scores.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        scaled = scores.float() / self.temperature
        kept = scaled
        for warper in self.warpers:
            kept = warper(input_ids, kept)
        top = scaled.amax(-1, keepdim=True)
        cumulative = torch.cumsum((kept - top).exp_(), -1, dtype=wide)
        total = cumulative[:, -1:]
        if not bool(torch.isfinite(total).all()):
            raise ModelError(
                "the model's logits hold NaN or infinity: its weights are broken, or overflow in this precision"
            )
        # u < total, so the first place above u exists and its token has mass
        u = self.uniforms[:, len(self.sampler_logprobs), None].to(wide) * total
        token = torch.searchsorted(
            cumulative, torch.minimum(u, torch.nextafter(total, total.new_zeros(()))), right=True
        )
        drawn = (scaled.gather(1, token) - top).to(wide)
        self.sampler_logprobs.append((drawn - total.log()).squeeze(1))
        if self.warpers:
            total = (scaled - top).exp_().sum(-1, keepdim=True, dtype=wide)
        self.model_logprobs.append((drawn - total.log()).squeeze(1))
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


class StopText(StoppingCriteria):
    """Ends a row at the token that completes one of some texts, wherever the borders of tokens are.

    Args:
        tokenizer: decodes the tokens.
        stop: the texts.
        rows: how many rows there are.

    Attributes:
        lengths: for each row its tokens up to and including that one, None where none came.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], rows: int) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.lengths: list[int | None] = [None] * rows
        added = tokenizer.added_tokens_decoder
        self._unseen = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        # a text of n bytes spans n tokens at most; the decoder may change what stands at the beginning
        most = max(len(text.encode()) for text in self.stop) + 4
        self._tails = [deque[int](maxlen=most) for _ in range(rows)]
        self._steps = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """[R, tokens so far] -> [R] bool, True at rows that have ended so."""
        self._steps += 1
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if self.lengths[row] is None and token not in self._unseen:
                self._tails[row].append(token)
                text = str(self.tokenizer.decode(list(self._tails[row])))
                if any(stop in text for stop in self.stop):
                    self.lengths[row] = self._steps
        return torch.tensor([length is not None for length in self.lengths], device=input_ids.device)


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the texts that end it."""
    return text[: min((place for s in stop if (place := text.find(s)) >= 0), default=len(text))]
