"""The table type of all reports. It writes Markdown; `report.tables` prints it in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of strings.

    Attributes:
        header: column names.
        rows: one cell for every column.
        title: printed above the table; none if empty.
        names: number of columns on the left that hold names; the others hold numbers.
    """

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    title: str = ""
    names: int = 1

    def markdown(self) -> str:
        """The table in Markdown, with its title as a second-level heading. A | in a cell is escaped."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        escaped = (" | ".join(cell.replace("|", r"\|") for cell in line) for line in lines)
        heading = f"## {self.title}\n\n" if self.title else ""
        return heading + "\n".join(f"| {line} |" for line in escaped) + "\n"
