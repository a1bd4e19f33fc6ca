"""Paths that the runtime closes because of what their siblings did: when, and that scoring stays exact."""

from collections import Counter
from dataclasses import replace
from statistics import median

import pytest
from common import mismatch, prompts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_scheduler import wild

import parallel_r1 as pr
from parallel_r1.answers.trace import EXACT_SCORER
from parallel_r1.errors import UserError
from parallel_r1.generation.control import concluded
from parallel_r1.generation.local.engine import LocalEngine
from parallel_r1.generation.request import Request
from parallel_r1.generation.scheduler import Scheduler
from parallel_r1.generation.settings import Branches, Budget, Sampling
from parallel_r1.tasks.load import load_task

BUDGET = Budget(total=900, critical_path=200, path=60, forks=1)


def run(policy, requests, rows=256, memory=None):
    """The answers to requests, and the scheduler that drew them."""
    scheduler = Scheduler(LocalEngine(policy.model), policy.tags, rows, memory, decode=policy.decode)
    answers = [scheduler.submit(request) for request in requests]
    while scheduler.is_busy:
        scheduler.step()
    return answers, scheduler


def head_of(policy):
    """Number of tokens that are given at the start of a path."""
    return len(policy.tags.stub) + len(policy.tags.head(1, ()))


def scripted(policy, lengths, says):
    """Open a fork at once; path i has `lengths[i]` tokens of text, the last of which is the digit that it says."""
    ids = policy.tags.ids
    letter, digits = policy.encode("x")[0], [policy.encode(str(digit))[0] for digit in range(10)]

    def force(address, size):
        if not address:
            return ids["<Parallel>"] if size == 0 else ids["</Summary>"] if size > 1 else letter
        at, own = address[-1][1], size - head_of(policy)
        if own >= lengths[at]:
            return ids["</Path>"]
        return digits[says[at]] if own == lengths[at] - 1 else letter

    return force


def oracle(lengths, says, branches, head):
    """Step by step with no tree: the number of tokens of text of every path, and which were closed."""
    open_, ended, closed, wrote = set(range(len(lengths))), [], set(), [0] * len(lengths)
    step = 0
    while open_:
        step += 1  # every open path writes a token of text, or its closing tag after its last one
        for path in sorted(open_):
            if wrote[path] == lengths[path]:
                ended.append(path)
            else:
                wrote[path] += 1
        open_ -= set(ended)
        votes = Counter(says[path] for path in ended)
        agreed = branches.agree is not None and ended and max(votes.values()) >= branches.agree
        enough = ended and len(ended) >= len(lengths) - branches.spare
        slow = (
            branches.straggler is not None
            and 2 * len(ended) >= len(lengths)
            # with the head, and the closing tag of those that have ended
            and head + step > branches.straggler * median(head + lengths[path] + 1 for path in ended)
        )
        if agreed or enough or slow:
            closed |= open_
            open_ = set()
    return wrote, closed


drawn_branches = st.builds(
    Branches,
    spare=st.integers(0, 3),
    straggler=st.none() | st.sampled_from([1.0, 1.2, 1.5, 2.0, 3.0]),
    agree=st.none() | st.integers(1, 3),
)


@pytest.mark.parametrize("sampler", ["isolated", "causal_join"])
@given(paths=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), min_size=4, max_size=7), branches=drawn_branches)
@settings(max_examples=10, deadline=None)
def test_paths_are_closed_as_an_obvious_simulation_closes_them(frozen, sampler, paths, branches):
    lengths, says = [length for length, _ in paths], [digit for _, digit in paths]
    wanted = len(paths) - branches.spare
    branches = branches.model_copy(update={"agree": branches.agree and min(branches.agree, wanted)})
    sampling = Sampling(sampler=sampler, paths=wanted, budget=BUDGET, branches=branches)
    request = Request(prompts_of(frozen, 1)[0], sampling, "0", scripted(frozen, lengths, says))
    (answer,), scheduler = run(frozen, [request])
    fork = next(part for part in answer.trunk.parts if hasattr(part, "paths"))
    head = head_of(frozen)
    wrote, closed = oracle(lengths, says, branches, head)
    assert [path.size - 1 - head for path in fork.paths] == wrote
    assert {number for number, path in enumerate(fork.paths) if path.closed} == closed
    assert scheduler.counts.closed == len(closed)


def requests_of(policy, branches, sampler, count=8):
    force = wild(policy.tags, 3)
    budget = Budget(total=160, critical_path=90, path=40, forks=4, depth=2)
    sampling = Sampling(sampler=sampler, paths=3, budget=budget, branches=branches)
    return [
        Request(prompt, sampling, str(at), lambda address, size, at=at: force(at, address, size))
        for at, prompt in enumerate(prompts_of(policy, count))
    ]


