"""Asking a teacher: nothing is lost, nothing is asked twice, and what is kept is right."""

import json
import os
import re
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import processes
import pytest
from common import run
from conftest import ROOT, TINY
from hypothesis import given
from hypothesis import strategies as st
from teachers import GOOD, Teacher, serving, solve
from typer.testing import CliRunner

from parallel_r1 import models
from parallel_r1.__main__ import app
from parallel_r1.answers.parser import parse_text
from parallel_r1.coldstart.ask_self import Own
from parallel_r1.coldstart.ask_server import Server
from parallel_r1.coldstart.collect import Collection, Limits, problems_of
from parallel_r1.coldstart.examples import read_examples
from parallel_r1.coldstart.filters import MEANING, Sieve, judge, statistics, without_thoughts
from parallel_r1.coldstart.journal import Ask, Journal, Response
from parallel_r1.errors import UserError
from parallel_r1.generation.settings import Budget, Engine, Sampling
from parallel_r1.tasks.base import statement_of
from parallel_r1.tasks.datasets.rows import read_file
from parallel_r1.tasks.load import load_task
from parallel_r1.tasks.math import Mathematics

TEXT = GOOD.format(a=2, b=3, s=5).removeprefix("<think>Easy.</think>")


@pytest.fixture
def sums(tmp_path):
    """A task with sums, every one of which is for training."""
    path = tmp_path / "sums.jsonl"
    rows = [{"problem": f"What is {n} plus {2 * n}?", "answer": str(3 * n), "split": "train"} for n in range(1, 41)]
    rows.append({"problem": "What is 1 plus 1?", "answer": "2", "split": "validation"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{path}"


def server(url, **changes):
    return Server(url, "m", "Solve it: {problem}", **{"concurrency": 8, "timeout": 5.0, "retries": 4, **changes})


def collect(folder, task, teacher, *, samples=1, sieve=None, limits=None, count=40):
    """Ask for everything and give the collection, whatever was raised."""
    loaded = load_task(task)
    asks = [Ask(each, statement_of(loaded, each), n) for n in range(samples) for each in problems_of(loaded, 0, count)]
    with Journal(folder, teacher.settings) as journal:
        found = Collection({task: loaded}, asks, journal, sieve or Sieve(), limits or Limits(), lambda _: None)
        try:
            found.run(teacher)
        except UserError as error:
            found.error = error
    return found


# The server


def test_a_server_that_misbehaves_loses_nothing_and_is_asked_nothing_twice(tmp_path, sums):
    moods = [429, 500, "cut", "good", "gone", 503, "good", "cut", 502, 408, "gone", 429]
    teacher = Teacher(moods)
    with serving(teacher) as url:
        found = collect(tmp_path / "out", sums, server(url))
    assert not hasattr(found, "error")
    assert Counter(teacher.answered).most_common(1)[0][1] == 1
    assert len(teacher.answered) == 40
    assert len(teacher.asked) == 40 + len(moods) - moods.count("good")
    assert found.kept == 40
    assert len(read_examples(tmp_path / "out" / "answers.parquet")) == 40


def test_it_waits_as_long_as_the_server_says(tmp_path, sums):
    teacher = Teacher([429])
    with serving(teacher) as url:
        collect(tmp_path / "out", sums, server(url), count=1)
    (first, _), (second, _) = teacher.times
    assert second - first >= 1.0


def test_an_answer_that_takes_too_long_is_asked_for_again(tmp_path, sums):
    teacher = Teacher(["slow"])
    with serving(teacher) as url:
        found = collect(tmp_path / "out", sums, server(url, timeout=0.5), count=3)
    assert found.kept == 3
    assert len(teacher.asked) == 4


def test_a_server_that_dies_is_one_line_and_the_next_command_goes_on(tmp_path, sums):
    teacher = Teacher([], pause=0.05)

    with serving(teacher) as url:
        port = int(url.split(":")[2].split("/")[0])
        asked = server(url, retries=0)
        loaded = load_task(sums)
        asks = [Ask(each, loaded.statement(each), 0) for each in problems_of(loaded, 0, None)]
        with Journal(tmp_path / "out", asked.settings) as journal:
            some = Limits(tokens=110 * 10)
            Collection({sums: loaded}, asks, journal, Sieve(), some, lambda _: None).run(asked)
            first = set(journal.responses)
    assert 10 <= len(first) < 40
    found = collect(tmp_path / "out", sums, asked)
    assert "requests in a row without an answer" in str(found.error)
    assert len(found.journal.responses) == len(first)
    with serving(teacher, port):
        found = collect(tmp_path / "out", sums, asked)
    assert found.kept == 40
    assert Counter(teacher.answered).most_common(1)[0][1] == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_ends_it_at_once(tmp_path, sums, status):
    teacher = Teacher([status] * 100)
    with serving(teacher) as url:
        found = collect(tmp_path / "out", sums, server(url))
    assert f"{status}: " in str(found.error)
    assert "--model" in str(found.error)
    assert len(teacher.asked) <= 8
    assert not found.journal.responses


def test_a_request_that_is_refused_is_noted_and_not_made_again(tmp_path, sums):
    teacher = Teacher([400])
    with serving(teacher) as url:
        found = collect(tmp_path / "out", sums, server(url, concurrency=1), count=5)
        assert found.kept == 4
        assert found.statistics()[0].reasons == {"refused": 1}
        collect(tmp_path / "out", sums, server(url), count=5)
    assert len(teacher.asked) == 5


def test_lost_requests_are_named_and_asked_for_by_the_next_command(tmp_path, sums):
    teacher = Teacher(["cut"])
    with serving(teacher) as url:
        found = collect(tmp_path / "out", sums, server(url, concurrency=2, retries=0), count=3)
    assert "none to 1 of them" in str(found.error)
    assert found.kept == 2
    with serving(teacher) as url:
        assert collect(tmp_path / "out", sums, server(url), count=3).kept == 3


def test_a_teacher_that_talks_nonsense_is_stopped_with_the_reasons(tmp_path, sums):
    teacher = Teacher(answer=lambda content: "<Parallel>no" if "What is 1" in content else "I do not know.")
    with serving(teacher) as url:
        found = collect(tmp_path / "out", sums, server(url, concurrency=4), limits=Limits(patience=10))
    assert "in a row that are not: " in str(found.error)
    assert "sequential" in str(found.error)
    assert 10 <= len(teacher.asked) < 20
    (told,) = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert told["kept"] == 0
    assert sum(told["reasons"].values()) == told["responses"] == len(found.journal.responses)
    rejected = read_file(tmp_path / "out" / "rejected.jsonl")
    assert {row["text"] for row in rejected} <= {"<Parallel>no", "I do not know."}
    assert not (tmp_path / "out" / "answers.parquet").exists()
    with serving(Teacher()) as url:  # the same command goes on once the teacher is mended
        assert collect(tmp_path / "out", sums, server(url), limits=Limits(patience=10)).kept > 20


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(tokens=1000), "1,100 of 1,000 tokens"),
        (Limits(money=0.049, prompt_price=100.0, answer_price=40.0), "0.05 of 0.05 are spent"),
    ],
)
def test_caps(tmp_path, sums, limits, said):
    teacher = Teacher()
    with serving(teacher) as url:
        found = collect(tmp_path / "out", sums, server(url, concurrency=1), limits=limits)
        assert said in found.over
        assert len(teacher.asked) == 10
        collect(tmp_path / "out", sums, server(url, concurrency=1), limits=limits)  # what was used stays used
    assert len(teacher.asked) == 10


