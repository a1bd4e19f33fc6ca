"""The decorator `@reward`, the registry of rewards, and the function that gives a group its rewards.

There are two ways to write a reward, and the first parameter tells them apart:

* a function of the outcome. Its first parameter is named `outcome` (or has the type hint `Outcome`); the others are
  the arguments that a recipe gives. It returns terms or a number:

      @reward
      def brief(outcome, weight: float = 0.1) -> dict[str, float]:
          return {"brief": -weight * outcome.total / 100}

* a function that builds a reward, for arguments that are checked or prepared once. It has the type hint `-> Reward`:

      @reward
      def after(start: int, base: Reward) -> Reward:
          if start < 1:
              raise ValueError(f"start must be at least 1, got {start}")
          return lambda outcome: base(outcome) if outcome.step >= start else {}

Either way the name now builds rewards: `brief(0.2)` in Python and in recipes.
"""

from __future__ import annotations

import functools
import inspect
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, overload

from parallel_r1.answers.rollout import Group
from parallel_r1.errors import UserError
from parallel_r1.registry import Registry, where
from parallel_r1.training.rewards.arguments import fit, hint_of, options
from parallel_r1.training.rewards.outcome import Outcome, Reward, Terms

P = ParamSpec("P")


@dataclass(frozen=True, eq=False)
class BuiltReward:
    """A reward with its arguments, such as `bonus(0.2)`. Called with an outcome, it returns terms that were checked.

    Attributes:
        name: name of the function that the user wrote; names the term of a reward that returns a number.
        function: computes the terms, or one number.
        definition: the function or class that the user wrote, to name its file and line in errors.
        text: the reward as a recipe writes it.
        needs_forks: whether it pays for forks, so that it makes no sense where the sampler opens none.
        parts: the rewards among its arguments.
    """

    name: str
    function: Callable[[Outcome], object]
    definition: object
    text: str
    needs_forks: bool = False
    parts: tuple[BuiltReward, ...] = ()

    def __call__(self, outcome: Outcome, /) -> Terms:
        """The terms that the answer earns.

        Raises:
            UserError: the function returned anything but finite numbers by name, or one finite number.
        """
        result = self.function(outcome)
        terms = result if isinstance(result, Mapping) else {self.name: result}
        if not all(isinstance(name, str) and _is_number(value) for name, value in terms.items()):
            raise UserError(
                f"the reward {self.name} ({where(self.definition)}) to return finite numbers by name, or one number",
                f"{type(result).__name__} {reprlib.repr(result)}",
                f"return for instance {{'{self.name}': 0.5}}",
            )
        return {name: float(value) for name, value in terms.items()}  # type: ignore[arg-type]  # checked above

    def __repr__(self) -> str:
        return self.text

    def walk(self) -> Iterator[BuiltReward]:
        """This reward and all rewards among its arguments, at any depth."""
        yield self
        for part in self.parts:
            yield from part.walk()


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


class RewardFactory(Generic[P]):
    """What `@reward` makes of a function: call it with the reward's arguments to build the reward.

    Attributes:
        function: the function that the user wrote.
        needs_forks: whether its rewards pay for forks.
        signature: the parameters of the reward, without the outcome.
        hints: type hint of every parameter; Any where it has none.
    """

    def __init__(self, function: Callable[..., Any], needs_forks: bool) -> None:
        functools.update_wrapper(self, function)
        self.function, self.needs_forks = function, needs_forks
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())
        self.reads_outcome = bool(parameters) and (
            parameters[0].name == "outcome" or _type_name(parameters[0].annotation) == "Outcome"
        )
        if self.reads_outcome:
            parameters = parameters[1:]
        elif _type_name(signature.return_annotation) not in ("Reward", "BuiltReward"):
            raise UserError(
                "a reward whose first parameter is named `outcome`, or a function with the type hint `-> Reward` that "
                "builds one",
                f"{function.__name__}{signature} at {where(function)}",
                "name its first parameter `outcome`",
            )
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            raise UserError(
                "a reward whose parameters all have names",
                f"{function.__name__}{signature} at {where(function)}",
                "write its parameters out instead of **",
            )
        self.signature = self.__signature__ = signature.replace(parameters=parameters, return_annotation=Reward)
        self.hints = {parameter.name: hint_of(parameter, function) for parameter in parameters}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> BuiltReward:
        """Build the reward.

        Raises:
            TypeError: the arguments do not match the signature.
            ValueError: an argument does not fit its type hint, or the function refuses it.
            UserError: a function that builds a reward returned something else.
        """
        name = self.function.__name__
        if self.reads_outcome and any(isinstance(value, Outcome) for value in (*args, *kwargs.values())):
            raise TypeError(f"{name} builds a reward from its arguments; call the reward: {name}(..)(outcome)")
        bound = self._bind(*args, **kwargs)
        shown = [repr(value) for value in bound.args[: len(args)]]
        shown += [f"{key}={bound.arguments[key]!r}" for key in kwargs]
        bound.apply_defaults()
        values: list[object] = [*bound.args, *bound.kwargs.values()]
        reward: Any
        if self.reads_outcome:
            reward = lambda outcome: self.function(outcome, *bound.args, **bound.kwargs)  # noqa: E731
        else:
            reward = self.function(*bound.args, **bound.kwargs)
            values.append(reward)
            if not callable(reward):
                raise UserError(
                    f"{name} ({where(self.function)}) to return a reward: a function of an outcome",
                    f"{type(reward).__name__} {reprlib.repr(reward)}",
                    "return another reward, or a function whose only parameter is `outcome`",
                )
        parts = tuple(value for value in values if isinstance(value, BuiltReward))
        return BuiltReward(name, reward, self.function, f"{name}({', '.join(shown)})", self.needs_forks, parts)

    def _bind(self, *args: object, **kwargs: object) -> inspect.BoundArguments:
        """The arguments by parameter, as their type hints want them."""
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.function.__name__}: {error}") from None
        for key, value in bound.arguments.items():
            if self.signature.parameters[key].kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[key] = tuple(self._fit(key, item) for item in value)
            else:
                bound.arguments[key] = self._fit(key, value)
        return bound

    def _fit(self, name: str, value: object) -> object:
        try:
            fitted = fit(value, self.hints[name])
        except ValueError as error:
            raise ValueError(f"{name} of {self.function.__name__}: {error}") from None
        return as_reward(fitted) if Reward in options(self.hints[name]) and fitted is not None else fitted


