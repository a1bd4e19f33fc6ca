"""What an answer earns: small functions, combinators, and the little language that recipes write them in.

A reward is a function of an `Outcome` and the 1-based training step. What it gives is kept by term, such as what was
earned for being correct and what for being diverse; the reward is the sum of its terms. Terms that pay for structure
are paid to correct answers alone, unless a recipe gives them a weight in wrong ones: what pays for structure whatever
the answer is soon gamed.

Sources: section 3 of the Parallel-R1 paper (arXiv 2509.07980) and its released reward functions; ThreadWeaver (arXiv
2512.07843) for `acceleration`; DAPO (arXiv 2503.14476) for `overlong`; Kimi K2.5 for `anneal`.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from parallel_r1.errors import UserError, nearest, need
from parallel_r1.rollout import Rollout
from parallel_r1.trace import parse_text, text_pieces

Terms = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What rewards may look at.

    Attributes:
        correct: whether the answer is right.
        forks: how many it opened.
        well_formed: whether its form is right.
        critical_path, total: tokens that had to be drawn one after the other, and all tokens.
        text: the answer with its tags.
    """

    correct: bool
    forks: int
    well_formed: bool
    critical_path: int = 1
    total: int = 1
    text: str = ""

    @staticmethod
    def of(rollout: Rollout) -> Outcome:
        """What rewards may look at of an answer that has been judged."""
        trace = rollout.trace
        cost = rollout.critical_path, rollout.total
        return Outcome(rollout.correct, trace.forks, trace.well_formed, *cost, rollout.text)

    @property
    def parallel(self) -> bool:
        """Whether the answer thinks in parallel: it forks, and its form is right."""
        return self.forks >= 1 and self.well_formed

    @property
    def saved(self) -> float:
        """The share of the tokens that nobody had to wait for: 1 - critical path / total."""
        return 1 - self.critical_path / self.total if self.total else 0.0


Reward = Callable[[Outcome, int], Terms]
Base = Reward | None
"""A reward to build on; `accuracy()` if None."""


def accuracy(wrong: float = -1.0) -> Reward:
    """1 if correct, else `wrong`."""
    return lambda outcome, step: {"accuracy": 1.0 if outcome.correct else wrong}


def gate(wrong: float = -1.0) -> Reward:
    """1 if correct and without a malformed fork, else `wrong`."""

    def reward(outcome: Outcome, step: int) -> Terms:
        return {"accuracy": 1.0 if outcome.correct and (outcome.well_formed or not outcome.forks) else wrong}

    return reward


def parallel_and_accuracy(wrong: float = -1.0) -> Reward:
    """1 if correct and parallel, else `wrong`: the reward of the first RL stage, on easy problems."""
    return lambda outcome, step: {"accuracy": 1.0 if outcome.correct and outcome.parallel else wrong}


def bonus(extra: float = 0.2, wrong: float = -1.0) -> Reward:
    """1 + extra if correct and parallel, 1 if correct without a fork, else `wrong`; so a correct answer whose fork is
    malformed earns `wrong`."""
    earn = gate(wrong)

    def reward(outcome: Outcome, step: int) -> Terms:
        return {**earn(outcome, step), "parallel": extra if outcome.correct and outcome.parallel else 0.0}

    return reward


def additive(base: Base = None, right: float = 0.5, wrong: float = 0.0) -> Reward:
    """`base`, and `right` for a correct parallel answer, `wrong` for a wrong one."""
    return _shaped("parallel", base, right, wrong, lambda outcome: float(outcome.parallel))


def count(base: Base = None, right: float = 1.0, wrong: float = 0.0) -> Reward:
    """`base`, and the square root of the number of forks, times `right` if correct, else `wrong`."""
    return _shaped("count", base, right, wrong, lambda outcome: math.sqrt(outcome.forks))


def diversity(base: Base = None, right: float = 0.3, wrong: float = 0.0) -> Reward:
    """`base` less the self-BLEU of sibling paths, 0 .. 1, times `right` if correct, else `wrong`."""
    need_sacrebleu()
    return _shaped("diversity", base, -right, -wrong, lambda outcome: self_bleu(outcome.text))


def efficiency(base: Base = None, right: float = 0.4, wrong: float = 0.0) -> Reward:
    """`base`, and the share of tokens that nobody had to wait for, times `right` if correct, else `wrong`."""
    return _shaped("efficiency", base, right, wrong, lambda outcome: outcome.saved)