def test_a_cap_needs_a_server_that_counts(tmp_path, sums):
    teacher = Teacher(usage=False)
    with serving(teacher) as url:
        assert "counts tokens" in str(collect(tmp_path / "a", sums, server(url), limits=Limits(tokens=1000)).error)
        assert collect(tmp_path / "b", sums, server(url)).kept == 40


def test_what_was_paid_for_is_kept_whatever_the_cap_says(tmp_path, sums):
    with serving(Teacher(usage=False)) as url:
        found = collect(tmp_path / "out", sums, server(url, concurrency=1), limits=Limits(tokens=1000))
    assert len(found.journal.responses) == 1
    with pytest.raises(UserError, match="--prompt-price"):
        Limits(money=5.0)


def test_what_a_looser_sieve_kept_is_gone_when_nothing_is_kept(tmp_path, sums):
    with serving(Teacher()) as url:
        assert collect(tmp_path / "out", sums, server(url), count=3).kept == 3
        assert collect(tmp_path / "out", sums, server(url), count=3, sieve=Sieve(words=1)).kept == 0
    assert not (tmp_path / "out" / "answers.parquet").exists()


def test_several_samples_and_more_problems_later(tmp_path, sums):
    teacher = Teacher()
    with serving(teacher) as url:
        assert collect(tmp_path / "out", sums, server(url), count=5).kept == 5
        assert collect(tmp_path / "out", sums, server(url), count=5, samples=2).kept == 10
        assert collect(tmp_path / "out", sums, server(url), count=8, samples=2).kept == 16
        assert collect(tmp_path / "out", sums, server(url), count=3).kept == 3  # what was asked before is still there
    assert len(teacher.asked) == 16
    with Journal(tmp_path / "out", server("").settings) as journal:
        assert len(journal.responses) == 16


