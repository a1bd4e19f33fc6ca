"""The folder of an evaluation: its settings, the judged answers to every task, and the results."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from parallel_r1 import __version__
from parallel_r1 import distributed as processes
from parallel_r1.errors import UserError
from parallel_r1.evaluation.answer_file import AnswerFile
from parallel_r1.evaluation.measure import Result
from parallel_r1.files import safe_name, write_json, written
from parallel_r1.generation.settings import Budget, Engine, Sampling
from parallel_r1.settings import flat
from parallel_r1.tasks.base import Task
from parallel_r1.tasks.datasets.splits import Split
from parallel_r1.tasks.prompts import Prompt

SETTINGS, RESULTS, TIMES, LOCK = "settings.json", "results.json", "times.json", ".lock"
EVALUATIONS = "evaluations"
"""The folder of evaluation folders: in the current folder, or in a run folder."""
LABELS = ("grader", "engine.rows")
"""Settings that decide no answer: the grader, which is checked apart, and how many answers are drawn at once."""


def settings_of(
    model: str,
    samples: Mapping[str, int],
    problems: int | None,
    seed: int,
    find: str,
    sampling: Sampling,
    prompt: Prompt,
    engine: Engine,
    budgets: Sequence[int] = (),
    split: Split = "test",
) -> dict[str, Any]:
    """Everything that decides which answers are drawn, but for the weights, as a JSON object.

    Args:
        samples: task -> answers to every problem.
        problems: most problems of a task; None for all of a finite one.
        budgets: critical paths, if several are measured.
    """
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    values = {
        "model": model,
        "samples": dict(samples),
        "problems": problems,
        "split": split,
        "seed": seed,
        "find": find,
        "sampling": sampling.model_dump(mode="json"),
        "prompt": prompt.model_dump(mode="json"),
        "engine": {"kind": engine.kind, "dtype": engine.dtype, "rows": engine.rows},
        "budgets": list(budgets),
        "versions": {"parallel-r1": __version__, **versions},
    }
    return dict(json.loads(json.dumps(values)))  # lists for tuples, as they are read back


def default_folder(settings: Mapping[str, Any]) -> Path:
    """`evaluations/MODEL-DIGEST`; for the checkpoint of a run inside the run folder, where `report` looks for it. The
    same command finds its folder again, and other settings have another."""
    model = Path(settings["model"])
    decisive = {name: value for name, value in flat(settings).items() if name not in LABELS}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
    if model.parent.name == "checkpoints" and (model.parents[1] / "recipe.toml").is_file():
        return model.parents[1] / EVALUATIONS / f"{safe_name(model.name)}-{digest}"
    return Path(EVALUATIONS) / f"{safe_name('-'.join(model.parts[-2:]) or 'model')}-{digest}"


def scaled(sampling: Sampling, critical_path: int) -> Sampling:
    """The same sampling with another critical path; the limits of a path and of all tokens grow or shrink with it."""
    budget = sampling.budget
    factor = critical_path / budget.critical_path
    smaller = {name: max(1, round(factor * getattr(budget, name))) for name in ("path", "total")}
    changed = Budget(critical_path=critical_path, forks=budget.forks, depth=budget.depth, **smaller)
    return sampling.model_copy(update={"budget": changed})


@dataclass(frozen=True)
class Measured:
    """The result on one task under one budget, with what was timed.

    Attributes:
        result: the figures.
        budget: the critical path, if several budgets were measured; None if it is that of the settings.
        loaded: seconds for every answer while many were drawn at once; None if they were drawn in several sittings.
        alone: seconds of answers that were drawn one at a time, the first to the first problems of the task.
    """

    result: Result
    budget: int | None = None
    loaded: float | None = None
    alone: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Measured:
        """The inverse of `to_json`."""
        return cls(Result(**row["result"]), row["budget"], row["loaded"], tuple(row["alone"]))


class EvaluationFolder:
    """The files of one evaluation of one model: `settings.json`, `results.json`, and a file of answers per task, with
    several budgets in a folder per budget. A lock keeps other processes out while answers are drawn."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = FileLock(path / LOCK, is_singleton=True)

    def answers(self, task: str, budget: int | None = None) -> AnswerFile:
        """The file of answers to a task under one of the budgets."""
        folder = self.path if budget is None else self.path / f"critical-path-{budget}"
        return AnswerFile(folder / f"{safe_name(task)}.jsonl")

    @property
    def is_evaluation(self) -> bool:
        """Whether an evaluation was begun here."""
        return (self.path / SETTINGS).is_file()

    @property
    def is_finished(self) -> bool:
        """Whether the results are here."""
        return (self.path / RESULTS).is_file()

    def settings(self) -> dict[str, Any]:
        """The settings that the evaluation was begun with.

        Raises:
            UserError: there is no evaluation here, or its settings cannot be read.
        """
        settings = _read(self.path / SETTINGS)
        if not isinstance(settings, dict) or "samples" not in settings:
            raise _damaged(self.path / SETTINGS, "no settings", PUT_BACK)
        return settings

    def results(self) -> list[Measured]:
        """What `save` wrote.

        Raises:
            UserError: the evaluation is not finished.
        """
        if not self.is_finished:
            fix = "give the command that began it again: it goes on"
            raise UserError(f"a finished evaluation in {self.path}", "one without results.json", fix)
        file = self.path / RESULTS
        try:
            results = [Measured.from_json(row) for row in _read(file)]
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise _damaged(file, f"{type(error).__name__}: {error}", REMOVE) from error
        if not results:
            raise _damaged(file, "none", REMOVE)
        return results

    @processes.by_first
    def open(self, settings: Mapping[str, Any]) -> None:
        """Begin an evaluation, or go on with one of the same settings.

        Raises:
            UserError: the folder holds other files or an evaluation with other settings, or another process draws here.
        """
        self._check_vacant()
        if self.is_evaluation:
            self.check(settings)
        self.hold()
        if not self.is_evaluation:
            write_json(self.path / SETTINGS, settings)

    def _check_vacant(self) -> None:
        """Refuse a folder with other files than those of an evaluation."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError("a folder for --out", f"{self.path}, a file", "give another name")
        others = sorted(entry.name for entry in self.path.glob("*") if entry.name != LOCK)
        if others and not self.is_evaluation:
            raise UserError("a new folder for --out, or one of eval", f"{self.path} with {others[0]}", "give another")

    def hold(self) -> None:
        """Keep other processes out until `close`."""
        with written(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self.lock.acquire(timeout=0)
            except Timeout as error:
                raise UserError(f"an evaluation in {self.path} that no other process draws", "one", "wait") from error

    def check(self, settings: Mapping[str, Any], ignored: Sequence[str] = ()) -> None:
        """Refuse other settings than those that the evaluation was begun with.

        Args:
            ignored: settings that do not matter.
        """
        before, now = flat(self.settings()), flat(settings)
        differing = [
            f"{name} = {now.get(name)!s:.80} instead of {before.get(name)!s:.80}"
            for name in {**before, **now}
            if name not in (*LABELS, "model")
            and name.split(".")[0] not in ignored
            and before.get(name) != now.get(name)
        ]
        if differing:
            raise UserError(
                f"the settings of the evaluation in {self.path}",
                ", ".join(differing[:4]),
                "give another --out: results of different settings are not mixed",
            )
        if "grader" not in ignored and before.get("grader") != now.get("grader"):
            raise UserError(
                f"the grader that judged the answers in {self.path}",
                "another version of it",
                "give --regrade first, which judges the stored answers again, or another --out",
            )

    @processes.by_first
    def save(self, measured: Sequence[Measured], settings: Mapping[str, Any]) -> None:
        """Write what was measured, and the settings with the grader that judged the answers; the settings alone if
        nothing was."""
        write_json(self.path / SETTINGS, settings)
        if measured:
            write_json(self.path / RESULTS, [one.to_json() for one in measured])
            (self.path / TIMES).unlink(missing_ok=True)

    def times(self) -> dict[str, float]:
        """Seconds for every answer, while many were drawn at once, by the file of answers; of those that one sitting
        drew as a whole."""
        file = self.path / TIMES
        return dict(_read(file)) if file.is_file() else {}

    @processes.by_first
    def save_time(self, task: str, budget: int | None, seconds: float) -> None:
        """Write one of `times`."""
        key = str(self.answers(task, budget).path.relative_to(self.path))
        write_json(self.path / TIMES, self.times() | {key: seconds})

    def time(self, task: str, budget: int | None) -> float | None:
        """One of `times`; None if several sittings drew the answers."""
        return self.times().get(str(self.answers(task, budget).path.relative_to(self.path)))

    @processes.by_first
    def close(self) -> None:
        """Let other processes in again."""
        self.lock.release(force=True)
        (self.path / LOCK).unlink(missing_ok=True)


def grader_digest(tasks: Sequence[Task]) -> str:
    """The digest of what judges answers: the source code of `tasks/`, the classes of the tasks, and math-verify."""
    sources = [*_own_sources(), *sorted({_source(type(task)) for task in tasks})]
    try:
        sources.append(importlib.metadata.version("math-verify"))
    except importlib.metadata.PackageNotFoundError:
        sources.append("")
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


@cache
def _own_sources() -> list[str]:
    folder = Path(__file__).parents[1] / "tasks"
    return [file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.py"))]


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # defined in an interactive session
        return f"{kind.__module__}.{kind.__qualname__}"


def _read(file: Path) -> Any:
    if not file.is_file():
        raise UserError(f"a folder that eval wrote, with {file.name}", f"none in {file.parent}", "check the path")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(file, str(error), PUT_BACK if file.name == SETTINGS else REMOVE) from error


PUT_BACK = "put it back as it was; the answers beside it are whole"
REMOVE = "remove it and give the command of the evaluation again: the answers beside it are whole"


def _damaged(file: Path, content: str, fix: str) -> UserError:
    return UserError(f"a whole file {file}", content, fix)
