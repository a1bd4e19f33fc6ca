"""Decode to a fork, run the paths at once, join, go on: many answers in one batch.

In each step of `Scheduler` every thread that is not waiting for its paths feeds one token, so answers, paths and
summaries of any length go side by side, and a finished answer makes room for the next at once. When memory is full, the
answer that came last gives its memory up and is read again later; what it drew is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from parallel_r1.answers.syntax import Tags
from parallel_r1.errors import UserError
from parallel_r1.generation.backend import Engine
from parallel_r1.generation.distribution import decoding, sample
from parallel_r1.generation.generator import OnToken, Request
from parallel_r1.generation.threads import Answer, Decode, Run, Thread


@dataclass
class Scheduler:
    """Answers that are drawn together.

    Attributes:
        engine: what reads tokens; a fresh one, or one whose answers have all ended.
        tags: the ids of the tags.
        rows: answers that are drawn at once.
        memory: tokens that the engine may hold at once; None for no limit.
        on_token: called for every token as it is drawn or given.
        decode: token ids to text; needed for stop texts.
    """

    engine: Engine[Any]
    tags: Tags
    rows: int
    memory: int | None = None
    on_token: OnToken | None = None
    decode: Decode | None = None
    queue: deque[Answer] = field(default_factory=deque)
    running: list[Answer] = field(default_factory=list)
    active: list[Thread] = field(default_factory=list)  # threads that feed a token in the next step
    prompts: dict[tuple[int, ...], int] = field(default_factory=dict)  # prompt -> answers to it that are not finished
    cancelled: list[Answer] = field(default_factory=list)  # what `cancel` was asked for since the last step
    submitted: int = 0

    def __post_init__(self) -> None:
        if self.tags.eos & set(self.tags.ids.values()):
            raise UserError("stop tokens that are no tags", "a tag among them", "mend the tokenizer's eos_token")

    @property
    def is_busy(self) -> bool:
        """Whether an answer is waiting or being drawn."""
        return bool(self.queue or self.running)

    def submit(self, request: Request) -> Answer:
        """Put one answer into the queue.

        Raises:
            UserError: an empty prompt; less memory than the prompt and the answer's budget may need; stop texts but no
                `decode`.
        """
        prompt, sampling = request.prompt_ids, request.sampling
        if not prompt:
            raise UserError("prompts of at least one token", f"prompt {self.submitted} is empty", "give it some text")
        need = len(prompt) + sampling.budget.total
        if self.memory is not None and self.memory < need:
            raise UserError(
                f"memory for {need} tokens: a prompt of {len(prompt)} and an answer of {sampling.budget.total}",
                f"{self.memory}",
                "raise engine.memory or lower sampling.budget.total",
            )
        if sampling.stop and self.decode is None:
            raise UserError("a way to read tokens for stop texts", "none", "pass decode, such as policy.decode")
        answer = Answer(self.submitted, request, self.tags, self.on_token, self.decode)
        self.submitted += 1
        self.prompts[answer.prompt] = self.prompts.get(answer.prompt, 0) + 1
        self.queue.append(answer)
        return answer

    def cancel(self, answer: Answer) -> None:
        """End an answer before the next step. It may be called while a step is under way, from `on_token` too. An
        answer that has ended by then stays as it is."""
        self.cancelled.append(answer)

    def _cancel(self) -> list[Answer]:
        """End the answers that were cancelled; what they held is free at once."""
        ended = []
        for answer in self.cancelled:
            if answer.finish is not None:
                continue
            answer.finish = "cancelled"
            if answer in self.running:
                self._close(answer)
            else:
                self.queue.remove(answer)
            self._forget(answer)
            ended.append(answer)
        self.cancelled.clear()
        return ended

    def step(self) -> list[Answer]:
        """Admit what there is room for and feed one token to every active thread. Returns the answers that ended."""
        gone = self._cancel()
        self._admit()
        if not self._fits(0):
            self.engine.trim()
        while not self._fits(0) and len(self.running) > 1:
            self._preempt()
        if not self.active:
            return gone
        threads = self.active
        logits = self.engine.step([(thread.branch, thread.feed.popleft()) for thread in threads])
        self._draw(threads, logits)
        self.active = []
        ended: dict[Answer, None] = {}
        joined: list[Thread] = []
        for thread in threads:
            answer = thread.answer
            if answer.finish:
                ended[answer] = None
            elif thread.feed or thread.then == "sample":
                self.active.append(thread)
            elif thread.then == "fork":
                branches = self.engine.fork(thread.branch, answer.sampling.paths)
                self.active.extend(answer.fork(thread, branches))
            else:
                answer.open_paths -= 1
                parent = thread.parent
                assert parent is not None
                parent.waiting -= 1
                if parent.waiting == 0:
                    joined.append(parent)
        self._join(joined)
        for answer in ended:
            self._close(answer)
            self._forget(answer)
        if not self.running and not self.queue:
            self.engine.trim()
        return [*gone, *ended]

    def _draw(self, threads: Sequence[Thread], logits: Any) -> None:
        """Draw the next token of every thread that has fed all it had."""
        drawing: dict[Any, list[int]] = {}
        for row, thread in enumerate(threads):
            if not thread.feed and thread.then == "sample":
                drawing.setdefault(decoding(thread.answer.sampling), []).append(row)
        for shape, rows in drawing.items():
            chosen = logits if len(rows) == len(threads) else logits[rows]
            drawn = sample(chosen, [threads[row].rng.random() for row in rows], shape)
            table = zip(drawn.tokens.tolist(), drawn.logprobs.tolist(), drawn.raw_logprobs.tolist(), strict=True)
            for row, (token, logprob, raw) in zip(rows, table, strict=True):
                thread = threads[row]
                if thread.answer.finish:  # another thread of this answer has just broken
                    continue
                force = thread.answer.force
                given = force(thread.address, thread.size) if force else None
                if given is None:
                    thread.answer.accept(thread, token, (logprob, raw))
                else:
                    thread.answer.accept(thread, given, None)

    def _join(self, threads: Sequence[Thread]) -> None:
        """Join the paths of some threads. After `causal_join` the second and later paths are read again."""
        again = []
        for thread in threads:
            paths = thread.parts[-1]
            assert isinstance(paths, list)
            causal = thread.answer.sampling.sampler == "causal_join"
            self.engine.join(thread.branch, [path.branch for path in paths], 1 if causal else len(paths))
            if causal and len(paths) > 1:
                again.append((thread.branch, [token for path in paths[1:] for token in path.token_ids()]))
            thread.answer.join(thread, paths)
        self.engine.read(again)
        self.active += threads

    def _admit(self) -> None:
        """Open answers while there are rows and memory, the first in the queue first."""
        admitted: dict[Answer, None] = {}
        need = 0
        while self.queue and len(self.running) + len(admitted) < self.rows:
            answer = self.queue[0]
            shares = any(other.prompt == answer.prompt for other in (*self.running, *admitted))
            need += answer.total + 1 + (0 if shares else len(answer.prompt))
            if not self._fits(need):
                self.engine.trim()
                if (self.running or admitted) and not self._fits(need):
                    break
            admitted[self.queue.popleft()] = None
        if not admitted:
            return
        shared = [self.prompts[answer.prompt] > 1 for answer in admitted]
        branches = self.engine.open([answer.prompt for answer in admitted], shared)
        for answer, branch in zip(admitted, branches, strict=True):
            answer.trunk.branch = branch
            self._restore(answer.trunk, [answer.prompt[-1]])
        self.running += admitted
        self.engine.trim()

    def _fits(self, tokens: int) -> bool:
        """Whether so many tokens more can be held, and one for every active thread."""
        return self.memory is None or self.engine.counts.kv + len(self.active) + tokens <= self.memory

    def _preempt(self) -> None:
        """Take the memory of the answer that came last; it is first in the queue now."""
        answer = self.running[-1]
        self._close(answer)
        self.engine.trim()
        self.queue.appendleft(answer)
        self.engine.counts.preempted += 1

    def _restore(self, thread: Thread, before: list[int]) -> None:
        """Make a thread and its paths active, and read what they had read before they lost their memory.

        Args:
            thread: its branch stands where the thread began.
            before: tokens in front of those that the thread recorded.
        """
        unread = before
        for part in thread.parts:
            if isinstance(part, Run):
                unread = unread + part.tokens
                continue
            joined = part is not thread.parts[-1] or thread.waiting == 0
            if joined and thread.answer.sampling.sampler == "causal_join":
                unread = unread + [token for path in part for token in path.token_ids()]
                continue
            self.engine.read([(thread.branch, unread)])
            unread = []
            for path, branch in zip(part, self.engine.fork(thread.branch, len(part)), strict=True):
                path.branch = branch
                self._restore(path, [])
            if joined:
                self.engine.join(thread.branch, [path.branch for path in part], len(part))
        read = len(unread) - len(thread.feed)
        if read > 0:
            self.engine.read([(thread.branch, unread[:read])])
        if thread.feed:
            self.active.append(thread)

    def _close(self, answer: Answer) -> None:
        self.engine.close(answer.trunk.branch)
        self.running.remove(answer)
        self.active = [thread for thread in self.active if thread.answer is not answer]

    def _forget(self, answer: Answer) -> None:
        """Note that an answer has ended, so that its prompt need not be kept for it."""
        self.prompts[answer.prompt] -= 1
        if not self.prompts[answer.prompt]:
            del self.prompts[answer.prompt]
