"""The stages of a recipe with verl: RL stages by its unmodified trainer, everything else by this package."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from torch._subclasses.fake_tensor import FakeTensorMode

from parallel_r1 import models
from parallel_r1.errors import UserError
from parallel_r1.integrations.verl import check_version, metrics
from parallel_r1.integrations.verl.config import KEEP, Cluster, Files, environment, overrides
from parallel_r1.integrations.verl.refusals import check
from parallel_r1.integrations.verl.shards import merge
from parallel_r1.integrations.verl.stage import check_prompts, write_stage
from parallel_r1.integrations.verl.words import arguments, lines
from parallel_r1.models.checks import positions
from parallel_r1.models.policy import Policy, load_tokenizer
from parallel_r1.runs.checkpoint import card_of
from parallel_r1.runs.curriculum import Curriculum, Observer
from parallel_r1.runs.estimate import build, prompt_tokens
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.recipe import Recipe
from parallel_r1.training.settings import RL

log = logging.getLogger(__name__)
WORKER = re.compile(r"^(\x1b\[\d+m)*\([^)]*pid=[^)]*\)(\x1b\[0m)? ?")
"""What Ray puts before a line of a worker."""
EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Interrupt)(: |\(|$)")
LATE = 60.0
"""Seconds for which answers of a step may be missing after verl has logged it."""
PAUSE = 1.0
"""Seconds between two looks at what verl has logged."""


class VerlCurriculum(Curriculum):
    """A curriculum whose RL stages run in verl.

    Attributes:
        cluster: where verl runs.
    """

    def __init__(self, recipe: Recipe, run: RunFolder, on_row: Observer, cluster: Cluster) -> None:
        super().__init__(recipe, run, on_row)
        self.cluster = cluster
        with FakeTensorMode():  # tensors have shapes and no memory here
            check_space(run.path, models.parameter_count(build(recipe)))

    def learn(self, name: str, policy: Policy) -> Policy:
        """Take the steps of a stage; verl takes those of an RL stage and goes on from its last saved state."""
        stage = self.recipe.stages[name]
        if not isinstance(stage, RL):
            return super().learn(name, policy)
        folder = (self.run.path / "verl" / name).resolve()
        files = prepare(self.recipe, name, policy, self._start(name), folder)
        keys = overrides(self.recipe, name, files, self.cluster)
        metrics.rewind(folder, metrics.saved_step(files.states))
        device = policy.model.device
        policy.model.to("cpu")  # verl has the accelerators to itself
        launch(keys, environment(stage, metrics.next_launch(folder)), Follower(self, name, stage, folder))
        policy.model.load_state_dict(merge(files.states / f"global_step_{stage.steps}" / "actor"))
        policy.model.to(device)
        policy.version += stage.updates
        policy.source = None
        self.run.save_checkpoint(name, policy, None, card_of(self.recipe, name, policy.version))
        shutil.rmtree(files.states)
        return policy

    def _start(self, name: str) -> Path:
        """The folder of the weights that a stage starts from."""
        return self.run.checkpoint(self.recipe.start_of(name)).resolve()


class Follower:
    """Logs the steps of a running stage as verl takes them."""

    def __init__(self, curriculum: Curriculum, name: str, stage: RL, folder: Path) -> None:
        self.curriculum, self.name, self.stage, self.folder = curriculum, name, stage, folder
        self.logged = 0
        self.validated: dict[int, float] = {}
        self.late: dict[int, float] = {}  # steps with missing answers, and when that was seen first

    def __call__(self) -> bool:
        """Log the steps that are new. Returns whether all steps of the stage are logged."""
        found = metrics.steps(self.folder)
        for step in sorted(found):
            if step <= self.logged or "training/global_step" not in found[step]:
                continue
            if not self._is_whole(step):
                break
            self._log(step, found[step])
            self.logged = step
        return self.logged == self.stage.steps

    def _is_whole(self, step: int) -> bool:
        """Whether all answers of a step are there; files of other nodes may come late.

        Raises:
            UserError: some do not come: verl goes on without answers that failed, and this package does not.
        """
        drawn, wanted = len(metrics.figures(self.folder, step)), self.stage.problems * self.stage.group
        if drawn >= wanted:
            return True
        self.late.setdefault(step, time.monotonic())
        if time.monotonic() - self.late[step] > LATE:
            raise UserError(
                f"{wanted} answers in step {step} of stage {self.name}",
                f"{drawn}: the others failed",
                f"see the last log in {self.folder}; the same command goes on from the last saved state",
            )
        return False

    def _log(self, step: int, data: Mapping[str, Any]) -> None:
        curriculum, stage = self.curriculum, self.stage
        if not any(key.startswith("actor/parallel_r1/") for key in data):
            raise UserError(
                "metrics of parallel_r1 from the engine of every node",
                "none: an engine of verl's own scored the answers",
                "install parallel-r1 in the environment of verl on every node",
            )
        curriculum.step += 1
        row = metrics.row(self.folder, step, data)
        curriculum.record({"stage": self.name, "kind": "rl", "stage_steps": stage.steps, **row})
        if answers := metrics.rollouts(self.folder, f"step-{step}"):
            curriculum.run.save_rollouts(curriculum.step, answers)
        if (validation := metrics.validation(self.folder, step, self.name)) is not None:
            self.validated[step] = validation["mean"]
            best = max(self.validated, key=self.validated.__getitem__)
            more = {"stage_steps": stage.steps, "best_step": best, "waited": 0, "chooses": False}
            curriculum.record({**validation, **more})


def prepare(recipe: Recipe, name: str, policy: Policy, start: Path, folder: Path) -> Files:
    """Write the files of a stage and check them.

    Raises:
        UserError: prompts and answers that do not fit.
    """
    files = write_stage(recipe, name, policy, start, folder)
    check_prompts(files, positions(policy.model.config), recipe.stages[name].sampling.budget.total)
    return files


def check_space(folder: Path, parameters: int) -> None:
    """Check that verl's saved states fit on the disk: weights and two moments in fp32, `KEEP` times and while one more
    is written.

    Raises:
        UserError: they do not.
    """
    needed = (KEEP + 1) * 3 * 4 * parameters
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{decimal(needed)} free for verl's saved states", f"{decimal(free)} at {folder}", "give another --out"
        )


def launch(keys: Mapping[str, Any], variables: Mapping[str, str], follow: Callable[[], bool]) -> None:
    """Run verl's trainer to its end, and call `follow` from time to time, until it returns True.

    Raises:
        UserError: the trainer ended with an error, or before its last step; names its log.
    """
    words = [sys.executable, "-m", "verl.trainer.main_ppo", *arguments(keys, variables)]
    output = Path(variables["VERL_FILE_LOGGER_PATH"]).with_suffix(".log")
    with output.open("wb") as file:
        process = subprocess.Popen(
            words,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **variables},
            preexec_fn=_end_with_parent,
        )
    try:
        while process.poll() is None:
            time.sleep(PAUSE)
            follow()
    except BaseException:
        stop(process)
        raise
    if process.returncode:
        raise UserError(
            "a run of verl to its end",
            f"exit code {process.returncode}: {first_error(output)}",
            f"see {output}; the same command goes on from the last saved state",
        )
    end = time.monotonic() + 2 * LATE
    while not follow():
        if time.monotonic() > end:
            raise UserError("all steps of the stage in verl's metrics", "fewer", f"see {output}")
        time.sleep(PAUSE)


def stop(process: subprocess.Popen[bytes], patience: float = 30.0) -> None:
    """End verl's trainer; Ray ends the workers with it."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_with_parent() -> None:
    """Let the kernel end this process with its parent, even one that is killed (Linux; nothing elsewhere)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def first_error(output: Path) -> str:
    """The first exception in a log of verl and its workers; what follows from it comes later."""
    with output.open(encoding="utf-8", errors="replace") as file:
        lines = (WORKER.sub("", line).strip() for line in file)
        found = next((line for line in lines if EXCEPTION.match(line)), "no exception in its log")
    return found[:300]


def commands(recipe: Recipe, cluster: Cluster, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The launch command of every RL stage, as lines of a shell script, without anything being written. The longest
    prompt is that of the first problems; a launch counts them all.

    Args:
        folder: of the run.
    """
    tokenizer = None
    with suppress(UserError):  # without it a byte counts as a token
        tokenizer = load_tokenizer(recipe.model.path) if recipe.model.path else None
    validated = recipe.evaluation.problems if recipe.evaluation.tasks else 0
    folder = folder.resolve()
    for name, stage in recipe.stages.items():
        if isinstance(stage, RL):
            model, longest = folder / "checkpoints" / recipe.start_of(name), prompt_tokens(recipe, stage, tokenizer)
            if not longest:
                raise UserError(
                    f"the problems of stages.{name}, to count their prompts",
                    "none here",
                    "see docs/data.md, or --dry-run",
                )
            files = Files(folder / "verl" / name, model, longest, validated)
            variables = environment(stage, files.folder / "verl-1.jsonl")
            yield name, list(lines(arguments(overrides(recipe, name, files, cluster), variables)))


