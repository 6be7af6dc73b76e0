"""`exoalign align`: on completions that are there, or on the model's own. Imports are late, so that `--help` comes at once."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exoalign.cli_options import AsJson, Inexact, Overrides, Quiet, Redo
from exoalign.cli_run import run_recipe, say

if TYPE_CHECKING:
    from exoalign.config import Recipe
    from exoalign.data.sources import Source


def align(
    model: Annotated[str, typer.Option(help="The policy to align: a folder, a hub id or `demo`.")],
    data: Annotated[
        str | None, typer.Option(help="Pairs or K-way groups: a file, a folder, a hub id or a run's Parquet.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="The folder of the run.")] = None,
    objective: Annotated[
        str | None, typer.Option(help="exo_rw, exo_pref, dpo_rw or dpo_pref; exo_pref, online exo_rw.")
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Sample the policy as it trains: --data and --eval-data hold prompts.")
    ] = False,
    reward: Annotated[
        str | None, typer.Option(help="The reward function of --online, e.g. sentiment or module:function.")
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option(help="Held-out groups to report accuracy and loss on; online prompts to sample after.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="The schema of the rows of --data and --eval-data, e.g. hh or ultrafeedback.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="The split of --data, of a hub id or a folder.")] = None,
    eval_split: Annotated[str | None, typer.Option(help="The split of --eval-data.")] = None,
    subset: Annotated[
        str | None, typer.Option(help="The subset (configuration) of --data, and of --eval-data from the hub too.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="The branch, tag or commit of --data, and of --eval-data from the hub too.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use the first so many groups of --data.")] = None,
    eval_limit: Annotated[int | None, typer.Option(help="Use the first so many groups of --eval-data.")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Only tell what memory and time it will take.")] = False,
    shape: Annotated[
        str | None, typer.Option(help="For --estimate without --data: groups=1000,prompt=512,k=8,completion=256")
    ] = None,
    overrides: Overrides = None,
    redo: Redo = False,
    allow_inexact: Inexact = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Align a model on completions that exist already, pairs or K with rewards; or, with --online, on those it draws."""
    from pathlib import Path

    from exoalign.data import sources
    from exoalign.recipe import build_recipe

    needed = {} if estimate else {"--data": data, "--out": out}
    for name, value in needed.items():
        if value is None:
            raise typer.BadParameter("it is missing; only --estimate does without it", param_hint=name)
    if online and estimate:
        raise typer.BadParameter(
            "it counts completions that are there, and --online draws them", param_hint="--estimate"
        )
    if online and eval_data is None:
        raise typer.BadParameter(
            "--online compares both models on these prompts; it is missing", param_hint="--eval-data"
        )
    if online and reward is None and not any(setting.startswith("reward.") for setting in overrides or ()):
        raise typer.BadParameter("--online needs it, or settings reward.…=…", param_hint="--reward")
    if reward is not None and not online:
        raise typer.BadParameter("it is read with --online: --data carries its rewards itself", param_hint="--reward")
    if shape is not None and (data is not None or not estimate):
        raise typer.BadParameter("it is read with --estimate, in place of --data", param_hint="--shape")
    for name, value in {"--split": split, "--subset": subset, "--revision": revision}.items():
        if value is not None and data is None:
            raise typer.BadParameter("it says which part of --data is read, which is missing", param_hint=name)
    if eval_split is not None and eval_data is None:
        raise typer.BadParameter("it is the split of --eval-data, which is missing", param_hint="--eval-split")

    train = sources.Source(data or "none", adapter, split, subset, revision)
    heldout = None if eval_data is None else sources.beside(train, eval_data, eval_split)
    files: dict[str, Any] = {
        "train": _section(train),
        "limit": limit,
        "evaluation": None if heldout is None else _section(heldout),
        "evaluation_limit": eval_limit,
    }
    values: dict[str, Any] = {
        "name": Path(out or "").name or "align",
        "out": out or "runs/align",
        "model": {"path": model},
        "prompts" if online else "data": {key: value for key, value in files.items() if value is not None},
        "align": {"objective": objective or ("exo_rw" if online else "exo_pref")},
    }
    if online:
        values["align"]["online"] = {}
        values["reward"] = {} if reward is None else {"function": reward}
    place = "prompts" if online else "data"
    options = {
        "model.path": "--model",
        f"{place}.train": "--data",
        f"{place}.evaluation": "--eval-data",
        f"{place}.train.adapter": "--adapter",
        f"{place}.evaluation.adapter": "--adapter",
        f"{place}.train.split": "--split",
        f"{place}.evaluation.split": "--eval-split",
        f"{place}.train.subset": "--subset",
        f"{place}.evaluation.subset": "--subset",
        f"{place}.train.revision": "--revision",
        f"{place}.evaluation.revision": "--revision",
        f"{place}.limit": "--limit",
        f"{place}.evaluation_limit": "--eval-limit",
        "align.objective": "--objective",
        "reward.function": "--reward",
    }
    recipe = build_recipe(values, overrides or [], lines=options, files=data is not None)
    if estimate:
        _estimate(recipe, None if data else shape or "", as_json=as_json)
    else:
        run_recipe(recipe, as_json=as_json, quiet=quiet, redo=redo, allow_inexact=allow_inexact)


def _section(source: Source) -> str | dict[str, Any]:
    """A data set as a recipe names it: its path, or a section where there is more to say."""
    values = {name: value for name, value in vars(source).items() if value is not None}
    return source.path if len(values) == 1 else values


def _estimate(recipe: Recipe, shape: str | None, *, as_json: bool) -> None:
    from exoalign.estimate.lines import lines, warning
    from exoalign.estimate.shapes import parse_shape
    from exoalign.models import quiet_libraries
    from exoalign.pipeline import estimate

    quiet_libraries()
    if shape == "":
        say("note: these lengths are assumed; give --data, or --shape with your own")
    found = estimate(recipe, None if shape is None else parse_shape(shape))
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=1) + "\n")
        return
    over = warning(found)
    for line in [*lines(found), *([f"warning: {over}"] if over else [])]:
        sys.stdout.write(f"{line}\n")
