"""What a reward model says of whole completions: a linear head on the hidden state of the last token, one padded row for each.

A batch for a reward model has a placeholder behind each completion, and masks under which only the placeholder counts: the
hidden state that predicts it is the last real token's, so that packing for log-probs packs for rewards as well. The placeholder
itself goes into no model. `engine.completion_scores` is the fast twin of `row_scores`.

transformers reads the last token that is not `config.pad_token_id`. Rows are padded with that id on the right, so a text must
not end with it.

Shape legend: B groups, K completions, R rows (the real completions), N tokens of the longest row, C labels, E hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exoalign.groups import GroupBatch
from exoalign.logprobs.rows import device_of


@dataclass(frozen=True)
class TextRows:
    """The real completions of a batch, each behind its prompt and without its placeholder, padded on the right.

    `input_ids`, `attention_mask` [R, N]; `lengths` [R]; `owner` [R] is the flat index b * K + k that a row belongs to.
    """

    input_ids: Tensor
    attention_mask: Tensor
    lengths: Tensor
    owner: Tensor


def score_head(model: Any) -> torch.nn.Module | None:
    """The linear layer that makes rewards of hidden states, as transformers names it; None in a model of another kind."""
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Module) or model.get_output_embeddings() is not None:
        return None
    plain = getattr(head, "original_module", head)  # peft trains a copy of it
    return head if isinstance(plain, torch.nn.Linear) else None


def apply_head(head: torch.nn.Module, states: Tensor) -> Tensor:
    """[..., E] -> [..., C] in the precision of the head: bfloat16 would round rewards to three digits."""
    with torch.autocast(states.device.type, enabled=False):
        scores: Tensor = head(states.to(next(head.parameters()).dtype))
    return scores if scores.dtype == torch.float64 else scores.float()


def text_rows(batch: GroupBatch, pad_id: int, device: torch.device) -> TextRows:
    """Lay out the real completions of a batch as rows on `device`."""
    prompts, completions = batch.prompt_ids.tolist(), batch.completion_ids.tolist()
    texts, owner = [], []
    for b, row in enumerate(batch.completion_lengths.tolist()):
        for k, length in enumerate(row):
            if length:
                owner.append(b * batch.shape[1] + k)
                texts.append(prompts[b][: int(batch.prompt_lengths[b])] + completions[b][k][: length - 1])
    lengths = torch.tensor([len(text) for text in texts])
    ids = torch.full((len(texts), int(lengths.max())), pad_id)
    for r, text in enumerate(texts):
        ids[r, : len(text)] = torch.tensor(text)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return TextRows(ids.to(device), mask.to(device), lengths.to(device), torch.tensor(owner, device=device))


def pad_id_of(model: Any) -> int | None:
    """The id that transformers takes for padding when it looks for the last token."""
    value = model.config.get_text_config().pad_token_id
    return None if value is None else int(value)


def row_scores(model: Any, batch: GroupBatch) -> Tensor:
    """The model's own logits of each completion behind its prompt: the obvious way, and the only one for encoders.

    Args:
        model: a sequence classification model of transformers.
        batch: with placeholders; see above.

    Returns:
        [B, K, C], float32 (float64 for a float64 model), differentiable; 0 where a completion is absent.
    """
    pad_id = pad_id_of(model)
    rows = text_rows(batch, 0 if pad_id is None else pad_id, device_of(model))
    if pad_id is None:  # then transformers takes one row at a time, and reads its last token
        lengths = rows.lengths.tolist()
        logits = torch.cat(
            [model(input_ids=ids[None, :n]).logits for ids, n in zip(rows.input_ids, lengths, strict=True)]
        )
    else:
        logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
    return spread(logits, rows.owner, batch.shape)


def spread(logits: Tensor, owner: Tensor, shape: tuple[int, int]) -> Tensor:
    """[R, C] at their places in [B, K, C]."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    b, k = shape
    return logits.new_zeros(b * k, logits.shape[-1]).index_put((owner,), logits).view(b, k, -1)


def row_states(model: Any, batch: GroupBatch) -> Tensor:
    """Hidden states of the last tokens [B, K, E], from padded rows; 0 where a completion is absent."""
    rows = text_rows(batch, pad_id_of(model) or 0, device_of(model))
    states = model.base_model(
        input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False
    ).last_hidden_state
    return spread(states[torch.arange(len(states)), rows.lengths - 1], rows.owner, batch.shape)