def check_all(recipe: Recipe, cluster: Cluster) -> None:
    """Check all that can be checked before anything is launched: the version of verl, the plug-in, the recipe.

    Raises:
        UserError: the first mistake.
    """
    check(recipe)
    check_version()
    with warnings.catch_warnings():  # it says which engines of other makers are missing
        warnings.simplefilter("ignore")
        import verl  # noqa: F401  (it loads its plug-ins, ours among them)

    loaded = f"{__package__}.plugin" in sys.modules
    from parallel_r1.integrations.verl import plugin  # raises what verl keeps to itself

    if not loaded:
        raise UserError(
            "parallel_r1 among the plug-ins that verl has loaded",
            "none of that name",
            "install parallel-r1 in the environment of verl, and leave VERL_USE_EXTERNAL_PLUGINS unset",
        )
    plugin.check()
    check_configuration(recipe, cluster)
    check_resources(cluster)


def check_configuration(recipe: Recipe, cluster: Cluster) -> None:
    """Have verl's configuration read every RL stage.

    Raises:
        UserError: a key or value that it does not know.
    """
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        for name, stage in recipe.stages.items():
            if isinstance(stage, RL):
                files = Files(Path("/"), Path("/"), 1, 1)
                words = arguments(overrides(recipe, name, files, cluster), environment(stage, files.folder))
                try:
                    compose("ppo_trainer", overrides=words)
                except Exception as error:  # Hydra and OmegaConf have many
                    raise UserError(
                        "keys and values of verl's configuration", str(error).splitlines()[0][:300], "correct --verl"
                    ) from error


def check_resources(cluster: Cluster) -> None:
    """Check that Ray runs where it must, and that there are as many GPUs as asked for.

    Raises:
        UserError: no Ray for several nodes, or fewer GPUs.
    """
    import ray
    import torch

    wanted = cluster.nodes * cluster.gpus
    if os.environ.get("VERL_PLATFORM"):  # an accelerator that torch.cuda does not count
        return
    try:
        ray.init(address="auto", logging_level=logging.ERROR)
    except ConnectionError:
        if cluster.nodes > 1:
            raise UserError(
                f"a Ray that runs on {cluster.nodes} nodes",
                "none",
                "ray start --head on the first node, ray start --address FIRST:6379 on the others",
            ) from None
        present = torch.cuda.device_count()
    else:
        present = int(ray.cluster_resources().get("GPU", 0))
        ray.shutdown()
    if present < wanted:
        raise UserError(f"{wanted} GPUs", f"{present}", "lower --nodes or --gpus-per-node, or add nodes to Ray")
