"""Rewards as recipes write them, such as `alternate(accuracy(), bonus(0.2), period=10, second=2)`.

The text is a call of any registered reward, the user's own included, with literals and other rewards as arguments. It
is read as a syntax tree and never run as Python.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from itertools import repeat
from typing import Any

from parallel_r1.errors import UserError, nearest
from parallel_r1.training.rewards.arguments import KINDS, describe, fit, options
from parallel_r1.training.rewards.base import REWARDS, BuiltReward, RewardFactory, check_forks
from parallel_r1.training.rewards.outcome import Reward


def parse_reward(text: str) -> BuiltReward:
    """Read a reward as a recipe writes it.

    Raises:
        UserError: the text is not a call of a registered reward with the arguments of its signature, or the reward
            refuses them.
    """
    try:
        return _build(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(
            "a reward such as accuracy() or alternate(accuracy(), bonus(0.2))",
            f"'{text}' ({error})",
            f"the rewards are: {', '.join(REWARDS)}",
        ) from error


def check_reward(text: str, forks: bool) -> None:
    """Refuse a reward that cannot be read, or that pays for forks where the sampler opens none.

    Raises:
        UserError: as `parse_reward` and `check_forks`.
    """
    check_forks(parse_reward(text), forks)


def _build(node: ast.expr) -> BuiltReward:
    """The reward that a call in the text builds. Raises ValueError with what is wrong with it."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(f"{ast.unparse(node)} is no call of a reward")
    name = node.func.id
    factory = REWARDS[name]
    for keyword in node.keywords:
        if keyword.arg not in factory.signature.parameters:
            parameters = factory.signature.parameters
            raise UserError(f"an argument of {name}", f"'{keyword.arg}'", nearest(str(keyword.arg), parameters))
    words = {str(keyword.arg): keyword.value for keyword in node.keywords}
    if len(words) < len(node.keywords):
        raise ValueError(f"an argument of {name} twice")
    try:
        factory.signature.bind(*node.args, **words)
    except TypeError as error:
        raise ValueError(str(error)) from error
    return factory(
        *(_argument(value, hint) for value, hint in zip(node.args, _positional_hints(factory), strict=False)),
        **{key: _argument(value, factory.hints[key]) for key, value in words.items()},
    )


def _positional_hints(factory: RewardFactory[...]) -> Iterator[Any]:
    """Type hints of the first, second, .. argument of a call; endless where there is a parameter like `*rewards`."""
    for name, parameter in factory.signature.parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield from repeat(factory.hints[name])
        yield factory.hints[name]


def _argument(node: ast.expr, hint: Any) -> Any:
    is_plain = all(option in KINDS and option is not Reward for option in options(hint))
    if isinstance(node, ast.Call) and not is_plain:
        return _build(node)
    try:
        literal = ast.literal_eval(node)
        if isinstance(literal, float) and not math.isfinite(literal):
            raise ValueError("numbers in recipes are finite")
        return fit(literal, hint)
    except ValueError as error:
        kind = "call of a reward" if Reward in options(hint) else describe(hint) if is_plain else "literal"
        raise ValueError(f"{ast.unparse(node)} is no {kind}") from error
