"""A conversation in a terminal: what is typed changes its settings or is asked, and the answer is drawn as it grows."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal

from rich.console import Console

from parallel_r1.answers.rollout import Message
from parallel_r1.answers.trace import Address, Trace
from parallel_r1.answers.visibility import latency
from parallel_r1.errors import UserError, nearest
from parallel_r1.generation.generator import Generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.rollouts import check_length
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.models.policy import Policy
from parallel_r1.models.tokens import encode_foreign
from parallel_r1.report.answers import LiveAnswer
from parallel_r1.tasks.prompts import Prompt

Mode = Literal["auto", "parallel", "sequential"]
MODES = ("auto", "parallel", "sequential")
HELP = """\
/paths N            paths of every fork
/mode MODE          auto (the model decides), parallel (open a fork at once), sequential (no fork)
/temperature X      1 samples the model as it is, 0 takes the most probable token
/seed N             of the next answer; it grows by one with every answer
/again              ask the last question again
/compare            ask the last question as one chain of as many tokens
/clear              forget the conversation
/quit               leave, as Ctrl-D does
Ctrl-C stops an answer; what has come is kept."""


@dataclass
class Answered:
    """An answer, and what it took.

    Attributes:
        text: the trunk, without the tags of forks and what the runtime wrote.
        seconds: from the question to the end.
    """

    trace: Trace
    text: str
    seconds: float

    @property
    def critical_path(self) -> int:
        return latency(self.trace)

    @property
    def tokens(self) -> int:
        return len(self.trace.token_ids)

    def line(self) -> str:
        """The figures of the answer."""
        forks = f"{self.trace.forks} fork{'' if self.trace.forks == 1 else 's'}"
        shorter = f", {self.tokens / self.critical_path:.1f} times the critical path" if self.trace.forks else ""
        speed = f"{self.tokens / self.seconds:,.0f} tokens/s"
        ended = "" if self.trace.finish == "stop" else f"; ended by {self.trace.finish}"
        return (
            f"{forks}; critical path {self.critical_path}; {self.tokens} tokens{shorter}; {self.seconds:.2f} s, "
            f"{speed}{ended}"
        )


@dataclass
class Chat:
    """A conversation.

    Attributes:
        sampling, prompt: how the model is asked.
        mode: whether answers fork.
        seed: of the next answer.
        before: the messages so far, for a model with a chat template.
        last: the last question, and its answer.
    """

    policy: Policy
    generator: Generator
    sampling: Sampling
    prompt: Prompt
    mode: Mode = "auto"
    seed: int = 0
    before: list[Message] = field(default_factory=list)
    last: tuple[str, Answered] | None = None

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash. Returns what to say.

        Raises:
            UserError: no such command, or a value that it does not take.
            EOFError: the conversation is over.
        """
        word, _, value = line[1:].strip().partition(" ")
        settings = {"paths": self._paths, "mode": self._mode, "temperature": self._temperature, "seed": self._seed}
        if word in settings:
            return settings[word](value.strip())
        if word == "help":
            return HELP
        if word == "clear":
            self.before.clear()
            self.last = None
            return "forgotten"
        if word == "quit":
            raise EOFError
        words = (*settings, "help", "clear", "quit", "again", "compare")
        raise UserError("a command, such as /help", f"/{word}", nearest(word, words))

    def _paths(self, value: str) -> str:
        self._change(paths=_number("/paths", value, int))
        return f"{value} paths"

    def _temperature(self, value: str) -> str:
        self._change(temperature=_number("/temperature", value, float))
        return f"temperature {value}"

    def _seed(self, value: str) -> str:
        self.seed = int(_number("/seed", value, int))
        return f"seed {self.seed}"

    def _mode(self, value: str) -> str:
        if value not in MODES:
            raise UserError(f"/mode {', '.join(MODES)}", f"'{value}'", nearest(value, MODES))
        self.mode = value  # type: ignore[assignment]
        return f"mode {value}"

    def _change(self, **values: Any) -> None:
        from pydantic import ValidationError

        try:
            self.sampling = Sampling.model_validate(self.sampling.model_dump() | values)
        except ValidationError as error:
            (name,) = values
            raise UserError(f"another value for /{name}", f"{values[name]}", error.errors()[0]["msg"]) from error

    def ask(self, question: str, console: Console | None = None, chain_of: int | None = None) -> Answered:
        """Ask a question.

        Args:
            console: draws the answer while it grows; None draws nothing.
            chain_of: ask for one chain of at most so many tokens, which becomes no part of the conversation.

        Raises:
            UserError: a question that is too long.
        """
        sampling = self.sampling
        if chain_of is not None or self.mode == "sequential":
            sampling = sampling.model_copy(update={"sampler": "sequential"})
        if chain_of is not None:
            limits = sampling.budget.model_dump() | {"total": chain_of, "critical_path": chain_of}
            sampling = sampling.model_copy(update={"budget": Budget(**limits)})
        plain = self.prompt.form == "plain"
        text = question.removesuffix("\n") + "\n" if plain else question  # problems end with a line break
        before = () if plain else tuple(self.before)
        ids = encode_foreign(self.policy.tokenizer, text, self.prompt.form, before, self.prompt.instruction)
        check_length(self.policy, len(ids), sampling)
        opens = self.mode == "parallel" and chain_of is None
        first = self.policy.tags.first
        force = (lambda address, size: first if not address and size == 0 else None) if opens else None
        answered = self._draw(Request(ids, sampling, f"{self.seed}/0", force), console)
        if chain_of is None:
            self.seed += 1
            self.last = question, answered
            self.before += [("user", question), ("assistant", answered.text)]
        return answered

    def _draw(self, request: Request, console: Console | None) -> Answered:
        began = time.monotonic()
        with _interrupts() as interrupted:
            if console is None:
                (trace,) = self.generator.traces([request])
            else:
                with LiveAnswer(console, self.policy.decode) as live:

                    def on_token(index: int, address: Address, token: int, sampled: bool) -> None:
                        live(index, address, token, sampled)
                        if interrupted:
                            self.generator.cancel(0)

                    (trace,) = self.generator.traces([request], on_token=on_token)
        own = [
            token
            for span in trace.spans
            if not span.address and span.sampled
            for token in span.token_ids
            if token not in self.policy.tags.ids.values()
        ]
        return Answered(trace, self.policy.decode(own), time.monotonic() - began)


def _number(command: str, value: str, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"{command} with a number", f"'{value}'", f"give {command} 2") from None


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects Ctrl-C instead of raising KeyboardInterrupt: an answer that is stopped is still an answer."""
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield arrived
    finally:
        signal.signal(signal.SIGINT, before)
