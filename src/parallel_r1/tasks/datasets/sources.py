"""A set of problems: where its rows lie, how a row becomes a record, and which split a record belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallel_r1.answers.syntax import last_box
from parallel_r1.errors import Missing, UserError
from parallel_r1.tasks.datasets.rows import Rows, read_file, read_hub
from parallel_r1.tasks.datasets.splits import SPLITS, Part, Split, part_of, split_of

DATA_DIR = "PARALLEL_R1_DATA"
"""The environment variable with the default folder of the public sets. `suites.open_source` alone reads it."""
SHARED = "math_benchmarks"
"""A file in that folder that may hold several benchmarks; its column `source` names the benchmark of a row."""
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
        parts: part -> its name as a split of the data set on the hub; empty if the set may be in any number of parts.
        hub: its id on the hub, with `:CONFIG` where there are several; None if it is not there.
        licence: of the problems.
        about: where they come from.
        answers: columns that may hold the answer; the first one that does counts.
        file: the file that holds all of it; None for a public set.
        data_dir: the folder that holds a public set; None to load it from the hub.
    """

    name: str
    parts: Mapping[Part, str] = field(default_factory=dict)
    hub: str | None = None
    licence: str = "not stated; see where it comes from"
    about: str = ""
    answers: tuple[str, ...] = ANSWERS
    file: Path | None = None
    data_dir: Path | None = None

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that the set has. Its training part is cut into training and validation."""
        return tuple(split for split in SPLITS if not self.parts or part_of(split) in self.parts)

    @property
    def main_splits(self) -> tuple[Split, ...]:
        """The splits of the part that the set exists for: training and validation of a training set, test of a
        benchmark."""
        return tuple(split for split in self.splits if part_of(split) == "train" or "train" not in self.parts)

    def records(self, *splits: Split) -> list[Record]:
        """The problems of some splits, in the order of the source.

        Raises:
            UserError: the set has no such split, its file or data set cannot be read, or a row is no problem.
        """
        for split in splits:
            if split not in self.splits:
                has = " and ".join(self.splits)
                raise UserError(f"a set with a {split} split", f"{self.name}, which has {has}", "name another set")
        parts = dict.fromkeys(part_of(split) if self.parts else None for split in splits)
        return [record for part in parts for record in self._part(part) if record.split in splits]

    def _part(self, part: Part | None) -> list[Record]:
        where, rows = self._rows(part)
        if not rows:
            raise UserError(f"problems of {self.name}", f"none in {where}", "download or write it again")
        has_validation = part is None and any(row.get("split") == "validation" for row in rows)
        records = [self._record(row, number, part, where, has_validation) for number, row in enumerate(rows)]
        first_row: dict[str, int] = {}
        for number, record in enumerate(records):
            if first_row.setdefault(record.id, number) != number:
                raise UserError(
                    "a different id in every row",
                    f"'{record.id}' in rows {first_row[record.id]} and {number} of {where}",
                    "change one of them, or leave the column id out",
                )
        return records

    def _rows(self, part: Part | None) -> tuple[str, Rows]:
        """The place of the rows of a part, for error messages, and the rows."""
        if self.file is not None:
            return str(self.file), read_file(self.file)
        if part is not None and self.data_dir is not None:
            path = self._path(self.data_dir, part)
            rows = read_file(path)
            return str(path), rows if path.stem != SHARED else [row for row in rows if row.get("source") == self.name]
        if self.hub is None:
            raise Missing(
                f"a folder with {self.name}_{part}.parquet, since it is not on the hub",
                "none",
                f"name it in the environment variable {DATA_DIR}",
            )
        name, _, config = self.hub.partition(":")
        return self.hub, read_hub(name, config or None, None if part is None else self.parts[part])

    def _path(self, folder: Path, part: Part) -> Path:
        """The file of a part in a folder of public sets."""
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
            "put it there" + (f", or load it from the hub: without {DATA_DIR}" if self.hub else ""),
        )

    def _record(self, row: dict[str, Any], number: int, part: Part | None, where: str, has_validation: bool) -> Record:
        """A row as a record. A row's own split counts, unless it says `train` in a set where no row says `validation`:
        then a digest of the problem decides between the two."""
        name = row.get("id", row.get("unique_id"))
        problem = _problem(row, number, where)
        answer = _answer(row, number, where, self.answers)
        split = row.get("split") if part is None else None
        if split is not None and split not in SPLITS:
            raise UserError(
                f"a split {' or '.join(SPLITS)}", f"{split!r} in row {number} of {where}", "correct that row"
            )
        if split is None or not has_validation:
            split = split_of(problem, part if split is None else part_of(split))
        return Record(
            str(name) if name is not None else f"{self.name}-{part or 'row'}-{number}",
            problem,
            answer,
            self.name,
            split,
        )


def _problem(row: dict[str, Any], number: int, where: str) -> str:
    """The statement of a row, in the first column that may hold one and does."""
    column = next((column for column in PROBLEMS if row.get(column) is not None), None)
    if column is None:
        raise _no_column("the statement", PROBLEMS, row, number, where)
    text = row[column]
    if isinstance(text, list) and text and isinstance(text[-1], dict):  # the messages of a chat
        text = text[-1].get("content")
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            "a statement that is text",
            f"{_describe(text)} in column {column} of row {number} of {where}",
            "correct or leave out that row",
        )
    return text.strip()


def _answer(row: dict[str, Any], number: int, where: str, columns: tuple[str, ...]) -> str:
    """The answer in the first column that holds one; of a solution, the contents of its last box."""
    candidates = {column: row[column] for column in columns if row.get(column) is not None}
    if not candidates:
        raise _no_column("the answer", columns, row, number, where)
    for column, value in candidates.items():
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
        f"{_describe(value)} in column {column} of row {number} of {where}",
        "correct or leave out that row",
    )


def _describe(value: object) -> str:
    return f"{value!r:.40}" if value is None or isinstance(value, str) else type(value).__name__


def _no_column(content: str, columns: tuple[str, ...], row: dict[str, Any], number: int, where: str) -> UserError:
    return UserError(
        f"{content} in a column {', '.join(columns[:-1])} or {columns[-1]}",
        f"columns {', '.join(row)} in row {number} of {where}",
        "rename a column",
    )
