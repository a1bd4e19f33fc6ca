"""Evaluations in a folder: what is on disk counts, the rest is drawn, nothing is mixed."""

import json
from dataclasses import replace

import pytest

from parallel_r1.answers.rollout import Problem, read_jsonl
from parallel_r1.errors import UserError
from parallel_r1.evaluation.answer_file import AnswerFile
from parallel_r1.evaluation.entrants import differing_settings, read_entrant
from parallel_r1.evaluation.folder import EvaluationFolder, default_folder, grader_digest, scaled, settings_of
from parallel_r1.evaluation.measure import Result, draw, held_out, summarise
from parallel_r1.evaluation.session import Session
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.settings import Budget, Engine, Sampling
from parallel_r1.models.policy import digest
from parallel_r1.tasks.countdown import EASY
from parallel_r1.tasks.prompts import Prompt

SAMPLING = Sampling(paths=2, budget=Budget(critical_path=20, path=8, total=40))


class Counting:
    """A generator that counts what is drawn, and fails after so many answers."""

    def __init__(self, policy, most=10**9):
        self.generator, self.left, self.seeds = make_generator(policy), most, []

    def traces(self, requests, *, on_token=None, on_trace=None):
        def counted(index, trace):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.seeds.append(requests[index].seed)
            if on_trace:
                on_trace(index, trace)

        return self.generator.traces(requests, on_trace=counted)


def evaluation(policy, file, generator=None, samples=3, seed=0, problems=4):
    problems = held_out(EASY, problems, seed)
    return draw(policy, EASY, problems, samples, SAMPLING, seed, generator=generator or Counting(policy), file=file)


def tokens(rollout):
    """What does not depend on how many answers are drawn at once, as the last digit of a log-probability does."""
    return rollout.trace.token_ids, rollout.correct, rollout.reading


def test_answers_on_disk_equal_answers_in_memory(frozen, tmp_path):
    file = AnswerFile(tmp_path / "a.jsonl")
    drawn = evaluation(frozen, file)
    assert drawn == list(read_jsonl(file.path)) == list(file.read().values())
    assert drawn == evaluation(frozen, None)
    rows = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [(row["sample"], row["seed"]) for row in rows] == [(i, f"0/{i}") for i in range(12)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("ended", [0, 1, 5, 11])
def test_only_what_is_missing_is_drawn_after_an_interruption(frozen, tmp_path, monkeypatch, ended):
    monkeypatch.setattr("parallel_r1.evaluation.answer_file.BATCH", 1)
    file = AnswerFile(tmp_path / "a.jsonl")
    with pytest.raises(KeyboardInterrupt):
        evaluation(frozen, file, Counting(frozen, ended))
    assert len(file.read()) == ended
    if ended > 1:  # killed in the middle of a line
        part = next(tmp_path.glob("*.part.jsonl"))
        part.write_bytes(part.read_bytes()[:-20])
        ended -= 1
        assert len(file.read()) == ended
    again = Counting(frozen)
    drawn, undisturbed = evaluation(frozen, file, again), evaluation(frozen, None)
    assert [tokens(rollout) for rollout in drawn] == [tokens(rollout) for rollout in undisturbed]
    assert len(again.seeds) == 12 - ended
    assert list(read_jsonl(file.path)) == drawn
    assert not list(tmp_path.glob("*.part.jsonl"))
    nothing = Counting(frozen)
    evaluation(frozen, file, nothing)
    assert not nothing.seeds


def test_answers_to_other_prompts_are_refused(frozen, tmp_path):
    file = AnswerFile(tmp_path / "a.jsonl")
    evaluation(frozen, file)
    before = file.path.read_bytes()
    for changed in ({"seed": 1}, {"problems": 3}):
        with pytest.raises(UserError, match="answers to the prompts of this evaluation"):
            evaluation(frozen, file, **changed)
    assert file.path.read_bytes() == before
    file.path.write_text("{}\n")
    with pytest.raises(UserError, match=r"a\.jsonl:1: KeyError"):
        file.read()


def session(policy, **changes):
    values = {"budgets": (), "alone": 0, "samples": {EASY.name: 2}, **changes}
    return Session("m", [EASY], problems=4, seed=0, sampling=SAMPLING, prompt=Prompt(), **values)


def settings(**changes):
    values = {
        "model": "m",
        "samples": {EASY.name: 2},
        "problems": 4,
        "seed": 0,
        "find": "strict",
        "sampling": SAMPLING,
        "prompt": Prompt(),
        "engine": Engine(),
    }
    return settings_of(**(values | changes)) | {"grader": "g", "weights": "w"}


def test_a_folder_goes_on_with_the_same_settings_only(tmp_path):
    folder = EvaluationFolder(tmp_path / "e")
    folder.open(settings())
    folder.close()
    folder.open(settings(model="moved/m"))
    folder.close()
    for changed, said in (
        ({"seed": 1}, "seed = 1 instead of 0"),
        ({"samples": {EASY.name: 3}}, "samples"),
        ({"sampling": SAMPLING.model_copy(update={"temperature": 0.5})}, "sampling"),
        ({"prompt": Prompt(instruction="x")}, "prompt"),
    ):
        with pytest.raises(UserError, match=f"{said}.*results of different settings are not mixed"):
            folder.check(settings(**changed))
    with pytest.raises(UserError, match="weights = other"):
        folder.check(settings() | {"weights": "other"})
    with pytest.raises(UserError, match="--regrade"):
        folder.check(settings() | {"grader": "other"})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"other with notes\.txt"):
        EvaluationFolder(tmp_path / "other").open(settings())
    with pytest.raises(UserError, match="a finished evaluation"):
        folder.results()


