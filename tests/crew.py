"""What every process does that tests/test_processes.py starts with torchrun."""

import os
import sys
from pathlib import Path

import victim

from parallel_r1 import distributed as processes
from parallel_r1.errors import UserError
from parallel_r1.runs.folder import RunFolder
from parallel_r1.runs.recipe_file import load_recipe
from parallel_r1.training.learner import Learner


def refusal(function, *arguments) -> str:
    try:
        function(*arguments)
    except UserError as error:
        return str(error)
    return "nothing was refused"


def die_at(number: int) -> None:
    """Let this process die without a word when it is about to make an update."""
    update, left = Learner.update, number

    def counted(self, *arguments, **named):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
        return update(self, *arguments, **named)

    Learner.update = counted


def same_as_one(folder: Path) -> None:
    """Refusals, a run with whole weights, one with shares of them, and one that is killed."""
    said = [refusal(processes.start, 3)]
    processes.start(2)
    (folder / "taken").mkdir(exist_ok=True)
    (folder / "taken" / "something").touch()
    said.append(refusal(RunFolder.create, folder / "taken", load_recipe(folder / "shares.toml")))
    (folder / f"refusals-{processes.rank()}").write_text("\n".join(said))
    for name in ("ddp", "shares"):
        victim.run(folder / f"{name}.toml", folder / name, 0)
    die_at(8)
    victim.run(folder / "shares.toml", folder / "killed", 0)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        same_as_one(Path(sys.argv[1]))
    else:
        processes.start(2)
        recipe, run, moments = sys.argv[1:]
        victim.run(Path(recipe), Path(run), int(moments))
