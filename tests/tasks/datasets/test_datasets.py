import json
import math
import random
from collections import Counter
from decimal import Decimal
from typing import get_args

import pytest
from conftest import SHARED, needs_data
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.errors import UserError
from parallel_r1.tasks.datasets import cleaning, damage, overlap
from parallel_r1.tasks.datasets.sources import DATA_DIR, Record
from parallel_r1.tasks.datasets.splits import split_of, words
from parallel_r1.tasks.public_sets import open_source


def record(problem, answer="1", name="a", split="train"):
    return Record(name, problem, answer, "test", split)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    return tmp_path


# Reading


def test_a_whole_statement_is_read_whatever_the_columns_are_called(tmp_path):
    text = "Let $x = 1$.\n\nIts double:\n\n\nwhat is it?"
    rows = [
        {"problem": text, "answer": 2},
        {"question": text, "answer": "1 + 1 = 2\n#### 2"},
        {"prompt": [{"role": "system", "content": "no"}, {"role": "user", "content": text}], "solution": r"\boxed{2}"},
        {"prompt": text, "reward_model": {"ground_truth": "2"}},
        {"problem": text, "answer": None, "solution": r"so \boxed{1}, twice \boxed{2}"},
        {"problem": text, "answer": " ", "solution": r"It is \boxed2."},
        {"problem": text, "answer": 2.0, "id": "mine"},
    ]
    source = open_source(f"jsonl:{write(tmp_path / 'own.jsonl', rows)}")
    records = source.records(*source.splits)
    assert {(each.problem, each.answer) for each in records} == {(text, "2")}
    assert len({each.split for each in records}) == 1  # copies never lie in two splits
    assert records[-1].id == "mine"
    assert len({each.id for each in records}) == len(rows)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (72, "72"),
        (2.0, "2"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (5.9e-6, "0.0000059"),
        (-1.25e-9, "-0.00000000125"),
        (1e22, "1" + 22 * "0"),
        (123456789012345678901234567890, "123456789012345678901234567890"),
        ("6 * 200 = 1,200\n#### 1,200", "1200"),
        ("both\n#### (1, 200)", "(1, 200)"),
        ("None of them", "None of them"),
    ],
)
def test_a_number_is_a_reference_in_decimal_digits(tmp_path, value, text):
    source = open_source(f"jsonl:{write(tmp_path / 'own.jsonl', [{'question': 'x', 'answer': value}])}")
    assert [each.answer for each in source.records(*source.splits)] == [text]


def test_columns_of_numbers_in_parquet(tmp_path):
    """A missing number is refused with its row; a column of 32 bits keeps the digits that it was written with."""
    import pyarrow
    from pyarrow import parquet

    problems, kinds = ["x", "y"], (pyarrow.float32(), pyarrow.float64(), pyarrow.decimal128(5, 3))
    for kind in kinds:
        answers = pyarrow.array([Decimal("0.1"), Decimal("2.5")], pyarrow.decimal128(5, 3)).cast(kind)
        parquet.write_table(pyarrow.table({"problem": problems, "answer": answers}), tmp_path / "p.parquet")
        source = open_source(f"parquet:{tmp_path}/p.parquet")
        assert [each.answer for each in source.records(*source.splits)] == ["0.1", "2.5"]
    for kind in kinds[:2]:
        answers = pyarrow.array([0.5, math.nan], kind)
        parquet.write_table(pyarrow.table({"problem": problems, "answer": answers}), tmp_path / "p.parquet")
        with pytest.raises(UserError, match="nan in column answer of row 2"):
            open_source(f"parquet:{tmp_path}/p.parquet").records("train")


def test_the_statement_of_a_chat_is_what_the_user_said_last(tmp_path):
    chat = [("system", "Be brief."), ("user", "What is 1 + 1?"), ("assistant", "2")]
    rows = [
        {"prompt": [{"role": role, "content": text} for role, text in chat], "answer": 2},
        {"prompt": [{"from": role.replace("user", "human"), "value": text} for role, text in chat], "answer": 2},
    ]
    source = open_source(f"jsonl:{write(tmp_path / 'own.jsonl', rows)}")
    assert [each.problem for each in source.records(*source.splits)] == ["What is 1 + 1?"] * 2


