"""An answer as a tree of texts, read from its spans: what the terminal and the HTML view both draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from parallel_r1.answers.trace import TRUNK, Address, Trace


@dataclass(frozen=True)
class Words:
    """A piece of text.

    Attributes:
        text: one tag, or text without tags.
        sampled: False where the runtime gave it.
        within: "summary" or "plan" if it lies in one, whose tags included.
        is_tag: whether it is a tag, structural or stray.
    """

    text: str
    sampled: bool
    within: Literal["summary", "plan"] | None
    is_tag: bool


@dataclass(frozen=True)
class Fork:
    """A fork; `paths` holds the content of every path, in order."""

    number: int
    paths: list[list[Words | Fork]] = field(default_factory=list)


Content = list[Words | Fork]
"""Content of the trunk or of a path, in reading order."""


def words_of(trace: Trace, texts: Sequence[str]) -> Iterator[tuple[int, Words]]:
    """The pieces of every span's text in reading order, with the index of the span. Tags only cut texts.

    Args:
        texts: text of every span; see `Trace.texts`.
    """
    within: dict[Address, Literal["summary", "plan"]] = {}
    schema = trace.schema
    for index, (span, text) in enumerate(zip(trace.spans, texts, strict=True)):
        for part in filter(None, schema.pattern.split(text)):
            role, opens = schema.roles.get(part, (None, False))
            if role in ("summary", "plan") and opens:
                within[span.address] = role
            yield index, Words(part, span.sampled, within.get(span.address), role is not None)
            if role in ("summary", "plan") and not opens:
                within.pop(span.address, None)


def outline(trace: Trace, texts: Sequence[str]) -> Content:
    """The answer as a tree. Addresses of spans decide what is a path; tags only cut texts.

    Args:
        texts: text of every span; see `Trace.texts`.
    """
    contents: dict[Address, Content] = {TRUNK: []}
    forks: dict[int, Fork] = {}
    by_span: list[list[Words]] = [[] for _ in trace.spans]
    for index, words in words_of(trace, texts):
        by_span[index].append(words)
    for span, parts in zip(trace.spans, by_span, strict=True):
        _content(span.address, contents, forks).extend(parts)
    return contents[TRUNK]


def _content(address: Address, contents: dict[Address, Content], forks: dict[int, Fork]) -> Content:
    """The content at an address; a new fork and a new path are added where they open."""
    if address not in contents:
        outer, (number, _) = _content(address[:-1], contents, forks), address[-1]
        if number not in forks:
            forks[number] = Fork(number)
            outer.append(forks[number])
        contents[address] = []
        forks[number].paths.append(contents[address])
    return contents[address]
