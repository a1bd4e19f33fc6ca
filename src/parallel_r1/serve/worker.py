"""One thread that generates for all users: requests join its batch while it runs, and leave it when they end."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from parallel_r1.answers.trace import Address, Trace
from parallel_r1.generation.backend import Counts
from parallel_r1.generation.generator import Generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.threads import Answer

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """An answer that a user waits for.

    Attributes:
        answer: in the batch.
        began: when it was submitted, and at which step of the engine.
        first: when its first token came, and at which step; None before.
        tokens: (address, token, sampled) that the user has not got yet.
        trace: the answer once it has ended.
        failed: why there will be none.
        news: set when there are tokens, or the end.
        over: set at the end.
        ended: when the end came.
    """

    answer: Answer
    began: tuple[float, int]
    first: tuple[float, int] | None = None
    tokens: list[tuple[Address, int, bool]] = field(default_factory=list)
    trace: Trace | None = None
    failed: str | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    ended: float = 0.0

    def end(self, trace: Trace | None, failed: str | None = None) -> None:
        self.trace, self.failed, self.ended = trace, failed, time.monotonic()
        self.news.set()
        self.over.set()


class Worker:
    """The engine thread.

    Args:
        generator: whose live batch it runs.
        policy_version: of the weights.
        loop: the event loop of the server, in which jobs get their tokens.
        on_crash: called in the loop if the engine fails; nothing is generated any more.
    """

    def __init__(
        self,
        generator: Generator,
        policy_version: int,
        loop: asyncio.AbstractEventLoop,
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self.batch = generator.live(self._on_token)
        self.policy_version, self.loop, self.on_crash = policy_version, loop, on_crash
        self.jobs: dict[int, Job] = {}
        self.new: dict[int, list[tuple[Address, int, bool]]] = {}
        self.steps = 0
        self.counts = Counts()
        self.crash: BaseException | None = None
        self.stopping = False
        self.wanted = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.thread.start()

    def submit(self, request: Request) -> Job:
        """Add a request to the batch; called in the event loop.

        Raises:
            UserError: see `LiveBatch.submit`.
        """
        with self.wanted:  # so that no token comes before its job is known
            job = Job(self.batch.submit(request), (time.monotonic(), self.steps))
            self.jobs[job.answer.index] = job
            self.wanted.notify()
        return job

    def cancel(self, job: Job) -> None:
        """End an answer at the next step. Its memory is free after that."""
        with self.wanted:
            self.batch.cancel(job.answer)
            self.wanted.notify()

    def close(self) -> None:
        """End the thread."""
        with self.wanted:
            self.stopping = True
            self.wanted.notify()
        self.thread.join(timeout=30)

    def _on_token(self, index: int, address: Address, token: int, sampled: bool) -> None:
        self.new.setdefault(index, []).append((address, token, sampled))

    def _run(self) -> None:
        try:
            while True:
                with self.wanted:
                    while not self.batch.is_busy and not self.stopping:
                        self.wanted.wait()
                    if self.stopping:
                        break
                ended = self.batch.step()
                self.steps += 1
                self.counts = self.batch.counts
                if self.new or ended:
                    new, self.new = self.new, {}
                    now, step = time.monotonic(), self.steps
                    traces = [(answer.index, answer.trace(self.policy_version)) for answer in ended]
                    self.loop.call_soon_threadsafe(self._deliver, new, traces, (now, step))
            self.batch.close()
        except BaseException as error:
            log.exception("the engine failed")
            self.crash = error
            self.loop.call_soon_threadsafe(self._fail, error)

    def _deliver(
        self,
        new: dict[int, list[tuple[Address, int, bool]]],
        traces: list[tuple[int, Trace]],
        at: tuple[float, int],
    ) -> None:
        """Give jobs what a step has brought; in the event loop."""
        for index, tokens in new.items():
            job = self.jobs[index]
            job.first = job.first or at
            job.tokens += tokens
            job.news.set()
        for index, trace in traces:
            self.jobs.pop(index).end(trace)

    def _fail(self, error: BaseException) -> None:
        for job in self.jobs.values():
            job.end(None, f"the engine failed: {type(error).__name__}")
        self.jobs.clear()
        self.on_crash(error)
