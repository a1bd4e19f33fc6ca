"""Rows of files and of data sets of the hub, as dictionaries by column."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from parallel_r1.errors import Missing, UserError, need
from parallel_r1.files import read_jsonl, whole
from parallel_r1.tasks.datasets.splits import Split, named_splits

Row = dict[str, Any]
Rows = list[tuple[int, Row]]
"""Rows with their numbers, from 1: of a JSONL file the number of the line, blank lines included."""
READS = "which reads data"


def read_file(path: Path) -> list[Row]:
    """The rows of a parquet or JSONL file, as `numbered_rows` reads them."""
    return [row for _, row in numbered_rows(path)]


def numbered_rows(path: Path) -> Rows:
    """The rows of a parquet or JSONL file with their numbers.

    Raises:
        UserError: the file cannot be read as the format that its name says.
    """
    return _read_parquet(path) if path.suffix == ".parquet" else list(read_jsonl(path))


def check_writable(path: Path) -> None:
    """Refuse a file name that `write_file` could not write, before there is anything to write."""
    if path.suffix not in (".parquet", ".jsonl"):
        raise UserError("a file that ends with .parquet or .jsonl", str(path), "give another --out")
    if path.suffix == ".parquet":
        need("pyarrow", "which writes data", "data")


def check_new(path: Path) -> None:
    """Refuse a file that exists, or that `write_file` could not write."""
    check_writable(path)
    if path.exists():
        raise UserError("a new file for --out", f"{path} exists", "give another name")


def write_file(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as a parquet or JSONL file, complete or not at all. In parquet every row has all columns.

    Raises:
        UserError: another ending, it cannot be written, or a column of a parquet file would hold values of two kinds.
    """
    check_writable(path)
    with whole(path) as part:
        if path.suffix == ".parquet":
            _write_parquet(part, list(rows))
        else:
            with part.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


def _write_parquet(path: Path, rows: list[Row]) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = dict.fromkeys(name for row in rows for name in row)
    try:
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
    except pyarrow.ArrowException as error:
        raise UserError(
            "columns with values of one kind each", str(error).splitlines()[0], "write a .jsonl file instead"
        ) from error
    parquet.write_table(table, path)


def _read_parquet(path: Path) -> Rows:
    need("pyarrow", READS, "data")
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        for at, column in enumerate(table.schema):
            if pyarrow.types.is_float32(column.type):  # 0.1 must not become 0.10000000149011612
                values = table.column(at).cast("string").cast("float64")
                table = table.set_column(at, column.name, values)
        rows: list[Row] = table.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError("a whole parquet file", f"{path}: {str(error).splitlines()[0]}", "download it again") from error
    return list(enumerate(rows, 1))


def read_hub(name: str, config: str | None, split: str | None) -> Rows:
    """The rows of one split of a data set on the hub, or of all, with our name of their split in the column `split`.

    A data set with one split is read as one without splits, unless the name says that nothing in it is trained on.

    Args:
        split: as the data set calls it; None for all.

    Raises:
        UserError: it cannot be loaded, for example without a network; or its splits have names that are not clear.
    """
    need("datasets", READS, "data")
    from datasets import load_dataset

    try:
        loaded = load_dataset(name, config, split=split)
    except Exception as error:  # the library raises whatever its file systems and readers raise
        raise Missing(
            f"the data set {name} of the hub",
            f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}",
            "check its id and the network, or use files instead: see docs/data.md",
        ) from error
    parts = {split: loaded} if split is not None else dict(loaded)
    names = _splits(f"hub:{name}:{config}" if config else f"hub:{name}", list(parts))
    rows = [{**row, "split": names[part]} if part in names else row for part in parts for row in parts[part].to_list()]
    return list(enumerate(rows, 1))


def _splits(task: str, names: list[str]) -> dict[str, Split]:
    """Our splits for those of a data set; none for the only split of a set, if it may be trained on."""
    if len(names) == 1:
        with suppress(ValueError):
            return {name: split for name, split in named_splits(names).items() if split != "train"}
        return {}
    try:
        return named_splits(names)
    except ValueError as error:
        raise UserError(
            "splits whose names begin with train, validation, dev, test or eval, one of each kind",
            f"{error} in {task}",
            f"name one: {task}@{names[0]}",
        ) from error
