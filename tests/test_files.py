"""Lines of JSON with their numbers, and files that are complete or absent."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.errors import UserError
from parallel_r1.files import numbered_lines, parse_object, read_jsonl, safe_name, write_json, write_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=3) | st.just(None), max_size=6), st.booleans())
def test_every_object_comes_with_its_line(tmp_path_factory, rows, ascii_only):
    """None stands for a blank line."""
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    lines = (" \t" if row is None else json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    try:
        path.write_text("".join(f"{line}\r\n" for line in lines), encoding="utf-8", newline="")
    except UnicodeEncodeError:  # half of a surrogate pair is no text
        return
    assert list(read_jsonl(path)) == [(number, row) for number, row in enumerate(rows, 1) if row is not None]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{oops", "Expecting property name"),
        (b'{"a": 1', "Expecting"),
        (b"[1]", "a list"),
        (b"3", "a int"),
        (b'"x"', "a str"),
        (b'{"a": "\xff"}', "'utf-8' codec can't decode byte 0xff"),
        (b"[" * 100_000, "nested too deeply"),
        (b"{} {}", "Extra data"),
        (rb'{"a": "\ud83d"}', r"\ud83d, half of a surrogate pair"),
        (rb'{"a": ["\ud83d\ude00", "\uDE00"]}', r"\ude00, half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_one_message_with_its_place(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line + b"\n")
    rows = read_jsonl(path, fix="do this")
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(UserError) as caught:
        next(rows)
    message = str(caught.value)
    assert message.startswith(f"expected a JSON object on every line; found {path}:3: ")
    assert reason in message
    assert message.endswith("do this")
    assert "\n" not in message
    with pytest.raises(ValueError, match=r".+"):
        parse_object(line)


def test_a_last_line_that_was_being_written_is_dropped_where_that_is_asked_for(tmp_path):
    path = tmp_path / "a.jsonl"
    for rest in (b'{"b', b'{"b": 2}'):
        path.write_bytes(b'{"a": 1}\n' + rest)
        assert list(read_jsonl(path, drop_unfinished=True)) == [(1, {"a": 1})]
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (2, {"b": 2})]
    path.write_bytes(b'{"a": 1}\n{oops\n{"b"')
    with pytest.raises(UserError, match=r"a\.jsonl:2"):
        list(read_jsonl(path, drop_unfinished=True))


def test_a_byte_order_mark_is_no_content(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9\xe2\x80\xa8"}\n')
    assert list(read_jsonl(path)) == [(1, {"a": "é\u2028"})]


def test_a_whole_surrogate_pair_is_a_character():
    assert parse_object(rb'{"a": "\ud83d\ude00 \\ud83d"}') == {"a": "\U0001f600 \\ud83d"}


def test_what_utf8_cannot_hold_is_written_as_its_escape(tmp_path):
    write_text(tmp_path / "a.txt", "a\ud83db")
    assert (tmp_path / "a.txt").read_text() == r"a\ud83db"


NAMES = st.text(st.sampled_from("ab-_.:/@é\\ "), min_size=1, max_size=6) | st.just("x" * 300)


@given(st.lists(st.tuples(NAMES, NAMES), max_size=20, unique=True))
def test_names_of_files_are_safe_and_different(pairs):
    names = [safe_name(*pair) for pair in pairs]
    assert len(set(names)) == len(pairs)
    assert all(re.fullmatch(r"[\w@-][\w@.-]*", name, re.ASCII) and len(name) < 120 for name in names)


def test_names_of_files_are_readable():
    assert safe_name("sft", "countdown-easy") == "sft.countdown-easy"
    assert safe_name("sft", "dapo@plain") == "sft.dapo@plain"
    assert re.fullmatch(r"sft\.jsonl-data-x\.jsonl-\w{10}", safe_name("sft", "jsonl:data/x.jsonl"))


def test_blank_lines_count(tmp_path):
    assert list(numbered_lines([b"\xef\xbb\xbf\r\n", b"a\n", b"\xef\xbb\xbf"])) == [(2, b"a\n")]
    assert list(numbered_lines([b"\n", b"a\n", b" \n", b"b"])) == [(2, b"a\n"), (4, b"b")]


def test_a_json_file_is_complete_or_absent(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": [1, 2]})
    assert json.loads(path.read_text()) == {"a": [1, 2]}
    with pytest.raises(TypeError):
        write_json(path, object())
    assert json.loads(path.read_text()) == {"a": [1, 2]}
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]
