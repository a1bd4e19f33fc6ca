import pytest

from parallel_r1.errors import UserError
from parallel_r1.evaluation.suites import SUITES, load_suite
from parallel_r1.tasks.public_sets import PUBLIC_SETS, open_source


def test_the_suites_that_ship_name_public_sets_with_a_licence():
    for suite in SUITES.values():
        for task in suite.samples:
            assert PUBLIC_SETS[task].licence
            assert PUBLIC_SETS[task].splits == ("test",)
    assert load_suite("paper").samples == {"aime25": 16, "aime24": 16, "amc23": 16, "math300": 1}


def test_a_suite_of_ones_own(tmp_path):
    (tmp_path / "mine.toml").write_text('[samples]\naime26 = 4\n"jsonl:x.jsonl" = 1\n')
    suite = load_suite(str(tmp_path / "mine.toml"))
    assert (suite.name, suite.samples) == ("mine", {"aime26": 4, "jsonl:x.jsonl": 1})
    problems = tmp_path / "x.jsonl"
    problems.write_text('{"problem": "1?", "answer": 1}\n' * 3)
    (task,) = load_suite(str(problems)).samples
    assert task == f"jsonl:{problems}@test"
    assert len(open_source(task).records("test")) == 3  # not the eighth that is set apart
    problems.write_text('{"problem": "1?", "answer": 1, "split": "test"}\n{"problem": "2?", "answer": 2}\n')
    assert load_suite(str(problems)).samples == {f"jsonl:{problems}": 16}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "a suite in TOML"),
        ("", "found nothing in"),
        ("aime26 = 4", "found aime26 in"),
        ("[samples]\naime26 = 0", "a whole number above 0 for aime26"),
        ("[samples]\naime26 = true", "found True"),
        ("[samples]", "a table"),
    ],
)
def test_a_suite_with_a_mistake(tmp_path, text, said):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        load_suite(str(tmp_path / "mine.toml"))
    assert "\n" not in str(caught.value)


def test_no_such_suite(tmp_path):
    with pytest.raises(UserError, match="did you mean 'paper'"):
        load_suite("papper")
    with pytest.raises(UserError, match=r"no file .*no\.toml"):
        load_suite(str(tmp_path / "no.toml"))
