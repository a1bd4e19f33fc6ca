"""What paths arrive at, whether that is right, whether siblings agree, and how their fork is used.

A path gets one of five verdicts. It is *right* or *wrong* if it arrives at a final answer, which the verifier of the
task judges like that of a trunk. It *failed* if it says itself that it has none, as paths of countdown do with `no`. It
is *undecided* if it does neither, because a budget cut it, or because it works out a part of the problem. It is
*unjudged* if its task cannot be loaded or its verifier fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import combinations
from typing import Literal

from parallel_r1.answers.rollout import Problem
from parallel_r1.answers.syntax import FINAL_ANSWER
from parallel_r1.errors import UserError
from parallel_r1.registry import where
from parallel_r1.tasks.base import Task, conclusion_of, verdicts
from parallel_r1.tasks.load import load_task

Verdict = Literal["right", "wrong", "failed", "undecided", "unjudged"]
VERDICTS: tuple[Verdict, ...] = ("right", "wrong", "failed", "undecided", "unjudged")
Use = Literal["verification", "exploration", "neither", ""]
USES: tuple[Use, ...] = ("verification", "exploration", "neither")
RIGHT = "a right answer"
"""What all right paths arrive at: two right expressions agree in other words."""
_NUMBER = re.compile(r"(?:(?<![\w).])-)?(?:\d+(?:,\d{3})+|\d+)(?:\.\d+)?")


class Judge:
    """The tasks of some answers.

    Attributes:
        notes: one line for every task whose paths cannot be judged.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, Task | None] = {}
        self.judged: dict[tuple[Problem, str], bool | None] = {}
        self.notes: set[str] = set()

    def task(self, name: str) -> Task | None:
        """The task of a name; None, with a note, if it cannot be loaded."""
        if name not in self.tasks:
            try:
                self.tasks[name] = load_task(name)
            except UserError as error:
                self.tasks[name] = None
                self.notes.add(f"paths of task '{name}' are not judged: {error}")
        return self.tasks[name]

    def conclusion(self, source: str, text: str, cut: bool) -> str | None:
        """The final answer that a path of a task arrives at; see `conclusion_of`.

        Raises:
            UserError: the task's own method `conclusion` fails.
        """
        task = self.task(source)
        try:
            return conclusion_of(task, text, cut=cut) if text else None
        except Exception as error:
            found = f"{error!r:.200} at {where(type(task))}"
            raise UserError(f"a conclusion from task '{source}'", found, "correct its method conclusion") from error

    def verify(self, conclusions: Iterable[tuple[Problem, str | None]]) -> None:
        """Let the tasks judge conclusions, every one once, so that `verdict` knows them."""
        waiting: dict[str, list[tuple[Problem, str]]] = {}
        for problem, conclusion in dict.fromkeys(conclusions):
            if conclusion and (problem, conclusion) not in self.judged:
                waiting.setdefault(problem.source, []).append((problem, conclusion))
        for source, pairs in waiting.items():
            task = self.task(source)
            if task is not None:
                self.judged.update(zip(pairs, self._judged(task, pairs), strict=True))

    def _judged(self, task: Task, pairs: Sequence[tuple[Problem, str]]) -> Sequence[bool | None]:
        """The verdicts of a task on final answers; None where its verifier fails, with a note."""
        try:
            return verdicts(task, [problem for problem, _ in pairs], [f"{FINAL_ANSWER} {end}" for _, end in pairs])
        except Exception as error:  # a row may be of a problem that the task of this name does not have
            if len(pairs) > 1:
                return [verdict for pair in pairs for verdict in self._judged(task, [pair])]
            fails = f"its verifier fails with {type(error).__name__}"
            self.notes.add(f"some paths of task '{task.name}' are not judged: {fails}")
            return [None]

    def verdict(self, problem: Problem, conclusion: str | None) -> Verdict:
        """The verdict on a conclusion that `verify` has seen."""
        if self.task(problem.source) is None:
            return "unjudged"
        if not conclusion:
            return "undecided" if conclusion is None else "failed"
        right = self.judged[problem, conclusion]
        return "unjudged" if right is None else "right" if right else "wrong"


def stated(conclusion: str | None, text: str, cut: bool) -> str | None:
    """What a text arrives at, in one spelling: its final answer, without white space, dollar signs and a full stop
    around it. Without a final answer it is the last number of the last line, 40 for `4 * 10 = $40.`, or that line if it
    holds no number. None if the text says that it has no answer, was cut before it had one, or is empty.
    """
    if conclusion == "":
        return None
    if conclusion is not None:
        return _plain(conclusion)
    if cut or not text.strip():
        return None
    line = text.strip().rpartition("\n")[2]
    numbers = _NUMBER.findall(line)
    return _plain(numbers[-1] if numbers else line)


def _plain(answer: str) -> str:
    """An answer in one spelling: numbers without commas and zeros behind the point, words in lower case."""
    plain = " ".join(answer.split()).strip("$ .").casefold()
    if _NUMBER.fullmatch(plain):
        number = Decimal(plain.replace(",", "")).normalize()
        return f"{number:f}"
    return plain


def agreement(views: Sequence[str | None]) -> float | None:
    """The share of pairs of siblings that arrive at the same; a path that arrives at nothing agrees with none. None
    with fewer than two paths.

    Args:
        views: `RIGHT` for every right path, what is `stated` for the others.
    """
    pairs = list(combinations(views, 2))
    return sum(a is not None and a == b for a, b in pairs) / len(pairs) if pairs else None


def use(agreed: float | None, chosen: bool) -> Use:
    """How a fork is used.

    *verification*: all siblings arrive at the same. *exploration*: they do not, some may fail, and the summary or the
    answer arrives at what one of them did. *neither*: it arrives at something else, as after paths that all fail or
    that work out parts. Empty with fewer than two paths.

    Args:
        agreed: the agreement of the siblings.
        chosen: whether the summary or the answer arrives at what one of them does.
    """
    if agreed is None:
        return ""
    return "verification" if agreed == 1 else "exploration" if chosen else "neither"
