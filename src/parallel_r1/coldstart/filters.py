"""Which responses are worth imitating, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from parallel_r1.answers.convert import repair
from parallel_r1.answers.parser import parse_text, trunk
from parallel_r1.answers.rollout import Problem
from parallel_r1.answers.shape import Shape, mean, paths_of_text, self_bleu, shape
from parallel_r1.answers.syntax import without_tags
from parallel_r1.coldstart.journal import Response
from parallel_r1.tasks.base import Task
from parallel_r1.tasks.datasets.damage import foreign

Reason = Literal["refused", "unfinished", "malformed", "long", "language", "sequential", "wrong", "alike"]
MEANING: dict[Reason, str] = {
    "refused": "not answered: the request was refused",
    "unfinished": "cut, or nothing after the thoughts",
    "malformed": "malformed beyond repair",
    "long": "too many words",
    "language": "not in English",
    "sequential": "no fork",
    "wrong": "a wrong answer, or none",
    "alike": "paths that say the same",
}


@dataclass(frozen=True)
class Sieve:
    """What a response must be like.

    Attributes:
        words: the most that it may have.
        alike: the largest self-BLEU of its paths, 0 .. 1.
        sequential: whether answers without a fork are kept.
        foreign: whether other languages than English are.
    """

    words: int = 2000
    alike: float = 0.5
    sequential: bool = False
    foreign: bool = False


@dataclass(frozen=True)
class Verdict:
    """What becomes of a response.

    Attributes:
        text: the answer without thoughts, its layout repaired.
        reason: why it is not kept; None if it is.
        repaired: what was changed in its layout.
        shape: how it is built.
    """

    text: str
    reason: Reason | None
    repaired: tuple[str, ...]
    shape: Shape


def judge(response: Response, problem: Problem, task: Task, sieve: Sieve) -> Verdict:
    """Repair a response and find the first reason not to keep it; what costs most is asked last."""
    text, repaired = repair(without_thoughts(response.text))
    found = shape(text)
    return Verdict(text, _reason(response, text, found, problem, task, sieve), tuple(repaired), found)


def without_thoughts(text: str) -> str:
    """What a reasoning model says after its thoughts. Where they are not closed it says nothing; where a chat template
    has opened them there is only the end."""
    if "</think>" in text:
        return text.rpartition("</think>")[2].strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


def _reason(response: Response, text: str, found: Shape, problem: Problem, task: Task, sieve: Sieve) -> Reason | None:
    if response.refused is not None:
        return "refused"
    if response.finish == "length" or not text:
        return "unfinished"
    if parse_text(text).defects:
        return "malformed"
    if found.words > sieve.words:
        return "long"
    if not sieve.foreign and foreign(without_tags(text, " ")):
        return "language"
    if not found.paths and not sieve.sequential:
        return "sequential"
    if not task.verify(problem, trunk(text)):
        return "wrong"
    return "alike" if found.paths and self_bleu(paths_of_text(text)) > sieve.alike else None


@dataclass(frozen=True)
class Statistics:
    """What came of asking for the problems of a source. All of it but the first five is about responses that are kept,
    and None if there is none.

    Attributes:
        problems: asked and answered at least once.
        solved: with a response that is kept.
        kept: share of the responses.
        reasons: how many responses were not kept, by reason.
        repaired: share of the kept responses whose layout had to be repaired.
        forks, words: of a response.
        paths: of a fork.
        inside: share of the words that stand in paths.
        first: where the first fork opens, 0 at the start of the answer and 1 at its end.
    """

    source: str
    problems: int
    solved: int
    responses: int
    kept: float
    reasons: dict[Reason, int]
    repaired: float | None
    forks: float | None
    paths: float | None
    words: float | None
    inside: float | None
    first: float | None

    def to_json(self) -> dict[str, Any]:
        """All of it as one JSON object."""
        return asdict(self)


def statistics(source: str, judged: Sequence[tuple[Response, Verdict]]) -> Statistics:
    """Those of the responses to the problems of a source, at least one."""
    kept = [(response, verdict) for response, verdict in judged if verdict.reason is None]
    shapes = [verdict.shape for _, verdict in kept]
    return Statistics(
        source=source,
        problems=len({response.id for response, _ in judged}),
        solved=len({response.id for response, _ in kept}),
        responses=len(judged),
        kept=len(kept) / len(judged),
        reasons=dict(Counter(verdict.reason for _, verdict in judged if verdict.reason).most_common()),
        repaired=mean(bool(verdict.repaired) for _, verdict in kept),
        forks=mean(len(each.paths) for each in shapes),
        paths=mean(paths for each in shapes for paths in each.paths),
        words=mean(each.words for each in shapes),
        inside=mean(each.inside / each.words for each in shapes if each.words),
        first=mean(each.first for each in shapes if each.first is not None),
    )
