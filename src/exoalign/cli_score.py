"""`exoalign score`: scores and rewards for completions, as a run of one stage. Imports are late, as in `cli`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exoalign.cli_options import AsJson, Quiet, Redo

if TYPE_CHECKING:
    from exoalign.config_reward import RewardSection
    from exoalign.groups import Group
    from exoalign.store import StageResult

MOST_CHARACTERS = 600
"""Of a text that --explain shows."""


def score(
    data: Annotated[str, typer.Option(help="Groups: a run's Parquet, or any file, folder or hub id with completions.")],
    out: Annotated[str, typer.Option(help="The folder of the run; run again, it goes on where it was interrupted.")],
    function: Annotated[
        list[str] | None, typer.Option(help="A reward function: sentiment, length, regex, ... or module:function.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="A reward model: a folder or a hub id.")] = None,
    server: Annotated[list[str] | None, typer.Option(help="The URL of a reward server.")] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="The weight of a column, e.g. length=-0.1; 1 where none is given.")
    ] = None,
    clip: Annotated[list[str] | None, typer.Option(help="Bounds of a column, e.g. length=0,100.")] = None,
    argument: Annotated[
        list[str] | None, typer.Option(help="An argument of a function, e.g. regex.pattern='^[A-Z]'.")
    ] = None,
    normalise: Annotated[str, typer.Option(help="Scale the columns first: none, group or global.")] = "none",
    adapter: Annotated[str | None, typer.Option(help="The schema of the rows of --data, e.g. alpaca_eval.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score the first so many groups.")] = None,
    explain: Annotated[int, typer.Option(min=0, help="Show the best and the worst completion of so many groups.")] = 0,
    redo: Redo = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score completions by functions, reward models and servers; each has its column, and rewards are their weighted sum."""
    section = _section(
        {"function": function or [], "model": model or [], "server": server or []},
        {"weight": weight or [], "clip": clip or [], "argument": argument or []},
        normalise,
    )
    try:
        stage = _run(section, data, out, adapter=adapter, limit=limit, redo=redo, show=not quiet)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: what is scored is kept; run the same command again to go on\n")
        raise typer.Exit(130) from None

    from exoalign.data.table import read_table
    from exoalign.stages_score import GROUPS, SUMMARY

    file = stage.folder / GROUPS
    shown = explained(read_table(file), explain) if explain else []
    if as_json:
        numbers = json.loads((stage.folder / SUMMARY).read_text(encoding="utf-8"))["numbers"]
        result = {"groups": str(file), "what": stage.what, "numbers": numbers, **({"explain": shown} if shown else {})}
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
        return
    for group in shown:
        sys.stdout.write("\n".join(_lines(group)) + "\n\n")
    sys.stdout.write(f"{stage.what}\ngroups: {file}\n")


