"""Ask, judge, count, and write what was kept."""

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
from parallel_r1.files import whole
from parallel_r1.tasks.base import Task
from parallel_r1.tasks.datasets.rows import write_file

ANSWERS, REJECTED, STATISTICS, CARD = "answers.parquet", "rejected.jsonl", "statistics.json", "README.md"


class Respondent(Protocol):
    """Who answers."""

    @property
    def settings(self) -> dict[str, Any]: ...

    def ask(self, asks: Sequence[Ask], take: Callable[[Response], bool]) -> None: ...


@dataclass(frozen=True)
class Limits:
    """When it is enough.

    Attributes:
        tokens: of prompts and answers together.
        money: in the currency of the prices.
        prompt_price, answer_price: of a million tokens.
        patience: responses in a row of which none is kept.

    Raises:
        UserError: a cap of money without a price.
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
    """The responses in a journal, with what becomes of each.

    Attributes:
        tasks: by name; they verify answers.
        asks: everything that shall be asked, in this order.
        tell: is told after every response.
        over: why no more is asked; None while it is not over.
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
    vain: list[Reason] = field(default_factory=list)  # of the last responses, since one was kept

    def __post_init__(self) -> None:
        self.problems = {ask.key: ask.problem for ask in self.asks}
        for response in self.journal.responses.values():
            self._count(response)
        self.vain.clear()  # another sieve or a mended server may do better now
        self._limit()

    @property
    def left(self) -> list[Ask]:
        """What has not been answered."""
        return [ask for ask in self.asks if ask.key not in self.journal.responses]

    def run(self, teacher: Respondent) -> None:
        """Ask for what has not been answered. Whatever happens, what has come is written.

        Raises:
            UserError: as the teacher's `ask`; or `patience` responses in a row were not worth keeping.
        """
        try:
            if self.left and not self.over:
                teacher.ask(self.left, self._take)
        finally:
            write(self.journal.folder, self)
        if len(self.vain) >= self.limits.patience:
            reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(self.vain).most_common())
            raise UserError(
                "responses that are worth keeping",
                f"{len(self.vain)} in a row that are not: {reasons}",
                f"look at {self.journal.folder / REJECTED}; mend --instruction, or raise --patience, and go on",
            )

    def _take(self, response: Response) -> bool:
        self.journal.add(response)
        capped = self.limits.tokens is not None or self.limits.money is not None
        if capped and response.text and not response.answer_tokens:
            raise UserError("a server that counts tokens, since there is a cap", "none", "leave the caps out")
        self._count(response)
        self._limit()
        self.tell(self)
        return self.over is None

    def _count(self, response: Response) -> None:
        limits = self.limits
        self.tokens += response.prompt_tokens + response.answer_tokens
        cost = response.prompt_tokens * limits.prompt_price + response.answer_tokens * limits.answer_price
        self.money += cost / 1e6
        problem = self.problems.get(response.key)
        if problem is None:  # asked for by an earlier command with more problems
            return
        verdict = judge(response, problem, self.tasks[problem.source], self.sieve)
        self.verdicts[response.key] = verdict
        if verdict.reason is None:
            self.kept += 1
            self.vain.clear()
        else:
            self.vain.append(verdict.reason)

    def _limit(self) -> None:
        limits = self.limits
        if limits.tokens is not None and self.tokens >= limits.tokens:
            self.over = f"{self.tokens:,} of {limits.tokens:,} tokens are used"
        elif limits.money is not None and self.money >= limits.money:
            self.over = f"{self.money:.2f} of {limits.money:.2f} are spent"
        elif len(self.vain) >= limits.patience:
            self.over = f"{len(self.vain)} responses in a row were not worth keeping"

    def judged(self) -> Iterable[tuple[Response, Verdict]]:
        """All of them, in the order in which they were asked for."""
        responses = self.journal.responses
        return ((responses[ask.key], self.verdicts[ask.key]) for ask in self.asks if ask.key in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """What came of it as one JSON object."""
        return {
            "kept": self.kept,
            "left": len(self.left),
            "tokens": self.tokens,
            "money": self.money,
            "over": self.over,
            "sources": [each.to_json() for each in self.statistics()],
        }

    def statistics(self) -> list[Statistics]:
        """Those of every source that has responses."""
        by_source: dict[str, list[tuple[Response, Verdict]]] = {}
        for pair in self.judged():
            by_source.setdefault(pair[0].source, []).append(pair)
        return [statistics(source, judged) for source, judged in by_source.items()]


def problems_of(task: Task, seed: int, limit: int | None) -> list[Problem]:
    """Problems to train on, each once: so many, or all that there are."""
    found: dict[str, Problem] = {}
    again = 0
    for problem in task.problems("train", seed):
        again = again + 1 if problem.id in found else 0
        found.setdefault(problem.id, problem)
        # A set comes in epochs; of what a generator draws enough is known when nothing new comes for so long.
        if len(found) == limit or again > len(found):
            break
    return list(found.values())


def write(folder: Path, collection: Collection) -> None:
    """Write what is kept (`answers.parquet`, which cold starts read), what is not and why (`rejected.jsonl`), how many
    (`statistics.json`) and the data card. All of it follows from the responses, so it can be written again."""
    kept, rejected = [], []
    for response, verdict in collection.judged():
        problem = collection.problems[response.key]
        row = {"source": response.source, "id": response.id, "sample": response.sample}
        if verdict.reason is None:
            kept.append({**row, "prompt": problem.prompt, "text": verdict.text, "answer": problem.answer})
        else:
            rejected.append({**row, "reason": verdict.reason, "refused": response.refused, "text": verdict.text})
    found = collection.statistics()
    if kept:
        write_file(folder / ANSWERS, kept)
    else:
        (folder / ANSWERS).unlink(missing_ok=True)  # what an earlier command kept
    write_file(folder / REJECTED, rejected)
    with whole(folder / STATISTICS) as part:
        part.write_text(json.dumps([each.to_json() for each in found], indent=1) + "\n", encoding="utf-8")
    with whole(folder / CARD) as part:
        part.write_text(card(folder, collection, found), encoding="utf-8")


def card(folder: Path, collection: Collection, found: Sequence[Statistics]) -> str:
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
        + (", which shall learn from itself" if settings["teacher"] == "self" else "; its licence may bind who learns")
        + ". How it was asked stands in `settings.json`.",
        f"* Kept are answers that are right, well formed (layout repaired), of at most {sieve.words:,} words, "
        + ("" if sieve.foreign else "in English, ")
        + ("" if sieve.sequential else "with a fork, ")
        + f"whose paths have a self-BLEU of at most {sieve.alike}.",
        f"* All responses are in `responses.jsonl`: {collection.tokens:,} tokens. Why one is not kept"
        f" is in `{REJECTED}`.",
        "",
        "| | " + " | ".join(each.source for each in found) + " |",
        "|---|" + "---|" * len(found),
        *("| " + " | ".join([name, *(value(each) for each in found)]) + " |" for name, value in ROWS.items()),
        *(
            "| " + " | ".join([MEANING[reason], *(f"{each.reasons.get(reason, 0):,}" for each in found)]) + " |"
            for reason in MEANING
            if any(reason in each.reasons for each in found)
        ),
        "",
    ]
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


ROWS: dict[str, Callable[[Statistics], str]] = {
    "problems asked": lambda each: f"{each.problems:,}",
    "problems with a kept answer": lambda each: f"{each.solved:,}",
    "responses": lambda each: f"{each.responses:,}",
    "kept": lambda each: f"{each.kept:.1%}",
    "layout repaired, of the kept": lambda each: _number(each.repaired, ".1%"),
    "forks in an answer": lambda each: _number(each.forks, ".2f"),
    "paths of a fork": lambda each: _number(each.paths, ".2f"),
    "words": lambda each: _number(each.words, ".0f"),
    "words inside paths": lambda each: _number(each.inside, ".0%"),
    "first fork at": lambda each: _number(each.first, ".0%"),
}
"""What is told of a source."""
