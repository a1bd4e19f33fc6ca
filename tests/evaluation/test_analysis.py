"""Every measure of an analysis, by hand or against a slow and obvious version; what it reads and what it refuses."""

import json
import math
import re
from dataclasses import replace
from random import Random
from statistics import fmean

import numpy as np
import oracles
import pytest
from analysed import FAILED, OTHER, PROBLEM, RIGHT, WRONG, answer, rl, rollout, write_run
from hypothesis import given
from hypothesis import strategies as st
from strategies import well_formed

from parallel_r1 import files
from parallel_r1.answers.parser import parse
from parallel_r1.answers.rollout import Problem, Rollout, to_json, write_jsonl
from parallel_r1.answers.shape import self_bleu
from parallel_r1.answers.trace import TRUNK
from parallel_r1.errors import UserError
from parallel_r1.evaluation.analysis import analyse, paths, read, summary
from parallel_r1.evaluation.analysis.forks import forks_of
from parallel_r1.evaluation.analysis.paths import agreement, stated, use
from parallel_r1.tasks.base import conclusion_of, task
from parallel_r1.tasks.countdown import EASY
from parallel_r1.tasks.grading.extract import final_answer


def analysis_of(tmp_path, *answers, **options):
    file = tmp_path / "answers.jsonl"
    write_jsonl(file, answers)
    return analyse(file, **options)


def row(table, at=0):
    return {name: column[at] for name, column in table.items()}


@given(text=well_formed)
def test_forks_against_their_definition(frozen, text):
    """Addresses token by token: the opening token, the longest chain inside a path, its own text, what comes after."""
    trace = parse(frozen.encode(text), frozen.tags)
    judged = Rollout(PROBLEM, trace, trace.texts(frozen.decode), True, 1, len(trace.token_ids))
    addresses = [span.address for span in trace.spans for _ in span.token_ids]
    pieces = [(span.address, text) for span, text in zip(trace.spans, judged.texts, strict=True)]
    found = forks_of(judged)
    assert len(found) == trace.forks == text.count("<Parallel>")
    for number, fork in enumerate(found):
        inside = [at for at, address in enumerate(addresses) if any(one == number for one, _ in address)]
        assert fork.at == inside[0] - 1
        level = next(at for at, (one, _) in enumerate(addresses[inside[0]]) if one == number)
        assert fork.depth == level
        for path, (length, own) in enumerate(zip(fork.lengths, fork.texts, strict=True)):
            prefix = (*addresses[inside[0]][:level], (number, path))
            tokens = [address for address in addresses if address[: level + 1] == prefix]
            assert length == max(oracles.positions(tokens)) + 1
            mine = "".join(part for address, part in pieces if address == prefix)
            assert own.replace("\n", "") == re.sub(r"<[^>]*>", "", mine).replace("\n", "")
        assert not any(fork.cut)
        assert "<" not in fork.summary


def test_position_lengths_and_balance_by_hand(tmp_path):
    """10 tokens, then a fork of 3 and 6 letters with 2 tags each, then 1 + 1 + 1 + 4 tokens."""
    found = analysis_of(tmp_path, answer(["abc", "abcdef"], "done", before="x" * 10), answer([], "plain"))
    fork, total = row(found.forks), 10 + 1 + 5 + 8 + 1 + 1 + 1 + 4
    assert (fork["at"], fork["position"], fork["paths"]) == (10, 10 / total, 2)
    assert (fork["length"], fork["longest"], fork["balance"]) == (6.5, 8, 8 / 6.5)
    assert (fork["answer"], fork["fork"], fork["depth"]) == (0, 0, 0)
    step = row(found.steps)
    assert (step["answers"], step["parallel_ratio"], step["forks"], step["tokens"]) == (2, 0.5, 0.5, (total + 5) / 2)
    assert step["position_mean"] == step["position_q10"] == step["position_q90"] == 10 / total
    assert (step["stage"], step["step"]) == ("", 0)


