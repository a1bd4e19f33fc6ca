"""Sets of problems: what is known about the public ones, what a row becomes, and which split it belongs to.

A source is named as recipes name it: `gsm8k`, .., or a file of the user's own, `jsonl:PATH` or `parquet:PATH`, or any
data set of the hub, `hub:ID` or `hub:ID:CONFIG`. Nothing is read before records are asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from parallel_r1.answers.syntax import last_box
from parallel_r1.errors import Missing, UserError, nearest
from parallel_r1.tasks.datasets.rows import read_file, read_hub
from parallel_r1.tasks.datasets.splits import SPLITS, Part, Split, _part_of, split_of

FOLDER = "PARALLEL_R1_DATA"
"""The environment variable that names a folder with the files of the public sets."""


SHARED = "math_benchmarks"
"""A file there that may hold several benchmarks, told apart by its column `source`."""


PROBLEMS = ("problem", "question", "prompt")


ANSWERS = ("answer", "final_answer", "ground_truth", "reward_model", "solution")


@dataclass(frozen=True)
class Record:
    """A problem as its source has it.

    Attributes:
        id: unique within its source.
        problem: the whole statement.
        answer: the reference.
        source: the name of its source.
        split: the split that it belongs to.
    """

    id: str
    problem: str
    answer: str
    source: str
    split: Split


@dataclass(frozen=True)
class Source:
    """A set of problems.

    Attributes:
        name: what recipes and files call it.
        parts: what it is cut into, by the name of the split of the hub's data set; empty if that is not known.
        hub: its id on the hub, with `:CONFIG` where there are several; None if it is not there.
        licence: of the problems.
        about: where they come from.
        answers: columns that may hold the answer, the first that does counts.
        file: the file that holds all of it; None for a public set.
    """

    name: str
    parts: Mapping[Part, str] = field(default_factory=dict)
    hub: str | None = None
    licence: str = "not stated; see where it comes from"
    about: str = ""
    answers: tuple[str, ...] = ANSWERS
    file: Path | None = None

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that it has; what it gives for training is cut into two."""
        return tuple(split for split in SPLITS if not self.parts or _part_of(split) in self.parts)

    @property
    def first(self) -> tuple[Split, ...]:
        """The splits of what it is there for: of a set to train on all but the test split."""
        return tuple(split for split in self.splits if _part_of(split) == "train" or "train" not in self.parts)

    def records(self, *splits: Split) -> list[Record]:
        """The problems of some splits, in the order of the source.

        Raises:
            UserError: it has no such split, its file or data set cannot be read, or a row is no problem.
        """
        for split in splits:
            if split not in self.splits:
                has = " and ".join(self.splits)
                raise UserError(f"a set with a {split} split", f"{self.name}, which has {has}", "name another set")
        parts = dict.fromkeys(_part_of(split) if self.parts else None for split in splits)
        return [record for part in parts for record in self._part(part) if record.split in splits]

    def _part(self, part: Part | None) -> list[Record]:
        where, rows = self._rows(part)
        if not rows:
            raise UserError(f"problems of {self.name}", f"none in {where}", "download or write it again")
        stated = part is None and any(row.get("split") == "validation" for row in rows)
        records = [self._record(row, number, part, where, stated) for number, row in enumerate(rows)]
        seen: dict[str, int] = {}
        for number, record in enumerate(records):
            if seen.setdefault(record.id, number) != number:
                raise UserError(
                    "a different id in every row",
                    f"'{record.id}' in rows {seen[record.id]} and {number} of {where}",
                    "mend one of them, or leave the column id out",
                )
        return records

    def _rows(self, part: Part | None) -> tuple[str, list[dict[str, Any]]]:
        """Where the rows of a part lie, and the rows."""
        if self.file is not None:
            return str(self.file), read_file(self.file)
        folder = os.environ.get(FOLDER)
        if part is not None and folder:
            path = self._local(Path(folder), part)
            rows = read_file(path)
            return str(path), rows if path.stem != SHARED else [row for row in rows if row.get("source") == self.name]
        if self.hub is None:
            raise Missing(
                f"a folder with {self.name}_{part}.parquet, since it is not on the hub",
                "none",
                f"name it in the environment variable {FOLDER}",
            )
        name, _, config = self.hub.partition(":")
        return self.hub, read_hub(name, config or None, None if part is None else self.parts[part])

    def _local(self, folder: Path, part: Part) -> Path:
        names = [f"{self.name}_{part}"]
        if len(self.parts) == 1:
            names += [self.name, SHARED] if part == "test" else [self.name]
        for name in names:
            for suffix in (".parquet", ".jsonl"):
                if (path := folder / f"{name}{suffix}").is_file():
                    return path
        raise Missing(
            f"{names[0]}.parquet or {names[0]}.jsonl in {folder}",
            "neither",
            "put it there" + (f", or load it from the hub: without {FOLDER}" if self.hub else ""),
        )

    def _record(self, row: dict[str, Any], number: int, part: Part | None, where: str, stated: bool) -> Record:
        """A row as a record; `stated` if the rows themselves say which problems are for validation."""
        name = row.get("id", row.get("unique_id"))
        problem = _problem(row, number, where)
        answer = _answer(row, number, where, self.answers)
        split = row.get("split") if part is None else None
        if split is not None and split not in SPLITS:
            raise UserError(f"a split {' or '.join(SPLITS)}", f"{split!r} in row {number} of {where}", "mend that row")
        if split is None or not stated:
            split = split_of(problem, part if split is None else _part_of(split))
        return Record(
            str(name) if name is not None else f"{self.name}-{part or 'row'}-{number}",
            problem,
            answer,
            self.name,
            split,
        )


