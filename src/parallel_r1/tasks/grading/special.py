r"""Answers that are no expressions: numbers in a base, times of day, ratios, choices, words.

Every function decides for references of its form, and returns None for all others.
"""

from __future__ import annotations

import re
from fractions import Fraction

from parallel_r1.tasks.grading.units import number_in_words

_BASE_NAMES = {
    name: value for value, name in enumerate(str.split("two three four five six seven eight nine ten eleven twelve"), 2)
} | {"sixteen": 16, "binary": 2, "octal": 8, "decimal": 10, "hexadecimal": 16, "hex": 16}
_BASED = re.compile(
    r"\s*(-?[0-9A-Za-f][0-9A-Za-f, ]*(?:\.[0-9A-Za-f]+)?)\s*"  # the digits
    r"(?:_|,?\s*(?:in\s+)?(?=base|bin|oct|dec|hex))\s*(?:base)?[\s-]*(\d+|[a-z]+)\s*"  # the base
)
_PREFIXED = re.compile(r"0([box])([0-9a-f]+)", re.IGNORECASE)
_DIGITS = re.compile(r"-?[0-9A-Za-f]+(?:\.[0-9A-Za-f]+)?")
_AROUND = re.compile(r"\\text(?![a-z])|[{}()~]")


def based(text: str) -> tuple[str, int | None] | None:
    """The digits and the base of `1011_2`, `1011 base two` or `0b1011`; a base of None for plain digits."""
    if match := _PREFIXED.fullmatch(text):
        return match[2].upper(), {"b": 2, "o": 8, "x": 16}[match[1].lower()]
    text = _AROUND.sub(" ", text)
    if (match := _BASED.fullmatch(text)) and re.search(r"\d", match[1]):
        base = int(match[2]) if match[2].isdigit() else _BASE_NAMES.get(match[2], 0)
        return (re.sub("[, ]", "", match[1]).upper(), base) if base > 1 else None
    plain = text.replace(",", "").replace(" ", "")
    return (plain.upper(), None) if _DIGITS.fullmatch(plain) else None


def same_base(gold: str, answer: str) -> bool | None:
    """Compare numbers in a base. The base may be left out in one of the two, but not be another one."""
    one, two = based(gold), based(answer)
    if (one is None or one[1] is None) and (two is None or two[1] is None):
        return None
    if one is None or two is None:
        return False
    digits = [value[0].lstrip("0") for value in (one, two)]
    return digits[0] == digits[1] and (one[1] == two[1] or None in (one[1], two[1]))


_CLOCK = re.compile(
    r"(\d{1,2})(?:\s*:\s*(\d\d)(?:\s*:\s*(\d\d))?)?\s*(?:\\text\s*\{\s*)?(?:([apAP])\.?\s*[mM]\b\.?|o'clock)?\s*\}?"
)


def clock(text: str) -> tuple[int, int, int, str] | None:
    """Hour, minute, second and half of the day (`a`, `p` or nothing) of a time; None if it is none."""
    match = _CLOCK.fullmatch(text)
    if match is None or (match[2] is None and match[4] is None and "o'clock" not in text):
        return None
    hour, minute, second = int(match[1]), int(match[2] or 0), int(match[3] or 0)
    half = (match[4] or "").lower()
    if hour > 24 or minute > 59 or second > 59:
        return None
    if half == "" and hour > 12:
        hour, half = hour - 12, "p"
    return hour, minute, second, half


def same_time(gold: str, answer: str) -> bool | None:
    """Compare times of day. A reference with a.m. or p.m. asks for it."""
    one, two = clock(gold), clock(answer)
    if one is None or (two is None and one[3] == ""):
        return None if one is None or not re.search(r"\d\s*:\s*\d", answer) else False
    if two is None:
        return False
    return one[:3] == two[:3] and (one[3] == two[3] or one[3] == "")


_RATIO = re.compile(r"[\d.,/ ]+(?:\s*(?::|\\text\s*\{\s*to\s*\}|\bto\b)\s*[\d.,/ ]+)+")
_COLON = re.compile(r":|\\text\s*\{\s*to\s*\}|\bto\b")
_AMOUNT = re.compile(r"\d+(?:\.\d+)?|\d+\s*/\s*\d+")


def ratio(text: str) -> list[Fraction] | None:
    """The terms of `1:2:3` or `1 to 2`; None if the text is no ratio of numbers."""
    text = re.sub(r"\\frac\s*\{(\d+)\}\s*\{(\d+)\}", r"\1/\2", text)
    if not _RATIO.fullmatch(text):
        return None
    terms = [term.strip().replace(",", "") for term in _COLON.split(text)]
    if not all(_AMOUNT.fullmatch(term) for term in terms):
        return None
    try:
        return [Fraction(term.replace(" ", "")) for term in terms]
    except (ValueError, ZeroDivisionError):
        return None


def same_ratio(gold: str, answer: str) -> bool | None:
    """Compare ratios: proportional ones are equal; one of two terms may be written as a quotient."""
    one, two = ratio(gold), ratio(answer)
    if one is None and two is None:
        return False if ":" in gold and ":" not in answer and "{" not in gold else None
    for some, other in ((one, answer), (two, gold)):
        if some is not None and (one is None or two is None):
            quotient = re.sub(r"\\frac\s*\{(\d+)\}\s*\{(\d+)\}", r"\1/\2", other).replace(" ", "")
            if len(some) != 2 or not some[1] or not re.fullmatch(r"\d+/\d+", quotient) or quotient.endswith("/0"):
                return False
            return some[0] / some[1] == Fraction(quotient)
    assert one is not None
    assert two is not None
    if len(one) != len(two):
        return False
    return all(a * two[0] == b * one[0] for a, b in zip(one, two, strict=True)) and any(one) == any(two)


