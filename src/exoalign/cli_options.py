"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, results and errors only.")]
Redo = Annotated[bool, typer.Option("--redo", help="Do anew what stands there made from something else.")]
Inexact = Annotated[
    bool, typer.Option("--allow-inexact", help="Go on with training although a file of its checkpoint is gone.")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings as section.key=value, e.g. align.beta_r=0.5")]
