"""Collect answers to imitate: ask a teacher, judge its responses, write the ones that are kept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from parallel_r1.answers.rollout import Problem
from parallel_r1.coldstart.filters import MEANING, Reason, Sieve, Statistics, Verdict, judge, statistics
from parallel_r1.coldstart.journal import Ask, Journal, Key, Response
from parallel_r1.errors import UserError
from parallel_r1.files import write_text
from parallel_r1.models.tokens import as_chat
from parallel_r1.table import Table
from parallel_r1.tasks.base import Task, problem_stream
from parallel_r1.tasks.datasets.rows import write_file

ANSWERS, REJECTED, STATISTICS, CARD = "answers.parquet", "rejected.jsonl", "statistics.json", "README.md"


class Respondent(Protocol):
    """A teacher: a server, or a model of the user's own."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that its answers depend on besides the problem, as JSON."""
        ...

    def ask(self, asks: Sequence[Ask], take: Callable[[Response], bool]) -> None:
        """Answer requests, in any order, and call `take` with every response, one at a time. Once `take` returns False
        no further request is begun."""
        ...


@dataclass(frozen=True)
class Limits:
    """When a collection stops before everything is answered.

    Attributes:
        tokens: the most tokens of prompts and answers together.
        money: the most that may be spent, in the currency of the prices.
        prompt_price, answer_price: of a million tokens.
        patience: the most responses in a row of which none is kept.

    Raises:
        UserError: money is capped and there is no price.
    """

    tokens: int | None = None
    money: float | None = None
    prompt_price: float = 0.0
    answer_price: float = 0.0
    patience: int = 100

    def __post_init__(self) -> None:
        if self.money is not None and not (self.prompt_price or self.answer_price):
            raise UserError("a price of tokens, since money is capped", "none", "give --prompt-price or --answer-price")