_CHOICE = re.compile(r"(?:\\text\s*\{\s*)?[\[(]?\s*([A-Ja-j])\s*(?:[)\]]|[.:](?!\d))?\s*\}?")
_CHOSEN = re.compile(
    r"(?:\\text\s*\{\s*)?(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice|letter)\s*(?:is|:)?\s*)?"
    r"(?:\\text\s*\{\s*)?(?:\(\s*([A-Ja-j])\s*\)|\[\s*([A-J])\s*\]|([A-J])\s*[).:]|([A-Ja-j]))\s*\}?\s*(.*)",
    re.IGNORECASE | re.DOTALL,
)


def choice(text: str) -> str | None:
    """The letter of a reference that is a choice, such as `B`, `(B)`, or `(B) 12`; None if it is none."""
    if match := _CHOICE.fullmatch(text):
        return match[1].upper() if match[1].isupper() or "(" in text else None
    match = re.fullmatch(r"(?:\\text\s*\{\s*)?\(\s*([A-J])\s*\)\s*\}?\s*(.+)", text)
    return match[1] if match else None


def same_choice(gold: str, answer: str) -> bool | None:
    """Compare the letters of choices. What stands behind the letter of an answer does not count, unless it is another
    choice."""
    asked = choice(gold)
    if asked is None:
        return None
    match = _CHOSEN.fullmatch(answer)
    if match is None:
        return False
    letter = next(filter(None, match.groups()[:4])).upper()
    rest = match[5].strip()
    marked = match[1] or match[2] or match[3]
    if rest and (not marked or re.search(r"\([A-Ja-j]\)|\b(?:or|and)\b|\b[A-J][).]", rest)):
        return False
    return letter == asked


_LETTERS = re.compile(r"(?:\\text\s*\{)?\s*[A-J]\s*(?:(?:,|,?\s*and\b)\s*[A-J]\s*)+\}?")


def same_choices(gold: str, answer: str) -> bool | None:
    """Compare several letters, such as `A, C, D`, in any order."""
    if not _LETTERS.fullmatch(gold):
        return None
    listed = _LETTERS.fullmatch(answer) or re.fullmatch("[A-J]{2,}", answer)
    return listed is not None and set(re.findall("[A-J]", gold)) == set(re.findall("[A-J]", answer))


_UNWRAPPED = re.compile(r"\\text\s*\{([^{}]*)\}")
_NOTHING: tuple[str, ...] = (
    "no solution",
    "no solutions",
    "none",
    "no real solution",
    "no real solutions",
    r"\emptyset",
    "empty set",
)
_NOTHING += ("there is no solution", "there are no solutions", "the empty set", "no real roots", "no values")
_EVERYTHING: tuple[str, ...] = (
    r"(-\infty,\infty)",
    r"\mathbb{r}",
    "all real numbers",
    "all reals",
    "r",
    r"x\in\mathbb{r}",
)
_EVERYTHING += ("(-infty,infty)", r"(-\infty,+\infty)", "the set of all real numbers", "all real x")
_IS = re.compile(
    r"(?:^|.*\b(?:is|are|was|were|be|equals|on|in|at)\s+|.*[:=]\s*)(?:(?:on|in|at|a|an|the|an?\s+)\s+)*", re.DOTALL
)


def words(text: str) -> str:
    """A text without `\\text{}`, in lower case, with single spaces."""
    text = re.sub(r"(?<=[a-zA-Z])-(?=[a-zA-Z])", " ", _UNWRAPPED.sub(r" \1 ", text))
    return " ".join(text.lower().split()).strip(" .!\"'")


def _plain(text: str) -> str:
    return re.sub(r"\s*([\\{}(),+=-])\s*", r"\1", " ".join(_UNWRAPPED.sub(r"\1", text).lower().split()))


def same_meaning(gold: str, answer: str) -> bool | None:
    """Compare names of nothing, such as `no solution`, and of the real numbers."""
    for synonyms in (_NOTHING, _EVERYTHING):
        if _plain(gold) in synonyms and len(_plain(gold)) > 1:
            return True if _plain(answer) in synonyms else None
    return None


def same_words(gold: str, answer: str) -> bool | None:
    """Compare words, such as `Monday` and `It is Monday.` What stands before them must end with `is`, `:` or the like,
    and must not name something else. None if the reference is no text in words."""
    asked = words(gold)
    if not re.fullmatch(r"[a-z]{3,}(?:[ '][a-z]+)*|[a-z]{2,}", asked) or ("\\" in _UNWRAPPED.sub("", gold)):
        return None
    if "\\text" not in gold and (len(asked) < 4 or number_in_words(asked) is not None) and asked not in ("yes", "no"):
        return None
    given = words(answer)
    if given == asked:
        return True
    if asked in ("yes", "no") and re.match(rf"{asked}[,.] ", given):
        return re.search(r"\b(?:yes|no|but)\b", given[len(asked) :]) is None
    given = re.sub(rf"(?<=\ban )({re.escape(asked)}) [a-z]+$|(?<=\ba )({re.escape(asked)}) [a-z]+$", r"\1\2", given)
    if not given.endswith(asked) or re.search(r"[,;?]|\b(?:or|and|but|either|if)\b", given):
        return False
    before = given[: -len(asked)]
    return before.endswith((" ", ":", "=")) and len(before) < 80 and _IS.fullmatch(before) is not None
