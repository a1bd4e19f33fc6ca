"""A scheduler that can be interrupted: submit and cancel at any moment, from anywhere, and nothing else changes."""

import threading

import pytest
from common import force_forks, prompts_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from parallel_r1.generation.local.engine import LocalEngine
from parallel_r1.generation.request import Request
from parallel_r1.generation.scheduler import Scheduler
from parallel_r1.generation.settings import Budget, Sampling

COUNT = 8


def requests_of(policy, sampler="isolated", depth=2):
    """Answers of different lengths, with forks in all but two; three share a prompt."""
    force = force_forks(policy.tags)
    prompts = [*prompts_of(policy, COUNT - 2), *prompts_of(policy, 1) * 2]
    sizes = [(100, 60, 15), (40, 30, 8), (70, 70, 20)]
    samplings = [
        Sampling(sampler=sampler, paths=3, budget=Budget(total=total, critical_path=chain, path=path, depth=depth))
        for total, chain, path in sizes
    ]

    def forced(index):
        return None if index % 4 == 3 else lambda address, size: force(index, address, size)

    return [
        Request(prompt, samplings[index % 3], f"seed/{index}", forced(index)) for index, prompt in enumerate(prompts)
    ]


def finish(scheduler):
    while scheduler.is_busy:
        scheduler.step()


def undisturbed(policy, sampler):
    scheduler = Scheduler(LocalEngine(policy.model), policy.tags, COUNT)
    answers = [scheduler.submit(request) for request in requests_of(policy, sampler)]
    finish(scheduler)
    return [answer.trace(0) for answer in answers]


EXPECTED: dict = {}


def check_schedule(policy, sampler, data):
    """Answers that arrive and are cancelled at drawn steps, with few rows and little memory in tokens or in blocks.

    Those that end by themselves are those of an undisturbed run; a cancelled one is the beginning of its own; and when
    all is over nothing is held.
    """
    if sampler not in EXPECTED:
        EXPECTED[sampler] = undisturbed(policy, sampler)
    expected = EXPECTED[sampler]
    memory = data.draw(st.sampled_from([None, 150, 220]), label="memory")
    most = data.draw(st.sampled_from([None, 80, 120]), label="blocks")
    engine = LocalEngine(policy.model, most=most)
    scheduler = Scheduler(engine, policy.tags, data.draw(st.integers(1, COUNT), label="rows"), memory)
    arrivals = [data.draw(st.integers(0, 40)) for _ in range(COUNT)]
    ends = [data.draw(st.one_of(st.none(), st.integers(0, 90))) for _ in range(COUNT)]
    requests, answers, ended = requests_of(policy, sampler), {}, []
    step = 0
    while scheduler.is_busy or len(answers) < COUNT:
        for index in range(COUNT):
            if arrivals[index] == step:
                answers[index] = scheduler.submit(requests[index])
            if index in answers and ends[index] is not None and step == max(ends[index], arrivals[index]):
                scheduler.cancel(answers[index])
        ended += scheduler.step()
        step += 1
        assert memory is None or engine.counts.kv <= memory or len(scheduler.running) == 1
        assert most is None or len(engine.pool) <= most
    assert sorted(map(id, ended)) == sorted(map(id, answers.values()))
    for index, answer in answers.items():
        trace = answer.trace(0)
        if trace.finish == "cancelled":
            assert ends[index] is not None
            for span in trace.spans:
                same = [other for other in expected[index].spans if other.address == span.address]
                tokens = [token for other in same for token in other.token_ids]
                assert ",".join(map(str, span.token_ids)) in ",".join(map(str, tokens))
        else:
            assert trace.token_ids == expected[index].token_ids
            assert trace.finish == expected[index].finish
    assert engine.counts.kv == engine.pool.used == engine.pool.held == 0
    left = (scheduler.arrived, scheduler.queue, scheduler.running, scheduler.active, scheduler.prompts)
    assert not any(left)


NO_SHRINKING = [Phase.explicit, Phase.reuse, Phase.generate]


@pytest.mark.parametrize("sampler", ["isolated", "causal_join"])
@given(data=st.data())
@settings(max_examples=6, phases=NO_SHRINKING, suppress_health_check=list(HealthCheck))
def test_answers_that_arrive_and_are_cancelled_at_any_step(frozen, sampler, data):
    check_schedule(frozen, sampler, data)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["isolated", "causal_join"])
@given(data=st.data())
@settings(max_examples=500, phases=NO_SHRINKING, suppress_health_check=list(HealthCheck))
def test_a_thousand_schedules(frozen, sampler, data):
    check_schedule(frozen, sampler, data)


def test_submit_and_cancel_from_on_token(frozen):
    """The first token of an answer asks for another one and ends a third; both take effect with the next step."""
    requests, log = requests_of(frozen), []

    def on_token(index, address, token, sampled):
        if index == 0 and not log:
            log.append(scheduler.submit(requests[2]))
            scheduler.cancel(answers[1])
            scheduler.cancel(answers[1])

    scheduler = Scheduler(LocalEngine(frozen.model), frozen.tags, 4, on_token=on_token)
    answers = [scheduler.submit(request) for request in requests[:2]]
    finish(scheduler)
    expected = undisturbed(frozen, "isolated")
    assert answers[1].finish == "cancelled"
    assert len(answers[1].trace(0).token_ids) <= 3
    assert answers[0].trace(0).token_ids == expected[0].token_ids
    assert log[0].trace(0).token_ids == expected[2].token_ids


def test_submit_and_cancel_from_other_threads(frozen):
    """Four threads submit and cancel while the scheduler steps; no answer is lost, none is drawn twice."""
    scheduler = Scheduler(LocalEngine(frozen.model), frozen.tags, 6)
    requests, expected = requests_of(frozen), undisturbed(frozen, "isolated")
    made, closed, lock = [], threading.Event(), threading.Lock()

    def work(thread):
        for index, request in enumerate(requests):
            answer = scheduler.submit(request)
            with lock:
                made.append((index, answer))
            if (index + thread) % 4 == 0:
                scheduler.cancel(answer)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    ended = []
    while scheduler.is_busy or not closed.is_set():
        ended += scheduler.step()
        if not any(thread.is_alive() for thread in threads):
            closed.set()
    assert len(ended) == len(set(map(id, ended))) == len(made) == 4 * COUNT
    assert len({answer.index for _, answer in made}) == 4 * COUNT
    for index, answer in made:
        if answer.finish != "cancelled":
            assert answer.trace(0).token_ids == expected[index].token_ids
    assert scheduler.engine.counts.kv == 0
