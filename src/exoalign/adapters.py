"""Adapters by peft (LoRA and its kin): put on a model, loaded from a folder, switched off, and what they are known by.

peft is optional (`pip install 'exoalign[lora]'`) and imported where it is first needed. An adapter folder holds
`adapter_config.json`, which names its base model, and `adapter_model.safetensors`; pickled weights are never loaded.

QLoRA (a base of 4 bits by bitsandbytes) is wired as transformers and peft describe it. It needs CUDA and has not been run by
the project's own tests, whose machines have none: there it is refused, and that is tested.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from exoalign.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KINDS = ("LORA", "LOHA", "LOKR", "IA3")
"""Tuners that add something to single layers, token by token; others are not loaded from folders."""
_NOT_THE_ADAPTER = (
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "task_type",
    "auto_mapping",
    "peft_version",
)
"""Settings of an adapter that change no log-prob."""


def need_peft() -> None:
    """Refuse to go on without peft.

    Raises:
        ModelError: with the command that installs it.
    """
    if importlib.util.find_spec("peft") is None:
        raise ModelError("adapters need the package peft; run: pip install 'exoalign[lora]'")


def is_adapted(model: Any) -> bool:
    """Whether the model is peft's wrapper; without importing peft, which whoever made it has done."""
    return "peft" in sys.modules and isinstance(model, sys.modules["peft"].PeftModel)


def lora_config(
    *, r: int, alpha: float, dropout: float, target_modules: str | list[str], task_type: str = "CAUSAL_LM"
) -> PeftConfig:
    """The LoraConfig of a recipe's `lora`; with the task SEQ_CLS the head is trained too."""
    need_peft()
    from peft import LoraConfig

    return LoraConfig(
        task_type=task_type,
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft says int and divides
        lora_dropout=dropout,
        target_modules=target_modules,
    )


def wrap(model: PreTrainedModel, settings: PeftConfig) -> PeftModel:
    """The model with a fresh adapter that changes nothing yet; its own weights are frozen.

    Args:
        model: a causal model of transformers, changed in place.
        settings: peft's, for example a LoraConfig; left as it is.

    Raises:
        ConfigError: if the settings are not peft's, or begin from something else than the model as it is.
        ModelError: if the model has an adapter already, or a module that is to be adapted does not exist.
    """
    need_peft()
    from peft import PeftConfig, get_peft_model

    if not isinstance(settings, PeftConfig):
        raise ConfigError(
            f"peft_config is {type(settings).__name__}; expected one of peft's, for example LoraConfig(r=16)"
        )
    if is_adapted(model) or getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            "the model has an adapter, and peft_config asks for another: leave peft_config out to go on training the adapter"
            " that is there, or merge it into the weights first (exoalign merge, or model.merge_and_unload())"
        )
    kind = str(getattr(settings.peft_type, "value", settings.peft_type))
    begin = getattr(settings, "init_lora_weights", True)
    if settings.is_prompt_learning or kind == "XLORA":
        raise ConfigError(
            f"peft_config is of the type {kind}; expected one that changes layers, for example LoraConfig(r=16)"
        )
    if begin is not True and begin != "gaussian":  # the others change the base, or start elsewhere than at it
        raise ConfigError(
            f"peft_config.init_lora_weights is {begin!r}; expected True or 'gaussian': the reference is the model with the"
            " adapter off, from which training must begin"
        )
    settings = copy.deepcopy(settings)
    settings.task_type = settings.task_type or "CAUSAL_LM"
    _check_targets(model, getattr(settings, "target_modules", None))
    try:
        adapted = get_peft_model(model, settings)
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        raise ModelError(f"peft_config does not fit {type(model).__name__}: {_first_line(error)}") from error
    base = str(model.name_or_path)
    adapted.peft_config["default"].base_model_name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    return adapted


