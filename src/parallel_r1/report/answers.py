"""Answers in a terminal: as a tree with every path in its colour, and live while they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from parallel_r1.answers.rollout import Rollout
from parallel_r1.answers.trace import TRUNK, Address, Trace
from parallel_r1.answers.visibility import latency
from parallel_r1.report.outline import Content, Fork, Words, outline

PATH_COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")


def colour(address: Address) -> str:
    """The colour of an address: the terminal's own for the trunk, one of six by path number otherwise."""
    return "default" if address == TRUNK else PATH_COLOURS[address[-1][1] % len(PATH_COLOURS)]


_SYMBOLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
_SYMBOLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
# Line and paragraph separators, and marks that turn the direction of the text around them.
_SYMBOLS |= dict.fromkeys(
    [0x2028, 0x2029, 0x200E, 0x200F, 0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD
)


def printable(text: str) -> str:
    """A text with symbols in the place of control characters, which would command the terminal."""
    return text.translate(_SYMBOLS)


def answer_tree(trace: Trace, texts: Sequence[str], head: Text | str = "", most: int | None = None) -> Tree:
    """An answer as a tree for a terminal, for `__rich__`. Tags are not shown; given text is dim.

    Args:
        trace: the answer.
        texts: text of every span; see `Trace.texts`.
        head: shown first, such as the prompt.
        most: longest leaf in characters; the middle of longer ones is left out. None: all of every text.
    """
    head = printable(head) if isinstance(head, str) else head
    top = Text.assemble(head, "  " if head else "")
    top.append(f"critical path {latency(trace)}, tokens {len(trace.token_ids)}", "dim")
    if trace.finish != "stop":
        top.append(f", ended by {trace.finish}", "yellow")
    tree = Tree(top, guide_style="dim")
    _hang(tree, outline(trace, texts), colour(TRUNK), most)
    for defect in trace.defects:
        tree.add(Text(f"{defect.kind} at token {defect.at}: {defect.message}", "red"))
    return tree


def _hang(tree: Tree, content: Content, style: str, most: int | None) -> None:
    """Add the content of the trunk or of a path: a leaf per text between two tags, a branch per fork and path. A plan
    is one leaf with its items."""
    for place, group in groupby(content, lambda part: part.number if isinstance(part, Fork) else part.within):
        parts = list(group)
        for fork in (part for part in parts if isinstance(part, Fork)):
            branch = tree.add(Text("fork", "bold"))
            branch.children.extend(_path(number, path, most) for number, path in enumerate(fork.paths))
        texts = [
            Text.assemble(*((printable(part.text), style if part.sampled else f"dim {style}") for part in words))
            for is_tag, words in groupby((part for part in parts if isinstance(part, Words)), lambda part: part.is_tag)
            if not is_tag
        ]
        shown = [stripped for text in texts if (stripped := _stripped(text))]
        if isinstance(place, str) and shown:
            shown = [Text.assemble((f"{place}: ", style), Text("; ").join(shown))]
        for leaf in shown:
            tree.add(leaf if most is None else _shortened(leaf, most))


def _path(number: int, content: Content, most: int | None) -> Tree:
    """A path as a branch; as one line if it is one line of text."""
    tint = PATH_COLOURS[number % len(PATH_COLOURS)]
    name = Text(f"path {number + 1}", f"bold {tint}")
    branch = Tree(name, guide_style="dim")
    _hang(branch, content, tint, most)
    leaf = branch.children[0] if len(branch.children) == 1 else None
    if leaf is None or leaf.children or not isinstance(leaf.label, Text) or "\n" in leaf.label.plain:
        return branch
    return Tree(Text.assemble(name, "  ", leaf.label), guide_style="dim")


def _shortened(text: Text, most: int) -> Text:
    """A text of at most so many characters, without its middle."""
    if len(text) <= most:
        return text
    end = most // 3
    return Text.assemble(text[: max(1, most - end - 3)], (" … ", "dim"), text[len(text) - end :])


def _stripped(text: Text) -> Text:
    """A text without line breaks around it; an empty one if it is blank."""
    plain = text.plain
    if not plain.strip():
        return Text()
    start = len(plain) - len(plain.lstrip("\n"))
    return text[start : len(plain.rstrip("\n"))]


def rollout_tree(rollout: Rollout, most: int | None = None) -> Tree:
    """A judged answer as a tree; see `answer_tree`."""
    verdict = Text("correct", "bold green") if rollout.correct else Text("wrong", "bold red")
    head = Text.assemble((printable(rollout.problem.prompt.strip()), "bold"), "  ", verdict)
    if rollout.reward is not None:
        head.append(f"  reward {rollout.reward:+.2f}")
    return answer_tree(rollout.trace, rollout.texts, head, most)


def print_rollout(console: Console, rollout: Rollout) -> None:
    """Print a judged answer as a tree, and an empty line."""
    console.print(rollout_tree(rollout), "", sep="\n", end="\n")


@dataclass(frozen=True)
class _End:
    """The end of a view that is higher than the terminal, where an answer grows."""

    view: Group

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self.view, options, pad=False)[-max(1, console.height - 1) :]:
            yield from line
            yield Segment.line()


