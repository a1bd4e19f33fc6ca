"""Decimals that are rounded, and noise of floating-point arithmetic."""

from __future__ import annotations

from fractions import Fraction

from parallel_r1.tasks.grading.tree import Node, UnreadableError
from parallel_r1.tasks.grading.values import Value, evaluate

CLOSE = Fraction(1_000_001, 10**12)
"""Six digits: how far a decimal may be from the number that it is rounded from, relative to the number."""
NOISE = Fraction(2, 10**15)
"""What floating-point arithmetic adds to a decimal, relative to it."""


def resolution(node: Node) -> Fraction | None:
    """The value of one unit in the last place of a decimal; None if the number was not written as one."""
    if node.kind == "num":
        return None if node.places is None else Fraction(10) ** -node.places
    if node.kind == "neg":
        return resolution(node.parts[0])
    if node.kind in ("mul", "div"):  # 3.85 * 10^-7
        last, factor = resolution(node.parts[0]), node.parts[1]
        if last is None or factor.names() or resolution(factor) is not None:
            return None
        value = evaluate(factor, 0)
        if not value.rational or value.number <= 0:
            return None
        return last * value.number if node.kind == "mul" else last / value.number
    return None


def rounded(gold: Node, asked: Value, answer: Node, given: Value) -> bool:
    """Whether one of two numbers is the other one, rounded or cut to at least six digits. Of two decimals none is,
    except for noise such as 0.1 + 0.2 = 0.30000000000000004."""
    places = resolution(gold), resolution(answer)
    if places[0] is not None and places[1] is not None:
        if not asked.rational or not given.rational:
            return False
        return _is_noise(abs(asked.number - given.number), abs(asked.number), min(places[0], places[1]))
    if places[1] is not None:
        return _rounds(given, places[1], asked)
    return places[0] is not None and _rounds(asked, places[0], given)


def _is_noise(off: Fraction, size: Fraction, last: Fraction) -> bool:
    """Whether two numbers differ by what floating-point arithmetic adds to one of 15 to 17 digits.

    Args:
        last: one unit in the last place of the number with more digits.
    """
    return off <= NOISE * size and size <= last * 10**17


def _rounds(decimal: Value, last: Fraction, number: Value) -> bool:
    """Whether a decimal, with its unit in the last place, is a number rounded or cut."""
    exact = _real(number)
    if exact is None or not decimal.rational:
        return False
    off = abs(decimal.number - exact)
    if off > CLOSE * abs(exact):
        return False
    cut = off < last and abs(decimal.number) <= abs(exact)
    return cut or 2 * off <= last or _is_noise(off, abs(exact), last)


def _real(value: Value) -> Fraction | None:
    """A real value as a Fraction; None if it is complex or of an extreme size."""
    if value.rational:
        return Fraction(value.number)
    if getattr(value.number, "imag", 0) != 0:
        return None
    sign, mantissa, exponent, _ = value.number.real._mpf_
    if abs(exponent) > 10_000:
        raise UnreadableError
    exact = Fraction(int(mantissa)) * Fraction(2) ** exponent
    return -exact if sign else exact
