"""Where the final answer of a text is."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.answers.syntax import boxes, last_box
from parallel_r1.tasks.grading.equal import compare
from parallel_r1.tasks.grading.extract import final_answer, without_cut_answer

BOTH = [
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
    (r"\framebox{4}", "4"),
    (r"\boxed   {4}", "4"),
    (r"it is $\boxed 12$", "12"),
    (r"it is \boxed 1.5 metres", "1.5"),
    (r"it is $\boxed 3/4$", "3/4"),
    (r"it is $\boxed 3 / 4$", "3 / 4"),
    (r"$\boxed -8$", "-8"),
    (r"$\boxed\frac34$ of it", r"\frac34"),
    (r"$\boxed{5}$, which I \boxed in the end", "5"),
    (r"\boxed{1} but \boxed{2", "1"),
    (r"\begin{pmatrix} 1 \\ \boxed{2} \end{pmatrix}", "2"),
    ("Final Answer: 5<|im_end|>", "5"),
    ("Final Answer: 5 <|endoftext|>\n<|im_start|>user\nand now? Final Answer: 6", "5"),
    ("Final Answer: 5</s></s>", "5"),
    ("Final Answer: 5 [/INST]", "5"),
    ("Final Answer: 5<｜end▁of▁sentence｜>", "5"),
    ("<answer>Final Answer: 5</answer>", "5"),
    ("Final Answer:\n$$\n5\n$$\nas I said", "$$\n5\n$$"),
    ("Final Answer:\n\\[\n5\n\\]", "\\[\n5\n\\]"),
    ("Final Answer:\n```\n5\n```", "5"),
    ("Final Answer: $\\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}$\nbye", "$\\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}$"),
    ("Final Answer: $$ 5\nand then", "$$ 5"),
    ("**Final Answer:** 5", "5"),
    ("**Final Answer:**\n5", "5"),
    ("Final Answer:", ""),
    ("no answer", None),
    (r"\boxed", None),
    ("", None),
]
LENIENT = [
    ("**Final Answer**: 5", "5"),
    ("**Final Answer**\n\n5\n", "5"),
    ("## Final Answer\n5", "5"),
    ("final answer: 5", "5"),
    ("Final Answer\n------\n5", "5"),
    ("Final answer → 5", "5"),
    ("<final_answer>5</final_answer>", "5"),
    ("### Answer\n5", "5"),
    ("The answer to this question is 5", "5"),
    ("FINAL ANSWER - see below\n\\boxed{5}", "5"),
    ("So the final answer is 5.", "5."),
    ("Final Answer 5", "5"),
    ("some steps\n#### 5", "5"),
    ("Therefore the answer is: 5", "5"),
    ("Answer: 5", "5"),
    ("The answer is 5. Let me check it again: 2 + 3.", "5"),
    ("<answer> 5 </answer>", "5"),
    (r"\boxed{2} and \boxed{3}", "2, 3"),
    (r"$\boxed{2}$, $\boxed{3}$", "2, 3"),
    (r"$\boxed{5}$. The final answer is what I have put into the box above", "5"),
    (r"$\boxed{5}$. So the answer is clear.", "5"),
    ("to find the final answer we add 2 and 3", None),
]


@pytest.mark.parametrize(("text", "answer"), BOTH)
def test_the_final_answer_is_the_last_one(text, answer):
    assert final_answer(text) == answer
    assert final_answer(text, "lenient") == answer


@pytest.mark.parametrize(("text", "answer"), LENIENT)
def test_other_models_write_it_in_other_ways(text, answer):
    assert final_answer(text, "lenient") == answer
    if r"\boxed" not in text:
        assert final_answer(text) is None


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("so\nFinal Answer: 7", "so\n"),
        ("so\nFinal Answer:\n7", "so\n"),
        ("Final Answer: 5\nno, Final Answer: 7.", "Final Answer: 5\nno, "),
        ("so\nFinal Answer: 7\n", "so\nFinal Answer: 7\n"),
        (r"Final Answer: so \boxed{7} and", r"Final Answer: so \boxed{7} and"),
        ("the answer is 7", "the answer is 7"),
    ],
)
def test_an_answer_that_the_budget_cut_does_not_count(text, rest):
    assert without_cut_answer(text) == rest


@given(
    st.recursive(
        st.sampled_from(["", "1", r"\}", r"\{", r"\\", "a b"]), lambda inner: st.builds("{{{}}}{}".format, inner, inner)
    )
)
def test_a_box_ends_at_its_own_brace(content):
    text = rf"}} \boxed{{0}} {{ \boxed{{{content}}} }}"
    assert last_box(text)[1] == content
    assert [text[box.start : box.end] for box in boxes(text)] == [r"\boxed{0}", rf"\boxed{{{content}}}"]


@given(
    st.text(max_size=60)
    | st.text(alphabet="\\boxed{} $0", max_size=80)
    | st.text(alphabet="\\frac{}()^_|1x,=<", max_size=60)
)
def test_no_text_breaks_the_reading(text):
    for find in ("strict", "lenient"):
        final_answer(text, find)
    assert isinstance(compare(text, "7"), bool | tuple)
    assert isinstance(compare("7", text), bool | tuple)
    compare(text, text)


@pytest.mark.parametrize(
    "piece", [r"\boxed{", r"\boxed ", "Final Answer: ", "</s>", "answer is ", "####\n", "\\begin{"]
)
def test_a_megabyte_is_read_in_a_moment(piece):
    text = piece * (1_000_000 // len(piece))
    started = time.process_time()
    for find in ("strict", "lenient"):
        final_answer(text, find)
    assert time.process_time() - started < 20  # a second or two; with squares of the length it would be hours
