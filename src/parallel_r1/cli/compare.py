"""The command that compares saved answers."""

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
            help="Two or more files of eval --rollouts; the name is the file's stem.", metavar="[NAME=]FILE"
        ),
    ],
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this Markdown file.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare saved answers, paired by problem: a leaderboard, differences with intervals, corrected p-values, and how
    many problems a difference needs."""
    named = _named(files)
    if markdown is not None and markdown.exists():
        raise UserError("a new file for --markdown", f"{markdown} exists", "give another name")
    from parallel_r1.answers.rollout import read_jsonl
    from parallel_r1.evaluation import compare as evaluation
    from parallel_r1.evaluation import tables
    from parallel_r1.report.tables import print_table

    answers = {name: list(read_jsonl(file)) for name, file in named.items()}
    for name, rollouts in answers.items():
        if not rollouts:
            raise UserError("a file of judged answers", f"{named[name]}, which is empty", "draw some, or leave it out")
    comparisons = evaluation.compare(answers)
    if markdown is not None:
        write_text(markdown, tables.comparison_markdown(comparisons))
    for comparison in comparisons:
        if as_json:
            print_json(comparison.to_json())
            continue
        for table in tables.comparison_tables(comparison):
            print_table(console, table)
            console.print()
        for line in tables.remarks(comparison):
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def _named(words: list[str]) -> dict[str, Path]:
    """The files by name: `NAME=FILE`, or a file with its stem as its name. A file whose path holds a = may stand alone.

    Raises:
        UserError: one file only, no such file, no name, or the same name twice.
    """
    if len(words) < 2:
        raise UserError("two files or more", f"only {words[0]}", "add those to compare it with")
    files: dict[str, Path] = {}
    for word in words:
        name, equals, rest = word.partition("=")
        file = Path(rest if equals and not Path(word).is_file() else word)
        name = name if file != Path(word) else file.stem
        if not file.is_file():
            raise UserError("a file of judged answers", f"no file {file}", "check the path")
        if not name or name in files:
            found = f"{files[name]} and {file}, both {name}" if name else word
            raise UserError("a different name for every file", found, "write NAME=FILE")
        files[name] = file
    return files
