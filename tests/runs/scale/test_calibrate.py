"""The fit of a decode step, and the comparison with a rollout that was timed."""

import json

import numpy as np
import pytest
from common import make
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.errors import UserError
from parallel_r1.runs.scale.answers import Outline
from parallel_r1.runs.scale.calibrate import Measured, StepTime, check, fit_step, read_measured

STEPS = [{"batch": batch, "seconds": 0.01 + 0.002 * batch} for batch in (1, 4, 16)]


def timed(fixed, per_row, per_token, places):
    return [
        StepTime(batch=batch, context=context, seconds=fixed + per_row * batch + per_token * context)
        for batch, context in places
    ]


@given(
    st.floats(0.001, 1),
    st.floats(0, 1),
    st.floats(0, 0.1),
    st.sets(st.tuples(st.integers(1, 300), st.integers(0, 900)), min_size=3, max_size=8),
)
def test_the_constants_of_exact_steps_are_found(fixed, per_row, per_token, places):
    if len({batch for batch, _ in places}) < 2:
        return
    steps = timed(fixed, per_row, per_token, sorted(places))
    found = fit_step(steps)
    predicted = timed(*found, sorted(places))
    assert [step.seconds for step in predicted] == pytest.approx([step.seconds for step in steps], rel=1e-5)
    without = [StepTime(batch=step.batch, seconds=fixed + per_row * step.batch) for step in steps]
    assert fit_step(without) == pytest.approx((fixed, per_row, 0.0), rel=1e-4, abs=1e-7)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(0, 99), st.floats(0.01, 10)), min_size=2, max_size=8))
def test_no_other_constants_fit_better(steps):
    if len({batch for batch, _, _ in steps}) < 2:
        return
    batch, context, seconds = np.array(steps).T

    def loss(values):
        return float((((values[0] + values[1] * batch + values[2] * context) / seconds - 1) ** 2).sum())

    best = fit_step([StepTime(batch=one, context=two, seconds=three) for one, two, three in steps])
    assert min(best) >= 0
    for place in range(3):
        for change in (-1e-3, 1e-3):
            other = list(best)
            other[place] = max(0.0, other[place] + change)
            assert loss(best) <= loss(other) + 1e-9


def test_one_size_of_batch_is_not_enough():
    with pytest.raises(UserError, match="at least two sizes of batch; found only 4"):
        fit_step([StepTime(batch=4, seconds=1.0), StepTime(batch=4, seconds=1.1)])


def rl(tmp_path, *changes):
    return make(tmp_path, *changes).stages["rl"]


def test_a_rollout_is_predicted_from_its_steps(tmp_path):
    """Two answers on one server: 5 steps of two rows, then 7 of four paths, 8 tokens read again, 3 steps of two."""
    rollout = {"answers": [[5, [7, 4], 3]] * 2, "prompt": 0, "rows": 8, "seconds": 0.3}
    measured = Measured.model_validate({"steps": STEPS, "read_seconds_per_token": 0.001, "rollout": rollout})
    steps = 5 * 0.014 + 4 * 0.018 + 3 * 0.014 + 3 * 0.014
    stage = rl(tmp_path, "stages.rl.sampling.sampler=causal_join")
    compared = check(measured, stage)
    assert (compared.fixed, compared.per_row, compared.per_token) == pytest.approx((0.01, 0.002, 0.0))
    assert compared.comparisons[-1].predicted == pytest.approx(steps + 2 * 4 * 0.001)
    assert (compared.tokens, compared.read) == (38, 8)
    assert compared.to_json()["comparisons"][-1]["ratio"] == pytest.approx((steps + 0.008) / 0.3)
    isolated = check(measured, rl(tmp_path))
    assert isolated.comparisons[-1].predicted == pytest.approx(steps)
    saved = measured.model_copy(update={"rollout": measured.rollout.model_copy(update={"answers": None})})
    assert check(saved, stage, [Outline(0, (5, (7, 4), 3))] * 2).comparisons == compared.comparisons
    with pytest.raises(UserError, match="answers of the timed rollout"):
        check(saved, stage)
    assert len(check(measured.model_copy(update={"rollout": None}), stage).comparisons) == 3


def test_what_rows_see_counts_if_it_was_timed(tmp_path):
    """One answer: a prompt of 10 and 4 tokens, whose steps see 10, 11, 12 and 13 tokens."""
    steps = [{"batch": b, "context": c, "seconds": 0.01 + 0.002 * b + 1e-4 * c} for b, c in ((1, 0), (1, 50), (4, 90))]
    rollout = {"answers": [[4]], "prompt": 10, "rows": 8, "seconds": 0.1}
    compared = check(Measured.model_validate({"steps": steps, "rollout": rollout}), rl(tmp_path))
    assert compared.per_token == pytest.approx(1e-4)
    assert compared.comparisons[-1].predicted == pytest.approx(4 * 0.012 + 46e-4)
    assert compared.comparisons[1].case == "step of 1 that see 50"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "JSON in"),
        ("[]", "the whole"),
        ({"steps": STEPS[:1]}, "steps: "),
        ({"steps": [*STEPS, {"batch": 1, "seconds": -1}]}, "steps.3.seconds: "),
        ({"steps": STEPS, "rolout": {}}, "rolout: "),
        ({"steps": STEPS, "rollout": {"seconds": 1}}, "rollout.rows: "),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, content, said):
    file = tmp_path / "measured.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=said):
        read_measured(file)
    with pytest.raises(UserError, match="No such file"):
        read_measured(tmp_path / "none.json")
