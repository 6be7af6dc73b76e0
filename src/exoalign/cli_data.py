"""`exoalign data`: conversion between formats, and the list of known data sets. Imports are late, as in `cli`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from exoalign.cli_options import AsJson

app = typer.Typer(help="Convert data sets between formats.", no_args_is_help=True, rich_markup_mode=None)

KINDS = (
    "pairs, kway, ratings, rankings, prompts, text, trl-preference, trl-preference-implicit, trl-unpaired,"
    " trl-prompt-only or trl-language-modeling"
)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file, a folder of `datasets` or a hub id.")],
    out: Annotated[str, typer.Argument(help="The file to write: .jsonl, .jsonl.gz, .parquet or .csv.")],
    to: Annotated[str, typer.Option(help=f"What the rows become: {KINDS}.")],
    adapter: Annotated[str | None, typer.Option(help="The known data set that IN is, e.g. hh.")] = None,
    split: Annotated[str | None, typer.Option(help="The split of a data set, e.g. train.")] = None,
    subset: Annotated[str | None, typer.Option(help="The subset of a data set, e.g. harmless-base.")] = None,
    revision: Annotated[str | None, typer.Option(help="The revision of a data set on the hub.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read the first so many groups.")] = None,
    pairs: Annotated[str, typer.Option(help="Pairs out of K completions: best_worst or all.")] = "best_worst",
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
    as_json: AsJson = False,
) -> None:
    """Convert a data set between the common formats, and to those of TRL. What has no place there is told."""
    from exoalign.data.convert import PAIRS
    from exoalign.data.convert_file import convert_file
    from exoalign.data.sources import Source
    from exoalign.progress import plain

    if pairs not in PAIRS:
        raise typer.BadParameter(f"`{pairs}` is neither {' nor '.join(PAIRS)}", param_hint="--pairs")
    found = convert_file(
        Source(source, adapter, split, subset, revision), Path(out), to, pairs=pairs, limit=limit, force=force
    )
    if as_json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=1) + "\n")
        return
    for line in found.lines():
        sys.stdout.write(f"{plain(line)}\n")


@app.command()
def adapters(as_json: AsJson = False) -> None:
    """List the known data sets: name, hub id, what their rows become, and the columns that are read."""
    from exoalign.data.adapters import ADAPTERS
    from exoalign.data.adapters.schema import describe

    rows: list[dict[str, Any]] = [
        {
            "name": adapter.name,
            "hub_id": adapter.hub_id,
            "what": adapter.what,
            "columns": {name: describe(inner) for name, inner in adapter.schema.items()},
        }
        for adapter in ADAPTERS.values()
    ]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return
    for row in rows:
        columns = ", ".join(f"{name}: {inner}" for name, inner in row["columns"].items())
        sys.stdout.write(f"{row['name']}  {row['hub_id']}\n  {row['what']}\n  {columns}\n")