def test_the_default_folder_depends_on_the_settings_alone():
    one = default_folder(settings())
    assert one == default_folder(settings())
    assert one != default_folder(settings(seed=1))
    assert str(one).startswith("evaluations/m-")


def test_several_budgets_scale_the_whole_budget():
    assert scaled(SAMPLING, 40).budget == Budget(critical_path=40, path=16, total=80)
    assert scaled(SAMPLING, 20) == SAMPLING
    assert scaled(SAMPLING, 1).budget.path == 1


def test_a_session_measures_times_and_goes_on(frozen, tmp_path):
    folder = EvaluationFolder(tmp_path / "e")
    asked = session(frozen, budgets=(10, 20), alone=3)
    measured = asked.draw(frozen, make_generator(frozen), folder)
    assert [(each.budget, len(each.alone)) for each in measured] == [(10, 3), (20, 3)]
    assert all(each.loaded > 0 for each in measured)
    assert measured[0].result.critical_path <= 10 < measured[1].result.critical_path <= 20
    folder.save(measured, settings(budgets=(10, 20)))
    assert folder.results() == measured
    assert asked.draw(frozen, make_generator(frozen), folder) == measured  # times are those of the first


class Exam:
    """Problems of one id, with references that can be corrected."""

    name = "exam"

    def __init__(self, references, prompts=("a", "b", "c", "d")):
        self.listed = [
            Problem("same", f"{prompt} = ?\n", reference, self.name)
            for prompt, reference in zip(prompts, references, strict=True)
        ]

    def problems(self, split, seed):
        return iter(self.listed)

    def verify(self, problems, answers):
        return [problem.answer == "right" for problem in problems]


def test_judging_again_knows_answers_by_their_place(frozen, tmp_path):
    """Problems may share an id; a corrected reference counts; other problems are refused, and nothing is written."""
    folder = EvaluationFolder(tmp_path / "e")

    def asked(*references, **more):
        return replace(session(frozen, samples={"exam": 2}), tasks=[Exam(references, **more)])

    first = asked("right", "no", "no", "no")
    (before,) = first.run(frozen, Engine(), folder, first.settings(Engine()))
    assert before.result.mean == 0.25
    assert first.judge_again(folder, first.settings(Engine())) == [before]
    corrected = asked("right", "right", "no", "no")
    with pytest.raises(UserError, match="another one of problem 'same', right; give --regrade"):
        corrected.run(frozen, Engine(), folder, corrected.settings(Engine()))
    (after,) = corrected.judge_again(folder, corrected.settings(Engine()))
    assert after.result.mean == 0.5
    kept = folder.answers("exam").path.read_bytes()
    for other in (asked("no", "no", "no", "no", prompts="bacd"), asked("no", "no", prompts="ab")):
        with pytest.raises(UserError, match="put the problems back"):
            other.judge_again(folder, other.settings(Engine()))
    assert folder.answers("exam").path.read_bytes() == kept


def test_an_unfinished_evaluation_goes_on_with_another_grader_once_it_was_judged_again(frozen, tmp_path, monkeypatch):
    monkeypatch.setattr("parallel_r1.evaluation.answer_file.BATCH", 1)
    folder, asked = EvaluationFolder(tmp_path / "e"), session(frozen)
    old = asked.settings(Engine()) | {"grader": "old", "weights": digest(frozen)}
    folder.open(old)
    with pytest.raises(KeyboardInterrupt):
        asked.draw(frozen, Counting(frozen, 3), folder)
    folder.close()
    with pytest.raises(UserError, match="give --regrade first"):
        asked.run(frozen, Engine(), folder, asked.settings(Engine()))
    assert asked.judge_again(folder, asked.settings(Engine())) == []
    (measured,) = asked.run(frozen, Engine(), folder, asked.settings(Engine()))
    assert measured.loaded is None  # two sittings
    assert measured.result == session(frozen).draw(frozen, make_generator(frozen), folder)[0].result


