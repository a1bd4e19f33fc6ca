"""A set of problems: where its rows lie, how a row becomes a record, and which split a record belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from parallel_r1.answers.rollout import Message
from parallel_r1.errors import Missing, UserError
from parallel_r1.tasks.datasets.columns import ANSWERS, reference, statement
from parallel_r1.tasks.datasets.rows import Row, Rows, numbered_rows, read_hub
from parallel_r1.tasks.datasets.splits import SPLITS, Part, Split, named_splits, part_of, split_of

DATA_DIR = "PARALLEL_R1_DATA"
"""The environment variable with the default folder of the public sets. `suites.open_source` alone reads it."""
SHARED = "math_benchmarks"
"""A file in that folder that may hold several benchmarks; its column `source` names the benchmark of a row."""


@dataclass(frozen=True)
class Record:
    """A problem as its source has it.

    Attributes:
        id: unique within its source.
        problem: the whole statement.
        answer: the reference.
        source: the name of its source.
        split: the split that it belongs to.
        before: the messages before it, if it is the last one of a chat.
    """

    id: str
    problem: str
    answer: str
    source: str
    split: Split
    before: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Source:
    """A set of problems.

    Attributes:
        name: what recipes and files call it.
        parts: part -> its name as a split of the data set on the hub; empty if the set may be in any number of parts.
        hub: its id on the hub, with `:CONFIG` where there are several, and `@SPLIT` if only that split of it is read;
            None if it is not there.
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
        splits = _own_splits(rows, where) if part is None else {}
        records = {number: self._record(row, number, part, where, splits) for number, row in rows}
        first: dict[str, int] = {}
        for number, record in records.items():
            earlier = first.setdefault(record.id, number)
            if earlier == number:
                continue
            if record != records[earlier]:
                raise UserError(
                    "a different id in every row",
                    f"'{record.id}' in rows {earlier} and {number} of {where}",
                    "change one of them, or leave the column id out",
                )
            records[number] = replace(record, id=f"{record.id} in row {number}")
        return list(records.values())

    @property
    def files(self) -> list[Path]:
        """The files that the set is read from; those that do not exist are left out."""
        if self.file is not None:
            return [self.file]
        files = []
        for part in self.parts:
            with suppress(Missing):
                files += [] if self.data_dir is None else [self._path(self.data_dir, part)]
        return files

    def _rows(self, part: Part | None) -> tuple[str, Rows]:
        """The place of the rows of a part, for error messages, and the rows."""
        if self.file is not None:
            return str(self.file), numbered_rows(self.file)
        if part is not None and self.data_dir is not None:
            path = self._path(self.data_dir, part)
            rows = numbered_rows(path)
            mine = [(number, row) for number, row in rows if path.stem != SHARED or row.get("source") == self.name]
            if rows and not mine:
                raise self._missing(self.data_dir, part)
            return str(path), mine
        if self.hub is None:
            raise Missing(
                f"a folder with {self.name}_{part}.parquet, since it is not on the hub",
                "none",
                f"name it in the environment variable {DATA_DIR}",
            )
        name, split = self.hub, None if part is None else self.parts[part]
        if split is None and "/" not in self.hub.rpartition("@")[2]:
            name, _, split = self.hub.rpartition("@")
        name, _, config = name.partition(":")
        return self.hub, read_hub(name, config or None, split)

    def _path(self, folder: Path, part: Part) -> Path:
        """The file of a part in a folder of public sets."""
        names = [f"{self.name}_{part}"]
        if len(self.parts) == 1:
            names += [self.name, SHARED] if part == "test" else [self.name]
        for name in names:
            for suffix in (".parquet", ".jsonl"):
                if (path := folder / f"{name}{suffix}").is_file():
                    return path
        raise self._missing(folder, part)

    def _missing(self, folder: Path, part: Part) -> Missing:
        return Missing(
            f"{self.name}_{part}.parquet or {self.name}_{part}.jsonl in {folder}",
            "neither",
            "put it there" + (f", or load it from the hub: without {DATA_DIR}" if self.hub else ""),
        )

    def _record(self, row: Row, number: int, part: Part | None, where: str, splits: dict[str, Split]) -> Record:
        """A row as a record. A row's own split counts, unless it is train in a set without validation: then a digest of
        the problem decides between the two."""
        name, place = row.get("id", row.get("unique_id")), f"row {number} of {where}"
        (problem, before), answer = statement(row, place), reference(row, place, self.answers)
        own = splits.get(row["split"]) if part is None and row.get("split") is not None else None
        if own is None or (own == "train" and "validation" not in splits.values()):
            own = split_of(problem, part if own is None else part_of(own))
        name = f"{self.name}-{part or 'row'}-{number}" if name is None else str(name)
        return Record(name, problem, answer, self.name, own, before)


def _own_splits(rows: Rows, where: str) -> dict[str, Split]:
    """Our splits for the names in the column `split` of a set.

    Raises:
        UserError: a name that is none of a split, or two names for one split.
    """
    first: dict[Any, int] = {}
    for number, row in rows:
        if row.get("split") is not None:
            first.setdefault(row["split"] if isinstance(row["split"], str) else repr(row["split"]), number)
    try:
        return named_splits(first)
    except ValueError as error:
        place = next(f"row {number}" for name, number in reversed(first.items()) if f"'{name}'" in str(error))
        raise UserError(
            f"a split {' or '.join(SPLITS)}", f"{error} in {place} of {where}", "correct the column split"
        ) from error