def test_rows_are_numbered_by_their_lines(tmp_path):
    """From 1, blank lines included; a blank line at the end is no error."""
    path = tmp_path / "own.jsonl"
    path.write_text('{"problem": "x", "answer": 1}\n\n{"problem": "y", "answer": 1}\n\n  \n')
    source = open_source(f"jsonl:{path}")
    assert [each.id.rpartition("-")[2] for each in source.records(*source.splits)] == ["1", "3"]
    path.write_text('{"problem": "x", "answer": 1}\n\n{"problem": "y"}\n\n')
    with pytest.raises(UserError, match="in row 3 of"):
        source.records("train")
    path.write_text('{"problem": "x", "answer": 1}\n{"problem": "\\ud83d", "answer": 1}\n')
    with pytest.raises(UserError, match=r"own\.jsonl:2: \\ud83d, half of a surrogate pair"):
        source.records("train")


def test_a_problem_that_is_repeated_with_its_id(tmp_path):
    rows = [{"problem": f"What is {n}?", "answer": n, "id": n} for n in range(3)]
    source = open_source(f"jsonl:{write(tmp_path / 'own.jsonl', rows * 32)}")
    records = source.records(*source.splits)
    assert len({each.id for each in records}) == 96
    assert [each.id for each in records[:4]] == ["0", "1", "2", "0 in row 4"]


def test_parquet_and_jsonl_are_read_alike(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"problem": f"What is {n}?", "answer": str(n)} for n in range(50)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    write(tmp_path / "p.jsonl", rows)
    one, two = (open_source(f"{kind}:{tmp_path}/p.{kind}") for kind in ("parquet", "jsonl"))
    for split in ("train", "validation", "test"):
        first, second = one.records(split), two.records(split)
        assert [(each.id.split("-")[-1], each.problem) for each in first] == [
            (each.id.split("-")[-1], each.problem) for each in second
        ]


@given(st.lists(st.text(alphabet="abc 12+$.", min_size=1, max_size=20), max_size=30))
def test_splits_never_mix(problems):
    for part, allowed in (
        (None, {"train", "validation", "test"}),
        ("train", {"train", "validation"}),
        ("test", {"test"}),
    ):
        for problem in problems:
            assert split_of(problem, part) in allowed
            assert split_of(f"  {problem.upper()} .", part) == split_of(problem, part)


def test_splits_have_their_shares():
    found = Counter(split_of(f"What is {n} squared?", None) for n in range(8000))
    assert 0.11 < found["test"] / 8000 < 0.14
    assert 0.04 < found["validation"] / 8000 < 0.06


def test_a_column_split_is_obeyed(tmp_path):
    rows = [{"problem": f"What is {n}?", "answer": n, "split": "test"} for n in range(5)]
    source = open_source(f"jsonl:{write(tmp_path / 'own.jsonl', rows)}")
    assert len(source.records("test")) == 5
    assert source.records("train") == []
    rows[0]["split"] = "tset"
    with pytest.raises(UserError, match="'tset' in row 1"):
        open_source(f"jsonl:{write(tmp_path / 'own.jsonl', rows)}").records("test")