def test_spreads_are_quantiles_over_forks(tmp_path):
    found = analysis_of(tmp_path, *(answer(["ab", "cd"], before="x" * size) for size in range(1, 9)))
    positions = sorted(found.forks["position"])
    step = row(found.steps)
    assert step["position_mean"] == pytest.approx(fmean(positions))
    for share in (10, 25, 50, 75, 90):
        assert step[f"position_q{share}"] == pytest.approx(np.percentile(positions, share))


def test_one_path_has_no_siblings(tmp_path):
    fork = row(analysis_of(tmp_path, answer([RIGHT])).forks)
    assert fork["use"] == ""
    assert all(math.isnan(fork[name]) for name in ("balance", "agreement", "diversity"))


@pytest.mark.parametrize(
    ("text", "cut", "verdict"),
    [
        (RIGHT, False, "right"),
        (f"{FAILED}\n{RIGHT}", False, "right"),
        (OTHER, False, "right"),
        ("Final Answer: 3*5+7", False, "right"),
        (WRONG, False, "wrong"),
        ("Final Answer: 3*5", False, "wrong"),
        (f"{RIGHT}\n{FAILED}", False, "failed"),
        ("3*5=15, 15+7=22", False, "undecided"),
        ("I know", False, "undecided"),
        ("", False, "undecided"),
        ("Final Answer:", False, "undecided"),
        (f"{RIGHT}\nFinal Answer: 3*5+8", False, "wrong"),  # what it writes counts before what the task reads
        (RIGHT, True, "undecided"),
        ("Final Answer: 3*5+7", True, "undecided"),
        (f"{FAILED}\n3*5=1", True, "failed"),
        ("Final Answer: 3*5+7\nso", True, "right"),
    ],
)
def test_the_verdict_on_a_path(tmp_path, text, cut, verdict):
    """A path that its budget cut concludes nothing by its last line: 7 may be the beginning of 72."""
    found = analysis_of(tmp_path, answer([text, "x"], cut=[0] if cut else []))
    counts = {name: found.forks[f"paths_{name}"][0] for name in paths.VERDICTS}
    assert counts[verdict] == 1 + (verdict == "undecided")  # x is undecided too
    assert sum(counts.values()) == 2


def test_a_verdict_is_that_of_the_verifier(tmp_path):
    """Against the verifier itself, for the answers of the teacher to many problems."""
    problems = EASY.problems("train", 0)
    for problem, _ in zip(problems, range(40), strict=False):
        texts = [EASY.sequential_answer(problem, Random(seed), 2) for seed in range(4)]
        texts = [text.rpartition("\n")[0] for text in texts if text]
        if len(texts) < 2:
            continue
        found = analysis_of(tmp_path, answer(texts, problem=problem))
        conclusions = [f"Final Answer: {text.rpartition('yes: ')[2]}" for text in texts]
        assert found.forks["paths_right"][0] == sum(EASY.verify([problem] * len(texts), conclusions)) == len(texts)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("so it is 4 * 10 = $40.", "40"),
        ("First 12.\nThen 1,250.50 dollars in all", "1250.5"),
        ("x = -3", "-3"),
        ("10-3", "3"),
        ("The  Red one.", "the red one"),
        ("  \n", None),
    ],
)
def test_what_a_path_without_a_final_answer_states(text, what):
    assert stated(None, text, False) == what
    assert stated(None, text, True) is None
    assert stated("", text, False) is None
    assert stated(" $40.0$ ", text, True) == "40"


views = st.lists(st.sampled_from([None, "a", "b"]), max_size=6)


@given(views)
def test_agreement_counts_pairs(views):
    pairs = [(a, b) for at, a in enumerate(views) for b in views[:at]]
    expected = fmean(a == b and a is not None for a, b in pairs) if pairs else None
    assert agreement(views) == expected
    assert (use(agreement(views), True) == "verification") == (
        len(views) > 1 and len({*views, None}) == 2 and None not in views
    )


