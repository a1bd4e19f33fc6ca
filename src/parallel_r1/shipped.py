"""The recipes and the two tiny models that ship with the package, wherever it is installed.

In a checkout they are the top-level folders `recipes/`, `models/tiny-base` and `models/tiny-parallel`. A wheel holds a
copy of them in `parallel_r1/shipped/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

AnyPath = TypeVar("AnyPath", str, Path)
SHIPPED = ("recipes", "models/tiny-base", "models/tiny-parallel")
"""The paths that ship. Only these, and paths inside them, are looked up outside the current folder."""
_PACKAGE = Path(__file__).parent


def root() -> Path:
    """The folder that contains the shipped paths: inside an installed package, or the root of a checkout."""
    inside = _PACKAGE / "shipped"
    return inside if inside.is_dir() else _PACKAGE.parent.parent


def resolve(path: AnyPath) -> AnyPath:
    """The shipped file or folder for a path such as `models/tiny-base`, unless it exists from the current folder. Any
    other path, or the name of a model on the hub, is returned unchanged."""
    relative = Path(path)
    ships = any(relative.is_relative_to(name) for name in SHIPPED) and ".." not in relative.parts
    return type(path)(root() / relative) if ships and not relative.exists() and (root() / relative).exists() else path