def test_a_public_set_is_read_from_a_folder(folder):
    write(folder / "gsm8k_train.jsonl", [{"question": f"What is {n}?", "answer": f"#### {n}"} for n in range(100)])
    write(folder / "aime25.jsonl", [{"problem": "What is 1?", "answer": 1}])
    shared = [{"problem": f"What is {n}?", "answer": n, "source": "aime24" if n else "amc23"} for n in range(3)]
    write(folder / "math_benchmarks.jsonl", shared)
    gsm8k = open_source("gsm8k")
    train, validation = gsm8k.records("train"), gsm8k.records("validation")
    assert len(train) + len(validation) == 100
    assert {each.id for each in gsm8k.records(*gsm8k.main_splits)} == {each.id for each in train + validation}
    assert [len(open_source(name).records("test")) for name in ("aime24", "amc23", "aime25")] == [2, 1, 1]
    with pytest.raises(UserError, match=r"gsm8k_test\.parquet"):
        gsm8k.records("test")
    with pytest.raises(UserError, match=r"math500_test\.parquet or math500_test\.jsonl in .*; found neither"):
        open_source("math500").records("test")
    with pytest.raises(UserError, match="aime24, which has test"):
        open_source("aime24").records("train")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "found none in"),
        ([{"problem": "x"}], "the answer in a column"),
        ([{"text": "x", "answer": 1}], "the statement in a column"),
        ([{"problem": "x", "answer": [1]}], "list in column answer of row 1"),
        ([{"problem": "x", "answer": True}], "bool in column answer"),
        ([{"problem": "x", "answer": " "}], "' ' in column answer"),
        ([{"problem": "x", "answer": 1}, {"problem": "x", "answer": math.nan}], "nan in column answer of row 2"),
        ([{"problem": "x", "answer": math.inf}], "inf in column answer of row 1"),
        ([{"problem": "x", "answer": None}], "None in column answer of row 1"),
        ([{"problem": "x", "answer": "N/A"}], "'N/A' in column answer"),
        ([{"problem": "x", "answer": "null"}], "'null' in column answer"),
        ([{"problem": "x", "answer": "2 and\n#### "}], "in column answer"),
        ([{"problem": "x", "answer": [2], "solution": r"\boxed{2}"}], "list in column answer"),
        ([{"problem": "x", "solution": "The sum is 5."}], "'The sum is 5.' in column solution"),
        ([{"problem": "x", "solution": "2"}], r"only the last \boxed{} counts"),
        ([{"prompt": [{"role": "assistant", "content": "x"}], "answer": 1}], "a message of the user"),
        ([{"prompt": [{"role": "user", "content": ["x"]}], "answer": 1}], "list in column prompt"),
        ([{"problem": 3, "answer": 1}], "int in column problem"),
        ([{"problem": "x", "answer": 1, "id": 7}, {"problem": "y", "answer": 1, "id": 7}], "'7' in rows 1 and 2"),
        (["x"], "own.jsonl:1: a str"),
    ],
)
def test_bad_files_are_refused_with_their_place(tmp_path, rows, said):
    source = open_source(f"jsonl:{write(tmp_path / 'own.jsonl', rows)}")
    with pytest.raises(UserError) as error:
        source.records(*source.splits)
    assert said in str(error.value)


def test_a_file_cut_in_the_middle_is_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"problem": ["x"] * 1000, "answer": ["1"] * 1000}), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="a whole parquet file"):
        open_source(f"parquet:{path}").records("train")
    jsonl = write(tmp_path / "own.jsonl", [{"problem": "x", "answer": 1}] * 3)
    jsonl.write_text(jsonl.read_text()[:-9])
    with pytest.raises(UserError, match=r"own\.jsonl:3"):
        open_source(f"jsonl:{jsonl}").records("train")


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv(DATA_DIR, raising=False)
    with pytest.raises(UserError, match="did you mean 'gsm8k'"):
        open_source("gsm8")
    with pytest.raises(UserError, match="no file"):
        open_source("jsonl:none.jsonl")
    with pytest.raises(UserError, match=r"ends with \.parquet"):
        open_source(f"parquet:{write(tmp_path / 'own.jsonl', [])}")
    with pytest.raises(UserError, match=DATA_DIR):
        open_source("math300").records("test")


def test_without_a_network_a_local_file_is_named(monkeypatch):
    monkeypatch.delenv(DATA_DIR, raising=False)
    for source in (open_source("gsm8k"), open_source("hub:someone/something:main")):
        with pytest.raises(UserError, match=r"docs/data.md") as error:
            source.records("train")
        assert "\n" not in str(error.value)


