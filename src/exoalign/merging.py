"""An adapter merged into its base: a standard model folder, kept only if its log-probs are those of base and adapter.

The sum is made in float32 and read again from the files that were written. Where the adapter touches one end of a model whose
embedding and head are one tensor, the two are parted first: merged into the one, it would change the other too.
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exoalign import adapters
from exoalign.data.collate import collate
from exoalign.data.tokenize import tokenize
from exoalign.errors import ModelError
from exoalign.groups import Group
from exoalign.logprobs.rows import completion_logprobs
from exoalign.models import load_model, load_tokenizer, resolve

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Log-probs may differ by this many nats times the root of the completion's length, by the type that is written."""
PROBES = [
    Group("The film was", (" a joy from the first scene to the last.", " dull.")),
    Group("Question: What is the capital of France?\nAnswer:", (" Paris.", " I would rather not say.")),
    Group("def add(a, b):\n    return", (" a + b", " sum(a)\n\n\nprint(add(1, 2))")),
]


def merge(adapter: str, out: str | Path, *, dtype: str = "float32", trust_remote_code: bool = False) -> dict[str, Any]:
    """Merge an adapter's folder into its base, write the model, read it again and compare.

    Args:
        adapter: the folder of an adapter, whose settings name the base.
        out: the folder to write; it must not exist, or be empty.
        dtype: the type of the weights written, float32 or bfloat16.
        trust_remote_code: run the Python code that the base's repository brings.

    Returns:
        {"model": out, "base": ..., "dtype": ..., "largest_difference": nats between the merged model and base with adapter,
        "adapter_moves": the largest difference that the adapter itself makes, "completions": how many were compared}.

    Raises:
        ModelError: if `adapter` is none, `out` is taken, or the log-probs differ; then nothing is left in `out`.
    """
    source, target = resolve(adapter), Path(out).expanduser()
    if not adapters.is_adapter_folder(source):
        raise ModelError(f"{adapter} is no adapter: no {adapters.SETTINGS} in it; expected a folder saved by peft")
    if dtype not in TOLERANCE:
        raise ModelError(f"dtype is {dtype!r}; expected {' or '.join(TOLERANCE)}")
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ModelError(f"{target} is there already; choose another with --out")
    tokenizer = load_tokenizer(adapter, trust_remote_code=trust_remote_code)
    model: Any = load_model(adapter, trust_remote_code=trust_remote_code).eval()
    groups = tokenize(PROBES, tokenizer)
    expected = _logprobs(model, groups)
    with adapters.switched_off(model):
        moves = (_logprobs(model, groups) - expected).abs().max()
    _part_tied_ends(model)
    try:
        merged = model.merge_and_unload(safe_merge=True).to(getattr(torch, dtype))
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"adapter {adapter} cannot be merged: {error}") from error
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        merged.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        del model, merged
        written = load_model(str(partial), trust_remote_code=trust_remote_code).eval()
        largest = _compare(_logprobs(written, groups), expected, groups, dtype)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, target)
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {
        "model": str(target),
        "base": adapters.base_of(source)[0],
        "dtype": dtype,
        "largest_difference": largest,
        "adapter_moves": float(moves),
        "completions": sum(group.k for group in groups),
    }


@torch.no_grad()
def _logprobs(model: torch.nn.Module, groups: list[Group]) -> Tensor:
    return completion_logprobs(model, collate(groups)).cpu()


def _compare(ours: Tensor, expected: Tensor, groups: list[Group], dtype: str) -> float:
    """The largest difference in nats.

    Raises:
        ModelError: if one is above the tolerance.
    """
    difference = (ours - expected).abs()
    for b, group in enumerate(groups):
        assert group.completion_ids is not None
        for k, ids in enumerate(group.completion_ids):
            allowed = TOLERANCE[dtype] * math.sqrt(len(ids))
            if not difference[b, k] <= allowed:
                raise ModelError(
                    f"the merged model gives {group.completions[k]!r} after {group.prompt!r} the log-prob {ours[b, k]:.4f},"
                    f" base and adapter give it {expected[b, k]:.4f}; in {dtype} they may differ by {allowed:.4f}. Nothing was"
                    " kept" + ("; try --dtype float32" if dtype != "float32" else "")
                )
    return float(difference.max())


def _part_tied_ends(model: Any) -> None:
    """Give the head a weight of its own where it shares the embedding's and an adapter is on either."""
    inner = model.get_base_model()
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    if type(embedding) is torch.nn.Embedding and type(head) is torch.nn.Linear:
        return
    for config in (inner.config, inner.config.get_text_config()):
        config.tie_word_embeddings = False
    for name in ("base_layer", "original_module"):
        head = getattr(head, name, head)
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