def _check_targets(model: torch.nn.Module, targets: Any) -> None:
    """Every name of a list must be a module's: peft is content with one of them."""
    if targets is None or isinstance(targets, str):
        return
    names = [name for name, module in model.named_modules() if not list(module.children())]
    for target in sorted(targets):
        if not any(name == target or name.endswith(f".{target}") for name, _ in model.named_modules()):
            known = sorted({name.rpartition(".")[2] for name in names if not name.rpartition(".")[2].isdigit()})
            near = difflib.get_close_matches(target, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"its modules are {', '.join(known)}"
            raise ModelError(f"target_modules: {type(model).__name__} has no module {target!r}; {hint}")


def is_adapter_folder(path: str | Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (Path(path) / SETTINGS).is_file()


def base_of(folder: str | Path) -> tuple[str, str | None]:
    """The base model that an adapter folder names (folder or hub id), and its revision.

    Raises:
        ModelError: if the settings are damaged, name no base or a kind of adapter that is not loaded; if there are no safe
            weights; if the base is a folder that is gone, or an adapter itself.
    """
    file = Path(folder) / SETTINGS
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        base, kind = settings["base_model_name_or_path"], settings["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file} is damaged: expected JSON with base_model_name_or_path and peft_type") from error
    if kind not in KINDS or settings.get("megatron_config"):  # megatron_core names a module to import
        raise ModelError(f"{file}: an adapter of the type {kind!r}; expected one of {', '.join(KINDS)}")
    if not (Path(folder) / WEIGHTS).is_file():
        raise ModelError(
            f"adapter {folder} has no {WEIGHTS}, and pickled weights (adapter_model.bin) are not loaded; save it again with"
            " safetensors"
        )
    if not isinstance(base, str) or not base:
        raise ModelError(f"{file} names no base model; set base_model_name_or_path to its folder or hub id")
    looks_local = base.startswith((".", "/", "~")) or base.count("/") > 1 or "\\" in base
    if looks_local and not Path(base).expanduser().is_dir():
        raise ModelError(
            f"adapter {folder}: its base model {base} is not there; put it back, or set base_model_name_or_path in {file} to"
            " where it is now"
        )
    if is_adapter_folder(Path(base).expanduser()):
        raise ModelError(
            f"adapter {folder}: its base {base} is an adapter itself; merge that first: exoalign merge {base}"
        )
    revision = settings.get("revision")
    return base, revision if isinstance(revision, str) else None


def refuse_hub_adapter(source: str, revision: str | None) -> None:
    """Refuse a hub id that is an adapter's: transformers would load it by itself, pickled ones too.

    Raises:
        ModelError: with the command that downloads it.
    """
    if Path(source).is_dir():
        return
    from transformers.utils import find_adapter_config_file

    try:
        found = find_adapter_config_file(source, revision=revision)
    except Exception:  # whatever is wrong with the id or the network, loading tells it
        return
    if found is not None:
        raise ModelError(
            f"model {source} is an adapter on the hub; download it to a folder (hf download {source} --local-dir FOLDER) and"
            " give that"
        )


def attach(base: PreTrainedModel, folder: str | Path) -> PeftModel:
    """The base model with the adapter of a folder on it, trainable.

    Raises:
        ModelError: if the adapter is damaged or is another model's.
    """
    need_peft()
    from peft import PeftModel, get_peft_model_state_dict

    try:
        with safe_open(Path(folder) / WEIGHTS, "pt") as file:
            stored = set(file.keys())
        adapted = PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    except SafetensorError as error:
        raise ModelError(f"{Path(folder) / WEIGHTS} is damaged ({error}); copy it again") from error
    except Exception as error:
        raise ModelError(
            f"adapter {folder} does not fit its base model {base.name_or_path}: {_first_line(error)}; is it another model's?"
        ) from error
    expected = set(get_peft_model_state_dict(adapted))
    if wrong := [f"{n} is missing" for n in sorted(expected - stored)] + [
        f"{n} has no place" for n in sorted(stored - expected)
    ]:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelError(
            f"adapter {folder} does not fit its base model {base.name_or_path}: {'; '.join(wrong[:3])}{more}; is it another"
            " model's?"
        )
    return adapted


@contextlib.contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """With the model's adapters off, if it has any."""
    with model.disable_adapter() if is_adapted(model) else contextlib.nullcontext():
        yield


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights that the model computes with now: of one whose adapters are off, those of its base, by their own names."""
    weights = model.state_dict()
    if not is_adapted(model) or not _off(model):
        return weights
    parts = {"modules_to_save"}
    for module in model.modules():
        parts.update(getattr(module, "adapter_layer_names", ()))
    return {
        ".".join(p for p in name.split(".") if p not in ("base_layer", "original_module")).removeprefix(
            "base_model.model."
        ): w
        for name, w in weights.items()
        if parts.isdisjoint(name.split("."))
    }


def settings_of(model: Any) -> dict[str, Any]:
    """What log-probs depend on besides weights and the model's configuration: the settings of the adapters in use."""
    if not is_adapted(model) or _off(model):
        return {}
    found = {name: model.peft_config[name].to_dict() for name in model.active_adapters}
    for settings in found.values():
        for key in _NOT_THE_ADAPTER:
            settings.pop(key, None)
        for key, value in settings.items():
            settings[key] = sorted(value) if isinstance(value, set) else value  # sets have no order of their own
    return found


def _off(model: Any) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return all(module.disable_adapters for module in model.modules() if isinstance(module, BaseTunerLayer))


def quantization(dtype: torch.dtype) -> Any:
    """Settings for a base of 4 bits (NF4, double quantisation), whose products run in `dtype`.

    Raises:
        ModelError: where there is no CUDA device or no bitsandbytes.
    """
    if not torch.cuda.is_available():
        raise ModelError("quantize: 4bit needs a CUDA device, and this machine has none; leave quantize out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("quantize: 4bit needs the package bitsandbytes; run: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__
