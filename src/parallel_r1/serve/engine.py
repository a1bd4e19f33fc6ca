"""The engine in a process of its own, so that it never waits for what the server computes. It gets requests through a
pipe, joins them to its batch at the next step, and sends back what every step brings."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from parallel_r1.answers.trace import Address, Trace
from parallel_r1.errors import UserError
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Engine, Sampling
from parallel_r1.generation.threads import Answer
from parallel_r1.models.policy import Policy

Token = tuple[Address, int, bool]
"""Where it stands, its id, and whether it was sampled."""


@dataclass(frozen=True)
class Order:
    """An answer to draw.

    Attributes:
        number: names it.
        opens: whether its first token opens a fork, whatever the policy would draw.
    """

    number: int
    prompt_ids: Sequence[int]
    sampling: Sampling
    seed: str
    opens: bool = False


@dataclass(frozen=True)
class Cancel:
    """An answer that nobody waits for any more."""

    number: int


@dataclass
class News:
    """What a step has brought.

    Attributes:
        step: number of steps so far.
        kv: number of tokens in the KV cache.
        tokens: new ones, by the number of the answer.
        first: of answers whose first token is among them: steps since they were ordered.
        ended: answers that have ended.
        refused: answers that cannot be drawn, with the reason.
    """

    step: int = 0
    kv: int = 0
    tokens: dict[int, list[Token]] = field(default_factory=dict)
    first: dict[int, int] = field(default_factory=dict)
    ended: dict[int, Trace] = field(default_factory=dict)
    refused: dict[int, UserError] = field(default_factory=dict)


def run_engine(pipe: Connection, path: str, settings: Engine) -> None:
    """The process: loads the model, says that it is ready (or the `UserError` why not), and draws until the pipe is
    closed, which also happens when the server is killed."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the server decides when to stop
        signal.signal(number, signal.SIG_IGN)
    from transformers.utils import logging as others

    from parallel_r1.models.policy import load

    others.disable_progress_bar()
    try:
        policy = load(path, device=settings.device, dtype=settings.dtype)
        drawing = Drawing(pipe, policy, settings)
    except UserError as error:
        pipe.send(error)
        return
    pipe.send(News())
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        drawing.run()


class Drawing:
    """The batch, the answers in it, and what is to be sent."""

    def __init__(self, pipe: Connection, policy: Policy, settings: Engine) -> None:
        self.pipe, self.policy = pipe, policy
        self.batch = make_generator(policy, settings).live(self._on_token)
        self.answers: dict[int, Answer] = {}
        self.numbers: dict[int, tuple[int, int]] = {}
        """Index in the batch -> number of the order, and the step at which it came."""
        self.news = News()

    def run(self) -> None:
        while True:
            while not self.batch.is_busy or self.pipe.poll():
                self._take(self.pipe.recv())
            ended = self.batch.step()
            self.news.step += 1
            for answer in ended:
                number, _ = self.numbers.pop(answer.index)
                del self.answers[number]
                self.news.ended[number] = answer.trace(self.policy.version)
            self.news.kv = self.batch.counts.kv
            if self.news.tokens or self.news.ended:
                self._send()

    def _take(self, message: Order | Cancel) -> None:
        if isinstance(message, Cancel):
            if message.number in self.answers:
                self.batch.cancel(self.answers[message.number])
            return
        first = self.policy.tags.first
        force = (lambda address, size: first if not address and size == 0 else None) if message.opens else None
        try:
            answer = self.batch.submit(Request(message.prompt_ids, message.sampling, message.seed, force))
        except UserError as error:
            self.news.refused[message.number] = error
            self._send()
            return
        self.answers[message.number] = answer
        self.numbers[answer.index] = message.number, self.news.step

    def _on_token(self, index: int, address: Address, token: int, sampled: bool) -> None:
        number, began = self.numbers[index]
        new = self.news.tokens.get(number)
        if new is None:
            new = self.news.tokens[number] = []
            self.news.first.setdefault(number, self.news.step + 1 - began)
        new.append((address, token, sampled))

    def _send(self) -> None:
        self.pipe.send(self.news)
        self.news = News(self.news.step, self.news.kv)
