"""A scheduler that is interrupted: answers submitted and cancelled at any moment, memory that is too small, budgets at
their edges. The answers that are left alone are those of undisturbed drawing, and no block stays behind."""

import random
from functools import cache
from threading import Thread

import pytest
import torch
from common import prompts_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_scheduler import wild

from parallel_r1.answers.visibility import layout
from parallel_r1.generation import scheduler as room
from parallel_r1.generation.distribution import Drawn
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.local.engine import LocalEngine
from parallel_r1.generation.request import Request
from parallel_r1.generation.scheduler import Scheduler
from parallel_r1.generation.settings import Budget, Engine, Sampling

BUDGET = Budget(total=60, critical_path=40, path=12, forks=3, depth=2)
KINDS = [
    Sampling(budget=BUDGET),
    Sampling(sampler="causal_join", paths=3, budget=BUDGET),
    Sampling(sampler="sequential", budget=BUDGET),
    Sampling(paths=5, budget=BUDGET),
]


def request_of(policy, number):
    """One of a dozen requests: four kinds of answers to three prompts."""
    force = wild(policy.tags, 5)
    return Request(
        prompts_of(policy, 3)[number % 3],
        KINDS[number % 4],
        str(number),
        lambda address, size: force(number, address, size),
    )


def content(answer):
    """What an answer drew: its tokens with their addresses and writers."""
    return [(span.token_ids, span.address, span.sampled) for span in answer.trace(0).spans]


def is_empty(engine):
    """No token is counted and no block of the pool is in use."""
    return engine.counts.kv == engine.pool.held == engine.pool.used == 0 and not (engine.shared or engine.unread)


@cache
def alone(policy_of, number):
    """What the answer to a request is when nothing disturbs it."""
    policy = policy_of()
    scheduler = Scheduler(LocalEngine(policy.model), policy.tags, 1)
    answer = scheduler.submit(request_of(policy, number))
    while scheduler.is_busy:
        scheduler.step()
    assert is_empty(scheduler.engine)
    return content(answer)


@pytest.fixture(scope="module")
def policy_of(frozen):
    return lambda: frozen


def disturb(policy_of, seed, rows, slack, events):
    """Draw answers with submissions and cancellations between random steps and from `on_token`, then check all."""
    policy, rng = policy_of(), random.Random(seed)
    memory = None if slack is None else max(map(len, prompts_of(policy, 3))) + BUDGET.total + slack
    answers, numbers, left = [], [], events

    def disturbance():
        nonlocal left
        left -= 1
        if rng.random() < 0.6 or not answers:
            numbers.append(rng.randrange(12))
            answers.append(scheduler.submit(request_of(policy, numbers[-1])))
        else:
            scheduler.cancel(rng.choice(answers))

    def on_token(index, address, token, sampled):
        if left and rng.random() < 0.02:
            disturbance()

    scheduler = Scheduler(LocalEngine(policy.model), policy.tags, rows, memory, on_token=on_token)
    returned = []
    for _ in range(3):
        disturbance()
    while scheduler.is_busy or left:
        if left and (not scheduler.is_busy or rng.random() < 0.1):
            disturbance()
        returned += scheduler.step()
        assert memory is None or scheduler.engine.counts.peak_kv <= memory
    assert sorted(answer.index for answer in returned) == list(range(len(answers)))  # each is returned once
    assert not scheduler.prompts
    assert is_empty(scheduler.engine)
    for number, answer in zip(numbers, answers, strict=True):
        expected = alone(policy_of, number)
        if answer.finish == "cancelled":
            assert sum(len(tokens) for tokens, *_ in content(answer)) <= sum(len(tokens) for tokens, *_ in expected)
        else:
            assert content(answer) == expected


schedules = given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 6),
    slack=st.sampled_from([None, 0, 20, 100]),
    events=st.integers(3, 12),
)


@schedules
@settings(max_examples=25)
def test_answers_do_not_depend_on_what_is_submitted_cancelled_and_preempted_beside_them(
    policy_of, seed, rows, slack, events
):
    disturb(policy_of, seed, rows, slack, events)


