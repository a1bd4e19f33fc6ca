r"""Read a tidied answer as a tree: numbers, names, + - * / ^, functions, brackets, sets, matrices, relations, units.

One reader for LaTeX and for plain text, by recursive descent. It refuses what can be read in several ways, such as
`1/2x`; what it refuses is left to math-verify.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from parallel_r1.tasks.grading.cursor import AND, FUNCTIONS, Cursor
from parallel_r1.tasks.grading.tree import Node, UnreadableError
from parallel_r1.tasks.grading.units import unit_of

DEEPEST = 50
"""Most brackets inside one another."""
CONSTANTS = {"pi": "pi", "inf": "infty", "infinity": "infty", "oo": "infty", "infty": "infty"}
GREEK = frozenset(
    str.split(
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi chi psi omega"
    )
)


_WORD = re.compile(r"[a-zA-Z]{2,}")
_INDEX = re.compile(r"_(?:\{\s*([a-zA-Z0-9]{1,4})\s*\}|([a-zA-Z0-9]))")
_UNION = re.compile(r"\\cup(?![a-zA-Z])")
_RELATION = re.compile(r"\\(?:le|ge|ne|in|approx)(?![a-zA-Z])|[=<>]")
_TIMES = re.compile(r"\\(?:cdot|times)(?![a-zA-Z])|\*|x(?=\s*10\s*\^)")
_OPEN = {"(": ")", "[": "]", r"\{": r"\}", r"\langle": r"\rangle", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_ENGLISH = frozenset(
    str.split(
        "is it of in on at to by as an be so if we he no the are was for has had its per all any not but one two six"
    )
)
_NAMED = ("angle", "triangle", "overline")
_CIS = re.compile(r"\\text\s*\{\s*cis\s*\}")
_STOPS = frozenset("+-,;)]}=<>&:")
_ENDING = (r"\}", r"\rangle", r"\rfloor", r"\rceil", r"\pm", r"\mp", r"\end", r"\text", r"\%", r"\deg")
_TRANSPOSED = re.compile(r"\^\s*\{?\s*(?:T|\\top|\\intercal)\s*\}?")
_DIGITS = re.compile(r"\d+")
_MINUTES = re.compile(r"\s*(\d+(?:\.\d+)?)'(?:\s*(\d+(?:\.\d+)?)(?:''|\"))?")
_THERMOMETER = re.compile(r"\s*(?:\\text\{\s*)?[CF](?:\s*\})?\s*$")
_CLOSING = re.compile(r"[)\]]|\\(?:\}|r(?:angle|floor|ceil)(?![a-z]))")


def parse(text: str, names: frozenset[str] = frozenset()) -> Node:
    """The tree of a tidied answer.

    Args:
        names: letters that are variables, even where they could be units, as in `8 m`.

    Raises:
        UnreadableError: it is none, or can be read in several ways.
    """
    reader = _Reader(text, names)
    node = reader.items()
    if reader.peek():
        raise UnreadableError
    return node


class _Reader(Cursor):
    """Reads a text from left to right, by recursive descent."""

    # Lists, relations, sums, products, powers

    def items(self) -> Node:
        """One thing, or several with commas, semicolons, `and` or `or` between them."""
        parts = [self.relation()]
        while self.take(",") or self.take(";") or self.take(AND):
            while self.take(AND):  # 1, 2, and 3
                pass
            parts.append(self.relation())
        return parts[0] if len(parts) == 1 else Node("list", tuple(parts))

    def relation(self) -> Node:
        """A chain of sums with `=`, `<` and so on between them."""
        while self.take("\\approx") or self.take("="):
            pass
        sides, signs = [self.union()], []
        while sign := self.take(_RELATION):
            signs.append({"\\approx": "~"}.get(sign, sign.lstrip("\\")))
            sides.append(self.union())
        return Node("relation", tuple(sides), " ".join(signs)) if signs else sides[0]

    def union(self) -> Node:
        """A union of sets, a ratio, or one sum."""
        parts = [self.sum()]
        if self.peek() == ":":
            while self.take(":"):
                parts.append(self.sum())
            return Node("ratio", tuple(parts))
        while self.take(_UNION):
            parts.append(self.sum())
        return parts[0] if len(parts) == 1 else Node("union", tuple(parts))

    def sign(self) -> str | None:
        """Take a sign of addition."""
        here = self.peek()
        if here and here in "+-":
            self.at += 1
            return here
        if here == "\\" and (name := self.command()) in (r"\pm", r"\mp"):
            self.at += len(name)
            return name[1:]
        return None

    def sum(self) -> Node:
        total = self.signed(self.sign())
        while sign := self.sign():
            total = Node("add", (total, self.signed(sign)))
        return total

    def signed(self, sign: str | None) -> Node:
        """A product behind a sign."""
        negative = sign == "-" or (sign == "+" and self.take("-") is not None)
        product = self.product()
        if sign in ("pm", "mp"):
            return Node("pm", (product,), sign)
        return Node("neg", (product,)) if negative else product

    def product(self) -> Node:
        total, divided = self.power(), False
        while (here := self.peek()) and here not in _STOPS:
            if (unit := self.unit(total, here)) is not None:
                return unit
            if self.take("/"):
                total, divided = Node("div", (total, self.factor())), True
            elif here in "\\*x" and self.take(_TIMES):
                total, divided = Node("mul", (total, self.factor())), False
            elif self.begins_factor():
                if divided:
                    raise UnreadableError  # 1/2x
                total = Node("mul", (total, self.power()))
            else:
                break
        return total

    def factor(self) -> Node:
        """A power that may have a minus, as in 2*-3."""
        return Node("neg", (self.power(),)) if self.take("-") else self.power()

    def begins_factor(self) -> bool:
        """Whether a factor comes next, with no sign of multiplication before it."""
        here = self.peek()
        if not here or here in "+-/,;&)]}=<>:'!^_%\"" or (here == "|" and self.bars):
            return False
        if here.isdigit():
            return self.text[self.at - 1] not in "0123456789. "  # 2 3 is no product
        if here in "([":
            return True
        if AND.match(self.text, self.at) or _UNION.match(self.text, self.at) or _RELATION.match(self.text, self.at):
            return False
        if self.text.startswith("\\\\", self.at):
            return False
        return self.command() not in _ENDING or _CIS.match(self.text, self.at) is not None

    def power(self) -> Node:
        base = self.atom()
        if base.kind == "tuple" and self.take(_TRANSPOSED):
            return base  # a column
        while (here := self.peek()) and here in "^!%\\":
            if self.take("^"):
                base = Node("pow", (base, self.exponent()))
                if self.peek() == "^":
                    raise UnreadableError  # 9^9^9
            elif self.take("!"):
                base = Node("factorial", (base,))
            elif self.take("\\%") or self.take("%"):
                base = Node("percent", (base,))
            elif self.take("\\deg"):
                base = self.degrees(base)
            else:
                break
        return base

    def exponent(self) -> Node:
        """What stands behind `^`: a group, a number with its sign, or one thing."""
        if self.peek() == "{":
            return self.group("{", "}")
        negative = self.take("-") is not None
        digits = self.take(_DIGITS)
        exponent = Node("num", value=Fraction(digits)) if digits else self.atom()
        return Node("neg", (exponent,)) if negative else exponent

    def degrees(self, base: Node) -> Node:
        """Degrees, with minutes of arc behind them."""
        if match := _MINUTES.match(self.text, self.at):
            self.at = match.end()
            minutes = Fraction(match[1]) / 60 + Fraction(match[2] or 0) / 3600
            base = Node("add", (base, Node("num", value=minutes)))
        elif match := _THERMOMETER.match(self.text, self.at):
            self.at = match.end()  # of a thermometer
        return Node("degree", (base,))

    # Atoms

    def atom(self) -> Node:
        here = self.peek()
        if here.isdigit() or (here == "." and self.text[self.at + 1 : self.at + 2].isdigit()):
            return self.number()
        if here == "|" and not self.bars:
            return self.absolute()
        if here == "{":
            return self.group("{", "}")
        if here in ("(", "["):
            return self.bracket(here)
        if here == "\\":
            return self.call("cis") if self.take(_CIS) else self.named(self.command())
        if match := _WORD.match(self.text, self.at):
            return self.word(match.group())
        if here.isascii() and here.isalpha():
            self.at += 1
            return self.letter(here)
        raise UnreadableError

    def letter(self, letter: str) -> Node:
        if letter == "C" and self.peek() == "(":
            chosen = self.bracket("(")
            if chosen.kind == "tuple" and len(chosen.parts) == 2:
                return Node("call", chosen.parts, "binom")
            return Node("mul", (Node("var", name="C"), chosen))
        index = _INDEX.match(self.text, self.at)
        if index is not None:
            self.at = index.end()
            return Node("var", name=f"{letter}_{index[1] or index[2]}")
        return Node("var", name=letter)

    def word(self, word: str) -> Node:
        """A function, a constant, a Greek letter, or a product of up to three letters."""
        if word in FUNCTIONS or word == "sqrt":
            self.at += len(word)
            return self.root() if word == "sqrt" else self.call(word)
        if word in CONSTANTS or word in GREEK:
            self.at += len(word)
            return Node("var", name=CONSTANTS.get(word, word))
        if len(word) > 3 or word.lower() in _ENGLISH:
            raise UnreadableError
        self.at += 1
        return self.letter(word[0])

    def named(self, command: str) -> Node:
        """What a LaTeX command stands for."""
        self.at += len(command)
        name = command[1:].removeprefix("var")
        if name in FUNCTIONS:
            return self.call(name)
        if name in CONSTANTS or name in GREEK or name.lower() in GREEK:
            index = _INDEX.match(self.text, self.at)
            self.at = index.end() if index else self.at
            return Node("var", name=CONSTANTS.get(name, name) + (f"_{index[1] or index[2]}" if index else ""))
        if name == "frac":
            return Node("div", (self.argument(), self.argument()))
        if name == "sqrt":
            return self.root()
        if name == "binom":
            return Node("call", (self.argument(), self.argument()), "binom")
        if name == "begin":
            return self.matrix()
        if name == "emptyset":
            return Node("set")
        if name in _NAMED:
            return self.atom() if name != "overline" else self.argument()
        if name == "mathbb":
            return Node("var", name=f"mathbb_{self.argument().name}")
        if command in _OPEN:
            return self.bracket(command)
        raise UnreadableError

    def root(self) -> Node:
        degree = self.bracket("[") if self.peek() == "[" else Node("num", value=Fraction(2))
        digits = self.take(_DIGITS)  # \sqrt18 is meant to be the root of 18
        radicand = Node("num", value=Fraction(digits)) if digits else self.argument()
        return Node("call", (radicand, degree), "root")

    def argument(self) -> Node:
        """The argument of a command: a group, a bracket, one digit, one letter or one command."""
        here = self.peek()
        if here == "{":
            return self.group("{", "}")
        if here.isdigit():
            self.at += 1
            return Node("num", value=Fraction(int(here)))
        if here.isascii() and here.isalpha():
            self.at += 1
            return Node("var", name=here)
        return self.atom()

    def call(self, name: str) -> Node:
        """A function with its power, its base and its argument."""
        power = self.exponent() if self.take("^") else None
        if name == "log" and self.take("_"):
            base = self.argument()
            return self.raised(Node("call", (self.operand(), base), "log"), power)
        if power is not None and power.kind == "neg":
            if power.parts[0] != Node("num", value=Fraction(1)):
                raise UnreadableError
            name, power = f"arc{name}", None
        return self.raised(Node("call", (self.operand(),), name), power)

    def raised(self, node: Node, power: Node | None) -> Node:
        return node if power is None else Node("pow", (node, power))

    def operand(self) -> Node:
        """The argument of a function: a bracket, or the product up to the next sign or function."""
        if self.peek() in ("(", "{", "["):
            inner = self.atom()
            if self.take("\\deg"):
                return Node("degree", (inner,))
            if self.peek() == "^":
                raise UnreadableError  # \sin(x)^2
            return inner
        total = self.power()
        while self.begins_factor() and self.command()[1:] not in FUNCTIONS and not self.function_word():
            if self.unit_ahead():
                break
            total = Node("mul", (total, self.power()))
        return total

    def function_word(self) -> bool:
        match = _WORD.match(self.text, self.at)
        return match is not None and match.group() in FUNCTIONS

    def unit_ahead(self) -> bool:
        match = _WORD.match(self.text, self.at)
        return match is not None and unit_of(match.group()) is not None

    # Brackets

    def group(self, opening: str, closing: str) -> Node:
        """What stands between two braces of LaTeX; several things in them are a set."""
        self.need(opening)
        inner = self.inside(self.items)
        self.need(closing)
        return Node("set", inner.parts) if inner.kind == "list" else inner

    def inside(self, read: Callable[[], Node]) -> Node:
        """Read what is inside a bracket."""
        self.deep += 1
        if self.deep > DEEPEST:
            raise UnreadableError
        bars, self.bars = self.bars, 0
        node = read()
        self.deep, self.bars = self.deep - 1, bars
        return node

    def absolute(self) -> Node:
        self.need("|")
        self.bars += 1
        inner = self.sum()
        self.bars -= 1
        self.need("|")
        return Node("call", (inner,), "abs")

    def bracket(self, opening: str) -> Node:
        """A group, a tuple, an interval, a set, or what is rounded down or up."""
        if self.text.startswith(opening, self.at):
            self.at += len(opening)
        inner = self.inside(self.items)
        closing = self.take(_CLOSING)
        own = _OPEN[opening]
        if closing is None or (closing != own and {closing, own} - {")", "]"}):
            raise UnreadableError
        if opening == r"\{":
            return Node("set", inner.parts if inner.kind == "list" else (inner,))
        if opening in (r"\lfloor", r"\lceil"):
            return Node("call", (inner,), "floor" if opening == r"\lfloor" else "ceil")
        if inner.kind == "list":
            return Node("tuple", inner.parts, "()" if opening == r"\langle" else opening + closing)
        if closing != own:
            raise UnreadableError
        return inner

    def matrix(self) -> Node:
        kind = self.take("{matrix}") or self.take("{vmatrix}")
        if kind is None:
            raise UnreadableError
        rows: list[Node] = []
        while True:
            cells = [self.inside(self.union)]
            while self.take("&"):
                cells.append(self.inside(self.union))
            rows.append(Node("list", tuple(cells)))
            if not self.take("\\\\") or self.command() == r"\end":
                break
        self.need(rf"\end{kind}")
        if len({len(row.parts) for row in rows}) != 1:
            raise UnreadableError
        return Node("det" if kind == "{vmatrix}" else "matrix", tuple(rows))