@pytest.mark.parametrize(
    ("texts", "end", "correct", "agreed", "used"),
    [
        ([RIGHT, OTHER], "Final Answer: 3*5+7", True, 1.0, "verification"),
        ([RIGHT, OTHER, FAILED], "Final Answer: 3*5+7", True, 1 / 3, "exploration"),
        ([WRONG, FAILED], "Final Answer: 3+5+7", False, 0.0, "exploration"),
        ([RIGHT, WRONG], "Final Answer: 3*7", False, 0.0, "neither"),
        ([FAILED, FAILED], "Final Answer: 3*5+7", True, 0.0, "neither"),
        (["it is 40", "so 40."], "Final Answer: 3", False, 1.0, "verification"),
        (["it is 40", "so 41."], "Final Answer: 41", False, 0.0, "exploration"),
        (["part one: 12", "part two: 5"], "Final Answer: 17", True, 0.0, "neither"),
    ],
)
def test_the_use_of_a_fork(tmp_path, texts, end, correct, agreed, used):
    fork = row(analysis_of(tmp_path, answer(texts, end, correct)).forks)
    assert (fork["agreement"], fork["use"]) == (pytest.approx(agreed), used)


def test_a_summary_chooses_where_the_answer_goes_on(tmp_path):
    """The first of several forks: what its summary names counts, not only the end of the answer."""
    chosen = answer(["it is 40", "so 41."], "then 2", False, summary="The second is right: 41.")
    assert row(analysis_of(tmp_path, chosen).forks)["use"] == "exploration"


@pytest.mark.parametrize(
    ("texts", "correct", "rescued", "from_none", "spoiled"),
    [
        ([RIGHT, WRONG], True, 1, 0, 0),
        ([RIGHT, OTHER, WRONG], True, 0, 0, 0),
        ([WRONG, FAILED], True, 1, 1, 0),
        ([RIGHT, WRONG], False, 0, 0, 1),
        ([WRONG, FAILED], False, 0, 0, 0),
        ([RIGHT, "?", "?"], True, 0, 0, 0),  # undecided paths have no vote
        (["?", "?"], True, math.nan, math.nan, math.nan),
        ([], True, math.nan, math.nan, math.nan),
    ],
)
def test_answers_that_the_summary_rescues_or_spoils(tmp_path, texts, correct, rescued, from_none, spoiled):
    found = analysis_of(tmp_path, answer(texts, "Final Answer: 1", correct))
    values = [found.answers[name][0] for name in ("rescued", "rescued_from_none", "spoiled")]
    assert values == pytest.approx([rescued, from_none, spoiled], nan_ok=True)
    assert found.steps["rescued"][0] == pytest.approx(rescued, nan_ok=True)
    assert found.steps["decided"][0] == (not math.isnan(rescued))


def test_diversity_of_all_forks_or_of_a_sample(tmp_path):
    texts = [[f"a b c {at}", "d e f g", "a b c d e"] for at in range(40)]
    answers = [answer(paths) for paths in texts]
    every = analysis_of(tmp_path, *answers, sample=None).forks["diversity"]
    assert every.tolist() == pytest.approx([1 - self_bleu([paths]) for paths in texts])
    some = analysis_of(tmp_path, *answers, sample=10)
    there = ~np.isnan(some.forks["diversity"])
    assert there.sum() == some.steps["measured_forks"][0] == 10
    assert some.forks["diversity"][there].tolist() == every[there].tolist()
    assert np.array_equal(analysis_of(tmp_path, *answers, sample=10).forks["diversity"], some.forks["diversity"], True)
    assert some.steps["diversity_mean"][0] == pytest.approx(every[there].mean())


