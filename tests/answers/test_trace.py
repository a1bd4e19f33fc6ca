import pytest
from hypothesis import given
from strategies import anything, well_formed

from parallel_r1.answers.parser import parse, parse_text, pieces, trunk
from parallel_r1.answers.scanner import DEEPEST
from parallel_r1.answers.trace import TRUNK, Span, Trace

GOOD = "so <Parallel><Path>a</Path><Path>b</Path></Parallel>\n<Summary>c</Summary> Final Answer: 1"


def kinds(text: str) -> list[str]:
    return [defect.kind for defect in parse_text(text).defects]


def test_a_canonical_answer():
    found = parse_text(GOOD)
    assert found.defects == []
    assert found.paths == [2]
    assert found.fork_at == [3]
    by_text = {piece.text: piece.address for piece in pieces(GOOD)}
    assert by_text["a"] == ((0, 0),)
    assert by_text["b"] == ((0, 1),)
    assert by_text["c"] == by_text["so "] == by_text["</Parallel>"] == by_text["<Parallel>"] == TRUNK
    assert [piece.text for piece in pieces(GOOD) if piece.given] == [
        "<Path>",
        "<Path>",
        "</Parallel>",
        "\n",
        "<Summary>",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<Parallel><Path>a</Path></Parallel>\n<Summary>c</Summary>", ["too-few-paths"]),
        ("<Parallel><Path>a</Path><Path> </Path></Parallel>\n<Summary>c</Summary>", ["too-few-paths", "empty-path"]),
        ("<Parallel><Path>a</Path><Path>b</Path></Parallel><Summary>c</Summary>", ["missing-newline"]),
        ("<Parallel><Path>a</Path><Path>b</Path></Parallel>\nc", ["missing-summary"]),
        ("<Parallel><Path>a</Path><Path>b</Path></Parallel>", ["missing-summary"]),
        ("<Parallel><Path>a</Path><Path>b</Path></Parallel>\n<Summary>c", ["unclosed-summary"]),
        ("<Parallel><Path>a</Path><Path>b</Path></Parallel>\n<Summary></Summary>", ["empty-summary"]),
        ("<Parallel><Path>a<Path>b</Path></Parallel>\n<Summary>c</Summary>", ["unclosed-path"]),
        ("<Parallel><Path>a</Path><Path>b</Parallel>\n<Summary>c</Summary>", ["unclosed-path"]),
        ("<Parallel> <Path>a</Path>\n<Path>b</Path></Parallel>\n<Summary>c</Summary>", ["space-between-tags"] * 2),
        ("<Parallel>x<Path>a</Path><Path>b</Path></Parallel>\n<Summary>c</Summary>", ["text-between-paths"]),
        ("<Path>a</Path>", ["stray-tag", "stray-tag"]),
        ("<Summary>a</Summary>", ["stray-tag", "stray-tag"]),
        (GOOD + "</Parallel>", ["stray-tag"]),
        (GOOD.replace("</Summary>", "</Summary>\n<Summary>d</Summary>"), ["stray-tag", "stray-tag"]),
        ("<Parallel><Path>a", ["unclosed-fork", "too-few-paths", "unclosed-path"]),
        ("", []),
        ("just text", []),
    ],
)
def test_every_defect_is_named(text, expected):
    assert (
        sorted(kinds(text)) == sorted(expected) if "unclosed-fork" not in expected else "unclosed-fork" in kinds(text)
    )


def test_defects_say_where():
    text = "ab <Path>x"
    (defect,) = parse_text(text).defects
    assert text[defect.at :].startswith("<Path>")


def test_tags_inside_a_summary_are_text():
    assert "stray-tag" in kinds(GOOD.replace("c</S", "c<Parallel></S"))


@given(well_formed)
def test_well_formed_answers_have_no_defect(text):
    assert kinds(text) == []


@given(anything)
def test_no_text_breaks_the_scanner(text):
    found = parse_text(text)
    assert "".join(piece.text for piece in pieces(text)) == text
    assert len(found.addresses) == len(found.given) == len(text)
    assert [defect.at for defect in found.defects] == sorted(defect.at for defect in found.defects)


