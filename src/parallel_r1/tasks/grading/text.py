r"""An answer without its layout: one spelling for characters, LaTeX commands, thousands and markup.

`tidy` is the first step of every comparison. What it leaves is LaTeX with few commands: `\frac`, `\sqrt`, `\cdot`,
`\text{..}`, `\begin{matrix}`, `\deg` for degrees, and so on; `tree.py` reads it.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

LONGEST = 1000
"""Most characters of an answer; a longer text is no answer."""

_FOREIGN = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"  # in the middle
)
_EDGES = re.compile("^[\\s\u200b\u2060\ufeff]+|[\\s\u200b\u2060\ufeff]+$")
"""White space, and spaces without width, which no one sees at the ends."""

_GREEK = dict(zip("αβγδεζηθικλμνξπρστφχψω", range(22), strict=True))
_GREEK_NAMES = str.split(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"
)
_SIGNS = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\N{MULTIPLICATION SIGN}": r"\times ", "·": r"\cdot ", "÷": "/", "⁄": "/"}
    | {"∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "\N{UNION}": r"\cup ", "∩": r"\cap ", "∈": r"\in "}
    | {"°": r"^\circ ", "±": r"\pm ", "∅": r"\emptyset ", "≈": r"\approx ", "⟨": r"\langle ", "⟩": r"\rangle "}
    | {"ℝ": r"\mathbb{R}", "∠": r"\angle ", "⋅": r"\cdot ", "∗": "*", "⋯": r"\cdots ", "…": r"\ldots "}
    | {"。": ".", "、": ",", "’": "'", "‘": "'", "′": "'", "″": "''", "“": '"', "”": '"', "¢": r"\text{ cents}"}
    | {letter: rf"\{_GREEK_NAMES[place]} " for letter, place in _GREEK.items()}
    | {chr(full): chr(full - 0xFEE0) for full in range(0xFF01, 0xFF5F)}
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_RAISED, _LOWERED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+"), re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_ROOT = re.compile(r"√\s*(\d+(?:\.\d+)?|[a-zA-Z](?![a-zA-Z]))")


def _characters(text: str) -> str:
    """A text with LaTeX for mathematical characters."""
    text = _RAISED.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{run[0].translate(_SUBSCRIPTS)}}}", text)
    text = _VULGAR.sub(
        lambda one: r" \frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", one[0]).split("⁄")), text
    )
    text = _ROOT.sub(r"\\sqrt{\1}", text).replace("√", r"\sqrt ")
    return text.translate(_SIGNS)


_LAYOUT = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|nolimits|rm|bf|it|large|Large)(?![a-zA-Z])|"
    r"\\[!$()\[\]]|\$|"  # without meaning
    r"(\\[,;: ]|\\q?quad(?![a-zA-Z])|\\(?:hfill|thinspace|enspace)(?![a-zA-Z])|~|\s+)|"  # is a space
    r"\\\\"  # ends a row of a matrix, and stays
)
_WORDS = "text|textbf|textrm|textit|textnormal|texttt|textsf|textup|emph|mbox|hbox|mathrm|operatorname\\*?"
_FONTS = "mathbf|boldsymbol|bm|mathit|mathsf|pmb|bold|underline|vec|hat|overrightarrow|mathop|ensuremath"
_REWRITTEN: tuple[tuple[str, re.Pattern[str], str], ...] = (
    (".", re.compile(r"(?<=\d)\s*\.{3,}"), r"\\ldots "),
    ("dots", re.compile(r"(?<=\d)\s*\\[lc]?dots(?![a-zA-Z])"), r"\\ldots "),
    ("\\\\", re.compile(r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]"), r"\\\\"),  # space between rows of a matrix
    ("frac", re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    ("binom", re.compile(r"\\[dt]binom(?![a-zA-Z])"), r"\\binom"),
    ("{,}", re.compile(r"\{,\}"), ","),
    ("\\", re.compile(rf"\\(?:{_FONTS})(?![a-zA-Z])"), ""),  # bold letters are letters
    ("\\", re.compile(rf"\\(?:{_WORDS})\s*(?=\{{)"), r"\\text"),
    ("\\text", re.compile(r"\\text\{\s*\}"), ""),
    ("\\text", re.compile(r"\\text\{\s*(i|e|d|C|x|\d+(?:\.\d+)?)\s*\}"), r"\1"),  # \mathrm{i}, \text{2}
    ("array", re.compile(r"\\begin\{array\}\s*\{[lcr| ]*\}"), r"\\begin{matrix}"),
    ("\\", re.compile(r"\\(begin|end)\{(?:[pbB]|small)?(?:matrix|array)\}"), r"\\\1{matrix}"),
    ("ox", re.compile(r"\\(?:boxed|fbox|framebox)\s*\{([^{}]*)\}"), r"\1"),
    ("color", re.compile(r"\\(?:text)?color\s*\{\s*[a-zA-Z]+\s*\}"), ""),
    (">", re.compile(r"</?(?:b|i|u|p|em|strong|code|span|sub|sup)>"), ""),
    ("", re.compile(r"(?<=\d)(?:st|nd|rd|th)(?![a-zA-Z])"), ""),  # the 7th
    ("\\", re.compile(r"\\(?:begin|end)\{(?:align|aligned|equation|gather|gathered|split)\*?\}"), " "),
    ("&", re.compile(r"&\s*="), "="),
    ("\\hline", re.compile(r"\\hline"), ""),
    ("\\phantom", re.compile(r"\\phantom\s*(?:\{[^{}]*\}|.)"), ""),
    ("\\le", re.compile(r"\\le(?:q|qslant|qq)(?![a-zA-Z])"), r"\\le "),
    ("\\ge", re.compile(r"\\ge(?:q|qslant|qq)(?![a-zA-Z])"), r"\\ge "),
    ("=", re.compile(r"<=|=<"), r"\\le "),
    ("=", re.compile(r">=|=>"), r"\\ge "),
    ("\\neq", re.compile(r"\\neq(?![a-zA-Z])"), r"\\ne "),
    ("!=", re.compile(r"!="), r"\\ne "),
    ("U", re.compile(r"(?<=[\])}])\s*U\s*(?=[\[({\\])"), r"\\cup "),
    ("\\lt", re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    ("\\gt", re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    ("\\lbrace", re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    ("\\rbrace", re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    ("\\", re.compile(r"\\(?:[lr]?vert|mid)(?![a-zA-Z])"), "|"),
    ("\\", re.compile(r"\\[lr]Vert(?![a-zA-Z])|\\\|"), r"\\Vert "),
    ("\\", re.compile(r"\\varnothing(?![a-zA-Z])|\\\{\s*\\\}"), r"\\emptyset "),
    ("\\div", re.compile(r"\\div(?![a-zA-Z])"), "/"),
    ("**", re.compile(r"(?<=[\w)}])(\s?)\*\*\1(?=[\w({-])"), "^"),  # Python's power
    ("^", re.compile(r"\s*\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![a-zA-Z]))"), r"\\deg "),
    ("\\", re.compile(r"\s*\\(?:degrees?|circ)(?![a-zA-Z])"), r"\\deg "),
    ("", re.compile(r"[£€¥₹₽]|\\(?:pounds|euro|textdollar|yen|texteuro)(?![a-zA-Z])"), ""),
    ("", re.compile(r"(?<![a-zA-Z])(?:Rs\.?|US\$|USD|EUR|GBP|INR|CNY)\s*(?=[\d.])"), ""),
    ("", re.compile(r"^[\s*`]+|^__(?=\w)|(?<=\w)__$|[\s*.,;:`]+$"), ""),  # markup around it, and a full stop
    ("\\\\", re.compile(r"\\\\$"), ""),
)
"""Text that must be there, pattern, replacement; in this order."""
_SPACED = re.compile(r"(?<![\d.,'])\d{1,3}(?:[ '\u202f\u00a0]\d{3})+(?![\d/'])(?!\s*/)")
_GAP = re.compile(r"[ '\u202f\u00a0]")
_ESCAPED = re.compile(r"\\.", re.DOTALL)


@lru_cache(maxsize=10_000)
def tidy(text: str) -> str | None:
    """An answer without layout, delimiters of mathematics, markup, currency signs, and a full stop at its end.

    None if it cannot be an answer: it is empty or too long, holds control characters, marks that change the reading
    direction or half characters, or its braces do not match."""
    text = _EDGES.sub("", text) if len(text) <= 2 * LONGEST else text
    if len(text) > LONGEST or _FOREIGN.search(text):
        return None
    if not text.isascii():
        text = _without_symbols(_characters(text))
    text = _LAYOUT.sub(lambda match: match[0] if match[0] == r"\\" else " " if match[1] else "", text)
    for needle, pattern, by in _REWRITTEN:
        if needle in text:
            text = pattern.sub(by, text)
    text = _SPACED.sub(lambda number: _GAP.sub(",", number[0]), text).strip()  # 130 000
    bare = _ESCAPED.sub("", text)
    return text if text and bare.count("{") == bare.count("}") else None


def _without_symbols(text: str) -> str:
    """A text without emojis, ticks and arrows at its ends."""
    start, end = 0, len(text)
    while start < end and (unicodedata.category(text[start]) in ("So", "Mn") or text[start].isspace()):
        start += 1
    while end > start and (unicodedata.category(text[end - 1]) in ("So", "Mn") or text[end - 1].isspace()):
        end -= 1
    return text[start:end]


_WRAPPER = re.compile(r"\\text\s*\{([^{}]*)\}")
_LOOSE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")
_BRACED = re.compile(r"(?<=[_^])\{(\w)\}")


def spelling(tidied: str) -> str:
    """A tidied answer in the form in which spellings are compared: white space only between letters and digits, no
    `\\text{}` around words, words in lower case, a choice such as (A) without its parentheses."""
    text = _LOOSE.sub("", _BRACED.sub(r"\1", _WRAPPER.sub(r"\1", tidied)))
    text = re.sub(r"^\(([A-Za-z])\)$", r"\1", text)
    return text.casefold() if len(text) > 1 and text.replace(" ", "").isalpha() else text


_BUILDER = re.compile(r"^\\?\{\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?[:|](.*?)\\?\}$", re.DOTALL)
_ALL_TEXT = re.compile(r"\\text\s*\{([^{}]*\d[^{}]*)\}")
_REPEATING = (
    re.compile(r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar)\s*\{\s*(\d+)\s*\}"),  # 0.8\overline{3}
    re.compile(r"(?<![\d.])(\d*)\.(\d*)\\dot\s*\{?\s*(\d)\s*\}?"),
    re.compile(r"(?<![\d.])(\d*)\.(\d*)\((\d+)\)"),  # 0.8(3)
    re.compile(r"(?<![\d.])(\d*)\.(\d*?)(\d{1,6}?)\3{2,}\s*\\ldots"),  # 0.8333...
    re.compile(r"(?<![\d.])(\d*)\.(\d*?)(\d{2,6}?)\3\s*\\ldots"),  # 2.3636...
)
_AND_FRACTION = re.compile(r"(?<![\w.])(\d+)\s+(?:\\text\{\s*)?and\s*(?:\}\s*)?(?=\d+\s*/\s*\d+(?![\d.])|\\frac)")
_FOR_ALL = re.compile(r"\s*,?\s*(?:\\text\{\s*)?(?:for|where|with)\s+(?:all|any|every|each|some)\b.*$", re.DOTALL)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d]|,\d)")


def readable(tidied: str, *, lists: bool = False) -> str:
    """A tidied answer as `reader.parse` reads it: repeating decimals as fractions, no commas in thousands outside
    brackets, sets by their condition, no `for all x` at the end.

    Args:
        lists: the reference is a list, so `1,234` may be two numbers, and `3 and 1/2` are.
    """
    if (alone := _ALL_TEXT.fullmatch(tidied)) is not None:
        tidied = alone[1].strip()
    text = _FOR_ALL.sub("", _BUILDER.sub(r"\2", tidied)) if "\\" in tidied or "for" in tidied else tidied
    if "." in text:
        for pattern in _REPEATING:
            text = pattern.sub(_repeated, text)
    if lists:
        return text
    text = _AND_FRACTION.sub(r"\1 ", text)
    return _THOUSANDS.sub(
        lambda number: number[0].replace(",", "") if _outside(text, number.start()) else number[0], text
    )


def _repeated(match: re.Match[str]) -> str:
    """A repeating decimal as a fraction in brackets."""
    whole, fixed, cycle = match[1] or "0", match[2], match[3]
    below = (10 ** len(cycle) - 1) * 10 ** len(fixed)
    above = int(whole + fixed + cycle) - int(whole + fixed)
    return rf"(\frac{{{above}}}{{{below}}})"


def _outside(text: str, at: int) -> bool:
    """Whether a place lies in no bracket that could be one of a list."""
    before = text[:at].replace(r"\{", "(").replace(r"\}", ")").replace("[", "(").replace("]", ")")
    return before.count("(") <= before.count(")")
