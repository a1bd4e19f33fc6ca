"""The files of a stage for verl, what is read of its run, and rewards of groups whose answers come one by one."""

import asyncio
import json
from dataclasses import replace
from itertools import islice

import pytest
from common import judged
from conftest import ROOT

from parallel_r1 import models
from parallel_r1.answers.rollout import Group, Problem, to_json
from parallel_r1.errors import UserError
from parallel_r1.evaluation.measure import summarise
from parallel_r1.integrations.verl import metrics
from parallel_r1.integrations.verl.judge import Groups, row
from parallel_r1.integrations.verl.settings import problem_from_json, problem_to_json, read_settings
from parallel_r1.integrations.verl.stage import check_prompts, write_stage
from parallel_r1.integrations.verl.train import first_error
from parallel_r1.models.policy import load_outline
from parallel_r1.runs.recipe_file import load_recipe
from parallel_r1.tasks.base import problem_stream
from parallel_r1.tasks.load import load_task
from parallel_r1.training.loops import describe
from parallel_r1.training.rewards.base import apply_reward
from parallel_r1.training.rewards.language import parse_reward

CHANGES = ["defaults.sampling.sampler='causal_join'", "evaluation.problems=10", "stages.hard.steps=3"]


def rows_of(path):
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def test_problems_are_those_that_one_process_draws_in_the_same_order(tmp_path):
    recipe = load_recipe(ROOT / "recipes/tiny/demo.toml", CHANGES)
    policy = load_outline(recipe.model.path)
    files = write_stage(recipe, "hard", policy, tmp_path / "model", tmp_path / "stage")
    stream = problem_stream(load_task("countdown-hard"), "train", recipe.seed_of("hard"))
    expected = list(islice(stream, 3 * 24))
    rows = rows_of(files.train)
    assert [problem_from_json(each["extra_info"]["problem"]) for each in rows] == expected
    assert [each["extra_info"]["index"] for each in rows] == list(range(72))
    assert rows[0]["prompt"] == [{"role": "user", "content": expected[0].prompt}]
    assert {each["extra_info"]["split"] for each in rows} == {"train"}
    validation = rows_of(files.validation)
    assert (len(validation), files.validated) == (10, 10)
    assert files.prompt == max(len(policy.encode_prompt(problem.prompt)) for problem in expected)
    settings = read_settings(str(files.settings))
    assert settings.sampling == recipe.stages["hard"].sampling
    assert settings.ends == tuple(sorted(policy.tags.eos))
    assert settings.reward.__str__() == str(parse_reward(recipe.stages["hard"].reward))
    assert f'"{files.settings}"' in files.loop.read_text()


def test_prompts_that_verl_would_cut_are_refused(tmp_path):
    recipe = load_recipe(ROOT / "recipes/tiny/demo.toml", CHANGES)
    files = write_stage(recipe, "hard", load_outline(recipe.model.path), tmp_path, tmp_path)
    check_prompts(files, 512, 400)
    with pytest.raises(UserError, match="within the model's 410 positions"):
        check_prompts(files, 410, 400)


def test_a_problem_survives_as_text():
    problem = Problem("an id", "é \ud7ff\n", "\\frac12", "set", "key", (("system", "be brief"), ("user", "hi")))
    assert problem_from_json(problem_to_json(problem)) == problem


def test_a_group_is_rewarded_together(frozen):
    """Answers come in any order; each gets what `apply_reward` pays it among all of its group."""
    reward = parse_reward("spare_paths(right=0.1)")
    rollouts = [judged("p", correct=number != 1, forked=number == 2) for number in range(4)]
    expected = apply_reward(Group(rollouts[0].problem, tuple(rollouts)), reward, 3).rollouts

    async def run():
        groups = Groups()
        order = [2, 0, 3, 1]
        tasks = {number: groups.reward("g", number, rollouts[number], 4, reward, 3) for number in order}
        done = await asyncio.gather(*tasks.values())
        assert not groups.waiting
        return dict(zip(order, done, strict=True))

    paid = asyncio.run(run())
    assert [paid[number] for number in range(4)] == list(expected)
    assert len({rollout.reward for rollout in expected}) > 1


def test_one_answer_that_fails_lets_its_group_go():
    async def run():
        groups = Groups()
        waiting = asyncio.gather(
            *(groups.reward("g", number, judged("p", True), 3, parse_reward("accuracy()"), 1) for number in range(2)),
            return_exceptions=True,
        )
        await asyncio.sleep(0)
        groups.fail("g", ConnectionError("no server"))
        groups.fail("g", ConnectionError("no server"))
        return await waiting

    assert all("another answer of the group failed: no server" in str(error) for error in asyncio.run(run()))


def test_an_answer_that_fails_first_lets_those_go_that_come_later():
    async def run():
        groups = Groups()
        groups.fail("g", ConnectionError("no server"))
        calls = [groups.reward("g", number, judged("p", True), 3, parse_reward("accuracy()"), 1) for number in (0, 1)]
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)

    assert all("another answer of the group failed: no server" in str(error) for error in asyncio.run(run()))


def test_a_reward_that_fails_is_said_to_the_whole_group():
    def broken(outcome):
        raise ZeroDivisionError("mine")

    async def run():
        groups = Groups()
        calls = [groups.reward("g", number, judged("p", True), 2, broken, 1) for number in range(2)]
        return await asyncio.gather(*calls, return_exceptions=True)

    errors = asyncio.run(run())
    assert any(isinstance(error, ZeroDivisionError) for error in errors)
    assert all("mine" in str(error) for error in errors)


