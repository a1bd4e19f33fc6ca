"""Continuous batching of answers that fork: every step feeds one token per thread in one forward pass.

An answer is a tree of threads (`threads.py`): its trunk, and one thread per open path. `Scheduler.step`

1. takes in the answers that were submitted, and ends those that were cancelled, since the last step;
2. admits answers from the queue while there are rows and memory. If the KV cache is too full for one more token per
   thread, it preempts the answer that was admitted last: the answer leaves the KV cache, keeps its tokens, and is first
   in the queue;
3. feeds the next token of every active thread to the backend, which returns logits. A thread is active unless it waits
   for its paths;
4. samples a token for every thread that has no given tokens left to feed, and lets the answer decide how the thread
   goes on: sample, fork, or end; then lets the answers close paths because of what their siblings did;
5. forks the threads that have just fed `<Parallel>`, ends the paths that have fed `</Path>`, and joins a fork when its
   last path has ended;
6. removes the answers that have ended and returns them.

So answers, paths and summaries of any length run side by side, and a finished answer frees its row at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from parallel_r1.answers.syntax import Tags
from parallel_r1.errors import UserError
from parallel_r1.generation.backend import Backend, Counts
from parallel_r1.generation.distribution import decoding, sample
from parallel_r1.generation.live import check_request
from parallel_r1.generation.request import OnToken, Request
from parallel_r1.generation.threads import Answer, Decode
from parallel_r1.generation.tree import Fork, Run, Thread


@dataclass
class Scheduler:
    """The answers that wait and the answers being generated: a `LiveBatch` over a backend.

    Attributes:
        engine: the backend; it must hold no open answers.
        tags: token ids of the tags and of the stop tokens.
        rows: largest number of answers generated at the same time.
        memory: largest number of tokens in the KV cache; None for no limit.
        on_token: called for every token, as it is sampled or given.
        decode: token ids to text; needed for stop texts.
        arrived: answers that were submitted since the last step.
        queue: answers that wait, first in first out.
        running: answers in the KV cache, in the order in which they were admitted.
        active: threads that feed a token in the next step.
        prompts: prompt -> number of its answers that have not ended.
        cancelled: answers for which `cancel` was called since the last step.
        indices: numbers the answers.
    """

    engine: Backend[Any]
    tags: Tags
    rows: int
    memory: int | None = None
    on_token: OnToken | None = None
    decode: Decode | None = None
    arrived: deque[Answer] = field(default_factory=deque)
    queue: deque[Answer] = field(default_factory=deque)
    running: list[Answer] = field(default_factory=list)
    active: list[Thread] = field(default_factory=list)
    prompts: dict[tuple[int, ...], int] = field(default_factory=dict)
    cancelled: list[Answer] = field(default_factory=list)
    indices: Iterator[int] = field(default_factory=count)

    @property
    def counts(self) -> Counts:
        return self.engine.counts

    @property
    def is_busy(self) -> bool:
        return bool(self.arrived or self.queue or self.running)

    def submit(self, request: Request) -> Answer:
        """See `LiveBatch.submit`.

        Raises:
            UserError: see `check_request`; `memory` below the tokens of the prompt and the budget.
        """
        prompt, sampling, index = request.prompt_ids, request.sampling, next(self.indices)
        check_request(request, index, self.tags, self.decode)
        need = len(prompt) + sampling.budget.total
        if self.memory is not None and self.memory < need:
            raise UserError(
                f"memory for {need} tokens: a prompt of {len(prompt)} and an answer of {sampling.budget.total}",
                f"{self.memory}",
                "raise engine.memory or lower sampling.budget.total",
            )
        if not self.engine.holds(len(prompt), sampling):
            raise UserError(
                f"memory for a prompt of {len(prompt)} tokens and an answer of {sampling.budget.total}, with forks",
                "too little in engine.memory",
                "raise engine.memory or lower sampling.budget.total",
            )
        answer = Answer(index, request, self.tags, self.on_token, self.decode)
        self.arrived.append(answer)
        return answer

    def _take(self) -> None:
        """Put the answers that have arrived into the queue."""
        for _ in range(len(self.arrived)):  # another thread may add more
            answer = self.arrived.popleft()
            self.prompts[answer.prompt] = self.prompts.get(answer.prompt, 0) + 1
            self.queue.append(answer)

    def cancel(self, answer: Answer) -> None:
        self.cancelled.append(answer)

    def close(self) -> None:
        for answer in list(self.running):
            self._close(answer)
        self.engine.trim()

    def _cancel(self, answers: Sequence[Answer]) -> list[Answer]:
        """End some answers and remove them from the KV cache. Returns the ones that had not ended."""
        ended = []
        for answer in answers:
            if answer.finish is not None:
                continue
            answer.finish = "cancelled"
            if answer in self.running:
                self._close(answer)
            else:
                self.queue.remove(answer)
            self._forget(answer)
            ended.append(answer)
        return ended

    def step(self) -> list[Answer]:
        """One step as the module describes it. Returns the answers that have ended, the cancelled ones first."""
        to_end, self.cancelled = self.cancelled, []  # before the arrivals: who is cancelled has been submitted
        self._take()
        cancelled = self._cancel(to_end)
        self._admit()
        if not self._fits():
            self.engine.trim()
        while not self._fits() and len(self.running) > 1:
            self._preempt()
        if not self.active:
            self.engine.trim()
            return cancelled
        threads = self.active
        logits = self.engine.step([(thread.branch, thread.feed.popleft()) for thread in threads])
        self._draw(threads, logits)
        for answer in self.running:
            self.counts.closed += answer.prune()
        self.active = []
        ended: dict[Answer, None] = {}
        joined: list[Thread] = []
        for thread in threads:
            answer = thread.answer
            if answer.finish:
                ended[answer] = None
            else:
                active, parent = answer.proceed(thread, self._fork)
                self.active += active
                joined += [parent] if parent else []
        self._join(joined)
        for answer in ended:
            self._close(answer)
            self._forget(answer)
        if not self.running and not self.queue:
            self.engine.trim()
        return [*cancelled, *ended]

    def _fork(self, thread: Thread) -> Sequence[Any]:
        return self.engine.fork(thread.branch, len(thread.heads))

    def _draw(self, threads: Sequence[Thread], logits: Any) -> None:
        """Sample the next token of every thread with nothing left to feed, in one call per distribution."""
        by_shape: dict[Any, list[int]] = {}
        for row, thread in enumerate(threads):
            if not thread.feed and thread.then == "sample":
                by_shape.setdefault(decoding(thread.answer.sampling, self.tags), []).append(row)
        for shape, rows in by_shape.items():
            chosen = logits if len(rows) == len(threads) else logits[rows]
            drawn = sample(chosen, [threads[row].rng.random() for row in rows], shape)
            table = zip(drawn.tokens.tolist(), drawn.logprobs.tolist(), drawn.raw_logprobs.tolist(), strict=True)
            for row, (token, logprob, raw) in zip(rows, table, strict=True):
                thread = threads[row]
                if thread.answer.finish:  # the logits of another thread of this answer were NaN
                    continue
                force = thread.answer.force
                given = force(thread.address, thread.size) if force else None
                if given is None:
                    thread.answer.accept(thread, token, (logprob, raw))
                else:
                    thread.answer.accept(thread, given, None)

    def _join(self, threads: Sequence[Thread]) -> None:
        """Join the paths of these threads. `causal_join` keeps the first path in the KV cache and reads the others
        again after it."""
        again = []
        for thread in threads:
            fork = thread.parts[-1]
            assert isinstance(fork, Fork)
            paths = fork.paths
            causal = thread.answer.sampling.sampler == "causal_join"
            self.engine.join(thread.branch, [path.branch for path in paths], 1 if causal else len(paths))
            if causal and len(paths) > 1:
                again.append((thread.branch, [token for path in paths[1:] for token in path.token_ids()]))
            thread.answer.join(thread, paths)
        self.engine.read(again)
        self.active += threads

    def _admit(self) -> None:
        """Open answers from the front of the queue while there are rows and memory."""
        admitted: dict[Answer, None] = {}
        need: list[int] = []
        while self.queue and len(self.running) + len(admitted) < self.rows:
            answer = self.queue[0]
            # One that was alone when it began holds the prompt for itself.
            held = any(other.shares and other.prompt == answer.prompt for other in (*self.running, *admitted))
            need += answer.sizes + ([] if held else [len(answer.prompt)])
            if not self._fits(need):
                self.engine.trim()
                if (self.running or admitted) and not self._fits(need):
                    break
            answer.shares = self.prompts[answer.prompt] > 1
            admitted[self.queue.popleft()] = None
        if not admitted:
            return
        branches = self.engine.open([answer.prompt for answer in admitted], [answer.shares for answer in admitted])
        for answer, branch in zip(admitted, branches, strict=True):
            answer.trunk.branch = branch
            self._restore(answer.trunk, [answer.prompt[-1]])
        self.running += admitted
        self.engine.trim()

    def _fits(self, new: Sequence[int] = ()) -> bool:
        """Whether the KV cache can take new branches with so many tokens each, and one more token for every active
        thread."""
        tokens = self.engine.counts.kv + len(self.active) + sum(new)
        return (self.memory is None or tokens <= self.memory) and self.engine.fits(
            new, (thread.branch for thread in self.active)
        )

    def _preempt(self) -> None:
        """Remove the answer that was admitted last from the KV cache and put it first in the queue."""
        answer = self.running[-1]
        self._close(answer)
        self.engine.trim()
        self.queue.appendleft(answer)
        self.engine.counts.preempted += 1

    def _restore(self, thread: Thread, before: list[int]) -> None:
        """Make a thread and its paths active. After a preemption, fork and join as before and read all tokens that had
        been fed.

        Args:
            thread: its branch is at the thread's first token.
            before: tokens to read before the thread's own.
        """
        unread = before
        for part in thread.parts:
            if isinstance(part, Run):
                unread = unread + part.tokens
                continue
            joined = part is not thread.parts[-1] or thread.waiting == 0
            if joined and thread.answer.sampling.sampler == "causal_join":
                unread = unread + [token for path in part.paths for token in path.token_ids()]
                continue
            self.engine.read([(thread.branch, unread)])
            unread = []
            for path, branch in zip(part.paths, self.engine.fork(thread.branch, len(part.paths)), strict=True):
                path.branch = branch
                self._restore(path, [])
            if joined:
                self.engine.join(thread.branch, [path.branch for path in part.paths], len(part.paths))
        read = len(unread) - len(thread.feed)
        if read > 0:
            self.engine.read([(thread.branch, unread[:read])])
        if thread.feed:
            self.active.append(thread)

    def _close(self, answer: Answer) -> None:
        """Remove a running answer and its threads."""
        self.engine.close(answer.trunk.branch)
        self.running.remove(answer)
        self.active = [thread for thread in self.active if thread.answer is not answer]

    def _forget(self, answer: Answer) -> None:
        """Count one answer fewer to this prompt."""
        self.prompts[answer.prompt] -= 1
        if not self.prompts[answer.prompt]:
            del self.prompts[answer.prompt]
