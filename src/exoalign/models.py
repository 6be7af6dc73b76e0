"""Loads models and tokenizers: by folder, hub id or the word `demo`; safetensors only, no foreign code unless asked for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from exoalign import adapters
from exoalign.demo_model import demo_model
from exoalign.errors import ModelError
from exoalign.files import checksum

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NOT_THE_MODEL = ("_name_or_path", "transformers_version", "architectures", "use_cache", "dtype")
"""Settings of a configuration that change no log-prob, or that the weights themselves say."""


def resolve(path: str) -> str:
    """The folder or hub id that `path` names; `demo` becomes the folder of the demo model."""
    if path == "demo" and not Path("demo").is_dir():
        return str(demo_model())
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    try:
        folder = Path(path).expanduser()
        is_folder = folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, an unknown user, a NUL
        raise ModelError(f"model {path[:100]!r} is no folder and no hub id: {error}") from error
    if looks_local and not is_folder:
        raise ModelError(f"model {path}: no such folder; expected a folder with config.json, a hub id or `demo`")
    if is_folder and not (folder / "config.json").is_file() and not adapters.is_adapter_folder(folder):
        raise ModelError(f"model {path}: no config.json in the folder; expected a model saved by save_pretrained")
    return str(folder) if is_folder else path


def load_model(
    path: str,
    *,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    quantize: torch.dtype | None = None,
) -> PreTrainedModel:
    """Load a causal language model.

    Args:
        path: a folder, a hub id, or `demo`; a folder with an adapter gives its base model with the adapter on it (peft's
            wrapper), trainable.
        dtype: the type of the weights.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run the Python code that the model's repository brings. Off unless the user says so.
        device: where the weights go; the accelerator if there is one, when None.
        quantize: hold the (base) model in 4 bits by bitsandbytes and compute in this type: for QLoRA.

    Raises:
        ModelError: if the model cannot be found, is no causal model, has no safetensors or wants its own code; if a weight
            is missing or a file damaged; if an adapter is not its base's; if `quantize` cannot be done here.
    """
    source = resolve(path)
    if adapters.is_adapter_folder(source):
        adapters.need_peft()
        base, base_revision = adapters.base_of(source)
        below = load_model(
            base,
            dtype=dtype,
            revision=base_revision,
            trust_remote_code=trust_remote_code,
            device=device,
            quantize=quantize,
        )
        return adapters.attach(below, source)  # type: ignore[return-value]  # it hands on whatever its model has
    refuse_pickled_shards(Path(source))
    adapters.refuse_hub_adapter(source, revision)
    bits = {} if quantize is None else {"quantization_config": adapters.quantization(quantize)}
    if bits:
        bits["device_map"] = {"": str(device or default_device())}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # told below, with names and sizes
            output_loading_info=True,
            **bits,
        )
    except Exception as error:
        raise ModelError(explain_failure(path, error)) from error
    model: PreTrainedModel = loaded[0]
    expected = "a causal language model with all its weights"
    refuse_incomplete(f"model {path}", model, loaded[1]["missing_keys"], loaded[1]["mismatched_keys"], expected)
    return model if bits else model.to(device or default_device())  # type: ignore[arg-type]


def refuse_incomplete(
    called: str, model: Any, missing: Collection[str], mismatched: Collection[tuple[str, Any, Any]], expected: str
) -> None:
    """Refuse a model whose folder lacks weights, or has some of another size: transformers would fill in random numbers.

    Raises:
        ModelError: naming the first of them.
    """
    wrong = [f"{name} is missing" for name in sorted(missing)]
    wrong += [f"{name} is {list(a)}, expected {list(b)}" for name, a, b in sorted(mismatched)]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelError(
            f"{called} is no complete {type(model).__name__}: {'; '.join(wrong[:3])}{more}; expected {expected}"
        )


def load_tokenizer(
    path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model; a missing padding token becomes the end-of-sequence token.

    Raises:
        ModelError: if there is none.
    """
    source = resolve(path)
    if not (Path(source) / "tokenizer_config.json").is_file():
        source, revision = _base(source, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(explain_failure(path, error)) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _base(source: str, revision: str | None) -> tuple[str, str | None]:
    """Where the base of an adapter folder lies; of anything else, the same again."""
    if not adapters.is_adapter_folder(source):
        return source, revision
    base, revision = adapters.base_of(source)
    return resolve(base), revision


def context_length(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> int | None:
    """The model's context in tokens, None where its configuration names none."""
    source, revision = _base(resolve(path), revision)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelError(explain_failure(path, error)) from error
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def refuse_pickled_shards(folder: Path) -> None:
    """An index of safetensors may name other files, which transformers would unpickle.

    Raises:
        ModelError: if it does, or is damaged.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        shards = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged: expected JSON with a `weight_map` of weights and files") from error
    for name in sorted(shards):
        if not name.endswith(".safetensors"):
            raise ModelError(f"{index} names {name}; expected safetensors files only, pickled weights are not loaded")


def _damaged_file(folder: Path) -> Path | None:
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError:
            return file
    return None


def explain_failure(path: str, error: Exception) -> str:
    """What transformers could not load, for the user."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    if not isinstance(error, (OSError, ValueError, SafetensorError)):  # a KeyError's text alone says nothing
        first = f"{type(error).__name__}: {first}"
    if "trust_remote_code" in str(error):
        return f"model {path} brings its own code, which is not run; set model.trust_remote_code=true if you trust it"
    if isinstance(error, SafetensorError):
        file = _damaged_file(Path(resolve(path)))
        return f"model {path}: {file or 'a safetensors file'} is damaged ({first}); copy or download it again"
    if "file named" in str(error) and "safetensors" in str(error):
        return f"model {path} has no safetensors weights, and pickled ones are not loaded: {first}"
    return f"model {path} cannot be loaded: {first}"


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def native_bfloat16(device: torch.device | None = None) -> bool:
    """Whether the device multiplies bfloat16 in hardware (elsewhere it is emulated and slower than float32)."""
    device = device or default_device()
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        with contextlib.suppress(OSError):  # avx512_bf16, amx_bf16 on x86; bf16 on Arm
            return "bf16" in Path("/proc/cpuinfo").read_text()
        return False
    return device.type == "xpu"


def computes_in_bfloat16(precision: str) -> bool:
    """Whether a recipe's `model.precision` means bfloat16 on this machine: `auto` does where the hardware has it."""
    return precision == "bfloat16" or (precision == "auto" and native_bfloat16())


@contextlib.contextmanager
def autocast(device: torch.device, *, bf16: bool) -> Iterator[None]:
    """Matrix products in bfloat16 over float32 weights, or (bf16=False) nothing."""
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        yield


def fingerprint(model: torch.nn.Module, dtype: torch.dtype | None = None) -> str:
    """SHA-256 over names, types and bytes of all weights, and the configuration: equal exactly when the models are.

    With a `dtype`, that of the model with its numbers in this type, as if it had been loaded so.

    Adapters count with their settings; a model whose adapters are off has its base's fingerprint.
    """
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    if config is not None:
        settings = {key: value for key, value in config.to_dict().items() if key not in _NOT_THE_MODEL}
        digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    if in_use := adapters.settings_of(model):
        digest.update(json.dumps(in_use, sort_keys=True, default=str).encode())
    for name, tensor in sorted(adapters.weights_of(model).items()):
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def without_dropout(model: torch.nn.Module) -> int:
    """Switch every dropout off, so that policy and reference see the same network; returns how many there were.

    Dropout stands in modules (GPT-2) or as a number that a module hands to a function (`attention_dropout` in Llama,
    `layerdrop` in OPT). The configuration is left as it is: a model that reads it while it runs (Falcon) keeps its dropout.
    """
    count = 0
    for module in model.modules():
        names = [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float) and value]
        if isinstance(module, torch.nn.Dropout) and module.p > 0:
            names.append("p")
        for name in names:
            setattr(module, name, 0.0)
        count += len(names)
    return count


def quiet_libraries() -> None:
    """Keep the progress bars and notices of the libraries off the terminal: the command line shows its own."""
    from transformers.utils import logging as library

    library.disable_progress_bar()
    library.set_verbosity_error()
    logging.getLogger("torch").setLevel(logging.ERROR)


def identity(path: str, revision: str | None = None) -> dict[str, str]:
    """What a run remembers of a model: the checksums of a folder's files, or a hub id with its revision."""
    folder = Path(resolve(path))
    if not folder.is_dir():
        return {"hub": path, "revision": revision or "main"}
    kept = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")
    found = {file.name: checksum(file) for file in sorted(folder.iterdir()) if file.suffix in kept}
    if adapters.is_adapter_folder(folder):
        found |= {f"base {name}": value for name, value in identity(*adapters.base_of(folder)).items()}
    return found


def token_ids(value: Any) -> list[int]:
    """A token id or a list of them, as configurations hold it, as a list."""
    if value is None:
        return []
    return [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
