"""The verdicts that people give, and the problems of MATH."""

import json
import random
import re
from functools import cache

import pytest
from conftest import SHARED, needs_data

from parallel_r1.tasks.grading.extract import final_answer
from parallel_r1.tasks.grading.grader import Grader

CASES = SHARED.parent / "cases" / "grading.jsonl"
"""Final answers with the verdicts that people give; beside the repository, never part of it."""


@pytest.fixture(scope="module")
def grader():
    with_two = Grader(size=2)
    yield with_two
    with_two.close()


@pytest.mark.skipif(not CASES.is_file(), reason=f"no cases in {CASES}")
def test_the_handed_cases_are_judged_as_people_judge_them(grader):
    rows = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines() if line]
    verdicts = grader.grade([(final_answer(row["text"], "lenient"), str(row["answer"])) for row in rows])
    wrong = [row for row, verdict in zip(rows, verdicts, strict=True) if verdict != row["correct"]]
    assert [row for row in wrong if not row["correct"]] == []  # no wrong answer is accepted
    assert len(wrong) <= 0.03 * len(rows), "\n".join(map(str, wrong))


def references(every=1):
    """The whole references of MATH-train; 99 of the file are cut at their first closing brace."""
    rows = math_train()[::every]
    return [row for row in rows if row["answer"].count("{") == row["answer"].count("}")]


@cache
def math_train():
    from pyarrow import parquet

    return parquet.read_table(SHARED / "math_train.parquet").to_pylist()


def share_right(grader, rows, form, find):
    return sum(grader.grade([(final_answer(form % row["answer"], find), row["answer"]) for row in rows])) / len(rows)


@needs_data
@pytest.mark.parametrize("form", ["Final Answer: %s", r"so it is $\boxed{%s}$."])
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_references_of_math_equal_themselves(grader, form, every):
    for find in ("strict", "lenient"):
        assert share_right(grader, references(every), form, find) >= 0.9997


@needs_data
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_solutions_of_math_are_right(grader, every):
    rows = references(every)
    assert sum(grader.grade([(final_answer(row["solution"]), row["answer"]) for row in rows])) >= 0.999 * len(rows)


@needs_data
def test_answers_to_other_problems_of_math_are_wrong(grader):
    rows = references(3)
    pairs = [(one["answer"], two["answer"]) for one, two in zip(rows, rows[7:], strict=False)]
    others = [pair for pair in pairs if core(pair[0]) != core(pair[1])]
    accepted = [pair for pair, right in zip(others, grader.grade(others), strict=True) if right]
    assert len(accepted) <= 0.001 * len(others), accepted


def core(text):
    """An answer without its unit and its name, for `4 feet` and `x = 4` are right for 4."""
    text = re.sub(r"\\(?:text|mbox)\{[^{}]*\}", "", text.rpartition("=")[2])
    return re.sub(r"\\left|\\right|\\[,! ]|\s|\\\$|\^\\circ|\\%|%", "", text.replace("dfrac", "frac"))


# Mutations: an answer that is nearly the reference. None means that this one has nothing to change.


def digit(text, rng):
    return _changed(text, rng, r"\d", lambda old: str((int(old) + rng.randint(1, 9)) % 10))


def longer(text, rng):
    return _changed(text, rng, r"\d+(?!\d*\.?\d*0?$)|\d*[1-9]$", lambda old: old + str(rng.randint(1, 9)))


def sign(text, rng):
    """The other sign of the first term."""
    if re.search(r"[,=]|\\text|\\mbox|pm|cup|begin|\\\{|^-?0$", text) or not re.match(r"-|[\d\\]", text):
        return None
    return text[1:] if text.startswith("-") else "-" + text


def inner_sign(text, rng):
    return _changed(text, rng, r"(?<=[\w})]) *[+-] *(?=\d|\\[fs])", lambda old: "-" if "+" in old else "+")


def base(text, rng):
    match = re.fullmatch(r"(\w+)_\{?(\d+)\}?", text)
    return f"{match[1]}_{int(match[2]) + 1}" if match else None


def order(text, rng):
    match = re.fullmatch(r"(?:\\left)?\(([^,()]+),([^,()]+?)(?:\\right)?\)", text)
    return f"({match[2]},{match[1]})" if match and match[1].strip() != match[2].strip() else None


def bracket(text, rng):
    if text.count(",") != 1 or not re.fullmatch(r"(\\left)?[\[(][^()\[\]]*,[^()\[\]]*[\])]", text):
        return None
    return _changed(text, rng, r"[\[\]()]", lambda old: {"(": "[", "[": "(", ")": "]", "]": ")"}[old])


def exponent(text, rng):
    return (
        None if "mbox" in text else _changed(text, rng, r"(?<=\^)\d|(?<=\^\{)\d+(?=\})", lambda old: str(int(old) + 1))
    )


def root(text, rng):
    return _changed(text, rng, r"\\sqrt(?=\{\d)", lambda old: "")


def without_pi(text, rng):
    return _changed(text, rng, r"(?<=\d) *\\pi", lambda old: "")


def fewer(text, rng):
    parts = re.fullmatch(r"([-\d]{1,2}(?:, ?[-\d]{1,2})*), ?[-\d]+", text)
    return parts[1] if parts and len(set(re.findall(r"-?\d+", text))) == text.count(",") + 1 else None


def as_set(text, rng):
    match = re.fullmatch(r"(?:\\left)?\(([^()]*,[^()]*?)(?:\\right)?\)", text)
    return rf"\{{{match[1]}\}}" if match else None


def upside_down(text, rng):
    match = re.fullmatch(r"(.*?)\\frac\{([^{}]+)\}\{([^{}]+)\}(.*)", text)
    return rf"{match[1]}\frac{{{match[3]}}}{{{match[2]}}}{match[4]}" if match and match[2] != match[3] else None


def seventh_digit(text, rng):
    return f"{text}0001" if re.fullmatch(r"-?\d*\.\d+", text) else None


def denied(text, rng):
    return f"It is not ${text}$" if "text" not in text else None


def of_two(text, rng):
    return f"{text} or {text}1" if re.fullmatch(r"-?[1-9]\d*", text) else None


MUTATIONS = [digit, longer, sign, inner_sign, base, order, bracket, exponent, root, without_pi, fewer, as_set]
MUTATIONS += [upside_down, seventh_digit, denied, of_two]


def _changed(text, rng, pattern, change):
    """A text in which one of the matches of a pattern is changed."""
    if not (matches := list(re.finditer(pattern, text))):
        return None
    match = rng.choice(matches)
    return text[: match.start()] + change(match[0]) + text[match.end() :]


@needs_data
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_mutated_references_of_math_are_wrong(grader, every):
    rng = random.Random(5)
    pairs = [
        (mutated, row["answer"])
        for row in references(every)
        for mutation in MUTATIONS
        if (mutated := mutation(row["answer"], rng)) and mutated != row["answer"]
    ]
    assert len(pairs) > 20_000 / every
    accepted = [pair for pair, right in zip(pairs, grader.grade(pairs), strict=True) if right]
    assert len(accepted) <= 0.001 * len(pairs), accepted
