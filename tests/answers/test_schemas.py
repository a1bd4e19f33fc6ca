"""Schemas: what they say is consistent, every one of them can be written and read, and mistakes are one line."""

import tomllib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.answers.parser import parse, parse_text, pieces, trunk
from parallel_r1.answers.schemas import DEFAULT, NUMBERED, SCHEMAS, Schema, load_schema
from parallel_r1.answers.shape import paths_of_text, shape
from parallel_r1.answers.trace import TRUNK
from parallel_r1.errors import UserError

EVERY = pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
schemas = st.sampled_from(list(SCHEMAS.values()))
words = st.text(alphabet="ab 1", min_size=1, max_size=6).filter(lambda text: text.strip())
TEXTS = {
    "parallel-r1": "<Parallel><Path>a</Path><Path>b</Path></Parallel>\n<Summary>c</Summary>",
    "parallel-r1-numbered": "<Parallel><Path>1: a</Path><Path>2: b</Path></Parallel>\n<Summary>c</Summary>",
    "threadweaver": """<Parallel>
<Outlines>
<Outline>x</Outline>
<Outline>y</Outline>
</Outlines>
<Thread>
1:a</Thread>
<Thread>
2:b</Thread>
</Parallel>c""",
    "multiverse": """<Parallel>
<Goal>
<Outline>x</Outline>
<Outline>y</Outline>
</Goal>
<Path>
1:a</Path>
<Path>
2:b</Path>
<Conclusion>c</Conclusion>
</Parallel>""",
    "npr": """<guideline>
<plan>x</plan>
<plan>y</plan>
</guideline>
<step>
1:a</step>
<step>
2:b</step>
<takeaway>c</takeaway>""",
}


@EVERY
def test_a_fork_in_every_schema(schema):
    text = schema.write(["a", "b"], "c", ["x", "y"] if schema.plan else ())
    assert text == TEXTS[schema.name]
    found = parse_text(f"so {text} then", schema)
    assert (found.defects, found.paths) == ([], [2])
    assert found.items == [2 if schema.plan else None]
    assert paths_of_text(text, schema) == (("a", "b"),)
    assert shape(text, schema).paths == (2,)


@EVERY
def test_the_runtime_writes_heads_the_join_and_the_tail(schema):
    text = schema.write(["a", "b"], "c", ["x", "y"] if schema.plan else ())
    given = [piece for piece in pieces(text, schema) if piece.given]
    heads = ["".join(p.text for p in given if p.address == ((0, path),)) for path in range(2)]
    assert heads == [schema.stub + schema.head_of(number) for number in (1, 2)]
    assert "".join(piece.text for piece in given if piece.address == TRUNK) == schema.join + schema.tail
    drawn = [piece.text for piece in pieces(text, schema) if not piece.given]
    assert {schema.opener, schema.path[1], "a", "b", "c"} <= set(drawn)


@given(schemas, st.lists(words, min_size=2, max_size=4), words, words)
def test_any_fork_is_well_formed_and_its_trunk_has_no_path(schema, paths, summary, after):
    text = schema.write([f"#{path}" for path in paths], summary) + after
    assert not parse_text(text, schema).defects
    assert "#" not in trunk(text, schema)
    assert trunk(text, schema).endswith(after)


@given(schemas, st.data())
def test_no_text_breaks_the_scanner_of_any_schema(schema, data):
    parts = st.sampled_from([*schema.tags, "a", "\n", "1:", "1: ", "2: ", "\n1:", " ", "3"])
    text = "".join(data.draw(st.lists(parts, max_size=24)))
    found = parse_text(text, schema)
    assert sum(length for *_, length in found.runs) == len(text)
    assert [defect.at for defect in found.defects] == sorted(defect.at for defect in found.defects)
    assert "".join(piece.text for piece in pieces(text, schema)) == text


@given(schemas, st.data())
def test_ids_and_text_agree_in_every_schema(tagged, schema, data):
    policy = tagged(schema)
    parts = st.sampled_from([*schema.tags, "a", "\n", schema.head_of(1) or "b", schema.head_of(2) or "c", "z"])
    text = "".join(data.draw(st.lists(parts, max_size=16)))
    if data.draw(st.booleans()):
        text += schema.write(["a", "b\n"], "c")
    ids, found = policy.encode(text), parse_text(text, schema)
    assert policy.decode(ids) == text
    trace = parse(ids, policy.tags)
    assert trace.well_formed == (not found.defects)
    assert "".join(
        text for span, text in zip(trace.spans, trace.texts(policy.decode), strict=True) if span.sampled
    ) == ("".join(piece.text for piece in pieces(text, schema) if not piece.given))