NARROWEST = 24
"""Fewest columns of a path that stands beside others."""


@dataclass
class _Growing:
    """A fork while it is drawn: number -> what its path holds so far, tokens and forks of its own."""

    number: int
    paths: dict[int, list[Any]]


class LiveAnswer:
    """Shows one answer while it is drawn: the trunk, and the paths of a fork side by side. Call it with every token."""

    def __init__(self, console: Console, decode: Callable[[Sequence[int]], str]) -> None:
        self.console, self.decode = console, decode
        self.trunk: list[Any] = []
        self.live = Live(console=console, refresh_per_second=20) if console.is_terminal else None

    def __enter__(self) -> LiveAnswer:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.update(self.view())
            self.live.stop()
        else:
            self.console.print(self.view())

    def __call__(self, answer: int, address: Address, token: int, sampled: bool) -> None:
        place = self.trunk
        for number, path in address:
            if not place or not isinstance(place[-1], _Growing) or place[-1].number != number:
                place.append(_Growing(number, {}))
            place = place[-1].paths.setdefault(path, [])
        if not place or isinstance(place[-1], _Growing):
            place.append([])
        place[-1].append(token)
        if self.live:
            self.live.update(_End(self.view()))

    def view(self) -> Group:
        """The answer so far."""
        return self._block(self.trunk, TRUNK, self.console.width)

    def _block(self, place: list[Any], address: Address, width: int) -> Group:
        """What a trunk or a path holds, in so many columns."""
        shown: list[Any] = []
        for part in place:
            if isinstance(part, _Growing):
                shown.append(self._fork(part, address, width))
            else:
                shown.append(Text(printable(self.decode(part)), colour(address)))
        return Group(*shown)

    def _fork(self, fork: _Growing, address: Address, width: int) -> Table:
        """The paths of a fork: as many in a row as there is room for."""
        across = max(1, min(len(fork.paths), width // NARROWEST))
        rows = -(-len(fork.paths) // across)
        across = -(-len(fork.paths) // rows)  # 4 and 4, not 5 and 3
        table = Table.grid(expand=True)
        for _ in range(across):
            table.add_column(ratio=1)
        panels = []
        for path, place in sorted(fork.paths.items()):
            inside = (*address, (fork.number, path))
            name = f"path {path + 1}" if fork.number == 0 else f"fork {fork.number + 1} path {path + 1}"
            block = self._block(place, inside, width // across - 4)
            panels.append(Panel(block, title=name, title_align="left", border_style=colour(inside)))
        for start in range(0, len(panels), across):
            table.add_row(*panels[start : start + across])
        return table
