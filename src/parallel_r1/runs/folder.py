"""The folder that a run writes: recipe, environment, metrics, rollouts, checkpoints, evaluations."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tomllib
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout
from rich.filesize import decimal

from parallel_r1.answers.rollout import Rollout, write_jsonl
from parallel_r1.distributed import by_first
from parallel_r1.errors import UserError
from parallel_r1.evaluation.answer_file import AnswerFile
from parallel_r1.files import move, read_jsonl, safe_name, whole, write_json, write_text, written
from parallel_r1.generation.training_card import TrainingCard
from parallel_r1.models.policy import Policy
from parallel_r1.runs.inputs import contents, data_files
from parallel_r1.runs.recipe import Recipe
from parallel_r1.runs.recipe_file import difference, dump_recipe

FOLDERS = ("rollouts", "checkpoints", "eval", "state")
LOCK = ".lock"
"""The lock file of the process that works on the run."""
DATA = "data.json"
"""The file with sizes and digests of the data files that the recipe reads, as they were when the run began."""
MOMENTS = "optimizer.pt"
"""The file of a checkpoint with its optimiser's moments, by parameter."""
PACKAGES = ("parallel-r1", "torch", "transformers", "accelerate", "numpy", "tokenizers")


class RunFolder:
    """The files of one run. A lock, held from `create` to `finish` or to the end of the process, keeps other processes
    out; a folder that holds another run is refused.

    An unfinished run has a folder `state/` with the last saved step, from which it resumes. Files and folders are
    written atomically. Of several processes only the first writes; the others wait for it, so that all read the same.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = FileLock(path / LOCK, is_singleton=True)  # all objects of this process share one lock

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> RunFolder:
        """Create the folder of a run, or open the folder in which a run of this recipe was interrupted.

        Raises:
            UserError: the folder holds other files or another run, data files have changed since, another process works
                on this run, or it cannot be written.
        """
        run = cls(path)
        run._begin(recipe)
        return run

    @by_first
    def _begin(self, recipe: Recipe) -> None:
        with written(self.path):
            self.is_begun(recipe)  # refuses a folder with other files before a lock file is added to it
            self._hold()
            if self.is_begun(recipe):
                return
            for name in FOLDERS:
                (self.path / name).mkdir(exist_ok=True)
        write_json(self.path / "environment.json", environment())
        if data := contents(data_files(recipe)):
            write_json(self.path / DATA, data)
        write_text(self.path / "recipe.toml", dump_recipe(recipe))  # last: this file makes the folder a run

    def _hold(self) -> AcquireReturnProxy:
        """Acquire the lock of the run."""
        try:
            return self.lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                "a run that no other process works on", f"one that writes to {self.path}", "wait, or give another --out"
            ) from error

    def is_begun(self, recipe: Recipe) -> bool:
        """Whether an interrupted run of this recipe is here. Called before the model is loaded, to fail early.

        Raises:
            UserError: the folder holds other files or another run, data files have changed since, or another process
                works on this run.
        """
        if not self.is_unfinished(recipe):
            self._check_no_run(recipe)
            self.check_vacant(self.path)
            return False
        self._check_data(recipe)
        with self._hold():
            return True

    def _check_no_run(self, recipe: Recipe) -> None:
        """Refuse a folder with a run that cannot go on with this recipe, and say why."""
        if not (self.path / "recipe.toml").is_file():
            return
        if not (self.path / "state").is_dir():
            raise UserError(
                "a folder for a new run, or one in which this recipe was interrupted",
                f"a finished run in {self.path}",
                f"give another --out; `parallel-r1 show {self.path}` prints its results",
            )
        key, before, now = difference(*self._recipes(recipe)) or ("", "", "")
        raise UserError(
            f"the recipe that the run in {self.path} was begun with",
            f"{key} = {now:.80} instead of {before:.80}",
            "give the earlier value, or another --out",
        )

    def _check_data(self, recipe: Recipe) -> None:
        """Refuse to go on with data files that have changed. Runs of earlier versions have no record of them."""
        file = self.path / DATA
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        now = contents(data_files(recipe))
        for name, content in now.items():
            if before.get(name, content) != content:
                raise UserError(
                    f"data as they were when the run in {self.path} began",
                    f"another content of {name}",
                    "put the earlier file back, or give another --out",
                )

    @property
    def id(self) -> str:
        """A unique name of the run, for trackers that show many runs."""
        return str(json.loads((self.path / "environment.json").read_text(encoding="utf-8"))["run"])

    @staticmethod
    def check_vacant(path: Path) -> None:
        """Check that a folder is empty or absent. Files that an interrupted `create` left are ignored.

        Raises:
            UserError: the folder holds other files.
        """

        def is_ours(entry: Path) -> bool:
            empty = entry.name in FOLDERS and entry.is_dir() and not any(entry.iterdir())
            return empty or entry.name in ("environment.json", DATA, LOCK) or entry.name.endswith(".part")

        if path.exists() and not (path.is_dir() and all(map(is_ours, path.iterdir()))):
            raise UserError(
                "a folder for a new run, or one in which this recipe was interrupted",
                f"{path} holds something already",
                "give another --out, or move it away",
            )

    def is_unfinished(self, recipe: Recipe) -> bool:
        """Whether an unfinished run of this recipe is here. The number of processes and the trackers may differ."""
        begun = self.path / "recipe.toml"
        if not begun.is_file() or not (self.path / "state").is_dir():
            return False
        return difference(*self._recipes(recipe)) is None

    def _recipes(self, recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
        """The recipe of the run here and another one, without what may differ between them."""
        texts = (self.path / "recipe.toml").read_text(encoding="utf-8"), dump_recipe(recipe)
        earlier, current = (tomllib.loads(text) for text in texts)
        for tree in (earlier, current):
            for key in ("processes", "tracking"):
                tree.pop(key, None)
        return earlier, current

    @by_first
    def restate(self, recipe: Recipe) -> None:
        """Overwrite the recipe of an existing run with an equal one whose paths have changed, as after a move."""
        if (begun := self.path / "recipe.toml").is_file():
            write_text(begun, dump_recipe(recipe))

    @by_first
    def finish(self) -> None:
        """Mark the run as finished: remove its saved state and release the lock."""
        shutil.rmtree(self.path / "state")
        self.lock.release(force=True)
        (self.path / LOCK).unlink(missing_ok=True)

    @by_first
    def check_space(self, needed: int) -> None:
        """Check the free disk space.

        Args:
            needed: bytes of the whole run; the files that are here already are subtracted.

        Raises:
            UserError: too little space is free.
        """
        free = shutil.disk_usage(self.path).free
        files = (file for name in ("checkpoints", "state") for file in (self.path / name).rglob("*") if file.is_file())
        missing = needed - sum(file.stat().st_size for file in files)
        if free < missing:
            raise UserError(
                f"{decimal(missing)} free for checkpoints", f"{decimal(free)} at {self.path}", "give another --out"
            )

    @by_first
    def log(self, metrics: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        file = self.path / "metrics.jsonl"
        with written(file), file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(metrics) + "\n")
            lines.flush()
            os.fsync(lines.fileno())  # checkpoints and states saved later rely on this row

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, without a last line that was cut off."""
        file = self.path / "metrics.jsonl"
        return [row for _, row in read_jsonl(file, drop_unfinished=True)] if file.is_file() else []

    @by_first
    def rewind(self, step: int) -> None:
        """Drop the rows that were logged after a step, and the rows of evaluations that were not saved."""
        rows = [
            row
            for row in self.metrics()
            if (self.evaluation(row["stage"], row["task"]) if row["kind"] == "evaluation" else row["step"] <= step)
        ]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    @by_first
    def save_state(self, step: int, state: dict[str, Any]) -> None:
        """Write the state to resume from after a step. The previous state stays too; older ones are removed, and so
        are the candidate weights of all steps but `state["best"]`."""
        folder = self.path / "state"
        with whole(folder / f"step-{step}.pt") as file:
            _save_tensors(file, state)
        for old in sorted(folder.glob("step-*.pt"), key=_step)[:-1]:
            old.unlink()
        for old in folder.glob("weights-*"):
            if old != self.candidate(state.get("best")):
                shutil.rmtree(old)

    def load_state(self) -> dict[str, Any] | None:
        """The last state that `save_state` wrote; None if there is none.

        Raises:
            UserError: the file is damaged.
        """
        import torch

        states = sorted((self.path / "state").glob("step-*.pt"), key=_step)
        try:
            return torch.load(states[-1], map_location="cpu", weights_only=True) if states else None
        except Exception as error:  # zipfile, pickle and torch have exceptions of their own
            raise UserError(
                f"a whole file {states[-1]}",
                f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}",
                "remove it: the run then resumes from the previous state, or from the beginning of the stage",
            ) from error

    @by_first
    def save_rollouts(self, step: int, rollouts: Iterable[Rollout]) -> None:
        """Write the answers of a step."""
        with whole(self.path / "rollouts" / f"step-{step}.jsonl") as file:
            write_jsonl(file, rollouts)

    @by_first
    def save_checkpoint(
        self, name: str, policy: Policy, moments: dict[str, Any] | None = None, card: TrainingCard | None = None
    ) -> None:
        """Write the weights after a stage as an ordinary Hugging Face model folder, unless it exists.

        Args:
            moments: of the stage's optimiser, if a later stage continues with them.
            card: the training card of the weights.
        """
        if not self.checkpoint(name).exists():
            _save(self.checkpoint(name), policy, moments, card)

    def moments(self, name: str) -> dict[str, Any]:
        """The moments that `save_checkpoint` wrote with the weights after a stage."""
        import torch

        moments: dict[str, Any] = torch.load(self.checkpoint(name) / MOMENTS, weights_only=True)
        return moments

    @by_first
    def save_candidate(
        self, step: int, policy: Policy, moments: dict[str, Any] | None = None, card: TrainingCard | None = None
    ) -> None:
        """Write the weights after a step of the running stage, candidates for its checkpoint; see `save_checkpoint`."""
        shutil.rmtree(self.candidate(step), ignore_errors=True)
        _save(self.candidate(step), policy, moments, card)

    def candidate(self, step: int | None) -> Path:
        """The folder of the candidate weights after a step of the running stage."""
        return self.path / "state" / f"weights-{step}"

    @by_first
    def hand_over(self, step: int, name: str) -> None:
        """Turn the candidate weights after a step into the checkpoint of their stage."""
        with written(self.checkpoint(name)):
            move(self.candidate(step), self.checkpoint(name))

    def checkpoint(self, name: str) -> Path:
        """The folder of the weights after a stage."""
        return self.path / "checkpoints" / name

    def model_card(self, name: str) -> Path:
        """The model card of the weights after a stage."""
        return self.checkpoint(name) / "README.md"

    @by_first
    def save_model_card(self, name: str, text: str) -> None:
        """Write the model card of the weights after a stage."""
        with written(self.checkpoint(name)):
            write_text(self.model_card(name), text)

    @by_first
    def save_evaluation(self, stage: str, task: str, result: dict[str, Any]) -> None:
        """Write the evaluation of a stage on a task."""
        write_json(self.path / "eval" / f"{safe_name(stage, task)}.json", result)

    def evaluation(self, stage: str, task: str) -> dict[str, Any] | None:
        """The evaluation that `save_evaluation` wrote; None if it is not there.

        Version 0.1 made file names of tasks as they are: a task that names a file had folders in it, and several stages
        could share a file outside the run folder. A file there counts if it says that it is of this stage and task.
        """
        file, old = (self.path / "eval" / f"{name}.json" for name in (safe_name(stage, task), f"{stage}.{task}"))
        if file.is_file():
            return dict(json.loads(file.read_text(encoding="utf-8")))
        result = json.loads(old.read_text(encoding="utf-8")) if os.path.isfile(old) else {}  # a name may be too long
        return result if (result.get("stage"), result.get("task")) == (stage, task) else None

    def answers(self, stage: str, task: str) -> AnswerFile:
        """The file of the answers that the evaluation of a stage on a task draws."""
        return AnswerFile(self.path / "eval" / f"{safe_name(stage, task)}.jsonl")

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """All evaluations of the run, the earliest first."""
        files = sorted((self.path / "eval").rglob("*.json"), key=lambda file: file.stat().st_mtime)
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def space(recipe: Recipe, parameters: int, learning: int) -> int:
    """Upper bound of the disk space of a run, in bytes (fp32): the weights of the base and of every stage, with two
    moments per trained weight if a later stage continues with them; two saved states, with the trained weights and
    moments; and two candidate checkpoints if a stage has a stop rule.

    Args:
        parameters: of the model, an adapter included.
        learning: number of trained parameters.
    """
    carried, chosen = 2 * len(recipe.carried), 2 if any(stage.stop for stage in recipe.stages.values()) else 0
    return 4 * (parameters * (len(recipe.stages) + 1 + chosen) + learning * (carried * (1 + chosen) + 2 * 3))


def _save(path: Path, policy: Policy, moments: dict[str, Any] | None, card: TrainingCard | None) -> None:
    from parallel_r1.models.lora import save  # only those who save weights need torch

    with whole(path) as folder:
        save(policy, folder)
        if card is not None:
            card.write(folder)
        if moments is not None:
            _save_tensors(folder / MOMENTS, moments)


def _save_tensors(path: Path, values: dict[str, Any]) -> None:
    import torch

    with path.open("wb") as file:  # torch hides the reason of a failed write to a file that it opened itself
        torch.save(values, file)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def environment() -> dict[str, Any]:
    """The environment of a run, to reproduce it: versions, machine, command; and a unique name for the run."""
    return {
        "run": uuid.uuid4().hex[:12],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
