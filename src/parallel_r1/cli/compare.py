"""The command that compares evaluations and saved answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, print_json
from parallel_r1.errors import UserError
from parallel_r1.files import write_text


@app.command()
def compare(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Two or more folders of eval, or files of answers. The name is that of the folder or file.",
            metavar="[NAME=]PATH",
        ),
    ],
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this Markdown file.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw accuracy against cost into this .svg, .pdf or .png file.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with all of it to this HTML file.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare evaluations, paired by problem: a leaderboard, differences with intervals, corrected p-values, how many
    problems a difference needs; accuracy against cost, and speed at equal accuracy."""
    named = _named(files)
    for option, path in (("markdown", markdown), ("picture", picture), ("html", html)):
        if path is not None and path.exists():
            raise UserError(f"a new file for --{option}", f"{path} exists", "give another name")
    if picture is not None:
        from parallel_r1.report.frontiers import check_picture

        check_picture(picture)
    from parallel_r1.evaluation import tables
    from parallel_r1.evaluation.compare import compare as paired
    from parallel_r1.evaluation.entrants import differing_settings, frontiers, read_entrant, speeds
    from parallel_r1.report.tables import print_table

    entrants = [read_entrant(name, path) for name, path in named.items()]
    comparisons = paired({one.name: one.rollouts for one in entrants})
    curves = frontiers(entrants)
    fast = speeds(entrants, curves)
    settings = differing_settings(entrants)
    shown, lines = tables.comparison_report(comparisons, curves, fast, settings)
    if markdown is not None:
        write_text(markdown, tables.comparison_markdown(shown, lines))
    if picture is not None:
        from parallel_r1.report.frontiers import draw

        draw(curves, picture)
    if html is not None:
        from parallel_r1.report.pages.leaderboard import leaderboard

        write_text(html, leaderboard(shown, lines, curves))
    if as_json:
        for comparison in comparisons:
            print_json({**comparison.to_json(), "speed": [one.to_json() for one in fast.get(comparison.task, ())]})
        return
    for table in shown:
        print_table(console, table)
        console.print()
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _named(words: list[str]) -> dict[str, Path]:
    """The paths by name: `NAME=PATH`, or a path with its stem as its name. A path that holds a = may stand alone.

    Raises:
        UserError: one path only, nothing there, no name, or the same name twice.
    """
    if len(words) < 2:
        raise UserError("two files or folders, or more", f"only {words[0]}", "add those to compare it with")
    paths: dict[str, Path] = {}
    for word in words:
        name, equals, rest = word.partition("=")
        path = Path(rest if equals and not Path(word).exists() else word)
        name = name if path != Path(word) else (path.stem if path.is_file() else path.resolve().name)
        if not path.exists():
            raise UserError("a file of judged answers, or a folder that eval wrote", f"no {path}", "check the path")
        if not name or name in paths:
            found = f"{paths[name]} and {path}, both {name}" if name else word
            raise UserError("a different name for every file", found, "write NAME=PATH")
        paths[name] = path
    return paths
