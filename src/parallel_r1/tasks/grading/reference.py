"""A reference as text: JSON gives text or a number."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

LARGEST = 1000
"""Most digits of a number before or after the decimal point."""


def reference_text(value: Any) -> str:
    """A reference as it is compared. A number becomes its decimal digits, without an exponent: 5.9e-06 is 0.0000059.

    Args:
        value: text, an int, a float or a Decimal.

    Raises:
        ValueError: it is blank, not finite, or of another kind; says which.
    """
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("blank text")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError("null" if value is None else f"a {_KINDS.get(type(value), type(value).__name__)}")
    number = Decimal(str(value))
    if not number.is_finite():
        raise ValueError(f"{value}, which is no number" if number.is_nan() else f"{value}, which is not finite")
    if number and abs(number.adjusted()) > LARGEST:
        raise ValueError(f"a number of more than {LARGEST:,} digits")
    return number_text(number)


def number_text(value: float | Decimal) -> str:
    """A finite number in decimal digits, exactly as it is written in its shortest form, without an exponent."""
    exact = Decimal(str(value))
    return str(int(exact)) if exact == exact.to_integral_value() else format(exact, "f").rstrip("0")


_KINDS = {bool: "truth value", list: "list", dict: "object"}