@dataclass
class Collection:
    """The responses in a journal and their judgements.

    Attributes:
        tasks: by name; they verify answers.
        asks: all requests, in the order in which they are made.
        tell: called with the collection after every response.
        over: why no more requests are made; None as long as they are.
        verdicts: the judgements by the key of their request.
        problems: the problems by the key of their request.
        kept: number of responses that are kept.
        tokens, money: used so far.
        rejected: why responses were not kept, since the last one that was.
    """

    tasks: Mapping[str, Task]
    asks: Sequence[Ask]
    journal: Journal
    sieve: Sieve
    limits: Limits
    tell: Callable[[Collection], None]
    over: str | None = None
    verdicts: dict[Key, Verdict] = field(default_factory=dict)
    problems: dict[Key, Problem] = field(default_factory=dict)
    kept: int = 0
    tokens: int = 0
    money: float = 0.0
    rejected: list[Reason] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.problems = {ask.key: ask.problem for ask in self.asks}
        self._count(list(self.journal.responses.values()))
        self.rejected.clear()  # other rules or a corrected server may do better now
        self._check_limits()

    @property
    def left(self) -> list[Ask]:
        """The requests without a response."""
        return [ask for ask in self.asks if ask.key not in self.journal.responses]

    def run(self, teacher: Respondent) -> None:
        """Make the requests without a response. Whatever happens, the responses that have come are written.

        Raises:
            UserError: as the teacher's `ask`; or `patience` responses in a row were not kept.
        """
        try:
            if self.left and not self.over:
                teacher.ask(self.left, self._take)
        finally:
            write(self.journal.folder, self)
        if len(self.rejected) >= self.limits.patience:
            reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(self.rejected).most_common())
            raise UserError(
                "responses that are worth keeping",
                f"{len(self.rejected)} in a row that are not: {reasons}",
                f"look at {self.journal.folder / REJECTED}; change --instruction-file, or raise --patience, and go on",
            )

    def _take(self, response: Response) -> bool:
        self.journal.add(response)
        capped = self.limits.tokens is not None or self.limits.money is not None
        if capped and response.text and not response.answer_tokens:
            raise UserError("a server that counts tokens, since there is a cap", "none", "leave the caps out")
        self._count([response])
        self._check_limits()
        self.tell(self)
        return self.over is None

    def _count(self, responses: Sequence[Response]) -> None:
        """Judge responses, in one batch per task, and count them in their order."""
        limits = self.limits
        by_task: dict[str, list[Response]] = {}
        for response in responses:
            self.tokens += response.prompt_tokens + response.answer_tokens
            cost = response.prompt_tokens * limits.prompt_price + response.answer_tokens * limits.answer_price
            self.money += cost / 1e6
            if response.key in self.problems:  # others are from an earlier command with more problems
                by_task.setdefault(response.source, []).append(response)
        for name, batch in by_task.items():
            problems = [self.problems[response.key] for response in batch]
            judged = judge(batch, problems, self.tasks[name], self.sieve)
            self.verdicts |= {response.key: verdict for response, verdict in zip(batch, judged, strict=True)}
        for response in responses:
            verdict = self.verdicts.get(response.key)
            if verdict is None:
                continue
            if verdict.reason is None:
                self.kept += 1
                self.rejected.clear()
            else:
                self.rejected.append(verdict.reason)

    def _check_limits(self) -> None:
        limits = self.limits
        if limits.tokens is not None and self.tokens >= limits.tokens:
            self.over = f"{self.tokens:,} of {limits.tokens:,} tokens are used"
        elif limits.money is not None and self.money >= limits.money:
            self.over = f"{self.money:.2f} of {limits.money:.2f} are spent"
        elif len(self.rejected) >= limits.patience:
            self.over = f"{len(self.rejected)} responses in a row were not worth keeping"

    def judged(self) -> Iterable[tuple[Response, Verdict]]:
        """All responses with their judgements, in the order of the requests."""
        responses = self.journal.responses
        return ((responses[ask.key], self.verdicts[ask.key]) for ask in self.asks if ask.key in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """The counts and the statistics as one JSON object."""
        return {
            "kept": self.kept,
            "left": len(self.left),
            "tokens": self.tokens,
            "money": self.money,
            "over": self.over,
            "sources": [source.to_json() for source in self.statistics()],
        }

    def statistics(self) -> list[Statistics]:
        """The statistics of every source that has responses."""
        by_source: dict[str, list[tuple[Response, Verdict]]] = {}
        for pair in self.judged():
            by_source.setdefault(pair[0].source, []).append(pair)
        return [statistics(source, judged) for source, judged in by_source.items()]


def problems_of(task: Task, seed: int, limit: int | None) -> list[Problem]:
    """Different training problems of a task: as many as `limit`, or all that there are."""
    by_key: dict[str, Problem] = {}
    repeated = 0
    for problem in problem_stream(task, "train", seed, may_end=True):
        repeated = repeated + 1 if problem.key in by_key else 0
        by_key.setdefault(problem.key, problem)
        # A data set repeats epoch by epoch. A generator has no end: it is taken to have no more when as many problems
        # in a row as there are were not new.
        if len(by_key) == limit or repeated > len(by_key):
            break
    return list(by_key.values())


def write(folder: Path, collection: Collection) -> None:
    """Write the kept answers (`answers.parquet`, which a cold start reads), the others with their reasons
    (`rejected.jsonl`), the statistics (`statistics.json`) and the data card. All of it is computed from the responses,
    so it can be written again."""
    kept, rejected = [], []
    for response, verdict in collection.judged():
        problem = collection.problems[response.key]
        row = {"source": response.source, "id": response.id, "sample": response.sample}
        if verdict.reason is None:
            chat = as_chat([*problem.before, ("user", problem.prompt)]) if problem.before else problem.prompt
            kept.append({**row, "prompt": chat, "text": verdict.text, "answer": problem.answer})
        else:
            rejected.append({**row, "reason": verdict.reason, "refused": response.refused, "text": verdict.text})
    if kept:
        write_file(folder / ANSWERS, kept)
    else:
        (folder / ANSWERS).unlink(missing_ok=True)  # written by an earlier command with other rules
    write_file(folder / REJECTED, rejected)
    sources = collection.statistics()
    write_text(folder / STATISTICS, json.dumps([source.to_json() for source in sources], indent=1) + "\n")
    write_text(folder / CARD, card(folder, collection, sources))


def card(folder: Path, collection: Collection, sources: Sequence[Statistics]) -> str:
    """The data card, in Markdown."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    sieve = collection.sieve
    lines = [
        f"# {folder.resolve().name}",
        "",
        f"{collection.kept:,} answers with parallel blocks to imitate, in `{ANSWERS}`: source, id, sample, prompt,",
        "text, answer. A cold start reads them with",
        "",
        "    [stages.coldstart.data]",
        f'    file = "{folder / ANSWERS}"',
        "",
        f"* Teacher: {settings['model']}"
        + (", the model itself" if settings["teacher"] == "self" else "; its licence may bind who learns from it")
        + ". Its settings are in `settings.json`.",
        f"* Kept are answers that are right, well formed (layout repaired), of at most {sieve.words:,} words, "
        + ("" if sieve.foreign else "in English, ")
        + ("" if sieve.sequential else "with a fork, ")
        + f"whose paths have a self-BLEU of at most {sieve.alike}.",
        f"* All responses are in `responses.jsonl`: {collection.tokens:,} tokens. Why one is not kept"
        f" is in `{REJECTED}`.",
        "",
        statistics_table(sources).markdown(),
    ]
    return "\n".join(lines)


def statistics_table(sources: Sequence[Statistics]) -> Table:
    """One column per source: its statistics, and how many responses were not kept for which reason."""
    rows = [(name, *map(value, sources)) for name, value in ROWS.items()]
    for reason, meaning in MEANING.items():
        if any(reason in source.reasons for source in sources):
            rows.append((meaning, *(f"{source.reasons.get(reason, 0):,}" for source in sources)))
    return Table(("", *(source.source for source in sources)), rows)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


ROWS: dict[str, Callable[[Statistics], str]] = {
    "problems asked": lambda source: f"{source.problems:,}",
    "problems with a kept answer": lambda source: f"{source.solved:,}",
    "responses": lambda source: f"{source.responses:,}",
    "kept": lambda source: f"{source.kept:.1%}",
    "layout repaired, of the kept": lambda source: _number(source.repaired, ".1%"),
    "forks in an answer": lambda source: _number(source.forks, ".2f"),
    "paths of a fork": lambda source: _number(source.paths, ".2f"),
    "words": lambda source: _number(source.words, ".0f"),
    "words inside paths": lambda source: _number(source.inside, ".0%"),
    "first fork at": lambda source: _number(source.first, ".0%"),
}
"""Rows of the table of statistics: a title, and a function from the statistics of a source to its cell."""