@pytest.mark.parametrize(
    ("schema", "old", "new", "kind"),
    [
        ("parallel-r1-numbered", "2: b", "b", "wrong-head"),
        ("parallel-r1-numbered", "2: b", "1: b", "wrong-head"),
        ("threadweaver", "2:b", "3:b", "wrong-head"),
        ("threadweaver", "<Outline>y</Outline>\n", "", "plan-mismatch"),
        ("threadweaver", "<Outline>x</Outline>\n<Outline>y</Outline>\n", "", "empty-plan"),
        ("threadweaver", "</Thread>\n</Parallel>", "</Thread></Parallel>", "missing-newline"),
        ("threadweaver", "</Thread>\n<Thread>", "</Thread><Thread>", "missing-newline"),
        ("threadweaver", "</Thread>\n<Thread>", "</Thread>and\n<Thread>", "text-between-paths"),
        ("multiverse", "\n<Conclusion>c</Conclusion>", "", "missing-summary"),
        ("multiverse", "<Conclusion>c", "<Conclusion>", "empty-summary"),
        ("multiverse", "\n</Parallel>", "", "unclosed-fork"),
        ("multiverse", "</Goal>", "", "unclosed-plan"),
        ("npr", "<takeaway>c</takeaway>", "c", "missing-summary"),
        ("npr", "\n<step>\n2:b</step>", "", "too-few-paths"),
        ("npr", "</plan>\n</guideline>", "</plan>", "stray-tag"),
        ("parallel-r1", "<Parallel>", "<Parallel>3", "count-mismatch"),
        ("parallel-r1", "<Parallel>", "<Parallel>many", "text-between-paths"),
    ],
)
def test_defects_of_plans_heads_and_counts(schema, old, new, kind):
    text = TEXTS[schema]
    assert old in text
    assert kind in [defect.kind for defect in parse_text(text.replace(old, new), SCHEMAS[schema]).defects]


def test_the_number_of_paths_may_stand_after_the_tag():
    assert not parse_text(TEXTS["parallel-r1"].replace("<Parallel>", "<Parallel>2")).defects


def test_an_item_may_be_left_open():
    schema = SCHEMAS["threadweaver"]
    text = TEXTS["threadweaver"].replace("</Outline>", "")
    assert not parse_text(text, schema).defects
    assert parse_text(text, schema).items == [2]


def test_a_path_may_begin_with_its_item():
    schema = replace(SCHEMAS["threadweaver"], name="copies", head="\n{number}. {item}\n")
    text = schema.write(["a", "b"], "c", ["the first", "the second"])
    assert "<Thread>\n2. the second\nb</Thread>" in text
    assert not parse_text(text, schema).defects
    wrong = parse_text(text.replace("2. the second", "2. the third"), schema).defects
    assert [defect.kind for defect in wrong] == ["wrong-head"]


def test_ten_thousand_items_are_read_at_once():
    schema = SCHEMAS["threadweaver"]
    text = TEXTS["threadweaver"].replace("<Outline>x</Outline>", "<Outline>x</Outline>" * 10_000)
    assert [defect.kind for defect in parse_text(text, schema).defects] == ["plan-mismatch"]


def test_forks_nest_unless_the_schema_says_no():
    nested = DEFAULT.write(["a", "b" + DEFAULT.write(["c", "d"], "e")], "f")
    assert not parse_text(nested).defects
    flat = replace(DEFAULT, name="flat", nests=False)
    assert "stray-tag" in [defect.kind for defect in parse_text(nested, flat).defects]


@EVERY
def test_a_schema_survives_as_plain_data(schema):
    assert Schema.from_dict(schema.to_dict(), "there") == schema


MINE = """
name = "mine"
path = ["<Branch>", "</Branch>"]
fork = ["<Split>", "</Split>"]
summary = ["<Merge>", "</Merge>"]
head = "{number}) "
gap = " "
"""


def test_a_schema_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    schema = load_schema(str(path))
    text = schema.write(["a", "b"], "c")
    assert text == "<Split><Branch>1) a</Branch><Branch>2) b</Branch></Split> <Merge>c</Merge>"
    assert not parse_text(text, schema).defects
    assert load_schema("parallel-r1-numbered") is NUMBERED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('path = ["<Split>", "</Branch>"]', "tags of which none is part of another"),
        ('path = ["<Branch>"]', "a pair of tags for 'path'"),
        ('path = ["branch", "</Branch>"]', "tags such as '<Path>'; found 'branch'"),
        ('pathes = ["<B>", "</B>"]', "did you mean 'path'?"),
        ("nests = 3", "true or false for 'nests'"),
        ("inside = true", "a gap stands before a summary outside the fork"),
        ('plan = ["<Plan>", "</Plan>"]', "a plan has items"),
        ('head = "{item}"', "only a plan has an item"),
        ('head = "{number}{number}"', "one {number}"),
        ('head = "<Merge>"', "tags stand in no head"),
        ('gap = "and"', "only white space stands between tags"),
        ('head = "{numbr}: "', "no placeholder but"),
        ('name = "npr"', "a name of its own"),
        ('name = ""', "a name of its own"),
        ("name", "a TOML file with a schema"),
    ],
)
def test_a_schema_that_contradicts_itself_is_one_line(tmp_path, change, said):
    key = change.partition(" = ")[0]
    lines = [line for line in MINE.splitlines() if not line.startswith(f"{key} =")]
    path = tmp_path / "mine.toml"
    path.write_text("\n".join([*lines, change]))
    with pytest.raises(UserError, match=said.replace("{", r"\{").replace("?", r"\?")) as error:
        load_schema(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [("thredweaver", "did you mean 'threadweaver'"), ("no.toml", "a TOML file"), ("", "a schema among")],
)
def test_a_schema_that_does_not_exist(name, said):
    with pytest.raises(UserError, match=said):
        load_schema(name)


def test_a_schema_needs_a_name_and_paths():
    for missing in ("name", "path"):
        values = {key: value for key, value in tomllib.loads(MINE).items() if key != missing}
        with pytest.raises(UserError, match=f"'{missing}' in here"):
            Schema.from_dict(values, "here")
