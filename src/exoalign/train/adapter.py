"""A `lora` section of a recipe: checked before any work, and as peft's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from exoalign import adapters
from exoalign.config import ModelSection, Recipe
from exoalign.config_train import LoraSection
from exoalign.errors import ConfigError, ModelError
from exoalign.models import resolve

if TYPE_CHECKING:
    from peft import PeftConfig


def adapter_settings(recipe: Recipe) -> PeftConfig | None:
    """`lora_settings` of `align`."""
    return lora_settings(recipe.align.lora)


def lora_settings(section: LoraSection | None) -> PeftConfig | None:
    """peft's settings of a fresh adapter, None where the recipe asks for none.

    Raises:
        ModelError: if peft is not installed.
    """
    if section is None:
        return None
    return adapters.lora_config(
        r=section.r, alpha=section.alpha, dropout=section.dropout, target_modules=section.target_modules
    )


def compute_type(recipe: Recipe, *, bf16: bool) -> torch.dtype | None:
    """`lora_compute_type` of `align`."""
    return lora_compute_type(recipe.align.lora, bf16=bf16)


def lora_compute_type(section: LoraSection | None, *, bf16: bool) -> torch.dtype | None:
    """The type that a base of 4 bits computes in, None where the recipe asks for none."""
    if section is None or section.quantize is None:
        return None
    return torch.bfloat16 if bf16 else torch.float32


def check_adapter(recipe: Recipe) -> None:
    """`check_lora` of `align`."""
    check_lora(recipe.align.lora, recipe.model, name="align.lora")


def check_lora(section: LoraSection | None, model: ModelSection, *, name: str) -> None:
    """Refuse before any work what an adapter and the model cannot do: tried on a model without weights.

    Args:
        section: the adapter that is asked for.
        model: what it is put on.
        name: of the section, for errors.

    Raises:
        ConfigError: if the model is an adapter already, and a fresh one is asked for.
        ModelError: if a package or CUDA is missing, or a target module does not exist.
    """
    source = resolve(model.path)
    if section is None:
        return
    if adapters.is_adapter_folder(source):
        raise ConfigError(
            f"model.path {source} is an adapter, and {name} asks for a fresh one: leave {name} out to train that"
            f" adapter further, or merge it first: exoalign merge {source} --out FOLDER"
        )
    settings = lora_settings(section)
    assert settings is not None
    if section.quantize is not None:
        adapters.quantization(torch.float32)
    try:
        config = AutoConfig.from_pretrained(source, revision=model.revision, trust_remote_code=model.trust_remote_code)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    except Exception:  # a model that is not built so is told of when it is loaded
        return
    try:
        adapters.wrap(skeleton, settings)
    except ModelError as error:
        raise ConfigError(f"{name}: {error}") from error
