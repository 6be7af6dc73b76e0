"""`exoalign reward`: reward models on the command line. Imports are late, so that `--help` comes at once."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

app = typer.Typer(help="Reward models.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Reward models."""


@app.command()
def train(
    model: Annotated[
        str, typer.Option(help="What to begin with: a causal model or a reward model; a folder, a hub id or `demo`.")
    ],
    data: Annotated[str, typer.Option(help="Pairs, K-way groups or rankings; for a classifier rows `text, label`.")],
    out: Annotated[str, typer.Option(help="The folder of the run; the model will be in OUT/reward_model/model.")],
    kind: Annotated[str, typer.Option(help="ranking or classifier.")] = "ranking",
    eval_data: Annotated[str | None, typer.Option(help="Held-out data to measure the model on.")] = None,
    holdout: Annotated[float | None, typer.Option(help="Hold this share of the data out instead, e.g. 0.1.")] = None,
    adapter: Annotated[str | None, typer.Option(help="The schema of the rows, e.g. hh or rt_polarity.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many groups of --data.")] = None,
    eval_limit: Annotated[int | None, typer.Option(help="Use the first so many groups of --eval-data.")] = None,
    seed: Annotated[int, typer.Option(help="The seed.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, e.g. centring=0.01 learning_rate=2e-5")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, results and errors only.")] = False,
) -> None:
    """Train a reward model on preferences, or a classifier on labelled texts, and measure it on held-out data."""

    def source(path: str) -> Any:
        return path if adapter is None else {"path": path, "adapter": adapter}

    files: dict[str, Any] = {
        "train": source(data),
        "limit": limit,
        "evaluation": None if eval_data is None else source(eval_data),
        "evaluation_limit": eval_limit,
        "holdout": holdout,
    }
    values = {"kind": kind, "data": {key: value for key, value in files.items() if value is not None}}
    section = _section(values, overrides or [])
    result = _train(section, model, out, seed=seed, quiet=quiet)
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
        return
    sys.stdout.write(f"{result['what']}\nmodel: {result['model']}\n")


def _section(values: dict[str, Any], overrides: list[str]) -> Any:
    """The section that the options and `key=value` settings make.

    Raises:
        ConfigError: naming the setting, what was found and what is expected.
    """
    from pydantic import ValidationError
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from exoalign.config_reward_model import RewardModelSection
    from exoalign.errors import ConfigError

    for override in overrides:
        key, equals, text = override.partition("=")
        *parents, last = key.split(".")
        if not equals or not all((*parents, last)):
            raise ConfigError(f"{override[:80]!r}: expected key=value, for example centring=0.01")
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{override[:80]!r}: {parent} is a value and has no settings of its own")
        try:
            inner[last] = YAML(typ="safe", pure=True).load(text)
        except YAMLError as error:
            raise ConfigError(f"{override[:80]!r}: not valid YAML: {str(error).splitlines()[0]}") from error
    try:
        return RewardModelSection.model_validate(values)
    except ValidationError as error:
        found = [(".".join(map(str, item["loc"])), item) for item in error.errors()]
        raise ConfigError(
            "\n".join(
                f"{key + ': ' if key else ''}{item['msg'].removeprefix('Value error, ')}"
                + ("" if item["type"] == "value_error" else f" (found {str(item['input'])[:60]!r})")
                for key, item in found
            )
        ) from None


def _train(section: Any, model: str, out: str, *, seed: int, quiet: bool) -> dict[str, Any]:
    from pathlib import Path

    from exoalign.models import native_bfloat16, quiet_libraries
    from exoalign.progress import plain
    from exoalign.stages_reward_model import (
        METRICS,
        MODEL,
        read_reward_data,
        reward_arguments,
        reward_model,
        reward_model_inputs,
    )
    from exoalign.store import RunFolder

    quiet_libraries()
    bf16 = native_bfloat16()
    reward_arguments(section, seed=seed, bf16=bf16, output_dir=out)  # refuses wrong settings before any work
    read = read_reward_data(section, seed=seed)
    for note in [] if quiet else read.notes:
        sys.stderr.write(f"note: {plain(note)}\n")
    made_from = reward_model_inputs(section, read, model=model, seed=seed, bf16=bf16)
    with RunFolder(out, Path(out).name) as folder:
        stage = folder.stage(
            "reward_model",
            made_from,
            lambda path: reward_model(section, read, path, model=model, seed=seed, bf16=bf16, show=not quiet),
        )
    metrics = json.loads((stage.folder / METRICS).read_text(encoding="utf-8"))
    return {"what": stage.what, "model": str(stage.folder / MODEL), "metrics": metrics}
