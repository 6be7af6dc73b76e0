"""`exoalign doctor`: what is wrong with a data set, before anything is trained on it."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from exoalign.cli_options import AsJson


def doctor(
    data: Annotated[str, typer.Argument(help="A file, a folder or a hub id.")],
    model: Annotated[
        str | None, typer.Option(help="Count in this model's tokens, and look for its special ones.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="The adapter that turns the rows into groups, e.g. hh.")] = None,
    split: Annotated[str | None, typer.Option(help="The split of a hub data set.")] = None,
    subset: Annotated[str | None, typer.Option(help="The subset (configuration) of a hub data set.")] = None,
    revision: Annotated[str | None, typer.Option(help="The branch, tag or commit of a hub data set.")] = None,
    test: Annotated[str | None, typer.Option(help="The test data: are its prompts in DATA too?")] = None,
    test_split: Annotated[
        str | None, typer.Option(help="The split of --test, which is read as DATA is: --adapter, --subset, --revision.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Look at the first so many groups.")] = None,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="What would this budget cut? With --model.")
    ] = None,
    max_completion_tokens: Annotated[
        int | None, typer.Option(min=1, help="What would this budget cut? With --model.")
    ] = None,
    beta_r: Annotated[float | None, typer.Option(help="Judge the target that this beta_r makes.")] = None,
    beta_pi: Annotated[float | None, typer.Option(help="The beta_pi to judge with --beta-r; 0.5 if not given.")] = None,
    as_json: AsJson = False,
    html: Annotated[str | None, typer.Option(help="Write a page with histograms to this file.")] = None,
) -> None:
    """Examine a data set: what is wrong with it, where, and what to do. Exit code 1 if a finding is an error."""
    budgets = {"--max-prompt-tokens": max_prompt_tokens, "--max-completion-tokens": max_completion_tokens}
    for name, budget in budgets.items():
        if budget is not None and model is None:
            raise typer.BadParameter("a budget counts tokens: give --model too", param_hint=name)
    for name, beta in {"--beta-r": beta_r, "--beta-pi": beta_pi}.items():
        if beta is not None and not 0 < beta < float("inf"):
            raise typer.BadParameter(f"it is {beta:g}; expected a finite number above 0", param_hint=name)
    if beta_pi is not None and beta_r is None:
        raise typer.BadParameter("it is judged together with --beta-r, which is missing", param_hint="--beta-pi")
    if test_split is not None and test is None:
        raise typer.BadParameter("it is the split of --test, which is missing", param_hint="--test-split")

    from pathlib import Path

    if html is not None and not Path(html).absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder of {html!r} does not exist; make it first", param_hint="--html")
    if html is not None and Path(html).is_dir():
        raise typer.BadParameter(f"{html!r} is a folder; expected the name of a file", param_hint="--html")

    from exoalign.data.doctor.examine import examine
    from exoalign.data.formats import open_records
    from exoalign.data.set_aside import SetAside
    from exoalign.data.sources import Source, beside

    tokenizer = context = None
    if model is not None:
        from exoalign.models import context_length, load_tokenizer, quiet_libraries

        quiet_libraries()
        tokenizer, context = load_tokenizer(model), context_length(model)
    aside = SetAside()
    read = Source(data, adapter, split, subset, revision)
    kind, records = open_records(read, aside, limit=limit)
    examination = examine(
        records,
        aside,
        source=data,
        kind=kind,
        tokenizer=tokenizer,
        test=None if test is None else open_records(beside(read, test, test_split), SetAside(), tolerate=False)[1],
        max_prompt_tokens=max_prompt_tokens,
        max_completion_tokens=max_completion_tokens,
        context=context,
        beta_pi=0.5 if beta_pi is None else beta_pi,
        beta_r=beta_r,
    )
    if html is not None:
        from exoalign.report.doctor_page import write_doctor_page

        write_doctor_page(Path(html), examination)
    if as_json:
        sys.stdout.write(json.dumps(examination.as_dict(), indent=1, allow_nan=False) + "\n")
    else:
        from exoalign.tables import examination_tables

        examination_tables(examination)
    raise typer.Exit(1 if examination.has_errors else 0)
