"""Which responses of a teacher are kept to be imitated, and why the others are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from parallel_r1.answers.convert import repair
from parallel_r1.answers.parser import parse_text, trunk
from parallel_r1.answers.rollout import Problem
from parallel_r1.answers.schemas import DEFAULT
from parallel_r1.answers.shape import Shape, mean, paths_of_text, self_bleu, shape
from parallel_r1.coldstart.journal import Response
from parallel_r1.tasks.base import Task, verdicts
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
    """The rules by which responses are kept.

    Attributes:
        words: the most words of an answer.
        alike: the largest self-BLEU of its paths, 0 .. 1.
        sequential: whether answers without a fork are kept.
        foreign: whether answers in other languages than English are kept.
    """

    words: int = 2000
    alike: float = 0.5
    sequential: bool = False
    foreign: bool = False


@dataclass(frozen=True)
class Verdict:
    """The judgement of a response.

    Attributes:
        text: the answer without thoughts, its layout repaired.
        reason: why it is not kept; None if it is.
        repaired: the kinds of repairs to its layout.
        shape: its forks, paths and words.
    """

    text: str
    reason: Reason | None
    repaired: tuple[str, ...]
    shape: Shape


def judge(responses: Sequence[Response], problems: Sequence[Problem], task: Task, sieve: Sieve) -> list[Verdict]:
    """Judge the responses to some problems of a task. The verifier is called once, for all responses that pass the
    cheaper rules."""
    drafts = [_draft(response, sieve) for response in responses]
    candidates = [index for index, draft in enumerate(drafts) if draft.reason is None]
    trunks = [trunk(drafts[index].text) for index in candidates]
    correct = verdicts(task, [problems[index] for index in candidates], trunks)
    for index, verdict in zip(candidates, correct, strict=True):
        draft = drafts[index]
        if not verdict:
            drafts[index] = replace(draft, reason="wrong")
        elif draft.shape.paths and self_bleu(paths_of_text(draft.text)) > sieve.alike:
            drafts[index] = replace(draft, reason="alike")
    return drafts


def without_thoughts(text: str) -> str:
    """The answer of a reasoning model without its thoughts. Thoughts that are not closed leave no answer; where a chat
    template has opened them, only their end is in the text."""
    if "</think>" in text:
        return text.rpartition("</think>")[2].strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


def _draft(response: Response, sieve: Sieve) -> Verdict:
    """The judgement by all rules but correctness and the likeness of paths, which take the most time."""
    text, repaired = repair(without_thoughts(response.text))
    measured = shape(text)
    return Verdict(text, _reason(response, text, measured, sieve), tuple(repaired), measured)


def _reason(response: Response, text: str, measured: Shape, sieve: Sieve) -> Reason | None:
    if response.refused is not None:
        return "refused"
    if response.finish == "length" or not text:
        return "unfinished"
    if parse_text(text).defects:
        return "malformed"
    if measured.words > sieve.words:
        return "long"
    if not sieve.foreign and foreign(DEFAULT.without_tags(text, " ")):
        return "language"
    return None if measured.paths or sieve.sequential else "sequential"


@dataclass(frozen=True)
class Statistics:
    """Counts and averages over the responses to the problems of a source. All but the first six are about the responses
    that are kept, and None if there are none.

    Attributes:
        problems: problems with at least one response.
        solved: problems with a response that is kept.
        responses: all responses.
        kept: the share of them that is kept, 0 .. 1.
        reasons: reason -> number of responses not kept for it.
        repaired: the share whose layout had to be repaired, 0 .. 1.
        forks, words: of a response, on average.
        paths: of a fork, on average.
        inside: the share of a response's words that stands in paths, 0 .. 1, on average.
        first: where the first fork opens, 0 at the start of the answer and 1 at its end, on average.
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
    """The statistics of the responses to the problems of a source, of which there is at least one."""
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
        forks=mean(len(shape.paths) for shape in shapes),
        paths=mean(paths for shape in shapes for paths in shape.paths),
        words=mean(shape.words for shape in shapes),
        inside=mean(shape.inside / shape.words for shape in shapes if shape.words),
        first=mean(shape.first for shape in shapes if shape.first is not None),
    )
