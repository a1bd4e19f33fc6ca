"""Repair, and the formats of other projects."""

import pytest
from conftest import SHARED, needs_data
from hypothesis import given
from hypothesis import strategies as st
from strategies import anything, well_formed

from parallel_r1.answers.convert import convert, repair
from parallel_r1.answers.parser import parse_text, trunk
from parallel_r1.answers.schemas import DEFAULT as OURS
from parallel_r1.answers.schemas import SCHEMAS

OTHERS = [SCHEMAS[name] for name in ("multiverse", "npr", "threadweaver")]
PLANNING = pytest.mark.parametrize("other", OTHERS, ids=lambda schema: schema.name)
CANONICAL = (
    "Try it.\n<Parallel><Path>Add 1.</Path><Path>Take 2 away.</Path></Parallel>\n<Summary>Both.</Summary>\n\nDone."
)
LAID_OUT = {
    "threadweaver": """Try it.
<Parallel>
<Outlines>
<Outline>1: add</Outline>
<Outline>2: subtract</Outline>
</Outlines>
<Thread>
1: Add 1.
</Thread>
<Thread>
2: Take 2 away.
</Thread>
</Parallel>

Both.

Done.""",
    "multiverse": """Try it.
<Parallel>
<Goal>
<Outline>
1: add
</Outline>
<Outline>
2: subtract
</Outline>
</Goal>
<Path>
1: Add 1.
</Path>
<Path>
2: Take 2 away.
</Path>
<Conclusion>
Both.
</Conclusion>
</Parallel>

Done.""",
    "npr": """Try it.
<guideline>
<plan>1: add</plan>
<plan>2: subtract</plan>
</guideline>
<step>
1: Add 1.
</step>
<step>
2: Take 2 away.
</step>
<takeaway>
Both.
</takeaway>

Done.""",
}
UNCLOSED = CANONICAL.partition("</Summary>")[0] + "\n\nFinal Answer: 3"
PLANNED = CANONICAL.replace("<Parallel>", "1: add\n2: subtract\n<Parallel>")


@PLANNING
def test_a_published_layout_becomes_ours(other):
    assert convert(LAID_OUT[other.name], other, OURS) == PLANNED
    assert not parse_text(LAID_OUT[other.name], other).defects
    assert not parse_text(PLANNED).defects


@PLANNING
def test_ours_with_a_plan_goes_there_and_back(other):
    there = convert(PLANNED, OURS, other)
    assert convert(there, other, OURS) == PLANNED
    assert convert(convert(LAID_OUT[other.name], other, OURS), OURS, other) == there
    assert "".join(there.split()) == "".join(LAID_OUT[other.name].split())  # the same but for its layout
    assert not parse_text(there, other).defects


@PLANNING
def test_a_fork_without_a_plan_gets_one_and_loses_it_again(other):
    there = convert(CANONICAL, OURS, other)
    assert f"{other.item[0]}2: Take 2 away.{other.item[1]}" in there
    assert convert(there, other, OURS) == CANONICAL


plain = st.text(alphabet="ab.", min_size=1, max_size=5)
"""Words without white space, so that no layout is ambiguous."""


def forked(depth):
    inner = plain if depth == 0 else st.one_of(plain, st.tuples(plain, forked(depth - 1), plain).map("\n".join))
    paths = st.lists(inner.map("<Path>{}</Path>".format), min_size=1, max_size=3).map("".join)
    return st.tuples(paths, plain).map("<Parallel>{0[0]}</Parallel>\n<Summary>{0[1]}</Summary>".format)


answers = st.tuples(plain, forked(2), plain, forked(1), plain).map("\n\n".join)


@given(answers, st.sampled_from(OTHERS), st.sampled_from(OTHERS))
def test_any_answer_survives_every_format(text, first, second):
    there = convert(text, OURS, first)
    across = convert(there, first, second)
    # A line break before a nested fork is layout too, where a blank line has to say where a summary ends.
    assert convert(across, second, OURS).split() == text.split()
    assert parse_text(convert(there, first, OURS)).paths == parse_text(text).paths


