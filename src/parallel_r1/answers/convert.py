"""Convert answers between our format and those of other projects, and repair layout that is nearly ours.

A format is a row of the table `SCHEMAS`: the tags around a fork, its plan, its paths and its summary. A text is read
into parts (plain text and forks), which any format can write. Where a format lacks something, it is kept in another
form: the plan of a fork becomes numbered lines of the trunk before it, and such lines become a plan again; a fork
without a plan gets the first sentences of its paths where a format requires one. Where a format has no summary, the
first paragraph after a fork stands for it. Our format drops the numbers of paths, because the paths of a fork have no
order.

Sources: ThreadWeaver (arXiv 2512.07843), Multiverse (arXiv 2506.09991), NPR (arXiv 2512.07461).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from parallel_r1.answers.parser import parse_text, text_pieces
from parallel_r1.answers.syntax import (
    FINAL_ANSWER,
    FORK_CLOSE,
    FORK_OPEN,
    PATH_CLOSE,
    PATH_OPEN,
    SUMMARY_CLOSE,
    SUMMARY_GAP,
    SUMMARY_OPEN,
    fork_text,
    holds_gap,
)

Pair = tuple[str, str]


@dataclass(frozen=True)
class Schema:
    """The tags of a format, as pairs of an opening and a closing tag; None where the format has no such element.

    Attributes:
        path: around a path.
        fork: around a fork.
        plan: around the outlines of all paths.
        outline: around the outline of one path, which says what the path will do.
        summary: around the summary.
        inside: whether the summary stands inside the fork.
        numbered: whether outlines and paths begin with their number, such as `2: `.
    """

    path: Pair
    fork: Pair | None = None
    plan: Pair | None = None
    outline: Pair | None = None
    summary: Pair | None = None
    inside: bool = False
    numbered: bool = True

    @property
    def tags(self) -> list[str]:
        """All tags of the format."""
        pairs = (self.fork, self.plan, self.outline, self.path, self.summary)
        return [tag for pair in pairs if pair for tag in pair]


def _pair(name: str) -> Pair:
    return f"<{name}>", f"</{name}>"


OURS = "parallel-r1"
SCHEMAS: dict[str, Schema] = {
    OURS: Schema(
        fork=(FORK_OPEN, FORK_CLOSE),
        path=(PATH_OPEN, PATH_CLOSE),
        summary=(SUMMARY_OPEN, SUMMARY_CLOSE),
        numbered=False,
    ),
    "threadweaver": Schema(
        fork=_pair("Parallel"), plan=_pair("Outlines"), outline=_pair("Outline"), path=_pair("Thread")
    ),
    "multiverse": Schema(
        fork=_pair("Parallel"),
        plan=_pair("Goal"),
        outline=_pair("Outline"),
        path=_pair("Path"),
        summary=_pair("Conclusion"),
        inside=True,
    ),
    "npr": Schema(plan=_pair("guideline"), outline=_pair("plan"), path=_pair("step"), summary=_pair("takeaway")),
}


@dataclass(frozen=True)
class Fork:
    """A fork, independent of the format.

    Attributes:
        goal: text of the plan besides the outlines.
        outlines: one per path, or none at all.
        paths: contents of the paths, which may fork again.
        summary: text of the summary; None if there is none.
    """

    goal: str
    outlines: tuple[str, ...]
    paths: tuple[Parts, ...]
    summary: str | None


Parts = tuple[str | Fork, ...]


def convert(text: str, source: str, target: str) -> str:
    """Convert an answer from one format to another.

    Args:
        source, target: keys of `SCHEMAS`.

    Raises:
        ValueError: the text breaks its format; names the expected tag and the character.
    """
    reader = _Reader(text, SCHEMAS[source])
    parts = reader.parts()
    if reader.tag is not None:
        raise ValueError(f"{reader.tag} at character {reader.at} closes nothing")
    return _Writer(SCHEMAS[target]).text(parts)


class _Reader:
    """Recursive-descent parser of one format; reads from one tag to the next."""

    def __init__(self, text: str, schema: Schema) -> None:
        self.schema = schema
        # Plain text stands at even places, tags at odd ones.
        self.words = re.split("(" + "|".join(map(re.escape, schema.tags)) + ")", text)
        self.starts = list(accumulate(map(len, self.words), initial=0))
        self.next = 0

    @property
    def tag(self) -> str | None:
        """The next tag; None at the end."""
        return self.words[self.next + 1] if self.next + 1 < len(self.words) else None

    @property
    def at(self) -> int:
        """Character at which the next tag stands."""
        return self.starts[self.next + 1]

    def plain(self) -> str:
        """Take the plain text before the next tag; a second call returns nothing."""
        text, self.words[self.next] = self.words[self.next], ""
        return text

    def take(self, tag: str) -> None:
        """Take a tag that has nothing but white space before it."""
        if self.plain().strip():
            raise ValueError(
                f"text that belongs to nothing ends at character {self.at}, before {self.tag or 'the end'}"
            )
        if self.tag != tag:
            raise ValueError(f"expected {tag} at character {self.at}, not {self.tag or 'the end'}")
        self.next += 2

    def inner(self, pair: Pair) -> str:
        """Take two tags and return the plain text between them."""
        self.take(pair[0])
        text = self.plain().strip()
        self.take(pair[1])
        return text

    def parts(self) -> Parts:
        """Take plain text and forks, up to a tag that opens no fork."""
        opens = {pair[0] for pair in [self.schema.fork or self.schema.plan] if pair}
        opens |= set() if self.schema.fork else {self.schema.path[0]}
        parts: list[str | Fork] = [self.plain()]
        while self.tag in opens:
            parts += [self.fork(), self.plain()]
        return _with_summaries(parts) if self.schema.summary is None else tuple(part for part in parts if part)

    def fork(self) -> Fork:
        schema = self.schema
        if schema.fork:
            self.take(schema.fork[0])
        goal, outlines = self.plan() if schema.plan and self.tag == schema.plan[0] else ("", ())
        paths = [self.path(1)]
        while self.tag == schema.path[0]:
            paths.append(self.path(len(paths) + 1))
        summary = self.summary() if schema.inside else None
        if schema.fork:
            self.take(schema.fork[1])
        summary = summary if schema.inside else self.summary()
        return Fork(goal, outlines if len(outlines) == len(paths) else (), tuple(paths), summary)

    def summary(self) -> str | None:
        """Text of the summary; None if no summary comes next."""
        pair = self.schema.summary
        return self.inner(pair) if pair and self.tag == pair[0] else None

    def plan(self) -> tuple[str, tuple[str, ...]]:
        """Text of a plan besides its outlines, and the outlines."""
        assert self.schema.plan
        assert self.schema.outline
        self.take(self.schema.plan[0])
        goal, outlines = [self.plain()], list[str]()
        while self.tag == self.schema.outline[0]:
            outlines.append(_without_number(self.inner(self.schema.outline), len(outlines) + 1))
            goal.append(self.plain())
        self.take(self.schema.plan[1])
        return " ".join(" ".join(goal).split()), tuple(outlines)

    def path(self, number: int) -> Parts:
        self.take(self.schema.path[0])
        parts = list(self.parts())
        self.take(self.schema.path[1])
        if parts and isinstance(parts[0], str):
            parts[0] = parts[0].lstrip()
            if self.schema.numbered:
                parts[0] = _without_number(parts[0], number)
        if parts and isinstance(parts[-1], str):
            parts[-1] = parts[-1].rstrip()
        return tuple(part for part in parts if part)


def _without_number(text: str, number: int) -> str:
    return re.sub(rf"^{number}:\s*", "", text)


def _with_summaries(parts: list[str | Fork]) -> Parts:
    """Give every fork the first paragraph after it as its summary."""
    merged: list[str | Fork] = []
    for part in parts:
        before = merged[-1] if merged else None
        if isinstance(part, str) and isinstance(before, Fork) and part.strip():
            first, gap, rest = part.lstrip("\n").partition("\n\n")
            merged[-1] = Fork(before.goal, before.outlines, before.paths, first.strip())
            part = gap + rest
        if part:
            merged.append(part)
    return tuple(merged)


class _Writer:
    """Writes parts in one format."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def text(self, parts: Parts) -> str:
        text = ""
        for part in parts:
            if isinstance(part, Fork):
                text = self.fork(text, part)
            elif text and self.schema.summary is None:
                text += "\n\n" + part.lstrip("\n")  # a blank line marks the end of the summary
            else:
                text += part
        return text

    def fork(self, before: str, fork: Fork) -> str:
        """Append a fork to the text before it. A plan moves between the fork and that text as the format requires."""
        before, outlines = self.plan(before, fork)
        paths = [self.text(path) for path in fork.paths]
        if self.schema is SCHEMAS[OURS]:
            return before + fork_text(paths, fork.summary)
        return before + self.layout(fork, outlines, paths)

    def plan(self, before: str, fork: Fork) -> tuple[str, list[str]]:
        """The text before a fork, with a plan taken out of it or put into it, and the outlines of the paths."""
        outlines, invented = list(fork.outlines), [_first_words(path) for path in fork.paths]
        if self.schema.plan is None:
            if outlines == invented:
                outlines = []
            lines = [fork.goal] * bool(fork.goal) + [f"{n}: {outline}" for n, outline in enumerate(outlines, 1)]
            if lines:
                before = "\n".join([*([before.rstrip()] if before.strip() else []), *lines]) + "\n"
        elif not outlines:
            before, outlines = _lines_of_plan(before, len(fork.paths))
            outlines = outlines or invented
        return before, outlines

    def layout(self, fork: Fork, outlines: Sequence[str], paths: Sequence[str]) -> str:
        """A fork in a format of another project, every element on a line of its own."""
        schema = self.schema
        pieces = []
        if schema.plan and schema.outline:
            start, end = schema.outline
            listed = [f"{start}{number}: {outline}{end}" for number, outline in enumerate(outlines, 1)]
            pieces = [schema.plan[0], *([fork.goal] if fork.goal else []), *listed, schema.plan[1]]
        for number, path in enumerate(paths, 1):
            mark = f"{number}: " if schema.numbered else ""
            pieces.append(f"{schema.path[0]}{mark}{path}{schema.path[1]}")
        summary = [] if fork.summary is None else [fork.summary.join(schema.summary or ("", ""))]
        if schema.inside:
            pieces, summary = pieces + summary, []
        if schema.fork:
            pieces = [schema.fork[0], *pieces, schema.fork[1]]
        return "\n".join([*pieces, *summary])