def _type_name(hint: Any) -> str:
    """The name of a type hint, whether it is an object or a string: `Reward` for `rewards.outcome.Reward`."""
    return (hint if isinstance(hint, str) else getattr(hint, "__name__", "")).rpartition(".")[2]


REWARDS: Registry[RewardFactory[...]] = Registry("reward")
"""All rewards that recipes can name, built-in and the user's."""


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Callable[Concatenate[Outcome, P], Terms | float], /) -> RewardFactory[P]: ...
    @overload
    def __call__(self, function: Callable[P, Reward], /) -> RewardFactory[P]: ...


@overload
def reward(function: Callable[Concatenate[Outcome, P], Terms | float], /) -> RewardFactory[P]: ...
@overload
def reward(function: Callable[P, Reward], /) -> RewardFactory[P]: ...
@overload
def reward(*, needs_forks: bool) -> _Decorator: ...
def reward(function: Callable[..., Any] | None = None, /, *, needs_forks: bool = False) -> Any:
    """Register a reward under its function's name; the module's docstring has both ways to write one.

    Args:
        needs_forks: whether it pays for forks, so that a recipe whose sampler opens none is refused.

    Raises:
        UserError: the name is taken; the function reads no outcome and builds no reward.
    """
    if function is None:
        return functools.partial(reward, needs_forks=needs_forks)
    if not getattr(function, "__name__", "").isidentifier():
        raise UserError("a reward with a name", repr(function), "decorate a function that is defined with `def`")
    factory: RewardFactory[...] = RewardFactory(function, needs_forks)
    REWARDS.add(function.__name__, factory, function)
    return factory


def as_reward(value: Any) -> BuiltReward:
    """A reward from whatever Python code passes as one: a built reward, a decorated function (built with its
    defaults), or any callable of an outcome that returns terms or a number.

    Raises:
        UserError: no callable, or one that cannot be called with only an outcome.
        TypeError: a decorated function that has parameters without a default.
    """
    if isinstance(value, BuiltReward):
        return value
    if isinstance(value, RewardFactory):
        return value()
    definition = value.func if isinstance(value, functools.partial) else value
    name = getattr(definition, "__name__", type(definition).__name__)
    try:
        inspect.signature(value).bind(None)
    except TypeError as error:
        raise UserError(
            "a reward: a function of an outcome, or one that is built, such as accuracy()",
            f"{reprlib.repr(value)} ({error})",
            "give it one parameter, `outcome`; the training step is outcome.step",
        ) from error
    except ValueError:
        pass  # functions written in C may have no signature
    name = name if name.isidentifier() else "reward"  # a lambda
    place = definition if inspect.isroutine(definition) else type(definition)
    return BuiltReward(name, value, place, name)


def check_forks(reward: Callable[[Outcome], Terms | float], opens_forks: bool) -> None:
    """Refuse a reward that pays for forks where the sampler opens none.

    Raises:
        UserError: names the part of the reward that needs forks.
    """
    whole = as_reward(reward)
    part = next((part for part in whole.walk() if part.needs_forks), None)
    if part is not None and not opens_forks:
        others = ", ".join(name for name in REWARDS if not REWARDS[name].needs_forks)
        raise UserError(
            "a reward that does not pay for forks, because the sampler is sequential, a fork has one path or the "
            "budget allows none",
            f"{part.name} in '{whole}'",
            f"use one of {others}, or another sampler or budget",
        )


def apply_reward(group: Group, reward: Callable[[Outcome], Terms | float], step: int) -> Group:
    """The group with the terms of its rewards filled in.

    Args:
        reward: a reward, or any function of an outcome that returns terms or a number.
        step: training step, counted from 1.

    Raises:
        UserError: the reward returned something else than finite numbers.
        Exception: whatever the reward raises, unchanged.
    """
    built = as_reward(reward)
    outcomes = Outcome.of_group(group.rollouts, step)
    rollouts = zip(group.rollouts, outcomes, strict=True)
    return replace(group, rollouts=tuple(rollout.rewarded(built(outcome)) for rollout, outcome in rollouts))
