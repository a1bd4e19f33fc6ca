import operator
from fractions import Fraction

import pytest
import sympy
from conftest import SHARED, needs_data
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1 import errors
from parallel_r1.answers.syntax import last_box
from parallel_r1.errors import UserError
from parallel_r1.tasks.grading import grader as pool
from parallel_r1.tasks.grading.equal import compare, number, tidy
from parallel_r1.tasks.grading.extract import final_answer
from parallel_r1.tasks.grading.grader import Grader
from parallel_r1.tasks.grading.values import differ


@pytest.fixture(scope="module")
def grader():
    with_one = Grader(size=1)
    yield with_one
    with_one.close()


@pytest.fixture
def strict():
    """A grader that has no patience."""
    with_limit = Grader(limit=0.3, size=1)
    yield with_limit
    with_limit.close()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\nFinal Answer: 72", "72"),
        ("Final Answer: 1\nno, Final Answer:  2 \nbye", "2"),
        ("Final Answer:\n\n  72\n", "72"),
        (r"is \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"Final Answer: 1, that is \boxed{2}", "2"),
        (r"\boxed{2}. Final Answer: 1", "1"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{x = \boxed{3}}", "3"),
        (r"\fbox{a} } {", "a"),
        (r"it is $\boxed 12$", "12"),
        (r"\boxed{1} but \boxed{2", "1"),
        (r"\begin{pmatrix} 1 \\ \boxed{2} \end{pmatrix}", "2"),
        ("Final Answer:", ""),
        ("no answer", None),
        (r"\boxed", None),
        ("", None),
    ],
)
def test_the_final_answer_is_the_last_one(text, answer):
    assert final_answer(text) == answer


@given(
    st.recursive(
        st.sampled_from(["", "1", r"\}", r"\{", r"\\", "a b"]), lambda inner: st.builds("{{{}}}{}".format, inner, inner)
    )
)
def test_a_box_ends_at_its_own_brace(content):
    assert last_box(rf"}} \boxed{{0}} {{ \boxed{{{content}}} }}")[1] == content


@given(st.text(max_size=60) | st.text(alphabet="\\boxed{} $0", max_size=80))
def test_no_text_breaks_the_reading(text):
    final_answer(text)
    compare(text, text)
    assert isinstance(compare(text, "7"), bool | tuple)


def spellings(value: Fraction) -> list[str]:
    above, below = abs(value.numerator), value.denominator
    sign = "-" if value < 0 else ""
    found = [
        rf"${sign}\frac{{{above}}}{{{below}}}$",
        f"{sign}{above}/{below}.",
        rf"\[{sign}\dfrac{{{above}}}{{{below}}}\]",
    ]
    found.append(rf"{sign}{above // below} \frac{{{above % below}}}{{{below}}}")
    if below == 1:
        found += [f"{value}", f"{value}.0", f"{sign}{above:,}", rf"\${value}", f"**{value}**"]
    return found


values = st.fractions(-(10**20), 10**20, max_denominator=500)


@given(values, values)
def test_plain_numbers_are_compared_exactly(one, two):
    for text in spellings(one):
        assert number(tidy(text)).value == one
        assert compare(text, f"{one.numerator}/{one.denominator}") is True
        assert compare(text, f"{two.numerator}/{two.denominator}") is (one == two)


SYMBOLS = sympy.symbols("x y")
expressions = st.recursive(
    st.integers(-9, 9).map(sympy.Integer) | st.sampled_from([*SYMBOLS, sympy.pi, sympy.I, sympy.sqrt(2)]),
    lambda inner: (
        st.builds(operator.add, inner, inner)
        | st.builds(operator.mul, inner, inner)
        | st.builds(lambda a, b: a / b if b != 0 else a, inner, inner)
        | st.builds(lambda a: a**2, inner)
        | st.builds(lambda a: sympy.sqrt(a**2 + 1), inner)
    ),
    max_leaves=6,
)


@given(expressions, expressions)
def test_only_answers_that_differ_are_told_apart_by_their_values(one, two):
    """Forms of the same expression never are; and where the values tell, so does sympy."""
    forms = [sympy.latex(form) for form in (one, sympy.expand(one), sympy.together(one), one + two - two)]
    for form in forms:
        assert not differ(form, forms[0])
        assert not differ(f"({form}, 7)", rf"\{{7; {forms[0]}\}}")
    if differ(sympy.latex(two), forms[0]):
        assert sympy.simplify(one - two) != 0