def _lines_of_plan(before: str, count: int) -> tuple[str, list[str]]:
    """A text without the numbered lines at its end, and their contents; no contents unless there is one line per
    path."""
    lines = before.rstrip().split("\n")
    matches = [re.fullmatch(rf"{number}: (.*)", line) for number, line in enumerate(lines[-count:], 1)]
    if len(matches) < count or not all(matches):
        return before, []
    kept = "".join(line + "\n" for line in lines[:-count])
    return kept, [match[1] for match in matches if match]


def _first_words(path: Parts) -> str:
    """An outline for a path without one: its first sentence, or the first 100 characters of it."""
    text = path[0] if path and isinstance(path[0], str) else ""
    sentence = re.split(r"(?<=[.?!])\s|\n", text.strip(), maxsplit=1)[0].strip()
    return sentence if len(sentence) <= 100 else sentence[:100].rsplit(" ", 1)[0] + " .."


def repair(text: str) -> tuple[str, list[str]]:
    """Correct the layout of an answer; no word is touched.

    Returns:
        The text, and the kinds of changes: `space-between-tags` (white space inside a fork but outside its paths was
        removed), `break-before-summary` (the white space before a summary became one line break) and `unclosed-summary`
        (a summary was closed at the end of the text, or before its final answer).
    """
    pieces = [(words, symbol.tag) for words, symbol in text_pieces(text)]
    changes: dict[str, None] = {}
    out = ""
    for number, (words, tag) in enumerate(pieces):
        before = pieces[number - 1][1] if number else None
        after = pieces[number + 1][1] if number + 1 < len(pieces) else None
        if tag is None and not words.strip() and (before, after) in _TIGHT:
            changes["space-between-tags"] = None
            continue
        if tag is None and not words.strip() and (before, after) == (FORK_CLOSE, SUMMARY_OPEN) and words != SUMMARY_GAP:
            words = SUMMARY_GAP
            changes["break-before-summary"] = None
        if tag == SUMMARY_OPEN and before == FORK_CLOSE and not holds_gap(""):
            out += SUMMARY_GAP
            changes["break-before-summary"] = None
        out += words
    defects = parse_text(out).defects
    if any(defect.kind == "unclosed-summary" for defect in defects):
        before, mark, answer = out.partition(FINAL_ANSWER)  # the final answer belongs to the trunk
        for text, rest in ((before, mark + answer), (out, "")):
            summary = text.rstrip()
            closed = summary + SUMMARY_CLOSE + text[len(summary) :] * bool(rest) + rest
            if len(parse_text(closed).defects) < len(defects):
                return closed, [*changes, "unclosed-summary"]
    return out, list(changes)


_TIGHT = {(FORK_OPEN, PATH_OPEN), (PATH_CLOSE, PATH_OPEN), (PATH_CLOSE, FORK_CLOSE)}
"""Pairs of tags with nothing between them."""
