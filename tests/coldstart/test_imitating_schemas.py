"""What is imitated under every schema: a teacher's answers in the model's schema, with plans and numbers of paths."""

from itertools import islice

import pytest

from parallel_r1 import models
from parallel_r1.answers.convert import convert
from parallel_r1.answers.parser import foreign_tag, parse_text
from parallel_r1.answers.schemas import DEFAULT, SCHEMAS
from parallel_r1.coldstart.examples import checked, examples, plain_texts, to_trace, written
from parallel_r1.coldstart.settings import Data
from parallel_r1.errors import UserError
from parallel_r1.models.policy import Policy

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
