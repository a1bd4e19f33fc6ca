"""How a table looks in a terminal. Needs nothing but rich, so that `show` is quick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, TableElement
from rich.table import Table as RichTable
from rich.text import Text

from parallel_r1.table import Table


def rich_table(table: Table, row_styles: Sequence[str] = (), cell_styles: Mapping[str, str] | None = None) -> RichTable:
    """A table for a terminal, narrow enough for the 80 columns of a pipe or a log: long names are folded.

    Args:
        row_styles: style of every row, such as `bold`; none if empty.
        cell_styles: cell -> style.
    """
    styles = cell_styles or {}
    shown = RichTable(box=None, padding=(0, 1, 0, 0), pad_edge=False, title=table.title or None, title_justify="left")
    for column, name in enumerate(table.header):
        if column < table.names:
            shown.add_column(Text(name), overflow="fold")
        else:
            shown.add_column(Text(name), justify="right", no_wrap=True)
    for row, style in zip(table.rows, row_styles or [""] * len(table.rows), strict=True):
        shown.add_row(*(Text(cell, styles.get(cell, "")) for cell in row), style=style or None)
    return shown


def narrow(table: Table) -> Table:
    """The same table, with the names of its columns on two lines."""
    header = tuple("\n".join(name.replace("-", "-\n").rsplit(" ", 1)) for name in table.header)
    return replace(table, header=header)


class _MarkdownTable(TableElement):
    """A table of a Markdown text as `rich_table` draws it; rich's own cuts names at 80 columns."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        assert self.header is not None
        assert self.header.row is not None
        rows = [self.header.row, *(self.body.rows if self.body is not None else [])]
        head, *cells = (tuple(cell.content.plain for cell in row.cells) for row in rows)
        yield rich_table(narrow(Table(head, cells)))


class ResultsMarkdown(Markdown):
    """The text of a run's table.md."""

    elements: ClassVar = {**Markdown.elements, "table_open": _MarkdownTable}