CONTROLS = [Branches(spare=2), Branches(straggler=1.0), Branches(agree=1), Branches(spare=1, straggler=1.5, agree=2)]
SOME_NUMBER = "1"


@pytest.mark.parametrize("branches", CONTROLS, ids=str)
@pytest.mark.parametrize("sampler", ["isolated", "causal_join"])
def test_scoring_is_exact_and_answers_do_not_depend_on_the_batch(frozen, branches, sampler):
    """Nested forks of random shape: alone, side by side, and with so little memory that answers are preempted."""
    requests = [replace(one, conclude=lambda text: SOME_NUMBER) for one in requests_of(frozen, branches, sampler)]
    together, scheduler = run(frozen, requests)
    traces = [answer.trace(0) for answer in together]
    assert scheduler.counts.closed > 0
    assert mismatch(frozen, traces, EXACT_SCORER[sampler]) <= 1e-4
    least = max(len(request.prompt_ids) for request in requests) + 160
    tight, cramped = run(frozen, requests, memory=least)
    assert cramped.counts.preempted > 0
    assert cramped.counts.closed == scheduler.counts.closed
    alone = [run(frozen, [request])[0][0] for request in requests]

    def shape(answer):
        return [(span.token_ids, span.address, span.sampled) for span in answer.trace(0).spans]

    for first, second, third in zip(together, tight, alone, strict=True):
        assert shape(first) == shape(second) == shape(third)
        assert first.total <= 160


def test_off_by_default_and_absent_from_what_is_written():
    assert "branches" not in Sampling().model_dump(mode="json")
    on = Sampling(branches=Branches(agree=2))
    assert Sampling.model_validate(on.model_dump(mode="json")) == on
    assert Sampling.model_validate(Sampling().model_dump()) == Sampling()


def test_a_small_budget_opens_fewer_spare_paths(frozen):
    sampling = Sampling(paths=2, budget=Budget(total=16, critical_path=14, path=8, forks=1), branches=Branches(spare=6))
    request = Request(prompts_of(frozen, 1)[0], sampling, "0", scripted(frozen, [1] * 8, [0] * 8))
    (answer,), _ = run(frozen, [request])
    fork = next(part for part in answer.trunk.parts if hasattr(part, "paths"))
    assert 2 <= len(fork.paths) < 8
    assert fork.spare == len(fork.paths) - 2
    assert answer.total <= 16


@pytest.mark.parametrize(
    "settings_",
    [
        {"branches": {"agree": 3}},
        {"branches": {"straggler": 0.5}},
        {"branches": {"spare": 63}},
        {"sampler": "sequential", "branches": {"spare": 1}},
        {"paths": [1, 4], "branches": {"spare": 1}},
    ],
    ids=str,
)
def test_combinations_that_mean_nothing_are_refused(settings_):
    with pytest.raises(ValidationError):
        Sampling.model_validate(settings_)


def test_agreement_needs_text(frozen):
    scheduler = Scheduler(LocalEngine(frozen.model), frozen.tags, 1)
    with pytest.raises(UserError, match="decode"):
        scheduler.submit(Request([1], Sampling(branches=Branches(agree=1)), "0"))


@pytest.mark.parametrize(
    ("text", "conclusion"),
    [
        ("so 3 + 4 = 7.", "7"),
        ("thus \\boxed{\\frac{1}{2}} and 9 more", "\\frac{1}{2}"),
        ("Final Answer: 12\n", "12"),
        ("it is 1,000, then", "1,000"),
        ("nothing here", None),
    ],
)
def test_what_a_path_concludes_without_a_task(text, conclusion):
    assert concluded(text) == conclusion


def test_what_a_path_concludes_for_a_task():
    task = load_task("countdown-easy")
    assert concluded("3+4=7 no", task) == ""
    assert concluded("1 2 3", task) is None


def reward_of_length(outcome):
    """Differs between answers, also where no answer is right because the path that was has been closed."""
    return len(outcome.trace.token_ids) / 400


@pytest.mark.parametrize("branches", [Branches(spare=1), Branches(straggler=1.1), Branches(agree=1)], ids=str)
def test_rl_learns_from_answers_whose_paths_were_closed(branches):
    """What is scored is what was sampled, and the metrics count the closed paths."""
    policy = pr.load("models/tiny-parallel")
    budget = Budget(total=400, critical_path=60, path=30, forks=1)
    sampling = Sampling(paths=7, budget=budget, branches=branches)
    steps = pr.rl(policy, "countdown-hard", reward_of_length, steps=1, problems=8, group=4, sampling=sampling)
    metrics = next(iter(steps)).metrics
    assert metrics["closed_paths"] > 0 or branches.agree
    assert metrics["mismatch_max"] < 1e-3
