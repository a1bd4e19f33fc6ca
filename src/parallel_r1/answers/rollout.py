"""Problems and judged answers: Problem, Rollout, Group, and the JSON lines that runs write."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from parallel_r1 import files
from parallel_r1.answers.identity import key_of
from parallel_r1.answers.schemas import DEFAULT, Schema
from parallel_r1.answers.trace import Defect, Span, Trace
from parallel_r1.answers.upgrade import terms_of, texts_of_spans
from parallel_r1.errors import UserError

Message = tuple[str, str]
"""The role of a speaker in a chat ("system", "user", "assistant") and the text."""


@dataclass(frozen=True)
class Problem:
    """A question with a reference answer.

    Attributes:
        id: unique within its source.
        prompt: the text that the model reads.
        answer: the reference, as the task's verifier reads it.
        source: name of the task it belongs to.
        key: identity by content: problems with the same key are one problem, whatever their ids. Default: a digest of
            the prompt that ignores white space (`key_of`). A task whose problems have equal forms in other words, such
            as numbers in another order, gives keys of its own.
        before: the messages before the prompt, if the problem is the last message of a chat.
    """

    id: str
    prompt: str
    answer: str
    source: str
    key: str = ""
    before: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if not self.key:
            object.__setattr__(self, "key", key_of_chat(self.prompt, self.before))


def key_of_chat(statement: str, before: Sequence[Message]) -> str:
    """The identity of a problem by its statement and the messages before it."""
    return key_of("\n".join([*(text for _, text in before), statement]))


@dataclass(frozen=True)
class Reading:
    """How the verifier came to its verdict on an answer, as evaluations keep it.

    Attributes:
        final: the final answer of the trunk; None if there is none to read.
        missed: whether a wrong answer has the right one elsewhere in its text, in a box, behind a mark that the task
            does not read, or in a path.
        out_of_time: whether the verifier gave up the comparison, because it took too long.
    """

    final: str | None
    missed: bool = False
    out_of_time: bool = False


@dataclass(frozen=True)
class Rollout:
    """One answer to a problem, judged.

    Attributes:
        texts: the text of every span of the trace, in the same order; see `Trace.texts`.
        correct: whether the task's verifier accepts the answer.
        critical_path: tokens that had to be drawn one after the other, given ones included.
        total: all tokens of the answer.
        terms: the reward by term, such as `{"accuracy": 1.0, "parallel": 0.2}`; None outside RL.
        reading: how the verdict came about; None outside evaluations.
    """

    problem: Problem
    trace: Trace
    texts: tuple[str, ...]
    correct: bool
    critical_path: int
    total: int
    terms: dict[str, float] | None = None
    reading: Reading | None = None

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.trace.spans):
            raise ValueError(f"expected one text per span, {len(self.trace.spans)}, got {len(self.texts)}")

    @property
    def text(self) -> str:
        """The answer with its tags: what the tokenizer decodes from all tokens at once."""
        return "".join(self.texts)

    @property
    def reward(self) -> float | None:
        """The sum of the reward's terms; None outside RL."""
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
        "key": rollout.problem.key,
        "source": rollout.problem.source,
        "prompt": rollout.problem.prompt,
        **({"before": rollout.problem.before} if rollout.problem.before else {}),
        "answer": rollout.problem.answer,
        "text": rollout.text,
        "correct": rollout.correct,
        "reward": rollout.reward,
        "terms": rollout.terms,
        **({} if rollout.reading is None else {"reading": asdict(rollout.reading)}),
        "critical_path": rollout.critical_path,
        "total": rollout.total,
        "finish": trace.finish,
        "sampler": trace.sampler,
        "policy_version": trace.policy_version,
        "defects": [vars(defect) for defect in trace.defects],
        "prompt_ids": trace.prompt_ids,
        **({} if trace.schema == DEFAULT else {"schema": trace.schema.to_dict()}),
        "spans": [_span_to_json(span, text) for span, text in zip(trace.spans, rollout.texts, strict=True)],
    }


def _span_to_json(span: Span, text: str) -> dict[str, Any]:
    row = {
        "text": text,
        "ids": span.token_ids,
        "address": span.address,
        "sampled": span.sampled,
        "logprobs": span.logprobs,
    }
    if span.aside:
        row["aside"] = True
    # Where the raw policy was sampled the two are the same numbers, not worth their bytes twice.
    return row if span.raw_logprobs == span.logprobs else row | {"raw_logprobs": span.raw_logprobs}


KINDS = {"key": str, "source": str, "correct": bool, "critical_path": int, "total": int}
"""Types of the values that are counted with; a value of another type would fail only later, without its line."""


def from_json(row: dict[str, Any]) -> Rollout:
    """The inverse of `to_json`. Rows without texts of spans or without terms, of earlier versions, are read too."""
    for name, kind in KINDS.items():
        if type(value := row.get(name, kind())) is not kind:
            raise TypeError(f"{name} is {value!r}, not {kind.__name__}")
    spans = tuple(map(_span_from_json, row["spans"]))
    defects = tuple(Defect(**defect) for defect in row["defects"])
    schema = Schema.from_dict(row["schema"], "a rollout") if "schema" in row else DEFAULT
    trace = Trace(
        tuple(row["prompt_ids"]), spans, row["finish"], row["sampler"], row["policy_version"], defects, schema
    )
    if all("text" in span for span in row["spans"]):
        texts = tuple(span["text"] for span in row["spans"])
    else:
        texts = texts_of_spans(row["text"], trace)
    before = tuple((role, text) for role, text in row.get("before", ()))
    problem = Problem(row["id"], row["prompt"], row["answer"], row["source"], row.get("key", ""), before)
    reading = Reading(**row["reading"]) if row.get("reading") else None
    return Rollout(problem, trace, texts, row["correct"], row["critical_path"], row["total"], terms_of(row), reading)


def _span_from_json(row: dict[str, Any]) -> Span:
    address = tuple((fork, path) for fork, path in row["address"])
    columns = (row["logprobs"], row.get("raw_logprobs", row["logprobs"]))
    logprobs, raw = (None if column is None else tuple(column) for column in columns)
    return Span(tuple(row["ids"]), address, row["sampled"], logprobs, raw, row.get("aside", False))


def write_jsonl(path: Path, rollouts: Iterable[Rollout]) -> None:
    """Write rollouts, one JSON object per line. A lone surrogate, which no UTF-8 holds, is written as its escape."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for rollout in rollouts:
            file.write(json.dumps(to_json(rollout), ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> Iterator[Rollout]:
    """Read rollouts that `write_jsonl` wrote.

    Raises:
        UserError: a line that is no rollout; says which.
    """
    fix = "give a file of answers: of a run's rollouts/ folder, or TASK.jsonl of eval"
    for number, row in files.read_jsonl(path, fix=fix, ours=True):
        try:
            yield from_json(row)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError("a rollout per line, as a run writes them", f"{path}:{number}: {error!r}", fix) from error


def group(rollouts: Sequence[Rollout]) -> list[Group]:
    """Gather rollouts by problem, in order of first appearance. Problems of one source with the same key are one."""
    by_key: dict[tuple[str, str], list[Rollout]] = {}
    for rollout in rollouts:
        by_key.setdefault((rollout.problem.source, rollout.problem.key), []).append(rollout)
    return [Group(members[0].problem, tuple(members)) for members in by_key.values()]
