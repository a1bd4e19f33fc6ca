"""One answer while it is generated: a tree of threads, and the rules by which a thread goes on, forks or ends.

The trunk is a thread, and so is every path. A thread records its tokens in `parts` (runs of tokens, and the paths of
its forks, in reading order) and queues in `feed` what the backend has not read yet. The life of a fork:

1. A thread samples `<Parallel>`, and `may_fork` finds that the budget allows a fork: `then` becomes "fork".
2. The scheduler feeds the tag, forks the thread's branch, and calls `Answer.fork`: one thread per path, with `<Path>`
   as its first token. The parent waits.
3. A path ends when it samples `</Path>`, or gets one because the budget is spent or it sampled a stop token.
4. When the last path has fed its `</Path>`, `Answer.join` gives the parent `</Parallel>`, newline, `<Summary>`, and the
   parent goes on at the position after the longest path.

Tokens from the policy are *sampled*; `<Path>`, the join and the `</Path>` of a path that was cut are *given*. No token
is banned. A tag with no function where it was sampled stays in the answer as text and is reported as a defect.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal, TypeVar

from parallel_r1.answers.parser import parse, parse_ids
from parallel_r1.answers.syntax import FORK_OPEN, PATH_CLOSE, PATH_OPEN, SUMMARY_CLOSE, Tags
from parallel_r1.answers.trace import TRUNK, Address, Defect, Finish, Span, Trace
from parallel_r1.generation.request import OnToken, Request

Decode = Callable[[Sequence[int]], str]
"""Token ids to text."""
Value = TypeVar("Value")


@dataclass
class Run:
    """Neighbouring tokens of a thread that are all sampled, with their log-probabilities, or all given."""

    sampled: bool
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Thread:
    """The trunk of an answer, or one of its paths.

    Attributes:
        answer: the answer that it belongs to.
        branch: the backend's branch.
        address: address of its tokens.
        parent: the thread that it forked from; None for the trunk.
        length: number of answer tokens on the chain from the start of the answer to here.
        limit: largest `length` that the budget allows.
        rng: random generator, seeded by the answer's seed and the address.
        parts: its tokens and the paths of its forks, in reading order.
        feed: recorded tokens that the backend has not read yet.
        then: what to do once all of `feed` has been read.
        fork: number of the fork that it opened last or is about to open; -1 before the first.
        in_summary: whether it is between `<Summary>` and `</Summary>`.
        waiting: number of its paths that have not ended.
        drawn: number of tokens since its last join, or since its start.
    """

    answer: Answer
    branch: Any
    address: Address
    parent: Thread | None
    length: int
    limit: int
    rng: random.Random
    parts: list[Run | list[Thread]] = field(default_factory=list)
    feed: deque[int] = field(default_factory=deque)
    then: Literal["sample", "fork", "end"] = "sample"
    fork: int = -1
    in_summary: bool = False
    waiting: int = 0
    drawn: int = 0

    def record(self, token: int, logprobs: tuple[float, float] | None) -> None:
        """Append a token. `logprobs` are its log-probabilities under the sampled distribution and under the raw policy;
        None for a given token."""
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
        """Number of its own tokens, without its paths."""
        return sum(len(part.tokens) for part in self.parts if isinstance(part, Run))

    def spans(self) -> Iterator[Span]:
        """Its spans and its paths' spans, in reading order."""
        for part in self.parts:
            if isinstance(part, Run):
                logprobs = (tuple(part.logprobs), tuple(part.raw_logprobs)) if part.sampled else (None, None)
                yield Span(tuple(part.tokens), self.address, part.sampled, *logprobs)
            else:
                for path in part:
                    yield from path.spans()

    def asides(self) -> list[bool]:
        """For each of its tokens and its paths' tokens, in reading order, whether it is inside the paths of a fork that
        the policy wrote as text; empty if none is.

        Such a fork shows when the thread's own tokens are parsed without those that the runtime gave, and without the
        `<Parallel>` of forks that opened.
        """
        flags: list[bool] = []
        places: list[int] = []
        tokens: list[int] = []
        join = len(self.answer.tags.join)
        for index, part in enumerate(self.parts):
            if isinstance(part, Run):
                start = join if index and isinstance(self.parts[index - 1], list) else 0
                opens = index + 1 < len(self.parts) and isinstance(self.parts[index + 1], list)
                stop = len(part.tokens) - opens
                places += range(len(flags) + start, len(flags) + stop)
                tokens += part.tokens[start:stop]
                flags += [False] * len(part.tokens)
            else:
                for path in part:
                    flags += path.asides() or [False] * len(path.token_ids())
        if self.answer.tags.ids[PATH_OPEN] in tokens[self.parent is not None :]:
            for place, address in zip(places, parse_ids(tokens, self.answer.tags).addresses, strict=True):
                flags[place] |= bool(address)
        return flags if any(flags) else []

    def token_ids(self) -> list[int]:
        """Its tokens and its paths' tokens, in reading order."""
        return [token for span in self.spans() for token in span.token_ids]