def test_the_statement_stands_in_the_instruction(tmp_path, sums):
    teacher = Teacher()
    with serving(teacher) as url:
        found = collect(tmp_path / "out", sums, server(url), count=2)
    assert all(re.fullmatch(r"Solve it: What is \d+ plus \d+\?", content) for content in teacher.asked)
    for row in read_file(tmp_path / "out" / "answers.parquet"):
        assert row["prompt"] == next(ask.problem.prompt for ask in found.asks if ask.problem.id == row["id"])
        assert "<Parallel>" in row["prompt"]  # the prompt that the model will read, not the teacher's


# The journal


def response(sample=0, text=TEXT, finish="stop", **changes):
    return Response("sums", "a", sample, text, finish, 1, 2, **changes)


def test_a_line_that_was_cut_is_asked_for_again(tmp_path):
    with Journal(tmp_path, {"model": "m"}) as journal:
        for sample in range(3):
            journal.add(response(sample, text="a\u2028b\nc"))
    whole = (tmp_path / "responses.jsonl").read_bytes()
    ends = [at for at in range(len(whole)) if whole[at : at + 1] == b"\n"]
    for at in range(len(whole)):
        (tmp_path / "responses.jsonl").write_bytes(whole[:at])
        with Journal(tmp_path, {"model": "m"}) as journal:
            assert len(journal.responses) == sum(end < at for end in ends)
            journal.add(response(7))
        with Journal(tmp_path, {"model": "m"}) as journal:
            assert journal.responses[response(7).key] == response(7)
            assert len(journal.responses) == 1 + sum(end < at for end in ends)


