"""The scanner: a stack machine that finds forks, plans, paths, summaries and defects in a sequence of tags and text.

It reads characters and token ids alike, because `parser` turns both into symbols, and every schema. It never raises:
whatever breaks the format becomes a `Defect` with its place. An unexpected tag is text, and an element that is never
closed ends where its parent ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from parallel_r1.answers.schemas import Role, Schema
from parallel_r1.answers.symbols import Content, Element, Head, Structure, Symbol
from parallel_r1.answers.trace import TRUNK, Address, Defect

DEEPEST = 32
"""Forks nest no deeper: an address is as long as it is deep, and a hostile text could nest by the thousand."""


class _Scanner:
    """One scan: the open elements as a stack, and the structure so far."""

    def __init__(self, schema: Schema, head: Head) -> None:
        self.schema, self.head = schema, head
        self.out = Structure()
        self.top = Element("root", 0, TRUNK)
        self.below: list[Element] = []
        self.blanks: list[Symbol] = []  # white space inside a fork: what follows says what it is
        self.expected: Content = ()  # what is still to come of the head of a path
        self.headed: list[Symbol] = []  # what has come of it

    def push(self, element: Element) -> None:
        self.below.append(self.top)
        self.top = element

    def pop(self) -> Element:
        element, self.top = self.top, self.below.pop()
        return element

    def defect(self, kind: str, at: int, message: str) -> None:
        self.out.defects.append(Defect(kind, at, message))

    def emit(self, symbol: Symbol, address: Address, given: bool = False) -> None:
        self.out.runs.append((address, given, len(symbol.content)))

    def read(self, symbol: Symbol) -> None:
        if symbol.tag is None:
            self.text(symbol)
            return
        role, opens = self.schema.roles[symbol.tag]
        if self.expected:
            self.wrong_head(symbol.at)
        if self.ends_fork(role, opens):
            self.end_fork(symbol.at)
        if (role, opens) != ("summary", True):
            self.missing_summary()
        if (role, opens) not in _AFTER_BLANK:
            self.stray_blanks()
        _READERS[role, opens](self, symbol)
        self.stray_blanks()

    # Text.

    def text(self, symbol: Symbol) -> None:
        if self.expected:
            rest = self.take_head(symbol)
            if rest is None:
                return
            symbol = rest
        top = self.top
        if top.awaiting_summary is not None and symbol.blank:
            top.gap_seen |= symbol.gap
            self.emit(symbol, top.address, given=True)
            return
        if top.kind == "fork":
            if symbol.blank and (self.schema.before_path or (self.schema.plan and not top.paths)):
                self.blanks.append(symbol)
                return
            self.stray_blanks()
            if self.ends_fork(None, False):
                self.end_fork(symbol.at)
        self.missing_summary()
        top = self.top
        if symbol.ends and top.kind != "root":
            self.defect("end-inside", symbol.at, f"the text ends inside an open {top.kind}")
        if top.kind == "fork" and not self.is_count(symbol):
            kind = "space-between-tags" if symbol.blank else "text-between-paths"
            if kind not in top.reported:  # once between two paths, however many symbols stand there
                top.reported.add(kind)
                self.defect(kind, symbol.at, "only paths may stand inside a fork")
        top.has_text |= not symbol.blank
        if top.kind == "item":
            assert top.items is not None
            top.items.append(symbol.content)
        self.emit(symbol, top.address)

    def take_head(self, symbol: Symbol) -> Symbol | None:
        """Read the head of a path, and return what is left of a symbol behind it."""
        expected, content = self.expected, symbol.content
        size = min(len(expected), len(content))
        if content[:size] != expected[:size]:
            self.wrong_head(symbol.at)
            return symbol
        self.expected = expected[size:]
        self.headed.append(replace(symbol, content=content[:size]))
        if not self.expected:
            self.end_head(given=True)
        return replace(symbol, content=content[size:], at=symbol.at + size) if len(content) > size else None

    def wrong_head(self, at: int) -> None:
        self.defect("wrong-head", at, "the path does not begin with what the runtime writes there")
        self.expected = ()
        self.end_head(given=False)

    def end_head(self, given: bool) -> None:
        for symbol in self.headed:
            self.top.has_text |= not given and not symbol.blank
            self.emit(symbol, self.top.address, given)
        self.headed = []

    def is_count(self, symbol: Symbol) -> bool:
        """Whether a text in a fork is the number of its paths."""
        fork = self.top
        if symbol.count is None or fork.count is not None or fork.paths or self.schema.plan:
            return False
        fork.count = symbol.count
        return True

    def stray_blanks(self) -> None:
        """The white space that was held back, if any, stands where none may."""
        for blank in self.blanks:
            if self.top.kind == "fork" and "space-between-tags" not in self.top.reported:
                self.top.reported.add("space-between-tags")
                self.defect("space-between-tags", blank.at, "only paths may stand inside a fork")
            self.emit(blank, self.top.address)
        self.blanks = []

    def between(self, expected: str, at: int, address: Address) -> None:
        """White space that the runtime writes before a tag: what was held back."""
        if expected and not any(blank.gap for blank in self.blanks):
            self.defect("missing-newline", at, f"{expected!r} must stand here")
        for blank in self.blanks:
            self.emit(blank, address, given=True)
        self.blanks = []

    def stray(self, symbol: Symbol, why: str) -> None:
        self.stray_blanks()
        self.defect("stray-tag", symbol.at, f"{symbol.tag} {why}")
        self.top.has_text = True
        self.emit(symbol, self.top.address)

    # Forks and plans.

    def fork_open(self, symbol: Symbol) -> None:
        if self.may_fork(symbol):
            self.open_fork(symbol)

    def may_fork(self, symbol: Symbol) -> bool:
        if self.top.kind not in ("root", "path"):
            self.stray(symbol, f"may not open inside a {self.top.kind}")
        elif len(self.top.address) >= DEEPEST:
            self.stray(symbol, f"may not nest deeper than {DEEPEST}")
        elif self.top.address and not self.schema.nests:
            self.stray(symbol, "may not open inside a path")
        else:
            return True
        return False

    def open_fork(self, symbol: Symbol) -> None:
        self.top.has_text = True
        self.emit(symbol, self.top.address)
        self.push(Element("fork", symbol.at, self.top.address, fork=len(self.out.fork_at)))
        self.out.fork_at.append(symbol.at)
        self.out.paths.append(0)
        self.out.items.append(None)

    def plan_open(self, symbol: Symbol) -> None:
        if self.schema.fork is None:
            if not self.may_fork(symbol):
                return
            self.open_fork(symbol)
        elif self.top.kind != "fork" or self.top.paths or self.top.items is not None:
            self.stray(symbol, "may only open at the start of a fork")
            return
        else:
            for part in (*self.blanks, symbol):  # of a plan the policy writes white space too
                self.emit(part, self.top.address)
            self.blanks = []
        fork = self.top
        self.push(Element("plan", symbol.at, fork.address, items=[]))
        fork.items = self.top.items

    def item_open(self, symbol: Symbol) -> None:
        if self.top.kind == "item":
            self.end_item()
        if self.top.kind != "plan":
            self.stray(symbol, "may only open inside a plan")
            return
        self.emit(symbol, self.top.address)
        self.push(Element("item", symbol.at, self.top.address, items=[]))

    def item_close(self, symbol: Symbol) -> None:
        if self.top.kind != "item":
            self.stray(symbol, "closes no item")
            return
        self.emit(symbol, self.top.address)
        self.end_item()

    def end_item(self) -> None:
        item = self.pop()
        assert item.items is not None
        assert self.top.items is not None
        joined: Content = item.items[0] if item.items else ()
        for more in item.items[1:]:
            joined += more  # type: ignore[operator]
        self.top.items.append(joined)

    def plan_close(self, symbol: Symbol) -> None:
        if self.top.kind == "item":
            self.end_item()
        if self.top.kind != "plan":
            self.stray(symbol, "closes no plan")
            return
        plan = self.pop()
        self.emit(symbol, plan.address)
        assert plan.items is not None
        self.out.items[self.top.fork] = len(plan.items)
        if not plan.items:
            self.defect("empty-plan", plan.at, "a plan needs items")

    # Paths.

    def path_open(self, symbol: Symbol) -> None:
        if self.top.kind == "path":
            self.unclosed_path()
        if self.top.kind != "fork" or self.top.done:
            self.stray(symbol, "may only open inside a fork")
            return
        fork = self.top
        fork.reported.clear()
        if self.schema.plan and fork.items is None and not fork.paths:
            self.defect("missing-plan", symbol.at, f"{self.schema.plan[0]} must come before the paths of a fork")
        address = (*fork.address, (fork.fork, fork.paths))
        fork.paths += 1
        self.out.paths[fork.fork] = fork.paths
        self.between(self.schema.before_path, symbol.at, address)
        self.push(Element("path", symbol.at, address))
        self.emit(symbol, address, given=True)
        items = fork.items or []
        self.expected = self.head(fork.paths, items[fork.paths - 1] if fork.paths <= len(items) else ())

    def path_close(self, symbol: Symbol) -> None:
        if self.top.kind != "path":
            self.stray(symbol, "closes no path")
            return
        self.emit(symbol, self.top.address)
        self.end_path()

    def end_path(self) -> None:
        path = self.pop()
        if path.has_text:
            self.top.full_paths += 1
        else:
            self.defect("empty-path", path.at, "a path needs text")

    def unclosed_path(self) -> None:
        self.defect("unclosed-path", self.top.at, f"{self.schema.path[0]} is never closed")
        self.end_path()

    # What follows the paths.

    def ends_fork(self, role: Role | None, opens: bool) -> bool:
        """Whether a fork without a closing tag ends before this symbol: its paths have come, and no other follows."""
        top = self.top
        return top.kind == "fork" and self.schema.fork is None and top.paths > 0 and (role, opens) != ("path", True)

    def end_fork(self, at: int) -> None:
        """End a fork, and wait for its summary."""
        fork = self.pop()
        if fork.full_paths < 2:
            self.defect("too-few-paths", fork.at, f"a fork needs at least 2 paths with text, not {fork.full_paths}")
        if fork.count is not None and fork.count != fork.paths:
            self.defect("count-mismatch", fork.at, f"{fork.count} paths were announced, and {fork.paths} came")
        planned = self.out.items[fork.fork]
        if planned and planned != fork.paths:
            self.defect("plan-mismatch", fork.at, f"the plan has {planned} items, and {fork.paths} paths came")
        if self.schema.summary and not self.schema.inside:
            self.top.awaiting_summary, self.top.gap_seen = at, not self.schema.gap
        if self.schema.summary and self.schema.inside and not fork.done:
            self.defect("missing-summary", at, f"{self.schema.summary[0]} must stand before the end of a fork")

    def fork_close(self, symbol: Symbol) -> None:
        if self.top.kind == "path":
            self.unclosed_path()
        if self.top.kind in ("item", "plan"):
            self.unclosed_plan()
        if self.top.kind != "fork":
            self.stray(symbol, "closes no fork")
            return
        self.between(self.schema.before_join, symbol.at, self.top.address)
        self.emit(symbol, self.top.address, given=True)
        self.end_fork(symbol.at)

    def unclosed_plan(self) -> None:
        if self.top.kind == "item":
            self.end_item()
        plan = self.pop()
        self.defect("unclosed-plan", plan.at, "the plan is never closed")

    def missing_summary(self) -> None:
        if self.top.awaiting_summary is not None:
            summary, fork = self.schema.pairs["summary"], self.schema.pairs.get("fork", self.schema.path)
            self.defect("missing-summary", self.top.awaiting_summary, f"{summary[0]} must follow {fork[1]}")
            self.top.awaiting_summary = None

    def summary_open(self, symbol: Symbol) -> None:
        top, schema = self.top, self.schema
        if top.kind == "path" and schema.inside:
            self.unclosed_path()
            top = self.top
        if schema.inside:
            if top.kind != "fork" or top.done or not top.paths:
                self.stray(symbol, "must follow the paths of a fork, once")
                return
            self.between(schema.before_join, symbol.at, top.address)
        elif top.awaiting_summary is None:
            self.stray(symbol, f"must follow {schema.pairs.get('fork', schema.path)[1]}, once")
            return
        else:
            if schema.fork is None:
                self.between(schema.before_join, symbol.at, top.address)
            elif not top.gap_seen:
                close = schema.fork[1]
                self.defect("missing-newline", symbol.at, f"{schema.gap!r} must stand between {close} and {symbol.tag}")
            top.awaiting_summary = None
        self.emit(symbol, top.address, given=True)
        self.push(Element("summary", symbol.at, top.address))

    def summary_close(self, symbol: Symbol) -> None:
        if self.top.kind != "summary":
            self.stray(symbol, "closes no summary")
            return
        summary = self.pop()
        self.top.done = self.top.kind == "fork"
        self.emit(symbol, summary.address)
        if not summary.has_text:
            self.defect("empty-summary", summary.at, "a summary needs text")

    def finish(self, end: int) -> Structure:
        if self.expected:
            self.wrong_head(end)
        while True:
            if self.ends_fork(None, False):
                self.end_fork(end)
            self.stray_blanks()
            self.missing_summary()
            if self.top.kind == "root":
                break
            if self.top.kind == "path":
                self.unclosed_path()
            elif self.top.kind in ("item", "plan"):
                self.unclosed_plan()
            else:
                self.defect(f"unclosed-{self.top.kind}", self.top.at, f"the {self.top.kind} is never closed")
                self.pop()
        self.out.defects.sort(key=lambda defect: defect.at)
        return self.out


_AFTER_BLANK: set[tuple[Role, bool]] = {("path", True), ("plan", True), ("fork", False), ("summary", True)}
"""Tags before which white space may stand inside a fork."""
_READERS: dict[tuple[Role, bool], Callable[[_Scanner, Symbol], None]] = {
    ("fork", True): _Scanner.fork_open,
    ("fork", False): _Scanner.fork_close,
    ("plan", True): _Scanner.plan_open,
    ("plan", False): _Scanner.plan_close,
    ("item", True): _Scanner.item_open,
    ("item", False): _Scanner.item_close,
    ("path", True): _Scanner.path_open,
    ("path", False): _Scanner.path_close,
    ("summary", True): _Scanner.summary_open,
    ("summary", False): _Scanner.summary_close,
}


def scan(symbols: Iterable[Symbol], schema: Schema, head: Head) -> Structure:
    """Scan a sequence of symbols.

    Args:
        head: what the runtime writes at the start of a path, in the form of the symbols' contents.
    """
    scanner = _Scanner(schema, head)
    end = 0
    for symbol in symbols:
        scanner.read(symbol)
        end = symbol.at + len(symbol.content)
    return scanner.finish(end)