def acceleration(base: Base = None, right: float = 0.5, wrong: float = 0.0, most: float = 0.2) -> Reward:
    """`efficiency` of which no more than `most` is paid. ThreadWeaver's is `acceleration(accuracy(wrong=0))`."""
    return _shaped("acceleration", base, right, wrong, lambda outcome: min(outcome.saved, most))


def overlong(base: Base = None, *, cache: float, total: float = math.inf, critical_path: float = math.inf) -> Reward:
    """`base`, less what an answer takes of the last `cache` tokens before a length, as a share of them: nothing up to
    length - cache, 1 at the length and beyond it. What is long is what the budget counts: all tokens, those of the
    critical path, or whichever of the two goes further over its line. Source: DAPO (arXiv 2503.14476)."""
    if cache <= 0:
        raise ValueError(f"cache must be larger than 0, found {cache}")
    if math.isinf(min(total, critical_path)):
        raise ValueError("overlong needs a length: total, critical_path, or both")
    under = base or accuracy()

    def reward(outcome: Outcome, step: int) -> Terms:
        over = cache + max(outcome.total - total, outcome.critical_path - critical_path)
        return _add(under(outcome, step), {"overlong": -min(1.0, max(0.0, over / cache))})

    return reward


def alternate(first: Reward, other: Reward, period: int = 10, second: int = 2) -> Reward:
    """`first` for `period - second` steps, then `other` for `second` steps, and so on: the alternating reward S2."""
    if not 0 <= second <= period or period < 1:
        raise ValueError(f"second must lie in 0..period, found period={period}, second={second}")
    return lambda outcome, step: (first if (step - 1) % period < period - second else other)(outcome, step)


def switch(first: Reward, other: Reward, at: int) -> Reward:
    """`first` up to and including step `at`, then `other`: the mid-training scaffold."""
    return lambda outcome, step: (first if step <= at else other)(outcome, step)


def decay(first: Reward, other: Base = None, steps: float = 50) -> Reward:
    """From `first` to `other`, with exp(-step / steps) as the share of the first."""
    if steps <= 0:
        raise ValueError(f"steps must be larger than 0, found {steps}")
    return _mixed(first, other, lambda step: math.exp(-step / steps))


def anneal(first: Reward, other: Base = None, steps: float = 100) -> Reward:
    """From `first` to `other` in a straight line, which it reaches after so many steps."""
    if steps <= 0:
        raise ValueError(f"steps must be larger than 0, found {steps}")
    return _mixed(first, other, lambda step: max(0.0, 1 - step / steps))


def _shaped(name: str, base: Base, right: float, wrong: float, measure: Callable[[Outcome], float]) -> Reward:
    """`base`, and a term: what is measured, times a weight of correct or of wrong answers."""
    under = base or accuracy()

    def reward(outcome: Outcome, step: int) -> Terms:
        weight = right if outcome.correct else wrong
        return _add(under(outcome, step), {name: weight * measure(outcome) if weight else 0.0})

    return reward


def _mixed(first: Reward, other: Base, share: Callable[[int], float]) -> Reward:
    """A share of `first` and the rest of `other`, term by term."""
    last = other or accuracy()

    def reward(outcome: Outcome, step: int) -> Terms:
        mine = share(step)
        return _add(_times(mine, first(outcome, step)), _times(1 - mine, last(outcome, step)))

    return reward


def _add(one: Mapping[str, float], two: Mapping[str, float]) -> Terms:
    return {name: one.get(name, 0.0) + two.get(name, 0.0) for name in {**one, **two}}


def _times(factor: float, terms: Terms) -> Terms:
    return {name: factor * value for name, value in terms.items()}


def need_sacrebleu() -> None:
    """Refuse to begin what measures how alike paths are without the package that does it.

    Raises:
        UserError: it is not installed.
    """
    need("sacrebleu", "which says how alike paths are", "rewards")


def self_bleu(text: str) -> float:
    """How alike the paths of a fork are, 0 .. 1: the BLEU of each path against its siblings, as a mean over the paths
    and then over the forks that have siblings. 0 if there is none. Source: Texygen (arXiv 1802.01886)."""
    from sacrebleu import sentence_bleu

    forks: dict[int, dict[int, str]] = {}
    for (words, piece), address in zip(text_pieces(text), parse_text(text).addresses, strict=True):
        if address and piece.tag is None:
            fork, path = address[-1]
            paths = forks.setdefault(fork, {})
            paths[path] = paths.get(path, "") + words
    found = [
        fmean(sentence_bleu(path, [*paths[:at], *paths[at + 1 :]]).score / 100 for at, path in enumerate(paths))
        for paths in (list(fork.values()) for fork in forks.values())
        if len(paths) > 1
    ]
    return fmean(found) if found else 0.0


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
