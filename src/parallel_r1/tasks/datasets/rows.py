"""Rows of files and of data sets of the hub, as dictionaries by column."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from parallel_r1.errors import Missing, UserError, need
from parallel_r1.files import read_jsonl, whole

Rows = list[dict[str, Any]]
READS = "which reads data"


def read_file(path: Path) -> Rows:
    """The rows of a parquet or JSONL file.

    Raises:
        UserError: the file cannot be read as the format that its name says.
    """
    return _read_parquet(path) if path.suffix == ".parquet" else [row for _, row in read_jsonl(path)]


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


def write_file(path: Path, rows: Iterable[dict[str, Any]]) -> None:
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


def _write_parquet(path: Path, rows: Rows) -> None:
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
        rows: Rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError("a whole parquet file", f"{path}: {str(error).splitlines()[0]}", "download it again") from error
    return rows


def read_hub(name: str, config: str | None, split: str | None) -> Rows:
    """The rows of one split of a data set on the hub. If `split` is None, all rows, with the name of the split in the
    column `split`; a data set whose only split is `train` is read as one without splits.

    Raises:
        UserError: it cannot be loaded, for example without a network.
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
    if split is not None or list(loaded) == ["train"]:
        rows: Rows = (loaded if split is not None else loaded["train"]).to_list()
        return rows
    return [{**row, "split": part} for part in loaded for row in loaded[part].to_list()]
