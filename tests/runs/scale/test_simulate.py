"""The simulation against one that draws token by token, and against what must hold for any answers."""

from dataclasses import replace

import pytest
import token_by_token
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_r1.errors import UserError
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.runs.scale.answers import Lengths, Outline
from parallel_r1.runs.scale.costs import Costs
from parallel_r1.runs.scale.simulate import Cluster, simulate

ROOMY = Cluster(1, 10_000, 10**9)
forks = st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple)


@st.composite
def outlines(draw):
    parts = [draw(st.integers(0, 9))]
    for fork in draw(st.lists(forks, max_size=3)):
        parts += [fork, draw(st.integers(0, 9))]
    return Outline(draw(st.integers(0, 20)), tuple(parts))


seconds = st.floats(0, 1).map(lambda value: round(value, 3))
costs = st.builds(
    Costs,
    weights=seconds.map(lambda value: value * 10),
    held=seconds.map(lambda value: value / 10),
    row=seconds,
    seen=seconds.map(lambda value: value / 10),
    fixed=seconds,
    per_row=seconds,
    prefill=seconds,
    prefill_seen=seconds.map(lambda value: value / 100),
)
clusters = st.builds(
    Cluster,
    servers=st.just(1),
    rows=st.integers(1, 12),
    capacity=st.integers(200, 400),
    routing=st.sampled_from(["sticky", "spread"]),
    rereads=st.booleans(),
    straggler=st.sampled_from([None, 1.0, 1.3, 2.0]),
)
some = st.lists(outlines(), min_size=1, max_size=8)


@settings(max_examples=400, deadline=None)
@given(some, clusters, costs)
def test_a_server_takes_what_it_takes_token_by_token(answers, cluster, cost):
    drawn, slow = simulate(answers, cluster, cost), token_by_token.World(answers, cluster, cost)
    assert drawn.seconds == pytest.approx(slow.run(), rel=1e-9, abs=1e-12)
    assert (drawn.tokens, drawn.read) == (slow.tokens, slow.read)
    assert sorted(drawn.ends) == pytest.approx(sorted(slow.ends), rel=1e-9, abs=1e-12)
    assert sum(drawn.busy(drawn.seconds).values()) == pytest.approx(drawn.seconds, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("straggler", [None, 1.2])
@pytest.mark.parametrize("servers", [2, 3, 5])
def test_several_servers_take_what_they_take_token_by_token(servers, straggler):
    """Paths that are spread arrive in the middle of another server's steps, and are cut off there."""
    sampling = Sampling(paths=3, budget=Budget(total=400, critical_path=200, path=60, forks=3))
    answers = Lengths(prompt=40, parallel=0.9, forks=2.0).draw(sampling, 30, seed=servers)
    answers = [replace(answer, prompt=answer.prompt + index) for index, answer in enumerate(answers)]
    cost = Costs(1.0, 0.00137, 0.011, 0.0001, 0.113, 0.0071, 0.0123, 0.00001)
    for routing in ("sticky", "spread"):
        cluster = Cluster(servers, 9, 3000, routing, straggler=straggler)
        drawn, slow = simulate(answers, cluster, cost), token_by_token.World(answers, cluster, cost)
        assert drawn.seconds == pytest.approx(slow.run(), rel=1e-6)
        assert (drawn.tokens, drawn.read) == (slow.tokens, slow.read)


@settings(deadline=None)
@given(some, clusters, costs, st.integers(1, 4))
def test_no_token_is_lost(answers, cluster, cost, servers):
    cluster = replace(cluster, servers=servers, straggler=None)
    drawn = simulate(answers, cluster, cost)
    assert drawn.tokens == sum(answer.total for answer in answers)
    assert len(drawn.ends) == len(answers)
    assert drawn.read >= sum(answer.prompt for answer in answers if answer.total)


@settings(deadline=None)
@given(outlines(), st.integers(1, 12), st.integers(1, 5), costs)
def test_more_servers_are_never_slower_for_equal_answers(answer, count, servers, cost):
    taken = [
        simulate([answer] * count, replace(ROOMY, servers=number), cost).seconds for number in (servers, servers + 1)
    ]
    assert taken[1] <= taken[0] * (1 + 1e-9)


@settings(deadline=None)
@given(outlines(), costs, st.sampled_from([1.0, 1.5, 3.0]))
def test_a_cut_off_never_takes_longer(answer, cost, straggler):
    cut, whole = (simulate([answer], replace(ROOMY, straggler=factor), cost) for factor in (straggler, None))
    assert cut.seconds <= whole.seconds * (1 + 1e-9)
    assert cut.tokens <= whole.tokens


@settings(deadline=None)
@given(some, costs, st.sampled_from([1.0, 1.5, 3.0]))
def test_a_cut_off_of_many_answers_never_takes_longer_where_memory_bounds_a_step(answers, cost, straggler):
    cost = replace(cost, row=0.0, seen=0.0)
    cut, whole = (simulate(answers, replace(ROOMY, straggler=factor), cost).seconds for factor in (straggler, None))
    assert cut <= whole * (1 + 1e-9)


@settings(deadline=None)
@given(some, clusters, costs, st.integers(1, 4))
def test_no_rollout_is_shorter_than_its_longest_chain(answers, cluster, cost, servers):
    drawn = simulate(answers, replace(cluster, servers=servers, straggler=None), cost)
    longest = max(answer.critical_path for answer in answers)
    assert drawn.seconds >= longest * cost.least_step * (1 - 1e-9)


@settings(deadline=None)
@given(outlines(), costs)
def test_paths_at_once_are_never_slower_than_one_after_the_other(answer, cost):
    """Where the paths need not be read again."""
    cluster = replace(ROOMY, rereads=False)
    at_once, in_turn = (simulate([one], cluster, cost).seconds for one in (answer, answer.in_turn()))
    assert at_once <= in_turn * (1 + 1e-9)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 50), st.integers(0, 60), costs)
