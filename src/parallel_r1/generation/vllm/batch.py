"""Many answers that fork over an engine that continues texts: vLLM.

The tree of an answer, its budget and its rules are those of `threads.py`, as in the local scheduler. The engine knows
no tree: it gets one text for every thread that samples, with all that the thread sees before it, and finds what it has
read before in its prefix cache. A text ends at a token after which the thread may do something else (fork, end), and
another begins when the thread goes on. So the text after a join is the answer so far in reading order: the sampler
`causal_join`.

Tokens arrive in any order, some ahead of others, and an answer takes them in step: one for each of its threads, as the
local scheduler would have drawn them. What an answer becomes depends on its tokens, never on when they arrived.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from parallel_r1.answers.syntax import Tags
from parallel_r1.errors import UserError
from parallel_r1.generation.backend import Counts
from parallel_r1.generation.live import check_request
from parallel_r1.generation.request import OnToken, Request
from parallel_r1.generation.threads import Answer, Decode
from parallel_r1.generation.tree import Fork, Run, Thread
from parallel_r1.generation.vllm.client import Call, Client, Piece


@dataclass(eq=False)
class Ahead:
    """What the engine has drawn for a thread and the answer has not taken yet.

    Attributes:
        key: of the call that goes on; None if none does.
        tokens: token ids, with their log-probabilities.
    """

    key: str | None = None
    tokens: deque[tuple[int, float]] = field(default_factory=deque)


@dataclass(eq=False)
class Growing:
    """An answer in the engine.

    Attributes:
        active: its threads that feed a token in its next step.
        ahead: of its threads that sample.
    """

    answer: Answer
    active: list[Thread]
    ahead: dict[Thread, Ahead] = field(default_factory=dict)


class VllmBatch:
    """A `LiveBatch` over a `Client`.

    Args:
        client: continues texts.
        tags: token ids of the tags and of the stop tokens.
        rows: largest number of answers generated at the same time.
        on_token, decode: as for `Answer`.
        longest: the most tokens of prompt and answer that the engine can hold; None if it has no limit.
    """

    def __init__(
        self,
        client: Client,
        tags: Tags,
        rows: int,
        *,
        on_token: OnToken | None = None,
        decode: Decode | None = None,
        longest: int | None = None,
    ) -> None:
        self.client, self.tags, self.rows = client, tags, rows
        self.on_token, self.decode, self.longest = on_token, decode, longest
        self.counts = Counts()
        self.arrived: deque[Answer] = deque()
        self.cancelled: list[Answer] = []
        self.running: dict[Answer, Growing] = {}
        self.calls: dict[str, tuple[Growing, Thread]] = {}
        self.keys, self.indices = count(), count()

    @property
    def is_busy(self) -> bool:
        return bool(self.arrived or self.running)

    def submit(self, request: Request) -> Answer:
        sampling, index = request.sampling, next(self.indices)
        check_request(request, index, self.tags, self.decode)
        if sampling.sampler == "isolated":
            raise UserError(
                "a sampler that vLLM can draw: causal_join or sequential",
                "isolated, whose paths share positions",
                "give sampler causal_join, or engine.kind = 'local'",
            )
        need = len(request.prompt_ids) + sampling.budget.total
        if self.longest is not None and need > self.longest:
            raise UserError(
                f"a prompt and an answer of at most {self.longest} tokens, which is what vLLM was started for",
                f"a prompt of {len(request.prompt_ids)} and an answer of {sampling.budget.total}",
                "lower sampling.budget.total, or start vLLM with a longer --max-model-len",
            )
        answer = Answer(index, request, self.tags, self.on_token, self.decode)
        raw = not sampling.filters and sampling.temperature in (0, 1)
        answer.reports = (raw or self.client.processed, raw)
        self.arrived.append(answer)
        return answer

    def cancel(self, answer: Answer) -> None:
        self.cancelled.append(answer)

    def close(self) -> None:
        for growing in list(self.running.values()):
            self._end(growing)
        self.arrived.clear()

    def step(self) -> list[Answer]:
        to_end, self.cancelled = self.cancelled, []
        ended = []
        for answer in to_end:
            if answer.finish is None:
                answer.finish = "cancelled"
                if answer in self.running:
                    self._end(self.running[answer])
                else:
                    self.arrived.remove(answer)
                ended.append(answer)
        touched: dict[Growing, None] = {}
        while self.arrived and len(self.running) < self.rows:
            answer = self.arrived.popleft()
            self.running[answer] = growing = Growing(answer, [answer.trunk])
            touched[growing] = None
        if self.calls:
            for piece in self.client.poll():
                self._take(piece, touched)
        for growing in touched:
            self._advance(growing)
            if growing.answer.finish is not None:
                self._end(growing)
                ended.append(growing.answer)
        return ended

    def _take(self, piece: Piece, touched: dict[Growing, None]) -> None:
        """Keep what came for a thread. For a call that was stopped nothing is kept."""
        self.counts.prefilled += piece.read - piece.cached
        self.counts.cached += piece.cached
        self.counts.decoded += len(piece.tokens)
        if piece.key not in self.calls:
            return
        growing, thread = self.calls[piece.key]
        ahead = growing.ahead[thread]
        ahead.tokens.extend(zip(piece.tokens, piece.logprobs, strict=True))
        if piece.ended:
            del self.calls[piece.key]
            ahead.key = None
        touched[growing] = None

    def _advance(self, growing: Growing) -> None:
        """Take as many steps as there are tokens for, and ask for more."""
        answer = growing.answer
        while answer.finish is None:
            if len(growing.active) == 1 and self._run_on(growing, growing.active[0]):
                continue
            for thread in growing.active:
                self._ask(growing, thread)
            if not all(self._is_ready(growing, thread) for thread in growing.active):
                return
            self._step(growing)

    def _run_on(self, growing: Growing, thread: Thread) -> bool:
        """Take the tokens that are there for a thread that is alone, up to one after which it does something else: the
        same as so many steps, in less time. Returns whether it took any."""
        answer, ahead = growing.answer, growing.ahead.get(thread)
        if ahead is None or answer.force is not None or answer.controlled or len(thread.feed) != 1:
            return False
        tokens, feed, greedy = ahead.tokens, thread.feed, not answer.sampling.temperature
        taken = len(tokens)
        while tokens and len(feed) == 1 and thread.then == "sample" and answer.finish is None:
            feed.clear()
            token, logprob = tokens.popleft()
            answer.accept(thread, token, (0.0 if greedy else logprob, logprob))
        return len(tokens) < taken

    def _is_ready(self, growing: Growing, thread: Thread) -> bool:
        """Whether a thread can feed a token: one that is given, or one before which nothing has to be sampled, or the
        token to sample after it is there."""
        return len(thread.feed) > 1 or thread.then != "sample" or self._has_next(growing, thread)

    def _has_next(self, growing: Growing, thread: Thread) -> bool:
        """Whether the next token of a thread that samples is there, drawn or forced."""
        return bool(growing.ahead[thread].tokens) or _forced(thread, 0) is not None

    def _step(self, growing: Growing) -> None:
        """Feed a token of every active thread and let the answer decide how each goes on; as `Scheduler.step`."""
        answer, threads = growing.answer, growing.active
        for thread in threads:
            thread.feed.popleft()
            if thread.feed or thread.then != "sample" or answer.finish:
                continue
            given, ahead = _forced(thread, 0), growing.ahead[thread]
            if given is not None:
                self._drop(growing, thread)
                answer.accept(thread, given, None)
            else:
                token, logprob = ahead.tokens.popleft()
                # Of the most probable token vLLM reports the log-probability under the raw policy.
                answer.accept(thread, token, (logprob if answer.sampling.temperature else 0.0, logprob))
        growing.active = []
        self.counts.closed += answer.prune()
        if answer.finish:
            return
        joined = []
        for thread in threads:
            active, parent = answer.proceed(thread, lambda thread: [None] * len(thread.heads))
            growing.active += active
            joined += [parent] if parent else []
        for parent in joined:
            fork = parent.parts[-1]
            assert isinstance(fork, Fork)
            answer.join(parent, fork.paths)
        growing.active += joined
        for thread in list(growing.ahead):
            if thread.then != "sample" or thread.waiting:
                self._drop(growing, thread)
                del growing.ahead[thread]

    def _ask(self, growing: Growing, thread: Thread) -> None:
        """Have the engine continue a thread that samples and has neither tokens ahead nor a call."""
        if thread.then != "sample":
            return
        ahead = growing.ahead.setdefault(thread, Ahead())
        if ahead.key is not None or self._has_next(growing, thread):
            return
        answer = growing.answer
        ahead.key = f"{answer.index}-{next(self.keys)}"
        self.calls[ahead.key] = growing, thread
        most = _most(thread)
        self.client.start(
            Call(
                key=ahead.key,
                home=answer.index,
                context=[*answer.prompt, *_seen(thread)],
                sampling=answer.sampling,
                seed=random.Random(f"{answer.seed}/{thread.address}/{thread.size}").getrandbits(31),
                stops=_stops(thread),
                most=next((size for size in range(most) if _forced(thread, size) is not None), most),
                forbidden=self.tags.missing,
                at_once=self.on_token is not None,
            )
        )

    def _drop(self, growing: Growing, thread: Thread) -> None:
        """Throw away what was drawn ahead for a thread, and stop its call."""
        ahead = growing.ahead[thread]
        ahead.tokens.clear()
        if ahead.key is not None:
            self.client.stop(ahead.key)
            del self.calls[ahead.key]
            ahead.key = None

    def _end(self, growing: Growing) -> None:
        for thread in growing.ahead:
            self._drop(growing, thread)
        del self.running[growing.answer]


def _forced(thread: Thread, more: int) -> int | None:
    """The token that the caller forces on a thread after so many more; None if it does not."""
    force = thread.answer.force
    return force(thread.address, thread.size + more) if force else None


def _seen(thread: Thread, parts: Sequence[Run | Fork] | None = None) -> list[int]:
    """The tokens of an answer that a thread sees, in reading order: its own, with the paths of its joined forks, after
    those of the threads that it forked from.

    Args:
        parts: its first parts; all of them if None.
    """
    own: list[int] = []
    for part in thread.parts if parts is None else parts:
        own += part.tokens if isinstance(part, Run) else [token for path in part.paths for token in path.token_ids()]
    parent = thread.parent
    return own if parent is None else _seen(parent, parent.parts[:-1]) + own


def _most(thread: Thread) -> int:
    """The most tokens that the budget leaves for a thread; at least one."""
    if thread.counting:
        return 1
    answer = thread.answer
    left = thread.limit - thread.length - (0 if thread.parent is None else 1)
    return max(1, min(left, answer.sampling.budget.total - answer.total))


def _stops(thread: Thread) -> list[int]:
    """The tokens after which a thread may do something else than go on."""
    answer = thread.answer
    tags, sampling = answer.tags, answer.sampling
    stops = set(tags.eos)
    if sampling.sampler == "sequential":
        return sorted(stops)
    if thread.parent is not None:
        stops.add(_closing(tags, "path"))
    if answer.forks < sampling.budget.forks and len(thread.address) < sampling.budget.depth:
        stops.add(tags.opener)
    if tags.tail and thread.in_summary:
        stops.add(_closing(tags, "summary"))
    return sorted(stops)


def _closing(tags: Tags, role: str) -> int:
    token = tags.closing(role)  # type: ignore[arg-type]
    assert token is not None
    return token
