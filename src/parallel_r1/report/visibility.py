"""A picture of which token sees which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from parallel_r1.answers.trace import TRUNK, Address
from parallel_r1.answers.visibility import Layout
from parallel_r1.errors import UserError, need
from parallel_r1.files import whole


def relation(laid: Layout, tokens: Sequence[str], addresses: Sequence[Address], title: str, path: Path) -> None:
    """Draw the mask of a row: a line per place, with a square for every place that it sees, in the colour of that
    place's path. Copies that are read again are pale and have no name on the left.

    Raises:
        UserError: matplotlib is not installed, the suffix is not .png, .svg or .pdf, or the file cannot be written.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError("a file that ends with .png, .svg or .pdf", f"'{path.name}'", "rename it")
    need("matplotlib", "which draws pictures", "plot")
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    count = len(tokens)
    colours = np.array([to_rgb("0.35" if address == TRUNK else f"C{address[-1][1] % 10}") for address in addresses])
    pale = np.where(laid.drawn[:, None], colours, 1 - 0.4 * (1 - colours))
    squares = np.where(laid.mask()[:, :, None], pale[None], 1.0)
    figure = Figure(figsize=(2.2 + 0.22 * count, 1.2 + 0.22 * count), layout="constrained")
    panel = figure.subplots()
    panel.imshow(squares)
    names = [repr(token)[1:-1].replace(" ", "␣") for token in tokens]
    left = [
        f"{name}  {position}" if drawn else f"{position}"
        for name, position, drawn in zip(names, laid.positions, laid.drawn, strict=True)
    ]
    panel.set_yticks(range(count), left, fontsize=8)
    panel.set_xticks(range(count), names, rotation=90, fontsize=8)
    panel.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    panel.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    panel.grid(which="minor", color="0.9", linewidth=0.6)
    panel.tick_params(which="both", length=0)
    panel.xaxis.tick_top()
    panel.set_title(title)
    with whole(path) as part:
        figure.savefig(part, dpi=110, format=path.suffix[1:])
