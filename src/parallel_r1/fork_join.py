"""The heart: decode to a fork, run the paths at once, join, go on.

`draw` keeps many answers in one batch. Every answer is a tree of threads: the trunk and the paths that are open. In
each step every thread that is not waiting for its paths feeds one token, so answers, paths and summaries of any length
go side by side, and a finished answer makes room for the next at once.

Tokens that the policy draws are *sampled*; `<Path>`, the join `</Parallel>`, newline, `<Summary>`, and the `</Path>` of
a path that was cut are *given*. Nothing is banned or forced otherwise, so the sampled tokens follow the raw policy. A
tag that means nothing where it was drawn stays in the answer as text and becomes a defect.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from parallel_r1.config import Sampling
from parallel_r1.engines import Engine, sample
from parallel_r1.errors import UserError
from parallel_r1.trace import (
    FORK_OPEN,
    PATH_CLOSE,
    PATH_OPEN,
    SUMMARY_CLOSE,
    TRUNK,
    Address,
    Finish,
    Span,
    Tags,
    Trace,
    parse,
)

Force = Callable[[int, Address, int], int | None]
"""Is asked (answer, address, tokens of this thread so far) before a token is drawn, and may give one instead."""
OnToken = Callable[[int, Address, int, bool], None]
"""Is told (answer, address, token, sampled) of every token as it is drawn or given."""


@dataclass
class _Run:
    """Tokens with one writer."""

    sampled: bool
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(eq=False)
class _Thread:
    """The trunk of an answer, or one of its open paths."""

    answer: _Answer
    branch: Any  # the engine's handle
    address: Address
    parent: _Thread | None
    length: int  # answer tokens on the chain from the start to here
    rng: random.Random
    limit: int  # the largest `length` that the budget leaves it
    parts: list[_Run | list[_Thread]] = field(default_factory=list)
    feed: deque[int] = field(default_factory=deque)  # tokens of the trace that the engine has not read yet
    then: Literal["sample", "fork", "end"] = "sample"
    in_summary: bool = False
    waiting: int = 0  # paths that are still open

    def record(self, token: int, sampled: bool, logprob: float = 0.0) -> None:
        run = self.parts[-1] if self.parts else None
        if not isinstance(run, _Run) or run.sampled != sampled:
            run = _Run(sampled)
            self.parts.append(run)
        run.tokens.append(token)
        run.logprobs.append(logprob)
        self.feed.append(token)
        self.length += 1
        self.answer.total += 1
        if self.answer.on_token:
            self.answer.on_token(self.answer.index, self.address, token, sampled)

    @property
    def size(self) -> int:
        """The tokens of this thread itself, without those of its paths."""
        return sum(len(part.tokens) for part in self.parts if isinstance(part, _Run))

    def spans(self) -> list[Span]:
        found: list[Span] = []
        for part in self.parts:
            if isinstance(part, _Run):
                logprobs = tuple(part.logprobs) if part.sampled else None
                found.append(Span(tuple(part.tokens), self.address, part.sampled, logprobs))
            else:
                found.extend(span for path in part for span in path.spans())
        return found


@dataclass(eq=False)
class _Answer:
    """One answer while it is drawn."""

    index: int
    seed: str
    tags: Tags
    sampling: Sampling
    on_token: OnToken | None
    total: int = 0
    forks: int = 0
    open_paths: int = 0
    open_forks: int = 0
    finish: Finish | None = None

    def accept(self, thread: _Thread, token: int, logprob: float | None) -> None:
        """Take a sampled token, or a given one if it has no log-probability, and decide how the thread goes on."""
        thread.record(token, logprob is not None, logprob or 0.0)
        ids = self.tags.ids
        ends = token in self.tags.eos
        if thread.parent is None:
            if ends or self.is_spent(thread):
                self.finish = "stop" if ends else "length"
                return
        elif token == ids[PATH_CLOSE]:
            thread.then = "end"
            return
        elif ends or self.is_spent(thread):
            thread.record(ids[PATH_CLOSE], False)
            thread.then = "end"
            return
        if token == ids[FORK_OPEN] and self.may_fork(thread):
            thread.then = "fork"
        elif token == ids[SUMMARY_CLOSE]:
            thread.in_summary = False

    def is_spent(self, thread: _Thread) -> bool:
        """Whether a thread must end now. A path ends early enough that its tag, every other open path and every join
        still fit: each open path may draw one more token and needs its tag, each join is followed by a drawn token."""
        if thread.parent is None:
            return thread.length >= thread.limit or self.total >= self.sampling.budget.total
        reserve = 2 * self.open_paths + self.open_forks * (len(self.tags.join) + 1)
        return thread.length + 2 > thread.limit or self.total + reserve >= self.sampling.budget.total

    def path_limit(self, thread: _Thread) -> int:
        """The chain length at which paths opened in a thread must have closed."""
        after = len(self.tags.join) + 1 + (thread.parent is not None)
        return min(thread.length + self.sampling.budget.path, thread.limit - after)

    def may_fork(self, thread: _Thread) -> bool:
        """Whether a fork is allowed here, and paths of one drawn token with all that must follow would fit."""
        budget, paths = self.sampling.budget, self.sampling.paths
        reserve = 2 * self.open_paths + 3 * paths + (self.open_forks + 1) * (len(self.tags.join) + 1)
        return (
            self.sampling.sampler == "isolated"
            and not thread.in_summary
            and self.forks < budget.forks
            and len(thread.address) < budget.depth
            and thread.length + 3 <= self.path_limit(thread)
            and self.total + reserve <= budget.total
        )

    def fork(self, thread: _Thread, branches: Sequence[Any]) -> list[_Thread]:
        """Open paths from a thread that has fed `<Parallel>`."""
        paths, limit = [], self.path_limit(thread)
        for number, branch in enumerate(branches):
            address = (*thread.address, (self.forks, number))
            rng = random.Random(f"{self.seed}/{address}")
            path = _Thread(self, branch, address, thread, thread.length, rng, limit)
            path.record(self.tags.ids[PATH_OPEN], False)
            paths.append(path)
        thread.parts.append(list(paths))
        thread.waiting = len(paths)
        self.forks += 1
        self.open_forks += 1
        self.open_paths += len(paths)
        return paths

    def join(self, thread: _Thread, paths: Sequence[_Thread]) -> None:
        """Go on in a thread whose paths have all ended."""
        thread.length = max(path.length for path in paths)
        self.open_forks -= 1
        for token in self.tags.join:
            thread.record(token, False)
        thread.then = "sample"
        thread.in_summary = True


def draw(
    engine: Engine[Any],
    tags: Tags,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int | str,
    *,
    policy_version: int = 0,
    on_token: OnToken | None = None,
    force: Force | None = None,
) -> list[Trace]:
    """Draw one answer per prompt.

    Args:
        engine: what reads tokens; a fresh one, or one whose answers have all ended.
        tags: the ids of the tags.
        prompts: token ids, at least one each; equal prompts are read once if they are admitted together.
        sampling: sampler, number of paths, temperature, budget.
        seed: answer i depends on the seed, i and its prompt alone, not on what it is batched with.
        policy_version: kept on the traces.
        on_token: told of every token.
        force: gives tokens where the policy would draw them; used to look at forks that a policy would not open.

    Raises:
        UserError: an empty prompt.
    """
    if not all(prompts):
        raise UserError(
            "prompts of at least one token",
            f"prompt {[*map(bool, prompts)].index(False)} is empty",
            "give it some text",
        )
    queue = deque(range(len(prompts)))
    trunks: dict[int, _Thread] = {}
    active: list[_Thread] = []
    running = 0
    while queue or active:
        admitted = [queue.popleft() for _ in range(min(len(queue), sampling.rows - running))]
        if admitted:
            branches = engine.open([prompts[index] for index in admitted])
            for index, branch in zip(admitted, branches, strict=True):
                answer = _Answer(index, f"{seed}/{index}", tags, sampling, on_token)
                thread = _Thread(
                    answer, branch, TRUNK, None, 0, random.Random(answer.seed), sampling.budget.critical_path
                )
                thread.feed.append(prompts[index][-1])
                trunks[index] = thread
                active.append(thread)
            running += len(admitted)
        active, ended = _step(engine, active, sampling, force)
        for thread in ended:
            engine.close(thread.branch)
        running -= len(ended)
    return [_trace(prompts[index], trunks[index], policy_version) for index in range(len(prompts))]


def _step(
    engine: Engine[Any], active: list[_Thread], sampling: Sampling, force: Force | None
) -> tuple[list[_Thread], list[_Thread]]:
    """Feed one token to every active thread. Returns the threads that are active next, and the trunks that ended."""
    logits = engine.step([(thread.branch, thread.feed.popleft()) for thread in active])
    drawing = [row for row, thread in enumerate(active) if not thread.feed and thread.then == "sample"]
    drawn: dict[int, tuple[int, float | None]] = {}
    if drawing:
        chosen = logits if len(drawing) == len(active) else logits[drawing]
        tokens, logprobs = sample(chosen, [active[row].rng.random() for row in drawing], sampling.temperature)
        drawn = dict(zip(drawing, zip(tokens.tolist(), logprobs.tolist(), strict=True), strict=True))
    for row in drawing if force else ():
        thread = active[row]
        assert force is not None
        given = force(thread.answer.index, thread.address, thread.size)
        if given is not None:
            drawn[row] = (given, None)
    following: list[_Thread] = []
    ended: list[_Thread] = []
    for row, thread in enumerate(active):
        answer = thread.answer
        if thread.feed:
            following.append(thread)
        elif row in drawn:
            answer.accept(thread, *drawn[row])
            (ended if answer.finish else following).append(thread)
        elif thread.then == "fork":
            following.extend(answer.fork(thread, engine.fork(thread.branch, sampling.paths)))
        else:
            answer.open_paths -= 1
            parent = thread.parent
            assert parent is not None
            parent.waiting -= 1
            if parent.waiting == 0:
                paths = parent.parts[-1]
                assert isinstance(paths, list)
                engine.join(parent.branch, [path.branch for path in paths])
                answer.join(parent, paths)
                following.append(parent)
    return following, ended


def _trace(prompt: Sequence[int], trunk: _Thread, policy_version: int) -> Trace:
    """A finished answer as a trace."""
    answer, spans = trunk.answer, _number(trunk.spans())
    assert answer.finish is not None
    token_ids = [token for span in spans for token in span.token_ids]
    found = parse(token_ids, answer.tags, sampler=answer.sampling.sampler)
    if answer.sampling.sampler == "sequential":  # nothing was forked: the structure is what was written
        spans = tuple(_place(spans, found.spans))
    return Trace(tuple(prompt), spans, answer.finish, answer.sampling.sampler, policy_version, found.defects)


def _number(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The same spans with forks numbered in reading order; while they are drawn, they are numbered as they open."""
    order: dict[int, int] = {}
    for span in spans:
        for fork, _ in span.address:
            order.setdefault(fork, len(order))
    return tuple(replace(span, address=tuple((order[fork], path) for fork, path in span.address)) for span in spans)


def _place(drawn: Sequence[Span], parsed: Sequence[Span]) -> list[Span]:
    """The tokens of `drawn`, cut where the address changes in `parsed`."""
    found: list[Span] = []
    borders = [(span.address, len(span.token_ids)) for span in parsed]
    address, left = TRUNK, 0
    for span in drawn:
        at = 0
        while at < len(span.token_ids):
            if left == 0:
                address, left = borders.pop(0)
            end = min(len(span.token_ids), at + left)
            logprobs = None if span.logprobs is None else span.logprobs[at:end]
            found.append(Span(span.token_ids[at:end], address, span.sampled, logprobs))
            left -= end - at
            at = end
    return found
