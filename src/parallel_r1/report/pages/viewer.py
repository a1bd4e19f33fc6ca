"""The trace viewer: answers as fork-join timelines in one HTML file, alone or inside a report.

Its scripts and style sheets lie in `static/`, without a build step, as `prettier --print-width 120` formats them.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from parallel_r1.report.pages.pack import Cut, Shown, pack
from parallel_r1.report.pages.page import shell, static

STYLE = ("answer.css", "viewer.css")
SCRIPTS = ("dom.js", "data.js", "timeline.js", "text.js", "mask.js", "list.js", "steps.js", "tip.js", "viewer.js")


def viewer_style() -> str:
    """The style sheet of the viewer."""
    return static(*STYLE)


def viewer_script() -> str:
    """The script of the viewer, in a scope of its own."""
    return f'(() => {{\n"use strict";\n{static(*SCRIPTS)}\n}})();'


def mount(name: str) -> str:
    """The place in a page where a viewer appears; `data_blocks` with the same name hold its answers."""
    return (
        f'<div data-viewer="{name}"><noscript><p class="note">The answers are shown by a script; '
        "this browser runs none.</p></noscript></div>"
    )


def data_blocks(name: str, answers: Iterable[Shown], cut: Cut | None = None) -> tuple[str, int]:
    """Answers as data blocks, which a page holds behind its text, so that the text is painted first.

    Returns:
        The blocks as HTML, and the number of answers.
    """
    index, blocks, count = pack(answers, cut)
    named = [("index", index), *((str(number), block) for number, block in enumerate(blocks))]
    html = "".join(
        f'<script type="application/octet-stream" id="{name}-{part}">{text}</script>' for part, text in named
    )
    return html, count


def viewer_page(title: str, answers: Iterable[Shown], cut: Cut | None = None) -> str:
    """A page with nothing but the viewer.

    Args:
        answers: read one after the other.
        cut: where tokens lie in the text of their span; None without a tokenizer.
    """
    blocks, _ = data_blocks("answers", answers, cut)
    about = '<span class="quiet">fork-join timelines in token time</span>'
    bar = f'<header class="bar"><h1>{escape(title)}</h1>{about}</header>'
    body = f'{bar}<main class="wide">{mount("answers")}</main>{blocks}'
    return shell(title, body, style=viewer_style(), script=viewer_script())
