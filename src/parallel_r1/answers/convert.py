"""Convert answers between schemas, and repair layout that is nearly right.

A text is read into parts (plain text and forks), which any schema can write. Where a schema lacks something, it is kept
in another form: the plan of a fork becomes numbered lines of the trunk before it, and such lines become a plan again; a
fork without a plan gets the first sentences of its paths where a schema requires one. Where a schema has no summary,
the first paragraph after a fork stands for it. Numbers of paths are left out where the schema has none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate

from parallel_r1.answers.parser import defects_of, parse_text
from parallel_r1.answers.schemas import DEFAULT, ITEM, NUMBER, Pair, Schema
from parallel_r1.answers.syntax import FINAL_ANSWER


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
LOSES = {"foreign-tag", "empty-plan", "plan-mismatch", "count-mismatch"}
"""Defects of an answer whose conversion would lose or make up a part of it."""


def convert(text: str, source: Schema, target: Schema, *, bare: bool = False, counted: bool = False) -> str:
    """Convert an answer from one schema to another.

    Args:
        bare: whether the items of a plan that is made up are only numbers, and say nothing of what the paths say.
        counted: whether forks without a plan begin with the number of their paths. It is left out otherwise.

    Raises:
        ValueError: the text breaks its schema in more than white space, or has tags of another one; names the place.
    """
    for defect in defects_of(text, source):
        if defect.kind in LOSES:
            raise ValueError(f"{defect.message} (at character {defect.at})")
    if strange := set(target.tags) - set(source.tags):
        for tag in strange:
            if (at := text.find(tag)) >= 0:
                raise ValueError(f"{tag} at character {at} is a tag of {target.name}, not of {source.name}")
    reader = _Reader(text, source)
    parts = reader.parts()
    if reader.tag is not None:
        raise ValueError(f"{reader.tag} at character {reader.at} closes nothing")
    return _Writer(target, bare=bare, counted=counted).text(parts)


class _Reader:
    """Recursive-descent parser of one format; reads from one tag to the next."""

    def __init__(self, text: str, schema: Schema) -> None:
        self.schema = schema
        # Plain text stands at even places, tags at odd ones.
        self.words = schema.pattern.split(text)
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
        if not schema.plan and self.words[self.next].isdecimal():
            self.plain()  # the number of paths
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
        assert self.schema.item
        self.take(self.schema.plan[0])
        goal, outlines = [self.plain()], list[str]()
        while self.tag == self.schema.item[0]:
            outlines.append(_without_number(self.item(), len(outlines) + 1))
            goal.append(self.plain())
        self.take(self.schema.plan[1])
        return " ".join(" ".join(goal).split()), tuple(outlines)

    def item(self) -> str:
        """Take an item of a plan. Its closing tag may be missing before the next item or the end of the plan."""
        assert self.schema.plan
        assert self.schema.item
        self.take(self.schema.item[0])
        text = self.plain().strip()
        if self.tag not in (self.schema.item[0], self.schema.plan[1]):
            self.take(self.schema.item[1])
        return text

    def path(self, number: int) -> Parts:
        self.take(self.schema.path[0])
        parts = list(self.parts())
        self.take(self.schema.path[1])
        if parts and isinstance(parts[0], str):
            parts[0] = parts[0].lstrip()
            if NUMBER in self.schema.head or ITEM in self.schema.head:
                parts[0] = _without_number(parts[0], number)
        if parts and isinstance(parts[-1], str):
            parts[-1] = parts[-1].rstrip()
        return tuple(part for part in parts if part)


def _without_number(text: str, number: int) -> str:
    return re.sub(rf"^{number}(:\s*|$)", "", text)


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

    def __init__(self, schema: Schema, *, bare: bool, counted: bool) -> None:
        self.schema = schema
        self.bare = bare
        self.counted = counted

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
        schema, paths = self.schema, [self.text(path) for path in fork.paths]
        if schema.head:  # a path may have written its number itself
            paths = [_without_number(path, number) for number, path in enumerate(paths, 1)]
        space = " " if schema.head and not schema.head[-1].isspace() else ""
        numbered = [f"{number}: {outline}" if outline else f"{number}" for number, outline in enumerate(outlines, 1)]
        summary = "\n" + fork.summary if fork.summary and schema.summary is None else fork.summary
        paths = [space + path for path in paths]
        return before + schema.write(paths, summary, numbered, fork.goal, counted=self.counted)

    def plan(self, before: str, fork: Fork) -> tuple[str, list[str]]:
        """The text before a fork, with a plan taken out of it or put into it, and the outlines of the paths."""
        outlines, invented = list(fork.outlines), ["" if self.bare else _first_words(path) for path in fork.paths]
        if self.schema.plan is None:
            if outlines == invented or not any(outlines):
                outlines = []
            lines = [fork.goal] * bool(fork.goal) + [f"{n}: {outline}" for n, outline in enumerate(outlines, 1)]
            if lines:
                before = "\n".join([*([before.rstrip()] if before.strip() else []), *lines]) + "\n"
        elif not outlines:
            before, outlines = _lines_of_plan(before, len(fork.paths))
            outlines = outlines or invented
        return before, outlines


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


def repair(text: str, schema: Schema = DEFAULT) -> tuple[str, list[str]]:
    """Correct the layout of an answer; no word is touched.

    Returns:
        The text, and the kinds of changes: `space-between-tags` (white space inside a fork but outside its paths was
        removed), `break-before-summary` (the white space before a summary became what the schema has there) and
        `unclosed-summary` (a summary was closed at the end of the text, or before its final answer).
    """
    cut = [(words, words if number % 2 else None) for number, words in enumerate(schema.pattern.split(text)) if words]
    fork, path, summary_tags = schema.fork or schema.path, schema.path, schema.summary or schema.path
    opening, closing = fork[1], summary_tags[0]
    tight = {(fork[0], path[0]), (path[1], path[0]), (path[1], fork[1])} if not schema.before_path else set()
    changes: dict[str, None] = {}
    out = ""
    for number, (words, tag) in enumerate(cut):
        before = cut[number - 1][1] if number else None
        after = cut[number + 1][1] if number + 1 < len(cut) else None
        if tag is None and not words.strip() and (before, after) in tight:
            changes["space-between-tags"] = None
            continue
        joins = schema.apart and tag is None and not words.strip() and (before, after) == (opening, closing)
        if joins and words != schema.gap:
            words = schema.gap
            changes["break-before-summary"] = None
        if schema.gap and tag == closing and before == opening:
            out += schema.gap
            changes["break-before-summary"] = None
        out += words
    defects = parse_text(out, schema).defects
    if schema.summary and any(defect.kind == "unclosed-summary" for defect in defects):
        before, mark, answer = out.partition(FINAL_ANSWER)  # the final answer belongs to the trunk
        for text, rest in ((before, mark + answer), (out, "")):
            summary = text.rstrip()
            closed = summary + schema.summary[1] + text[len(summary) :] * bool(rest) + rest
            if len(parse_text(closed, schema).defects) < len(defects):
                return closed, [*changes, "unclosed-summary"]
    return out, list(changes)
