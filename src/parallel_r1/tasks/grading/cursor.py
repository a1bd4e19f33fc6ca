"""A place in a text that is read from left to right, with its smallest parts: characters, numbers, units."""

from __future__ import annotations

import re
from fractions import Fraction

from parallel_r1.tasks.grading.tree import Node, UnreadableError
from parallel_r1.tasks.grading.units import LETTERS, unit_of

FUNCTIONS = frozenset(
    str.split(
        "sin cos tan cot sec csc arcsin arccos arctan asin acos atan log ln lg exp sinh cosh tanh cis abs floor ceil"
    )
)
_COMMAND = re.compile(r"\\[a-zA-Z]+|\\[{}%|]")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
AND = re.compile(r"(?:\\text\s*\{\s*(?:,?\s*and|,?\s*or)\s*\}|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z]))")
_NUMBER = re.compile(r"(\d+)(?:\.(\d*))?(?:[eE]([-+]?\d{1,4})(?![\w.]))?|\.(\d+)(?:[eE]([-+]?\d{1,4})(?![\w.]))?")
_MIXED = re.compile(r"\s*(\d+)\s*/\s*(\d+)(?![\d.])|\s*\\frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_PHRASE = re.compile(r"(?:\\text\s*\{[^{}]*\}|[a-zA-Z]+\.?|\^\s*(?:\{\s*-?\d\s*\}|-?\d)|[ /.])*")


class Cursor:
    """Reads a text from left to right.

    Attributes:
        at: index of the next character.
        deep: number of open brackets.
        bars: number of open `|`.
    """

    def __init__(self, text: str, names: frozenset[str]) -> None:
        self.text, self.names, self.at, self.deep, self.bars = text, names, 0, 0, 0

    def peek(self) -> str:
        """The next character that is no space; an empty string at the end."""
        while (here := self.text[self.at : self.at + 1]) == " " or here == "\n":
            self.at += 1
        return here

    def take(self, pattern: re.Pattern[str] | str) -> str | None:
        """Take what comes next, if it is this text or matches this pattern; else None."""
        self.peek()
        if isinstance(pattern, str):
            token = pattern if self.text.startswith(pattern, self.at) else None
        else:
            match = pattern.match(self.text, self.at)
            token = match.group() if match else None
        self.at += len(token or "")
        return token

    def command(self) -> str:
        """The next LaTeX command, without taking it; an empty string if there is none."""
        self.peek()
        match = _COMMAND.match(self.text, self.at)
        return match.group() if match else ""

    def need(self, token: str) -> None:
        """Take a text that must come next."""
        if not self.take(token):
            raise UnreadableError

    def unit_phrase(self, node: Node, here: str, *, spaced: bool) -> str | None:
        """Take words that say what is counted. None if what comes next can be something else."""
        if here in ("'", '"'):
            prime = self.take("''") or self.take('"') or self.take("'")
            return None if self.peek() not in ("", ",", ")") else {"'": "prime"}.get(prime or "", "doubleprime")
        if self.bars or (self.deep and here != "\\"):
            return None
        phrase = _PHRASE.match(self.text, self.at)
        words = phrase.group() if phrase else ""
        if (ending := AND.search(words)) is not None:
            words = words[: ending.start()]
        rest = self.text[self.at + len(words) : self.at + len(words) + 1]
        if not words.strip() or rest not in ("", ",", ";", ")", "&", "\\", "a", "o"):
            return None
        plain = _TEXT.sub(r" \1 ", words)
        quoted = words.lstrip().startswith(r"\text")
        if quoted and re.search(r"cis|[()\d]", _TEXT.sub(r" \1 ", re.sub(r"\^.*", "", words))):
            return None
        first = re.match(r"\s*([a-zA-Z]+)", plain)
        if first is None or (first[1] in self.names and not quoted):
            return None
        if not quoted and (node.names() - {"pi"} or first[1] in FUNCTIONS):
            return None
        if not quoted and len(first[1]) == 1 and not (spaced and first[1] in LETTERS):
            return None
        name = unit_of(plain)
        if name is None and not quoted:
            return None
        self.at += len(words)
        return name or "things"

    def unit(self, node: Node, here: str) -> Node | None:
        """A quantity with the unit that comes next; None if there is none. Units end an item."""
        if not (here.isalpha() or here in "'\"" or self.text.startswith("\\text", self.at)):
            return None
        start = self.at
        name = self.unit_phrase(node, here, spaced=self.text[start - 1] == " ")
        if name is None:
            self.at = start
            return None
        if name in ("percent", "degree"):
            return Node(name, (node,))
        return Node("unit", (node,), name)

    def number(self) -> Node:
        match = _NUMBER.match(self.text, self.at)
        assert match is not None
        self.at = match.end()
        whole, part = match[1] or "0", match[2] if match[1] else match[4]
        power = int(match[3] or match[5] or 0)
        value = Fraction(int(whole + (part or "")), 10 ** len(part or "")) * Fraction(10) ** power
        places = None if part is None else len(part) - power
        if places is None and (mixed := _MIXED.match(self.text, self.at)) is not None:
            above, below = (int(number) for number in mixed.groups() if number is not None)
            spaced = self.text[self.at : self.at + 1] in (" ", "\\")
            if below and spaced:
                self.at = mixed.end()
                value += Fraction(above, below)
        return Node("num", value=value, places=places)
