"""Which split a problem belongs to, by its content."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Literal

Part = Literal["train", "test"]


Split = Literal["train", "validation", "test"]


SPLITS: tuple[Split, ...] = ("train", "validation", "test")


SLICES, VALIDATION, TEST = 40, {5, 6}, {0, 1, 2, 3, 4}
"""A problem falls into one of so many slices; some of them are not trained on."""


def _part_of(split: Split) -> Part:
    return "test" if split == "test" else "train"


def split_of(problem: str, part: Part | None) -> Split:
    """The split of a problem: that of its part of the source. What is for training gives a slice for validation, and
    what is in no part one for test too, by a digest of the statement, so that copies never lie in two splits."""
    if part == "test":
        return "test"
    digest = hashlib.blake2b(" ".join(words(problem)).encode(), digest_size=8).digest()
    number = int.from_bytes(digest) % SLICES
    if part is None and number in TEST:
        return "test"
    return "validation" if number in VALIDATION else "train"


_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|text|textbf|textit|mathrm|mathbf|operatorname|q?quad)(?![a-zA-Z])|\\[,;:! ]"
)


_FRACTION = re.compile(r"\\[dt]frac(?![a-zA-Z])")


_WORD = re.compile(r"\d+(?:\.\d+)?|[a-z]+|[-+*/^=<>|%()\[\]]|[^\s\x00-\x7f]")


def words(problem: str) -> list[str]:
    """A statement as the words, numbers and operators that make its meaning; layout, punctuation, dollar signs and
    capitals are gone."""
    text = _FRACTION.sub(r"\\frac", _LAYOUT.sub(" ", problem))
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