READABLE = [r"7-2\pi", r"\frac{7}{144}", r"3\sqrt{2}", "x^3-10x^2+37x-52", "(1, 2)", "[0, 1)", "2^{-3}", "1-i", "2xy"]
READABLE += [
    r"\frac12",
    r"\{1, 3\}",
    r"\begin{pmatrix} 1/3 \\ 2 \end{pmatrix}",
    "(x+1)(x-1)",
    r"\sqrt[3]{9}",
    r"\frac\pi 2",
]
UNREADABLE = [
    r"2\frac{1}{2}",
    "1/2x",
    "5!",
    r"\sin x",
    "9^9^9",
    r"(0,1)\cup(2,3)",
    "1,234",
    r"50\%",
    "1_2",
    "(",
]


def test_values_tell_most_wrong_answers():
    for one in READABLE:
        for two in READABLE:
            assert differ(one, two) == (one != two)
        for text in UNREADABLE:
            assert differ(text, one) == (r"\cup" in text and "," not in one and "matrix" not in one)


RIGHT = [
    ("72", "72"),
    ("072", "72"),
    ("1,234", "1234"),
    ("10,\\!080", "10080"),
    ("0.5", r"\frac12"),
    ("0.333333", r"\frac{1}{3}"),
    ("3/4", "0.75"),
    ("2 1/2", "2.5"),
    (r"129\frac{1}{3}", r"\frac{388}{3}"),
    ("72 apples", "72"),
    ("The answer is 72.", "72"),
    (r"8\text{ cm}", "8"),
    ("8 cm", r"8 \mbox{ cm}^2"),
    ("$5.50 per pound", "5.5"),
    (r"75^\circ", "75"),
    ("50%", r"50\%"),
    ("50", r"50\%"),
    ("0.5", r"50\%"),
    (r"\{2, 1\}", r"\{1,2\}"),
    ("2, 1", "1,2"),
    ("1 or 2", "1,2"),
    ("1 and 2", r"1 \text{ and } 2"),
    ("$x = 1$ or $x = 2$", "x = 2, x = 1"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty)\cup(-\infty,2)"),
    ("[0, 1)", r"\left[ 0, 1 \right)"),
    ("(1, 2, 3)", r"\left( 1, 2, \frac{6}{2} \right)"),
    (r"\begin{pmatrix} 1/3 \\ 2 \end{pmatrix}", r"\begin{pmatrix} \frac{1}{3} \\ 2 \end{pmatrix}"),
    (r"3\sqrt{2}", r"\sqrt{18}"),
    ("√2", r"\sqrt{2}"),
    (r"\frac{\sqrt{6}}{3}", r"\sqrt{\frac{2}{3}}"),
    ("x^2 + 2x + 1", "(x+1)^2"),
    ("k = 1", "1"),
    ("7", "x = 7"),
    ("y = 2x + 1", "2x + 1 = y"),
    (r"1 \text{ and } 2", "2, 1"),
    ("1 + 5i", "5i + 1"),
    (r"2^{10}", "1024"),
    ("(B)", r"\text{(B)}"),
    ("B", r"\text{(B)}"),
    ("monday", r"\text{Monday}"),
    (r"\frac{9\pi}{20}", r"0.45\pi"),
    (r"It is $\frac34$ of it", r"\frac{3}{4}"),
]
WRONG = [
    ("73", "72"),
    ("", "72"),
    ("-72", "72"),
    ("0.3333", r"\frac{1}{3}"),
    ("71 or 72", "72"),
    ("71, 72", "72"),
    ("open('x', 'w').close() or 72", "72"),
    ("12 apples and 72 pears", "72"),
    ("$71 and $72", "72"),
    ("1 2 3 72", "72"),
    ("3x + 2d", "3x + 2"),
    ("2t", "2"),
    ("72}", "72"),
    ("x = 71", "72"),
    ("even", r"\text{odd}"),
    ("(2, 1)", "(1, 2)"),
    ("(0, 1]", "[0, 1)"),
    (r"\{1, 2, 3\}", r"\{1,2\}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
    (r"2\sqrt{3}", r"3\sqrt{2}"),
    ("5%", r"50\%"),
    ("A", r"\text{(B)}"),
    ("Tuesday", r"\text{Monday}"),
    ("x^2 + 2x", "(x+1)^2"),
    ("72", ""),
]


@pytest.mark.parametrize(("answer", "gold"), RIGHT)
def test_the_same_answer_in_other_words_is_right(grader, answer, gold):
    assert grader.right(answer, gold)


@pytest.mark.parametrize(("answer", "gold"), WRONG)
def test_another_answer_is_wrong(grader, answer, gold):
    assert not grader.right(answer, gold)


def test_what_is_read_here_is_what_math_verify_says(grader):
    """Wherever two plain numbers are compared without it."""
    texts = [
        "7",
        "-7",
        "0.5",
        "1/2",
        r"\frac{2}{4}",
        "0.333",
        r"\frac{1}{3}",
        "70.0",
        "0.50001",
        "1,000",
        "1000",
        "3.14",
    ]
    pairs = [(a, b) for a in texts for b in texts if isinstance(compare(a, b), bool)]
    assert len(pairs) > 100
    verdicts = grader._judge([(tidy(gold), tidy(answer)) for answer, gold in pairs])
    assert [compare(answer, gold) for answer, gold in pairs] == verdicts


def hostile(trap):
    return [
        "9^{9^{9^{9^9}}}",
        "((" * 200 + "8" + "))" * 200,
        "9" * 900,
        r"\int_0^{10^{9}} e^{x^{x^x}} dx",
        "7" * 1_000_000,
        "(" * 1_000_000,
        r"\boxed{" * 140_000,
        f"__import__('os').system('touch {trap}')",
        f"$(touch {trap}); `touch {trap}`",
        rf"\input{{|touch {trap}}} \write18{{touch {trap}}}",
        f"open('{trap}', 'w').close() or 7",
        "7\0",
        "\u202e7\u202c",
        "7\u200f",
        "\ud800",
    ]


def test_hostile_answers_are_wrong_and_the_pool_survives(tmp_path, strict):
    trap = tmp_path / "trap"
    first = strict.right("x+1", "1+x") and strict.workers[0].process
    verdicts = strict.grade([(text, "7") for text in hostile(trap)])
    assert verdicts == [False] * len(verdicts)
    assert not trap.exists()
    assert first.poll() is not None  # some of them take more than their time
    assert strict.right("x+2", "2+x")
    for text in hostile(trap):
        assert final_answer(text) in (None, "7")


def test_a_tower_does_not_hold_up_the_others(strict):
    pairs = [("9^9^9^9", "7"), ("x+3", "3+x"), ("8^9^9^9", "7"), ("x+4", "4+x"), ("x+4", "4+y")]
    assert strict.grade(pairs) == [False, True, False, True, False]


def test_several_processes_give_the_verdicts_of_one_and_some_are_remembered(grader, monkeypatch):
    pairs = [(rf"x \cup {n}", rf"x \cup {n // 2 * 2}") for n in range(8)]
    two = Grader(size=2)
    monkeypatch.setattr(pool, "KEPT", 4)
    assert two.grade(pairs) == grader.grade(pairs)
    asked = [worker.process for worker in two.workers]
    assert len(asked) == 2
    two.close()
    assert all(process.poll() is not None for process in asked)
    last = list(two.verdicts)[-1]
    assert two.grade([(last[1], last[0])]) == [two.verdicts[last]]
    assert not two.workers  # nobody was asked
    assert 4 <= len(two.verdicts) <= 8


def test_a_process_is_renewed_when_it_has_served_its_time(grader, monkeypatch):
    assert grader.right("x+6", "6+x")
    worker = grader.workers[0]
    monkeypatch.setattr(pool, "SERVED", worker.served + 2)
    assert grader.grade([(f"x+{n}", f"{n}+x") for n in range(7, 10)]) == [True] * 3
    assert worker.process.poll() is not None
    assert worker not in grader.workers


def test_a_library_that_cannot_be_loaded_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match="import math_verify"):
        Grader(size=1).right("x+1", "1+x")
    monkeypatch.setattr(errors, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"parallel-r1\[math\]"):
        Grader()


@needs_data
def test_solutions_of_math_are_right_and_those_of_other_problems_are_wrong():
    from pyarrow import parquet

    rows = parquet.read_table(SHARED / "math_train.parquet").to_pylist()[::3]
    whole = [row for row in rows if row["answer"].count("{") == row["answer"].count("}")]
    own = Grader().grade([(final_answer(row["solution"]), row["answer"]) for row in whole])
    assert sum(own) >= 0.995 * len(whole)
    pairs = [(one["answer"], two["answer"]) for one, two in zip(whole, whole[7:], strict=False)]
    others = [pair for pair in pairs if compare(*pair) is not True][::2]
    grader = Grader()
    accepted = [pair for pair, right in zip(others, grader.grade(others), strict=True) if right]
    grader.close()
    assert len(accepted) <= 0.001 * len(others), accepted
