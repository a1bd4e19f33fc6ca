"""Drawing under every schema: the runtime's part, exactness, the number of paths, and what breaks."""

from dataclasses import replace

import oracles
import pytest
from common import draw
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_r1.answers.parser import parse
from parallel_r1.answers.schemas import DEFAULT, SCHEMAS
from parallel_r1.answers.visibility import latency, layout
from parallel_r1.errors import UserError
from parallel_r1.evaluation.parity import measure
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.local.engine import LocalEngine
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Budget, Engine, Sampling

EVERY = pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
COPIES = replace(SCHEMAS["threadweaver"], name="copies", head="\n{number}. {item}\n")
BIG = Budget(total=600, critical_path=300, path=40, forks=2)


def written(policy, text):
    """A force under which the trunk writes a text, piece by piece, and every path `ab` and its end."""
    ids = policy.encode(text)
    close, path = policy.tags.closing("path"), policy.encode("ab")

    def force(address, size):
        if not address:
            return force.trunk.pop(0) if force.trunk else policy.tags.end
        left = force.paths.setdefault(address, [*path, close])
        return left.pop(0) if left else close

    force.trunk, force.paths = list(ids), {}
    return force


def drawn(policy, before, after="", **options):
    """The answer of which the trunk writes `before`, up to a fork, and `after` what follows the join."""
    sampling = Sampling(budget=BIG, **{"paths": 4, **options})
    request = Request(policy.encode("Use 3.\n"), sampling, "0", written(policy, before + after))
    (trace,) = make_generator(policy).traces([request])
    return trace


def announced(schema, items):
    """What the policy writes to open a fork."""
    if not schema.plan:
        return schema.opener
    lines = "".join(f"{schema.item[0]}{item}{schema.item[1]}" for item in items)
    return (schema.fork[0] if schema.fork else "") + schema.plan[0] + lines + schema.plan[1]


@pytest.mark.parametrize("schema", [*SCHEMAS.values(), COPIES], ids=lambda schema: schema.name)
def test_the_runtime_writes_what_the_schema_says(tagged, schema):
    policy = tagged(schema)
    end = schema.summary[1] if schema.summary else ""
    trace = drawn(policy, announced(schema, ["x", "y", "z"]), "so" + end + " on", paths=3)
    text = policy.decode(trace.token_ids)
    paths = ["ab"] * 3
    expected = "".join(
        [
            announced(schema, ["x", "y", "z"]),
            *(
                schema.stub + schema.head_of(number, item) + path + schema.path[1]
                for number, (path, item) in enumerate(zip(paths, "xyz", strict=True), 1)
            ),
            schema.join,
            "so",
            end,
            schema.tail,
            " on",
        ]
    )
    assert text == expected
    assert trace.defects == ()
    assert (trace.forks, trace.schema, trace.finish) == (1, schema, "stop")
    read = parse(trace.token_ids, policy.tags)
    assert [span.address for span in read.spans for _ in span.token_ids] == [
        span.address for span in trace.spans for _ in span.token_ids
    ]


@pytest.mark.parametrize("schema", [*SCHEMAS.values(), COPIES], ids=lambda schema: schema.name)
@pytest.mark.parametrize("sampler", ["isolated", "causal_join", "sequential"])
def test_every_pair_is_measured_and_the_exact_one_is_exact(tagged, schema, sampler):
    found = measure(tagged(schema), sampler, ["isolated", "replay", "causal"], 3, answers=3, forks=2)
    for each in found:
        assert each.after_fork is not None
        assert each.after_join is not None
        if each.exact:
            assert each.max_abs <= 1e-4
        elif sampler != "sequential":
            assert each.max_abs > 1e-3


@settings(max_examples=25)
@given(st.sampled_from([*SCHEMAS.values(), COPIES]), st.integers(0, 10**6), st.integers(1, 5))
def test_drawn_trees_equal_the_oracle(tagged, schema, seed, paths):
    """Answers of random weights with forced forks: addresses, positions, masks, and the budget."""
    policy = tagged(schema)
    opener, close = announced(schema, [str(n) for n in range(1, paths + 1)]), policy.tags.closing("path")
    ids = policy.encode("a" + opener)
    end = policy.tags.closing("summary")

    def force(index, address, size):
        if address:
            return close if (size + seed) % 7 == 6 else None
        place = size % (len(ids) + 9)
        return ids[place] if place < len(ids) else end if place == len(ids) + 7 else None

    budget = Budget(total=30 + seed % 200, critical_path=25 + seed % 90, path=4 + seed % 30, forks=3)
    sampling = Sampling(paths=paths, budget=budget)
    (trace,) = draw(LocalEngine(policy.model), policy.tags, [policy.encode("Use 3.\n")], sampling, seed, force=force)
    addresses = [span.address for span in trace.spans for _ in span.token_ids]
    laid = layout(trace.runs)
    assert laid.positions.tolist() == oracles.positions(addresses)
    assert laid.mask().tolist() == oracles.mask(addresses)
    assert len(trace.token_ids) <= budget.total
    assert latency(trace) <= budget.critical_path