def test_reward_terms_and_whether_they_cancel(tmp_path):
    """Two groups: in the first the terms cancel, in the second only one term is there."""
    other = replace(PROBLEM, id="x", key="x")
    found = analysis_of(
        tmp_path,
        answer([], terms={"accuracy": 1.0, "short": -1.0}),
        answer([], terms={"accuracy": 0.5}, problem=other),
        answer([], terms={"accuracy": -1.0, "short": 1.0}),
        answer([], terms={"accuracy": 0.0}, problem=other),
    )
    step = row(found.steps)
    assert (step["groups"], step["cancelled_groups"]) == (2, 0.5)
    assert (step["reward"], step["reward_accuracy"], step["reward_short"]) == (0.125, 0.125, 0.0)
    assert (step["spread_accuracy"], step["spread_short"]) == (1.25, 1.0)
    plain = row(analysis_of(tmp_path, answer([])).steps)
    assert plain["groups"] == 0
    assert math.isnan(plain["cancelled_groups"])


def test_stages_mismatch_and_alarms_are_those_of_metrics(tmp_path):
    alarm = {"step": 2, "kind": "warning", "stage": "easy", "rule": "dead", "warning": "dead groups: all"}
    rows = [rl(1, "easy", mismatch_mean=0.5), rl(2, "easy", 2, mismatch_mean=0.25), alarm, rl(9, "hard")]
    run = write_run(
        tmp_path / "run", {1: [answer([RIGHT, WRONG])], 9: [answer([]), answer([])], 10: [answer([])]}, rows
    )
    found = analyse(run)
    assert found.steps["step"].tolist() == [1, 2, 9, 10]
    assert found.steps["stage"].tolist() == ["easy", "easy", "hard", ""]
    assert found.steps["answers"].tolist() == [1, 0, 2, 1]
    assert found.steps["mismatch_mean"].tolist() == pytest.approx([0.5, 0.25, math.nan, math.nan], nan_ok=True)
    assert found.steps["alarms"].tolist() == ["", "dead", "", ""]
    assert math.isnan(found.steps["accuracy"][1])
    assert [alarm["warning"] for alarm in found.alarms] == ["dead groups: all"]
    assert found.answers["stage"].tolist() == ["easy", "hard", "hard", ""]
    assert found.stages == ["easy", "hard", ""]
    alone = analyse(run / "rollouts" / "step-9.jsonl")
    assert alone.answers["stage"].tolist() == ["hard", "hard"]
    by_stage = {stage["stage"]: stage for stage in summary.by_stage(found)}
    assert (by_stage["hard"]["steps"], by_stage["hard"]["answers"], by_stage["easy"]["rescued"]) == (1, 2, 1.0)


@pytest.mark.parametrize("size", [1, 700, 10_000])
def test_pieces_of_any_size_make_the_same_tables(tmp_path, monkeypatch, size):
    answers = [answer([RIGHT, WRONG, "é" * at], "Final Answer: 3*5+7") for at in range(7)]
    whole = analysis_of(tmp_path, *answers)
    monkeypatch.setattr(read.pieces, "__defaults__", (size,))
    cut = analysis_of(tmp_path, *answers)
    for name in ("answers", "forks", "steps"):
        for key, column in getattr(whole, name).items():
            same = np.array_equal(column, getattr(cut, name)[key], equal_nan=column.dtype.kind == "f")
            assert same, (name, key)


def test_several_processes_make_the_same_tables(tmp_path):
    plugin = tmp_path / "sums.py"
    plugin.write_text(
        "from parallel_r1.tasks.base import task\nfrom parallel_r1.tasks.grading.extract import final_answer\n"
        '@task("sums")\nclass Sums:\n    def problems(self, split, seed):\n        return iter(())\n'
        "    def verify(self, problems, answers):\n"
        "        return [final_answer(a) == p.answer for p, a in zip(problems, answers)]\n"
    )
    problem = Problem("1+1", "What is 1+1?", "2", "sums")
    step = [answer(["Final Answer: 2", "Final Answer: 3"], problem=problem) for _ in range(4)]
    run = write_run(tmp_path / "run", {1: step, 2: step[:2]})
    one, two = (analyse(run, imports=[str(plugin)], processes=count) for count in (1, 2))
    assert one.notes == two.notes == []
    assert one.forks["paths_right"].tolist() == two.forks["paths_right"].tolist() == [1] * 6
    assert one.forks["diversity"].tolist() == two.forks["diversity"].tolist()
    assert one.answers["step"].tolist() == two.answers["step"].tolist() == [1] * 4 + [2] * 2


