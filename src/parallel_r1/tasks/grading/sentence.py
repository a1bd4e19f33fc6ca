r"""What an answer in words claims, and answers that deny what they say."""

from __future__ import annotations

import re

_DENIED = re.compile(
    r"\b(?:not|never|neither|nor|cannot|except|incorrect|wrong|false|unlike|instead of|rather than|other than|at least|"
    r"at most|more than|less than|fewer than|greater than|larger than|smaller than|no more|no less|no fewer|up to|over|"
    r"above|below|under|exceeds?|almost|nearly|between|minimum of|maximum of|or more|or less|or fewer|or so|"
    r"anything but|everything but|all but)\b|n't\b",
    re.IGNORECASE,
)
_BOUND = re.compile(r"[<>]|\\(?:le|ge|ne|lt|gt)(?:q|qslant)?(?![a-zA-Z])|[≤≥≠]")
_MARKUP = re.compile(r"</?[a-zA-Z]+>")
_INTERVAL = re.compile(r"[\[\]()<>]|\\(?:le|ge|ne|lt|gt|in|infty|cup|emptyset|mathbb)|[≤≥≠∞∪∈]|\b(?:or|all|no)\b")


def denied(answer: str, gold: str) -> bool:
    """Whether an answer says what something is not, or a bound of it, where the reference says neither."""
    answer = _MARKUP.sub("", answer)
    if _DENIED.search(answer) and not _DENIED.search(gold):
        return True
    return _BOUND.search(answer) is not None and not _INTERVAL.search(gold)


_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,9}|\d{1,30})"
_SO = r"(?:therefore|thus|hence|so|then|finally|we (?:get|have)|\\therefore|\\implies|\\Rightarrow)(?![a-zA-Z])[,:]?\s*"
LEAD = re.compile(
    rf"^(?:{_SO})*(?:[^\d$\\={{}}]*?\b(?:is|are|was|were|equals?)\b\s*:?\s*|"
    r"(?:[A-Za-z]{4,}\s+)*[A-Za-z]{3,}\s*(?:=|:)\s*(?=[^=:]*$))?",
    re.IGNORECASE,
)
"""What stands before the answer itself, such as `The answer is` or `Total cost =`."""
_MATHS = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_AMOUNT = re.compile(
    rf"(?<![\w.])-?(?:(?:{_DIGITS}\s+)?{_DIGITS}\s*/\s*{_DIGITS}|{_DIGITS}?\s*\\[dtc]?frac\{{\d{{1,30}}\}}\{{\d{{1,30}}\}}"
    rf"|{_DIGITS}(?:\.\d+)?|\.\d+)(?:\s*\\?%)?"
)
_COMMAND = re.compile(r"\\[a-zA-Z]+\s*\{[a-zA-Z ,.]*\}|\\[a-zA-Z]+")
_FUNCTIONS = "and|mod|sqrt|inf|infinity|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|exp|max|min|gcd|lcm|cis"
_PROSE = re.compile(rf"(?<![A-Za-z0-9_])(?!(?:{_FUNCTIONS})(?![A-Za-z]))[A-Za-z]{{3,}}(?![A-Za-z0-9_(^])")
_JOINED = re.compile(r"\b(?!(?:and|or)\b)[A-Za-z]{2,}")
_PLAIN = re.compile(r"[^\W\d_\s.,:!?'*$%°-]*(?:[\s.,:!?'*$%°-]+[^\W\d_]*)*")
_TEXT = re.compile(r"\\(?:text|mbox|textbf|textrm|mathrm)\s*\{([^{}]*)\}")


def is_sentence(answer: str) -> bool:
    """Whether there are words in an answer that no mathematics has."""
    maths = [match for match in _MATHS.finditer(answer)]
    words = _MATHS.sub(" ", answer)
    prose = _JOINED if maths else _PROSE  # beside mathematics any word is prose, alone xy may be a product
    return prose.search(_COMMAND.sub(" ", words)) is not None


def claim(answer: str) -> str | None:
    """The one piece of mathematics, or the one number, in an answer that is a sentence. None if there are several,
    since several guesses are no answer. An answer that is no sentence is returned as it is."""
    answer = LEAD.sub("", answer, count=1)
    if _LONG.search(answer):
        answer = _TEXT.sub(r" \1 ", answer)
    if not is_sentence(answer):
        return answer
    pieces = [next(filter(None, match.groups())) for match in _MATHS.finditer(answer)]
    words = _MATHS.sub(" ", answer)
    claims = [*pieces, *(match.group() for match in _AMOUNT.finditer(words))]
    plain = _PLAIN.fullmatch(_COMMAND.sub(" ", _AMOUNT.sub(" ", words)))  # code is no sentence
    return claims[0] if plain and len(claims) == 1 else None


_LONG = re.compile(r"\\text\s*\{[^{}]*[a-zA-Z]{2,} +[a-zA-Z]{2,} +[a-zA-Z]{2,}[^{}]*\}")
