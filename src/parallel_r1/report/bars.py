"""Curves as bars of characters, for a terminal.

A few lines of our own rather than a plotting library: a bar needs no axes, can be one line high, reads the same without
colour, and becomes ASCII where the terminal has no more. plotext draws canvases of several lines with box characters,
from one global figure, and plotille braille dots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII = " .:#"
"""Characters that are filled from the bottom: empty first, full last."""


def columns(values: Sequence[float] | np.ndarray, width: int, steps: int) -> list[float]:
    """The values as columns of a picture: a column per value while there are no more than `width` of them, else means
    of neighbouring values. NaN counts as absent.

    Args:
        steps: number of values of the longest curve of the picture, whose columns all curves share.
    """
    numbers = np.asarray(values, dtype=float)
    per = max(1.0, steps / width)  # values per column
    count = math.ceil(len(numbers) / per)
    parts = [numbers[int(at * per) : max(int((at + 1) * per), int(at * per) + 1)] for at in range(count)]
    present = [part[~np.isnan(part)] for part in parts]
    return [float(part.mean()) if len(part) else math.nan for part in present]


def bars(values: Sequence[float], low: float, high: float, rows: int = 1, characters: str = BLOCKS) -> list[str]:
    """Columns as bars between `low`, which is drawn as the smallest bar, and `high`, a full one; nothing for NaN.

    Returns:
        `rows` lines, the top one first, with a character per value.
    """
    full = len(characters) - 1
    span = high - low or 1.0
    heights = [0 if math.isnan(value) else 1 + round((value - low) / span * (full * rows - 1)) for value in values]
    return [
        "".join(characters[min(max(height - full * below, 0), full)] for height in heights)
        for below in reversed(range(rows))
    ]
