"""Compare two expressions, with their units, percent signs and decimals."""

from __future__ import annotations

from fractions import Fraction

from parallel_r1.tasks.grading.decimals import rounded
from parallel_r1.tasks.grading.tree import Node, UnreadableError
from parallel_r1.tasks.grading.units import SCALE
from parallel_r1.tasks.grading.values import POINTS, equal, evaluate

ZERO = Node("num")
CONSTANTS = {"pi", "e", "i"}
Verdict = bool | None
"""None: not decided here."""


def summed(node: Node) -> Node:
    """`2 hours and 30 minutes` as one quantity."""
    units = [part.name for part in node.parts if part.kind == "unit" and part.name in SCALE]
    if node.kind != "list" or len(units) < len(node.parts) or len(set(units)) < len(units):
        return node
    if len({SCALE[unit][0] for unit in units}) > 1:
        return node
    total = ZERO
    for part in node.parts:
        share = SCALE[part.name][1] / SCALE[units[0]][1]
        total = Node("add", (total, _times(part.parts[0], share)))
    return Node("unit", (total,), units[0])


def same_scalars(gold: Node, answer: Node) -> Verdict:
    """Compare two expressions, with their units and percent signs."""
    readings = _readings(gold, answer)
    verdicts = [_same_values(one, two) for one, two in readings]
    if any(verdicts):
        return True
    return None if None in verdicts else False


def _readings(gold: Node, answer: Node) -> list[tuple[Node, Node]]:
    """The pairs of expressions, without units, of which one must be equal.

    Units that measure the same are converted; all others are left out. Where only one of the two has a percent sign or
    is in cents, the number may be meant as it stands or as a hundredth of it."""
    units = _unit(gold), _unit(answer)
    one, two = _bare(gold), _bare(answer)
    known = [SCALE.get(unit, ("", Fraction(1))) for unit in units]
    if known[0][0] and known[0][0] == known[1][0]:
        return [(_times(one, known[0][1]), _times(two, known[1][1]))]
    pairs = [(one, two)]
    hundredths = [unit in ("percent", "cent", "penny", "pennies") for unit in units]
    if hundredths[0] != hundredths[1]:
        share = Fraction(1, 100)
        pairs.append((_times(one, share), two) if hundredths[0] else (one, _times(two, share)))
        if hundredths[1] and one.kind == "num" and abs(one.value) < 1:
            del pairs[0]  # 0.5 is not 0.5 %
    return pairs


def _unit(node: Node) -> str:
    if node.kind == "neg":
        return _unit(node.parts[0])
    return {"percent": "percent", "degree": "degree", "unit": node.name}.get(node.kind, "")


def _bare(node: Node) -> Node:
    if node.kind == "neg" and _unit(node):
        return Node("neg", (_bare(node.parts[0]),))
    return _bare(node.parts[0]) if _unit(node) else node


def _times(node: Node, factor: Fraction) -> Node:
    if factor == 0:  # radians
        return Node("div", (Node("mul", (node, Node("num", value=Fraction(180)))), Node("var", name="pi")))
    return node if factor == 1 else Node("mul", (node, Node("num", value=factor)))


def _same_values(gold: Node, answer: Node) -> Verdict:
    if gold == answer:
        return True
    names = gold.names() | answer.names()
    points = range(POINTS if names - CONSTANTS else 1)
    first = evaluate(gold, 0), evaluate(answer, 0)
    verdict = equal(*first)
    if verdict is False:
        return len(points) == 1 and rounded(gold, first[0], answer, first[1])
    verdicts: list[Verdict] = [verdict]
    for point in points[1:]:
        try:
            verdicts.append(equal(evaluate(gold, point), evaluate(answer, point)))
        except (UnreadableError, ArithmeticError):
            verdicts.append(None)
        if verdicts[-1] is False and point < POINTS - 1:
            return False
    if verdicts[-1] is not True and True in verdicts and _is_unreal(gold, POINTS - 1):
        verdicts.pop()  # the square root of 1/n asks for no negative n
    return False if False in verdicts else None if None in verdicts else True


def _is_unreal(node: Node, point: int) -> bool:
    """Whether an expression without the imaginary unit has no real value at a point."""
    try:
        return "i" not in node.names() and getattr(evaluate(node, point).number, "imag", 0) != 0
    except (UnreadableError, ArithmeticError):
        return True
