"""What went wrong, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
        return UserError, (self.expected, self.found, self.fix)


def nearest(word: str, known: Iterable[str]) -> str:
    """The advice for a misspelt `word`: the nearest of `known`, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"use one of: {', '.join(known)}"
