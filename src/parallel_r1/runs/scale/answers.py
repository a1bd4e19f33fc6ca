"""The form of answers as numbers of tokens: read from saved rollouts, or drawn from declared distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from parallel_r1.answers.rollout import read_jsonl
from parallel_r1.answers.trace import Trace
from parallel_r1.errors import UserError
from parallel_r1.generation.settings import Sampling
from parallel_r1.settings import Count, Section, Share

Part = int | tuple[int, ...]
"""A number of trunk tokens, or the numbers of tokens of the paths of a fork."""


@dataclass(frozen=True)
class Outline:
    """An answer without its words.

    Attributes:
        prompt: tokens of the prompt.
        parts: trunk and forks in turn, beginning and ending with a trunk part. A trunk part may have 0 tokens, a path
            has at least 1. What follows a fork is its summary and the trunk after it. Tokens that the runtime gives
            count like drawn ones.
    """

    prompt: int
    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        """All tokens of the answer."""
        return sum(part if isinstance(part, int) else sum(part) for part in self.parts)

    @property
    def critical_path(self) -> int:
        """Tokens that have to be drawn one after the other."""
        return sum(part if isinstance(part, int) else max(part) for part in self.parts)

    @property
    def copies(self) -> int:
        """Tokens that are read again after joins: all paths but the first of every fork."""
        return sum(sum(part[1:]) for part in self.parts if not isinstance(part, int))

    @property
    def forks(self) -> int:
        """Number of forks."""
        return sum(not isinstance(part, int) for part in self.parts)

    def in_turn(self) -> Outline:
        """The same tokens, drawn one after the other without forks."""
        return Outline(self.prompt, (self.total,))


def outline(prompt: int, parts: Sequence[Any], where: str) -> Outline:
    """The outline of an answer written as numbers and lists of numbers, such as [32, [48, 40], 24].

    Raises:
        UserError: something else is written there.
    """
    ours: list[Any] = [0]
    for part in parts:
        fork = isinstance(part, list | tuple) and len(part) > 0
        numbers, least = (part, 1) if fork else ([part], 0)
        if any(type(number) is not int or number < least for number in numbers):
            expected = "an answer as trunk tokens and forks, such as [32, [48, 40], 24]"
            raise UserError(expected, f"{where}: {part!r}", "correct it")
        if fork:
            ours += [tuple(part), 0]
        else:
            ours[-1] += part
    return Outline(prompt, tuple(ours))


def outline_of(trace: Trace) -> Outline:
    """The outline of a drawn answer. A fork inside a path counts as tokens of the path, one after the other."""
    parts: list[Any] = [0]
    last: int | None = None
    for span in trace.spans:
        size = len(span.token_ids)
        if not span.address:
            last = None
            if isinstance(parts[-1], dict):
                parts.append(0)
            parts[-1] += size
            continue
        fork, path = span.address[0]
        if fork != last:
            parts += [0, {}] if isinstance(parts[-1], dict) else [{}]
            last = fork
        parts[-1][path] = parts[-1].get(path, 0) + size
    done = tuple(tuple(part.values()) if isinstance(part, dict) else part for part in parts)
    return Outline(len(trace.prompt_ids), done if isinstance(done[-1], int) else (*done, 0))


def read_outlines(files: Sequence[Path]) -> list[Outline]:
    """The outlines of saved answers, of a run's rollouts/ folder.

    Raises:
        UserError: a file that holds no rollouts.
    """
    outlines = []
    for file in files:
        if not file.is_file():
            raise UserError(
                "a file of answers for --rollouts", f"no file {file}", "give runs/NAME/rollouts/step-N.jsonl"
            )
        outlines += [outline_of(rollout.trace) for rollout in read_jsonl(file)]
    if not outlines:
        raise UserError("answers in the files of --rollouts", "none", "give a file that has some")
    return outlines


class Lengths(Section):
    """How long answers are and how they fork, where no rollouts say it: a declared guess, not a measurement.

    Attributes:
        prompt: tokens of the prompt.
        median: of the critical path, as a share of its budget; answers beyond the budget are cut.
        spread: standard deviation of the logarithm of the critical path.
        parallel: share of the answers that fork, where the recipe allows it.
        forks: mean number of forks of those: 1, and a Poisson number of further ones up to the budget.
        path: median length of a path, as a share of the answer's critical path.
        path_spread: standard deviation of the logarithm of a path's length.
        summary: tokens of a summary, as a share of the median path.
    """

    prompt: Count = 200
    median: Annotated[float, Field(gt=0, le=1)] = 0.4
    spread: Annotated[float, Field(ge=0, le=3)] = 0.5
    parallel: Share = 0.7
    forks: Annotated[float, Field(ge=1)] = 1.5
    path: Annotated[float, Field(gt=0, le=1)] = 0.2
    path_spread: Annotated[float, Field(ge=0, le=3)] = 0.4
    summary: Share = 0.25

    def draw(self, sampling: Sampling, count: int, seed: int = 0) -> list[Outline]:
        """Outlines of `count` answers within the budget of a stage."""
        random = np.random.default_rng(seed)
        most = min(sampling.budget.critical_path, sampling.budget.total)
        sizes = most * self.median * np.exp(self.spread * random.standard_normal(count))
        forking = random.random(count) < (self.parallel if sampling.opens_forks else 0.0)
        numbers = np.minimum(1 + random.poisson(self.forks - 1, count), sampling.budget.forks)
        return [
            self._draw_one(random, sampling, max(1, round(min(size, most))), int(number) if forks else 0)
            for size, forks, number in zip(sizes, forking, numbers, strict=True)
        ]

    def _draw_one(self, random: np.random.Generator, sampling: Sampling, size: int, forks: int) -> Outline:
        """One answer with a critical path of about `size` tokens."""
        if not forks:
            return Outline(self.prompt, (size,))
        typical = self.path * size
        lengths = typical * np.exp(self.path_spread * random.standard_normal((forks, sampling.widest)))
        paths = np.clip(np.rint(lengths), 1, sampling.budget.path).astype(int)
        summary = max(1, round(self.summary * typical))
        between = max(1, round((size - int(paths.max(1).sum()) - forks * summary) / (forks + 1)))
        parts: list[Part] = [between]
        for lengths_of_fork in paths:
            parts += [tuple(map(int, lengths_of_fork)), summary + between]
        return Outline(self.prompt, _within(parts, sampling))


def _within(parts: Sequence[Part], sampling: Sampling) -> tuple[Part, ...]:
    """The parts up to where the budget of the answer is spent."""
    total, chain = sampling.budget.total, sampling.budget.critical_path
    kept: list[Part] = []
    for part in parts:
        if isinstance(part, int):
            part = max(0, min(part, total, chain))
            total, chain = total - part, chain - part
        else:
            room = min(chain, total // len(part))
            if room < 1:
                break
            part = tuple(min(length, room) for length in part)
            total, chain = total - sum(part), chain - max(part)
        kept.append(part)
    return tuple(kept) if len(kept) % 2 else (*kept, 0)


def spread_over(outlines: Sequence[Outline], count: int, seed: int = 0) -> list[Outline]:
    """`count` outlines drawn from others with replacement; as they are if there are just so many."""
    if len(outlines) == count:
        return list(outlines)
    chosen = np.random.default_rng(seed).integers(len(outlines), size=count)
    return [outlines[index] for index in chosen]


def quantile(values: Sequence[int], share: float) -> int:
    """The smallest of the values that is not below this share of them."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
