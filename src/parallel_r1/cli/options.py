"""Arguments and options that several commands share.

The decorator `shared` replaces the parameters `sampling: Sampling`, `engine: Engine` and `prompt: Prompt` of a command
by options, one per field, and calls the command with one object per group. An option that the user leaves out takes its
value from the model's training card, or else the default of the command.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from parallel_r1.answers.trace import Scorer
    from parallel_r1.generation.training_card import TrainingCard

RecipePath = Annotated[Path, typer.Argument(help="A recipe, such as recipes/tiny/demo.toml.")]
SchemaName = Annotated[
    str, typer.Option("--schema", help="How answers are written: a name of docs/schemas.md, or a TOML file.")
]
ModelPath = Annotated[str, typer.Argument(help="A Hugging Face model folder or hub id, with the tags of a schema.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Change a value of the recipe: --set section.key=value. Repeatable.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="The run folder: a new one, or that of an interrupted run of this recipe. Default: runs/NAME."
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", help="Send the metrics to tensorboard, wandb, mlflow or trackio too. Repeatable."),
]
StageEngine = Annotated[
    Literal["own", "verl"],
    typer.Option("--engine", help="What runs the RL stages: this package, or verl on a cluster."),
]
Nodes = Annotated[int, typer.Option(min=1, help="Nodes, with verl.")]
GpusPerNode = Annotated[int, typer.Option("--gpus-per-node", min=1, help="GPUs in each node, with verl.")]
VerlKeys = Annotated[
    list[str] | None,
    typer.Option("--verl", metavar="KEY=VALUE", help="A key of verl that no recipe has. Repeatable."),
]
PrintOnly = Annotated[bool, typer.Option("--print", help="Print verl's configuration and launch commands, and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Seed = Annotated[int, typer.Option(help="The same seed draws the same answers.")]
Scoring = Annotated[
    str | None,
    typer.Option(
        help="How answers are scored: isolated, replay or causal.",
        show_default="as the model was trained, or the sampler's exact partner",
    ),
]


def _load(imports: list[str] | None) -> list[str]:
    from parallel_r1.registry import load_plugins

    return load_plugins(imports or [], Path())


Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        callback=_load,
        help="A Python file or module with tasks or rewards of your own, as in the imports of a recipe. Repeatable.",
    ),
]
Escapes = Annotated[
    bool,
    typer.Option(
        "--escapes", "-e", help=r"Read \n, \t and \\ in texts as a line break, a tab and a backslash, as echo -e does."
    ),
]

CARD = " (default: as the model was trained, or else the value shown)"
GROUPS: dict[str, tuple[str, dict[str, tuple[Any, str, dict[str, Any]]]]] = {
    "sampling": (
        "Sampling" + CARD,
        {
            "sampler": (str, "How answers are generated: isolated, causal_join or sequential.", {}),
            "paths": (str, "Paths of every fork, at most 64; or 1-8, and the policy chooses.", {}),
            "temperature": (float, "1 is the raw policy, 0 the most probable token.", {"min": 0.0}),
            "top_k": (int, "Sample from the k most probable tokens; 0: from all.", {"min": 0}),
            "top_p": (float, "Sample from the tokens that make up this probability.", {"min": 0.0, "max": 1.0}),
            "min_p": (float, "Leave out tokens below this share of the largest probability.", {"min": 0.0, "max": 1.0}),
            "stop": (list[str], "End the answer after this text. Repeatable; -e applies.", {}),
            "total": (int, "Budget: all tokens of an answer, over all paths.", {"min": 1}),
            "critical_path": (int, "Budget: the longest chain of tokens, the answer's latency.", {"min": 1}),
            "path_tokens": (int, "Budget: tokens of one path.", {"min": 1}),
            "forks": (int, "Budget: forks of an answer.", {"min": 0}),
            "spare": (int, "Open so many more paths in a fork; close the rest once the others have ended.", {"min": 0}),
            "straggler": (float, "Close paths over this many times the median length of those ended.", {"min": 1.0}),
            "agree": (int, "Close the other paths once so many have the same conclusion.", {"min": 1}),
        },
    ),
    "engine": (
        "Engine",
        {
            "rows": (int, "Most answers generated at the same time.", {"min": 1}),
            "memory": (str, "Most that the KV cache holds: tokens, 20GB or 80%. Default: no limit.", {}),
            "compile": (bool, "Run the model through torch.compile.", {}),
            "dtype": (str, "In what the model draws: fp32, or bf16; auto is fp32.", {}),
            "kind": (str, "What draws answers: local (this process), or vllm, here or on servers.", {}),
            "servers": (list[str], "Address of a running vLLM server, for --engine vllm. Repeatable.", {}),
            "device": (str, "Where the model runs: auto (CUDA if there is one), cpu, cuda or cuda:1.", {}),
        },
    ),
    "prompt": (
        "Prompt" + CARD,
        {
            "form": (str, "How a prompt is put to the model: plain, or chat (its chat template).", {}),
            "instruction": (str, "Text before every problem; -e applies.", {}),
            "final_answer": (str, "Where the final answer may stand: trunk, or anywhere (paths too).", {}),
        },
    ),
}
"""Parameter of a command -> title of its options in the help, and option -> type, help text, limits."""
NESTED = {
    **{"total": ("budget", "total"), "critical_path": ("budget", "critical_path"), "path_tokens": ("budget", "path")},
    "forks": ("budget", "forks"),
    **{name: ("branches", name) for name in ("spare", "straggler", "agree")},
}
"""Option -> section of `Sampling` and field of that."""
FLAGS = {"kind": "--engine", "servers": "--server"}
"""Option -> its flag, where that is not its name."""


def shared(
    *, only: Collection[str] = (), without: Collection[str] = (), **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of the groups that its parameters name, as the module describes.

    Args:
        only: the sampling options to give it; all if empty.
        without: options not to give it.
        defaults: option -> default of this command, where it differs from that of the settings.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters
        hints = get_type_hints(
            command, localns=dict.fromkeys(("Sampling", "Engine", "Prompt"), Any), include_extras=True
        )
        names = {
            group: [
                name
                for name in GROUPS[group][1]
                if name not in without and (group != "sampling" or not only or name in only)
            ]
            for group in GROUPS
            if group in own
        }
        parameters = [one.replace(annotation=hints[name]) for name, one in own.items() if name not in names]
        for group, chosen in names.items():
            parameters += [_parameter(group, name, defaults) for name in chosen]
        adds_escapes = "escapes" not in own and any({"stop", "instruction"} & set(chosen) for chosen in names.values())
        if adds_escapes:
            parameters.append(
                inspect.Parameter("escapes", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Escapes)
            )

        @wraps(command)
        def run(**values: Any) -> None:
            escapes = values.pop("escapes", False) if adds_escapes else values.get("escapes", False)
            given = {group: {name: values.pop(name) for name in chosen} for group, chosen in names.items()}
            # A model behind a server has no training card.
            card = None if values.get("teacher") == "server" else _card(values["model"])
            values |= _settings(given, defaults, card, escapes)
            command(**values)

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
        )
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def _parameter(group: str, name: str, defaults: Mapping[str, Any]) -> inspect.Parameter:
    """The parameter of a command for one option of a group. The default shown in the help is not the default of the
    parameter, which is None for sampling and prompt, so that a training card can fill it."""
    panel, options = GROUPS[group]
    kind, text, limits = options[name]
    value = _default(group, name, defaults)
    shown = " ".join(value) if isinstance(value, tuple) else value
    flags = [FLAGS.get(name, f"--{name.replace('_', '-')}")] if kind is bool or name in FLAGS else []
    default: Any = value if group == "engine" else None
    note: bool | str = value is not None if group == "engine" else "none" if shown is None else str(shown) or "none"
    option = typer.Option(*flags, help=text, rich_help_panel=panel, show_default=note, **limits)
    annotation: Any = Annotated[kind if default is not None else kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _default(group: str, name: str, defaults: Mapping[str, Any]) -> Any:
    """The value of an option where neither the user nor a training card names one."""
    if name in defaults:
        return defaults[name]
    settings: Any = _section(group)()
    section, field = NESTED.get(name, (None, name))
    return getattr(getattr(settings, section) if section else settings, field)


def _section(group: str) -> type[BaseModel]:
    from parallel_r1.generation.settings import Engine, Sampling
    from parallel_r1.tasks.prompts import Prompt

    sections: dict[str, type[BaseModel]] = {"sampling": Sampling, "engine": Engine, "prompt": Prompt}
    return sections[group]


def _card(model: str) -> TrainingCard | None:
    from parallel_r1.generation.training_card import read_card

    return read_card(model)


def _settings(
    given: dict[str, dict[str, Any]], defaults: Mapping[str, Any], card: TrainingCard | None, escapes: bool
) -> dict[str, Any]:
    """The settings objects for a command. Warns where the user's options differ from the training of the weights."""
    from parallel_r1.cli.app import warn

    sections: dict[str, Any] = {}
    for group, options in given.items():
        trained = getattr(card, group, None)  # a card has no engine
        base = trained.model_dump() if trained else _section(group)().model_dump()
        for name, value in options.items():
            value = _plain(name, value, escapes) if name in ("stop", "instruction") else value
            value = _paths(value) if name == "paths" else value
            if value is None or value == []:
                if trained:
                    continue
                value = _default(group, name, defaults)
            section, field = NESTED.get(name, (None, name))
            (base.setdefault(section, {}) if section else base)[field] = value
        sections[group] = _validated(group, base)
    if card is not None and "sampling" in sections:
        from parallel_r1.generation.training_card import departures

        if differing := departures(card, sections["sampling"], sections.get("prompt", card.prompt)):
            warn(f"these weights were trained with {'; '.join(differing)}")
    return sections


