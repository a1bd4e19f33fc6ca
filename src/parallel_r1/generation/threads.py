"""One answer while it is generated: a tree of threads, and the rules by which a thread goes on, forks or ends.

The trunk is a thread, and so is every path. A thread records its tokens in `parts` (runs of tokens, and forks with
their paths, in reading order) and queues in `feed` what the backend has not read yet. The life of a fork, whose tags
the schema of the answer names (`answers.schemas`):

1. A thread samples the tag that opens paths, and `may_fork` finds that the budget allows a fork: `then` becomes "fork".
   Where the policy chooses the number of paths, its plan has as many items, or a number follows the tag.
2. The scheduler feeds the tag, forks the thread's branch, and calls `Answer.fork`: one thread per path, whose first
   tokens are the head of the path. The parent waits.
3. A path ends when it samples its closing tag, or gets one because the budget is spent, it sampled a stop token, or
   `prune` closes it.
4. When the last path has fed its closing tag, `Answer.join` gives the parent the join, and the parent goes on at the
   position after the longest path.

Tokens from the policy are *sampled*; heads, the join, what follows a summary, and the closing tag of a path that was
cut are *given*. No token is banned. A tag with no function where it was sampled stays in the answer as text and is
reported as a defect.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeVar

from parallel_r1.answers.parser import parse
from parallel_r1.answers.syntax import Tags
from parallel_r1.answers.trace import TRUNK, Defect, Finish, Span, Trace
from parallel_r1.generation.control import closable
from parallel_r1.generation.request import OnToken, Request
from parallel_r1.generation.settings import Branches
from parallel_r1.generation.tree import Fork, Run, Thread

Decode = Callable[[Sequence[int]], str]
"""Token ids to text."""
Value = TypeVar("Value")


class Answer:
    """One answer to one prompt.

    Attributes:
        total: number of tokens so far, sampled and given, over all paths.
        forks: number of forks so far. It numbers the next fork.
        open_forks, open_paths: number of forks that have not been joined, and of paths that have not ended.
        coming: number of tokens of the heads of paths that have not got theirs yet.
        finish: why the answer ended; None while it goes on.
        broken: whether it ended because logits were NaN.
        controlled: whether `prune` may close paths.
        shares: whether other answers read the same copy of its prompt in the KV cache.
        reports: whether what draws it reports log-probabilities under the distribution that was sampled, and under the
            raw policy.
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
        self.conclude, self.controlled = request.conclude, self.sampling.branches != Branches()
        self.total = self.forks = self.open_forks = self.open_paths = self.coming = 0
        self.finish: Finish | None = None
        self.broken = self.shares = False
        self.reports = (True, True)
        self.trunk = Thread(self, None, TRUNK, None, 0, self.sampling.budget.critical_path, random.Random(self.seed))
        self.trunk.feed.append(self.prompt[-1])

    def accept(self, thread: Thread, token: int, logprobs: tuple[float, float] | None) -> None:
        """Record a token, sampled or given as in `Thread.record`, and decide how the thread goes on."""
        if logprobs is not None and math.isnan(logprobs[0]):
            self.finish, self.broken = "error", True
            return
        thread.record(token, logprobs)
        thread.drawn += 1
        close = self.tags.closing("path")
        assert close is not None
        ends = token in self.tags.eos
        if thread.parent is None:
            if ends or self.has_stop_text(thread):
                self.finish = "stop"
                return
            if self.is_spent(thread):
                self.finish = "length"
                return
        elif token == close:
            thread.then = "end"
            return
        elif ends or self.is_spent(thread):
            thread.write([close])
            thread.then = "end"
            return
        if self.opens(thread, token):
            # Count the fork now, not when it opens: other threads may open one in the same step.
            thread.then, thread.fork = "fork", self.forks
            self.forks += 1
            self.open_forks += 1
            self.open_paths += len(thread.heads)
            self.coming += sum(map(len, thread.heads))
        elif token == self.tags.closing("summary") and thread.in_summary:
            thread.in_summary = False
            if self.tags.tail:
                thread.write(self.tags.tail)
                thread.drawn = 0

    def prune(self) -> int:
        """Close the paths that the control of branches ends now; see `control`. To be called once all tokens of a step
        have been accepted. Returns how many were closed."""
        if not self.controlled or self.finish is not None:
            return 0
        paths = closable(self.trunk, self.conclude)
        close = self.tags.closing("path")
        assert close is not None
        for path in paths:
            path.write([close])
            path.then, path.closed = "end", True
        return len(paths)

    def opens(self, thread: Thread, token: int) -> bool:
        """Whether a token that a thread has just recorded opens a fork; then its heads and its prelude are set."""
        tags, least, most = self.tags, self.sampling.least, self.sampling.most
        if thread.counting:
            thread.counting, thread.prelude = False, 2
            wanted = min(max(tags.counts.get(token, least), least), most)
            # As many as were asked for, or as the budget has room for.
            return any(self.may_fork(thread, self._heads(count)) for count in range(wanted, least - 1, -1))
        if token != tags.opener:
            return False
        if tags.schema.plan:
            plan = thread.plan()
            if plan is None:
                return False
            items, thread.prelude = plan
            return self.may_fork(thread, self._heads(min(len(items), most) or most, items))
        if least < most:
            thread.counting = self.may_fork(thread, self._heads(least), more=1)
            return False
        thread.prelude = 1
        # With as many spare paths as the budget has room for.
        for thread.spare in range(self.sampling.branches.spare, -1, -1):
            if self.may_fork(thread, self._heads(most + thread.spare)):
                return True
        return False

    def _heads(self, count: int, items: Sequence[Sequence[int]] = ()) -> list[tuple[int, ...]]:
        """What the runtime gives at the start of so many paths."""
        return [
            (*self.tags.stub, *self.tags.head(number + 1, items[number] if number < len(items) else ()))
            for number in range(count)
        ]

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
                    threads += part.paths
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

    def reserve(self, heads: Sequence[tuple[int, ...]] | None = None) -> int:
        """Number of tokens that are still to come if all open paths end as soon as they can: the heads that have not
        been given yet, per open path one sampled token and its closing tag, and per join its tokens and a sampled one.

        Args:
            heads: of the paths of a further fork that is to be counted too.
        """
        paths, joins = self.open_paths + len(heads or ()), self.open_forks + (heads is not None)
        return 2 * paths + self.coming + sum(map(len, heads or ())) + joins * (len(self.tags.join) + 1)

    def is_spent(self, thread: Thread) -> bool:
        """Whether the budget ends a thread now. A path ends while its closing tag and `reserve()` tokens still fit; a
        summary while there is room for what follows it."""
        tail = len(self.tags.tail) if thread.in_summary else 0
        length, total = thread.length + tail, self.total + tail
        if thread.parent is None:
            return length >= thread.limit or total >= self.sampling.budget.total
        return length + 2 > thread.limit or total + self.reserve() >= self.sampling.budget.total

    def path_limit(self, thread: Thread) -> int:
        """The largest `length` at which paths that fork from a thread may end, so that the join still fits."""
        after = len(self.tags.join) + 1 + (thread.parent is not None)
        return min(thread.length + self.sampling.budget.path, thread.limit - after)

    def may_fork(self, thread: Thread, heads: list[tuple[int, ...]], more: int = 0) -> bool:
        """Whether the thread may fork here into paths with these heads, which are kept on it if so: the settings allow
        it, and paths of one sampled token and the join fit into the budget.

        Args:
            more: tokens that come before the fork.
        """
        budget, nested = self.sampling.budget, bool(thread.address)
        allowed = (
            self.sampling.sampler != "sequential"
            and not thread.in_summary
            and self.forks < budget.forks
            and len(thread.address) < budget.depth
            and (self.tags.schema.nests or not nested)
            and thread.length + more + max(map(len, heads)) + 2 <= self.path_limit(thread)
            and self.total + more + self.reserve(heads) <= budget.total
        )
        if allowed:
            thread.heads = heads
        return allowed

    def proceed(
        self, thread: Thread, fork: Callable[[Thread], Sequence[Any]]
    ) -> tuple[Sequence[Thread], Thread | None]:
        """What follows when a thread has fed a token.

        Args:
            fork: starts a branch of the backend for every path of a fork.

        Returns:
            The threads that feed a token in the next step in its place, and its parent if it was the last of its paths
            to end, which goes on after `join`.
        """
        if thread.feed or thread.then == "sample":
            return [thread], None
        if thread.then == "fork":
            return self.fork(thread, fork(thread)), None
        self.open_paths -= 1
        parent = thread.parent
        assert parent is not None
        parent.waiting -= 1
        return [], parent if parent.waiting == 0 else None

    def fork(self, thread: Thread, branches: Sequence[Any]) -> list[Thread]:
        """Start one path per branch from a thread whose last token has been fed."""
        paths, limit = [], self.path_limit(thread)
        for number, (branch, head) in enumerate(zip(branches, thread.heads, strict=True)):
            address = (*thread.address, (thread.fork, number))
            rng = random.Random(f"{self.seed}/{address}")
            path = Thread(self, branch, address, thread, thread.length, limit, rng)
            path.write(head)
            paths.append(path)
        thread.parts.append(Fork(paths, thread.prelude, thread.spare))
        thread.waiting = len(paths)
        self.coming -= sum(map(len, thread.heads))
        return list(paths)

    def join(self, thread: Thread, paths: Sequence[Thread]) -> None:
        """Let a thread go on after its paths have all ended, at the position after the longest."""
        thread.length = max(path.length for path in paths)
        self.open_forks -= 1
        thread.write(self.tags.join)
        thread.then = "sample"
        thread.in_summary, thread.drawn = self.tags.schema.summary is not None, 0

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
        if self.reports != (True, True):
            spans = tuple(self._reported(span) for span in spans)
        return Trace(self.prompt, spans, self.finish, sampler, policy_version, tuple(defects), self.tags.schema)

    def _reported(self, span: Span) -> Span:
        """A span with the log-probabilities that are known."""
        sampled, raw = self.reports
        return replace(
            span, logprobs=span.logprobs if sampled else None, raw_logprobs=span.raw_logprobs if raw else None
        )


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
