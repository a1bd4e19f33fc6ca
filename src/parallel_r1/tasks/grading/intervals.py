"""Intervals: written as such, as a union, or as inequalities for one name."""

from __future__ import annotations

from fractions import Fraction

from parallel_r1.tasks.grading.tree import Node
from parallel_r1.tasks.grading.values import Value, add, evaluate, mul

FLIPPED = {"<": ">", ">": "<", "le": "ge", "ge": "le"}
Bound = tuple[Node | None, Node | None, bool, bool]
"""Lower and upper end of an interval, None if there is none; whether the ends belong to it."""


def is_name(node: Node) -> bool:
    """Whether something is the name of an unknown: x, x_1, angle ABC, f(x), (x, y); no number or expression."""
    if node.kind == "tuple":
        return all(map(is_name, node.parts))
    if node.kind == "mul":
        return all(map(is_name, node.parts)) and not {"pi", "e", "i"} & node.names()
    return node.kind == "var" and node.name not in ("pi", "e", "i", "infty")


def region(node: Node, *, pairs: bool = False) -> list[Bound] | None:
    """The intervals of a union, of inequalities for one name, or of a pair of ends; None if it is none of these.

    Args:
        pairs: pairs in a list are intervals, even if they could be points.
    """
    if node.kind == "tuple" and len(node.parts) == 2:
        low, high = node.parts
        if {low.kind, high.kind} & {"tuple", "set", "list", "matrix", "relation"}:
            return None
        return [(_end(low), _end(high), node.name[0] == "[", node.name[1] == "]")]
    if node.kind in ("union", "list") or (node.kind == "set" and len(node.parts) > 1):
        regions = [region(part) for part in node.parts]
        if node.kind == "union":
            regions = [_points(part) if one is None else one for one, part in zip(regions, node.parts, strict=True)]
        elif not pairs and any(part.kind == "tuple" for part in node.parts) and not _unbounded(regions):
            return None  # a list of points
        if None in regions:
            return None
        bounds = [bound for one in regions for bound in one or ()]
        return _intersection(*bounds) if node.kind == "list" and len(bounds) == 2 else bounds
    if node.kind == "relation":
        return _inequality(node)
    return None


def _intersection(one: Bound, two: Bound) -> list[Bound]:
    """The interval that `x > -2 and x < 2` stands for; two intervals if they do not overlap."""
    low, high = (one, two) if one[1] is None else (two, one)
    if low[0] is None or low[1] is not None or high[0] is not None or high[1] is None:
        return [one, two]
    gap = add(evaluate(high[1], 0), mul(Value(Fraction(-1)), evaluate(low[0], 0))).number
    overlap = getattr(gap, "imag", 0) == 0 and gap > 0
    return [(low[0], high[1], low[2], high[3])] if overlap else [one, two]


def _unbounded(regions: list[list[Bound] | None]) -> bool:
    """Whether a list of pairs is one of intervals: one of them has no end, or one belongs to it and the other not."""
    return any(low is None or high is None or a or b for one in regions for low, high, a, b in one or ())


def _end(node: Node) -> Node | None:
    """An end of an interval; None for infinity."""
    return None if node.kind in ("var", "neg") and node.names() == {"infty"} else node


def _points(node: Node) -> list[Bound] | None:
    return [(point, point, True, True) for point in node.parts] if node.kind == "set" else None


def _inequality(node: Node) -> list[Bound] | None:
    """The interval of `1 < x <= 4` or `x > 3`, and of `x in [1,4]`."""
    signs, sides = node.name.split(), node.parts
    if signs == ["in"]:
        return region(sides[1])
    if signs == ["ne"] and is_name(sides[0]) and not sides[1].names():
        return [(None, sides[1], False, False), (sides[1], None, False, False)]
    if not set(signs) <= set(FLIPPED) or len(signs) > 2:
        return None
    if len(signs) == 1:
        if is_name(sides[1]) and not is_name(sides[0]):
            sides, signs = (sides[1], sides[0]), [FLIPPED[signs[0]]]
        if not is_name(sides[0]) or sides[1].names() - {"pi", "e"}:
            return None
        closed = signs[0] in ("le", "ge")
        below = signs[0] in ("<", "le")
        return [(None, _end(sides[1]), False, closed) if below else (_end(sides[1]), None, closed, False)]
    if signs[0] in (">", "ge"):
        sides, signs = sides[::-1], [FLIPPED[sign] for sign in reversed(signs)]
    if not is_name(sides[1]) or not set(signs) <= {"<", "le"}:
        return None
    ends = _end(sides[0]), _end(sides[2])
    return [(*ends, signs[0] == "le" and ends[0] is not None, signs[1] == "le" and ends[1] is not None)]
