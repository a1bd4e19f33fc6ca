"""Text that looks like structure but is none: forks that the policy writes where none may open, and stop texts in what
the runtime gives."""

import json
import random

import pytest
from common import draw

from parallel_r1.answers.rollout import from_json, to_json
from parallel_r1.answers.trace import TRUNK
from parallel_r1.generation.local.engine import LocalEngine
from parallel_r1.generation.rollouts import judge
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.tasks.countdown import EASY
from parallel_r1.training.rewards.language import parse_reward
from parallel_r1.training.rewards.outcome import Outcome

PROBLEM = next(EASY.problems("test", 0))
RIGHT = EASY.sequential_answer(PROBLEM, random.Random(0), 99).splitlines()[-1]
FORK = f"<Parallel><Path>{RIGHT}</Path><Path>b b</Path></Parallel>\n<Summary>c</Summary>"


def written(policy, text, sampling, *paths, **more):
    """The answer of a policy that writes a text in the trunk, and `paths` in those of every fork that opens, each up to
    and without its `</Path>`."""
    trunk = iter([*policy.encode(text), policy.tags.end])
    written: dict = {}

    def force(answer, address, size):
        if address == TRUNK:
            return next(trunk)
        left = written.setdefault(address, iter(policy.encode(paths[address[-1][1]])))
        return next(left, policy.tags.ids["</Path>"])

    prompt = policy.encode(PROBLEM.prompt)
    (trace,) = draw(LocalEngine(policy.model), policy.tags, [prompt], sampling, 0, force=force, **more)
    return trace


def budget(forks, depth=1):
    return Budget(total=300, critical_path=300, path=100, forks=forks, depth=depth)


@pytest.mark.parametrize("sampler", ["isolated", "causal_join"])
def test_a_fork_that_the_policy_writes_where_none_may_open_is_no_part_of_the_answer(frozen, sampler):
    trace = written(frozen, f"a{FORK}d", Sampling(sampler=sampler, budget=budget(forks=0)))
    assert [defect.kind for defect in trace.defects] == ["fork-as-text"]
    assert trace.token_ids[trace.defects[0].at] == frozen.tags.ids["<Path>"]
    assert (trace.forks, trace.finish, trace.well_formed) == (0, "stop", False)
    assert frozen.decode(trace.trunk_ids) == "a<Parallel></Parallel>\n<Summary>c</Summary>d"
    assert {span.address for span in trace.spans} == {TRUNK}  # it lies where it was drawn, so it is scored as drawn


@pytest.mark.parametrize("anywhere", [False, True])
def test_nothing_in_it_is_the_answer_or_earns_a_reward(frozen, anywhere):
    """Not even where a final answer may stand in a path: that is a path of a fork that was opened."""
    traces = [written(frozen, text, Sampling(budget=budget(forks=0))) for text in (FORK, f"{FORK}{RIGHT}")]
    inside, behind = judge([(PROBLEM, trace) for trace in traces], EASY, frozen, anywhere=anywhere)
    assert (inside.correct, behind.correct) == (False, True)
    assert from_json(json.loads(json.dumps(to_json(inside)))) == inside
    outcome = Outcome.of(behind)
    assert (outcome.parallel, outcome.forks, outcome.paths) == (False, 0, ())
    for reward in ("bonus(0.2)", "additive(accuracy(), right=1, wrong=1)", "count()", "diversity(right=1, wrong=1)"):
        assert sum(parse_reward(reward)(outcome).values()) == 1.0, reward
    assert parse_reward("parallel_and_accuracy()")(outcome) == {"accuracy": -1.0}


@pytest.mark.parametrize(
    ("text", "first", "forks"),
    [
        (f"<Parallel>s</Summary>{FORK}", "x", 1),  # after the only fork
        (f"<Parallel>{FORK}</Summary>", "x", 2),  # in a summary
        ("<Parallel>s</Summary>", f"x{FORK}", 2),  # in a path, where depth is 1
    ],
)
def test_a_fork_beyond_what_the_budget_allows_is_text(frozen, text, first, forks):
    trace = written(frozen, text, Sampling(budget=budget(forks)), first, "y")
    aside = [span for span in trace.spans if span.aside]
    assert "fork-as-text" in [defect.kind for defect in trace.defects]
    assert trace.forks == 1
    assert RIGHT in frozen.decode([token for span in aside for token in span.token_ids])
    assert RIGHT not in frozen.decode(trace.trunk_ids)


def test_a_stray_tag_in_a_path_takes_nothing_from_the_trunk(frozen):
    """Read as text alone, the second path and all that follows would lie inside the fork that the tag seems to open."""
    trace = written(frozen, f"<Parallel>s</Summary>{RIGHT}", Sampling(budget=budget(forks=1)), "x<Parallel>", "y")
    assert not trace.well_formed
    assert not any(span.aside for span in trace.spans)
    (rollout,) = judge([(PROBLEM, trace)], EASY, frozen)
    assert rollout.correct


def test_a_real_fork_inside_a_fork_as_text(frozen):
    """In a summary no fork may open; behind the end of the summary one may, though a path as text is open there."""
    text = f"<Parallel>s<Parallel><Path>a</Summary><Parallel>s</Summary>{RIGHT}</Path></Parallel>t"
    trace = written(frozen, text, Sampling(budget=budget(forks=2)), "x", "y")
    assert trace.forks == 2
    assert frozen.decode(trace.trunk_ids).endswith("</Parallel>t")
    assert RIGHT not in frozen.decode(trace.trunk_ids)
    (rollout,) = judge([(PROBLEM, trace)], EASY, frozen, anywhere=True)
    assert not rollout.correct


def test_a_stop_text_never_ends_an_answer_in_given_text(frozen):
    sampling = Sampling(stop=("\n",), budget=budget(forks=1))
    trace = written(frozen, "<Parallel>s</Summary>t\nu", sampling, "x", "y", decode=frozen.decode)
    assert frozen.decode(trace.token_ids).endswith("</Parallel>\n<Summary>s</Summary>t\n")
    assert (trace.finish, trace.forks) == ("stop", 1)
