"""The one table type: it writes Markdown here, and `report.tables` prints it in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of strings.

    Attributes:
        header: names of the columns.
        rows: cells, as many in every row as columns.
        title: printed above; empty for none.
        names: how many columns on the left hold names; the others hold figures.
    """

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    title: str = ""
    names: int = 1

    def markdown(self) -> str:
        """The table in Markdown, its title as a heading of the second level. A | in a cell is escaped."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        escaped = (" | ".join(cell.replace("|", r"\|") for cell in line) for line in lines)
        heading = f"## {self.title}\n\n" if self.title else ""
        return heading + "\n".join(f"| {line} |" for line in escaped) + "\n"
