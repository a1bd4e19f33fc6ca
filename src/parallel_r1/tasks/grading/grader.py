"""The grader: what can be read is compared here, the rest by math-verify in a pool of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from threading import Lock

from parallel_r1.errors import UserError, need
from parallel_r1.tasks.grading.equal import compare
from parallel_r1.tasks.grading.worker import READY, RIGHT

LIMIT = 5.0
"""Processor time of one comparison, in seconds."""
PATIENCE = 60.0
"""A process that says nothing for so many seconds is killed, whatever it waits for."""
SERVED = 20_000
"""Comparisons of one process; math-verify's parser keeps some 5 KB of each."""
KEPT = 100_000
"""Verdicts of math-verify that are remembered."""
Pair = tuple[str, str]


class Worker:
    """A process that judges one pair after the other.

    Attributes:
        ready: whether it has loaded math-verify.
        job: the number of the pair that it judges.
        served: how many it was asked.
        since: when it last said something or was asked.
    """

    def __init__(self, limit: float) -> None:
        command = [sys.executable, "-P", str(Path(__file__).with_name("worker.py")), str(limit)]
        # The order of a set must not depend on chance.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.replies = self.process.stdin, self.process.stdout.fileno()
        self.ready, self.job, self.served, self.since = False, 0, 0, time.monotonic()

    def ask(self, job: int, pair: Pair) -> None:
        """Hand a pair over."""
        self.job, self.served, self.since = job, self.served + 1, time.monotonic()
        self.stdin.write(json.dumps(pair).encode() + b"\n")
        self.stdin.flush()

    def stop(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.communicate()


class Grader:
    """Says whether answers are right. The same answer always gets the same verdict: a comparison that takes more than
    its time is wrong, and time is that of the processor. Its processes start when math-verify is first needed, and a
    process that a hostile answer brings down is replaced.

    Args:
        limit: processor time of one comparison, in seconds.
        size: processes; as many as there are processors if None.

    Raises:
        UserError: math-verify is not installed.
    """

    def __init__(self, limit: float = LIMIT, size: int | None = None) -> None:
        need("math_verify", "which grades answers", "math")
        self.limit, self.size = limit, size or os.cpu_count() or 1
        self.workers: list[Worker] = []
        self.known: dict[Pair, bool] = {}
        self.lock = Lock()
        weakref.finalize(self, _stop, self.workers)

    def right(self, answer: str | None, gold: str) -> bool:
        """Whether an answer equals a reference."""
        return self.grade([(answer, gold)])[0]

    def grade(self, pairs: Sequence[tuple[str | None, str]]) -> list[bool]:
        """Whether answers equal their references; pairs are (answer, reference)."""
        found = [compare(answer, gold) for answer, gold in pairs]
        with self.lock:
            fresh = [pair for pair in dict.fromkeys(found) if not isinstance(pair, bool) and pair not in self.known]
            for old in list(self.known)[: max(0, len(self.known) + len(fresh) - KEPT)]:
                del self.known[old]
            verdicts = self.known | dict(zip(fresh, self._judge(fresh), strict=True))
            self.known |= verdicts
        return [each if isinstance(each, bool) else verdicts[each] for each in found]

    def close(self) -> None:
        """End the processes; the next comparison starts new ones."""
        _stop(self.workers)

    def _judge(self, pairs: Sequence[Pair]) -> list[bool]:
        """The verdicts of math-verify, every worker busy as long as there are pairs."""
        waiting, verdicts = deque(enumerate(pairs)), [False] * len(pairs)
        self.workers += [Worker(self.limit) for _ in range(min(self.size, len(pairs)) - len(self.workers))]
        try:
            with DefaultSelector() as selector:
                for worker in self.workers[: len(pairs)]:
                    worker.ask(*waiting.popleft())
                    selector.register(worker.replies, EVENT_READ, worker)
                while busy := [key.data for key in selector.get_map().values()]:
                    for worker in (key.data for key, _ in selector.select(timeout=1.0)):
                        self._hear(worker, verdicts, waiting, selector)
                    for worker in busy:
                        if time.monotonic() - worker.since > PATIENCE:
                            worker.process.kill()  # its end is heard like any other
        except BaseException:
            self.close()  # a reply that is still to come would be taken for that to another pair
            raise
        return verdicts

    def _hear(
        self, worker: Worker, verdicts: list[bool], waiting: deque[tuple[int, Pair]], selector: DefaultSelector
    ) -> None:
        """Take what a worker says, or that it died of its pair, and give it, or if it died or has served its time its
        successor, the next one."""
        reply = os.read(worker.replies, 1)
        worker.since = time.monotonic()
        if reply == READY:
            worker.ready = True
            return
        verdicts[worker.job] = reply == RIGHT
        fit = reply and worker.served < SERVED
        if fit and waiting:
            worker.ask(*waiting.popleft())
            return
        selector.unregister(worker.replies)
        if fit:
            return
        if not worker.ready:
            raise UserError(
                "math-verify that can be loaded", "a process that ends at once", "see python -c 'import math_verify'"
            )
        worker.stop()
        self.workers.remove(worker)
        if waiting:
            successor = Worker(self.limit)
            self.workers.append(successor)
            successor.ask(*waiting.popleft())
            selector.register(successor.replies, EVENT_READ, successor)


def _stop(workers: list[Worker]) -> None:
    while workers:
        workers.pop().stop()


def grader() -> Grader:
    """The grader that the tasks of a process share."""
    return _grader_of(os.getpid())  # a forked process must not talk to its parent's workers


@lru_cache(maxsize=1)
def _grader_of(process: int) -> Grader:
    return Grader()
