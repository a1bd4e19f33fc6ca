"""Units of quantities, and numbers in words."""

from __future__ import annotations

import re
from fractions import Fraction

_SCALES: dict[str, dict[str, str | int]] = {
    "length": {
        "mm millimeter millimetre": "1/1000",
        "cm centimeter centimetre": "1/100",
        "m meter metre": 1,
        "km kilometer kilometre": 1000,
        "in inch inches prime2": "0.0254",
        "ft foot feet": "0.3048",
        "yd yard": "0.9144",
        "mi mile": "1609.344",
    },
    "time": {
        "s sec second": 1,
        "min minute": 60,
        "h hr hour": 3600,
        "day": 86400,
        "week": 604800,
    },
    "mass": {
        "mg milligram": "1/1000",
        "g gram": 1,
        "kg kilogram": 1000,
        "oz ounce": "28.349523125",
        "lb pound": "453.59237",
    },
    "volume": {"ml mL milliliter millilitre": "1/1000", "l L liter litre": 1},
    "money": {"cent penny pennies": "1/100", "dollar buck USD": 1},
    "angle": {"degree deg": 1, "radian rad": 0, "prime arcminute": "1/60", "doubleprime arcsecond": "1/3600"},
}
SCALE: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(scale))
    for dimension, units in _SCALES.items()
    for names, scale in units.items()
    for name in names.split()
}
"""Unit -> what it measures, and its size in the unit of that; 0 for radians, whose size is no fraction."""

_OTHER = frozenset(
    str.split(
        "unit square sq cubic cu mph kph kmh km/h euro yen rupee ton tonne gallon gal quart qt pint pt cup tablespoon "
        "tbsp teaspoon tsp acre hectare joule j newton n watt w volt v hz hertz kelvin k c f celsius fahrenheit kj kw "
        "kwh ev pa kpa mol radian rad month year yr decade century dozen people person student child children men "
        "women boys girls way times time point per coin ball car book piece item page tile box apple marble sheep"
    )
)
"""Other words that an amount may be followed by, with no sentence around it."""
LETTERS = frozenset("mgshlLJNWVKCF")
"""Units of one letter; read as such only behind a space."""
_PERCENT = ("percent", "pct", "percentage", "percents")
_SYLLABLE = re.compile(r"[A-Za-z]+")


def singular(word: str) -> str:
    """A unit without its plural."""
    if word in SCALE or word.lower() in _OTHER:
        return word
    lower = word.lower()
    for name in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if name in SCALE or name in _OTHER or name in _PERCENT:
            return name
    return ""


def unit_of(phrase: str) -> str | None:
    """The unit that a phrase begins with, such as `cm`, `square units` or `miles per hour`; None if it is none.

    `percent` and `degree` are units too. A unit with a power or of a quotient has no scale: it is called `things`."""
    words = _SYLLABLE.findall(phrase)
    if not words:
        return None
    first = singular(words[0])
    if not first:
        return None
    if first in _PERCENT:
        return "percent"
    if SCALE.get(first, ("",))[0] == "angle" and first in ("degree", "deg"):
        return "degree"
    alone = len(words) == 1 and not re.search(r"[/^]", phrase)
    return first if alone and first in SCALE else "things"


_ONES = str.split(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = str.split("twenty thirty forty fifty sixty seventy eighty ninety")
_SMALL = {word: value for value, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_DIGITS_LARGE = re.compile(
    r"(?<![\w.,])(\d+(?:,\d{3})*(?:\.\d+)?)\s*(?:\\text\s*\{)?\s*"
    r"(?<![\d.,])(hundred|thousand|million|billion|trillion|dozen)s?\b\s*\}?"
)


def number_in_words(text: str) -> int | None:
    """The value of `seventy-two` or `one hundred and five`; None if the text is no number in words."""
    words = re.findall(r"[a-z]+", text.lower()) if re.fullmatch(r"[A-Za-z]+(?:[- ]+[A-Za-z]+)*", text) else []
    words = [word for place, word in enumerate(words) if word != "and" or place == 0]
    total = group = 0
    last = 10**15
    for word in words:
        if word in _SMALL:
            value = _SMALL[word]
            if group % 100 and not (group % 100 >= 20 and group % 10 == 0 and 0 < value < 10):
                return None
            group += value
        elif word == "hundred" and 0 < group < 20:
            group *= 100
        elif word in _LARGE and group and _LARGE[word] < last:
            last = _LARGE[word]
            total, group = total + group * last, 0
        else:
            return None
    return total + group if words else None


_PARTS = {"half": 2, "halves": 2, "quarter": 4} | {
    name: value for value, name in enumerate(str.split("third fourth fifth sixth seventh eighth ninth tenth"), 3)
}
_IN_PARTS = re.compile(rf"([a-z]+)[- ]({'|'.join(_PARTS)})s?", re.IGNORECASE)


def with_digits(text: str) -> str:
    """A text in which `2.5 million` and `three quarters` are written in digits."""
    if (parts := _IN_PARTS.fullmatch(text)) and (above := _SMALL.get(parts[1].lower())):
        return f"{above}/{_PARTS[parts[2].lower()]}"
    return _DIGITS_LARGE.sub(_written_out, text)


def _written_out(match: re.Match[str]) -> str:
    size = {"hundred": 100, "dozen": 12, **_LARGE}[match[2]]
    value = Fraction(match[1].replace(",", "")) * size
    return str(value.numerator) if value.denominator == 1 else match[0]
