"""Answers to imitate: from a file, or written by a task that has a procedural teacher."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from parallel_r1.answers.convert import convert
from parallel_r1.answers.parser import defects_of, foreign_tag, parse, pieces
from parallel_r1.answers.rollout import Message, Problem
from parallel_r1.answers.schemas import DEFAULT, Schema, load_schema
from parallel_r1.answers.trace import Sampler, Span, Trace
from parallel_r1.coldstart.settings import Data
from parallel_r1.errors import Missing, UserError
from parallel_r1.models.checks import positions
from parallel_r1.models.policy import Policy
from parallel_r1.tasks.base import epochs, problem_stream
from parallel_r1.tasks.datasets import columns
from parallel_r1.tasks.datasets.rows import numbered_rows
from parallel_r1.tasks.load import load_task
from parallel_r1.tasks.prompts import Prompt


@dataclass(frozen=True)
class Example:
    """A prompt and an answer to imitate.

    Attributes:
        rehearsal: whether the first token of the answer is given instead of learnt. Then the example teaches nothing
            about the choice between opening a fork and not.
        before: the messages before the prompt, if it is the last one of a chat.
        schema: how the answer is written.
        taught: whether a task's teacher wrote it.
    """

    prompt: str
    text: str
    rehearsal: bool = False
    before: tuple[Message, ...] = ()
    schema: Schema = DEFAULT
    taught: bool = False


@runtime_checkable
class Teacher(Protocol):
    """A task that can also write correct answers to its own problems, by a procedure and without a model.

    A recipe that names such a task under `data.tasks` learns from its answers; `countdown.py` is an example. Both
    methods return the whole text of an answer, tags included, or None if their tries did not solve the problem: then
    the next problem is taken. All their random choices must come from `rng`, so that a seed repeats a run.
    """

    def sequential_answer(self, problem: Problem, rng: random.Random, most: int) -> str | None:
        """An answer without a fork.

        Args:
            most: how many tries it may make.
        """
        ...

    def parallel_answer(self, problem: Problem, rng: random.Random, paths: int, most: int, after: int) -> str | None:
        """An answer with a fork whose paths do not know of one another.

        Args:
            paths: how many paths the fork has, at least 2.
            most: how many tries a path may make.
            after: how many tries the trunk may make after a fork in which no path succeeded.
        """
        ...


def examples(data: Data, seed: int) -> Iterator[Example]:
    """Prompts and answers without end, the same for the same seed.

    Raises:
        UserError: a task without a teacher, or a file that cannot be read.
    """
    if data.file is not None:
        yield from epochs(read_examples(Path(data.file), load_schema(data.format)), seed)
    rng = random.Random(f"coldstart/{seed}")
    sources = {
        name: (_teacher(name), problem_stream(load_task(name), "train", seed))
        for name in {**data.tasks, **data.rehearse}
    }
    while True:
        rehearsal = rng.random() < data.rehearsal
        weights = data.rehearse if rehearsal else data.tasks
        teacher, problems = sources[rng.choices(list(weights), list(weights.values()))[0]]
        fork = not rehearsal and rng.random() < data.parallel
        text = None
        while text is None:
            problem = next(problems)
            text = (
                teacher.parallel_answer(problem, rng, data.paths, data.tries, data.sequential_tries)
                if fork
                else teacher.sequential_answer(problem, rng, data.sequential_tries)
            )
        yield Example(problem.prompt, text, rehearsal, problem.before, taught=True)


def check(data: Data, schema: Schema | None = None) -> None:
    """Refuse data that cannot be read, and tasks without a teacher, before a model is loaded.

    Args:
        schema: that of the model, if a recipe names it: answers must be such that they can be written in it.
    """
    if data.file is not None:
        for example in read_examples(Path(data.file), load_schema(data.format)):
            written(example, schema or example.schema)
    for name in {**data.tasks, **data.rehearse}:
        _teacher(name)
    if schema is not None and data.file is None:
        for example in islice(examples(data, 0), 20):
            written(example, schema)


def check_lengths(data: Data, policy: Policy, prompt: Prompt) -> None:
    """Refuse a file with an answer that needs more positions than the model has."""
    most = positions(policy.model.config)
    if data.file is None or most is None:
        return
    for number, example in enumerate(read_examples(Path(data.file), load_schema(data.format)), 1):
        text = prompt.instruction + example.prompt + example.text
        if prompt.form == "plain" and len(text.encode()) + 1 < most:  # a token is a byte or more
            continue
        length = (
            len(prompt.encode(policy, example.prompt, example.before))
            + len(policy.encode(written(example, policy.tags.schema)))
            + 1
        )
        if length > most:
            raise UserError(
                f"answers within the {most} positions of the model",
                f"{length} tokens in row {number} of {data.file}",
                "leave it out, or choose another model",
            )


def _teacher(name: str) -> Teacher:
    task = load_task(name)
    if not isinstance(task, Teacher):
        raise UserError("a task with a procedural teacher", f"'{name}'", "give a file of answers instead")
    return task


def read_examples(path: Path, schema: Schema = DEFAULT) -> list[Example]:
    """The examples in a JSONL or parquet file with the columns `prompt` and `text`.

    Args:
        schema: how the answers are written.

    Raises:
        UserError: no such file, a row without a text in one of the two columns, a malformed answer, or no row at all.
    """
    if not path.is_file():
        raise Missing("a file of answers", f"no file {path}", "check data.file, or write it with parallel-r1 coldstart")
    rows = [_example(row, f"row {number} of {path}", schema) for number, row in numbered_rows(path)]
    if not rows:
        raise UserError("a file with answers", f"{path} is empty", "check data.file")
    return rows


def _example(row: dict[str, Any], place: str, schema: Schema) -> Example:
    before: tuple[Message, ...] = ()
    if isinstance(row.get("prompt"), list):
        statement, before = columns.statement({"prompt": row["prompt"]}, place)
        row = {**row, "prompt": statement}
    missing = [name for name in ("prompt", "text") if not isinstance(row.get(name), str)]
    if missing:
        names = ", ".join(f"'{name}'" for name in row) or "none"
        raise UserError(
            "a prompt and a text in every row",
            f"{place} without a text in '{missing[0]}' (its columns: {names})",
            "rename the columns, or correct that row",
        )
    return checked(Example(row["prompt"], row["text"], before=before, schema=schema), place)


def checked(example: Example, place: str) -> Example:
    """The example, if its answer is well-formed.

    Args:
        place: where it comes from, for the error.
    """
    foreign = foreign_tag(example.text, example.schema)
    defects = [foreign] if foreign else defects_of(example.text, example.schema)
    if defects:
        raise UserError(
            "well-formed answers" + (f" in {example.schema.name}" if example.schema != DEFAULT else ""),
            f"{place}: {defects[0].message}",
            "give its schema as data.format" if foreign else "see what parallel-r1 data repair can do",
        )
    return example


def written(example: Example, schema: Schema, *, counted: bool = False) -> str:
    """The answer in a schema. A teacher has no plan; where the schema has one, its items are only numbers, since the
    first words of a path would say what the path is there to find out.

    Args:
        counted: whether forks without a plan begin with the number of their paths.

    Raises:
        UserError: it cannot be written in that schema.
    """
    number = re.search(re.escape(example.schema.opener) + r"\d", example.text)
    if example.schema == schema and counted == bool(number):
        return example.text
    try:
        return convert(example.text, example.schema, schema, bare=example.taught, counted=counted)
    except ValueError as error:
        raise UserError(
            f"an answer that can be written in the schema {schema.name}",
            str(error),
            "give the schema of the file as data.format, or the model other tags",
        ) from error


def to_trace(
    example: Example, policy: Policy, sampler: Sampler, prompt: Prompt | None = None, *, counted: bool = False
) -> Trace:
    """An example as a trace that ends as answers of the model end, after the prompt as RL and evaluation give it.

    Args:
        counted: whether the policy is to write the number of paths at the start of a fork without a plan.
    """
    prompt = prompt or Prompt()
    end = policy.tags.chat_end if prompt.form == "chat" else policy.tags.end
    token_ids = [*policy.encode(written(example, policy.tags.schema, counted=counted)), end]
    prompt_ids = prompt.encode(policy, example.prompt, example.before)
    trace = parse(token_ids, policy.tags, sampler=sampler, prompt_ids=prompt_ids)
    if not example.rehearsal:
        return trace
    first, *rest = trace.spans
    given = Span(first.token_ids[:1], first.address, False)
    kept = [replace(first, token_ids=first.token_ids[1:])] if len(first.token_ids) > 1 else []
    return replace(trace, spans=(given, *kept, *rest))


def plain_texts(data: Data, seed: int, count: int, schema: Schema = DEFAULT) -> Iterator[str]:
    """Texts to train a tokenizer on: examples in a schema, cut at its tags, so that no merge crosses one. Half of the
    examples are parallel answers and half sequential ones, whatever `data.parallel` is."""
    for share in (0.0, 1.0):
        source = examples(data.model_copy(update={"parallel": share, "rehearsal": 0.0}), seed)
        for _ in range(count // 2):
            example = next(source)
            text = example.prompt + written(example, schema)
            yield from (piece.text for piece in pieces(text, schema) if not piece.is_tag)