def test_more_answers_are_timed_alone_if_they_are_asked_for(frozen, tmp_path):
    folder = EvaluationFolder(tmp_path / "e")
    settings_now = session(frozen).settings(Engine())
    (first,) = session(frozen).run(frozen, Engine(), folder, settings_now)
    (second,) = session(frozen, alone=2).run(frozen, Engine(), folder, settings_now)
    assert (len(first.alone), len(second.alone)) == (0, 2)
    assert first.loaded == second.loaded > 0
    assert not (folder.path / ".lock").exists()


def test_what_cannot_be_asked_leaves_no_folder(frozen, tmp_path):
    folder, asked = EvaluationFolder(tmp_path / "e"), session(frozen, budgets=(10, 10**6))
    with pytest.raises(UserError, match="the model has"):
        asked.run(frozen, Engine(), folder, asked.settings(Engine(), "strict"))
    assert not folder.path.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a folder for --out"):
        EvaluationFolder(tmp_path / "file").open(settings())


@pytest.mark.parametrize("text", ["[1]", "5", "{", "[]", '[{"result": {"a": 1}}]', '{"a": 1}'])
def test_damaged_files_of_a_folder_are_one_line_and_cost_no_answer(frozen, tmp_path, text):
    folder, asked = EvaluationFolder(tmp_path / "e"), session(frozen)
    settings_now = asked.settings(Engine())
    (measured,) = asked.run(frozen, Engine(), folder, settings_now)
    whole = (folder.path / "settings.json").read_text()
    (folder.path / "settings.json").write_text(text)
    with pytest.raises(UserError, match="put it back as it was; the answers beside it are whole"):
        asked.run(frozen, Engine(), folder, settings_now)
    (folder.path / "settings.json").write_text(whole)
    (folder.path / "results.json").write_text(text)
    with pytest.raises(UserError, match="remove it and give the command of the evaluation again"):
        asked.run(frozen, Engine(), folder, settings_now)
    (folder.path / "results.json").unlink()
    assert asked.run(frozen, Engine(), folder, settings_now)[0].result == measured.result


def test_what_differs_between_evaluations_is_said_and_what_is_missing_is_refused(frozen, tmp_path):
    folders = [EvaluationFolder(tmp_path / name) for name in "ab"]
    for folder, grader in zip(folders, ("old", "new"), strict=True):
        session(frozen).run(frozen, Engine(), folder, settings() | {"grader": grader})
    entrants = [read_entrant(folder.path.name, folder.path) for folder in folders]
    assert differing_settings(entrants) == ["grader differs: a old; b new"]
    file = folders[0].answers(EASY.name).path
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(UserError, match=r"8 answers in .*; found 5; give the command of the evaluation again"):
        read_entrant("a", folders[0].path)


def test_judging_again_uses_the_verifier_of_today(frozen, tmp_path):
    folder, asked = EvaluationFolder(tmp_path / "e"), session(frozen)
    measured = asked.draw(frozen, make_generator(frozen), folder)
    folder.path.mkdir(exist_ok=True)
    settings_now = asked.settings(Engine())
    folder.save(measured, settings_now)
    assert asked.judge_again(folder, settings_now) == measured
    generous = replace_verify(asked, lambda problems, answers: [True] * len(answers))
    (better,) = generous.judge_again(folder, settings_now | {"grader": "generous"})
    assert folder.settings()["grader"] == "generous"
    assert better.result.mean == 1.0
    assert all(rollout.correct for rollout in folder.answers(EASY.name).read().values())
    more = session(frozen, samples={EASY.name: 3})
    with pytest.raises(UserError, match=r"samples\.countdown-easy = 3 instead of 2"):
        more.judge_again(folder, more.settings(Engine()))


def replace_verify(asked, verify):
    class Own:
        name, problems, sets = EASY.name, staticmethod(EASY.problems), None

        def verify(self, problems, answers):
            return verify(problems, answers)

    return replace(asked, tasks=[Own()])


def test_digests(frozen, policy, tiny):
    assert digest(frozen) == digest(frozen)
    assert digest(frozen) != digest(tiny)
    assert len(digest(tiny)) == 16
    before = digest(policy)
    next(policy.model.parameters()).data[0, 0] += 1e-3
    assert digest(policy) != before
    assert grader_digest([EASY]) == grader_digest([EASY])


def test_results_go_through_json(frozen):
    result = summarise(evaluation(frozen, None, make_generator(frozen)))
    assert Result(**json.loads(json.dumps(result.to_json()))) == result
