"""What the scanner reads, symbols; what it keeps, elements; and what it finds, the structure of an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from parallel_r1.answers.trace import Address, Defect

Content = str | tuple[int, ...]
"""A text, or the ids of its tokens."""
Head = Callable[[int, Content], Content]
"""The start of a path as the runtime writes it, from its number and the content of its item."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """What the scanner reads in one step: a tag, or a run of other text.

    Attributes:
        tag: the tag; None for other text.
        at: its place, a character of the text or a token of the answer.
        content: its text, or its ids.
        blank: whether it is white space only.
        gap: whether it is white space that may stand for what the runtime writes between tags.
        ends: whether it is the end of text.
        count: the number that it is, if it may be a number of paths.
    """

    tag: str | None
    at: int
    content: Content
    blank: bool = False
    gap: bool = False
    ends: bool = False
    count: int | None = None


Run = tuple[Address, bool, int]
"""An address, whether the runtime writes it, and for how many characters or tokens."""


@dataclass
class Element:
    """An open fork, plan, item, path or summary, or the whole answer."""

    kind: Literal["root", "fork", "plan", "item", "path", "summary"]
    at: int
    address: Address
    fork: int = -1
    paths: int = 0
    full_paths: int = 0
    has_text: bool = False
    awaiting_summary: int | None = None  # place of the end of a fork whose summary has not come yet
    gap_seen: bool = False
    reported: set[str] = field(default_factory=set)  # kinds of defects since the last path of this fork
    items: list[Content] | None = None  # of the plan of this fork, once it has been read
    count: int | None = None  # of paths, as the policy wrote it
    done: bool = False  # whether the summary inside this fork has been read


@dataclass
class Structure:
    """The structure of an answer.

    Attributes:
        runs: the answer in reading order, by address and by whether the runtime writes it.
        defects: where the answer breaks the format, in order of place.
        fork_at: place of every tag that opens a fork.
        paths: number of paths of every fork.
        items: number of items of the plan of every fork; None for a fork without one.
    """

    runs: list[Run] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    fork_at: list[int] = field(default_factory=list)
    paths: list[int] = field(default_factory=list)
    items: list[int | None] = field(default_factory=list)

    @property
    def addresses(self) -> list[Address]:
        """The address of every character or token."""
        return [address for address, _, length in self.runs for _ in range(length)]

    @property
    def given(self) -> list[bool]:
        """Whether the runtime writes it, for every character or token."""
        return [given for _, given, length in self.runs for _ in range(length)]
