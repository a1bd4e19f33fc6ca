"""The grader: compares answers as text and numbers here, and all others by math-verify in a pool of processes."""

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
"""Processor time of one comparison by math-verify, in seconds."""
PATIENCE = 60.0
"""A process that sends nothing for this many seconds is killed, whatever it waits for."""
SERVED = 20_000
"""Comparisons after which a process is replaced; math-verify's parser keeps some 5 KB of every comparison."""
KEPT = 100_000
"""Number of verdicts of math-verify that are remembered."""
Pair = tuple[str, str]
"""A reference and an answer."""


class Worker:
    """A process that compares one pair after the other.

    Attributes:
        ready: whether it has loaded math-verify.
        job: index of the pair that it compares.
        served: number of pairs it has been sent.
        since: when it last sent or was sent something, in seconds of the monotonic clock.
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
        """Send a pair."""
        self.job, self.served, self.since = job, self.served + 1, time.monotonic()
        self.stdin.write(json.dumps(pair).encode() + b"\n")
        self.stdin.flush()

    def stop(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.communicate()


class Grader:
    """Decides whether answers equal their references.

    The same answer always gets the same verdict: an answer whose comparison takes more than the limit is wrong, and the
    limit is of processor time, which does not depend on how busy the machine is. The processes start when math-verify
    is first needed. A process that a hostile answer brings down is replaced.

    Args:
        limit: processor time of one comparison, in seconds.
        size: number of processes; as many as there are processors if None.

    Raises:
        UserError: math-verify is not installed.
    """

    def __init__(self, limit: float = LIMIT, size: int | None = None) -> None:
        need("math_verify", "which grades answers", "math")
        self.limit, self.size = limit, size or os.cpu_count() or 1
        self.workers: list[Worker] = []
        self.verdicts: dict[Pair, bool] = {}
        self.lock = Lock()
        weakref.finalize(self, _stop, self.workers)

    def right(self, answer: str | None, gold: str) -> bool:
        """Whether an answer equals a reference."""
        return self.grade([(answer, gold)])[0]

    def grade(self, pairs: Sequence[tuple[str | None, str]]) -> list[bool]:
        """Whether answers equal their references, for many pairs (answer, reference) at once: all processes work."""
        compared = [compare(answer, gold) for answer, gold in pairs]
        with self.lock:
            undecided = (pair for pair in dict.fromkeys(compared) if not isinstance(pair, bool))
            fresh = [pair for pair in undecided if pair not in self.verdicts]
            for old in list(self.verdicts)[: max(0, len(self.verdicts) + len(fresh) - KEPT)]:
                del self.verdicts[old]
            verdicts = self.verdicts | dict(zip(fresh, self._judge(fresh), strict=True))
            self.verdicts |= verdicts
        return [result if isinstance(result, bool) else verdicts[result] for result in compared]

    def close(self) -> None:
        """Kill the processes. The next comparison by math-verify starts new ones."""
        _stop(self.workers)

    def _judge(self, pairs: Sequence[Pair]) -> list[bool]:
        """The verdicts of math-verify. No worker is idle as long as pairs are waiting."""
        waiting, verdicts = deque(enumerate(pairs)), [False] * len(pairs)
        self.workers += [Worker(self.limit) for _ in range(min(self.size, len(pairs)) - len(self.workers))]
        try:
            with DefaultSelector() as selector:
                for worker in self.workers[: len(pairs)]:
                    worker.ask(*waiting.popleft())
                    selector.register(worker.replies, EVENT_READ, worker)
                while busy := [key.data for key in selector.get_map().values()]:
                    for worker in (key.data for key, _ in selector.select(timeout=1.0)):
                        self._receive(worker, verdicts, waiting, selector)
                    for worker in busy:
                        if time.monotonic() - worker.since > PATIENCE:
                            worker.process.kill()  # `_receive` then sees the end of its output
        except BaseException:
            self.close()  # a reply that is still to come would be taken for the reply to another pair
            raise
        return verdicts

    def _receive(
        self, worker: Worker, verdicts: list[bool], waiting: deque[tuple[int, Pair]], selector: DefaultSelector
    ) -> None:
        """Read a worker's reply and send it the next pair. No reply means that the pair killed it: the verdict is then
        False, and a new worker takes its place, as for one that has served its number of pairs."""
        reply = os.read(worker.replies, 1)
        worker.since = time.monotonic()
        if reply == READY:
            worker.ready = True
            return
        verdicts[worker.job] = reply == RIGHT
        reusable = reply and worker.served < SERVED
        if reusable and waiting:
            worker.ask(*waiting.popleft())
            return
        selector.unregister(worker.replies)
        if reusable:
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
    """The grader of this process, which all its tasks share: one pool of processes, one memory of verdicts."""
    return _grader_of(os.getpid())  # a forked process must not talk to its parent's workers


@lru_cache(maxsize=1)
def _grader_of(process: int) -> Grader:
    return Grader()
