"""Compare a final answer with a reference.

The rules of the house come first: the same spelling; forms that are no expressions (`special.py`); and what both of
them are as trees (`forms.py`). What these do not decide is left to math-verify, in processes of its own (`grader.py`).
Units are not compared, as in the MATH data set: 8, 8 cm and 8 apples are the same answer; and 45 % is 45 and 0.45.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from parallel_r1.tasks.grading.forms import same
from parallel_r1.tasks.grading.reader import parse
from parallel_r1.tasks.grading.sentence import LEAD, claim, denied
from parallel_r1.tasks.grading.special import (
    same_base,
    same_choice,
    same_choices,
    same_meaning,
    same_ratio,
    same_time,
    same_words,
)
from parallel_r1.tasks.grading.text import readable, spelling, tidy
from parallel_r1.tasks.grading.tree import Node, TooLargeError, UnreadableError
from parallel_r1.tasks.grading.units import number_in_words, with_digits
from parallel_r1.tasks.grading.values import evaluate

SPECIAL: tuple[Callable[[str, str], bool | None], ...] = (
    same_meaning,
    same_time,
    same_ratio,
    same_base,
    same_choices,
    same_choice,
    same_words,
)
"""Rules for a reference and an answer without layout; the first one that decides counts."""
_ONLY_OURS = re.compile(r"\d\s*:\s*\d|\d\s*_|\bbase\b|\\frac\s*(?:\{[^{}]*\}|\d)\s*\d\d")
"""What math-verify drops, takes for a division, or cuts."""
_PRICE = re.compile(r"\\\$\s*[\d.]|^[^$]*\$\s*[\d.][^$]*$|[£€]")
_NEGATIVE = re.compile(r"^(?:negative|minus)\s+", re.IGNORECASE)
_A_WORD = re.compile(r"\\text\s*\{[a-zA-Z ]{2,}\}")
_HOLLOW = re.compile(r"(?:\\frac|\\sqrt|\^|_|\\frac\s*\{[^{}]*\})\s*\{\s*\}|^\^")
"""An argument is missing."""
_TINY = 1e-4
"""math-verify compares six places after the point, so that small numbers are all equal to it."""


def compare(answer: str | None, gold: str) -> bool | tuple[str, str]:
    """Whether an answer equals a reference; or, if the rules here do not decide it, the pair (reference, answer) for
    math-verify to compare."""
    reference = tidy(gold)
    written = None if answer is None else tidy(answer)
    if answer is None or written is None or reference is None:
        return False
    if spelling(written) == spelling(reference):
        return True
    if denied(answer, gold):
        return False
    reference, written = _in_digits(reference), _in_digits(written)
    bare = LEAD.sub("", written, count=1)
    for rule in SPECIAL:
        verdicts = {rule(reference, text) for text in (written, bare)} - {None}
        if verdicts:
            return True in verdicts
    return _by_trees(answer, gold, written, reference)


def _in_digits(text: str) -> str:
    """A text with digits in the place of numbers in words."""
    if negative := _NEGATIVE.match(text):
        return f"-{_in_digits(text[negative.end() :])}"
    number = number_in_words(text)
    return with_digits(text) if number is None else str(number)


def _by_trees(answer: str, gold: str, written: str, reference: str) -> bool | tuple[str, str]:
    """Compare what a reference and an answer are as trees. An answer that cannot be read as one may be a sentence."""
    asked = _tree(readable(reference))
    lists = asked is not None and asked.kind == "list"
    names = asked.names() if asked else frozenset(re.findall("[a-zA-Z]", reference))
    given = _tree(readable(written, lists=lists), names)
    meant: str | None = written
    if given is None:
        claimed = claim(answer)
        meant = None if claimed is None else tidy(claimed)
        if meant is None:
            return False
        given = _tree(readable(_in_digits(meant), lists=lists), names)
    if asked is not None and given is not None:
        verdict = _same(_priced(asked, gold), _priced(given, answer))
        if verdict is None and lists and given.kind != "list":
            return False
        if verdict is not None:
            return verdict
    assert meant is not None
    if (asked is not None and _A_WORD.fullmatch(meant)) or _HOLLOW.search(meant):
        return False
    if _ONLY_OURS.search(reference) or _ONLY_OURS.search(meant) or _is_tiny(asked):
        return False
    return reference, meant


def _priced(node: Node, text: str) -> Node:
    """A number with its unit, if there was a dollar sign before it that is not one of mathematics."""
    return Node("unit", (node,), "dollar") if node.kind == "num" and _PRICE.search(text) else node


@lru_cache(maxsize=4096)
def _tree(text: str, names: frozenset[str] = frozenset()) -> Node | None:
    try:
        return parse(text, names)
    except (UnreadableError, ArithmeticError, ValueError, RecursionError):
        return None


def _same(asked: Node, given: Node) -> bool | None:
    try:
        return same(asked, given)
    except ZeroDivisionError:
        return False
    except TooLargeError:  # a tower of powers is no answer, unless one is asked for
        return None if _is_too_large(asked) else False
    except (UnreadableError, ArithmeticError, ValueError, RecursionError):
        return None


def _is_too_large(asked: Node) -> bool:
    try:
        evaluate(asked, 0)
    except TooLargeError:
        return True
    except (UnreadableError, ArithmeticError, ValueError, RecursionError):
        pass
    return False


def _is_tiny(asked: Node | None) -> bool:
    """Whether a reference is a number so small that math-verify cannot tell it from others."""
    if asked is None or asked.names() - {"pi", "e", "i"}:
        return False
    try:
        return 0 < abs(evaluate(asked, 0).number) < _TINY
    except (UnreadableError, ArithmeticError, ValueError, RecursionError):
        return False
