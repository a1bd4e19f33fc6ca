"""Answers as other projects write them, read into ours and back; and repair of what is nearly ours.

A format is a row of a table (`SCHEMAS`): which tags stand around a fork, its plan, its paths and what joins them. Text
that is read becomes plain parts and forks, which any format can write. What only one side has finds a place on the
other: the plan of a fork becomes numbered lines of the trunk before it, and such lines become a plan again; a fork
without a plan gets the first sentences of its paths where a format asks for one. Where a format has no summary, the
first paragraph after a fork stands for it. Numbers in front of paths are left out in ours, where the paths of a fork
have no order.

Sources: ThreadWeaver (arXiv 2512.07843), Multiverse (arXiv 2506.09991), NPR (arXiv 2512.07461).
"""

from __future__ import annotations

import re
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
    SUMMARY_OPEN,
)

Pair = tuple[str, str]


@dataclass(frozen=True)
class Schema:
    """The tags of a format, each an opening and a closing one; None for what it does not have.

    Attributes:
        fork: around everything.
        plan: around the outlines of the paths.
        outline: what a path will do.
        path: a path.
        summary: what joins the paths.
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
        """All of its tags."""
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
    """A fork as every format can write it.

    Attributes:
        goal: what its plan says besides the outlines.
        outlines: of its paths; none, or one for each.
        paths: their texts, which may fork again.
        summary: None if there is none.
    """

    goal: str
    outlines: tuple[str, ...]
    paths: tuple[Parts, ...]
    summary: str | None


Parts = tuple[str | Fork, ...]


def convert(text: str, source: str, target: str) -> str:
    """An answer in another format.

    Args:
        source, target: names of `SCHEMAS`.

    Raises:
        ValueError: the text breaks its format; says what was expected at which character.
    """
    reader = _Reader(text, SCHEMAS[source])
    parts = reader.parts()
    if reader.tag is not None:
        raise ValueError(f"{reader.tag} at character {reader.at} closes nothing")
    return _Writer(SCHEMAS[target]).text(parts)


class _Reader:
    """Reads a text from one tag to the next."""

    def __init__(self, text: str, schema: Schema) -> None:
        self.schema = schema
        # Plain text stands at even places, tags at odd ones.
        self.words = re.split("(" + "|".join(map(re.escape, schema.tags)) + ")", text)
        self.starts = list(accumulate(map(len, self.words), initial=0))
        self.next = 0

    @property
    def tag(self) -> str | None:
        """The tag after the plain text that is next; None at the end."""
        return self.words[self.next + 1] if self.next + 1 < len(self.words) else None

    @property
    def at(self) -> int:
        """The character at which it stands."""
        return self.starts[self.next + 1]

    def plain(self) -> str:
        """The plain text that is next; it is read once."""
        text, self.words[self.next] = self.words[self.next], ""
        return text

    def take(self, tag: str) -> None:
        """Read a tag with nothing but white space before it."""
        if self.plain().strip():
            raise ValueError(
                f"text that belongs to nothing ends at character {self.at}, before {self.tag or 'the end'}"
            )
        if self.tag != tag:
            raise ValueError(f"expected {tag} at character {self.at}, found {self.tag or 'the end'}")
        self.next += 2

    def inner(self, pair: Pair) -> str:
        """The plain text between two tags."""
        self.take(pair[0])
        text = self.plain().strip()
        self.take(pair[1])
        return text

    def parts(self) -> Parts:
        """Plain text and forks, up to a tag that opens no fork."""
        opens = {pair[0] for pair in [self.schema.fork or self.schema.plan] if pair}
        opens |= set() if self.schema.fork else {self.schema.path[0]}
        found: list[str | Fork] = [self.plain()]
        while self.tag in opens:
            found += [self.fork(), self.plain()]
        return _with_summaries(found) if self.schema.summary is None else tuple(part for part in found if part)

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
        """What is in a summary; None if none comes next."""
        pair = self.schema.summary
        return self.inner(pair) if pair and self.tag == pair[0] else None

    def plan(self) -> tuple[str, tuple[str, ...]]:
        """What a plan says besides its outlines, and the outlines."""
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
        found = list(self.parts())
        self.take(self.schema.path[1])
        if found and isinstance(found[0], str):
            found[0] = found[0].lstrip()
            if self.schema.numbered:
                found[0] = _without_number(found[0], number)
        if found and isinstance(found[-1], str):
            found[-1] = found[-1].rstrip()
        return tuple(part for part in found if part)


def _without_number(text: str, number: int) -> str:
    return re.sub(rf"^{number}:\s*", "", text)


def _with_summaries(parts: list[str | Fork]) -> Parts:
    """Forks without a summary of their own get the first paragraph after them."""
    found: list[str | Fork] = []
    for part in parts:
        before = found[-1] if found else None
        if isinstance(part, str) and isinstance(before, Fork) and part.strip():
            first, gap, rest = part.lstrip("\n").partition("\n\n")
            found[-1] = Fork(before.goal, before.outlines, before.paths, first.strip())
            part = gap + rest
        if part:
            found.append(part)
    return tuple(found)


class _Writer:
    """Writes parts in a format."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    def text(self, parts: Parts) -> str:
        text = ""
        for part in parts:
            if isinstance(part, Fork):
                text = self.fork(text, part)
            elif text and self.schema.summary is None:
                text += "\n\n" + part.lstrip("\n")  # the blank line says where the summary ends
            else:
                text += part
        return text

    def fork(self, before: str, fork: Fork) -> str:
        """A text and the fork after it, whose plan the text may hold or get."""
        schema = self.schema
        outlines, invented = list(fork.outlines), [_first_words(path) for path in fork.paths]
        if schema.plan is None:
            if outlines == invented:
                outlines = []
            lines = [fork.goal] * bool(fork.goal) + [f"{n}: {outline}" for n, outline in enumerate(outlines, 1)]
            if lines:
                before = "\n".join([*([before.rstrip()] if before.strip() else []), *lines]) + "\n"
        elif not outlines:
            before, outlines = _lines_of_plan(before, len(fork.paths))
            outlines = outlines or invented
        pieces = []
        if schema.plan and schema.outline:
            start, end = schema.outline
            listed = [f"{start}{number}: {outline}{end}" for number, outline in enumerate(outlines, 1)]
            pieces = [schema.plan[0], *([fork.goal] if fork.goal else []), *listed, schema.plan[1]]
        for number, path in enumerate(fork.paths, 1):
            mark = f"{number}: " if schema.numbered else ""
            pieces.append(f"{schema.path[0]}{mark}{self.text(path)}{schema.path[1]}")
        summary = [] if fork.summary is None else [fork.summary.join(schema.summary or ("", ""))]
        if schema.inside:
            pieces, summary = pieces + summary, []
        if schema.fork:
            pieces = [schema.fork[0], *pieces, schema.fork[1]]
        return before + "\n".join([("\n" if schema.numbered else "").join(pieces), *summary])


