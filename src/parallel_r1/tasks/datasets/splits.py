"""Which split a problem belongs to, decided by its text."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

Part = Literal["train", "test"]
"""The parts into which published data sets are divided."""
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SLICES, VALIDATION, TEST = 40, {5, 6}, {0, 1, 2, 3, 4}
"""Problems fall into this many slices of equal size; these slices are for validation, and these for testing."""


def part_of(split: Split) -> Part:
    """The part of a published data set that a split is cut from."""
    return "test" if split == "test" else "train"


_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "development": "validation",
    "test": "test",
    "testing": "test",
}
_HELD_OUT = ("eval", "evaluation")
_FIRST_WORD = re.compile(r"[a-z]+")


def named_splits(names: Iterable[str]) -> dict[str, Split]:
    """Our splits for the names that a data set gives its own: the first word of a name decides, so `train_sft` is train
    and `dev` is validation. `eval` is test, or validation where there is a test split too.

    Raises:
        ValueError: a name says nothing of these, or two names would be one split; the message is that name or both.
    """
    words = {name: match[0] if (match := _FIRST_WORD.match(name.casefold())) else "" for name in names}
    splits = {name: _NAMES[word] for name, word in words.items() if word in _NAMES}
    held_out: Split = "validation" if "test" in splits.values() else "test"
    splits |= {name: held_out for name, word in words.items() if word in _HELD_OUT}
    for name in words:
        if name not in splits:
            raise ValueError(f"'{name}'")
        twin = next(other for other in words if splits.get(other) == splits[name])
        if twin != name:
            raise ValueError(f"'{twin}' and '{name}'")
    return splits


def split_of(problem: str, part: Part | None) -> Split:
    """The split of a problem. A digest of its words decides, so copies of a problem never lie in two splits.

    Args:
        part: the part that the problem is published in. One in 20 training problems is for validation. None if there
            are no parts: then one problem in 8 is for testing too.
    """
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
    """The words, numbers and operators of a statement, in lower case, without layout, punctuation and dollar signs."""
    text = _FRACTION.sub(r"\\frac", _LAYOUT.sub(" ", problem))
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
