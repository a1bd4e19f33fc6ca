"""The rollout of one RL step on servers with continuous batching, as a simulation of discrete events.

Between two events all rows of a server draw a token in every decode step, so the sum of the steps has a closed form
(`Costs.steps`) and no loop runs over tokens. An event is the end of a call: then a fork opens, a join is complete, or
an answer ends, and the calls that follow are queued on servers.

What happens at the boundary between two decode steps of a server, in this order: calls that have all their tokens end;
forks are cut off (`Cluster.straggler`); calls that the ends lead to are queued; queued calls are admitted one after
the other, those of answers that have begun before new answers, as long as a row is free and the keys and values of the
whole call fit; each reads the part of its text that the server does not hold, while all rows wait. A call that is
queued while the server draws or reads is admitted at the next boundary; after reading there is one before the next
step.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import numpy as np

from parallel_r1.errors import UserError
from parallel_r1.runs.scale.answers import Outline
from parallel_r1.runs.scale.costs import Costs

Routing = Literal["sticky", "spread"]
"""`sticky`: all calls of an answer go to one server, which holds its text. `spread`: every call goes to the server with
the fewest calls; what that server does not hold of the text it reads first."""
PARTS = ("bandwidth", "arithmetic", "overhead", "prefill")
"""What a server's busy seconds are spent on: see `Spent`, and `prefill` for reading text."""


@dataclass(frozen=True)
class Cluster:
    """The servers that draw.

    Attributes:
        servers: number of servers.
        rows: calls that a server draws at the same time.
        capacity: tokens whose keys and values a server holds. What siblings share counts once; text that no running
            call needs is given up when there is no room, and is still taken as held, since a later read would hit.
        routing: see `Routing`.
        rereads: whether paths 2 .. K are read again after a join, as under `causal_join`.
        straggler: once half of the paths of a fork have ended, those longer than so many times the median length of
            these are closed; never if None. Only whole tokens count.
    """

    servers: int
    rows: int
    capacity: int
    routing: Routing = "sticky"
    rereads: bool = True
    straggler: float | None = None


@dataclass(eq=False)
class _Answer:
    """An answer while it is drawn.

    Attributes:
        part: index of the part that is being drawn.
        context: tokens before that part, prompt included.
        home: the server of its latest trunk part.
        cached: server -> tokens from the beginning of the text that it holds.
        paths: calls of the open fork.
        ended: lengths of those that have ended.
    """

    outline: Outline
    home: int
    part: int = 0
    context: int = 0
    cached: dict[int, int] = field(default_factory=dict)
    paths: list[_Call] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)


@dataclass(eq=False)
class _Call:
    """A call to a server: a trunk part, or one path of a fork.

    Attributes:
        prefix: tokens before it.
        tokens: that it draws unless it is cut off.
        target: that it draws as far as is known.
        start: the server's step at which it was admitted.
        number: counts the calls that the server has admitted.
    """

    answer: _Answer
    path: int | None
    prefix: int
    tokens: int
    target: int
    server: int = 0
    start: int | None = None
    number: int = 0
    drawn: int = 0
    over: bool = False


@dataclass
class Drawn:
    """What a simulated rollout took.

    Attributes:
        seconds: until the last answer ended.
        tokens: drawn, over all answers.
        read: tokens that servers read: prompts, paths after joins, and prefixes that a server did not hold.
        ends: seconds at which every answer ended, in no order.
        waits: calls that had to wait for memory.
        calls: number of calls.
        spans: by stretch of a server's work: start, end, then its seconds by `PARTS`; in no order.
    """

    seconds: float
    tokens: int
    read: int
    ends: np.ndarray
    waits: int
    calls: int
    spans: np.ndarray

    def busy(self, until: float) -> dict[str, float]:
        """Seconds that all servers together were busy before a time, by `PARTS`."""
        if not len(self.spans):
            return dict.fromkeys(PARTS, 0.0)
        start, end = self.spans[:, 0], self.spans[:, 1]
        share = np.clip((until - start) / np.maximum(end - start, 1e-300), 0, 1)
        return dict(zip(PARTS, (float(value) for value in share @ self.spans[:, 2:]), strict=True))


