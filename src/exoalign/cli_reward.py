"""`exoalign reward`: reward models on the command line. Imports are late, so that `--help` comes at once."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exoalign.cli_options import AsJson, Inexact, Quiet, Redo

if TYPE_CHECKING:
    from exoalign.config_runs import RewardModelRun

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
        list[str] | None, typer.Argument(help="Settings as section.key=value, e.g. reward_model.centring=0.01")
    ] = None,
    redo: Redo = False,
    allow_inexact: Inexact = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a reward model on preferences, or a classifier on labelled texts, and measure it on held-out data."""

    from exoalign.config_runs import RewardModelRun
    from exoalign.recipe import build_section

    def source(path: str) -> Any:
        return path if adapter is None else {"path": path, "adapter": adapter}

    files: dict[str, Any] = {
        "train": source(data),
        "limit": limit,
        "evaluation": None if eval_data is None else source(eval_data),
        "evaluation_limit": eval_limit,
        "holdout": holdout,
    }
    values = {
        "seed": seed,
        "model": {"path": model},
        "reward_model": {"kind": kind, "data": {key: value for key, value in files.items() if value is not None}},
    }
    options = {
        "model.path": "--model",
        "reward_model.kind": "--kind",
        "reward_model.data.train": "--data",
        "reward_model.data.evaluation": "--eval-data",
        "reward_model.data.limit": "--limit",
        "reward_model.data.evaluation_limit": "--eval-limit",
        "reward_model.data.holdout": "--holdout",
        "seed": "--seed",
    }
    run = build_section(RewardModelRun, values, overrides or [], lines=options)
    result = _run(run, out, redo=redo, allow_inexact=allow_inexact, quiet=quiet)
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
        return
    sys.stdout.write(f"{result['what']}\nmodel: {result['model']}\n")


def _run(run: RewardModelRun, out: str, *, redo: bool, allow_inexact: bool, quiet: bool) -> dict[str, Any]:
    """The stage in a run's folder; it is done once, as in a whole run."""
    from pathlib import Path

    from exoalign.models import computes_in_bfloat16, quiet_libraries
    from exoalign.progress import plain, show_warnings
    from exoalign.stages_reward_model import (
        METRICS,
        MODEL,
        made_from,
        read_reward_data,
        reward_arguments,
        reward_model,
    )
    from exoalign.store import RunFolder

    quiet_libraries()
    show_warnings(enabled=not quiet)
    model, section, seed = run.model, run.reward_model, run.seed
    bf16 = computes_in_bfloat16(model.precision)
    reward_arguments(section, seed=seed, bf16=bf16, output_dir=out)  # refuses wrong settings before any work
    data = read_reward_data(section, seed=seed)
    for note in [] if quiet else data.notes:
        sys.stderr.write(f"note: {plain(note)}\n")
    with RunFolder(out, Path(out).name, redo=redo) as folder:
        stage = folder.stage(
            "reward_model",
            made_from(section, data, model, seed=seed, bf16=bf16),
            lambda path: reward_model(
                section,
                data,
                path,
                model=model,
                seed=seed,
                bf16=bf16,
                show=not quiet,
                allow_inexact=allow_inexact,
            ),
        )
    metrics = json.loads((stage.folder / METRICS).read_text(encoding="utf-8"))
    return {"what": stage.what, "model": str(stage.folder / MODEL), "metrics": metrics}