def _paths(value: Any) -> Any:
    """A number of paths, or the smallest and the largest, as the user wrote them."""
    numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", value) if isinstance(value, str) else None
    if numbers is None:
        return value
    return int(numbers[1]) if numbers[2] is None else (int(numbers[1]), int(numbers[2]))


def _validated(group: str, values: dict[str, Any]) -> BaseModel:
    """The settings object of a group; an invalid value is a `UserError` that names its option."""
    from pydantic import ValidationError

    from parallel_r1.answers.trace import Sampler
    from parallel_r1.cli.app import one_of

    if group == "sampling":
        one_of("--sampler", values["sampler"], Sampler)
    try:
        return _section(group).model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            found = first["msg"].removeprefix("Value error, ")
            raise UserError(f"{group} options that fit together", found, "change or leave out one of them") from error
        back = {place: option for option, place in NESTED.items()}
        place = [str(part) for part in first["loc"]]
        name = back.get((place[0], place[-1])) or place[0]
        raise UserError(
            f"a valid --{name.replace('_', '-')}", repr(first["input"]), first["msg"].removeprefix("Value error, ")
        ) from error


def _plain(name: str, value: Any, escapes: bool) -> Any:
    """A text or texts of the user, as `plain_text` reads them."""
    if isinstance(value, list):
        return [plain_text(name, text, escapes) for text in value]
    return value if value is None else plain_text(name, value, escapes)


