"""What went wrong, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.util import find_spec


class UserError(Exception):
    """A mistake that the user can mend. The command line prints it as one line and exits with code 2.

    Args:
        expected: what the program needed.
        found: what it met instead.
        fix: what the user can do now.
    """

    def __init__(self, expected: str, found: str, fix: str) -> None:
        self.expected, self.found, self.fix = (" ".join(part.split()) for part in (expected, found, fix))
        super().__init__(f"expected {self.expected}; found {self.found}; {self.fix}")

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        return type(self), (self.expected, self.found, self.fix)


class Missing(UserError):
    """A file or a data set that is not there. A run cannot begin without it; a plan of the run can be made."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The advice for a misspelt `word`: the nearest of `known`, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"use one of: {', '.join(known)}"


def need(package: str, purpose: str, extra: str) -> None:
    """Refuse to begin without a package that only some users need.

    Args:
        package: its name in Python.
        purpose: what it is for, such as `which reads data`.
        extra: the extra of this project that installs it.

    Raises:
        UserError: it is not installed.
    """
    if find_spec(package) is None:
        name = package.replace("_", "-")
        raise UserError(f"{name}, {purpose}", "no such package", f"pip install 'parallel-r1[{extra}]'")