class Answer:
    """One answer to one prompt.

    Attributes:
        total: number of tokens so far, sampled and given, over all paths.
        forks: number of forks so far. It numbers the next fork.
        open_forks, open_paths: number of forks that have not been joined, and of paths that have not ended.
        coming_paths: how many of `open_paths` have not got their `<Path>` yet.
        finish: why the answer ended; None while it goes on.
        broken: whether it ended because logits were NaN.
        shares: whether other answers read the same copy of its prompt in the KV cache.
    """

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
        self.broken = self.shares = False
        self.trunk = Thread(self, None, TRUNK, None, 0, self.sampling.budget.critical_path, random.Random(self.seed))
        self.trunk.feed.append(self.prompt[-1])

    def accept(self, thread: Thread, token: int, logprobs: tuple[float, float] | None) -> None:
        """Record a token, sampled or given as in `Thread.record`, and decide how the thread goes on."""
        if logprobs is not None and math.isnan(logprobs[0]):
            self.finish, self.broken = "error", True
            return
        thread.record(token, logprobs)
        thread.drawn += 1
        ids = self.tags.ids
        ends = token in self.tags.eos
        if thread.parent is None:
            if ends or self.has_stop_text(thread):
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
            # Count the fork now, not when it opens: other threads may sample `<Parallel>` in the same step.
            thread.then, thread.fork = "fork", self.forks
            self.forks += 1
            self.open_forks += 1
            self.open_paths += self.sampling.paths
            self.coming_paths += self.sampling.paths
        elif token == ids[SUMMARY_CLOSE]:
            thread.in_summary = False

    @property
    def sizes(self) -> list[int]:
        """Number of tokens of its paths and of the stretches between forks, as the KV cache holds them while the answer
        is read again, and of the next token of the trunk."""
        own: list[int] = []
        threads = [self.trunk]
        while threads:
            thread = threads.pop()
            size = 1 if thread.parent is None else 0
            for part in thread.parts:
                if isinstance(part, Run):
                    size += len(part.tokens)
                else:
                    own.append(size)
                    size = 0
                    threads += part
            own.append(size)
        return own

    def has_stop_text(self, thread: Thread) -> bool:
        """Whether the tokens that were drawn last in the trunk contain a stop text. The text of a join is given and
        never ends an answer: a stop at line breaks would end it at that between a fork and its summary."""
        if not self.sampling.stop or self.decode is None:
            return False
        most = max(map(len, self.sampling.stop)) + 4  # a token is at least a byte, a character at most four
        tail: list[int] = []
        for part in reversed(thread.parts):
            if not isinstance(part, Run) or len(tail) >= 4 * most:
                break
            tail = part.tokens + tail
        text = self.decode(tail[-min(4 * most, thread.drawn) :])
        return any(stop in text for stop in self.sampling.stop)

    def reserve(self, more_forks: int = 0) -> int:
        """Number of tokens that are still to come if all open paths end as soon as they can, after `more_forks` further
        forks: per open path one sampled token and `</Path>`, per coming path `<Path>` too, and per join its tokens and
        one sampled token."""
        paths = more_forks * self.sampling.paths
        joins = (self.open_forks + more_forks) * (len(self.tags.join) + 1)
        return 2 * (self.open_paths + paths) + self.coming_paths + paths + joins

    def is_spent(self, thread: Thread) -> bool:
        """Whether the budget ends a thread now. A path ends while its `</Path>` and `reserve()` tokens still fit."""
        if thread.parent is None:
            return thread.length >= thread.limit or self.total >= self.sampling.budget.total
        return thread.length + 2 > thread.limit or self.total + self.reserve() >= self.sampling.budget.total

    def path_limit(self, thread: Thread) -> int:
        """The largest `length` at which paths that fork from a thread may end, so that the join still fits."""
        after = len(self.tags.join) + 1 + (thread.parent is not None)
        return min(thread.length + self.sampling.budget.path, thread.limit - after)

    def may_fork(self, thread: Thread) -> bool:
        """Whether the thread may fork here: the settings allow it, and paths of one sampled token and the join fit into
        the budget."""
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
        """Start one path per branch from a thread whose `<Parallel>` has been fed."""
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
        """Let a thread go on after its paths have all ended, at the position after the longest."""
        thread.length = max(path.length for path in paths)
        self.open_forks -= 1
        for token in self.tags.join:
            thread.record(token, None)
        thread.then = "sample"
        thread.in_summary, thread.drawn = True, 0

    def trace(self, policy_version: int) -> Trace:
        """The answer as a trace, once it has ended."""
        assert self.finish is not None
        spans = _number(tuple(self.trunk.spans()))
        token_ids = [token for span in spans for token in span.token_ids]
        sampler = self.sampling.sampler
        parsed = parse(token_ids, self.tags, sampler=sampler)
        defects = list(parsed.defects)
        if sampler == "sequential":  # no thread forked, so the addresses come from the tags in the text
            spans = tuple(replace(piece, address=address) for piece, address in _cut(spans, parsed.runs))
        elif aside := self.trunk.asides():
            runs = [(value, len(list(same))) for value, same in groupby(aside)]
            spans = tuple(replace(piece, aside=value) for piece, value in _cut(spans, runs))
            defects = sorted([*defects, *_forks_as_text(runs)], key=lambda defect: defect.at)
        if self.broken:
            defects.append(Defect("broken-logits", len(token_ids), "the model's logits were not numbers"))
        return Trace(self.prompt, spans, self.finish, sampler, policy_version, tuple(defects))


def _number(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The spans with forks numbered in reading order. During generation forks are numbered in the order in which they
    open, which depends on the lengths of other paths."""
    order: dict[int, int] = {}
    for span in spans:
        for fork, _ in span.address:
            order.setdefault(fork, len(order))
    return tuple(replace(span, address=tuple((order[fork], path) for fork, path in span.address)) for span in spans)


def _cut(spans: Sequence[Span], runs: Iterable[tuple[Value, int]]) -> Iterator[tuple[Span, Value]]:
    """The spans, cut where the value of their tokens changes.

    Args:
        runs: values of the tokens, each with the number of tokens that have it.
    """
    borders = iter(runs)
    left = 0
    for span in spans:
        at = 0
        while at < len(span.token_ids):
            if left == 0:
                value, left = next(borders)
            end = min(len(span.token_ids), at + left)
            yield span.part(at, end), value
            left -= end - at
            at = end


def _forks_as_text(runs: Iterable[tuple[bool, int]]) -> Iterator[Defect]:
    """A defect for every fork that the policy wrote as text, at the first token of its paths."""
    at = 0
    for aside, length in runs:
        if aside:
            message = "a fork that the policy wrote where none may open; its paths are no part of the answer"
            yield Defect("fork-as-text", at, message)
        at += length
