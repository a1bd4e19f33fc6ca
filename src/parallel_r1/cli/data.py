"""Commands for data: damaged problems, overlap with benchmarks, and the format of answers."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, print_json
from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from parallel_r1.tasks.datasets.rows import Rows
    from parallel_r1.tasks.datasets.sources import Record, Source

data = typer.Typer(
    no_args_is_help=True, help="Check, clean and decontaminate sets of problems; repair and convert files of answers."
)
app.add_typer(data, name="data")

Name = Annotated[str, typer.Argument(help="gsm8k, math, dapo, .., or jsonl:PATH, parquet:PATH, hub:ID.")]
Against = Annotated[str, typer.Option(help="Names of benchmarks, with commas between them.")]
Answers = Annotated[Path, typer.Argument(help="A .jsonl or .parquet file with an answer in every row.")]
NewFile = Annotated[Path, typer.Option("--out", help="A new .jsonl or .parquet file, with all columns of the old one.")]
Column = Annotated[str, typer.Option(help="The column with the answers.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="A folder with files such as gsm8k_train.parquet, instead of the hub. Default: $PARALLEL_R1_DATA.",
    ),
]


@data.command()
def check(name: Name, data_dir: DataDir = None, as_json: options.AsJson = False) -> None:
    """Report the damaged problems of a set: how many there are of every kind of damage; --json lists them."""
    from parallel_r1.tasks.datasets.damage import MEANING, find
    from parallel_r1.tasks.datasets.splits import words

    records = _open(name, data_dir)[1]
    different = len({tuple(words(record.problem)) for record in records})
    _report(name, records, find(records), MEANING, as_json, {"different": different})
    if not as_json and different < len(records):
        console.print(
            f"{different:,} different statements: {len(records) - different:,} problems repeat another", highlight=False
        )


@data.command()
def clean(
    name: Name,
    out: Annotated[Path, typer.Option(help="A new .parquet or .jsonl file; the data card goes beside it.")],
    against: Against = "",
    keep: Annotated[list[str] | None, typer.Option(help="Keep problems with this kind of damage. Repeatable.")] = None,
    data_dir: DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Write a set without its damaged problems and without problems of benchmarks, and a data card beside it."""
    from parallel_r1.cli.app import one_of
    from parallel_r1.tasks.datasets import cleaning
    from parallel_r1.tasks.datasets.damage import Kind

    for kind in keep or []:
        one_of("--keep", kind, Kind)
    cleaning.check_vacant(out)
    source, records = _open(name, data_dir)
    benchmarks = _names(against)
    cleaned = cleaning.clean(records, _benchmarks(benchmarks, data_dir), keep or [])
    card = cleaning.write(cleaned, source, benchmarks, out)
    if as_json:
        kept = len(cleaned.records)
        print_json({"out": str(out), "card": str(card), "read": cleaned.read, "kept": kept, "dropped": cleaned.dropped})
        return
    for kind, count in sorted(cleaned.dropped.items(), key=lambda item: -item[1]):
        console.print(f"{count:6,}  {kind}", highlight=False)
    console.print(
        f"{len(cleaned.records):,} of {cleaned.read:,} problems are in {out}, what became of the rest in {card}",
        highlight=False,
        soft_wrap=True,
    )


@data.command()
def decontaminate(
    name: Name,
    against: Against = "aime24,aime25,amc23,math300",
    data_dir: DataDir = None,
    as_json: options.AsJson = False,
) -> None:
    """Report the problems of a set that are in a benchmark: the same text, the same words, or 13 words in a row."""
    from parallel_r1.tasks.datasets.overlap import MEANING, overlaps

    records = _open(name, data_dir)[1]
    matches = overlaps(records, _benchmarks(_names(against), data_dir))
    _report(name, records, matches, MEANING, as_json)
    if not as_json:
        hit = Counter(benchmark for benchmark, _ in {(match.benchmark, match.other) for match in matches})
        for benchmark, count in hit.items():
            console.print(f"{count:6,}  problems of {benchmark} are among them", highlight=False)


