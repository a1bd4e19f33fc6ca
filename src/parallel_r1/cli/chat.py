"""The command that talks with a model in the terminal."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, load_policy, print_json, quiet
from parallel_r1.errors import UserError

if TYPE_CHECKING:
    from parallel_r1.generation.settings import Engine, Sampling
    from parallel_r1.serve.chat import Answered, Chat
    from parallel_r1.tasks.prompts import Prompt

SHIPPED = "models/tiny-parallel"


@app.command()
@options.shared(without=("final_answer",))
def chat(
    sampling: Sampling,
    engine: Engine,
    prompt: Prompt,
    model: Annotated[
        str, typer.Argument(help="A Hugging Face model folder or hub id; without it the tiny model that ships.")
    ] = SHIPPED,
    mode: Annotated[str, typer.Option(help="auto (the model decides), parallel or sequential.")] = "auto",
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Talk with a model and watch its paths side by side; /help lists what can be changed on the way.

    Without a terminal it reads a question from every line and prints the answers.
    """
    from parallel_r1.serve.chat import MODES

    if mode not in MODES:
        raise UserError(f"--mode {', '.join(MODES)}", f"'{mode}'", "leave it out: the model decides")
    example = _example(model)
    loading = _Loading(model, engine, sampling, prompt, mode, seed)
    if as_json or not (sys.stdin.isatty() and console.is_terminal):
        _answer_lines(loading.wait(), as_json)
        return
    console.print(f"[bold]{model}[/]. Ask something; /help lists commands, Ctrl-D leaves.", highlight=False)
    if example:
        console.print(f"Enter alone asks: {example}", style="dim", markup=False, highlight=False)
    _talk(loading, example)


class _Loading:
    """Loads the model in a thread, so that a question can be typed meanwhile."""

    def __init__(self, model: str, engine: Engine, sampling: Sampling, prompt: Prompt, mode: str, seed: int) -> None:
        self.arguments: tuple[Any, ...] = (sampling, prompt, mode, seed)
        self.model, self.engine = model, engine
        self.chat: Chat | None = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._load, daemon=True)
        self.thread.start()

    def _load(self) -> None:
        try:
            quiet()
            from parallel_r1.generation.generator import make_generator
            from parallel_r1.serve.chat import Chat

            policy = load_policy(self.model, self.engine)
            self.chat = Chat(policy, make_generator(policy, self.engine), *self.arguments)
        except BaseException as error:
            self.error = error

    def wait(self) -> Chat:
        """The conversation, once the model is there."""
        if self.thread.is_alive() and console.is_terminal:
            with console.status("loading the model"):
                self.thread.join()
        self.thread.join()
        if self.error is not None:
            raise self.error
        assert self.chat is not None
        return self.chat


def _talk(loading: _Loading, example: str | None) -> None:
    """Read lines until the end: commands, and questions."""
    with suppress(ImportError):
        import readline  # noqa: F401 - lines can be edited, and earlier ones fetched
    while True:
        try:
            line = input("> ").strip() or example or ""
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if not line:
            continue
        try:
            _carry_out(loading.wait(), line)
        except EOFError:
            return
        except UserError as error:
            console.print(f"error: {error}", style="red", markup=False, highlight=False)


def _carry_out(chat: Chat, line: str) -> None:
    """A command or a question."""
    if line in ("/again", "/compare") and chat.last is None:
        raise UserError(f"a question before {line}", "none", "ask something first")
    if line == "/compare":
        assert chat.last is not None
        _compare(chat, *chat.last)
    elif line.startswith("/") and line != "/again":
        console.print(chat.command(line), markup=False, highlight=False)
    else:
        question = chat.last[0] if line == "/again" and chat.last else line
        _say(chat.ask(question, console))


def _say(answered: Answered) -> None:
    console.print(answered.line(), style="dim", markup=False, highlight=False)


def _compare(chat: Chat, question: str, forked: Answered) -> None:
    """Ask for one chain of as many tokens, and say what differs."""
    chain = chat.ask(question, console, chain_of=forked.tokens)
    _say(chain)
    console.print(
        f"with paths: {forked.critical_path / chain.critical_path:.2f} times the critical path and "
        f"{forked.seconds / chain.seconds:.2f} times the seconds of one chain",
        highlight=False,
    )


def _answer_lines(chat: Chat, as_json: bool) -> None:
    """Answer every line of the input: the text, or an object."""
    for line in sys.stdin:
        if not line.strip():
            continue
        answered = chat.ask(line.rstrip("\n"))
        if as_json:
            print_json(
                {
                    "question": line.rstrip("\n"),
                    "text": answered.text,
                    "trace": chat.policy.decode(answered.trace.token_ids),
                    "finish": answered.trace.finish,
                    "forks": answered.trace.forks,
                    "critical_path": answered.critical_path,
                    "total": answered.tokens,
                    "seconds": answered.seconds,
                }
            )
        else:
            print(answered.text, flush=True)


def _example(model: str) -> str | None:
    """A problem of the task that the model was trained on; None if nobody knows."""
    from parallel_r1.generation.training_card import read_card
    from parallel_r1.tasks.load import example_of

    card = read_card(model)
    return example_of(card.task) if card and card.task else None
