r"""Compare two answers that could be read: sets, tuples, intervals, matrices, relations, quantities, numbers.

The form of the reference decides what is asked. A list such as `1,2` may be given in any order, in braces or not; a set
is no point; an interval may be given as inequalities; of an equation `x = 5` the value is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from parallel_r1.tasks.grading.intervals import FLIPPED, Bound, is_name, region
from parallel_r1.tasks.grading.quantities import CONSTANTS, Verdict, same_scalars, summed
from parallel_r1.tasks.grading.tree import Node, UnreadableError
from parallel_r1.tasks.grading.values import POINTS, equal, evaluate, mul

MOST = 60
"""Most members of a list that are compared."""
COMPOSED = ("tuple", "union", "matrix")


def same(gold: Node, answer: Node) -> Verdict:
    """Whether an answer is what a reference asks for.

    Raises:
        UnreadableError: one of them has parts that cannot be compared here.
    """
    gold, answer = summed(gold), summed(answer)
    regions = region(gold), region(answer, pairs=gold.kind == "union")
    if regions[0] is not None and regions[1] is not None:
        if not (gold.kind == answer.kind == "tuple"):
            return _same_regions(regions[0], regions[1])
    elif regions[0] is not None and gold.kind != "tuple":
        return False
    if gold.kind == "relation" or answer.kind == "relation":
        return _same_relations(gold, answer)
    if gold.kind == "tuple" and (moved := _coordinates(answer, len(gold.parts))) is not None:
        return _all(same(one, two) for one, two in zip(gold.parts, moved, strict=True))
    if "ratio" in (gold.kind, answer.kind):
        return _same_ratios(gold, answer)
    if (rows := (matrix(gold), matrix(answer))) != (None, None):
        return _same_matrices(gold, answer, *rows)
    if gold.kind == "tuple" and answer.kind == "tuple":
        return _same_tuples(gold, answer)
    if {gold.kind, answer.kind} == {"set", "tuple"}:
        return False
    if gold.kind == "list" and answer.kind == "tuple":
        return len(gold.parts) == len(answer.parts) and _all(map(same, gold.parts, answer.parts))
    if len({node.kind in COMPOSED for node in (gold, answer)}) == 2 and not {gold.kind, answer.kind} & {"list", "set"}:
        return False  # a point or an interval is no number
    if "union" in (gold.kind, answer.kind):
        return None
    members = _members(gold), _members(answer)
    if len(members[0]) == len(members[1]) == 1:
        one, two = members[0][0], members[1][0]
        if (one.kind, two.kind) != (gold.kind, answer.kind):
            return same(one, two)
        return same_scalars(one, two)
    return _same_members(*members)


def _all(verdicts: Iterable[Verdict]) -> Verdict:
    """True if all are, False if one is False, else None."""
    unsure = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unsure |= verdict is None
    return None if unsure else True


# Lists and sets


def _members(node: Node) -> list[Node]:
    r"""What a list, a set or one thing consists of; `\pm` stands for two things."""
    parts = node.parts if node.kind in ("list", "set") else (node,)
    return [member for part in parts for member in _signs(_asked(part))]


def _asked(node: Node) -> Node:
    """The value in `x = 5`; other things as they are."""
    if node.kind == "relation" and set(node.name.split()) <= {"=", "~"} and is_name(node.parts[0]):
        return node.parts[-1]
    return node


def _signs(node: Node) -> list[Node]:
    return [_with_sign(node, 1), _with_sign(node, -1)] if _has_sign(node) else [node]


def _has_sign(node: Node) -> bool:
    return node.kind == "pm" or any(map(_has_sign, node.parts))


def _with_sign(node: Node, sign: int) -> Node:
    """A node with one of the two signs for every `\\pm`."""
    parts = tuple(_with_sign(part, sign) for part in node.parts)
    if node.kind == "pm":
        return parts[0] if (node.name == "pm") == (sign > 0) else Node("neg", parts)
    return Node(node.kind, parts, node.name, node.value, node.places)


def _same_members(gold: Sequence[Node], answer: Sequence[Node]) -> Verdict:
    """Whether two lists have the same members, in any order and however often."""
    if max(len(gold), len(answer)) > MOST:
        return None
    unsure = False
    for some, others in ((gold, answer), (answer, gold)):
        for one in some:
            verdicts = [same(one, two) if some is gold else same(two, one) for two in others]
            if any(verdicts):
                continue
            if None not in verdicts:
                return False
            unsure = True
    return None if unsure else True


# Tuples and matrices


def _same_tuples(gold: Node, answer: Node) -> Verdict:
    if len(gold.parts) != len(answer.parts):
        return False
    if len(gold.parts) == 2 and gold.name != answer.name:
        return False  # [0,1) is not [0,1]
    return _all(map(same, gold.parts, answer.parts))


def _same_ratios(gold: Node, answer: Node) -> Verdict:
    """Ratios are equal if they are proportional."""
    if gold.kind != answer.kind or len(gold.parts) != len(answer.parts):
        return False
    first, given = gold.parts[0], answer.parts[0]
    return _all(
        same_scalars(Node("mul", (one, given)), Node("mul", (two, first)))
        for one, two in zip(gold.parts[1:], answer.parts[1:], strict=True)
    )


def _coordinates(answer: Node, count: int) -> list[Node] | None:
    """The values of `x=2, y=3`, or of numbers without brackets, in their order; None if they are something else."""
    if answer.kind != "list" or len(answer.parts) != count:
        return None
    if any(part.kind in ("tuple", "set", "list", "matrix") for part in answer.parts):
        return None
    return [_asked(part) for part in answer.parts]


Rows = list[list[Node]]


def matrix(node: Node) -> Rows | None:
    """The cells of a matrix, with the factor before it multiplied in; None if it is none."""
    if node.kind == "matrix":
        return [list(row.parts) for row in node.parts]
    if node.kind == "neg" and (rows := matrix(node.parts[0])) is not None:
        return [[Node("neg", (cell,)) for cell in row] for row in rows]
    if node.kind == "mul":
        one, two = matrix(node.parts[0]), matrix(node.parts[1])
        if (one is None) != (two is None):
            factor, rows = (node.parts[1], one) if one is not None else (node.parts[0], two)
            return [[Node("mul", (factor, cell)) for cell in row] for row in rows or ()]
    if node.kind == "div" and (rows := matrix(node.parts[0])) is not None:
        return [[Node("div", (cell, node.parts[1])) for cell in row] for row in rows]
    if node.kind == "add":
        one, two = matrix(node.parts[0]), matrix(node.parts[1])
        if one and two and len(one) == len(two) and len(one[0]) == len(two[0]):
            return [[Node("add", pair) for pair in zip(*rows, strict=True)] for rows in zip(one, two, strict=True)]
    return None


def _same_matrices(gold: Node, answer: Node, one: Rows | None, two: Rows | None) -> Verdict:
    """Compare matrices; a vector may be a tuple, and rows may be lists in brackets."""
    one, two = _rows_like(one, gold, two), _rows_like(two, answer, one)
    if one is None or two is None or len(one) != len(two) or len(one[0]) != len(two[0]):
        return False
    return _all(same_scalars(a, b) for rows in zip(one, two, strict=True) for a, b in zip(*rows, strict=True))


def _rows_like(rows: Rows | None, node: Node, other: Rows | None) -> Rows | None:
    """The rows of a matrix; of a tuple, those in the shape of the other matrix."""
    if rows is not None or node.kind != "tuple" or other is None:
        return rows
    if all(part.kind == "tuple" for part in node.parts):
        nested = [list(part.parts) for part in node.parts]
        return nested if len({len(row) for row in nested}) == 1 else None
    return [list(node.parts)] if len(other) == 1 else [[part] for part in node.parts]


# Equations and inequalities


def _value_side(node: Node, *, quantities: bool = False) -> Node | None:
    """The side of an equation that is compared with something that is no equation; None if there is none.

    Args:
        quantities: of `f(2) = 7`, `|x| = 7` and `a + b = 7` it is 7 too.
    """
    signs, sides = node.name.split(), list(node.parts)
    if signs == ["in"]:
        return sides[1]
    if "~" in signs[:-1] or not set(signs) <= {"=", "~"}:
        return None
    if signs[-1] == "~" and len(sides) > 2:
        sides.pop()  # x = 1/3 = about 0.33
    elif signs == ["~"] and not is_name(sides[0]):
        sides.pop()
    if len(sides) == 1:
        return sides[0]
    first, last = sides[0], sides[-1]
    if is_name(last) and not is_name(first):
        return first
    if is_name(first):
        return last if all(_settled(a, b) for a, b in pairwise(sides[1:])) else None
    if quantities and _is_quantity(first) and not last.names() - CONSTANTS:
        return last if all(_settled(a, b) for a, b in pairwise(sides[1:])) else None
    if not first.names() - CONSTANTS:
        return last if all(_settled(a, b) for a, b in pairwise(sides)) else None
    return None


def _is_quantity(node: Node) -> bool:
    """Whether something stands for one value: |x|, f(2), sin A, a + b, but not 2x."""
    if node.kind == "call":
        return True
    if node.kind == "add":
        return all(map(is_name, node.parts)) or (_is_quantity(node.parts[0]) and is_name(node.parts[1]))
    return node.kind == "mul" and is_name(node.parts[0]) and node.parts[1].kind == "num"


def _settled(one: Node, two: Node) -> bool:
    """Whether two sides of a chain of equations do not contradict one another."""
    try:
        return same(one, two) is not False
    except (UnreadableError, ArithmeticError):
        return True


def is_polynomial(node: Node) -> bool:
    """Whether names are only added and multiplied in an expression."""
    if not node.names() - CONSTANTS:
        return True
    if node.kind in ("div", "pow"):
        return is_polynomial(node.parts[0]) and not node.parts[1].names()
    return node.kind in ("var", "add", "mul", "neg") and all(map(is_polynomial, node.parts))


def _same_relations(gold: Node, answer: Node) -> Verdict:
    if gold.kind != "relation":
        side = _value_side(answer, quantities=True)
        return False if side is None else same(gold, side)
    if answer.kind != "relation":
        side = _value_side(gold)
        return False if side is None else same(side, answer)
    signs = gold.name.split(), answer.name.split()
    if signs[0] == signs[1] == ["="]:
        return _same_equations(gold.parts, answer.parts)
    if signs[0] == signs[1] and len(signs[0]) == 1 and signs[0][0] in ("in", "ne"):
        return _all(map(same, gold.parts, answer.parts))
    if len(signs[0]) == len(signs[1]) == 1 and {signs[0][0], signs[1][0]} <= set(FLIPPED):
        return _same_inequalities(gold.parts, signs[0][0], answer.parts, signs[1][0])
    if (one := _value_side(gold)) is not None and (two := _value_side(answer)) is not None:
        return same(one, two)
    return None


def _same_equations(gold: tuple[Node, ...], answer: tuple[Node, ...]) -> Verdict:
    """Whether two equations say the same: one is the other one times a number."""
    names = [next((i for i in (0, 1) if is_name(sides[i])), None) for sides in (gold, answer)]
    if names[0] is not None and names[1] is not None and gold[names[0]] == answer[names[1]]:
        return same(gold[1 - names[0]], answer[1 - names[1]])
    if not any(side.names() - CONSTANTS for side in (*gold, *answer)):
        return _all(map(same, gold, answer))
    verdict = _proportional(gold, answer, positive=False)
    return False if verdict is None and all(map(is_polynomial, (*gold, *answer))) else verdict


def _same_inequalities(gold: tuple[Node, ...], one: str, answer: tuple[Node, ...], two: str) -> Verdict:
    if one != two:
        answer, two = (answer[1], answer[0]), FLIPPED[two]
    return _proportional(gold, answer, positive=True) if one == two else False


def _proportional(gold: tuple[Node, ...], answer: tuple[Node, ...], *, positive: bool) -> Verdict:
    """Whether the difference of two sides is that of two other sides, times a number. None if not: `y = 1/x` and
    `xy = 1` say the same too; False if they have no names in common."""
    one, two = (Node("add", (sides[0], Node("neg", (sides[1],)))) for sides in (gold, answer))
    if one.names() != two.names():
        return False
    firsts = [evaluate(node, 0) for node in (one, two)]
    for point in range(1, POINTS):
        a, b = evaluate(one, point), evaluate(two, point)
        if not equal(mul(a, firsts[1]), mul(b, firsts[0])):
            return None
    number = mul(*firsts).number
    return not positive or (not isinstance(number, complex) and number > 0)


# Intervals


def _same_regions(gold: list[Bound], answer: list[Bound]) -> Verdict:
    """Whether two unions have the same intervals."""
    if len(gold) != len(answer):
        return False if len(gold) == 1 or len(answer) == 1 else None
    rest, unsure = list(answer), False
    for one in gold:
        verdicts = [_same_bounds(one, two) for two in rest]
        if True in verdicts:
            del rest[verdicts.index(True)]
        elif None in verdicts:
            unsure = True
        else:
            return False
    return None if unsure else True


def _same_bounds(one: Bound, two: Bound) -> Verdict:
    if one[2:] != two[2:] or any((one[end] is None) != (two[end] is None) for end in (0, 1)):
        return False
    return _all(same(a, b) for a, b in zip(one[:2], two[:2], strict=True) if a is not None and b is not None)