@pytest.mark.slow
@schedules
@settings(max_examples=1000)
def test_a_thousand_schedules_leave_answers_alone_and_no_block_behind(policy_of, seed, rows, slack, events):
    disturb(policy_of, seed, rows, slack, events)


def test_an_answer_that_cancels_itself_ends_with_the_token_it_was_at(frozen):
    """From `on_token`, in the middle of a step, twice; and one that waits and has drawn nothing."""
    scheduler = Scheduler(
        LocalEngine(frozen.model),
        frozen.tags,
        2,
        on_token=lambda index, *_: [scheduler.cancel(answers[2 * index]) for _ in range(2)] if index < 2 else None,
    )
    plain = Sampling(sampler="sequential", budget=Budget(total=9, critical_path=9))
    answers = [scheduler.submit(Request(prompt, plain, "0")) for prompt in prompts_of(frozen, 3)]
    returned = []
    while scheduler.is_busy:
        returned += scheduler.step()
    assert returned == [answers[0], answers[2], answers[1]]
    assert [(answer.finish, answer.total) for answer in answers] == [("cancelled", 1), ("length", 9), ("cancelled", 0)]
    assert is_empty(scheduler.engine)


def test_other_threads_may_submit_and_cancel_while_answers_are_drawn(frozen):
    """Every answer gets an index of its own and is returned once; none is lost."""
    scheduler = Scheduler(LocalEngine(frozen.model), frozen.tags, 8)
    sampling = Sampling(sampler="sequential", budget=Budget(total=3, critical_path=3))
    prompt, answers = prompts_of(frozen, 1)[0], []

    def work():
        for number in range(40):
            answers.append(scheduler.submit(Request(prompt, sampling, str(number))))
            if number % 3 == 0:
                scheduler.cancel(answers[-1])

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    returned = []
    while scheduler.is_busy or any(thread.is_alive() for thread in threads):
        returned += scheduler.step()
    returned += scheduler.step()
    assert sorted(answer.index for answer in returned) == list(range(160))
    assert sorted(answer.index for answer in answers) == list(range(160))
    assert sum(answer.finish == "length" for answer in returned) >= 4 * 26  # the others may be cancelled in time
    assert is_empty(scheduler.engine)


def test_a_generator_is_cancelled_from_its_callbacks_and_from_other_threads(frozen):
    generator = make_generator(frozen, Engine(rows=2))
    sampling = Sampling(sampler="sequential", budget=Budget(total=20, critical_path=20))
    requests = [Request(prompt, sampling, "0") for prompt in prompts_of(frozen, 4)]
    seen = []

    def on_token(index, address, token, sampled):
        seen.append(index)
        if index == 0:
            other = Thread(target=generator.cancel, args=(0,))
            other.start()
            other.join()
            generator.cancel(3)

    traces = generator.traces(requests, on_token=on_token, on_trace=lambda index, trace: generator.cancel(index))
    assert [trace.finish for trace in traces] == ["cancelled", "length", "length", "cancelled"]
    assert [seen.count(index) for index in range(4)] == [1, 20, 20, 0]
    generator.cancel(0)  # nothing is drawn any more


def test_a_prompt_that_one_answer_holds_alone_is_no_shared_one(frozen):
    """The first answer was alone with its prompt, so those that come later hold it once more, and memory knows."""
    prompt = frozen.encode("Use 3, 5, 7 to make 22.\n" * 20)
    sampling = Sampling(sampler="sequential", budget=Budget(total=60, critical_path=60))
    memory = 2 * len(prompt) + 100
    scheduler = Scheduler(LocalEngine(frozen.model), frozen.tags, 8, memory)
    free = Request(prompt, sampling, "0", lambda address, size: 7)
    scheduler.submit(free)
    scheduler.step()
    for _ in range(5):
        scheduler.submit(free)
    while scheduler.is_busy:
        scheduler.step()
    assert scheduler.engine.counts.peak_kv <= memory
    assert scheduler.engine.counts.preempted <= 6


