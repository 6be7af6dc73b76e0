"""Loads reward models: `AutoModelForSequenceClassification` by folder or hub id; safetensors only, no foreign code unasked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from exoalign import adapters
from exoalign.errors import ModelError
from exoalign.logprobs.readout import score_head
from exoalign.models import default_device, explain_failure, refuse_incomplete, refuse_pickled_shards, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_reward_model(
    path: str,
    *,
    fresh_labels: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
) -> PreTrainedModel:
    """Load a reward model, or begin one.

    Args:
        path: a folder, a hub id, or `demo`.
        fresh_labels: None for a reward model that is complete. A number for one to train: of any other model, such as a causal
            one, the layers are taken and get a fresh head of so many labels; a reward model must have as many.
        seed: of a fresh head.
        dtype: the type of the weights.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run the Python code that the model's repository brings. Off unless the user says so.
        device: where the weights go; the accelerator if there is one, when None.

    Raises:
        ModelError: if it cannot be found, has no safetensors or wants its own code; if a weight is missing or a file damaged;
            if it is an adapter, or its labels are not as many as are wanted.
    """
    source = resolve(path)
    if adapters.is_adapter_folder(source):
        raise ModelError(f"reward model {path} is an adapter; merge it first: exoalign merge {path} --out FOLDER")
    refuse_pickled_shards(Path(source))
    adapters.refuse_hub_adapter(source, revision)
    shared: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **shared)
        begun = fresh_labels is not None and not _is_reward_model(config)
        if begun:
            config.num_labels = fresh_labels
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # of what a new head is filled with
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # told below, with names and sizes
                output_loading_info=True,
                **shared,
            )
    except Exception as error:
        raise ModelError(explain_failure(path, error)) from error
    model, told = loaded
    missing = list(told["missing_keys"])
    if begun:  # all but the layers of the model itself is new
        missing = [name for name in missing if name.startswith(f"{model.base_model_prefix}.") and "pooler" not in name]
    expected = "a sequence classification model with all its weights, as `exoalign reward train` saves it"
    refuse_incomplete(f"reward model {path}", model, missing, told["mismatched_keys"], expected)
    if fresh_labels is not None and model.config.num_labels != fresh_labels:
        raise ModelError(
            f"reward model {path} has {model.config.num_labels} labels, and {fresh_labels} are wanted: a ranking has 1, a"
            " classifier 2; begin with another model"
        )
    if begun:
        _fill_head(model, seed)
    return model.to(device or default_device())


def _is_reward_model(config: Any) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.architectures or ())


def _fill_head(model: Any, seed: int) -> None:
    """Rewards that are small at first, so that the first steps do not unlearn them, and not 0, which the layers could not learn
    from: standard deviation 1 / (E + 1) for E numbers of order 1.
    """
    head = score_head(model)
    if head is None:  # an encoder's head is its own, filled by transformers
        return
    weight = head.weight
    assert isinstance(weight, torch.Tensor)
    values = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) / (weight.shape[1] + 1)
    with torch.no_grad():
        weight.copy_(values)
