import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.data import FOLDER, open_source, public, split_of
from parallel_r1.errors import UserError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


# Reading


def test_a_whole_statement_is_read_whatever_the_columns_are_called(tmp_path):
    text = "Let $x = 1$.\n\nIts double:\n\n\nwhat is it?"
    rows = [
        {"problem": text, "answer": 2},
        {"question": text, "answer": "1 + 1 = 2\n#### 2"},
        {"prompt": [{"role": "system", "content": "no"}, {"role": "user", "content": text}], "solution": "2"},
        {"prompt": text, "reward_model": {"ground_truth": "2"}},
        {"problem": text, "answer": None, "solution": r"so \boxed{1}, twice \boxed{2}"},
        {"problem": text, "answer": 2.0, "id": "mine"},
    ]
    source = open_source(f"jsonl:{write(tmp_path / 'own.jsonl', rows)}")
    records = source.records(*source.splits)
    assert {(each.problem, each.answer) for each in records} == {(text, "2")}
    assert len({each.split for each in records}) == 1  # copies never lie in two splits
    assert records[-1].id == "mine"
    assert len({each.id for each in records}) == len(rows)


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
    with pytest.raises(UserError, match="'tset' in row 0"):
        open_source(f"jsonl:{write(tmp_path / 'own.jsonl', rows)}").records("test")


def test_a_public_set_is_read_from_a_folder(folder):
    write(folder / "gsm8k_train.jsonl", [{"question": f"What is {n}?", "answer": f"#### {n}"} for n in range(100)])
    write(folder / "aime25.jsonl", [{"problem": "What is 1?", "answer": 1}])
    shared = [{"problem": f"What is {n}?", "answer": n, "source": "aime24" if n else "amc23"} for n in range(3)]
    write(folder / "math_benchmarks.jsonl", shared)
    gsm8k = public()["gsm8k"]
    train, validation = gsm8k.records("train"), gsm8k.records("validation")
    assert len(train) + len(validation) == 100
    assert {each.id for each in gsm8k.records(*gsm8k.first)} == {each.id for each in train + validation}
    assert [len(public()[name].records("test")) for name in ("aime24", "amc23", "aime25")] == [2, 1, 1]
    with pytest.raises(UserError, match=r"gsm8k_test\.parquet"):
        gsm8k.records("test")
    with pytest.raises(UserError, match=r"none in .*math_benchmarks"):
        public()["math500"].records("test")
    with pytest.raises(UserError, match="aime24, which has test"):
        public()["aime24"].records("train")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "found none in"),
        ([{"problem": "x"}], "the answer in a column"),
        ([{"text": "x", "answer": 1}], "the statement in a column"),
        ([{"problem": "x", "answer": [1]}], "list in column answer of row 0"),
        ([{"problem": "x", "answer": True}], "bool in column answer"),
        ([{"problem": "x", "answer": " "}], "' ' in column answer"),
        ([{"problem": 3, "answer": 1}], "int in column problem"),
        ([{"problem": "x", "answer": 1, "id": 7}, {"problem": "y", "answer": 1, "id": 7}], "'7' in rows 0 and 1"),
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
    monkeypatch.delenv(FOLDER, raising=False)
    with pytest.raises(UserError, match="did you mean 'gsm8k'"):
        open_source("gsm8")
    with pytest.raises(UserError, match="no file"):
        open_source("jsonl:none.jsonl")
    with pytest.raises(UserError, match=r"ends with \.parquet"):
        open_source(f"parquet:{write(tmp_path / 'own.jsonl', [])}")
    with pytest.raises(UserError, match="--data-dir"):
        public()["math300"].records("test")


def test_without_a_network_a_local_file_is_named(monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    for source in (public()["gsm8k"], open_source("hub:someone/something:main")):
        with pytest.raises(UserError, match=r"parquet:PATH, or --data-dir") as error:
            source.records("train")
        assert "\n" not in str(error.value)
