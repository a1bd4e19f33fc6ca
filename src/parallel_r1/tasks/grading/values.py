"""The value of an expression at a point: exact for rational numbers, else to 85 digits with a bound of its error.

Every variable has a fixed value of its own at every point, the same in all answers. Equal expressions have equal values
wherever they are evaluated, and expressions that are equal at several such points, to that many digits, are the same
(Schwartz and Zippel's test of identities).

Source: Schwartz, "Fast probabilistic algorithms for verification of polynomial identities", J. ACM 27 (1980).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from mpmath import MPContext

from parallel_r1.tasks.grading.tree import Node, TooLargeError, UnreadableError

MP = MPContext()
MP.prec = 300
EPSILON = MP.mpf(2) ** -290
"""Relative error of one operation, with some room."""
SURE = MP.mpf(10) ** -40
"""Error, relative to the values, below which values that agree are equal; sums that cancel may have a larger one."""
BITS = 40_000
"""Largest rational number that is kept exactly: numerator or denominator, in bits."""
EXPONENT = 10**6
"""Largest exponent, and largest binary exponent of what a function is asked for."""
POINTS = 3
"""Points at which expressions are compared. At the last one the variables are negative."""


class Value(NamedTuple):
    """A number: a Fraction, or a real or complex number of mpmath that is off by at most `error`. `exact` is False if a
    rational number was too large to be kept exactly."""

    number: Any
    error: Any = 0
    exact: bool = True

    @property
    def rational(self) -> bool:
        """Whether it is an exact Fraction."""
        return isinstance(self.number, Fraction)


def _float(value: Value) -> tuple[Any, Any]:
    """A value as a number of mpmath, with its error."""
    if not value.rational:
        return value.number, value.error
    number = MP.mpf(value.number.numerator) / value.number.denominator
    return number, abs(number) * EPSILON


def _fits(value: Value) -> bool:
    """Whether nothing that matters is lost when a value becomes a number of mpmath: 2^1000 + 1 does not fit."""
    parts = (value.number.numerator, value.number.denominator) if value.rational else ()
    return value.exact and all((part // (part & -part)).bit_length() < MP.prec for part in parts if part)


def _small(number: Fraction) -> bool:
    return number.numerator.bit_length() < BITS and number.denominator.bit_length() < BITS


def _checked(number: Any, error: Any, exact: bool) -> Value:
    if not MP.isfinite(number):
        raise UnreadableError
    return Value(number, error + abs(number) * EPSILON, exact)


def _both(one: Value, two: Value, work: Callable[[Fraction, Fraction], Fraction]) -> Value | None:
    """The exact result of an operation on two Fractions; None if one of them is none, or the result is too large."""
    if not (one.rational and two.rational):
        return None
    result = work(one.number, two.number)
    return Value(result) if _small(result) else None


def add(one: Value, two: Value) -> Value:
    """The sum of two values."""
    if (result := _both(one, two, lambda a, b: a + b)) is not None:
        return result
    (a, ea), (b, eb) = _float(one), _float(two)
    return _checked(a + b, ea + eb, _still(one, two))


def mul(one: Value, two: Value) -> Value:
    """The product of two values."""
    if (result := _both(one, two, lambda a, b: a * b)) is not None:
        return result
    (a, ea), (b, eb) = _float(one), _float(two)
    return _checked(a * b, abs(a) * eb + abs(b) * ea, _still(one, two))


def div(one: Value, two: Value) -> Value:
    """The quotient of two values."""
    if (result := _both(one, two, lambda a, b: a / b)) is not None:
        return result
    (a, ea), (b, eb) = _float(one), _float(two)
    if b == 0:
        raise ZeroDivisionError
    if abs(b) <= 4 * eb:
        raise UnreadableError
    return _checked(a / b, (ea + abs(a / b) * eb) / abs(b), _still(one, two))


def power(base: Value, exponent: Value) -> Value:
    """A power; the principal one of a complex number."""
    lossy = False
    if exponent.rational and exponent.number.denominator == 1 and base.rational:
        size = abs(exponent.number.numerator)
        if size * max(base.number.numerator.bit_length(), base.number.denominator.bit_length()) < BITS:
            return Value(base.number**exponent.number.numerator)
        lossy = True
    (a, ea), (b, eb) = _float(base), _float(exponent)
    if abs(b) > EXPONENT:
        raise TooLargeError
    if a == 0 and not MP.re(b) > 0:
        raise UnreadableError
    if a == 0:
        return Value(Fraction(0))
    if abs(a) <= 4 * ea:
        raise UnreadableError
    if exponent.rational and exponent.number.denominator == 1:
        result = a ** int(exponent.number)
    elif exponent.rational and exponent.number == Fraction(1, 2):
        result = MP.sqrt(a)
    else:
        result = MP.exp(b * MP.log(a))
    relative = abs(b) * ea / abs(a) + abs(MP.log(a)) * eb + EPSILON * (8 + abs(b))
    return _checked(result, abs(result) * relative, _fits(base) and _fits(exponent) and not lossy)


def _still(one: Value, two: Value) -> bool:
    """Whether an operation whose result is no Fraction kept what could be kept: two Fractions could."""
    return _fits(one) and _fits(two) and not (one.rational and two.rational)


def apply(function: Callable[[Any], Any], value: Value) -> Value:
    """A function of one value; its error from a second value nearby."""
    a, ea = _float(value)
    if a != 0 and MP.mag(a) > 64:
        raise TooLargeError
    result = function(a)
    if not MP.isfinite(result):
        raise UnreadableError
    slope = abs(function(a + ea) - result)
    return _checked(result, 2 * slope + EPSILON * (1 + abs(result)), _fits(value))


def root(radicand: Value, degree: Value) -> Value:
    """A root. The real one of a negative number if the degree is odd."""
    if degree == Value(Fraction(2)):
        return _square_root(radicand)
    if not degree.rational or degree.number == 0:
        raise UnreadableError
    inverse = Value(1 / degree.number)
    number, _ = _float(radicand)
    negative = MP.im(number) == 0 and number < 0 and degree.number.denominator == 1 and degree.number.numerator % 2
    if negative:
        return mul(Value(Fraction(-1)), power(mul(Value(Fraction(-1)), radicand), inverse))
    return power(radicand, inverse)


def _square_root(radicand: Value) -> Value:
    if radicand.rational and radicand.number >= 0:
        above, below = (math.isqrt(part) for part in (radicand.number.numerator, radicand.number.denominator))
        if Fraction(above, below) ** 2 == radicand.number:
            return Value(Fraction(above, below))
    return power(radicand, Value(Fraction(1, 2)))


def variable(name: str, point: int) -> Value:
    """The value of a name at a point, which no expression of other names has by chance."""
    if name == "pi":
        return _checked(+MP.pi, 0, True)
    if name == "e":
        return _checked(+MP.e, 0, True)
    if name == "i":
        return Value(MP.mpc(0, 1), EPSILON)
    seed = sum((place + 2) * ord(letter) ** 2 for place, letter in enumerate(name)) * 97 + 31 * point + 7
    fraction = MP.sqrt(seed * seed + seed + 1) % 1
    number = (MP.mpf("0.25") + fraction, MP.mpf("1.5") + 3 * fraction, -MP.mpf("0.75") - fraction)[point]
    return _checked(number, 0, True)


def equal(one: Value, two: Value) -> bool | None:
    """Whether two values are equal; None if they are equal as far as they are known, and could be known better."""
    if one.rational and two.rational:
        return bool(one.number == two.number)
    (a, ea), (b, eb) = _float(one), _float(two)
    error, size = ea + eb, max(abs(a), abs(b))
    if abs(a - b) > 8 * error:
        return False
    sure = error < SURE * size or (size <= 8 * error and error < SURE)
    return True if _fits(one) and _fits(two) and sure else None


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "sin": MP.sin,
    "cos": MP.cos,
    "tan": MP.tan,
    "cot": MP.cot,
    "sec": MP.sec,
    "csc": MP.csc,
    "arcsin": MP.asin,
    "arccos": MP.acos,
    "arctan": MP.atan,
    "asin": MP.asin,
    "acos": MP.acos,
    "atan": MP.atan,
    "sinh": MP.sinh,
    "cosh": MP.cosh,
    "tanh": MP.tanh,
    "exp": MP.exp,
    "ln": MP.log,
    "log": MP.log,
    "cis": lambda angle: MP.mpc(MP.cos(angle), MP.sin(angle)),
}
_OF_ANGLES = frozenset(str.split("sin cos tan cot sec csc cis"))


def evaluate(node: Node, point: int, sign: int = 1) -> Value:
    """The value of an expression at a point.

    Args:
        sign: which of the two signs of `\\pm` counts.

    Raises:
        UnreadableError: it is no number, has no value there, or is too large.
    """
    kind, parts = node.kind, node.parts
    if kind == "num":
        return Value(node.value)
    if kind == "var":
        return variable(node.name, point)
    if kind == "call":
        return _call(node, point, sign)
    if kind in ("percent", "degree", "unit", "neg", "pm", "factorial", "det"):
        return _changed(node, point, sign)
    work = {"add": add, "mul": mul, "div": div, "pow": power}.get(kind)
    if work is None:
        raise UnreadableError
    return work(evaluate(parts[0], point, sign), evaluate(parts[1], point, sign))


def _changed(node: Node, point: int, sign: int) -> Value:
    """The value of a node with one part, or of a determinant."""
    if node.kind == "det":
        return determinant([[evaluate(cell, point, sign) for cell in row.parts] for row in node.parts])
    value = evaluate(node.parts[0], point, sign)
    if node.kind == "neg" or (node.kind == "pm" and (sign if node.name == "pm" else -sign) < 0):
        return mul(Value(Fraction(-1)), value)
    if node.kind == "percent":
        return mul(value, Value(Fraction(1, 100)))
    if node.kind == "factorial":
        return Value(Fraction(math.factorial(_whole(value, 3000))))
    return value


def _call(node: Node, point: int, sign: int) -> Value:
    name, arguments = node.name, node.parts
    if name in _OF_ANGLES and arguments[0].kind == "degree":
        degrees = evaluate(arguments[0].parts[0], point, sign)
        return apply(_FUNCTIONS[name], mul(degrees, div(variable("pi", 0), Value(Fraction(180)))))
    values = [evaluate(argument, point, sign) for argument in arguments]
    if name == "root":
        return root(*values)
    if name == "binom":
        above, below = _whole(values[0], 5000), _whole(values[1], 5000)
        return Value(Fraction(math.comb(above, below)))
    if name == "log" and len(values) == 2:
        return div(apply(MP.log, values[0]), apply(MP.log, values[1]))
    if name == "lg":
        return div(apply(MP.log, values[0]), apply(MP.log, Value(Fraction(10))))
    if name == "abs":
        return Value(abs(values[0].number)) if values[0].rational else apply(abs, values[0])
    if name in ("floor", "ceil") and values[0].rational:
        return Value(Fraction(getattr(math, name)(values[0].number)))
    if name not in _FUNCTIONS:
        raise UnreadableError
    return apply(_FUNCTIONS[name], values[0])


def _whole(value: Value, most: int) -> int:
    if value.rational and value.number > most:
        raise TooLargeError
    if not value.rational or value.number.denominator != 1 or value.number < 0:
        raise UnreadableError
    return int(value.number)


def determinant(rows: list[list[Value]]) -> Value:
    """The determinant of a matrix of up to 4 rows."""
    if len(rows) != len(rows[0]) or len(rows) > 4:
        raise UnreadableError
    if len(rows) == 1:
        return rows[0][0]
    total = Value(Fraction(0))
    for column, first in enumerate(rows[0]):
        minor = determinant([row[:column] + row[column + 1 :] for row in rows[1:]])
        total = add(total, mul(mul(Value(Fraction((-1) ** column)), first), minor))
    return total