@given(well_formed | anything)
def test_ids_and_text_agree(tokenizer, tags, text):
    """The same scanner reads both; only the places differ."""
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    trace, found = parse(token_ids, tags), parse_text(text)
    assert trace.well_formed == (not found.defects)
    assert {address for span in trace.spans for address in [span.address]} == set(found.addresses)


@given(well_formed | anything)
def test_parse_loses_no_token_and_no_character(tokenizer, tags, text):
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    for sampler in ("isolated", "sequential"):
        trace = parse(token_ids, tags, sampler=sampler)
        assert list(trace.token_ids) == token_ids
        assert "".join(trace.texts(tokenizer.decode)) == tokenizer.decode(token_ids)
        assert parse(trace.token_ids, tags, sampler=sampler) == trace
        if sampler == "sequential":
            assert all(span.sampled for span in trace.spans)


def test_tags_in_the_prompt_are_no_structure(tokenizer, tags):
    prompt = tokenizer.encode("<Parallel><Path>x", add_special_tokens=False)
    trace = parse(tokenizer.encode("hello", add_special_tokens=False), tags, prompt_ids=prompt)
    assert trace.forks == 0
    assert trace.well_formed


def test_text_that_only_looks_like_a_tag_is_no_tag(tokenizer, tags):
    pieces = [token for part in ("<", "Par", "allel", ">") for token in tokenizer.encode(part)]
    assert parse(pieces, tags).well_formed


def test_the_trunk_leaves_the_paths_out(tokenizer, tags):
    trace = parse(tokenizer.encode(GOOD, add_special_tokens=False), tags)
    assert "a" not in tokenizer.decode(trace.trunk_ids).split("<Parallel>")[1].split("</Parallel>")[0]
    assert tokenizer.decode(trace.trunk_ids).endswith("Final Answer: 1")


def test_end_of_text_inside_a_path_is_a_defect(tokenizer, tags):
    (end,) = tags.eos
    token_ids = tokenizer.encode(GOOD, add_special_tokens=False)
    at = token_ids.index(tags.ids["</Path>"])
    trace = parse([*token_ids[:at], end, *token_ids[at:]], tags)
    assert [defect.kind for defect in trace.defects] == ["end-inside"]
    assert parse([*token_ids, end], tags).well_formed


def test_an_empty_answer():
    assert Trace((1,), ()).forks == 0


def test_hostile_nesting_stays_cheap():
    found = parse_text("<Parallel><Path>" * 20_000)
    assert max(map(len, found.addresses)) == DEEPEST
    assert "stray-tag" in {defect.kind for defect in found.defects}


@given(well_formed | anything)
def test_the_trunk_of_a_text_is_that_of_its_tokens(tokenizer, tags, text):
    trace = parse(tokenizer.encode(text, add_special_tokens=False), tags)
    assert trunk(text) == tokenizer.decode(trace.trunk_ids)


def test_a_character_that_is_split_between_spans_belongs_to_the_second():
    def decode(token_ids):
        return bytes(token_ids).decode("utf-8", errors="replace")

    letters = "né 東</Path>".encode()
    for cut in range(1, len(letters)):
        trace = Trace((1,), (Span(tuple(letters[:cut]), (), True), Span(tuple(letters[cut:]), (), False)))
        first, second = trace.texts(decode)
        assert first + second == "né 東</Path>"
        assert first == letters[:cut].decode("utf-8", errors="ignore")
    broken = Trace((1,), (Span(tuple(letters[:2]), (), True), Span(tuple(b"</Path>"), (), False)))
    assert broken.texts(decode) == ("n\ufffd", "</Path>")


def test_a_space_that_a_tokenizer_drops_in_front_stays():
    words = ["a", " b", " c"]

    def decode(token_ids):
        return "".join(words[token] for token in token_ids).removeprefix(" ")

    trace = Trace((1,), tuple(Span((token,), (), True) for token in range(3)))
    assert trace.texts(decode) == ("a", " b", " c")


@given(well_formed)
def test_forks_and_their_places_are_read_from_the_spans(tokenizer, tags, text):
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    trace = parse(token_ids, tags)
    assert trace.fork_at == [at for at, token in enumerate(token_ids) if token == tags.ids["<Parallel>"]]
    assert trace.forks == len(trace.fork_at) == len(parse_text(text).fork_at)
