"""A recipe's `align.lora`: checked before any work, and as peft's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from exoalign import adapters
from exoalign.config import Recipe
from exoalign.errors import ConfigError, ModelError
from exoalign.models import resolve

if TYPE_CHECKING:
    from peft import PeftConfig


def adapter_settings(recipe: Recipe) -> PeftConfig | None:
    """peft's settings of a fresh adapter, None where the recipe asks for none.

    Raises:
        ModelError: if peft is not installed.
    """
    section = recipe.align.lora
    if section is None:
        return None
    return adapters.lora_config(
        r=section.r, alpha=section.alpha, dropout=section.dropout, target_modules=section.target_modules
    )


def compute_type(recipe: Recipe, *, bf16: bool) -> torch.dtype | None:
    """The type that a base of 4 bits computes in, None where the recipe asks for none."""
    if recipe.align.lora is None or recipe.align.lora.quantize is None:
        return None
    return torch.bfloat16 if bf16 else torch.float32


def check_adapter(recipe: Recipe) -> None:
    """Refuse before any work what `align.lora` and the model cannot do: tried on a model without weights.

    Raises:
        ConfigError: if the model is an adapter already, and a fresh one is asked for.
        ModelError: if a package or CUDA is missing, or a target module does not exist.
    """
    source = resolve(recipe.model.path)
    if recipe.align.lora is None:
        return
    if adapters.is_adapter_folder(source):
        raise ConfigError(
            f"model.path {source} is an adapter, and align.lora asks for a fresh one: leave align.lora out to train that"
            f" adapter further, or merge it first: exoalign merge {source} --out FOLDER"
        )
    settings = adapter_settings(recipe)
    assert settings is not None
    if recipe.align.lora.quantize is not None:
        adapters.quantization(torch.float32)
    section = recipe.model
    try:
        config = AutoConfig.from_pretrained(
            source, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=section.trust_remote_code)
    except Exception:  # a model that is not built so is told of when it is loaded
        return
    try:
        adapters.wrap(skeleton, settings)
    except ModelError as error:
        raise ConfigError(f"align.lora: {error}") from error