@data.command()
def repair(
    file: Answers,
    out: NewFile,
    column: Column = "text",
    schema: options.SchemaName = "parallel-r1",
    as_json: options.AsJson = False,
) -> None:
    """Correct the layout of answers, without changing their words, and list the changes."""
    from parallel_r1.answers import convert as formats
    from parallel_r1.answers.parser import defects_of
    from parallel_r1.answers.schemas import load_schema

    form = load_schema(schema)
    rows, changes, before, after = _read(file, out, column), Counter[str](), 0, 0
    for _, row in rows:
        before += not defects_of(row[column], form)
        row[column], changed = formats.repair(row[column], form)
        after += not defects_of(row[column], form)
        changes.update(changed)
    _write(out, [row for _, row in rows])
    if as_json:
        print_json({"answers": len(rows), "changed": changes, "valid_before": before, "valid_after": after})
        return
    for kind, count in changes.most_common():
        console.print(f"{count:6,}  {kind}", highlight=False)
    console.print(
        f"{after:,} of {len(rows):,} answers are valid, {before:,} were before; wrote {out}",
        highlight=False,
        soft_wrap=True,
    )


@data.command()
def convert(
    file: Answers,
    out: NewFile,
    source: Annotated[str, typer.Option("--from", help="The schema of the answers, or a TOML file.")],
    target: Annotated[str, typer.Option("--to", help="The schema to write.")] = "parallel-r1",
    column: Column = "text",
    as_json: options.AsJson = False,
) -> None:
    """Convert answers from one schema to another. Those that cannot be converted are left out and listed; the exit code
    is then 1."""
    from parallel_r1.answers import convert as formats
    from parallel_r1.answers.schemas import load_schema

    schemas = load_schema(source), load_schema(target)
    rows, refused = _read(file, out, column), {}
    for number, row in rows:
        try:
            row[column] = formats.convert(row[column], *schemas)
        except ValueError as error:
            refused[number] = str(error)
    _write(out, [row for number, row in rows if number not in refused])
    if as_json:
        print_json({"answers": len(rows), "written": len(rows) - len(refused), "refused": refused})
    else:
        for number, why in refused.items():
            console.print(f"row {number}: {why}", style="red", markup=False, highlight=False, soft_wrap=True)
        console.print(
            f"wrote {len(rows) - len(refused):,} of {len(rows):,} answers to {out}", highlight=False, soft_wrap=True
        )
    raise typer.Exit(1 if refused else 0)


def _read(file: Path, out: Path, column: str) -> Rows:
    """Check that the new file can be written, then read the rows of a file of answers with their numbers."""
    from parallel_r1.tasks.datasets.rows import check_new, numbered_rows

    check_new(out)
    if not file.is_file():
        raise UserError("a JSONL or parquet file of answers", f"no file {file}", "check the path")
    rows = numbered_rows(file)
    for number, row in rows:
        if not isinstance(row.get(column), str):
            raise UserError(
                f"a text in the column {column}",
                f"columns {', '.join(row)} in row {number} of {file}",
                "name another --column, or correct that row",
            )
    return rows


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    from parallel_r1.tasks.datasets.rows import write_file

    write_file(out, rows)


def _open(name: str, data_dir: Path | None) -> tuple[Source, list[Record]]:
    from parallel_r1.tasks.public_sets import open_source

    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # without a network every retry would print a line
    source = open_source(name, data_dir)
    return source, source.records(*source.main_splits)


def _names(against: str) -> list[str]:
    return [name.strip() for name in against.split(",") if name.strip()]


def _benchmarks(names: Iterable[str], data_dir: Path | None) -> list[Record]:
    from parallel_r1.tasks.public_sets import open_source

    return [record for name in names for record in open_source(name, data_dir).records("test")]


def _report(
    name: str,
    records: list[Record],
    findings: list[Any],
    meaning: dict[str, str],
    as_json: bool,
    more: dict[str, int] | None = None,
) -> None:
    """Print the number of findings of every kind, with its meaning. `more` are further counts for the JSON."""
    by_kind: dict[str, dict[str, None]] = defaultdict(dict)
    for finding in findings:
        by_kind[finding.kind][finding.id] = None
    ids = {kind: list(names) for kind, names in by_kind.items()}
    counts = {kind: len(names) for kind, names in ids.items()}
    if as_json:
        rows = [vars(finding) for finding in findings]
        print_json({"set": name, "problems": len(records), **(more or {}), "counts": counts, "ids": ids, "found": rows})
        return
    for kind, count in sorted(counts.items(), key=lambda item: -item[1]):
        console.print(f"{count:6,}  {kind:18}{meaning[kind]}", highlight=False, soft_wrap=True)
    affected = len({finding.id for finding in findings})
    console.print(f"{affected:,} of {len(records):,} problems of {name}; --json names them", highlight=False)
