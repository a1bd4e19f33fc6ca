"""Compare a final answer with a reference as text and as plain numbers.

Two answers are equal if they are spelt the same apart from layout, such as white space and dollar signs, or if they are
plain numbers of the same value. What that does not decide is left to math-verify, in processes of its own
(`grader.py`). Units are not compared, as in the MATH data set: 8, 8 cm and 8 apples are the same answer; and as in
math-verify 45 % is 45 and 0.45.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from parallel_r1.tasks.grading.values import differ

LONGEST = 1000
"""Most characters of an answer; a longer text is no answer."""


_FOREIGN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")


_SIGNS = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\N{MULTIPLICATION SIGN}": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi "}
    | {"∞": r"\infty ", "√": r"\sqrt ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "\N{UNION}": r"\cup "}
    | {"°": r"^\circ ", "²": "^2", "³": "^3", "±": r"\pm "}
)


_LAYOUT = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle)(?![a-zA-Z])|\\[!$()\[\]]|(?<!\\)\$|"  # without meaning
    r"(\\[,;: ]|\\q?quad(?![a-zA-Z])|~|\s+)|"  # is a space
    r"\\\\"  # ends a row of a matrix, and stays
)


_ESCAPED = re.compile(r"\\.", re.DOTALL)


_REWRITTEN = (
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"^[\s*]+|[\s*.,;:]+$"), ""),
    (re.compile(r"(?<=[\d}])\s*(?:\^\s*\{?\\circ\}?|\\degrees?)$"), ""),
    (re.compile(r"(?<=[\d})])\s*\\(?:text|mbox|mathrm|textrm|textbf)\{(?!\s*[ap]\.?\s*m\b)[^{}]*\}(\^\{?\d\}?)?$"), ""),
)


def tidy(text: str) -> str | None:
    """An answer without layout, delimiters of mathematics, a full stop, and units in `\\text{}`.

    None if it cannot be an answer: it is empty or too long, holds invisible characters, or its braces do not match."""
    if len(text) > LONGEST or _FOREIGN.search(text):
        return None
    text = text.translate(_SIGNS)
    text = _LAYOUT.sub(lambda match: match[0] if match[0] == r"\\" else " " if match[1] else "", text)
    for pattern, by in _REWRITTEN:
        text = pattern.sub(by, text)
    bare = _ESCAPED.sub("", text)
    return text if text and bare.count("{") == bare.count("}") else None


_WRAPPER = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


_LOOSE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")


def spelling(tidied: str) -> str:
    """A tidied answer in the form in which spellings are compared: white space only between letters and digits, no
    `\\text{}` around words, words in lower case, a choice such as (A) without its parentheses."""
    text = _LOOSE.sub("", _WRAPPER.sub(r"\1", tidied))
    text = re.sub(r"^\(([A-Za-z])\)$", r"\1", text)
    return text.casefold() if len(text) > 1 and text.replace(" ", "").isalpha() else text


_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,9}|\d{1,30})"


_DECIMAL = re.compile(rf"([-+]?)\s*({_DIGITS}(?:\.\d{{0,30}})?|\.\d{{1,30}})\s*(\\?%)?")


_FRACTION = re.compile(
    rf"([-+]?)\s*(?:({_DIGITS})(?:\s+|\s*(?=\\)))?"  # 2 1/2 is a mixed number
    rf"(?:({_DIGITS})\s*/\s*({_DIGITS})|\\frac\s*\{{\s*({_DIGITS})\s*\}}\s*\{{\s*({_DIGITS})\s*\}}|\\frac\s*(\d)(\d))"
)


class Number(NamedTuple):
    """A plain number. `decimal` if it was written with a decimal point, `percent` if with a percent sign."""

    value: Fraction
    decimal: bool = False
    percent: bool = False

    @property
    def readings(self) -> set[Fraction]:
        """The values that it may stand for: 45 % is also 0.45."""
        return {self.value, self.value / 100} if self.percent else {self.value}


def number(tidied: str) -> Number | None:
    """The exact value of an integer, decimal, percentage, fraction or mixed number; None for everything else."""
    if match := _DECIMAL.fullmatch(tidied):
        sign, digits, percent = match.groups()
        value = Fraction(digits.replace(",", "").rstrip(".") or 0)
        return Number(-value if sign == "-" else value, "." in digits, percent is not None)
    if match := _FRACTION.fullmatch(tidied):
        sign, whole, *parts = match.groups()
        above, below = (int(part.replace(",", "")) for part in parts if part is not None)
        if below:
            value = int((whole or "0").replace(",", "")) + Fraction(above, below)
            return Number(-value if sign == "-" else value)
    return None


CLOSE = Fraction(1, 10**5)
"""Decimals that differ by less are left to math-verify, which rounds to six places."""


def same_number(one: Number, two: Number) -> bool | None:
    """Whether two numbers are equal; None if one of them may be the other one, rounded."""
    if one.readings & two.readings:
        return True
    near = min(abs(a - b) for a in one.readings for b in two.readings) < CLOSE
    return None if near and (one.decimal or two.decimal) else False


_LEAD = re.compile(r"^[^\d$\\]*?\b(?:is|are|equals?)\b\s*:?\s*")


_MATHS = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


_AMOUNT = re.compile(
    rf"(?<![\w.])-?(?:{_DIGITS}\s*/\s*{_DIGITS}|\\[dtc]?frac\{{\d{{1,30}}\}}\{{\d{{1,30}}\}}|{_DIGITS}(?:\.\d+)?|\.\d+)"
    r"(?:\s*\\?%)?"
)


_COMMAND = re.compile(r"\\[a-zA-Z]+\s*\{[a-zA-Z ]*\}|\\[a-zA-Z]+")


_UNIT = (
    r"(?:[kcm]?m|[km]?g|[mk]?l|L|mL|lbs?|oz|ft|in|yd|mi|mph|km/h|m/s|s|sec|min|hr?s?|V|W|J|N|Hz|K|C|F)(?:\^\{?\d\}?|\b)"
)


_MEASURED = re.compile(rf"({_AMOUNT.pattern})\s+{_UNIT}(?![\w^])\.?")


_FUNCTIONS = "and|mod|sqrt|inf|infinity|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|exp|max|min|gcd|lcm|cis"


_PROSE = re.compile(rf"(?<![A-Za-z0-9_])(?!(?:{_FUNCTIONS})(?![A-Za-z]))[A-Za-z]{{3,}}(?![A-Za-z0-9_(^])")


_JOINED = re.compile(r"\b(?!(?:and|or)\b)[A-Za-z]{2,}")


_PLAIN = re.compile(r"[^\W\d_\s.,:!?'*$%°-]*(?:[\s.,:!?'*$%°-]+[^\W\d_]*)*")


def claim(answer: str) -> str | None:
    """The one piece of mathematics, or the one number, in an answer that is a sentence. None if there are several,
    since several guesses are no answer. An answer that is no sentence is returned as it is."""
    answer = _LEAD.sub("", answer, count=1)
    if measured := _MEASURED.fullmatch(answer.strip().rstrip(".")):
        return measured[1]
    pieces = [next(filter(None, match.groups())) for match in _MATHS.finditer(answer)]
    words = _MATHS.sub(" ", answer)
    prose = _JOINED if pieces else _PROSE  # beside mathematics any word is prose, alone xy may be a product
    if not prose.search(_COMMAND.sub(" ", words)):
        return answer
    claims = [*pieces, *(match.group() for match in _AMOUNT.finditer(words))]
    plain = _PLAIN.fullmatch(_COMMAND.sub(" ", _AMOUNT.sub(" ", words)))  # code is no sentence
    return claims[0] if plain and len(claims) == 1 else None


def compare(answer: str | None, gold: str) -> bool | tuple[str, str]:
    """Whether an answer equals a reference; or, if text and numbers do not decide it, the pair (reference, answer) for
    math-verify to compare."""
    reference = tidy(gold)
    written = None if answer is None else tidy(answer)
    if answer is None or written is None or reference is None:
        return False
    if spelling(written) == spelling(reference):
        return True
    claimed = claim(answer)
    meant = None if claimed is None else tidy(claimed)
    if meant is None:
        return False
    numbers = number(meant), number(reference)
    if numbers[0] is not None and numbers[1] is not None:
        same = same_number(numbers[0], numbers[1])
        if same is not None:
            return same
    return False if differ(meant, reference) else (reference, meant)
