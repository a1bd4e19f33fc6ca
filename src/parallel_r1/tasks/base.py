"""What a task is, and how to get one by name.

A task of your own is a class with two methods, in any Python file or notebook:

    @task("sums")
    class Sums:
        def problems(self, split, seed):
            random = Random(f"{split}/{seed}")
            while True:
                a, b = random.randrange(100), random.randrange(100)
                yield Problem(f"{a}+{b}", f"What is {a} + {b}?\\n", str(a + b), "sums")

        def verify(self, problems, answers):
            return [final_answer(answer) == problem.answer for problem, answer in zip(problems, answers)]

Recipes then use it as `task = "sums"`, with the file in `imports`.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, Protocol, TypeVar

from parallel_r1.answers.rollout import Problem
from parallel_r1.errors import UserError
from parallel_r1.files import lone_surrogate
from parallel_r1.registry import Registry, where
from parallel_r1.tasks.datasets.splits import Split
from parallel_r1.tasks.grading.extract import Find, final_answer, without_cut_answer

T = TypeVar("T")
Factory = TypeVar("Factory", bound=Callable[[], Any])


class Task(Protocol):
    """Problems, and a verifier that decides which answers to them are correct.

    A task may have more methods:

    * `statement(problem) -> str`: the problem without the instruction around it, which a teacher is asked
      (`parallel-r1 coldstart`). Without it a teacher gets the whole prompt.
    * `conclusion(path) -> str | None`, where a path states its result in other words than a final answer: the final
      answer that the text of a path arrives at, "" if it says that it has none, None if it says neither. It is used to
      look at answers (`eval`, `analyse`, `report`), never for a reward.
    * `out_of_time(problems, answers) -> list[bool]`: which of the answers that `verify` rejected were too costly to
      compare. Without it none were.
    """

    @property
    def name(self) -> str:
        """What recipes, files and tables call the task; the `source` of its problems. `@task(name)` sets it."""
        ...

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        """Yield the problems of a split, in an order that depends on nothing but the seed.

        `train` must not end (`epochs(items, seed)` repeats a list for ever, shuffled). `validation` and `test` may end.
        No problem may be in two splits. A split that the task does not have yields nothing.
        """
        ...

    def verify(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[bool]:
        """Decide for a batch of answers which are correct, in the order of the batch.

        Args:
            problems: one for every answer; several answers to one problem repeat it.
            answers: answers[i] is the trunk of an answer to problems[i]: its text outside all paths.
        """
        ...


TASKS: Registry[Callable[[], Task]] = Registry("task")
"""Every registered task by its name. Calling an entry constructs the task the first time, and then returns it."""
_ARGUMENTS = {"problems": ("split", "seed"), "verify": ("problems", "answers")}


def task(name: str) -> Callable[[Factory], Factory]:
    """Register a class as a task. It is constructed, without arguments, when the task is first asked for by its name.

    Running the definition again, as a notebook does, replaces the task. A function without arguments that returns a
    task can be registered too.

    Raises:
        UserError: the name is that of another task or cannot be one, or the class lacks a method.
    """

    if not isinstance(name, str):
        raise UserError('@task("name") with a name', f"{name!r:.60}", "write the name in parentheses")

    def register(factory: Factory) -> Factory:
        _check_name(name, where(factory))
        if isinstance(factory, type):
            _check_methods(factory, f"class {factory.__name__}", where(factory))
            if not hasattr(factory, "name"):
                factory.name = name  # type: ignore[attr-defined]
        TASKS.add(name, cache(lambda: _construct(name, factory)), factory)
        return factory

    return register


def problem_stream(task: Task, split: Split, seed: int, *, may_end: bool = False) -> Iterator[Problem]:
    """Iterate over a task's problems of a split, and check them on the way.

    Args:
        may_end: whether training problems may end.

    Raises:
        UserError: the task yields something else than problems, problems of another source or with half of a surrogate
            pair, or its training problems end.
    """
    place = where(type(task))
    problems: Any = task.problems(split, seed)
    if not isinstance(problems, Iterable):
        kind = f"{type(problems).__name__} from {place}"
        raise UserError(f"problems one after the other from problems of task '{task.name}'", kind, "yield them")
    for problem in problems:
        if not isinstance(problem, Problem):
            raise UserError(
                f"objects of class Problem from problems of task '{task.name}'",
                f"{problem!r:.60} from {place}",
                "yield Problem(id, prompt, answer, source)",
            )
        texts = (text for text in (problem.prompt, problem.answer) if isinstance(text, str))
        if half := lone_surrogate("".join(texts)):
            raise UserError(
                f"problems of task '{task.name}' that are text",
                f"{half}, half of a surrogate pair, in problem '{problem.id}' from {place}",
                "leave it out",
            )
        if problem.source != task.name:
            raise UserError(
                f"problems with the source '{task.name}', the name of their task",
                f"problem '{problem.id}' with the source '{problem.source}' from {place}",
                "write the task's name into every problem",
            )
        yield problem
    if split == "train" and not may_end:
        raise UserError(
            f"training problems of task '{task.name}' without an end",
            f"a last one, from {place}",
            "repeat them: yield from parallel_r1.tasks.base.epochs(items, seed)",
        )


def verdicts(task: Task, problems: Sequence[Problem], answers: Sequence[str]) -> list[bool]:
    """Call a task's `verify`, once for the whole batch, and check what it returns.

    Raises:
        UserError: it returned something else than one bool for every answer; says where the task is defined.
    """
    if not problems:
        return []
    result = task.verify(problems, answers)
    kind = type(task)  # where it is defined is looked up only for an error: that takes milliseconds
    if not isinstance(result, Sequence) or isinstance(result, str):
        result_is = f"{type(result).__name__} from {where(kind)}"
        raise UserError(f"a list of bools from verify of task '{task.name}'", result_is, "return one bool per answer")
    if len(result) != len(answers):
        raise UserError(
            f"{len(answers)} verdicts from verify of task '{task.name}', one per answer",
            f"{len(result)} from {where(kind)}",
            "return one bool for every answer of the batch, in the same order",
        )
    for verdict in result:
        if not isinstance(verdict, bool):
            raise UserError(
                f"bools from verify of task '{task.name}'",
                f"{verdict!r:.60}, a {type(verdict).__name__}, from {where(kind)}",
                "return True or False; bool(...) converts a number",
            )
    return list(result)


def statement_of(task: Task, problem: Problem) -> str:
    """The problem as a teacher reads it: from the task's method `statement`, or else the prompt."""
    own: Callable[[Problem], str] | None = getattr(task, "statement", None)
    return problem.prompt.strip() if own is None else own(problem)