@EVERY
def test_items_open_as_many_paths(tagged, schema):
    if not schema.plan:
        return
    policy = tagged(schema)
    end = schema.summary[1] if schema.summary else ""
    for count in (1, 2, 4):
        trace = drawn(policy, announced(schema, ["x"] * count), "so" + end)
        assert len({span.address for span in trace.spans if span.address}) == count
    more = drawn(policy, announced(schema, ["x"] * 9), "so" + end)
    assert len({span.address for span in more.spans if span.address}) == 4
    assert "plan-mismatch" in [defect.kind for defect in more.defects]


@EVERY
def test_a_broken_plan_is_a_defect_and_costs_at_most_the_budget(tagged, schema):
    if not schema.plan:
        return
    policy = tagged(schema)
    empty = drawn(policy, announced(schema, []), "so")
    assert "empty-plan" in [defect.kind for defect in empty.defects]
    assert len({span.address for span in empty.spans if span.address}) == 4
    for text in (schema.plan[1], schema.item[0] + schema.plan[1], schema.plan[0] * 2 + schema.plan[1] * 2):
        trace = drawn(policy, text, "so")
        assert not trace.well_formed
        assert trace.forks <= 1
    huge = drawn(policy, announced(schema, ["x"] * 150), "so", paths=64)
    assert len(huge.token_ids) <= BIG.total


def test_the_policy_draws_the_number_of_paths(tagged):
    policy = tagged(DEFAULT)
    for text, count in (("<Parallel>3", 3), ("<Parallel>8", 5), ("<Parallel>1", 2), ("<Parallel>x", 2)):
        trace = drawn(policy, text, "so</Summary>", paths=(2, 5))
        assert len({span.address for span in trace.spans if span.address}) == count
        assert trace.well_formed == (text == "<Parallel>3")
    (found,) = measure(policy, "isolated", ["isolated"], 3, answers=3)
    assert found.max_abs <= 1e-4


def test_a_number_that_the_budget_has_no_room_for_opens_fewer_paths(tagged):
    policy = tagged(DEFAULT)
    sampling = Sampling(paths=(1, 8), budget=Budget(total=24, critical_path=20, path=10))
    request = Request(policy.encode("Use 3.\n"), sampling, "0", written(policy, "<Parallel>8so</Summary>"))
    (trace,) = make_generator(policy).traces([request])
    assert 1 <= len({span.address for span in trace.spans if span.address}) < 8
    assert len(trace.token_ids) <= 24


def test_numbers_that_are_no_tokens_are_refused(tagged):
    policy = tagged(DEFAULT)
    policy = replace(
        policy, tags=replace(policy.tags, counts={token: n for token, n in policy.tags.counts.items() if n < 4})
    )
    with pytest.raises(UserError, match="a token for every number of paths from 1 to 8; found none for 4"):
        drawn(policy, "a", paths=(1, 8))


@EVERY
def test_preempted_answers_are_the_same(tagged, schema):
    policy = tagged(schema)
    ids, close = policy.encode("a" + announced(schema, ["x", "y"])), policy.tags.closing("path")

    def force(address, size):
        if address:
            return close if size >= 9 else None
        return ids[size] if size < len(ids) else None

    # Greedy: what is read again is equal but for rounding, which moves a draw across the border of two tokens once in
    # ten thousand.
    sampling = Sampling(paths=2, budget=BIG, temperature=0)
    requests = [Request(policy.encode("Use 3.\n" * (1 + n)), sampling, f"{n}", force) for n in range(8)]
    free, tight = make_generator(policy, Engine()), make_generator(policy, Engine(memory=BIG.total + 60))
    traces = free.traces(requests)
    assert all(trace.forks for trace in traces)
    assert [trace.token_ids for trace in tight.traces(requests)] == [trace.token_ids for trace in traces]
    assert tight.counts.preempted