def test_rows_of_mixed_tasks_are_judged_by_their_own(tmp_path):
    unknown = Problem("a", "?", "1", "riddles-of-nobody")
    alien = replace(PROBLEM, id="not a countdown problem", key="k")
    found = analysis_of(
        tmp_path,
        answer([RIGHT, WRONG]),
        answer(["Final Answer: 1", "Final Answer: 2"], problem=unknown),
        answer(["Final Answer: 1", "x"], problem=alien),
        answer(["Final Answer: 1"], problem=unknown),
    )
    assert found.forks["paths_right"].tolist() == [1, 0, 0, 0]
    assert found.forks["paths_unjudged"].tolist() == [0, 2, 1, 1]
    assert found.answers["task"].tolist() == [EASY.name, unknown.source, EASY.name, unknown.source]
    assert len(found.notes) == 2  # once for each
    assert any("'riddles-of-nobody' are not judged: expected a known task" in note for note in found.notes)
    assert any("its verifier fails with ValueError" in note for note in found.notes)
    assert np.isnan(found.answers["rescued"][1])


def test_a_task_says_what_a_path_concludes():
    @task("hinted")
    class Hinted:
        def problems(self, split, seed):
            return iter(())

        def verify(self, problems, answers):
            return [final_answer(answer) == "7" for answer in answers]

        def conclusion(self, path):
            return path.rpartition("=> ")[2]

    assert conclusion_of(Hinted(), "so => 7", cut=False) == "7"
    assert conclusion_of(Hinted(), "so => 7\nand => 8", cut=True) == "7"
    assert conclusion_of(Hinted(), "Final Answer: 9", cut=False) == "9"
    assert conclusion_of(None, "so => 7", cut=False) is None


def test_a_task_whose_conclusion_fails_is_one_line(tmp_path):
    @task("broken")
    class Broken:
        def problems(self, split, seed):
            return iter(())

        def verify(self, problems, answers):
            return [True] * len(answers)

        def conclusion(self, path):
            return path[1000]

    with pytest.raises(UserError, match=r"a conclusion from task 'broken'; found IndexError.*test_analysis.py:\d+"):
        analysis_of(tmp_path, answer(["a", "b"], problem=Problem("a", "?", "1", "broken")))


