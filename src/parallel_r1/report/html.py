"""An answer as HTML for a notebook: the trunk as it reads, the paths of a fork side by side, no script.

Colours are transparent over the background of the page, so the view is legible in light and dark themes.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from parallel_r1.answers.trace import Trace
from parallel_r1.answers.visibility import latency
from parallel_r1.report.outline import Content, Fork, Words, outline

HUES = (200, 300, 40, 120, 240, 0)
"""Hue of a path by its number, in degrees; the seventh path has the colour of the first."""
STYLE = """<style>
.pr1 {white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.4; max-width: 100%}
.pr1 .pr1-head {font-size: .85em; opacity: .75; margin-bottom: .4em}
.pr1 .pr1-fork {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(14em, 100%), 1fr)); gap: .5em;
  margin: .4em 0; white-space: normal}
.pr1 .pr1-path {white-space: pre-wrap; padding: .3em .5em; border: 1px solid rgba(127, 127, 127, .35);
  border-top: 3px solid hsl(var(--pr1-hue), 65%, 50%); background: hsla(var(--pr1-hue), 65%, 50%, .08);
  border-radius: 4px}
.pr1 .pr1-summary, .pr1 .pr1-plan {background: rgba(127, 127, 127, .16); border-radius: 3px}
.pr1 .pr1-tag {font-size: .75em; opacity: .55}
.pr1 .pr1-given {border-bottom: 1px dotted currentColor}
.pr1 .pr1-defect {color: hsl(0, 75%, 52%); font-size: .85em}
</style>"""


def answer_html(trace: Trace, texts: Sequence[str], prompt: str = "") -> str:
    """Render an answer as one HTML element, for `_repr_html_`. All text is escaped.

    Args:
        trace: the answer.
        texts: text of every span; see `Trace.texts`.
        prompt: shown above the answer; not shown if empty.
    """
    cut = "" if trace.finish == "stop" else f", ended by {trace.finish}"
    head = f"forks {trace.forks}, critical path {latency(trace)}, tokens {len(trace.token_ids)}{cut}"
    defects = "".join(
        f'<div class="pr1-defect">{escape(f"{defect.kind} at token {defect.at}: {defect.message}")}</div>'
        for defect in trace.defects
    )
    asked = f"<div><strong>{escape(prompt.strip())}</strong></div>" if prompt.strip() else ""
    body = f'<div class="pr1-head">{escape(head)}</div>{_content(outline(trace, texts))}{defects}'
    return f'{STYLE}<div class="pr1">{asked}{body}</div>'


def _content(content: Content) -> str:
    return "".join(_fork(part) if isinstance(part, Fork) else _words(part) for part in content)


def _fork(fork: Fork) -> str:
    paths = "".join(
        f'<div class="pr1-path" style="--pr1-hue: {HUES[number % len(HUES)]}">{_content(path)}</div>'
        for number, path in enumerate(fork.paths)
    )
    return f'<div class="pr1-fork">{paths}</div>'


def _words(words: Words) -> str:
    names = (
        ["pr1-tag"] * words.is_tag + [f"pr1-{words.within}"] * bool(words.within) + ["pr1-given"] * (not words.sampled)
    )
    if not names:
        return escape(words.text)
    title = "" if words.sampled else ' title="given by the runtime"'
    return f'<span class="{" ".join(names)}"{title}>{escape(words.text)}</span>'
