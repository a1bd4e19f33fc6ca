"""What is imitated under every schema: a teacher's answers in the model's schema, with plans and numbers of paths."""

import copy
import re
from dataclasses import replace
from itertools import islice

import pytest

import parallel_r1 as pr
from parallel_r1 import models
from parallel_r1.answers.convert import convert
from parallel_r1.answers.parser import foreign_tag, parse_text
from parallel_r1.answers.schemas import DEFAULT, SCHEMAS, Schema
from parallel_r1.coldstart.examples import Example, check, checked, examples, plain_texts, to_trace, written
from parallel_r1.coldstart.settings import Data
from parallel_r1.errors import UserError
from parallel_r1.models.policy import Policy
from parallel_r1.models.tags import add_tags

PARTS = Data(tasks={"parts-hard": 1.0}, parallel=1.0)
ALL = pytest.mark.parametrize("name", SCHEMAS)


def policy_of(schema):
    """A policy without a model, whose tokenizer was trained for a schema."""
    tokenizer = models.train_tokenizer(plain_texts(PARTS, 0, 200, schema), 400, 1, schema)
    return Policy(None, tokenizer, models.tag_ids(tokenizer))


@ALL
def test_a_new_tokenizer_has_the_tags_of_its_schema_alone(name, tmp_path):
    schema = SCHEMAS[name]
    policy = policy_of(schema)
    assert policy.tags.schema == schema
    assert set(policy.tokenizer.get_added_vocab()) == {"<|endoftext|>", *schema.tags}
    policy.tokenizer.save_pretrained(tmp_path)
    assert models.tag_ids(models.load_tokenizer(str(tmp_path))) == policy.tags


@ALL
def test_a_digit_is_a_token(name):
    policy = policy_of(SCHEMAS[name])
    assert [policy.decode([token]) for token in policy.encode("317")] == ["3", "1", "7"]


@ALL
@pytest.mark.parametrize("counted", [False, True])
def test_a_teacher_in_every_schema(name, counted):
    """Well-formed, with as many paths as parts, and with the runtime's text given; a number where one is asked for."""
    schema, policy = SCHEMAS[name], policy_of(SCHEMAS[name])
    for example in islice(examples(PARTS, 0), 10):
        parts = example.prompt.count(",") + 1
        trace = to_trace(example, policy, "isolated", counted=counted)
        text = policy.decode(trace.token_ids)
        assert (trace.defects, parse_text(text, schema).paths) == ((), [parts])
        assert trace.schema == schema
        first = next(span for span in trace.spans if span.address == ())
        if counted and not schema.plan:
            assert text.startswith(f"<Parallel>{parts}{schema.stub}")
            assert first.sampled
            assert first.token_ids == tuple(policy.encode(f"<Parallel>{parts}"))


def test_the_items_of_a_made_up_plan_say_nothing_of_the_paths():
    example = next(examples(PARTS, 0))
    text = written(example, SCHEMAS["threadweaver"])
    plan = text[: text.index("</Outlines>")]
    assert "=" in text
    assert "=" not in plan
    assert "<Outline>1</Outline>\n<Outline>2</Outline>" in plan
    assert convert(text, SCHEMAS["threadweaver"], DEFAULT).count("1") < text.count("1")  # and they are left out again


def test_a_number_of_paths_is_left_out_in_another_schema():
    text = DEFAULT.write(["a", "b"], "c", counted=True)
    assert text.startswith("<Parallel>2<Path>a")
    assert parse_text(text).defects == []
    assert convert(text, DEFAULT, DEFAULT) == DEFAULT.write(["a", "b"], "c")
    assert "2<Path>" not in convert(text, DEFAULT, SCHEMAS["parallel-r1-numbered"])


def test_a_number_of_paths_is_imitated_only_where_the_policy_writes_it():
    text = DEFAULT.write(["a", "b"], "c", counted=True)
    example = Example("p", text)
    assert written(example, DEFAULT) == DEFAULT.write(["a", "b"], "c")
    assert written(example, DEFAULT, counted=True) == text


def test_a_number_that_a_path_wrote_itself_is_its_head():
    text = DEFAULT.write(["1: a", "2: b"], "c")
    assert "<Path>1: a</Path><Path>2: b</Path>" in convert(text, DEFAULT, SCHEMAS["parallel-r1-numbered"])
    assert "<step>\n1: a</step>" in convert(text, DEFAULT, SCHEMAS["npr"])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("threadweaver", SCHEMAS["threadweaver"].write(["a", "b"], "c", ["x"]), "1 items"),
        ("parallel-r1", DEFAULT.write(["a", "b"], "c").replace("<Path>a", "3<Path>a"), "3 paths"),
        ("parallel-r1", DEFAULT.write(["a", "<step>"], "c"), "<step> is a tag of npr"),
    ],
)
def test_what_a_conversion_would_lose_or_make_up_is_refused(name, text, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        convert(text, SCHEMAS[name], SCHEMAS["multiverse"])


def test_an_answer_that_the_schema_of_the_model_cannot_hold_is_one_line():
    odd = Schema("odd", path=("+", ";"), fork=("[[", "]]"))
    with pytest.raises(UserError, match="the schema odd; found \\+ at character"):
        check(PARTS, odd)


def test_python_reads_answers_in_the_schema_of_the_policy(frozen, tokenizer):
    woven = copy.deepcopy(tokenizer)
    add_tags(woven, SCHEMAS["threadweaver"])
    policy = replace(frozen, tokenizer=woven, tags=models.tag_ids(woven))
    steps = pr.sft(policy, [("p\n", SCHEMAS["threadweaver"].write(["a", "b"], "c"))], steps=1, batch=1)
    assert iter(steps) is steps
    with pytest.raises(UserError, match="<Path> is a tag of parallel-r1"):
        pr.sft(policy, [("p\n", DEFAULT.write(["a", "b"], "c"))], steps=1, batch=1)


@ALL
def test_a_text_that_mixes_two_schemas_is_named(name):
    schema = SCHEMAS[name]
    text = schema.write(["a", "b"], "c", ["x", "y"])
    assert foreign_tag(text, schema) is None
    foreign = next(other for other in SCHEMAS.values() if set(other.tags) - set(schema.tags))
    tag = next(tag for tag in foreign.tags if tag not in schema.tags)
    defect = foreign_tag(text + tag, schema)
    assert (defect.kind, defect.at) == ("foreign-tag", len(text))
    assert f"read in {name}" in defect.message


def test_a_file_in_the_wrong_schema_is_refused_by_name():
    example = next(examples(PARTS, 0))
    thread = SCHEMAS["threadweaver"].write(["a", "b"], "c")
    with pytest.raises(UserError, match=r"row 3: <Outlines> is a tag of threadweaver.*data\.format"):
        checked(type(example)("p", thread), "row 3")