class _Server:
    """A server between two of its boundaries."""

    def __init__(self, costs: Costs, cluster: Cluster, spans: list[tuple[float, ...]]) -> None:
        self.costs, self.cluster, self.spans = costs, cluster, spans
        self.time, self.step = 0.0, 0
        self.version = self.planned = 0  # of its next event, which comes after so many steps
        self.rows = self.context = self.held = self.waits = self.read = 0
        self.targets: list[tuple[int, int, _Call]] = []  # a heap of (step of the end, order, call)
        self.order = self.admitted = 0
        self.going: deque[_Call] = deque()
        self.fresh: deque[_Call] = deque()
        self.running: Counter[_Answer] = Counter()
        self.waiting: _Call | None = None

    @property
    def load(self) -> int:
        return self.rows + len(self.going) + len(self.fresh)

    def left(self) -> int | None:
        """Steps until the next call ends; None if none is running."""
        while self.targets:
            step, _, call = self.targets[0]
            if not call.over and call.start is not None and call.start + call.target == step:
                return step - self.step
            heapq.heappop(self.targets)
        return None

    def advance(self, count: int) -> None:
        """Draw so many tokens in every row."""
        if not count:
            return
        spent = self.costs.steps(self.rows, self.context, count)
        end = self.time + spent.seconds
        self.spans.append((self.time, end, spent.bandwidth, spent.arithmetic, spent.overhead, 0.0))
        self.time, self.step, self.context = end, self.step + count, self.context + count * self.rows

    def reach(self, time: float) -> None:
        """Go to the first boundary at or after a time."""
        left = self.left()
        if left is None:
            self.time = max(self.time, time)
        elif time > self.time:
            self.advance(self.costs.steps_until(self.rows, self.context, time - self.time, left))

    def admit(self) -> None:
        """Admit queued calls, and read what is not held of their text."""
        while queue := self.going or self.fresh:
            call, answer = queue[0], queue[0].answer
            need = call.tokens + (0 if self.running[answer] else call.prefix)
            if self.rows >= self.cluster.rows:
                return
            if self.held + need > self.cluster.capacity:
                self.waits += call is not self.waiting
                self.waiting = call
                return
            queue.popleft()
            self.held += need
            self.rows += 1
            self.running[answer] += 1
            self.context += call.prefix
            self._read(call)
            self.admitted += 1
            call.start, call.number = self.step, self.admitted
            self.aim(call)

    def _read(self, call: _Call) -> None:
        held = min(call.prefix, call.answer.cached.get(call.server, 0))
        call.answer.cached[call.server] = max(call.prefix, call.answer.cached.get(call.server, 0))
        if call.prefix > held:
            seconds = self.costs.read(call.prefix - held, held)
            self.spans.append((self.time, self.time + seconds, 0.0, 0.0, 0.0, seconds))
            self.time += seconds
            self.read += call.prefix - held

    def aim(self, call: _Call) -> None:
        """Note the step at which a running call ends, if it is not cut off later."""
        assert call.start is not None
        self.order += 1
        heapq.heappush(self.targets, (call.start + call.target, self.order, call))

    def remove_ended(self) -> list[_Call]:
        """The calls that end at this boundary, in the order in which they were admitted."""
        ended = []
        while self.left() == 0:
            call = heapq.heappop(self.targets)[2]
            assert call.start is not None
            call.over, call.drawn = True, self.step - call.start
            self.rows -= 1
            self.context -= call.prefix + call.drawn
            self.running[call.answer] -= 1
            self.held -= call.tokens + (0 if self.running[call.answer] else call.prefix)
            if not self.running[call.answer]:
                del self.running[call.answer]
            ended.append(call)
        return sorted(ended, key=lambda call: call.number)