def _problem(row: dict[str, Any], number: int, where: str) -> str:
    column = next((column for column in PROBLEMS if row.get(column) is not None), None)
    if column is None:
        raise _missing("the statement", PROBLEMS, row, number, where)
    text = row[column]
    if isinstance(text, list) and text and isinstance(text[-1], dict):  # the messages of a chat
        text = text[-1].get("content")
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            "a statement that is text",
            f"{_kind(text)} in column {column} of row {number} of {where}",
            "mend or leave out that row",
        )
    return text.strip()


def _answer(row: dict[str, Any], number: int, where: str, columns: tuple[str, ...]) -> str:
    """The answer in the first column that holds one; of a solution what is in its last box."""
    given = {column: row[column] for column in columns if row.get(column) is not None}
    if not given:
        raise _missing("the answer", columns, row, number, where)
    for column, value in given.items():
        if isinstance(value, dict):
            value = value.get("ground_truth")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            break
        text = str(value)
        if "####" in text:  # GSM8K writes the answer behind its solution
            text = text.rpartition("####")[2].replace(",", "")
        box = last_box(text) if column == "solution" else None
        if answer := (box[1] if box else text).strip():
            return answer
    raise UserError(
        "an answer that is text or a number",
        f"{_kind(value)} in column {column} of row {number} of {where}",
        "mend or leave out that row",
    )


def _kind(value: object) -> str:
    return f"{value!r:.40}" if value is None or isinstance(value, str) else type(value).__name__


def _missing(what: str, columns: tuple[str, ...], row: dict[str, Any], number: int, where: str) -> UserError:
    return UserError(
        f"{what} in a column {', '.join(columns[:-1])} or {columns[-1]}",
        f"columns {', '.join(row)} in row {number} of {where}",
        "rename a column",
    )


_MAA = "problems of the Mathematical Association of America; not for redistribution"


@cache
def public() -> dict[str, Source]:
    """The public sets by name."""
    sources = (
        Source(
            "gsm8k",
            {"train": "train", "test": "test"},
            "openai/gsm8k:main",
            "MIT",
            "Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems, arXiv 2110.14168",
        ),
        Source(
            "math",
            {"train": "train", "test": "test"},
            "DigitalLearningGmbH/MATH-lighteval",
            "MIT",
            "Hendrycks et al. 2021, Measuring Mathematical Problem Solving, arXiv 2103.03874",
            answers=("solution", "answer"),
        ),
        Source(
            "math500",
            {"test": "test"},
            "HuggingFaceH4/MATH-500",
            "MIT",
            "500 problems of the test split of MATH, chosen by Lightman et al. 2023, arXiv 2305.20050",
        ),
        Source(
            "dapo",
            {"train": "train"},
            "open-r1/DAPO-Math-17k-Processed:all",
            "Apache-2.0",
            "Yu et al. 2025, DAPO, arXiv 2503.14476; duplicates of the first release removed",
        ),
        Source("aime24", {"test": "train"}, "HuggingFaceH4/aime_2024", _MAA, "AIME I and II of 2024"),
        Source("aime25", {"test": "test"}, "math-ai/aime25", _MAA, "AIME I and II of 2025"),
        Source("amc23", {"test": "test"}, "math-ai/amc23", _MAA, "AMC 12 of 2023, problems with integer answers"),
        Source(
            "math300",
            {"test": "test"},
            None,
            "MIT",
            "316 problems of the test split of MATH with integer answers, as the Parallel-R1 paper evaluates",
        ),
    )
    return {source.name: source for source in sources}


def open_source(name: str) -> Source:
    """The source of a name; nothing is read yet.

    Raises:
        UserError: no such source, or no such file.
    """
    kind, colon, rest = name.partition(":")
    if colon and kind in ("jsonl", "parquet"):
        path = Path(rest)
        if not path.is_file():
            raise Missing(f"a {kind} file of problems", f"no file {rest}", "check the path")
        if path.suffix != f".{kind}":
            raise UserError(f"a file that ends with .{kind}", rest, "name it by what it is")
        return Source(name, about=f"the file {path.name}", file=path)
    if colon and kind == "hub":
        return Source(name, hub=rest, about=f"the data set {rest} of the hub")
    if name not in public():
        raise UserError(
            "a known set of problems, jsonl:PATH, parquet:PATH or hub:ID", f"'{name}'", nearest(name, public())
        )
    return public()[name]
