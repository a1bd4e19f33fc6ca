"""The grader: compares answers by our own rules here, and all others by math-verify in a pool of processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from select import poll
from threading import Lock, Thread

from parallel_r1.errors import UserError, need
from parallel_r1.tasks.grading.equal import compare
from parallel_r1.tasks.grading.text import LONGEST
from parallel_r1.tasks.grading.worker import READY, RIGHT

LIMIT = 5.0
"""Processor time of one comparison by math-verify, in seconds."""
PATIENCE = 60.0
"""A process that sends nothing for this many seconds is killed, whatever it waits for."""
SERVED = 20_000
"""Comparisons after which a process is replaced; math-verify's parser keeps some 5 KB of every comparison."""
KEPT = 100_000
"""Number of verdicts that are remembered."""
Pair = tuple[str, str]
"""A reference and an answer."""
Job = tuple[Pair, "Future[bool]"]


class Worker:
    """A process that compares one pair after the other.

    Attributes:
        served: number of pairs it has been sent.
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
        self.served = 0
        if self._reply() != READY:
            self.stop()
            raise UserError(
                "math-verify that can be loaded", "a process that ends at once", "see python -c 'import math_verify'"
            )

    def ask(self, pair: Pair) -> bool | None:
        """Whether an answer equals a reference; False if the comparison takes more than its time or memory, None if
        the process was killed by something else."""
        self.served += 1
        try:
            self.stdin.write(json.dumps(pair).encode() + b"\n")
            self.stdin.flush()
        except OSError:
            return None
        reply = self._reply()
        if reply:
            return reply == RIGHT
        self.stop()
        return None if self.process.returncode in (-signal.SIGKILL, -signal.SIGTERM) else False

    def _reply(self) -> bytes:
        """The next byte of the process; empty if it ended, or had to be killed."""
        readable = poll()
        readable.register(self.replies)
        if not readable.poll(1000 * PATIENCE):
            self.process.kill()
        return os.read(self.replies, 1)

    def stop(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.communicate()


class Pool:
    """Processes, with a thread for every one of them, that share a queue of pairs.

    Attributes:
        workers: the processes that run.
        given_up: pairs whose comparison took more than its time or memory.
    """

    def __init__(self, limit: float, size: int) -> None:
        self.limit, self.size = limit, size
        self.given_up: set[Pair] = set()
        self.workers: list[Worker] = []
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.threads: list[Thread] = []
        self.lock = Lock()

    def submit(self, pair: Pair, result: Future[bool]) -> None:
        """Let a process compare a pair, and set the result. Starts a process if fewer run than pairs are waiting."""
        self.jobs.put((pair, result))
        with self.lock:
            if len(self.threads) < self.size:
                self.threads.append(Thread(target=self._serve, args=(self.jobs,), name="grading", daemon=True))
                self.threads[-1].start()

    def close(self) -> None:
        """End the processes, when they have finished what they compare. The next pair starts new ones."""
        with self.lock:
            threads = self.threads.copy()
            self.threads.clear()
            for _ in threads:
                self.jobs.put(None)
        for thread in threads:
            thread.join()

    def _serve(self, jobs: SimpleQueue[Job | None]) -> None:
        """Compare pairs by a process of this thread, until the pool closes."""
        worker: Worker | None = None
        while (job := jobs.get()) is not None:
            pair, result = job
            try:
                verdict, worker = self._compare(pair, worker)
                result.set_result(verdict)
            except BaseException as error:  # the caller gets it
                self._retire(worker)
                worker = None
                result.set_exception(error)
        self._retire(worker)

    def _compare(self, pair: Pair, worker: Worker | None) -> tuple[bool, Worker | None]:
        """The verdict on a pair, and the process that can compare the next one. A pair whose process was killed from
        outside is tried again; then it counts as the one that brought its process down."""
        for _ in range(2):
            if worker is None or worker.served >= SERVED or worker.process.poll() is not None:
                self._retire(worker)
                worker = self._start()
            verdict = worker.ask(pair)
            if worker.process.returncode is not None or verdict is None:
                self._retire(worker)
                worker = None
            if verdict is not None:
                if worker is None:
                    self.given_up.add(pair)
                return verdict, worker
        self.given_up.add(pair)
        return False, None

    def _start(self) -> Worker:
        worker = Worker(self.limit)
        with self.lock:
            self.workers.append(worker)
        return worker

    def _retire(self, worker: Worker | None) -> None:
        if worker is None:
            return
        with self.lock:
            if worker in self.workers:
                self.workers.remove(worker)
        worker.stop()


class Grader:
    """Decides whether answers equal their references. It may be called from several threads at once.

    The same answer always gets the same verdict: an answer whose comparison takes more than the limit is wrong, and the
    limit is of processor time, which does not depend on how busy the machine is. The processes start when math-verify
    is first needed. A process that a hostile answer brings down is replaced, and so is one that was killed.

    Args:
        limit: processor time of one comparison, in seconds.
        size: number of processes; as many as there are processors if None.

    Raises:
        UserError: math-verify is not installed.
    """

    def __init__(self, limit: float = LIMIT, size: int | None = None) -> None:
        need("math_verify", "which grades answers", "math")
        self.pool = Pool(limit, size or os.cpu_count() or 1)
        self.verdicts: OrderedDict[Pair, bool | Future[bool]] = OrderedDict()
        self.lock = Lock()
        weakref.finalize(self, _end, self.pool.jobs, self.pool.threads)

    @property
    def workers(self) -> list[Worker]:
        """The processes that run."""
        return self.pool.workers

    def right(self, answer: str | None, gold: str) -> bool:
        """Whether an answer equals a reference."""
        return self.grade([(answer, gold)])[0]

    def grade(self, pairs: Sequence[tuple[str | None, str]]) -> list[bool]:
        """Whether answers equal their references, for many pairs (answer, reference) at once: all processes work."""
        results = [self._verdict(answer, gold) for answer, gold in pairs]
        return [result if isinstance(result, bool) else result.result() for result in results]

    def gave_up(self, answer: str | None, gold: str) -> bool:
        """Whether the comparison of an answer that has been graded took more than its time or memory."""
        compared = None if answer is None or not self.pool.given_up else compare(answer, gold)
        return compared in self.pool.given_up

    def close(self) -> None:
        """End the processes. The next comparison by math-verify starts new ones."""
        self.pool.close()

    def _verdict(self, answer: str | None, gold: str) -> bool | Future[bool]:
        """A verdict, or the one that is to come. Verdicts are remembered under the texts as they are, so that a known
        one takes one look-up, and those of math-verify also under what it was asked."""
        if answer is None or len(answer) > 2 * LONGEST or len(gold) > 2 * LONGEST:
            return False
        key = gold, answer
        with self.lock:
            if (known := self._known(key)) is not None:
                return known
        compared = compare(answer, gold)
        if isinstance(compared, bool):
            with self.lock:
                self._remember(key, compared)
            return compared
        with self.lock:
            known = self._known(compared)
            result = Future() if known is None else known
            for pair in {key, compared}:
                self._remember(pair, result)
        if known is None and isinstance(result, Future):
            self.pool.submit(compared, result)
        return result

    def _known(self, key: Pair) -> bool | Future[bool] | None:
        """A verdict that is remembered or on its way; None if there is none, or the comparison failed."""
        known = self.verdicts.get(key)
        failed = isinstance(known, Future) and known.done() and known.exception() is not None
        return None if failed else known

    def _remember(self, key: Pair, verdict: bool | Future[bool]) -> None:
        self.verdicts[key] = verdict
        if len(self.verdicts) > KEPT:
            self.verdicts.popitem(last=False)


def _end(jobs: SimpleQueue[Job | None], threads: list[Thread]) -> None:
    """Let the threads of a grader end that is no longer used."""
    for _ in threads:
        jobs.put(None)


def grader() -> Grader:
    """The grader of this process, which all its tasks share: one pool of processes, one memory of verdicts."""
    return _grader_of(os.getpid())  # a forked process must not talk to its parent's workers


@lru_cache(maxsize=1)
def _grader_of(process: int) -> Grader:
    return Grader()
