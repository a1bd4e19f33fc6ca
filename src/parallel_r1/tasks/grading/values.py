"""Evaluate two answers at one point, to see in microseconds that they differ.

Every variable has a fixed value of its own, the same in all answers; an answer that lists several things has the set of
their values. Equal answers have equal values wherever they are evaluated, so answers with different values differ.
Whether answers with equal values are equal is left to math-verify, and so is every text that cannot be read here, or
can be read in several ways.
"""

from __future__ import annotations

import cmath
import math
import re

CLOSE = 1e-5
"""Values that differ by no more than this may be equal and rounded."""
EXACT = 1e-9
"""The precision of a value, relative to the largest intermediate number of its computation."""
DEEPEST = 50
_NAME = re.compile(r"\\[a-zA-Z]+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_GREEK = "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|lambda|mu|nu|xi|rho|sigma|tau|phi|chi|psi|omega|infty"
_SYMBOL = re.compile(rf"\\(?:var)?(?:{_GREEK})(?![a-zA-Z])", re.IGNORECASE)
_SEPARATOR = re.compile(r"\\begin\{[pb]matrix\}|\\end\{[pb]matrix\}|\\\\|[,;&]|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])")
_AMBIGUOUS = re.compile(
    r"\d,\s*\d{3}(?!\d)|\\frac\s*\d\d\d|"
    r"(?<![a-zA-Z\\])(?:a?(?:sin|cos|tan)|cot|sec|csc|log|ln|exp|sqrt|pi|inf\w*|pct|percent\w*|min|max|mod|deg)(?![a-zA-Z])"
)
_IN_TEXT = re.compile(r"\\(?:text|mbox)\{\(?([a-zA-Z ]+)\)?\}")
_ASSIGNED = re.compile(r"^\s*[a-zA-Z]\s*=")
_TIMES = re.compile(r"\\(?:cdot|times)(?![a-zA-Z])")
_PI = re.compile(r"\\pi(?![a-zA-Z])")
_DIGITS = re.compile(r"\s*\d\d")


class _UnreadableError(Exception):
    """A text is no expression, or can be read in several ways."""


def differ(one: str, two: str) -> bool:
    """Whether two answers certainly differ: one of them has a value that the other one does not have."""
    if "=" not in one:
        two = _ASSIGNED.sub("", two)
    elif "=" not in two:
        one = _ASSIGNED.sub("", one)
    unions = [text for text in (one, two) if r"\cup" in text]
    try:
        if len(unions) == 1:  # a union of intervals is not one thing
            return len(_values(one if unions[0] == two else two)) == 1
        first, second = _values(one), _values(two)
    except (_UnreadableError, ArithmeticError, ValueError):
        return False
    return not (_covered(first, second) and _covered(second, first))


def _covered(some: list[tuple[complex, float]], others: list[tuple[complex, float]]) -> bool:
    """Whether every value of `some` is near a value of `others`. Values come with their precision."""
    return all(any(abs(a - b) <= max(CLOSE, near, far) for b, far in others) for a, near in some)


def _values(text: str) -> list[tuple[complex, float]]:
    """The values of the parts of an answer, with their precision."""
    text = _IN_TEXT.sub(r" \1 ", text)
    if _AMBIGUOUS.search(text):
        raise _UnreadableError
    pieces = [_unwrapped(piece.strip().replace(r"\{", "(").replace(r"\}", ")")) for piece in _SEPARATOR.split(text)]
    if not any(pieces):
        raise _UnreadableError
    return [_Reader(piece).value() for piece in pieces if piece]


def _unwrapped(piece: str) -> str:
    """A part of a list without the brackets that belong to the list."""
    spare = sum(map(piece.count, "([")) - sum(map(piece.count, ")]"))
    while spare > 0 and piece[0] in "([ ":
        spare -= piece[0] != " "
        piece = piece[1:]
    while spare < 0 and piece[-1] in ")] ":
        spare += piece[-1] != " "
        piece = piece[:-1]
    return piece


class _Reader:
    """Evaluates one expression of numbers, letters, + - * / ^, roots, fractions and brackets. Products need no sign.

    Attributes:
        at: index of the next character.
        deep: number of open brackets.
        largest: the largest intermediate number, in absolute value; at least 1.
    """

    def __init__(self, text: str) -> None:
        self.text, self.at, self.deep, self.largest = text, 0, 0, 1.0

    def value(self) -> tuple[complex, float]:
        """The value of the whole text, and its precision."""
        total = self.sum()
        if self.peek():
            raise _UnreadableError
        return total, EXACT * self.largest

    def peek(self) -> str:
        """The next character that is no space, or an empty string at the end."""
        while self.at < len(self.text) and self.text[self.at] == " ":
            self.at += 1
        return self.text[self.at : self.at + 1]

    def take(self, words: str | re.Pattern[str]) -> str | None:
        """Take the next character if it is one of some characters, or the text that matches a pattern; else None."""
        here = self.peek()
        if isinstance(words, str):
            token = here if here and here in words else None
        else:
            match = words.match(self.text, self.at)
            token = match.group() if match else None
        self.at += len(token or "")
        return token

    def keep(self, number: complex) -> complex:
        """Note the size of an intermediate number."""
        if not cmath.isfinite(number):
            raise _UnreadableError
        self.largest = max(self.largest, abs(number))
        return number

    def sum(self) -> complex:
        sign = self.take("+-")
        total = -self.product() if sign == "-" else self.product()
        while sign := self.take("+-"):
            total = self.keep(total - self.product() if sign == "-" else total + self.product())
        return total

    def product(self) -> complex:
        total, divided, was_number = self.power(), False, self.text[self.at - 1].isdigit()
        while self.peek() and self.peek() not in "+-)]}":
            sign = self.take("*/") or self.take(_TIMES)
            mixed = was_number and (self.peek().isdigit() or self.text.startswith(r"\frac", self.at))
            if sign is None and (divided or mixed):
                raise _UnreadableError  # 1/2x; 2 1/2 or 2\frac12
            factor = self.power()
            divided, was_number = sign == "/", self.text[self.at - 1].isdigit()
            total = self.keep(total / factor if divided else total * factor)
        return total

    def power(self) -> complex:
        base = self.atom()
        if not self.take("^"):
            return base
        if _DIGITS.match(self.text, self.at):
            raise _UnreadableError
        exponent = self.argument()
        if self.peek() == "^":
            raise _UnreadableError
        return self.keep(base**exponent)

    def atom(self) -> complex:
        if number := self.take(_NUMBER):
            return self.keep(float(number))
        if symbol := self.take(_SYMBOL):
            return _value_of(symbol.lower())
        if (name := self.take(_NAME)) is not None:
            return self.command(name)
        return self.letter() if self.peek().isascii() and self.peek().isalpha() else self.bracket()

    def letter(self) -> complex:
        letter = self.text[self.at].lower()
        self.at += 1
        return {"e": math.e, "i": 1j}.get(letter) or _value_of(letter)

    def bracket(self) -> complex:
        closing = {"(": ")", "[": "]", "{": "}"}.get(self.take("([{") or "")
        self.deep += 1
        if closing is None or self.deep > DEEPEST:
            raise _UnreadableError
        inner = self.sum()
        if not self.take(closing):
            raise _UnreadableError
        self.deep -= 1
        return inner

    def command(self, name: str) -> complex:
        if name == r"\pi":
            return math.pi
        if name == r"\frac":
            above, below = self.argument(), self.argument()
            return self.keep(above / below)
        if name == r"\sqrt":
            root = self.bracket() if self.peek() == "[" else 2
            radicand = self.argument()
            if root != 2 and not (radicand.imag == 0 and radicand.real >= 0):
                raise _UnreadableError  # the real root, or the first one
            return self.keep(radicand ** (1 / root))
        raise _UnreadableError

    def argument(self) -> complex:
        """The argument of a command: a group in braces, or one character."""
        here = self.peek()
        if here == "{":
            return self.bracket()
        if here.isdigit():
            self.at += 1
            return float(here)
        if here.isascii() and here.isalpha():
            return self.letter()
        if self.take(_PI):
            return math.pi
        raise _UnreadableError


def _value_of(name: str) -> float:
    """The value of a variable, which no expression of other names has by chance."""
    return 0.5 + math.sqrt(sum((place + 2) * ord(letter) ** 2 for place, letter in enumerate(name))) % 1
