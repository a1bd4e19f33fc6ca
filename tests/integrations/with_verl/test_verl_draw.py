"""Answers drawn by asynchronous calls are those of the local scheduler, however servers fail."""

import asyncio
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_vllm import Reader, by_scheduler, continuation

from parallel_r1.errors import UserError
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Branches, Budget, Sampling
from parallel_r1.integrations.verl import draw as drawing
from parallel_r1.integrations.verl.draw import Continued, Patience, draw

SIZE = 60


@dataclass
class Server:
    """Continues texts of a reader, and fails.

    Attributes:
        errors, hangs, cuts: shares of calls that raise, never return, return only some tokens.
        restart: number of calls after which, once, all that run are lost.
        done: number of calls that were answered.
    """

    reader: Reader
    errors: float = 0.0
    hangs: float = 0.0
    cuts: float = 0.0
    restart: int | None = None
    done: int = 0
    most: int = 0
    running: set = field(default_factory=set)
    version: tuple | None = (3, 3)

    def __post_init__(self):
        self.random = random.Random(0)

    async def __call__(self, call):
        task = asyncio.current_task()
        self.running.add(task)
        self.most = max(self.most, len(self.running))
        try:
            await asyncio.sleep(self.random.random() / 1000)
            chance = self.random.random()
            if chance < self.errors:
                raise ConnectionError("a server that fails")
            if chance < self.errors + self.hangs:
                await asyncio.sleep(1000)
            self.done += 1
            if self.restart is not None and self.done > self.restart:
                self.restart = None
                for other in self.running - {task}:
                    other.cancel("the server restarts")
                raise ConnectionError("the server restarts")
        except asyncio.CancelledError as error:
            if "restarts" in str(error):
                raise ConnectionError("the server restarts") from None
            raise
        finally:
            self.running.discard(task)
        pairs = continuation(self.reader, call.context, call.params)
        if chance > 1 - self.cuts:
            pairs = pairs[: max(1, len(pairs) // 2)]
        return Continued([token for token, _ in pairs], [value for _, value in pairs], 0, self.version)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(drawing, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(drawing, "LONGEST_PAUSE", 0.005)


def requests_of(sampling, count):
    return [Request([5, 6, 7 + index], sampling, f"s/{index}") for index in range(count)]


def by_calls(server, requests, **patience):
    async def run():
        waits = Patience(**{"call": 30.0, "whole": 60.0, **patience})
        return await asyncio.gather(
            *(draw(server, request, server.reader.tags, patience=waits) for request in requests)
        )

    return asyncio.run(run())


samplings = st.builds(
    Sampling,
    sampler=st.sampled_from(["causal_join", "sequential"]),
    paths=st.integers(1, 4),
    temperature=st.just(0.0),
    budget=st.builds(
        Budget,
        total=st.integers(8, 120),
        critical_path=st.integers(8, 70),
        path=st.integers(3, 30),
        forks=st.integers(0, 3),
        depth=st.integers(1, 2),
    ),
)


@settings(max_examples=40)
@given(sampling=samplings, seed=st.integers(0, 99))
def test_the_answers_are_those_of_the_local_scheduler(frozen, sampling, seed):
    reader = Reader(frozen.tags, SIZE, seed)
    requests = requests_of(sampling, 3)
    drawn = by_calls(Server(reader), requests)
    assert [one.trace for one in drawn] == by_scheduler(reader, requests)
    assert all(one.repeated == 0 and one.versions == (3, 3) for one in drawn)


def test_nothing_is_lost_or_doubled_where_servers_fail(frozen, impatient):
    """5 % of the calls fail, 1 % never return, one in ten is cut, and the server restarts once: 600 answers at a time
    are to the last token those that nothing happened to."""
    reader = Reader(frozen.tags, SIZE, 1)
    sampling = Sampling(
        sampler="causal_join", paths=3, temperature=0, budget=Budget(total=90, critical_path=60, path=20)
    )
    requests = requests_of(sampling, 600)
    server = Server(reader, errors=0.05, hangs=0.01, cuts=0.1, restart=900)
    drawn = by_calls(server, requests, call=2.0)
    assert [one.trace for one in drawn] == by_scheduler(reader, requests)
    assert sum(one.repeated for one in drawn) > 20
    assert server.restart is None
    assert server.most >= 500
    assert any(one.trace.forks >= 2 for one in drawn)


def test_all_paths_of_a_fork_are_drawn_at_once(frozen):
    reader = Reader(frozen.tags, SIZE, 1)
    sampling = Sampling(sampler="causal_join", paths=4, temperature=0, budget=Budget(total=200, critical_path=90))
    forked = [request for request in requests_of(sampling, 20) if by_scheduler(reader, [request])[0].forks]
    server = Server(reader)
    by_calls(server, forked[:1])
    assert server.most == 4


def test_paths_can_be_closed(frozen):
    budget = Budget(total=120, critical_path=60, path=40)
    branches = Branches(spare=2)
    sampling = Sampling(sampler="causal_join", paths=3, temperature=0, budget=budget, branches=branches)
    closed = 0
    for seed in range(5):
        reader, requests = Reader(frozen.tags, SIZE, seed), requests_of(sampling, 20)
        drawn = by_calls(Server(reader), requests)
        assert [one.trace for one in drawn] == by_scheduler(reader, requests)
        closed += sum(one.counts.closed for one in drawn)
    assert closed > 0


def test_a_server_that_never_answers_ends_the_answer(frozen, impatient):
    server = Server(Reader(frozen.tags, SIZE), errors=1.0)
    with pytest.raises(UserError, match=r"continues a text within 0\.1 s; found ConnectionError: a server that fails"):
        by_calls(server, requests_of(Sampling(sampler="causal_join"), 1), whole=0.1)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Continued([1, 2], []), "a log-probability for every token of a server; found 0 for 2 tokens"),
        (Continued([1] * 999, [0.0] * 999), "found 999"),
        (ValueError("no such parameter"), "no such parameter"),
    ],
)
def test_what_no_repetition_can_mend_is_said_at_once(frozen, answer, says):
    async def send(call):
        if isinstance(answer, Exception):
            raise answer
        return answer

    request = Request([5], Sampling(sampler="causal_join"), "s")
    with pytest.raises((UserError, ValueError), match=says):
        asyncio.run(draw(send, request, frozen.tags))


def test_the_first_and_the_last_weights_are_kept(frozen):
    reader = Reader(frozen.tags, SIZE, 1)
    server = Server(reader)
    versions = iter(range(3, 1000))

    async def send(call):
        done = await server(call)
        version = next(versions)
        return Continued(done.tokens, done.logprobs, 2, (version, version))

    request = requests_of(Sampling(sampler="causal_join", paths=3, temperature=0), 9)[3]
    drawn = asyncio.run(draw(send, request, reader.tags))
    assert drawn.versions == (3, next(versions) - 1)
    assert drawn.trace.policy_version == 3
    assert drawn.counts.cached > 0


def test_isolated_paths_are_refused(frozen):
    with pytest.raises(UserError, match="causal_join or sequential"):
        asyncio.run(draw(Server(None), Request([5], Sampling(), "s"), frozen.tags))
