"""What is asked and what came of it: Problem, Rollout, Group, and their JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from parallel_r1 import files
from parallel_r1.answers.trace import Defect, Span, Trace
from parallel_r1.errors import UserError


@dataclass(frozen=True)
class Problem:
    """A question with a reference answer.

    Attributes:
        id: unique within its source.
        prompt: the text that the model reads.
        answer: the reference, as the task's verifier reads it.
        source: the task it belongs to.
    """

    id: str
    prompt: str
    answer: str
    source: str


@dataclass(frozen=True)
class Rollout:
    """One answer to a problem with what it earned.

    Attributes:
        text: the answer as read by people, tags included.
        correct: whether the task's verifier accepts it.
        terms: what it earned, and what for; None outside RL.
        critical_path: tokens that had to be drawn one after the other, given ones included.
        total: all tokens of the answer.
    """

    problem: Problem
    trace: Trace
    text: str
    correct: bool
    critical_path: int
    total: int
    terms: dict[str, float] | None = None

    @property
    def reward(self) -> float | None:
        """What it earned: the sum of the terms."""
        return None if self.terms is None else sum(self.terms.values())

    def rewarded(self, terms: dict[str, float]) -> Rollout:
        """The same rollout with a reward."""
        return replace(self, terms=terms)


@dataclass(frozen=True)
class Group:
    """The rollouts of one problem: what a group advantage compares."""

    problem: Problem
    rollouts: tuple[Rollout, ...] = field(default_factory=tuple)


def to_json(rollout: Rollout) -> dict[str, Any]:
    """A rollout as one JSON object; `from_json` reads it back without loss."""
    trace = rollout.trace
    return {
        "id": rollout.problem.id,
        "source": rollout.problem.source,
        "prompt": rollout.problem.prompt,
        "answer": rollout.problem.answer,
        "text": rollout.text,
        "correct": rollout.correct,
        "reward": rollout.reward,
        "terms": rollout.terms,
        "critical_path": rollout.critical_path,
        "total": rollout.total,
        "finish": trace.finish,
        "sampler": trace.sampler,
        "policy_version": trace.policy_version,
        "defects": [vars(defect) for defect in trace.defects],
        "prompt_ids": trace.prompt_ids,
        "spans": [
            {"ids": span.token_ids, "address": span.address, "sampled": span.sampled, "logprobs": span.logprobs}
            # Left out where the raw policy was sampled: the same numbers are not worth their bytes.
            | ({} if span.raw_logprobs == span.logprobs else {"raw_logprobs": span.raw_logprobs})
            for span in trace.spans
        ],
    }


def from_json(row: dict[str, Any]) -> Rollout:
    """The inverse of `to_json`."""
    spans = tuple(
        Span(
            tuple(span["ids"]),
            tuple((fork, path) for fork, path in span["address"]),
            span["sampled"],
            *(
                None if each is None else tuple(each)
                for each in (span["logprobs"], span.get("raw_logprobs", span["logprobs"]))
            ),
        )
        for span in row["spans"]
        for drawn in [span["logprobs"]]
    )
    defects = tuple(Defect(**defect) for defect in row["defects"])
    trace = Trace(tuple(row["prompt_ids"]), spans, row["finish"], row["sampler"], row["policy_version"], defects)
    problem = Problem(row["id"], row["prompt"], row["answer"], row["source"])
    return Rollout(problem, trace, row["text"], row["correct"], row["critical_path"], row["total"], row["terms"])


def write_jsonl(path: Path, rollouts: Iterable[Rollout]) -> None:
    """Write rollouts, one JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        for rollout in rollouts:
            file.write(json.dumps(to_json(rollout), ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> Iterator[Rollout]:
    """Read rollouts that `write_jsonl` wrote."""
    fix = "give a file from a run's rollouts/ folder"
    for number, row in files.read_jsonl(path, fix=fix):
        try:
            yield from_json(row)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError("a rollout per line, as a run writes them", f"{path}:{number}: {error!r}", fix) from error


def group(rollouts: Sequence[Rollout]) -> list[Group]:
    """Gather rollouts by problem, in order of first appearance."""
    by_id: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        by_id.setdefault(rollout.problem.id, []).append(rollout)
    return [Group(members[0].problem, tuple(members)) for members in by_id.values()]