def test_a_journal_is_one_process_s_and_of_one_setting(tmp_path):
    with (
        Journal(tmp_path, {"model": "m", "temperature": 1.0}) as journal,
        pytest.raises(UserError, match="one that writes to"),
    ):
        Journal(tmp_path, {"model": "m", "temperature": 1.0})
    journal.lock.release()
    with pytest.raises(UserError, match=r"temperature 0.5 instead of 1.0"):
        Journal(tmp_path, {"model": "m", "temperature": 0.5})
    settings = (tmp_path / "settings.json").read_text()
    (tmp_path / "settings.json").write_text("no")
    with pytest.raises(UserError, match="settings of earlier responses"):
        Journal(tmp_path, {"model": "m", "temperature": 1.0})
    (tmp_path / "settings.json").write_text(settings)
    (tmp_path / "responses.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(UserError, match=r"responses.jsonl:1: "):
        Journal(tmp_path, {"model": "m", "temperature": 1.0})


# The sieve


INSIDE = "<Parallel><Path>Final Answer: 5</Path><Path>It is five.</Path></Parallel>\n<Summary>Yes.</Summary>"
ALIKE = re.sub("<Path>Turned.*?</Path>", re.search("<Path>.*?</Path>", TEXT)[0], TEXT)


REASONS = [
    ({}, None),
    ({"text": "<think>a <Parallel> </think>\n\n" + TEXT}, None),
    ({"text": TEXT.replace("</Parallel>\n", "\n</Parallel>")}, None),
    ({"refused": "400: too long", "text": ""}, "refused"),
    ({"finish": "length"}, "unfinished"),
    ({"text": "<think>" + TEXT}, "unfinished"),
    ({"text": ""}, "unfinished"),
    ({"text": TEXT.replace("</Path>", "", 1)}, "malformed"),
    ({"text": "so " * 2000 + TEXT}, "long"),
    ({"text": TEXT.replace("We add.", "我们把两个数相加得到结果 我们把两个数相加得到结果")}, "language"),
    ({"text": "We add.\nFinal Answer: 5"}, "sequential"),
    ({"text": TEXT.replace("Answer: 5", "Answer: 6")}, "wrong"),
    ({"text": TEXT.replace("Final Answer: 5", "")}, "wrong"),
    ({"text": INSIDE}, "wrong"),
    ({"text": ALIKE}, "alike"),
]


@pytest.mark.parametrize(("changes", "reason"), REASONS)
def test_the_first_reason_counts(sums, changes, reason):
    task = load_task(sums)
    problem = replace(problems_of(task, 0, 1)[0], answer="5")
    (verdict,) = judge([response(**changes)], [problem], task, Sieve())
    assert verdict.reason == reason
    assert reason is None or reason in MEANING
    if reason is None:
        assert not parse_text(verdict.text).defects
        assert "think" not in verdict.text


def test_many_responses_are_judged_as_one_by_one_with_one_call_of_the_verifier(sums):
    task = load_task(sums)
    problem = replace(problems_of(task, 0, 1)[0], answer="5")
    calls = []

    class Counted:
        name = task.name

        def verify(self, problems, answers):
            calls.append(len(answers))
            return task.verify(problems, answers)

    responses = [response(number, **changes) for number, (changes, _) in enumerate(REASONS)]
    verdicts = judge(responses, [problem] * len(responses), Counted(), Sieve())
    assert [verdict.reason for verdict in verdicts] == [reason for _, reason in REASONS]
    alone = [judge([each], [problem], task, Sieve())[0] for each in responses]
    assert verdicts == alone
    assert calls == [sum(reason in (None, "wrong", "alike") for _, reason in REASONS)]


def test_a_journal_is_judged_in_one_batch_when_it_is_taken_up_again(tmp_path, sums, monkeypatch):
    with serving(Teacher()) as url:
        first = collect(tmp_path / "out", sums, server(url))
    calls, verify = [], Mathematics.verify

    def counted(self, problems, answers):
        calls.append(len(answers))
        return verify(self, problems, answers)

    monkeypatch.setattr(Mathematics, "verify", counted)
    again = collect(tmp_path / "out", sums, server("http://127.0.0.1:9/v1"))
    assert calls == [40]
    assert (again.kept, again.verdicts) == (first.kept, first.verdicts)


def test_the_sieve_can_be_opened(sums):
    task = load_task(sums)
    problem = replace(problems_of(task, 0, 1)[0], answer="5")
    plain = response(text="我们把两个数相加得到结果 我们把两个数相加得到结果\nFinal Answer: 5")
    (verdict,) = judge([plain], [problem], task, Sieve(foreign=True, sequential=True))
    assert verdict.reason is None


@given(st.text(max_size=30), st.text(max_size=30))
def test_thoughts_are_no_answer(thoughts, said):
    assert without_thoughts(f"<think>{thoughts}</think>\n{said}") == said.rpartition("</think>")[2].strip()
    assert without_thoughts(f"{thoughts}</think>{said}") == said.rpartition("</think>")[2].strip()
    assert "</think>" in thoughts or without_thoughts(f"<think>{thoughts}") == ""


def test_statistics_are_what_one_counts_by_hand(sums):
    task = load_task(sums)
    problem = replace(problems_of(task, 0, 1)[0], answer="5")
    text = (
        "one <Parallel><Path>two three</Path><Path>four</Path><Path>five</Path></Parallel>\n"
        "<Summary>six</Summary> <Parallel> <Path>a</Path><Path>b</Path></Parallel>\n<Summary>c</Summary>"
        "\nFinal Answer: 5"
    )
    responses = [response(0, text), response(1, "5"), response(2, "", finish="length")]
    verdicts = judge(responses, [problem] * 3, task, Sieve(foreign=True, alike=1.0))
    found = statistics("sums", list(zip(responses, verdicts, strict=True)))
    assert (found.problems, found.solved, found.responses) == (1, 1, 3)
    assert found.kept == pytest.approx(1 / 3)
    assert found.reasons == {"sequential": 1, "unfinished": 1}
    assert (found.repaired, found.forks, found.paths) == (1.0, 2, 2.5)
    assert found.words == 12
    assert found.inside == pytest.approx(6 / 12)
    assert found.first == pytest.approx(4 / (len(text) - 1))


# The model as its own teacher


def own(total=96):
    sampling = Sampling(paths=2, budget=Budget(total=total, critical_path=64, path=32))
    return Own(models.load(str(TINY)), str(TINY), sampling, 0, Engine(rows=4))


def test_a_model_teaches_itself(tmp_path):
    stopped = Limits(tokens=400)
    sieve = Sieve(sequential=True, alike=1.0)
    first = collect(tmp_path / "a", "countdown-easy", own(), samples=2, sieve=sieve, limits=stopped, count=8)
    assert 0 < len(first.journal.responses) < 16
    again = collect(tmp_path / "a", "countdown-easy", own(), samples=2, sieve=sieve, count=8)
    whole = collect(tmp_path / "b", "countdown-easy", own(), samples=2, sieve=sieve, count=8)
    assert len(whole.journal.responses) == 16
    assert again.journal.responses == whole.journal.responses  # whatever they were drawn with
    task = load_task("countdown-easy")
    by_id = {ask.problem.id: ask.problem for ask in whole.asks}
    kept = read_file(tmp_path / "b" / "answers.parquet")
    assert len(kept) == whole.kept > 0
    assert all(task.verify([by_id[row["id"]] for row in kept], [row["text"] for row in kept]))


def test_problems_come_once_and_all_of_them(sums):
    task = load_task(sums)
    assert len({problem.id for problem in problems_of(task, 0, None)}) == 40
    assert len(problems_of(task, 0, 7)) == 7
    assert len(problems_of(task, 0, 1000)) == 40


# The command


def coldstart(task, url, out, *more):
    return ["coldstart", "--problems", task, "--model", "m", "--base-url", url, "--out", str(out), *more]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [(12,), (1, 3, 20, 30)])