def test_the_closed_form_of_steps_is_their_sum(rows, context, count, cost):
    parts = [token_by_token.decode_step(cost, rows, context + rows * index) for index in range(count)]
    assert cost.steps(rows, context, count).seconds == pytest.approx(sum(parts), rel=1e-9, abs=1e-12)
    for wanted in (0.0, sum(parts) / 2, sum(parts) * 2):
        steps = cost.steps_until(rows, context, wanted, count)
        assert steps == count or cost.steps(rows, context, steps).seconds >= wanted
        assert steps == 0 or cost.steps(rows, context, steps - 1).seconds < wanted


def test_paths_are_read_again_by_hand():
    """Prompt 10, trunk 2, paths 3 and 5, summary 4; a step takes 1 second, a token that is read 0.1."""
    answer, cost = Outline(10, (2, (3, 5), 4)), Costs(fixed=1.0, prefill=0.1)
    assert simulate([answer], ROOMY, cost).seconds == pytest.approx(1.0 + 2 + 5 + 0.5 + 4)
    assert simulate([answer], replace(ROOMY, rereads=False), cost).seconds == pytest.approx(1.0 + 2 + 5 + 4)
    assert simulate([answer], replace(ROOMY, straggler=1.0), cost).seconds == pytest.approx(1.0 + 2 + 4 + 0.4 + 4)
    spread = simulate([answer], replace(ROOMY, servers=2, routing="spread"), cost)
    assert spread.read == 10 + 12 + 5  # the second path reads the prefix elsewhere, the summary reads that path
    assert spread.seconds == pytest.approx(1.0 + 2 + 1.2 + 5 + 0.5 + 4)


def test_an_answer_that_no_server_holds_is_refused():
    with pytest.raises(UserError, match="an answer of 30 tokens on a server; found room for 29"):
        simulate([Outline(10, (20,))], Cluster(1, 1, 29), Costs())


def test_a_large_cluster_is_simulated():
    """4,096 answers of about 1,500 tokens on 512 servers, in less than a second."""
    sampling = Sampling(paths=2, budget=Budget(total=3000, critical_path=3000, path=3000, forks=4))
    answers = Lengths().draw(sampling, 4096)
    for routing in ("sticky", "spread"):
        cluster = Cluster(512, 256, 300_000, routing)
        drawn = simulate(answers, cluster, Costs(3e-3, 6e-8, 1e-5, 1e-10, 4e-3, 1e-5, 2e-5))
        assert drawn.tokens == sum(answer.total for answer in answers)