def explained(groups: Sequence[Group], count: int) -> list[dict[str, Any]]:
    """The best and the worst completion of some groups, evenly from all whose rewards differ (of all, where none do)."""
    differing = [group for group in groups if len(set(group.rewards or ())) > 1] or list(groups)
    step = max(1, len(differing) // count)
    return [_ends(group) for group in differing[::step][:count]]


def _ends(group: Group) -> dict[str, Any]:
    from exoalign.groups import completion_text, prompt_text

    rewards = group.rewards or ()

    def of(k: int) -> dict[str, Any]:
        scores = {name: values[k] for name, values in (group.scores or {}).items()}
        return {"completion": completion_text(group.completions[k]), "reward": rewards[k], "scores": scores}

    best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
    return {"source": group.where, "prompt": prompt_text(group.prompt), "best": of(best), "worst": of(worst)}


def _lines(group: dict[str, Any]) -> list[str]:
    """A group for the terminal: texts are data, so control characters are made visible and nothing is markup."""
    lines = [group["source"], *_indented(group["prompt"])]
    for end in ("best", "worst"):
        one = group[end]
        columns = ", ".join(f"{name} {value:.4g}" for name, value in one["scores"].items())
        lines += [f"  {end}: reward {one['reward']:.4g} ({columns})", *_indented(one["completion"])]
    from exoalign.progress import plain

    return [plain(line) for line in lines]


def _indented(text: str) -> list[str]:
    cut = len(text) - MOST_CHARACTERS
    shown = text if cut <= 0 else f"{text[:MOST_CHARACTERS]} ... ({cut} more characters)"
    return [f"    {line}" for line in shown.split("\n")]


def _section(scorers: dict[str, list[str]], settings: dict[str, list[str]], normalise: str) -> RewardSection:
    """The options as a recipe's section.

    Raises:
        ConfigError: naming the setting that is wrong.
    """
    from exoalign.config_reward import RewardSection, ScorerSection
    from exoalign.recipe import build_section

    chosen = [{kind: value} for kind, values in scorers.items() for value in values]
    if not chosen:
        raise typer.BadParameter("nothing to score with; give --function, --model or --server")
    seen: Counter[str] = Counter()
    named: dict[str, dict[str, Any]] = {}
    for one in chosen:
        column = build_section(ScorerSection, one, lines={kind: f"--{kind}" for kind in one}).column
        seen[column] += 1
        name = column if seen[column] == 1 else f"{column}_{seen[column]}"
        named[name] = {**one, "name": name}
    for option, values in settings.items():
        for text in values:
            _set(named, option, text)
    whole: dict[str, Any] = {"scorers": list(named.values()), "normalise": normalise}
    return build_section(RewardSection, whole, lines={"normalise": "--normalise"})


def _set(named: dict[str, dict[str, Any]], option: str, text: str) -> None:
    """Put a setting `COLUMN=value` or `COLUMN.argument=value` where it belongs."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    key, equals, value = text.partition("=")
    column, dot, name = key.partition(".")
    example = {"weight": "length=-0.1", "clip": "length=0,100", "argument": "regex.pattern='^[A-Z]'"}[option]
    if not equals or (option == "argument") != bool(dot and name):
        raise typer.BadParameter(f"{text!r}: expected for example {example}", param_hint=f"--{option}")
    if column not in named:
        raise typer.BadParameter(
            f"{text!r}: no column {column!r}; there are {', '.join(named)}", param_hint=f"--{option}"
        )
    try:
        if option == "argument":
            named[column].setdefault("arguments", {})[name] = YAML(typ="safe", pure=True).load(value)
        elif option == "clip":
            named[column]["clip"] = [float(bound) for bound in value.split(",")]
        else:
            named[column]["weight"] = float(value)
    except (ValueError, YAMLError) as error:
        raise typer.BadParameter(
            f"{text!r}: {str(error).splitlines()[0]}; expected for example {example}", param_hint=f"--{option}"
        ) from None


def _run(
    section: RewardSection, data: str, out: str, *, adapter: str | None, limit: int | None, redo: bool, show: bool
) -> StageResult:
    """The run's only stage."""
    from pathlib import Path

    from exoalign.data.formats import read_groups
    from exoalign.data.sources import Source
    from exoalign.progress import plain
    from exoalign.rewards.scorers import build_scorers, record_of
    from exoalign.stages_score import content, score
    from exoalign.store import RunFolder

    if any(scorer.model for scorer in section.all):
        from exoalign.models import quiet_libraries

        quiet_libraries()
    groups, aside = read_groups(Source(data, adapter), limit=limit)
    for line in aside.lines() if show else ():
        sys.stderr.write(f"note: {plain(line)}\n")
    made_from = {"groups": content(groups), "reward": record_of(section)}

    def work(path: Path) -> str:
        return score(groups, section, build_scorers(section), path, show=show)

    with RunFolder(out, Path(out).name, redo=redo) as folder:
        return folder.stage("score", made_from, work)
