"""The shell of all HTML pages: one self-contained file, which loads nothing and lets nothing but its own script run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from parallel_r1.errors import UserError
from parallel_r1.table import Table


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        html: its content. Text from elsewhere must have been escaped.
        anchor: what links to it name; unique in the page.
    """

    title: str
    html: str
    anchor: str


def check_new(out: Path, option: str) -> None:
    """Refuse to write a page over something else.

    Raises:
        UserError: the file exists.
    """
    if out.exists():
        raise UserError(f"a new file for {option}", f"{out} exists", "remove it, or give another name")


def static(*names: str) -> str:
    """The style sheets or scripts of these names, one after the other."""
    folder = files("parallel_r1.report.pages") / "static"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def page(
    title: str, sections: Sequence[Section], *, lead: str = "", after: str = "", style: str = "", script: str = ""
) -> str:
    """A whole page: the title, links to the sections, and the sections.

    Args:
        lead: HTML below the title.
        after: HTML behind the sections, such as data blocks.
        style: a style sheet in addition to `page.css`.
        script: the only script that the page runs.
    """
    links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections)
    contents = f'<nav class="contents" aria-label="Contents">{links}</nav>' if len(sections) > 2 else ""
    body = "".join(
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>{section.html}</section>'
        for section in sections
    )
    main = f"<main><h1>{escape(title)}</h1>{lead}{contents}{body}</main>{after}"
    return shell(title, main, style=style, script=script)


def shell(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """The frame of a page around its body; see `page`.

    A content security policy forbids every request, and every script but this one: even if markup of an answer got into
    the page, it could not run.
    """
    script = _safe(script)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    allowed = f"script-src 'sha256-{digest}'" if script else "script-src 'none'"
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; {allowed}; base-uri 'none'"
    runs = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{static('page.css')}{style}</style></head>\n"
        f"<body>{body}{runs}</body></html>\n"
    )


def _safe(script: str) -> str:
    if "</script" in script.lower() or "<!--" in script:
        raise ValueError("a script that ends its own element")
    return script


def table_html(table: Table) -> str:
    """A table as HTML; it scrolls in a box of its own where the window is narrow."""

    def cells(row: Sequence[str], tag: str) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        kinds = (' class="name"' if column < table.names else "" for column in range(len(row)))
        return "".join(f"<{tag}{kind}{scope}>{escape(cell)}</{tag}>" for cell, kind in zip(row, kinds, strict=True))

    caption = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    rows = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    head = f"<thead><tr>{cells(table.header, 'th')}</tr></thead>"
    return f'<div class="table-box" tabindex="0"><table>{caption}{head}<tbody>{rows}</tbody></table></div>'
