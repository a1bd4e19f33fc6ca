"""The engine as the server sees it: jobs that are ordered, get their tokens, and end."""

from __future__ import annotations

import asyncio
import atexit
import multiprocessing
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from parallel_r1.answers.trace import Trace
from parallel_r1.errors import UserError
from parallel_r1.generation.settings import Engine
from parallel_r1.serve.engine import Cancel, News, Order, Token, run_engine

FAILED = (500, "the engine has failed; the server is stopping")


@dataclass(eq=False)
class Job:
    """An answer that a user waits for.

    Attributes:
        number: of its order.
        began: when it was ordered.
        first: when its first token came, and after how many steps of the engine; None before.
        tokens: what the user has not got yet.
        trace: the answer once it has ended.
        failed: why there will be none, and the status that says so.
        news: set when there are tokens, or the end.
        over: set at the end.
        ended: when the end came.
    """

    number: int
    began: float = field(default_factory=time.monotonic)
    first: tuple[float, int] | None = None
    tokens: list[Token] = field(default_factory=list)
    trace: Trace | None = None
    failed: tuple[int, str] | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    ended: float = 0.0

    def end(self, trace: Trace | None, failed: tuple[int, str] | None = None) -> None:
        self.trace, self.failed, self.ended = trace, failed, time.monotonic()
        self.news.set()
        self.over.set()


class Worker:
    """The process of the engine.

    Args:
        path: of the model.
        settings: of the engine.

    Raises:
        UserError: the model cannot be loaded, or cannot be drawn from with these settings.

    Attributes:
        steps: of the engine, so far.
        kv: tokens in its KV cache.
        crashed: whether it has ended by itself; nothing is drawn any more.
    """

    def __init__(self, path: str, settings: Engine) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share the threads of torch
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=run_engine, args=(theirs, path, settings), name="engine", daemon=True)
        self.process.start()
        theirs.close()
        self.closing = False
        atexit.register(self.close)  # whatever happens: the engine ends when its pipe is closed
        try:
            first = self.pipe.recv()
        except EOFError as error:
            raise UserError("an engine that starts", "one that ended", "see its messages above") from error
        if isinstance(first, UserError):
            raise first
        self.jobs: dict[int, Job] = {}
        self.orders = 0
        self.steps = self.kv = 0
        self.crashed = False

    def start(self, loop: asyncio.AbstractEventLoop, on_crash: Callable[[], None]) -> None:
        """Begin to deliver what the engine sends, in this loop; `on_crash` is called if the engine ends by itself."""
        self.loop, self.on_crash = loop, on_crash
        threading.Thread(target=self._listen, name="news", daemon=True).start()

    def submit(self, order: Order) -> Job:
        """Order an answer; its engine joins it at the next step."""
        job = self.jobs[order.number] = Job(order.number)
        try:
            self.pipe.send(order)
        except OSError:
            self.jobs.pop(order.number).end(None, FAILED)
        return job

    def number(self) -> int:
        """A number for the next order."""
        self.orders += 1
        return self.orders

    def cancel(self, job: Job) -> None:
        """End an answer at the next step. Its memory is free after that."""
        with suppress(OSError):
            self.pipe.send(Cancel(job.number))

    def close(self) -> None:
        """End the process."""
        if self.closing:
            return
        self.closing = True
        self.pipe.close()
        self.process.join(timeout=2)
        if self.process.is_alive():
            self.process.kill()

    def _listen(self) -> None:
        try:
            while True:
                self.loop.call_soon_threadsafe(self._deliver, self.pipe.recv())
        except (EOFError, OSError, TypeError):  # a pipe that is closed while it is read raises any of them
            if not self.closing:
                self.crashed = True
                self.loop.call_soon_threadsafe(self._fail)

    def _deliver(self, news: News) -> None:
        """Give jobs what a step has brought."""
        self.steps, self.kv = news.step, news.kv
        for number, tokens in news.tokens.items():
            job = self.jobs[number]
            job.first = job.first or (time.monotonic(), news.first[number])
            job.tokens += tokens
            job.news.set()
        for number, trace in news.ended.items():
            self.jobs.pop(number).end(trace)
        for number, error in news.refused.items():
            self.jobs.pop(number).end(None, (400, str(error)))

    def _fail(self) -> None:
        for job in self.jobs.values():
            job.end(None, FAILED)
        self.jobs.clear()
        self.on_crash()
