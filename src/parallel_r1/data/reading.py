"""Rows of files and of data sets of the hub."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from parallel_r1.errors import UserError

Rows = list[dict[str, Any]]


def read_file(path: Path) -> Rows:
    """The rows of a parquet or JSONL file.

    Raises:
        UserError: it cannot be read as what its name says.
    """
    return _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)


def _read_parquet(path: Path) -> Rows:
    need("pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        rows: Rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError("a whole parquet file", f"{path}: {str(error).splitlines()[0]}", "download it again") from error
    return rows


def _read_jsonl(path: Path) -> Rows:
    rows: Rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TypeError(f"a {type(row).__name__}")
            except (ValueError, TypeError, RecursionError) as error:
                raise UserError("a JSON object on every line", f"{path}:{number}: {error}", "mend that line") from error
            rows.append(row)
    return rows


def read_hub(name: str, config: str | None, split: str | None) -> Rows:
    """The rows of a split of a data set of the hub. If none is named all rows, each with its split; but if all of them
    are there to train on, nothing is known about splits.

    Raises:
        UserError: it cannot be loaded, such as for want of a network.
    """
    need("datasets")
    from datasets import load_dataset

    try:
        found = load_dataset(name, config, split=split)
    except Exception as error:  # the library raises whatever its file systems and readers raise
        raise UserError(
            f"the data set {name} of the hub",
            f"{type(error).__name__}: {(str(error) or 'no more is known').splitlines()[0]}",
            "check its id and the network, or use a file: parquet:PATH, or --data-dir for a public set",
        ) from error
    if split is not None or list(found) == ["train"]:
        rows: Rows = (found if split is not None else found["train"]).to_list()
        return rows
    return [{**row, "split": part} for part in found for row in found[part].to_list()]


def need(package: str) -> None:
    """Refuse to go on without a package of the extra `data`."""
    if find_spec(package) is None:
        raise UserError(f"{package}, which reads data", "no such package", "pip install 'parallel-r1[data]'")