budgets = st.builds(
    Budget,
    total=st.integers(1, 120),
    critical_path=st.integers(1, 60),
    path=st.integers(1, 20),
    forks=st.integers(0, 4),
    depth=st.integers(1, 3),
)


def check_budget(trace, sampling, tags):
    """No limit is exceeded; every fork joins, and each of its paths, and the trunk after it, has a sampled token."""
    budget = sampling.budget
    assert len(trace.token_ids) <= budget.total
    assert layout(trace.runs).critical_path <= budget.critical_path
    assert trace.forks <= budget.forks
    addresses = {span.address[:depth] for span in trace.spans for depth in range(1, len(span.address) + 1)}
    assert all(len(address) <= budget.depth for address in addresses)
    for address in addresses:
        inside = [span for span in trace.spans if span.address[: len(address)] == address]
        chain = layout([(span.address[len(address) :], len(span.token_ids)) for span in inside])
        assert chain.critical_path <= budget.path
        assert inside[0].token_ids[0] == tags.ids["<Path>"]
        assert any(span.sampled for span in inside if span.address == address)
        *before, (fork, path) = address
        assert {(*before, (fork, other)) for other in range(sampling.paths)} <= addresses
        last = max(at for at, span in enumerate(trace.spans) if (*before, (fork, path)) == span.address[: len(address)])
        after = [span for span in trace.spans[last + 1 :] if span.address == tuple(before)]
        assert (after[0].token_ids, after[0].sampled) == (tags.join, False)
        assert after[1].sampled


def wild_sample(tags):
    """In place of `sample`: tags and ends of text at random places, by the random number of every thread."""
    ids = tags.ids
    menu = [ids["<Parallel>"]] * 3 + [ids["</Path>"]] * 2 + [ids["</Summary>"], *tags.eos] + [7] * 10

    def sample(logits, uniform, shape):
        tokens = torch.tensor([menu[int(number * len(menu))] for number in uniform])
        return Drawn(tokens, torch.zeros(len(tokens)), torch.zeros(len(tokens)))

    return sample


def draw_at_the_edges(frozen, monkeypatch, sampling, seed):
    monkeypatch.setattr(room, "sample", wild_sample(frozen.tags))
    scheduler = Scheduler(LocalEngine(frozen.model), frozen.tags, 4)
    answers = [
        scheduler.submit(Request(prompt, sampling, f"{seed}/{at}")) for at, prompt in enumerate(prompts_of(frozen, 3))
    ]
    while scheduler.is_busy:
        scheduler.step()
    traces = [answer.trace(0) for answer in answers]
    for trace in traces:
        check_budget(trace, sampling, frozen.tags)
    assert is_empty(scheduler.engine)
    return traces


@given(
    budget=budgets, sampler=st.sampled_from(["isolated", "causal_join"]), paths=st.integers(1, 6), seed=st.integers()
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_budgets_hold_at_their_edges(frozen, monkeypatch, budget, sampler, paths, seed):
    draw_at_the_edges(frozen, monkeypatch, Sampling(sampler=sampler, paths=paths, budget=budget), seed)


@pytest.mark.parametrize(
    ("limits", "opens"),
    [
        ({"path": 1}, False),
        ({"path": 2}, False),
        ({"path": 3}, True),
        ({"forks": 0}, False),
        ({"critical_path": 7}, False),
        ({"critical_path": 8}, True),
        ({"total": 10}, False),
        ({"total": 11}, True),
    ],
)
def test_the_smallest_budgets_that_a_fork_fits_into(frozen, monkeypatch, limits, opens):
    """A fork of two paths takes `<Parallel>`, 3 tokens a path, 3 of the join and one after it."""
    sampling = Sampling(budget=Budget(**limits))
    traces = [trace for seed in range(20) for trace in draw_at_the_edges(frozen, monkeypatch, sampling, seed)]
    assert any(trace.forks for trace in traces) == opens
