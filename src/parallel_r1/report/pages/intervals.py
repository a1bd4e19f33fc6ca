"""Estimates with their intervals on a common axis, as HTML that needs no library and follows the theme of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Estimate:
    """A value with its interval.

    Attributes:
        name: what was estimated.
        strong: whether it stands out.
    """

    name: str
    value: float
    low: float
    high: float
    strong: bool = False


def intervals_html(estimates: Sequence[Estimate], unit: str, *, signed: bool = False) -> str:
    """A line for every estimate: a dot and its interval, over an axis that holds 0.

    Args:
        unit: printed behind the numbers of the axis.
        signed: print numbers with their sign.
    """
    lowest, highest = min(0.0, *(one.low for one in estimates)), max(0.0, *(one.high for one in estimates))
    step = _step(highest - lowest)
    first, last = math.floor(lowest / step) * step, math.ceil(highest / step) * step or step
    ticks = [first + step * index for index in range(round((last - first) / step) + 1)]

    def place(value: float) -> str:
        return f"{100 * (value - first) / (last - first):.2f}%"

    grid = "".join(f'<i class="{"zero" if tick == 0 else "tick"}" style="left:{place(tick)}"></i>' for tick in ticks)
    rows = "".join(
        f'<div class="estimate{" strong" if one.strong else ""}"><span class="estimate-name">{escape(one.name)}</span>'
        f'<span class="track">{grid}'
        f'<i class="range" style="left:{place(one.low)};right:calc(100% - {place(one.high)})"></i>'
        f'<i class="dot" style="left:{place(one.value)}"></i></span>'
        f'<span class="estimate-value">{one.value:{"+" if signed else ""}.1f}</span></div>'
        for one in estimates
    )
    plus = "+" if signed else ""
    labels = "".join(
        f'<i style="left:{place(tick)}">{tick:{plus if tick else ""}g}{escape(unit) if tick == ticks[-1] else ""}</i>'
        for tick in ticks
    )
    words = "; ".join(f"{one.name} {one.value:.1f}, {one.low:.1f} to {one.high:.1f}" for one in estimates)
    return (
        f'<div class="estimates" role="img" aria-label="{escape(words)}">{rows}'
        f'<div class="estimate"><span></span><span class="axis-labels">{labels}</span><span></span></div></div>'
    )


def _step(span: float) -> float:
    """The distance of round numbers on an axis of this length, so that it has four to eight of them."""
    if not span:
        return 1.0
    unit = 10 ** math.floor(math.log10(span / 4))
    return float(next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 6.5))
