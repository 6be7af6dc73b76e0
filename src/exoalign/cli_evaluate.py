"""`exoalign evaluate`: two models' rewarded samples against each other, and ratings of many. Imports are late, as in `cli`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from exoalign.cli_options import AsJson

if TYPE_CHECKING:
    from exoalign.groups import Group

app = typer.Typer(
    help="Compare the rewarded samples of models on the same prompts.", no_args_is_help=True, rich_markup_mode=None
)

Column = Annotated[
    str | None, typer.Option(help="Decide by this column of the scores (as in `exoalign score`), not by the rewards.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the intervals.")]


@app.command()
def winrate(
    ours: Annotated[str, typer.Argument(help="Rewarded samples of a model, e.g. runs/a/score/groups.parquet")],
    theirs: Annotated[str, typer.Argument(help="Those of another one, for the same prompts in the same order.")],
    chosen: Annotated[
        bool, typer.Option("--chosen", help="Of THEIRS, which is preference data, only the preferred replies count.")
    ] = False,
    column: Column = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """How often OURS have more reward than THEIRS, also at equal length, and whether that may be chance."""
    from exoalign.evaluate.against import by_reward, preferred

    others = _groups(theirs)
    found = by_reward(_groups(ours), preferred(others) if chosen else others, column=column, seed=seed)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    from exoalign.tables import win_rate_table

    win_rate_table(found)


@app.command()
def ratings(
    files: Annotated[list[str], typer.Argument(help="Rewarded samples of a model each, for the same prompts.")],
    column: Column = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Bradley and Terry's ratings of many models on Elo's scale, out of all their replies against each other's."""
    from exoalign.evaluate.against import check_prompts, numbers
    from exoalign.evaluate.preferences import shares_between
    from exoalign.evaluate.ratings import ratings as ratings_of

    if len(files) < 2 or len(set(files)) < len(files):
        raise typer.BadParameter(f"found {len(files)} files, {len(set(files))} different; expected two or more")
    models = [_groups(file) for file in files]
    for other in models[1:]:
        check_prompts(models[0], other)
    won = shares_between([[numbers(group, column) for group in groups] for groups in models])
    found = ratings_of(files, won, seed=seed)
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return
    from exoalign.tables import ratings_table

    ratings_table(found)


def _groups(path: str) -> list[Group]:
    """The samples of a file; what is set aside would shift the prompts, and is told."""
    from exoalign.data.formats import read_groups
    from exoalign.data.sources import Source
    from exoalign.progress import plain

    groups, aside = read_groups(Source(path))
    for line in aside.lines():
        sys.stderr.write(f"note: {plain(line)}\n")
    return groups
