"""An answer as a tree."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Node:
    r"""A part of an answer.

    Attributes:
        kind: `num`, `var`, `add`, `mul`, `div`, `pow`, `neg`, `pm` (plus or minus), `call`, `factorial`, `percent`,
            `degree`, `unit`, `matrix`, `det`; `tuple`, `set`, `list`, `union`, `ratio`, `relation`.
        parts: the parts of it; of a matrix, its rows as lists.
        name: of a variable, function or unit; the brackets of a tuple; the operators of a relation.
        value: of a number.
        places: digits after the decimal point; None if the number was written without one.
    """

    kind: str
    parts: tuple[Node, ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)
    places: int | None = None

    def names(self) -> frozenset[str]:
        """The variables in it."""
        own = frozenset({self.name}) if self.kind == "var" else frozenset()
        return own.union(*(part.names() for part in self.parts))


class UnreadableError(Exception):
    """A text is no answer that can be read, or can be read in several ways."""


class TooLargeError(UnreadableError):
    """A number that is too large to be computed."""