@given(st.sampled_from(OTHERS), anything, st.integers(0, 200))
def test_what_is_broken_is_named_and_never_guessed(other, noise, at):
    text = LAID_OUT[other.name]
    for broken in (noise, text[:at] + noise + text[at:]):
        try:
            found = convert(broken, other, OURS)
        except ValueError as error:
            found = str(error)[str(error).index("character") :]
        assert isinstance(found, str)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a<Parallel>", "expected <Thread> at character 11, not the end"),
        ("<Parallel><Thread>a</Parallel>", "expected </Thread> at character 19, not </Parallel>"),
        ("<Parallel><Thread>a</Thread>b<Thread>c</Thread></Parallel>", "belongs to nothing"),
        ("a</Thread>b", "</Thread> at character 1 closes nothing"),
        ("<Outline>1: a</Outline>", "<Outline> at character 0 closes nothing"),
    ],
)
def test_broken_texts_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        convert(text, SCHEMAS["threadweaver"], OURS)


def test_what_a_format_does_not_have():
    without = "<Parallel>\n<Thread>a</Thread>\n<Thread>b</Thread>\n</Parallel>"
    ours = convert(without, SCHEMAS["threadweaver"], OURS)
    assert [defect.kind for defect in parse_text(ours).defects] == ["missing-summary"]
    goal = LAID_OUT["multiverse"].replace("<Goal>\n", "<Goal>\nTwo ways.\n")
    assert convert(goal, SCHEMAS["multiverse"], OURS) == PLANNED.replace("1: add", "Two ways.\n1: add")
    one = LAID_OUT["npr"].replace("<plan>2: subtract</plan>\n", "")
    with pytest.raises(ValueError, match="the plan has 1 items, and 2 paths came"):
        convert(one, SCHEMAS["npr"], OURS)


@pytest.mark.parametrize(
    ("text", "repaired", "changes"),
    [
        (CANONICAL, CANONICAL, []),
        (
            CANONICAL.replace("<Path>", "\n  <Path>").replace("</Parallel>", "\n</Parallel>"),
            CANONICAL,
            ["space-between-tags"],
        ),
        (CANONICAL.replace("\n<Summary>", "<Summary>"), CANONICAL, ["break-before-summary"]),
        (CANONICAL.replace("\n<Summary>", "\n\n <Summary>"), CANONICAL, ["break-before-summary"]),
        (CANONICAL.partition("</Summary>")[0] + " \n", CANONICAL.partition("\n\nDone.")[0], ["unclosed-summary"]),
        (UNCLOSED, UNCLOSED.replace("\n\nFinal", "</Summary>\n\nFinal"), ["unclosed-summary"]),
        ("<Summary>Final Answer: 1", "<Summary>Final Answer: 1", []),
        ("<Parallel> <Path>a</Path>b", "<Parallel><Path>a</Path>b", ["space-between-tags"]),
    ],
)
def test_layout_is_repaired(text, repaired, changes):
    assert repair(text) == (repaired, changes)


@given(anything)
def test_repair_touches_no_word_and_adds_no_defect(text):
    repaired, changes = repair(text)
    assert repair(repaired) == (repaired, [])
    assert bool(changes) == (repaired != text)
    closing = ["</Summary>"] * ("unclosed-summary" in changes)
    assert "".join(repaired.split()) == "".join([*text.split(), *closing])
    assert len(parse_text(repaired).defects) <= len(parse_text(text).defects)


@given(well_formed)
def test_what_is_well_formed_stays(text):
    assert repair(text) == (text, [])


@needs_data
def test_real_traces_survive_every_format():
    from pyarrow import parquet

    traces = parquet.read_table(SHARED / "parallel_gsm8k_traces.parquet").column("trace").to_pylist()
    valid = [text for text in (repair(trace)[0] for trace in traces) if not parse_text(text).defects]
    assert len(valid) > 250
    for text in valid:
        for other in OTHERS:
            there = convert(text, OURS, other)
            assert not any(tag in there for tag in set(OURS.tags) - set(other.tags))
            assert not parse_text(there, other).defects
            back = convert(there, other, OURS)
            assert "".join(back.split()) == "".join(text.split())
            assert "".join(trunk(back).split()) == "".join(trunk(text).split())
