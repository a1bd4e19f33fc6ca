"""Commands about sets of problems: what is wrong with them, and which problems are in a benchmark."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_r1.commands import app, console, options

if TYPE_CHECKING:
    from parallel_r1.data import Record, Source

data = typer.Typer(no_args_is_help=True, help="Check, clean and decontaminate sets of problems.")
app.add_typer(data, name="data")

Name = Annotated[str, typer.Argument(help="gsm8k, math, dapo, .., or jsonl:PATH, parquet:PATH, hub:ID.")]
Against = Annotated[str, typer.Option(help="Benchmarks, by name, with commas between them.")]


def _use(folder: Path | None) -> None:
    """Every part of the program asks the environment where the data lie."""
    if folder is not None:
        from parallel_r1.data import FOLDER

        os.environ[FOLDER] = str(folder)


DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        callback=_use,
        help="A folder with files such as gsm8k_train.parquet, instead of the hub. Default: $PARALLEL_R1_DATA.",
    ),
]


@data.command()
def check(name: Name, data_dir: DataDir = None, as_json: options.AsJson = False) -> None:
    """Report every damaged problem of a set: what kind of damage, how many, which."""
    from parallel_r1.data.damage import MEANING, find

    records = _open(name)[1]
    _report(name, records, find(records), MEANING, as_json)


@data.command()
def clean(
    name: Name,
    out: Annotated[Path, typer.Option(help="A new parquet file; the data card goes beside it.")],
    against: Against = "",
    keep: Annotated[list[str] | None, typer.Option(help="Leave this kind of damage alone. Repeatable.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Write a set without its damaged problems, and without those of benchmarks, with a data card."""
    from parallel_r1.commands import one_of
    from parallel_r1.data import cleaning
    from parallel_r1.data.damage import Kind

    for kind in keep or []:
        one_of("--keep", kind, Kind)
    cleaning.check_vacant(out)
    source, records = _open(name)
    benchmarks = _names(against)
    cleaned = cleaning.clean(records, _benchmarks(benchmarks), keep or [])
    card = cleaning.write(cleaned, source, benchmarks, out)
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
    """Report every problem of a set that is in a benchmark: the same text, the same words, or a run of 13 words."""
    from parallel_r1.data.overlap import MEANING, overlaps

    records = _open(name)[1]
    found = overlaps(records, _benchmarks(_names(against)))
    _report(name, records, found, MEANING, as_json)
    if not as_json:
        hit = Counter(benchmark for benchmark, _ in {(each.benchmark, each.other) for each in found})
        for benchmark, count in hit.items():
            console.print(f"{count:6,}  problems of {benchmark} are among them", highlight=False)


def _open(name: str) -> tuple[Source, list[Record]]:
    from parallel_r1.data import open_source

    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # without a network every try would be a line
    source = open_source(name)
    return source, source.records(*source.first)


def _names(against: str) -> list[str]:
    return [name.strip() for name in against.split(",") if name.strip()]


def _benchmarks(names: Iterable[str]) -> list[Record]:
    from parallel_r1.data import open_source

    return [record for name in names for record in open_source(name).records("test")]


def _report(name: str, records: list[Record], found: list[Any], meaning: dict[str, str], as_json: bool) -> None:
    """What was found, by kind, and what every kind means."""
    named: dict[str, dict[str, None]] = defaultdict(dict)
    for each in found:
        named[each.kind][each.id] = None
    ids = {kind: list(those) for kind, those in named.items()}
    counts = {kind: len(those) for kind, those in ids.items()}
    if as_json:
        rows = [vars(each) for each in found]
        print(json.dumps({"set": name, "problems": len(records), "counts": counts, "ids": ids, "found": rows}))
        return
    for kind, count in sorted(counts.items(), key=lambda item: -item[1]):
        console.print(f"{count:6,}  {kind:18}{meaning[kind]}", highlight=False, soft_wrap=True)
    affected = len({each.id for each in found})
    console.print(f"{affected:,} of {len(records):,} problems of {name}; --json names them", highlight=False)