def test_a_data_set_of_the_hub_keeps_its_splits(tmp_path, monkeypatch):
    """As the library loads it, from a folder; what is all there to train on is cut by us."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split, count in (("train", 60), ("test", 7)):
        rows = [{"question": f"What is {n} for {split}?", "answer": f"#### {n}"} for n in range(count)]
        (tmp_path / "both").mkdir(exist_ok=True)
        write(tmp_path / "both" / f"{split}.jsonl", rows)
    source = open_source(f"hub:{tmp_path}/both")
    found = {split: source.records(split) for split in ("train", "validation", "test")}
    assert len(found["train"]) + len(found["validation"]) == 60
    assert found["validation"]
    assert [each.answer for each in found["test"]] == [str(n) for n in range(7)]
    (tmp_path / "one").mkdir()
    write(tmp_path / "one" / "train.jsonl", [{"problem": f"What is {n}?", "answer": n} for n in range(60)])
    source = open_source(f"hub:{tmp_path}/one")
    assert sum(len(source.records(split)) for split in ("train", "validation", "test")) == 60
    assert source.records("test")


def hub(tmp_path, monkeypatch, **splits):
    """A data set of the hub as a folder, with this many rows in every split; its task name."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "-".join(splits)
    folder.mkdir()
    for split, count in splits.items():
        write(folder / f"{split}.jsonl", [{"problem": f"What is {n} for {split}?", "answer": n} for n in range(count)])
    files = "".join(f"\n  - split: {split}\n    path: {split}.jsonl" for split in splits)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:{files}\n---\n")
    return f"hub:{folder}"


@pytest.mark.parametrize(
    ("splits", "counts"),
    [
        ({"train_sft": 50, "dev": 3, "test_sft": 4}, (50, 3, 4)),
        ({"training": 50, "val": 3, "eval": 4}, (50, 3, 4)),
        ({"train": 50, "val": 3, "test": 5}, (50, 3, 5)),
        ({"train": 50, "eval": 4, "test": 5}, (50, 4, 5)),
        ({"eval": 4}, (0, 0, 4)),
        ({"dev": 4}, (0, 4, 0)),
    ],
)
def test_other_names_of_splits_are_understood(tmp_path, monkeypatch, splits, counts):
    source = open_source(hub(tmp_path, monkeypatch, **splits))
    assert tuple(len(source.records(split)) for split in ("train", "validation", "test")) == counts


def test_a_split_of_the_hub_is_asked_for_by_its_name(tmp_path, monkeypatch):
    """Where names are not clear. The only split of a set, whatever it is called, is divided like a file."""
    name = hub(tmp_path, monkeypatch, train_sft=60, train_gen=3)
    with pytest.raises(UserError, match=r"'train_sft' and 'train_gen' in hub:.*; name one: hub:.*@train_sft"):
        open_source(name).records("train")
    for one in (f"{name}@train_sft", hub(tmp_path, monkeypatch, main=60)):
        source = open_source(one)
        assert sum(len(source.records(split)) for split in ("train", "validation", "test")) == 60
        assert source.records("test")
    with pytest.raises(UserError, match="Unknown split"):
        open_source(f"{name}@test").records("test")


# Damage


GOOD = r"Let $\frac{a}{b} \times \beta = 3$. What is $\rho$?"


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        ("Let $x$ satisfy the following conditions:", "truncated"),
        ("There is a unique integer $h$ such that", "truncated"),
        ("What is $x$ if $x + 1", "truncated"),
        (r"What is \begin{cases} x", "truncated"),
        ("The real numbers $a$ and $b$.", "truncated"),
        ("What is the area of the triangle shown below?", "figure"),
        ("如图, 求 $x$ 的值", "figure"),
        (r"Let $x$ be 3.\nFind its square.", "control-character"),
        (GOOD.replace(r"\f", "\f"), "lost-command"),
        (GOOD.replace(r"\t", "\t"), "lost-command"),
        (GOOD.replace(r"\b", "\b"), "lost-command"),
        (GOOD.replace(r"\r", "\r"), "lost-command"),
        ("Is $a \neq b$?", "lost-command"),
        ("What is $a \x14 + b$?", "control-character"),
        ("求 $x$ 的最小值", "language"),
        ("Чему равно значение этого выражения?", "language"),
        ("Se considera el triángulo cuyos lados miden cinco, siete y nueve metros. ¿Cuál es su área?", "language"),
    ],
)
def test_damage_is_found(problem, kind):
    assert set(damage.MEANING) == set(get_args(damage.Kind))
    assert kind in {found.kind for found in damage.find([record(problem)])}


@pytest.mark.parametrize(
    "problem",
    [
        GOOD,
        "What is 1 + 1?\n\nExpress it as a number.",
        "Find $x$.\n\tIt is an integer,\n\nnot a fraction.",
        "Compute $\\begin{cases} 1 \\end{cases}$",
        "The graph below [asy]draw((0,0)--(1,1));[/asy] shows what?",
        "Find the number of Köbe's ünlükely naïve façades.",
    ],
)
def test_good_problems_have_no_damage(problem):
    assert damage.find([record(problem)]) == []


