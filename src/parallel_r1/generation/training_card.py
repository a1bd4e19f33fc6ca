"""The training card: a JSON file in a model folder that records how its weights were trained.

A run writes the card with every checkpoint. Commands that load a model take their default sampling and prompt from it,
and warn when the user asks for settings that the weights were not trained with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError

from parallel_r1 import __version__
from parallel_r1.answers.trace import Sampler, Scorer
from parallel_r1.errors import UserError
from parallel_r1.files import written
from parallel_r1.generation.settings import Sampling
from parallel_r1.settings import Section
from parallel_r1.shipped import resolve
from parallel_r1.tasks.prompts import Prompt

FILE = "parallel_r1.json"
"""The name of the card in a model folder."""


class TrainingCard(Section):
    """How the weights of a model folder were trained.

    Attributes:
        recipe: the name of the recipe.
        recipe_digest: the first 16 hexadecimal digits of the SHA-256 of the resolved recipe.
        stage: the recipe's stage that produced these weights.
        updates: number of updates that these weights have had, in this run and in those before whose card it read.
        kind: "sft" or "rl".
        task: the task of an rl stage.
        reward: the reward of an rl stage.
        data: the data of an sft stage, as in its recipe.
        scorer: how answers were scored.
        sampling: sampling settings and budget of the stage.
        prompt: the text around a problem, and where its final answer may stand.
        versions: package name -> version installed at training.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)  # later versions may write more keys

    recipe: str
    recipe_digest: str
    stage: str
    updates: int = 0
    kind: Literal["sft", "rl"]
    task: str | None = None
    reward: str | None = None
    data: dict[str, Any] | None = None
    scorer: Scorer
    sampling: Sampling
    prompt: Prompt
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write the card into a model folder."""
        path = folder / FILE
        with written(path):
            path.write_text(json.dumps(self.model_dump(mode="json", exclude_none=True), indent=1), encoding="utf-8")


def read_card(model: str | Path) -> TrainingCard | None:
    """Read the card of a model folder, or of a model on the hub. Returns None where there is no card.

    Raises:
        UserError: the card is damaged.
    """
    folder = resolve(Path(model))
    path = folder / FILE if folder.exists() else _on_hub(str(model))
    if not str(model) or path is None or not path.is_file():
        return None
    try:
        return TrainingCard.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # ValidationError and JSONDecodeError are both a ValueError
        raise UserError(
            f"a training card that parallel-r1 {__version__} can read",
            f"{path}: {_reason(error)}",
            "restore the file, or remove it: commands then use their own defaults",
        ) from error


def _on_hub(model: str) -> Path | None:
    """The card of a model on the hub, which `push` sent there. None if there is none, and where no hub or no such model
    can be reached: loading the model then fails with the reason, or takes the cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()  # for a file of a few hundred bytes
    try:
        return Path(hf_hub_download(model, FILE))
    except (OSError, ValueError, HfHubHTTPError):
        return None
    finally:
        if shown:
            enable_progress_bars()


def _reason(error: Exception) -> str:
    """The first validation error of a card as one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return ": ".join(part for part in (".".join(map(str, first["loc"])), first["msg"]) if part)


def departures(card: TrainingCard, sampling: Sampling, prompt: Prompt) -> list[str]:
    """The settings that differ from the training of the weights, one text per setting with its effect on answers.
    Budgets and temperature are not compared."""
    trained, differing = card.sampling, []
    if sampling.sampler != trained.sampler:
        effect = _effect(trained.sampler, sampling.sampler)
        differing.append(f"sampler {trained.sampler}, not {sampling.sampler} ({effect})")
    elif sampling.paths != trained.paths and sampling.sampler != "sequential":
        before, now = (f"{each.least}" + f" .. {each.most}" * (each.least < each.most) for each in (trained, sampling))
        differing.append(f"{before} paths, not {now} (forks of another width than in training)")
    elif sampling.widest > trained.widest:
        differing.append(f"at most {trained.widest} paths, not {sampling.widest} (wider forks than in training)")
    if prompt.form != card.prompt.form:
        differing.append(f"prompt form {card.prompt.form}, not {prompt.form} (prompts unlike in training)")
    if prompt.instruction != card.prompt.instruction:
        differing.append(
            f"instruction {card.prompt.instruction!r:.60}, not {prompt.instruction!r:.60} (prompts unlike in training)"
        )
    return differing


def _effect(trained: Sampler, sampler: Sampler) -> str:
    """What happens to answers of weights trained with one sampler under another."""
    if sampler == "sequential":
        return "forks are generated as plain text, and weights trained on real forks lose their second path"
    if trained == "sequential":
        return "the weights were not trained on real forks"
    return "text after a join sees other keys and values than in training, so summaries suffer"
