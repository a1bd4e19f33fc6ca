"""The threads of an answer that is generated: the trunk and the paths, with their tokens so far."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from parallel_r1.answers.parser import parse_ids
from parallel_r1.answers.trace import Address, Span

if TYPE_CHECKING:
    from parallel_r1.generation.threads import Answer


@dataclass
class Run:
    """Neighbouring tokens of a thread that are all sampled, with their log-probabilities, or all given.

    Attributes:
        structural: whether the runtime gave them for a fork, and no caller forced them.
    """

    sampled: bool
    structural: bool = False
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    raw_logprobs: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Fork:
    """A fork of a thread.

    Attributes:
        paths: its paths.
        prelude: number of tokens of the thread that announce it: its opening tag, or the whole plan.
        spare: number of paths more than wanted; see `settings.Branches`.
    """

    paths: list[Thread]
    prelude: int
    spare: int = 0


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
        heads: of the paths of the fork that it is about to open.
        prelude: see `Fork`, of that fork.
        spare: see `Fork`, of that fork.
        closed: whether the control of branches ended it.
        conclusion: what it concludes, "" for nothing; None while nobody has asked.
        counting: whether its next token is the number of paths.
        in_summary: whether it is in a summary.
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
    parts: list[Run | Fork] = field(default_factory=list)
    feed: deque[int] = field(default_factory=deque)
    then: Literal["sample", "fork", "end"] = "sample"
    fork: int = -1
    heads: list[tuple[int, ...]] = field(default_factory=list)
    prelude: int = 1
    spare: int = 0
    closed: bool = False
    conclusion: str | None = None
    counting: bool = False
    in_summary: bool = False
    waiting: int = 0
    drawn: int = 0

    def record(self, token: int, logprobs: tuple[float, float] | None, structural: bool = False) -> None:
        """Append a token. `logprobs` are its log-probabilities under the sampled distribution and under the raw policy;
        None for a given token. For `structural` see `Run`."""
        sampled = logprobs is not None
        run = self.parts[-1] if self.parts else None
        if not isinstance(run, Run) or (run.sampled, run.structural) != (sampled, structural):
            run = Run(sampled, structural)
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

    def write(self, tokens: Iterable[int]) -> None:
        """Append tokens that the runtime gives for a fork."""
        for token in tokens:
            self.record(token, None, structural=True)

    def spans(self) -> Iterator[Span]:
        """Its spans and its paths' spans, in reading order."""
        run: list[Run] = []
        for part in [*self.parts, None]:
            if isinstance(part, Run) and (not run or run[0].sampled == part.sampled):
                run.append(part)
                continue
            if run:
                yield self._span(run)
            run = [part] if isinstance(part, Run) else []
            for path in part.paths if isinstance(part, Fork) else ():
                yield from path.spans()

    def _span(self, runs: Sequence[Run]) -> Span:
        """Neighbouring runs, all sampled or all given, as one span."""
        tokens = tuple(token for run in runs for token in run.tokens)
        if not runs[0].sampled:
            return Span(tokens, self.address, False)
        logprobs = tuple(value for run in runs for value in run.logprobs)
        return Span(tokens, self.address, True, logprobs, tuple(value for run in runs for value in run.raw_logprobs))

    def asides(self) -> list[bool]:
        """For each of its tokens and its paths' tokens, in reading order, whether it is inside the paths of a fork that
        the policy wrote as text; empty if none is.

        Such a fork shows when the thread's own tokens are parsed without those that the runtime gave, and without those
        that announced forks that opened.
        """
        flags: list[bool] = []
        places: list[int] = []
        tokens: list[int] = []
        for part in self.parts:
            if isinstance(part, Fork):
                del places[-part.prelude :], tokens[-part.prelude :]
                for path in part.paths:
                    flags += path.asides() or [False] * len(path.token_ids())
                continue
            if not part.structural:
                places += range(len(flags), len(flags) + len(part.tokens))
                tokens += part.tokens
            flags += [False] * len(part.tokens)
        if self.answer.tags.opening("path") in tokens:
            for place, address in zip(places, parse_ids(tokens, self.answer.tags).addresses, strict=True):
                flags[place] |= bool(address)
        return flags if any(flags) else []

    def plan(self) -> tuple[list[tuple[int, ...]], int] | None:
        """The items of the plan that its last token closes, and the number of tokens from the start of the fork; None
        if that token closes no plan."""
        tags = self.answer.tags
        last = self.parts[-1]
        assert isinstance(last, Run)
        own = [token for part in reversed(self._since_fork()) for token in part.tokens]
        opens, item, ends = tags.opening("plan"), tags.opening("item"), tags.closing("item")
        places = [place for place, token in enumerate(own[:-1]) if token in (opens, tags.opener)]
        if not places or own[places[-1]] != opens:
            return None
        start = places[-1]
        items: list[list[int]] = []
        inside = False
        for token in own[start + 1 : -1]:
            if token == item:
                items.append([])
            elif inside and token != ends:
                items[-1].append(token)
            inside = token == item or (inside and token != ends)
        if (fork := tags.opening("fork")) is not None:
            start -= 1
            while start >= 0 and own[start] in tags.blank:
                start -= 1
            if start < 0 or own[start] != fork:
                return None
        return [tuple(tokens) for tokens in items], len(own) - start

    def _since_fork(self) -> list[Run]:
        """Its runs since its last fork, the last one first."""
        runs = []
        for part in reversed(self.parts):
            if isinstance(part, Fork):
                break
            runs.append(part)
        return runs

    def token_ids(self) -> list[int]:
        """Its tokens and its paths' tokens, in reading order."""
        return [token for span in self.spans() for token in span.token_ids]
