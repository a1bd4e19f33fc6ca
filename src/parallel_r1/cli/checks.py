"""Commands that check answers and models: parity, format, visibility."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, load_policy, print_json, quiet
from parallel_r1.errors import UserError
from parallel_r1.files import numbered_lines, parse_object

if TYPE_CHECKING:
    from parallel_r1.answers.schemas import Schema
    from parallel_r1.answers.trace import Address
    from parallel_r1.answers.visibility import Layout
    from parallel_r1.generation.settings import Engine, Sampling


@app.command()
@options.shared(only=("sampler", "paths"))
def parity(
    model: options.ModelPath,
    sampling: Sampling,
    engine: Engine,
    scorer: options.Scoring = None,
    every: Annotated[bool, typer.Option("--all", help="Compare every sampler with every scorer.")] = False,
    answers: Annotated[int, typer.Option(min=1, help="Number of answers to compare on.")] = 8,
    forks: Annotated[int, typer.Option(min=1, help="Forks of every answer.")] = 3,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Compare the log-probabilities of sampling and of scoring on answers with forks."""
    from parallel_r1.answers.trace import Sampler, Scorer
    from parallel_r1.evaluation.parity import measure
    from parallel_r1.report.tables import print_parity

    one = options.scorer_of(model, scorer, sampling.sampler)
    quiet()
    policy = load_policy(model, engine, scores=True)
    samplers, scorers = (get_args(Sampler), get_args(Scorer)) if every else ((sampling.sampler,), (one,))
    pairs = [
        pair
        for name in samplers
        for pair in measure(
            policy, name, scorers, sampling.most, answers=answers, forks=forks, seed=seed, engine=engine
        )
    ]
    if as_json:
        rows = [vars(pair) for pair in pairs]
        figures = {key: value for key, value in rows[0].items() if key not in ("sampler", "scorer", "exact")}
        print_json(rows if every else figures)
    else:
        print_parity(console, pairs)


@app.command()
def check(
    file: Annotated[str, typer.Argument(help='JSONL with {"text": ..} on every line; - reads standard input.')],
    schema: options.SchemaName = "parallel-r1",
    as_json: options.AsJson = False,
) -> None:
    """Check the format of answers and show every defect with its place. Exit code 1 if any answer is invalid."""
    from parallel_r1.answers.schemas import load_schema

    form = load_schema(schema)
    answers = invalid = 0
    for _, line in lines(file):
        report = _check_line(line, form)
        answers, invalid = answers + 1, invalid + (not report["valid"])
        if as_json:
            print_json(report)
            continue
        for defect in report["defects"]:
            console.print(
                f"answer {answers}, character {defect['at']}: {defect['kind']}: {defect['message']}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    if not as_json:
        console.print(f"{answers - invalid:,} of {answers:,} answers are valid", highlight=False)
    raise typer.Exit(1 if invalid else 0)


def lines(file: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, or of standard input if `file` is "-", with their numbers from 1 and without blank ones."""
    if file != "-" and not Path(file).is_file():
        raise UserError("a JSONL file, or - for standard input", f"no file {file}", "check the path")
    with sys.stdin.buffer if file == "-" else Path(file).open("rb") as stream:
        yield from numbered_lines(stream)


def _check_line(line: bytes, schema: Schema) -> dict[str, Any]:
    """What `check --json` prints about a line; a line that is not such an object has the defect "broken-line"."""
    from parallel_r1.answers.parser import defects_of, parse_text

    try:
        text = parse_object(line)["text"]
        if not isinstance(text, str):
            raise TypeError(f"text is {type(text).__name__}, not a string")
    except (ValueError, KeyError, TypeError) as error:
        at = error.pos if isinstance(error, json.JSONDecodeError) else 0
        message = 'expected {"text": ..}, found ' + f"{type(error).__name__}: {error}"
        defect = {"kind": "broken-line", "at": at, "message": message}
        return {"valid": False, "defects": [defect], "forks": 0, "paths": [], "relative_positions": []}
    form, defects = parse_text(text, schema), defects_of(text, schema)
    return {
        "valid": not defects,
        "defects": [vars(defect) for defect in defects],
        "forks": len(form.fork_at),
        "paths": form.paths,
        "relative_positions": [round(at / len(text), 4) for at in form.fork_at],
    }


@app.command()
def inspect(
    model: options.ModelPath,
    text: Annotated[str, typer.Option(help="An answer with its tags; -e applies.")],
    scorer: options.Scoring = None,
    picture: Annotated[Path | None, typer.Option(help="Draw a picture into this PNG, SVG or PDF file instead.")] = None,
    escapes: options.Escapes = False,
    as_json: options.AsJson = False,
) -> None:
    """Show how an answer is laid out for a scorer: address and position of every token, which tokens see which, and the
    critical path."""
    from parallel_r1.answers.parser import parse
    from parallel_r1.answers.visibility import layout
    from parallel_r1.models.policy import load_tokenizer
    from parallel_r1.models.tokens import encode, tag_ids

    reader = options.scorer_of(model, scorer)
    quiet()
    tokenizer = load_tokenizer(model)
    tags = tag_ids(tokenizer)
    token_ids = encode(tokenizer, tags, options.plain_text("text", text, escapes))
    trace = parse(token_ids, tags)
    row = layout(trace.runs, reader)
    by_token = [span.address for span in trace.spans for _ in span.token_ids]
    addresses = [by_token[token] for token in row.source]  # under `replay` paths have copies
    row_ids = [token_ids[token] for token in row.source]
    tokens = [str(tokenizer.decode([token])) for token in row_ids]
    if as_json:
        print_json(
            {
                "tokens": tokens,
                "token_ids": row_ids,
                "addresses": addresses,
                "positions": row.positions.tolist(),
                "mask": row.mask().astype(int).tolist(),
                "critical_path": row.critical_path,
                "total": len(token_ids),
            }
        )
    elif picture:
        from parallel_r1.report.visibility import relation

        relation(row, tokens, addresses, f"scorer {reader}", picture)
        console.print(f"wrote {picture}")
    else:
        _print_layout(row, tokens, addresses)
        console.print(f"critical path {row.critical_path}, tokens {len(token_ids)}")


def _print_layout(row: Layout, tokens: list[str], addresses: list[Address]) -> None:
    """Print a table with one line per place of a row."""
    from parallel_r1.report.answers import colour
    from parallel_r1.report.tables import rich_table
    from parallel_r1.table import Table

    lines = []
    for token, position, address, mask in zip(tokens, row.positions, addresses, row.mask(), strict=True):
        seen = "".join("█" if sees else "·" for sees in mask)
        place = " > ".join(f"{fork + 1}.{path + 1}" for fork, path in address)
        lines.append((repr(token)[1:-1], str(position), place, seen))
    table = Table(("token", "position", "address", "sees"), lines, names=4)
    console.print(rich_table(table, [colour(address) for address in addresses]))
