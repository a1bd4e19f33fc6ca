"""One answer as spans in reading order: tags, addresses, parsing, rendering and defects.

A *trace* is a tree written as text. Its trunk may open a fork; a fork holds paths; a summary in the trunk follows the
fork. Every token has an *address*, the (fork, path) pairs that it lies in, outermost first; the trunk has the empty
address. Forks are numbered in reading order over the whole answer, the paths of a fork from 0.

One scanner reads both texts (`parse_text`) and token ids (`parse`), so both agree on what a fork is. It never raises:
whatever is wrong becomes a `Defect` with its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, NamedTuple

from parallel_r1.answers.syntax import (
    _TAG,
    FORK_CLOSE,
    FORK_OPEN,
    PATH_CLOSE,
    PATH_OPEN,
    SUMMARY_CLOSE,
    SUMMARY_OPEN,
    TAGS,
    Tags,
)
from parallel_r1.answers.trace import TRUNK, Address, Defect, Sampler, Span, Trace

DEEPEST = 32
"""Forks nest no deeper: an address is as long as it is deep, and a hostile text could nest by the thousand."""


@dataclass
class _Frame:
    """An open element while scanning."""

    kind: Literal["root", "fork", "path", "summary"]
    at: int
    address: Address
    fork: int = -1
    paths: int = 0
    full_paths: int = 0
    has_text: bool = False
    awaiting_summary: int | None = None  # where the fork that still needs its summary closed
    newline_seen: bool = False
    gap: set[str] = field(default_factory=set)  # defects reported since the last path of this fork


class Piece(NamedTuple):
    """A unit that the scanner reads: a tag, or a run of other text."""

    tag: str | None
    at: int
    blank: bool = False
    newline: bool = False
    ends: bool = False


@dataclass
class Structure:
    """What the scanner found: for every piece its address and whether the runtime writes it; defects; forks."""

    addresses: list[Address] = field(default_factory=list)
    given: list[bool] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    fork_at: list[int] = field(default_factory=list)
    paths: list[int] = field(default_factory=list)


class _Scanner:
    """A stack machine that recovers from every error: an unexpected tag is text, an unclosed element is closed."""

    def __init__(self) -> None:
        self.out = Structure()
        self.top = _Frame("root", 0, TRUNK)
        self.below: list[_Frame] = []

    def push(self, frame: _Frame) -> None:
        self.below.append(self.top)
        self.top = frame

    def pop(self) -> _Frame:
        frame, self.top = self.top, self.below.pop()
        return frame

    def defect(self, kind: str, at: int, message: str) -> None:
        self.out.defects.append(Defect(kind, at, message))

    def emit(self, address: Address, given: bool = False) -> None:
        self.out.addresses.append(address)
        self.out.given.append(given)

    def read(self, piece: Piece) -> None:
        if piece.tag is None:
            self.text(piece)
            return
        if piece.tag != SUMMARY_OPEN:
            self.missing_summary()
        _READERS[piece.tag](self, piece)

    def text(self, piece: Piece) -> None:
        top = self.top
        if top.awaiting_summary is not None and piece.blank:
            top.newline_seen |= piece.newline
            self.emit(top.address, given=True)
            return
        self.missing_summary()
        if piece.ends and top.kind != "root":
            self.defect("end-inside", piece.at, f"the text ends inside an open {top.kind}")
        if top.kind == "fork":
            kind = "space-between-tags" if piece.blank else "text-between-paths"
            if kind not in top.gap:  # one report per gap, however many tokens fill it
                top.gap.add(kind)
                self.defect(kind, piece.at, "only paths may stand inside a fork")
        top.has_text |= not piece.blank
        self.emit(top.address)

    def stray(self, piece: Piece, why: str) -> None:
        self.defect("stray-tag", piece.at, f"{piece.tag} {why}")
        self.top.has_text = True
        self.emit(self.top.address)

    def fork_open(self, piece: Piece) -> None:
        if self.top.kind not in ("root", "path"):
            self.stray(piece, f"may not open inside a {self.top.kind}")
            return
        if len(self.top.address) >= DEEPEST:
            self.stray(piece, f"may not nest deeper than {DEEPEST}")
            return
        self.top.has_text = True
        self.emit(self.top.address)
        self.push(_Frame("fork", piece.at, self.top.address, fork=len(self.out.fork_at)))
        self.out.fork_at.append(piece.at)
        self.out.paths.append(0)

    def path_open(self, piece: Piece) -> None:
        if self.top.kind == "path":
            self.unclosed_path()
        if self.top.kind != "fork":
            self.stray(piece, f"may only open inside {FORK_OPEN}")
            return
        fork = self.top
        fork.gap.clear()
        address = (*fork.address, (fork.fork, fork.paths))
        fork.paths += 1
        self.out.paths[fork.fork] = fork.paths
        self.push(_Frame("path", piece.at, address))
        self.emit(address, given=True)

    def path_close(self, piece: Piece) -> None:
        if self.top.kind != "path":
            self.stray(piece, "closes no path")
            return
        self.emit(self.top.address)
        self.end_path()

    def end_path(self) -> None:
        path = self.pop()
        if path.has_text:
            self.top.full_paths += 1
        else:
            self.defect("empty-path", path.at, "a path must say something")

    def unclosed_path(self) -> None:
        self.defect("unclosed-path", self.top.at, f"{PATH_OPEN} is never closed")
        self.end_path()

    def fork_close(self, piece: Piece) -> None:
        if self.top.kind == "path":
            self.unclosed_path()
        if self.top.kind != "fork":
            self.stray(piece, "closes no fork")
            return
        fork = self.pop()
        self.emit(fork.address, given=True)
        if fork.full_paths < 2:
            self.defect("too-few-paths", fork.at, f"a fork needs at least 2 paths with text, found {fork.full_paths}")
        self.top.awaiting_summary, self.top.newline_seen = piece.at, False

    def missing_summary(self) -> None:
        if self.top.awaiting_summary is not None:
            self.defect("missing-summary", self.top.awaiting_summary, f"{SUMMARY_OPEN} must follow {FORK_CLOSE}")
            self.top.awaiting_summary = None

    def summary_open(self, piece: Piece) -> None:
        top = self.top
        if top.awaiting_summary is None:
            self.stray(piece, f"must follow {FORK_CLOSE}, once")
            return
        if not top.newline_seen:
            self.defect("missing-newline", piece.at, f"a line break must stand between {FORK_CLOSE} and {SUMMARY_OPEN}")
        top.awaiting_summary = None
        self.emit(top.address, given=True)
        self.push(_Frame("summary", piece.at, top.address))

    def summary_close(self, piece: Piece) -> None:
        if self.top.kind != "summary":
            self.stray(piece, "closes no summary")
            return
        summary = self.pop()
        self.emit(summary.address)
        if not summary.has_text:
            self.defect("empty-summary", summary.at, "a summary must say something")

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


_READERS: dict[str, Callable[[_Scanner, Piece], None]] = {
    FORK_OPEN: _Scanner.fork_open,
    FORK_CLOSE: _Scanner.fork_close,
    PATH_OPEN: _Scanner.path_open,
    PATH_CLOSE: _Scanner.path_close,
    SUMMARY_OPEN: _Scanner.summary_open,
    SUMMARY_CLOSE: _Scanner.summary_close,
}


def scan(pieces: Iterable[Piece]) -> Structure:
    """Find the structure of a sequence of pieces. Never raises; the lists of the result have one entry per piece."""
    scanner = _Scanner()
    for piece in pieces:
        scanner.read(piece)
    return scanner.finish()


def text_pieces(text: str) -> list[tuple[str, Piece]]:
    """A text cut at its tags, each part with what the scanner reads of it."""
    pieces, at = [], 0
    for number, part in enumerate(_TAG.split(text)):
        if number % 2:
            pieces.append((part, Piece(part, at)))
        elif part:
            blank = part.isspace()
            pieces.append((part, Piece(None, at, blank, blank and "\n" in part)))
        at += len(part)
    return pieces


def parse_text(text: str) -> Structure:
    """Find the structure of a text. Places are characters of the text."""
    return scan(piece for _, piece in text_pieces(text))


def trunk(text: str) -> str:
    """What of a text lies outside every path: what a reader of the answer alone is told."""
    pieces = text_pieces(text)
    addresses = scan(piece for _, piece in pieces).addresses
    return "".join(words for (words, _), address in zip(pieces, addresses, strict=True) if address == TRUNK)


def parse_ids(token_ids: Sequence[int], tags: Tags) -> Structure:
    """Find the structure of an answer's token ids. Places are tokens of the answer, and the lists of the result have
    one entry per token."""
    kinds: dict[int, str] = dict.fromkeys(tags.blank, "blank") | dict.fromkeys(tags.breaks, "break")
    kinds |= dict.fromkeys(tags.eos, "end") | {token: tag for tag, token in tags.ids.items()}
    pieces: list[Piece] = []
    lengths: list[int] = []
    at = 0
    for kind, run in groupby(token_ids, key=kinds.get):  # a run of plain text is one piece
        length = len(list(run))
        tag = kind if kind in TAGS else None
        each = 1 if tag else length
        for start in range(at, at + length, each):
            pieces.append(Piece(tag, start, kind in ("blank", "break"), kind == "break", kind == "end"))
            lengths.append(each)
        at += length
    found = scan(pieces)
    found.addresses = [address for address, n in zip(found.addresses, lengths, strict=True) for _ in range(n)]
    found.given = [given for given, n in zip(found.given, lengths, strict=True) for _ in range(n)]
    return found


def parse(
    token_ids: Sequence[int], tags: Tags, *, sampler: Sampler = "isolated", prompt_ids: Sequence[int] = ()
) -> Trace:
    """Read an answer as a trace. Never raises; `render` gives the same ids back.

    Args:
        token_ids: the answer, without the prompt.
        tags: the ids of the tags.
        sampler: who would write which tokens. Under `isolated` the runtime writes `<Path>`, `</Parallel>`, the line
            break and `<Summary>`, so these are given; under `sequential` the policy writes everything.
        prompt_ids: the prompt, kept as it is.
    """
    found = parse_ids(token_ids, tags)
    spans: list[Span] = []
    run: list[int] = []
    key: tuple[Address, bool] | None = None
    for token, address, given in zip(token_ids, found.addresses, found.given, strict=True):
        now = (address, sampler == "sequential" or not given)
        if now != key and key is not None:
            spans.append(Span(tuple(run), *key))
            run = []
        key = now
        run.append(token)
    if key is not None:
        spans.append(Span(tuple(run), *key))
    return Trace(tuple(prompt_ids), tuple(spans), sampler=sampler, defects=tuple(found.defects))