class Simulation:
    """One rollout; `run` gives what it took."""

    def __init__(self, outlines: Sequence[Outline], cluster: Cluster, costs: Costs) -> None:
        self.outlines, self.cluster = outlines, cluster
        self.spans: list[tuple[float, ...]] = []
        self.servers = [_Server(costs, cluster, self.spans) for _ in range(cluster.servers)]
        self.loads = np.zeros(cluster.servers, dtype=np.int64)
        self.events: list[tuple[float, int, int]] = []
        self.ends: list[float] = []
        self.tokens = self.calls = 0
        self.touched: set[int] = set()

    def run(self) -> Drawn:
        """Simulate until every answer has ended.

        Raises:
            UserError: an answer that no server can hold.
        """
        self._check()
        for index, outline in enumerate(self.outlines):
            answer = _Answer(outline, index % self.cluster.servers, context=outline.prompt)
            self._begin_part(answer, 0.0)
        self._settle(0.0)
        while self.events:
            _, number, version = heapq.heappop(self.events)
            server = self.servers[number]
            if version != server.version:
                continue
            server.advance(server.planned)
            self._boundary(number)
        ends = np.array(self.ends)
        read, waits = (sum(getattr(server, name) for server in self.servers) for name in ("read", "waits"))
        spans = np.array(self.spans).reshape(-1, 2 + len(PARTS))
        return Drawn(float(ends.max(initial=0.0)), self.tokens, read, ends, waits, self.calls, spans)

    def _check(self) -> None:
        most = max((outline.prompt + outline.total for outline in self.outlines), default=0)
        if most > self.cluster.capacity:
            raise UserError(
                f"room for the keys and values of an answer of {most:,} tokens on a server",
                f"room for {self.cluster.capacity:,}",
                "raise engine.memory, lower sampling.budget, or use larger servers",
            )

    def _boundary(self, number: int) -> None:
        """End calls at a boundary of a server, as long as cut-offs end further ones, then go on."""
        server = self.servers[number]
        time = server.time
        self.touched.add(number)
        while ended := server.remove_ended():
            self.loads[number] -= len(ended)
            forks: dict[_Answer, None] = {}
            for call in ended:
                self.tokens += call.drawn
                if call.path is None:
                    self._end_trunk(call, time)
                elif self._end_path(call, time):
                    forks[call.answer] = None
            for answer in forks if self.cluster.straggler is not None else ():
                self._cut(answer, time)
        self._settle(time)

    def _settle(self, now: float) -> None:
        """Admit calls on all servers that something has happened to, and schedule their next events. A server that is
        in the middle of a step admits at its next boundary, which is an event of its own."""
        for number in sorted(self.touched):
            server = self.servers[number]
            if server.time <= now and server.left() != 0:
                server.admit()
                left = server.left()
            else:
                left = 0
            server.version += 1
            server.planned = left or 0
            if left is not None:
                end = server.time + server.costs.steps(server.rows, server.context, left).seconds
                heapq.heappush(self.events, (end, number, server.version))
        self.touched.clear()

    def _end_trunk(self, call: _Call, time: float) -> None:
        answer = call.answer
        answer.context += call.drawn
        answer.cached[call.server] = answer.context
        answer.part += 1
        self._begin_part(answer, time)

    def _end_path(self, call: _Call, time: float) -> bool:
        """Note the end of a path; the last one of a fork begins the part after it. Whether others are open."""
        answer = call.answer
        answer.ended.append(call.drawn)
        if call.path == 0:
            answer.cached[call.server] = max(answer.cached.get(call.server, 0), call.prefix + call.drawn)
        if len(answer.ended) < len(answer.paths):
            return True
        answer.context += sum(answer.ended)
        answer.paths, answer.ended = [], []
        if not self.cluster.rereads:
            answer.cached[answer.home] = answer.context
        answer.part += 1
        self._begin_part(answer, time)
        return False

    def _begin_part(self, answer: _Answer, time: float) -> None:
        """Queue the calls of the answer's part; a part without tokens is over at once."""
        parts = answer.outline.parts
        while answer.part < len(parts):
            part = parts[answer.part]
            if isinstance(part, int):
                if part:
                    self._queue(_Call(answer, None, answer.context, part, part), time)
                    return
            else:
                answer.paths = [_Call(answer, path, answer.context, length, length) for path, length in enumerate(part)]
                for call in answer.paths:
                    self._queue(call, time)
                return
            answer.part += 1
        self.ends.append(time)

    def _queue(self, call: _Call, time: float) -> None:
        answer = call.answer
        begun = bool(answer.cached)
        if self.cluster.routing == "spread" and begun:
            call.server = int(self.loads.argmin())
        else:
            call.server = answer.home
        if call.path is None:
            answer.home = call.server
        server = self.servers[call.server]
        if call.server not in self.touched:
            server.reach(time)
            self.touched.add(call.server)
        (server.going if begun else server.fresh).append(call)
        self.loads[call.server] += 1
        self.calls += 1

    def _cut(self, answer: _Answer, time: float) -> None:
        """Apply the cut-off to the paths of a fork that are still open."""
        straggler = self.cluster.straggler
        assert straggler is not None
        if not answer.ended or 2 * len(answer.ended) < len(answer.paths):  # joined meanwhile, or too few
            return
        least = int(straggler * median(answer.ended)) + 1
        for call in answer.paths:
            if call.over:
                continue
            server = self.servers[call.server]
            if call.server not in self.touched:
                server.reach(time)
                self.touched.add(call.server)
            drawn = 0 if call.start is None else server.step - call.start
            target = min(call.tokens, max(drawn, least))
            if target != call.target:
                call.target = target
                if call.start is not None:
                    server.aim(call)


def simulate(outlines: Sequence[Outline], cluster: Cluster, costs: Costs) -> Drawn:
    """What the rollout of these answers takes, all of which arrive at the beginning.

    Raises:
        UserError: an answer that no server can hold.
    """
    return Simulation(outlines, cluster, costs).run()
