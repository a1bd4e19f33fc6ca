"""Errors that tell the user what went wrong and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.util import find_spec


class UserError(Exception):
    """A mistake that the user can correct. The command line prints it as one line and exits with code 2.

    Args:
        expected: what the program needed.
        found: what it got instead.
        fix: what the user can do about it.
    """

    def __init__(self, expected: str, found: str, fix: str) -> None:
        self.expected, self.found, self.fix = (" ".join(part.split()) for part in (expected, found, fix))
        super().__init__(f"expected {self.expected}; found {self.found}; {self.fix}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        return type(self), (self.expected, self.found, self.fix)


class Missing(UserError):
    """A file or data set does not exist. A run cannot start without it, but can be estimated (`train --dry-run`)."""


def nearest(word: str, names: Iterable[str]) -> str:
    """Advice for a misspelt `word`: the most similar of the valid `names`, or all of them if none is similar."""
    names = sorted(names)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"use one of: {', '.join(names)}"


def need(package: str, purpose: str, extra: str) -> None:
    """Check that an optional package is installed.

    Args:
        package: its import name.
        purpose: its use, such as `which reads data`.
        extra: the extra of parallel-r1 that installs it.

    Raises:
        UserError: it is not installed.
    """
    if find_spec(package) is None:
        name = package.replace("_", "-")
        raise UserError(f"{name}, {purpose}", "no such package", f"pip install 'parallel-r1[{extra}]'")