def test_killed_at_any_moment_the_same_command_goes_on(tmp_path, sums, kills):
    task = load_task(sums)
    statements = {problem.id: task.statement(problem) for problem in problems_of(task, 0, None)}
    on_disk, twice = set(), []

    def answer(content):
        twice.extend(each for each in on_disk if each in content)
        return solve(content)

    teacher, out = Teacher(pause=0.02, answer=answer), tmp_path / "out"
    journal = out / "responses.jsonl"
    with serving(teacher) as url:
        words = coldstart(sums, url, out, "--concurrency", "2")
        for wanted in kills:
            process = processes.begin(words, ROOT, "100", [Path(os.devnull)] * 3)
            while process.is_alive() and (not journal.exists() or journal.read_bytes().count(b"\n") < wanted):
                time.sleep(0.002)
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            ids = [json.loads(line)["id"] for line in journal.read_bytes().split(b"\n")[:-1]]
            assert len(ids) == len(set(ids)) >= wanted
            on_disk.update(statements[name] for name in ids)
        done = run(*words)
    assert done.returncode == 0, done.stderr
    assert not twice
    assert "40 answers to imitate" in done.stdout
    assert len(read_examples(out / "answers.parquet")) == 40
    assert (out / "README.md").read_text().count("| 40 |") == 3


def test_what_a_teacher_wrote_is_learnt_from(tmp_path, sums):
    with serving(Teacher()) as url:
        done = run(*coldstart(sums, url, tmp_path / "out", "--json"))
    told = json.loads(done.stdout)
    assert (told["kept"], told["left"], told["tokens"], told["over"]) == (40, 0, 40 * 110, None)
    assert told["sources"][0]["paths"] == 2
    config = json.loads((shutil.copytree(TINY, tmp_path / "model") / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""name = "imitate"
[model]
path = "{tmp_path}/model"
[stages.sft]
kind = "sft"
steps = 2
batch = 2
data = {{ file = "{tmp_path}/out/answers.parquet" }}
"""
    )
    assert run("sft", recipe, "--out", tmp_path / "run").returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] > 0 for row in rows if row["kind"] == "sft"] == [True, True]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--problems", "gsm8k"], "expected --model; found none"),
        (["--problems", "gsm8k", "--model", "m", "--out", "x"], "expected --base-url; found none"),
        (["--problems", "gsm8k", "--model", "m", "--out", "x", "--teacher", "me"], "one of server, self"),
        (["--problems", "gsm9k", "--model", "m", "--out", "x", "--base-url", "u"], "did you mean 'gsm8k'?"),
        (
            ["--problems", "gsm8k", "--model", "m", "--out", "x", "--base-url", "u", "--instruction-file", "no"],
            "no file no",
        ),
        (
            ["--problems", "gsm8k", "--model", "m", "--out", "x", "--base-url", "u", "--instruction-file", "Makefile"],
            "an instruction with {problem} in it",
        ),
    ],
)
def test_bad_input_is_one_clear_line(words, said):
    result = CliRunner().invoke(app, ["coldstart", *words])
    assert isinstance(result.exception, UserError)
    assert said in str(result.exception)


def test_our_instruction_can_be_printed_and_changed():
    shown = CliRunner().invoke(app, ["coldstart", "--show-instruction"]).stdout
    assert "{problem}" in shown
    assert not parse_text(shown.replace("Final Answer", "")).defects
