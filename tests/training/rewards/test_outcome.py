"""What a reward reads of an answer, with the texts of paths taken from spans, and how alike they are."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from strategies import anything, well_formed

from parallel_r1.answers.parser import parse
from parallel_r1.answers.rollout import Rollout, group, read_jsonl, write_jsonl
from parallel_r1.answers.shape import path_texts, paths_of_rollout, paths_of_text, self_bleu
from parallel_r1.answers.trace import Span, Trace
from parallel_r1.generation.rollouts import judge
from parallel_r1.tasks.countdown import EASY
from parallel_r1.training.rewards.base import apply_reward
from parallel_r1.training.rewards.language import parse_reward
from parallel_r1.training.rewards.outcome import Outcome

TWO = "<Parallel><Path>{}</Path><Path>{}</Path></Parallel>\n<Summary>s</Summary>"
PROBLEM = EASY.problem((3, 5, 7), 22)


def judged(policy, text, problem=PROBLEM):
    return judge([(problem, parse(policy.encode(text), policy.tags))], EASY, policy)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TWO.format("one two three four", "one two three four"), 1.0),
        (TWO.format("one two three four", "five six seven eight"), 0.0),
        ("<Parallel><Path>one two three four</Path></Parallel>\n<Summary>s</Summary>", 0.0),
        ("nothing", 0.0),
        (TWO.format("a b c d", "a b c d") + TWO.format("a b c d", "e f g h"), 0.5),
    ],
)
def test_how_alike_siblings_are(text, expected):
    assert self_bleu(paths_of_text(text)) == pytest.approx(expected, abs=1e-9)


def test_self_bleu_is_the_mean_of_bleu_against_the_siblings():
    from sacrebleu import sentence_bleu

    drawing = random.Random(0)
    paths = [" ".join(drawing.choice("abcd") for _ in range(9)) for _ in range(4)]
    text = "x<Parallel>" + "".join(f"<Path>{path}</Path>" for path in paths) + "</Parallel>\n<Summary>s</Summary>"
    scores = [sentence_bleu(path, [other for other in paths if other is not path]).score for path in paths]
    assert self_bleu(paths_of_text(text)) == pytest.approx(sum(scores) / 400)


def test_text_of_a_nested_fork_belongs_to_the_nested_fork():
    inner = TWO.format("c", "d")
    assert paths_of_text(TWO.format(f"a {inner} b", "e")) == (("a \ns b", "e"), ("c", "d"))


@given(well_formed | anything)
def test_paths_from_spans_are_those_of_the_text(frozen, text):
    rollout = judged(frozen, text)
    assert paths_of_rollout(rollout) == Outcome.of(rollout).paths == paths_of_text(text)


def test_a_tag_that_a_path_spelled_in_ordinary_tokens_is_no_structure():
    """The spans know that there was one fork with two paths, whatever the path says about tags."""
    spans = [((), "<Parallel>"), (((0, 0),), "<Path>"), (((0, 0),), "a</Path><Path>b</Path>")]
    spans += [(((0, 1),), "<Path>"), (((0, 1),), "c</Path>"), ((), "</Parallel>\n<Summary>")]
    trace = Trace((), tuple(Span((1,), address, True) for address, _ in spans))
    rollout = Rollout(PROBLEM, trace, tuple(text for _, text in spans), True, 5, 6)
    assert Outcome.of(rollout).paths == path_texts((*span, False) for span in spans) == (("ab", "c"),)
    assert paths_of_text(rollout.text) == (("a", "b", "c"),)


def test_an_outcome_has_everything_about_the_answer(frozen):
    rollout = judged(frozen, TWO.format("3*5=15", "15+7=22") + "\nFinal Answer: 3*5+7")
    outcome = Outcome.of(rollout, (rollout, judged(frozen, "none")), step=7)
    assert outcome.correct
    assert (outcome.forks, outcome.well_formed, outcome.parallel) == (1, True, True)
    assert (outcome.critical_path, outcome.total) == (rollout.critical_path, rollout.total)
    assert outcome.saved == 1 - rollout.critical_path / rollout.total > 0
    assert outcome.text == rollout.text
    assert outcome.paths == (("3*5=15", "15+7=22"),)
    assert outcome.problem is PROBLEM
    assert outcome.problem.answer == PROBLEM.answer
    assert outcome.trace is rollout.trace
    assert outcome.step == 7
    assert [member.correct for member in outcome.group] == [True, False]
    assert [member.step for member in outcome.group] == [7, 7]


def test_an_outcome_is_in_its_group():
    rollouts = [Rollout(PROBLEM, Trace((), ()), (), index == 1, 1, 1) for index in range(3)]
    outcomes = Outcome.of_group(rollouts, 2)
    assert outcomes == tuple(Outcome.of(rollout, rollouts, 2) for rollout in rollouts)
    assert [outcome.group[at] == replace(outcome, group=()) for at, outcome in enumerate(outcomes)] == [True] * 3
    assert len(Outcome.of(rollouts[0]).group) == 1


def test_no_token_saves_nothing():
    assert Outcome(False, critical_path=0, total=0).saved == 0


def test_a_group_gets_its_terms(frozen):
    texts = ["Final Answer: 3*5+7", TWO.format("a b c d", "a b c d") + "\nFinal Answer: 3*5+7", "none"]
    (members,) = group([judged(frozen, text) for text in texts])
    reward = parse_reward("switch(accuracy(), diversity(right=0.5), at=3)")
    assert [rollout.terms for rollout in apply_reward(members, reward, 3).rollouts] == [
        {"accuracy": 1.0},
        {"accuracy": 1.0},
        {"accuracy": -1.0},
    ]
    rewarded = apply_reward(members, reward, 4)
    expected = [(1, 0), (1, -0.5), (-1, 0)]
    for rollout, (accuracy, diversity) in zip(rewarded.rollouts, expected, strict=True):
        assert rollout.terms == pytest.approx({"accuracy": accuracy, "diversity": diversity})
    assert rewarded.problem is members.problem
    assert all(rollout.terms is None for rollout in members.rollouts)


def test_saved_answers_earn_the_same_without_a_tokenizer(frozen, tmp_path):
    """Read back, with and without the texts of spans, which earlier versions did not save."""
    texts = [TWO.format("a b c d e", "a b c d f") + "\nFinal Answer: 3*5+7", "x" + TWO.format("a", "b"), "none"]
    other = EASY.problem((3, 5, 8), 23)
    rollouts = [judged(frozen, text, problem) for text in texts for problem in (PROBLEM, other)]
    reward = parse_reward("diversity(bonus(0.2), wrong=0.3)")
    earned = [apply_reward(members, reward, 1) for members in group(rollouts)]
    assert any(rollout.terms["diversity"] < 0 for members in earned for rollout in members.rollouts)
    file = tmp_path / "r.jsonl"
    write_jsonl(file, rollouts)
    assert [apply_reward(members, reward, 1) for members in group(list(read_jsonl(file)))] == earned
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        for span in row["spans"]:
            del span["text"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    old = [apply_reward(members, reward, 1) for members in group(list(read_jsonl(file)))]
    assert [[r.terms for r in members.rollouts] for members in old] == [
        [r.terms for r in members.rollouts] for members in earned
    ]