def test_a_run_still_being_written(tmp_path):
    """Parts are no files yet; half a line at the end of a file or of the metrics is left out."""
    run = write_run(tmp_path / "run", {1: [answer([]), answer([])]}, [rl(1, "easy")])
    file = run / "rollouts" / "step-1.jsonl"
    (run / "rollouts" / ".step-2.jsonl.part").write_text("{")
    (run / "rollouts" / "step-x.jsonl").write_text("{")
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"kind": "rl"}\n{"step": 2, "sta')
    text = file.read_text()
    file.write_text(text + text[: len(text) // 3])
    found = analyse(run)
    assert (len(found.answers["step"]), found.stages) == (2, ["easy"])
    assert found.notes == [f"the last line of {file} is unfinished: left out"]
    file.write_text(text.rstrip("\n"))  # whole, but without a line break
    assert (len(analyse(run).answers["step"]), analyse(run).notes) == (2, [])


def test_rows_of_an_older_version_are_read_or_refused_with_it(tmp_path):
    run = write_run(tmp_path / "run", {1: []})
    file, new = run / "rollouts" / "step-1.jsonl", to_json(answer([RIGHT, WRONG], "Final Answer: 3*5+7"))
    old = {**new, "spans": [{key: value for key, value in span.items() if key != "text"} for span in new["spans"]]}
    file.write_text(json.dumps(new) + "\n" + json.dumps(old) + "\n")
    found = analyse(run)
    assert found.forks["paths_right"].tolist() == [1, 1]
    assert found.answers["paths_wrong"].tolist() == [1, 1]
    (run / "environment.json").write_text(json.dumps({"packages": {"parallel-r1": "0.0.1"}}))
    first = {key: value for key, value in new.items() if key != "spans"}
    file.write_text(json.dumps(new) + "\n\n" + json.dumps(first) + "\n")
    with pytest.raises(UserError, match=r"step-1.jsonl:3: KeyError\('spans'\), in a run of version 0.0.1"):
        analyse(run)


def test_numbers_that_json_does_not_have_are_read(tmp_path):
    found = analysis_of(tmp_path, answer([], terms={"odd": math.nan, "plain": 1.0}))
    assert math.isnan(found.answers["reward"][0])
    assert found.answers["reward_plain"][0] == 1.0


@pytest.mark.parametrize("line", ["no json", "[1]", '{"id": 1}', '{"spans": 3}', "null"])
def test_a_line_that_is_no_rollout(tmp_path, line):
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps(to_json(answer([]))) + f"\n{line}\n")
    with pytest.raises(UserError, match=r"expected a rollout per line.*answers.jsonl:2: .*correct or remove"):
        analyse(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": [1]}, r"id is \[1\], not a text"),
        ({"answer": 7}, "answer is 7, not a text"),
        ({"terms": {"accuracy": "high"}}, "TypeError"),
        ({"terms": [1]}, "AttributeError"),
        ({"address": [[0]]}, "ValueError"),
        ({"address": 3}, "TypeError"),
        ({"text": 3}, "AttributeError|TypeError"),
        ({"ids": 3}, "TypeError"),
    ],
)
def test_a_value_of_another_type(tmp_path, change, said):
    row = to_json(answer([RIGHT, WRONG]))
    for name, value in change.items():
        row["spans"][3][name] = value
        if name in row and name != "text":
            row[name] = value
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps(to_json(answer([]))) + f"\n{json.dumps(row)}\n")
    with pytest.raises(UserError, match=rf"answers.jsonl:2: .*({said})"):
        analyse(file)


def test_answers_that_count_no_tokens(tmp_path):
    """A value that contradicts the spans is a value; it stops nothing."""
    assert analysis_of(tmp_path, replace(answer([RIGHT, WRONG]), total=0)).forks["position"].tolist() == [0]


def test_nothing_to_analyse(tmp_path):
    with pytest.raises(UserError, match=r"no file or folder .*nowhere"):
        analyse(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"expected a run with rollouts/step-N.jsonl; found none in"):
        analyse(tmp_path)
    run = write_run(tmp_path / "run", {1: []})
    with pytest.raises(UserError, match="expected answers to analyse; found none in"):
        analyse(run)


def test_without_sacrebleu_diversity_is_missing_and_a_note_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("parallel_r1.errors.find_spec", lambda name: None)
    found = analysis_of(tmp_path, answer([RIGHT, WRONG]))
    assert np.isnan(found.forks["diversity"]).all()
    assert ["pip install 'parallel-r1[rewards]'" in note for note in found.notes] == [True]


def test_without_orjson_the_same_is_read(tmp_path, monkeypatch):
    fast = analysis_of(tmp_path, answer([RIGHT, WRONG]))
    monkeypatch.setattr(files, "orjson", None)
    slow = analysis_of(tmp_path, answer([RIGHT, WRONG]))
    assert {name: column.tolist() for name, column in fast.forks.items()} == {
        name: column.tolist() for name, column in slow.forks.items()
    }


def test_text_aside_is_no_part_of_a_path(tmp_path):
    """A fork that the policy wrote where none was allowed: it costs tokens and says nothing."""
    made = rollout([("so ", TRUNK, True), ("Final Answer: 9", TRUNK, True)])
    spans = (made.trace.spans[0], replace(made.trace.spans[1], aside=True))
    found = analysis_of(tmp_path, replace(made, trace=replace(made.trace, spans=spans)))
    assert (found.answers["forks"][0], len(found.forks["step"]), found.answers["tokens"][0]) == (0, 0, 18)