def drawn(problem, number, correct):
    """An answer whose tokens have log-probabilities."""
    rollout = judged(problem, correct, forked=number % 2 == 0, total=10 + number)
    values = tuple(-0.1 * (place + number) for place in range(1))
    spans = tuple(replace(span, logprobs=values, raw_logprobs=values) for span in rollout.trace.spans)
    return replace(rollout, trace=replace(rollout.trace, spans=spans))


@pytest.fixture
def answers():
    reward = parse_reward("bonus(0.2)")
    groups = [
        [drawn(f"p{index}", number, correct=(index + number) % 3 == 0) for number in range(4)] for index in range(3)
    ]
    return [apply_reward(Group(members[0].problem, tuple(members)), reward, 1) for members in groups]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))


COUNTS = {"read": 5, "cached": 3, "decoded": 4, "closed_paths": 0, "repeated": 1, "began": 100.5, "ended": 103.0}


def test_figures_of_a_step_are_those_of_one_process(tmp_path, answers):
    rows = [
        {"group": index, "number": number, **row(rollout), **COUNTS}
        for index, group in enumerate(answers)
        for number, rollout in enumerate(group.rollouts)
    ]
    write(tmp_path / "figures/step-4.11.jsonl", rows[:7])
    write(tmp_path / "figures/step-4.12.jsonl", rows[7:])
    write(tmp_path / "figures/step-40.12.jsonl", rows[:1])
    logged = metrics.row(
        tmp_path,
        4,
        {
            "actor/pg_loss": 0.5,
            "timing_s/step": 2.0,
            "actor/parallel_r1/mismatch_max": 0.1,
            "actor/parallel_r1/mismatch_sum": 3.0,
            "actor/parallel_r1/mismatch_tokens": 60.0,
        },
    )
    rollouts = [rollout for group in answers for rollout in group.rollouts]
    expected = describe(rollouts)
    assert {name: logged[name] for name in expected} == pytest.approx(expected)
    assert (logged["loss"], logged["mismatch_max"], logged["decoded"]) == (0.5, 0.1, 48)
    assert logged["sampling_seconds"] == 2.5
    assert logged["mismatch_mean"] == 0.05
    assert logged["tokens_per_second"] == sum(rollout.total for rollout in rollouts) / 2


def test_an_answer_that_was_drawn_twice_counts_once(tmp_path, answers):
    """A run that was killed takes the step again."""
    rollout = answers[0].rollouts[0]
    first = {"group": 0, "number": 0, **row(rollout), **COUNTS, "total": 99.0}
    write(tmp_path / "figures/step-1.11.jsonl", [first])
    write(tmp_path / "figures/step-1.12.jsonl", [{**first, "total": 10.0}])
    assert [each["total"] for each in metrics.figures(tmp_path, 1)] == [10.0]


def test_a_later_launch_replaces_the_steps_that_it_took_again(tmp_path):
    write(tmp_path / "verl-1.jsonl", [{"step": step, "data": {"launch": 1}} for step in (1, 2, 3)])
    write(tmp_path / "verl-2.jsonl", [{"step": 3, "data": {"launch": 2}}])
    (tmp_path / "verl-2.jsonl").open("a").write('{"step": 4, "da')
    assert {step: data["launch"] for step, data in metrics.steps(tmp_path).items()} == {1: 1, 2: 1, 3: 2}
    (tmp_path / "verl-2.log").touch()
    assert metrics.next_launch(tmp_path).name == "verl-3.jsonl"


def test_steps_after_the_last_saved_one_are_dropped_before_a_run_goes_on(tmp_path):
    write(tmp_path / "verl-1.jsonl", [{"step": step, "data": {"launch": 1}} for step in (1, 2, 3)])
    (tmp_path / "states").mkdir()
    assert metrics.saved_step(tmp_path / "states") == 0
    (tmp_path / "states/latest_checkpointed_iteration.txt").write_text("2")
    metrics.rewind(tmp_path, metrics.saved_step(tmp_path / "states"))
    assert list(metrics.steps(tmp_path)) == [1, 2]


def test_validation_is_measured_from_its_answers(tmp_path, answers):
    rows = [
        {"group": index, "number": number, "answer": to_json(rollout)}
        for index, group in enumerate(answers)
        for number, rollout in enumerate(group.rollouts)
    ]
    write(tmp_path / "answers/validation-2.7.jsonl", rows)
    found = metrics.validation(tmp_path, 2, "hard")
    expected = summarise([rollout for group in answers for rollout in group.rollouts], "hard")
    assert (found["mean"], found["passed"], found["samples"]) == (expected.mean, expected.passed, 4)
    assert metrics.validation(tmp_path, 3, "hard") is None


def test_the_first_error_of_a_log_is_the_one_to_read(tmp_path):
    log = tmp_path / "verl-1.log"
    log.write_text(
        "\x1b[36m(AgentLoopWorkerTQ pid=12)\x1b[0m Traceback (most recent call last):\n"
        "\x1b[36m(AgentLoopWorkerTQ pid=12)\x1b[0m parallel_r1.errors.UserError: expected this; found that\n"
        "RuntimeError: Sync replay buffer selected terminal groups\n"
    )
    assert first_error(log) == "parallel_r1.errors.UserError: expected this; found that"
    log.write_text("all is well\n")
    assert first_error(log) == "no exception in its log"


def test_the_models_ends_reach_the_loop(tmp_path):
    policy = models.load(str(ROOT / "models/tiny-base"), device="cpu")
    outline = load_outline(str(ROOT / "models/tiny-base"))
    assert policy.tags == outline.tags
