"""Values of a reward's parameters, checked by their type hints."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from parallel_r1.errors import UserError
from parallel_r1.registry import where
from parallel_r1.training.rewards.outcome import Reward

KINDS: dict[Any, str] = {
    float: "number",
    int: "whole number",
    bool: "True or False",
    str: "text in quotes",
    Reward: "reward",
    NoneType: "None",
}
"""The type hints that are checked, with their names in error messages. A value of another hint is taken as it is."""


def hint_of(parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    """The type hint of a parameter as an object, also under `from __future__ import annotations`; Any without a hint.

    Raises:
        UserError: the hint names something that its module does not have.
    """
    hint = parameter.annotation
    if hint is inspect.Parameter.empty:
        return Any
    if not isinstance(hint, str):
        return hint
    try:
        namespace = getattr(inspect.unwrap(function), "__globals__", {})
        return eval(hint, namespace)  # the user's own source, as typing.get_type_hints reads it
    except Exception as error:
        raise UserError(
            f"type hints of the reward {function.__name__} that can be read",
            f"{where(function)}: {parameter.name}: {hint} ({error})",
            "import the type at the top of the file, outside `if TYPE_CHECKING`",
        ) from error


def options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def describe(hint: Any) -> str:
    """A hint in words, such as `whole number`."""
    return " or ".join(KINDS.get(option, str(option)) for option in options(hint))


def fit(value: Any, hint: Any) -> Any:
    """A value as its parameter takes it; whole numbers become floats where the hint is `float`.

    Raises:
        ValueError: the value does not fit the hint.
    """
    for option in options(hint):
        if option not in KINDS:
            return value
        if option is Reward:
            if callable(value):
                return value
        elif option in (float, int):
            if isinstance(value, Real if option is float else Integral) and not isinstance(value, bool):
                return option(value)
        elif isinstance(value, option):
            return value
    raise ValueError(f"{value!r} is no {describe(hint)}")