def plain_text(option: str, text: str, escapes: bool) -> str:
    r"""A text of the user, unescaped if `escapes`. Without escapes a `\n` that can begin no LaTeX command, as no small
    letter follows, is kept with a warning.

    Raises:
        UserError: it holds bytes that are no UTF-8, or half of a surrogate pair.
    """
    from parallel_r1.cli.app import warn
    from parallel_r1.files import lone_surrogate

    if half := lone_surrogate(text):
        raise UserError(f"a text in UTF-8 for --{option}", f"{half} in it", "leave it out")
    if not escapes and re.search(r"(?<!\\)\\n(?![a-z])", text):
        warn(rf"--{option} has a backslash and an n in it, which stay as they are: -e reads them as a line break")
    return unescape(text) if escapes else text


def unescape(text: str) -> str:
    r"""Replace `\n`, `\t` and `\\` by the characters they stand for. Other backslashes stay, as in LaTeX's `\frac`."""
    meaning = {"n": "\n", "t": "\t", "\\": "\\"}
    pieces, at = [], 0
    while at < len(text):
        escaped = meaning.get(text[at + 1 : at + 2]) if text[at] == "\\" else None
        pieces.append(text[at] if escaped is None else escaped)
        at += 1 if escaped is None else 2
    return "".join(pieces)


def scorer_of(model: str, given: str | None, sampler: str | None = None) -> Scorer:
    """The scorer to use: the user's, else that of the model's training card, else the sampler's exact partner.

    Args:
        model: the model folder.
        given: the user's --scorer.
        sampler: the sampler of the answers; the card's scorer is used only if the card has the same sampler. None if no
            answers are generated.
    """
    from parallel_r1.answers.trace import EXACT_SCORER
    from parallel_r1.answers.trace import Scorer as Names
    from parallel_r1.cli.app import one_of

    if given is not None:
        one_of("--scorer", given, Names)
        return given  # type: ignore[return-value]
    card = _card(model)
    if card is not None and sampler in (None, card.sampling.sampler):
        return card.scorer
    return EXACT_SCORER[sampler or "isolated"]  # type: ignore[index]
