"""The scanner: a stack machine that finds forks, paths, summaries and defects in a sequence of tags and plain text.

It reads characters and token ids alike, because `parser` turns both into symbols. It never raises: whatever breaks the
format becomes a `Defect` with its place. An unexpected tag is text, and an element that is never closed ends where its
parent ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from parallel_r1.answers.syntax import (
    FORK_CLOSE,
    FORK_OPEN,
    PATH_CLOSE,
    PATH_OPEN,
    SUMMARY_CLOSE,
    SUMMARY_GAP,
    SUMMARY_OPEN,
    holds_gap,
)
from parallel_r1.answers.trace import TRUNK, Address, Defect

DEEPEST = 32
"""Forks nest no deeper: an address is as long as it is deep, and a hostile text could nest by the thousand."""


class Symbol(NamedTuple):
    """What the scanner reads in one step: a tag, or a run of other text.

    Attributes:
        tag: the tag; None for other text.
        at: its place, a character of the text or a token of the answer.
        blank: whether it is white space only.
        gap: whether it is white space that may stand between a fork and its summary.
        ends: whether it is the end of text.
    """

    tag: str | None
    at: int
    blank: bool = False
    gap: bool = False
    ends: bool = False


@dataclass
class _Element:
    """An open fork, path or summary, or the whole answer."""

    kind: Literal["root", "fork", "path", "summary"]
    at: int
    address: Address
    fork: int = -1
    paths: int = 0
    full_paths: int = 0
    has_text: bool = False
    awaiting_summary: int | None = None  # place of the `</Parallel>` whose summary has not come yet
    gap_seen: bool = False
    reported: set[str] = field(default_factory=set)  # kinds of defects since the last path of this fork


@dataclass
class Structure:
    """The structure of an answer.

    Attributes:
        addresses: address of every symbol; `parse_ids` expands it to every token.
        given: whether the runtime writes it, by symbol or token likewise.
        defects: where the answer breaks the format, in order of place.
        fork_at: place of every `<Parallel>` that opens a fork.
        paths: number of paths of every fork.
    """

    addresses: list[Address] = field(default_factory=list)
    given: list[bool] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    fork_at: list[int] = field(default_factory=list)
    paths: list[int] = field(default_factory=list)


class _Scanner:
    """One scan: the open elements as a stack, and the structure so far."""

    def __init__(self) -> None:
        self.out = Structure()
        self.top = _Element("root", 0, TRUNK)
        self.below: list[_Element] = []

    def push(self, element: _Element) -> None:
        self.below.append(self.top)
        self.top = element

    def pop(self) -> _Element:
        element, self.top = self.top, self.below.pop()
        return element

    def defect(self, kind: str, at: int, message: str) -> None:
        self.out.defects.append(Defect(kind, at, message))

    def emit(self, address: Address, given: bool = False) -> None:
        self.out.addresses.append(address)
        self.out.given.append(given)

    def read(self, symbol: Symbol) -> None:
        if symbol.tag is None:
            self.text(symbol)
            return
        if symbol.tag != SUMMARY_OPEN:
            self.missing_summary()
        _READERS[symbol.tag](self, symbol)

    def text(self, symbol: Symbol) -> None:
        top = self.top
        if top.awaiting_summary is not None and symbol.blank:
            top.gap_seen |= symbol.gap
            self.emit(top.address, given=True)
            return
        self.missing_summary()
        if symbol.ends and top.kind != "root":
            self.defect("end-inside", symbol.at, f"the text ends inside an open {top.kind}")
        if top.kind == "fork":
            kind = "space-between-tags" if symbol.blank else "text-between-paths"
            if kind not in top.reported:  # once between two paths, however many symbols stand there
                top.reported.add(kind)
                self.defect(kind, symbol.at, "only paths may stand inside a fork")
        top.has_text |= not symbol.blank
        self.emit(top.address)

    def stray(self, symbol: Symbol, why: str) -> None:
        self.defect("stray-tag", symbol.at, f"{symbol.tag} {why}")
        self.top.has_text = True
        self.emit(self.top.address)

    def fork_open(self, symbol: Symbol) -> None:
        if self.top.kind not in ("root", "path"):
            self.stray(symbol, f"may not open inside a {self.top.kind}")
            return
        if len(self.top.address) >= DEEPEST:
            self.stray(symbol, f"may not nest deeper than {DEEPEST}")
            return
        self.top.has_text = True
        self.emit(self.top.address)
        self.push(_Element("fork", symbol.at, self.top.address, fork=len(self.out.fork_at)))
        self.out.fork_at.append(symbol.at)
        self.out.paths.append(0)

    def path_open(self, symbol: Symbol) -> None:
        if self.top.kind == "path":
            self.unclosed_path()
        if self.top.kind != "fork":
            self.stray(symbol, f"may only open inside {FORK_OPEN}")
            return
        fork = self.top
        fork.reported.clear()
        address = (*fork.address, (fork.fork, fork.paths))
        fork.paths += 1
        self.out.paths[fork.fork] = fork.paths
        self.push(_Element("path", symbol.at, address))
        self.emit(address, given=True)

    def path_close(self, symbol: Symbol) -> None:
        if self.top.kind != "path":
            self.stray(symbol, "closes no path")
            return
        self.emit(self.top.address)
        self.end_path()

    def end_path(self) -> None:
        path = self.pop()
        if path.has_text:
            self.top.full_paths += 1
        else:
            self.defect("empty-path", path.at, "a path needs text")

    def unclosed_path(self) -> None:
        self.defect("unclosed-path", self.top.at, f"{PATH_OPEN} is never closed")
        self.end_path()

    def fork_close(self, symbol: Symbol) -> None:
        if self.top.kind == "path":
            self.unclosed_path()
        if self.top.kind != "fork":
            self.stray(symbol, "closes no fork")
            return
        fork = self.pop()
        self.emit(fork.address, given=True)
        if fork.full_paths < 2:
            self.defect("too-few-paths", fork.at, f"a fork needs at least 2 paths with text, not {fork.full_paths}")
        self.top.awaiting_summary, self.top.gap_seen = symbol.at, holds_gap("")

    def missing_summary(self) -> None:
        if self.top.awaiting_summary is not None:
            self.defect("missing-summary", self.top.awaiting_summary, f"{SUMMARY_OPEN} must follow {FORK_CLOSE}")
            self.top.awaiting_summary = None

    def summary_open(self, symbol: Symbol) -> None:
        top = self.top
        if top.awaiting_summary is None:
            self.stray(symbol, f"must follow {FORK_CLOSE}, once")
            return
        if not top.gap_seen:
            self.defect(
                "missing-newline", symbol.at, f"{SUMMARY_GAP!r} must stand between {FORK_CLOSE} and {SUMMARY_OPEN}"
            )
        top.awaiting_summary = None
        self.emit(top.address, given=True)
        self.push(_Element("summary", symbol.at, top.address))

    def summary_close(self, symbol: Symbol) -> None:
        if self.top.kind != "summary":
            self.stray(symbol, "closes no summary")
            return
        summary = self.pop()
        self.emit(summary.address)
        if not summary.has_text:
            self.defect("empty-summary", summary.at, "a summary needs text")

    def finish(self) -> Structure:
        while True:
            self.missing_summary()
            if self.top.kind == "root":
                break
            if self.top.kind == "path":
                self.unclosed_path()
                continue
            self.defect(f"unclosed-{self.top.kind}", self.top.at, f"the {self.top.kind} is never closed")
            self.pop()
        self.out.defects.sort(key=lambda defect: defect.at)
        return self.out


_READERS: dict[str, Callable[[_Scanner, Symbol], None]] = {
    FORK_OPEN: _Scanner.fork_open,
    FORK_CLOSE: _Scanner.fork_close,
    PATH_OPEN: _Scanner.path_open,
    PATH_CLOSE: _Scanner.path_close,
    SUMMARY_OPEN: _Scanner.summary_open,
    SUMMARY_CLOSE: _Scanner.summary_close,
}


def scan(symbols: Iterable[Symbol]) -> Structure:
    """Scan a sequence of symbols. `addresses` and `given` of the result have one entry per symbol."""
    scanner = _Scanner()
    for symbol in symbols:
        scanner.read(symbol)
    return scanner.finish()
