"""One answer while it is drawn: a tree of threads, and how each goes on under the answer's budget.

The trunk and every open path is a thread. Tokens that the policy draws are *sampled*; `<Path>`, the join `</Parallel>`,
newline, `<Summary>`, and the `</Path>` of a path that was cut are *given*. Nothing is banned or forced otherwise. A tag
that means nothing where it was drawn stays in the answer as text and becomes a defect.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from parallel_r1.answers.parser import parse
from parallel_r1.answers.syntax import FORK_OPEN, PATH_CLOSE, PATH_OPEN, SUMMARY_CLOSE, Tags
from parallel_r1.answers.trace import TRUNK, Address, Defect, Finish, Span, Trace
from parallel_r1.generation.generator import OnToken, Request

Decode = Callable[[Sequence[int]], str]


@dataclass
class Run:
    """Tokens with one writer."""

    sampled: bool
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Thread:
    """The trunk of an answer, or one of its paths."""

    answer: Answer
    branch: Any  # the engine's handle
    address: Address
    parent: Thread | None
    length: int  # answer tokens on the chain from the start to here
    limit: int  # the largest `length` that the budget leaves it
    rng: random.Random
    parts: list[Run | list[Thread]] = field(default_factory=list)
    feed: deque[int] = field(default_factory=deque)  # tokens that the engine has not read yet
    then: Literal["sample", "fork", "end"] = "sample"
    fork: int = -1  # the number of the fork that it opens next, or opened last
    in_summary: bool = False
    waiting: int = 0  # paths that are still open

    def record(self, token: int, logprobs: tuple[float, float] | None) -> None:
        """Take a token: sampled, with its two log-probabilities, or given."""
        sampled = logprobs is not None
        run = self.parts[-1] if self.parts else None
        if not isinstance(run, Run) or run.sampled != sampled:
            run = Run(sampled)
            self.parts.append(run)
        run.tokens.append(token)
        if logprobs is not None:
            run.logprobs.append(logprobs[0])
            run.raw_logprobs.append(logprobs[1])
        self.feed.append(token)
        self.length += 1
        self.answer.total += 1
        if self.answer.on_token:
            self.answer.on_token(self.answer.index, self.address, token, sampled)

    @property
    def size(self) -> int:
        """The tokens of this thread itself, without those of its paths."""
        return sum(len(part.tokens) for part in self.parts if isinstance(part, Run))

    def spans(self) -> Iterator[Span]:
        """The thread in reading order, its paths included."""
        for part in self.parts:
            if isinstance(part, Run):
                known = (tuple(part.logprobs), tuple(part.raw_logprobs)) if part.sampled else (None, None)
                yield Span(tuple(part.tokens), self.address, part.sampled, *known)
            else:
                for path in part:
                    yield from path.spans()

    def token_ids(self) -> list[int]:
        """Its tokens in reading order, those of its paths included."""
        return [token for span in self.spans() for token in span.token_ids]


class Answer:
    """One answer to one prompt."""

    def __init__(
        self,
        index: int,
        request: Request,
        tags: Tags,
        on_token: OnToken | None = None,
        decode: Decode | None = None,
    ) -> None:
        self.index, self.prompt, self.sampling, self.tags = index, tuple(request.prompt_ids), request.sampling, tags
        self.seed, self.force, self.on_token, self.decode = request.seed, request.force, on_token, decode
        self.total = self.forks = self.open_forks = self.open_paths = self.coming_paths = 0
        self.finish: Finish | None = None
        self.broken = False
        self.trunk = Thread(self, None, TRUNK, None, 0, self.sampling.budget.critical_path, random.Random(self.seed))
        self.trunk.feed.append(self.prompt[-1])

    def accept(self, thread: Thread, token: int, logprobs: tuple[float, float] | None) -> None:
        """Take a token, sampled or given, and decide how the thread goes on."""
        if logprobs is not None and math.isnan(logprobs[0]):
            self.finish, self.broken = "error", True
            return
        thread.record(token, logprobs)
        ids = self.tags.ids
        ends = token in self.tags.eos
        if thread.parent is None:
            if ends or self.says_stop(thread):
                self.finish = "stop"
                return
            if self.is_spent(thread):
                self.finish = "length"
                return
        elif token == ids[PATH_CLOSE]:
            thread.then = "end"
            return
        elif ends or self.is_spent(thread):
            thread.record(ids[PATH_CLOSE], None)
            thread.then = "end"
            return
        if token == ids[FORK_OPEN] and self.may_fork(thread):
            # It counts from now on: other threads may want to fork in the same step.
            thread.then, thread.fork = "fork", self.forks
            self.forks += 1
            self.open_forks += 1
            self.open_paths += self.sampling.paths
            self.coming_paths += self.sampling.paths
        elif token == ids[SUMMARY_CLOSE]:
            thread.in_summary = False

    def says_stop(self, thread: Thread) -> bool:
        """Whether the last tokens of the trunk hold a stop text."""
        if not self.sampling.stop or self.decode is None:
            return False
        most = max(map(len, self.sampling.stop)) + 4  # a token is at least a byte, a character at most four
        tail: list[int] = []
        for part in reversed(thread.parts):
            if not isinstance(part, Run) or len(tail) >= 4 * most:
                break
            tail = part.tokens + tail
        text = self.decode(tail[-4 * most :])
        return any(stop in text for stop in self.sampling.stop)

    def reserve(self, more_forks: int = 0) -> int:
        """Tokens that must still fit if everything open ended as soon as it can: each open path may draw one more token
        and needs its tag, one that is coming needs its first tag too, and each join is followed by a drawn token."""
        paths = more_forks * self.sampling.paths
        joins = (self.open_forks + more_forks) * (len(self.tags.join) + 1)
        return 2 * (self.open_paths + paths) + self.coming_paths + paths + joins

    def is_spent(self, thread: Thread) -> bool:
        """Whether a thread must end now: a path early enough that its tag and all that is open still fit."""
        if thread.parent is None:
            return thread.length >= thread.limit or self.total >= self.sampling.budget.total
        return thread.length + 2 > thread.limit or self.total + self.reserve() >= self.sampling.budget.total

    def path_limit(self, thread: Thread) -> int:
        """The chain length at which paths opened in a thread must have closed."""
        after = len(self.tags.join) + 1 + (thread.parent is not None)
        return min(thread.length + self.sampling.budget.path, thread.limit - after)

    def may_fork(self, thread: Thread) -> bool:
        """Whether a fork is allowed here, and paths of one drawn token with all that must follow would fit."""
        budget = self.sampling.budget
        return (
            self.sampling.sampler != "sequential"
            and not thread.in_summary
            and self.forks < budget.forks
            and len(thread.address) < budget.depth
            and thread.length + 3 <= self.path_limit(thread)
            and self.total + self.reserve(1) <= budget.total
        )

    def fork(self, thread: Thread, branches: Sequence[Any]) -> list[Thread]:
        """Open paths from a thread that has fed `<Parallel>`."""
        paths, limit = [], self.path_limit(thread)
        for number, branch in enumerate(branches):
            address = (*thread.address, (thread.fork, number))
            rng = random.Random(f"{self.seed}/{address}")
            path = Thread(self, branch, address, thread, thread.length, limit, rng)
            path.record(self.tags.ids[PATH_OPEN], None)
            paths.append(path)
        thread.parts.append(list(paths))
        thread.waiting = len(paths)
        self.coming_paths -= len(paths)
        return paths

    def join(self, thread: Thread, paths: Sequence[Thread]) -> None:
        """Go on in a thread whose paths have all ended, after the longest of them."""
        thread.length = max(path.length for path in paths)
        self.open_forks -= 1
        for token in self.tags.join:
            thread.record(token, None)
        thread.then = "sample"
        thread.in_summary = True

    def trace(self, policy_version: int) -> Trace:
        """The answer as it stands: finished, or as far as it came."""
        assert self.finish is not None
        spans = _number(tuple(self.trunk.spans()))
        token_ids = [token for span in spans for token in span.token_ids]
        sampler = self.sampling.sampler
        found = parse(token_ids, self.tags, sampler=sampler)
        if sampler == "sequential":  # nothing was forked: the structure is what was written
            spans = tuple(_place(spans, found.spans))
        defects = found.defects
        if self.broken:
            defects += (Defect("broken-logits", len(token_ids), "the model's logits were not numbers"),)
        return Trace(self.prompt, spans, self.finish, sampler, policy_version, defects)


def _number(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The same spans with forks numbered in reading order; while they are drawn, they are numbered as they open."""
    order: dict[int, int] = {}
    for span in spans:
        for fork, _ in span.address:
            order.setdefault(fork, len(order))
    return tuple(replace(span, address=tuple((order[fork], path) for fork, path in span.address)) for span in spans)


def _place(drawn: Sequence[Span], parsed: Sequence[Span]) -> Iterator[Span]:
    """The tokens of `drawn`, cut where the address changes in `parsed`."""
    borders = deque((span.address, len(span.token_ids)) for span in parsed)
    address, left = TRUNK, 0
    for span in drawn:
        at = 0
        while at < len(span.token_ids):
            if left == 0:
                address, left = borders.popleft()
            end = min(len(span.token_ids), at + left)
            yield replace(span.part(at, end), address=address)
            left -= end - at
            at = end
