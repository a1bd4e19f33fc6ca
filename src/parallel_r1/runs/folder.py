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
from parallel_r1.files import move, read_jsonl, whole, write_json, write_text, written
from parallel_r1.generation.training_card import TrainingCard
from parallel_r1.models.lora import save
from parallel_r1.models.policy import Policy
from parallel_r1.runs.recipe import Recipe
from parallel_r1.runs.recipe_file import dump_recipe

FOLDERS = ("rollouts", "checkpoints", "eval", "state")
LOCK = ".lock"
"""The file of a run that its process holds."""
MOMENTS = "optimizer.pt"
"""The file of a checkpoint with what its optimiser remembers, by parameter."""
PACKAGES = ("parallel-r1", "torch", "transformers", "accelerate", "numpy", "tokenizers")


class RunFolder:
    """One run's files. Nothing in it is ever overwritten by another run, nor by another process at the same run: from
    `create` to `finish`, or to the end of the process, however it ends, no other can create it.

    A run that has not finished has a folder `state/`, with all that is needed to go on from the last saved step. What
    is there is whole: files and folders are written under another name and then renamed. Of several processes the
    first alone writes; the others wait until it has, so all of them read the same.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = FileLock(path / LOCK, is_singleton=True)  # one for all objects of this process

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> RunFolder:
        """Start a folder for a run, or take up the one that this recipe was broken off in.

        Raises:
            UserError: the folder holds something else already, another process is at this run, or it cannot be written.
        """
        run = cls(path)
        run._begin(recipe)
        return run

    @by_first
    def _begin(self, recipe: Recipe) -> None:
        with written(self.path):
            self.is_begun(recipe)  # what belongs to something else does not even get a lock
            self._hold()
            if self.is_begun(recipe):
                return
            for name in FOLDERS:
                (self.path / name).mkdir(exist_ok=True)
        write_json(self.path / "environment.json", environment())
        write_text(self.path / "recipe.toml", dump_recipe(recipe))  # the last: with it the folder is a run

    def _hold(self) -> AcquireReturnProxy:
        """Keep other processes out."""
        try:
            return self.lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                "a run that no other process is at", f"one that writes to {self.path}", "wait, or give another --out"
            ) from error

    def is_begun(self, recipe: Recipe) -> bool:
        """Whether there is something to go on with here, before time is spent on a run that could not be written.

        Raises:
            UserError: the folder holds something else, or another process is at this run.
        """
        if not self.is_unfinished(recipe):
            self.check_vacant(self.path)
            return False
        with self._hold():
            return True

    @property
    def id(self) -> str:
        """What no other run is called, for trackers that know many."""
        return str(json.loads((self.path / "environment.json").read_text(encoding="utf-8"))["run"])

    @staticmethod
    def check_vacant(path: Path) -> None:
        """Refuse a folder that holds anything. What `create` had made there when it was broken off does not count."""

        def is_ours(entry: Path) -> bool:
            empty = entry.name in FOLDERS and entry.is_dir() and not any(entry.iterdir())
            return empty or entry.name in ("environment.json", LOCK) or entry.name.endswith(".part")

        if path.exists() and not (path.is_dir() and all(map(is_ours, path.iterdir()))):
            raise UserError(
                "a folder for a new run, or one in which this recipe was broken off",
                f"{path} holds something already",
                "give another --out, or move it away",
            )

    def is_unfinished(self, recipe: Recipe) -> bool:
        """Whether this recipe was begun here, in whatever number of processes and with whatever trackers, and has not
        been finished."""
        begun = self.path / "recipe.toml"
        if not begun.is_file() or not (self.path / "state").is_dir():
            return False
        texts = begun.read_text(encoding="utf-8"), dump_recipe(recipe)
        before, now = ({**tomllib.loads(text), "processes": None, "tracking": None} for text in texts)
        return before == now

    @by_first
    def restate(self, recipe: Recipe) -> None:
        """Write the recipe of a run that was begun once more, knowing that nothing differs but where things lie."""
        if (begun := self.path / "recipe.toml").is_file():
            write_text(begun, dump_recipe(recipe))

    @by_first
    def finish(self) -> None:
        """Note that there is nothing left to do here."""
        shutil.rmtree(self.path / "state")
        self.lock.release(force=True)
        (self.path / LOCK).unlink(missing_ok=True)

    @by_first
    def check_space(self, needed: int) -> None:
        """Refuse to start on a disk without room for what is missing here of the `needed` bytes of a whole run."""
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
            os.fsync(lines.fileno())  # what is saved after it counts on it

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that was broken off is left out."""
        file = self.path / "metrics.jsonl"
        return [row for _, row in read_jsonl(file, drop_unfinished=True)] if file.is_file() else []

    @by_first
    def rewind(self, step: int) -> None:
        """Forget what was logged after a step, and evaluations that were not saved."""
        kept = [
            row
            for row in self.metrics()
            if (
                self.evaluation(f"{row['stage']}.{row['task']}") if row["kind"] == "evaluation" else row["step"] <= step
            )
        ]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))

    @by_first
    def save_state(self, step: int, state: dict[str, Any]) -> None:
        """Write what is needed to go on from a step. The last but one is kept until the next is whole; weights that a
        stage might have handed over are kept if they are its `best`."""
        folder = self.path / "state"
        with whole(folder / f"step-{step}.pt") as file:
            _save_tensors(file, state)
        for old in sorted(folder.glob("step-*.pt"), key=_step)[:-1]:
            old.unlink()
        for old in folder.glob("weights-*"):
            if old != self.candidate(state.get("best")):
                shutil.rmtree(old)

    def load_state(self) -> dict[str, Any] | None:
        """What `save_state` wrote last; None if nothing.

        Raises:
            UserError: it is damaged.
        """
        import torch

        found = sorted((self.path / "state").glob("step-*.pt"), key=_step)
        try:
            return torch.load(found[-1], map_location="cpu", weights_only=True) if found else None
        except Exception as error:  # zip, pickle and torch each raise their own
            raise UserError(
                f"a whole file {found[-1]}",
                f"{type(error).__name__}: {(str(error) or 'no more is known').splitlines()[0]}",
                "remove it: the run then goes on from the state before, or else from the beginning of the stage",
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
        """Write the weights after a stage as an ordinary Hugging Face model folder.

        Args:
            moments: of the stage's optimiser, if a later stage goes on with them.
            card: how the weights were trained.
        """
        if not self.checkpoint(name).exists():
            _save(self.checkpoint(name), policy, moments, card)

    def moments(self, name: str) -> dict[str, Any]:
        """The moments that `save_checkpoint` wrote with the weights after a stage."""
        import torch

        found: dict[str, Any] = torch.load(self.checkpoint(name) / MOMENTS, weights_only=True)
        return found

    @by_first
    def save_candidate(
        self, step: int, policy: Policy, moments: dict[str, Any] | None = None, card: TrainingCard | None = None
    ) -> None:
        """Write the weights after a step of the running stage, which the stage may hand over; see `save_checkpoint`."""
        shutil.rmtree(self.candidate(step), ignore_errors=True)
        _save(self.candidate(step), policy, moments, card)

    def candidate(self, step: int | None) -> Path:
        """Where the weights after a step of the stage under way lie, if it may hand them over."""
        return self.path / "state" / f"weights-{step}"

    @by_first
    def hand_over(self, step: int, name: str) -> None:
        """Make the weights after a step those after its stage."""
        with written(self.checkpoint(name)):
            move(self.candidate(step), self.checkpoint(name))

    def checkpoint(self, name: str) -> Path:
        """Where the weights after a stage lie."""
        return self.path / "checkpoints" / name

    @by_first
    def save_evaluation(self, name: str, result: dict[str, Any]) -> None:
        """Write one evaluation."""
        write_json(self.path / "eval" / f"{name}.json", result)

    def evaluation(self, name: str) -> dict[str, Any] | None:
        """What `save_evaluation` wrote, if it has."""
        file = self.path / "eval" / f"{name}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def space(recipe: Recipe, parameters: int, learning: int) -> int:
    """Bytes that a run of a recipe takes at most: the weights of every stage, with two moments of those that learn
    where a later stage goes on with them; two states, each with what learns and its moments; and two sets of weights,
    with moments perhaps, where a stop rule chooses."""
    carried, chosen = 2 * len(recipe.carried), 2 if any(stage.stop for stage in recipe.stages.values()) else 0
    return 4 * (parameters * (len(recipe.stages) + 1 + chosen) + learning * (carried * (1 + chosen) + 2 * 3))


def _save(path: Path, policy: Policy, moments: dict[str, Any] | None, card: TrainingCard | None) -> None:
    with whole(path) as folder:
        save(policy, folder)
        if card is not None:
            card.write(folder)
        if moments is not None:
            _save_tensors(folder / MOMENTS, moments)


def _save_tensors(path: Path, values: dict[str, Any]) -> None:
    import torch

    with path.open("wb") as file:  # of a file that torch opens itself it does not say why it could not be written
        torch.save(values, file)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def environment() -> dict[str, Any]:
    """What a reader needs to know to repeat a run: versions, machine, command; and a name for it alone."""
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