@pytest.mark.parametrize(
    ("text", "answer", "is_damage"),
    [
        ("What is $200 + 4$? Answer: 204.", "204", True),
        ("What is $200 + 4$?\n\n**Answer:** $204$", "204", True),
        ("What is $200 + 4$? The answer is 204. Show it.", "204", True),
        ("What is $200 + 4$? Solution: it is \\boxed{204}.", "204", True),
        ("What is $200 + 4$?\n#### 204", "204", True),
        ("What is $200 + 4$ (Answer: 204)?", "204", True),
        ("What is $200 + 4$ Answer: 204.", "204", True),
        ("What is $200 + 4$? Answer: 205.", "204", False),
        ("Find $x$. If there is no such number, the answer is 0.", "0", False),
        ("Find 204 as a sum. If your answer is a fraction, give it in lowest terms.", "204", False),
        ("What is $204$? Give your answer as an integer.", "204", False),
    ],
)
def test_a_statement_that_says_the_answer(text, answer, is_damage):
    kinds = [each.kind for each in damage.find([record(text, answer)])]
    assert kinds == (["given-away"] if is_damage else [])


NAMES = ("frac", "times", "beta", "rho", "alpha", "neq", "vec", "text", "theta", "right", "begin", "nabla", "forall")
COMMANDS = [f"\\{name}" for name in NAMES]


@given(st.lists(st.sampled_from([*COMMANDS, "x", "+", "{1}", "\n", "$"]), max_size=12).map(" ".join))
def test_repair_inverts_what_an_escape_does(problem):
    """The commands whose first letters are an escape sequence, read as such and put back."""
    broken = problem
    for letter, escape in zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True):
        for command in COMMANDS:
            if command[1] == letter:
                broken = broken.replace(command, escape + command[2:])
    assert damage.repair(record(broken)).problem == problem


def test_copies_and_conflicts():
    records = [
        record("What is $1 + 1$?", "2", "a"),
        record("what is  1 + 1 ?", "2.", "b"),
        record("What is $1 - 1$?", "0", "c"),
        record("What is 2?", "2", "d"),
        record("What is 2?", "3", "e"),
        record("What is 2? Give a number.", "3", "f"),
        record("Evaluate", "3", "g"),
        record("Evaluate 1 + 1.", "2", "h"),
    ]
    found = [(each.id, each.kind) for each in damage.find(records)]
    assert found == [
        ("b", "duplicate"),
        ("d", "conflict"),
        ("d", "truncated"),  # f goes on after it, and has another answer
        ("e", "conflict"),
        ("g", "truncated"),
    ]


def test_an_answer_that_cannot_be_one():
    for answer in (r"\frac{\sqrt{3", "\0", "7" * 1001):
        assert [each.kind for each in damage.find([record(GOOD, answer)])] == ["answer"]


# Overlap


def shared_runs(one, two):
    """The share of the runs of `two` that are in `one`: the slow way."""
    runs = [two[i : i + overlap.RUN] for i in range(len(two) - overlap.RUN + 1)]
    inside = [one[i : i + overlap.RUN] for i in range(len(one) - overlap.RUN + 1)]
    distinct = [run for number, run in enumerate(runs) if run not in runs[:number]]
    return sum(run in inside for run in distinct) / len(distinct) if distinct else 0.0


def test_overlaps_equal_the_slow_way():
    rng = random.Random(0)
    vocabulary = [f"w{letter}" for letter in "abcdefgh"]
    texts = [" ".join(rng.choice(vocabulary) for _ in range(rng.randint(5, 40))) for _ in range(40)]
    pieces = [" ".join([*texts[i].split()[3:30], *texts[(i * 7) % 40].split()]) for i in range(30)]
    training = [record(text, name=f"t{n}") for n, text in enumerate([*texts[:20], *pieces])]
    benchmark = [record(text, name=f"b{n}") for n, text in enumerate(texts[10:])]
    found = {(each.id, each.other): each for each in overlap.overlaps(training, benchmark)}
    for one in training:
        for two in benchmark:
            share = shared_runs(words(one.problem), words(two.problem))
            if one.problem == two.problem:
                assert found[one.id, two.id].kind == "exact"
            elif share:
                assert found[one.id, two.id].kind == "13-gram"
                assert found[one.id, two.id].share == round(share, 3)
            else:
                assert (one.id, two.id) not in found