def find_of(task: Task | None) -> Find:
    """How a task locates final answers; strictly if it does not say, or cannot be loaded."""
    return getattr(task, "find", "strict")


def conclusion_of(task: Task | None, path: str, *, cut: bool) -> str | None:
    """The final answer that a path arrives at: the one that it writes, or else that of the task's method `conclusion`.

    Args:
        task: None if the task cannot be loaded.
        path: text of a path, without tags.
        cut: whether a budget ended the path. Its last line then concludes nothing: 7 may be the beginning of 72.

    Returns:
        "" if the path says that it has no answer, None if it does not come to an end.
    """
    written = final_answer(without_cut_answer(path) if cut else path, find_of(task))
    own: Callable[[str], str | None] | None = getattr(task, "conclusion", None)
    if written or own is None:
        return written or None  # a mark with nothing behind it is no answer
    return own(path.rpartition("\n")[0] if cut else path)


def epochs(items: Sequence[T], seed: int | str) -> Iterator[T]:
    """Repeat some items for ever, in a new random order every epoch. Without items there is nothing to repeat."""
    epoch = 0
    while items:
        order = list(items)
        random.Random(f"{seed}/{epoch}").shuffle(order)
        yield from order
        epoch += 1


def _check_name(name: str, place: str) -> None:
    from parallel_r1.tasks.prompts import WITHOUT_FORKS
    from parallel_r1.tasks.public_sets import PUBLIC_SETS

    if not name or name in PUBLIC_SETS or ":" in name or "," in name or name.endswith(WITHOUT_FORKS):
        raise UserError(
            f"a task name that is no public set of problems, without a colon, a comma or {WITHOUT_FORKS} at its end",
            f"'{name}' at {place}",
            "choose another name",
        )


def _construct(name: str, factory: Callable[[], Any]) -> Task:
    """The task that a class or function makes.

    Raises:
        UserError: it needs arguments, its product is no task, or has another name than it is registered under.
    """
    place = where(factory)
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise UserError(
            f"task '{name}' to be constructed without arguments", f"{place}: {error}", "give defaults to all of them"
        ) from error
    constructed = check_task(factory())
    if constructed.name != name:
        raise UserError(
            f"the task registered as '{name}' to have that name",
            f"'{constructed.name}' at {place}",
            "make the two the same",
        )
    return constructed


def check_task(candidate: Any) -> Task:
    """Refuse an object that is no task."""
    if isinstance(candidate, type):
        raise UserError("a task object", f"the class {candidate.__name__}", f"pass {candidate.__name__}()")
    kind, place = f"an object of class {type(candidate).__name__}", where(type(candidate))
    _check_methods(candidate, kind, place)
    if not isinstance(getattr(candidate, "name", None), str):
        raise UserError("a task with a name", f"{kind} without one, at {place}", 'add name = "..." or @task("...")')
    checked: Task = candidate
    return checked


def _check_methods(owner: Any, kind: str, place: str) -> None:
    """Refuse a class or object without `problems` and `verify`, or an object whose methods take other arguments."""
    for method, arguments in _ARGUMENTS.items():
        expected = f"a task with a method {method}({', '.join(arguments)})"
        function = getattr(owner, method, None)
        if not callable(function):
            raise UserError(expected, f"{kind} without it at {place}", "add it; see parallel_r1.tasks.base.Task")
        try:
            if not isinstance(owner, type):
                inspect.signature(function).bind(*arguments)
        except TypeError as error:
            raise UserError(expected, f"{kind} where {error}, at {place}", f"let {method} take these two") from error
