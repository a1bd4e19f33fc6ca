"""The command that writes the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, print_json, quiet


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder, finished or not.")],
    out: Annotated[Path | None, typer.Option(help="A new HTML file.", show_default="RUN/report.html")] = None,
    imports: options.Imports = None,
    as_json: options.AsJson = False,
) -> None:
    """Write the report of a run: one HTML file with its results, pictures and answers."""
    from parallel_r1.report.pages.page import check_new
    from parallel_r1.report.pages.report import write_report

    if out is not None:
        check_new(out, "--out")
    quiet()
    file = write_report(run, out)
    if as_json:
        print_json({"report": str(file)})
    else:
        console.print(f"the report is {file}", soft_wrap=True, highlight=False, markup=False)
