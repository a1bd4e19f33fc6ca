"""Rewards as recipes write them."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable
from typing import Any

from parallel_r1.errors import UserError, nearest
from parallel_r1.training.rewards.outcome import Reward
from parallel_r1.training.rewards.schedules import alternate, anneal, decay, switch
from parallel_r1.training.rewards.terms import (
    acceleration,
    accuracy,
    additive,
    bonus,
    count,
    diversity,
    efficiency,
    gate,
    overlong,
    parallel_and_accuracy,
)

WITHOUT_FORKS: dict[str, Callable[..., Reward]] = {
    function.__name__: function for function in (accuracy, gate, overlong, alternate, switch, decay, anneal)
}
"""Rewards that say something about answers without forks too."""


KNOWN: dict[str, Callable[..., Reward]] = WITHOUT_FORKS | {
    function.__name__: function
    for function in (parallel_and_accuracy, bonus, additive, count, diversity, efficiency, acceleration)
}


def parse_reward(text: str) -> Reward:
    """Read a reward as a recipe writes it, such as `alternate(accuracy(), bonus(0.2), period=10, second=2)`.

    Raises:
        UserError: anything but calls of known rewards with numbers and rewards as arguments.
    """
    return _build(_tree(text), text)


def check_reward(text: str, forks: bool) -> None:
    """Refuse a reward that cannot be read, or that pays for forks where the sampler opens none.

    Raises:
        UserError: as `parse_reward`; a term about forks although there are none.
    """
    parse_reward(text)
    names = [node.id for node in ast.walk(_tree(text)) if isinstance(node, ast.Name)]
    about = [name for name in names if name not in WITHOUT_FORKS]
    if about and not forks:
        raise UserError(
            "a reward without forks, where the sampler is sequential, a fork has one path or the budget none",
            f"{about[0]} in '{text}'",
            f"use one of {', '.join(WITHOUT_FORKS)}, or another sampler",
        )


def _tree(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(text, error) from error


def _build(node: ast.expr, text: str) -> Reward:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise _unreadable(text, ValueError(f"{ast.unparse(node)} is no call of a reward"))
    name = node.func.id
    if name not in KNOWN:
        raise UserError("a known reward", f"'{name}'", nearest(name, KNOWN))
    parameters = inspect.signature(KNOWN[name]).parameters
    for keyword in node.keywords:
        if keyword.arg not in parameters:
            raise UserError(f"an argument of {name}", f"'{keyword.arg}'", nearest(str(keyword.arg), parameters))
    given = [str(word.arg) for word in node.keywords]
    try:
        if len(given) > len(set(given)):
            raise ValueError(f"an argument of {name} twice")
        bound = inspect.signature(KNOWN[name]).bind(*node.args, **{str(word.arg): word.value for word in node.keywords})
        values: dict[str, Any] = {
            key: _build(value, text)
            if parameters[key].annotation in ("Reward", "Base")
            else _number(value, whole=parameters[key].annotation == "int")
            for key, value in bound.arguments.items()
        }
        return KNOWN[name](**values)
    except (TypeError, ValueError, RecursionError) as error:
        raise _unreadable(text, error) from error


def _number(node: ast.expr, whole: bool) -> float:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        value = None
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not math.isfinite(value):
        raise ValueError(f"{ast.unparse(node)} is no {'whole ' if whole else ''}number")
    return value if whole else float(value)


def _unreadable(text: str, error: BaseException) -> UserError:
    return UserError(
        "a reward such as accuracy() or alternate(accuracy(), bonus(0.2))",
        f"'{text}' ({error})",
        f"known rewards: {', '.join(KNOWN)}",
    )