def test_the_same_words_overlap_and_common_phrases_do_not():
    phrase = "can be written in the form m over n where m and n are relatively prime positive integers find m plus n"
    training = [record(f"Number {n} {phrase}", name=str(n)) for n in range(overlap.COMMON)]
    training.append(record(r"What is $\dfrac{1}{2}$ of $3$?", name="same"))
    benchmark = [record(f"A cube {phrase}"), record(r"what is \frac12 of 3?".replace("12", "{1}{2}"), name="half")]
    (found,) = overlap.overlaps(training, benchmark)
    assert (found.kind, found.id, found.other, found.share) == ("normalised", "same", "half", 1.0)


# Cleaning


def test_a_cleaned_set_is_read_back_with_its_splits(tmp_path):
    records = [
        record(GOOD.replace(r"\f", "\f"), "3", "repaired", "validation"),
        record("What is 1 + 1?", "2", "good"),
        record("What is 1 + 1 ?", "2", "copy"),
        record("求 $x$", "2", "chinese"),
        record("Find the sum of all things that a benchmark asks of us here.", "2", "leaked"),
    ]
    benchmark = [record("Find the sum of all things that a benchmark asks of us here.", "2", "b")]
    cleaned = cleaning.clean(records, benchmark, [])
    assert cleaned.dropped == {"duplicate": 1, "language": 1, "exact": 1}
    out = tmp_path / "clean" / "set.parquet"
    card = cleaning.write(cleaned, open_source("dapo"), ["aime24"], out)
    source = open_source(f"parquet:{out}")
    assert [(each.id, each.problem) for each in source.records("train")] == [("good", "What is 1 + 1?")]
    assert [(each.id, each.problem) for each in source.records("validation")] == [("repaired", GOOD)]
    text = card.read_text()
    for part in ("2 of the 5 problems", "Apache-2.0", "aime24", "| lost-command | 1 | repaired |", "exact overlap"):
        assert part in text
    assert sorted(path.name for path in out.parent.iterdir()) == ["set.md", "set.parquet"]
    with pytest.raises(UserError, match="exists"):
        cleaning.write(cleaned, open_source("dapo"), [], out)
    with pytest.raises(UserError, match=r"\.parquet"):
        cleaning.check_vacant(tmp_path / "set.json")
    assert len(cleaning.clean(records, [], ["language", "duplicate"]).records) == 5


@pytest.mark.slow
@needs_data
def test_the_known_damage_and_overlaps_of_dapo_are_found(monkeypatch):
    from pyarrow import parquet

    monkeypatch.setenv(DATA_DIR, str(SHARED))
    flags = {row["id"]: row for row in parquet.read_table(SHARED / "dapo_train.parquet").to_pylist()}
    dapo = open_source("dapo")
    records = dapo.records(*dapo.main_splits)
    assert len(records) == len(flags)
    by_kind = {}
    for each in damage.find(records):
        by_kind.setdefault(each.kind, set()).add(each.id)
    cut = {name for name, row in flags.items() if row["flag"] == "truncated"}
    whole = {name for name, row in flags.items() if row["flag"].startswith("restored")}
    assert len(cut & (by_kind["truncated"] | by_kind["figure"])) > 0.9 * len(cut)
    assert len(whole & by_kind["truncated"]) < 0.02 * len(whole)
    assert {name for name, row in flags.items() if row["flag"] == "ambiguous_answers"} <= by_kind["conflict"]
    chinese = {name for name, row in flags.items() if row["lang"] == "zh"}
    assert len(chinese ^ by_kind["language"]) < 0.01 * len(chinese)
    benchmarks = [each for name in ("aime24", "amc23", "math300") for each in open_source(name).records("test")]
    shared = parquet.read_table(SHARED / "math_benchmarks.parquet").to_pylist()
    known = {row["id"] for row in shared if row["in_dapo"]}
    found = overlap.overlaps(records, benchmarks)
    assert known <= {each.other for each in found}
    assert {name for name, row in flags.items() if row["in_eval"]} <= {each.id for each in found}