def _lines_of_plan(before: str, count: int) -> tuple[str, list[str]]:
    """A text without the numbered lines at its end, and what they say; nothing if they are not one for each path."""
    lines = before.rstrip().split("\n")
    found = [re.fullmatch(rf"{number}: (.*)", line) for number, line in enumerate(lines[-count:], 1)]
    if len(found) < count or not all(found):
        return before, []
    kept = "".join(line + "\n" for line in lines[:-count])
    return kept, [match[1] for match in found if match]


def _first_words(path: Parts) -> str:
    """What stands for the outline of a path that has none: its first sentence, or a line's worth of it."""
    text = path[0] if path and isinstance(path[0], str) else ""
    sentence = re.split(r"(?<=[.?!])\s|\n", text.strip(), maxsplit=1)[0].strip()
    return sentence if len(sentence) <= 100 else sentence[:100].rsplit(" ", 1)[0] + " .."


def repair(text: str) -> tuple[str, list[str]]:
    """An answer with what is wrong only in its layout put right, and the kinds of changes made: `space-between-tags`
    (white space inside a fork but outside its paths), `break-before-summary` (anything but one line break there) and
    `unclosed-summary` (at the end of the text, or before its final answer). No word is touched."""
    pieces = [(words, piece.tag) for words, piece in text_pieces(text)]
    changes: dict[str, None] = {}
    out = ""
    for number, (words, tag) in enumerate(pieces):
        before = pieces[number - 1][1] if number else None
        after = pieces[number + 1][1] if number + 1 < len(pieces) else None
        if tag is None and not words.strip() and (before, after) in _TIGHT:
            changes["space-between-tags"] = None
            continue
        if tag is None and not words.strip() and (before, after) == (FORK_CLOSE, SUMMARY_OPEN) and words != "\n":
            words = "\n"
            changes["break-before-summary"] = None
        if tag == SUMMARY_OPEN and before == FORK_CLOSE:
            out += "\n"
            changes["break-before-summary"] = None
        out += words
    defects = parse_text(out).defects
    if any(defect.kind == "unclosed-summary" for defect in defects):
        before, mark, answer = out.partition(FINAL_ANSWER)  # which belongs to the trunk
        for text, rest in ((before, mark + answer), (out, "")):
            said = text.rstrip()
            closed = said + SUMMARY_CLOSE + text[len(said) :] * bool(rest) + rest
            if len(parse_text(closed).defects) < len(defects):
                return closed, [*changes, "unclosed-summary"]
    return out, list(changes)


_TIGHT = {(FORK_OPEN, PATH_OPEN), (PATH_CLOSE, PATH_OPEN), (PATH_CLOSE, FORK_CLOSE)}
