import numpy as np
import oracles
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import anything, well_formed
from torch.nn.attention.flex_attention import create_mask

from parallel_r1.answers.parser import parse, pieces
from parallel_r1.answers.trace import TRUNK
from parallel_r1.answers.visibility import layout, pack, strangers
from parallel_r1.training.batch import collate
from parallel_r1.training.sample import Sample

addresses = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=3).map(tuple)


def runs_of(text):
    return [(piece.address, len(piece.text)) for piece in pieces(text)]


@given(well_formed | anything)
def test_mask_and_positions_equal_the_oracle(text):
    runs = runs_of(text)
    by_token = [address for address, length in runs for _ in range(length)]
    laid = layout(runs)
    assert laid.positions.tolist() == oracles.positions(by_token)
    assert laid.mask().tolist() == oracles.mask(by_token)
    assert laid.critical_path == max(oracles.positions(by_token), default=-1) + 1


@given(st.lists(st.tuples(addresses, st.integers(0, 3)), max_size=8))
def test_any_addresses_equal_the_oracle(runs):
    by_token = [address for address, length in runs for _ in range(length)]
    laid = layout(runs)
    assert laid.positions.tolist() == oracles.positions(by_token)
    assert laid.mask().tolist() == oracles.mask(by_token)


@given(well_formed | anything)
def test_the_causal_scorer_erases_addresses(text):
    laid = layout(runs_of(text), "causal")
    assert laid.positions.tolist() == list(range(len(text)))
    assert (laid.mask() == np.tri(len(text), dtype=bool)).all()


@given(st.lists(st.tuples(addresses, st.integers(0, 3)), max_size=8), st.sampled_from(["isolated", "replay", "causal"]))
def test_every_token_has_one_place_and_is_predicted_by_what_it_sees_last(runs, scorer):
    laid = layout(runs, scorer)
    assert sorted(laid.source[laid.drawn].tolist()) == list(range(sum(length for _, length in runs)))
    for place, view in enumerate(oracles.views(laid.mask().tolist())):
        assert laid.previous[place] == ([-1, *view][-2])


@given((anything | well_formed).map(runs_of))
@settings(max_examples=20)
def test_under_replay_every_token_reads_a_plain_text(runs):
    """Whatever the tree: what a place sees is what its predecessor saw and the place itself, at positions 0, 1, ..;
    no token is there twice, and all are in reading order."""
    laid = layout(runs, "replay")
    views = oracles.views(laid.mask().tolist())
    for place, view in enumerate(views):
        assert view == [*(views[laid.previous[place]] if len(view) > 1 else []), place]
        assert laid.positions[view].tolist() == list(range(len(view)))
        sources = laid.source[view].tolist()
        assert sources == sorted(set(sources))


@given(well_formed)
@settings(max_examples=20)
def test_under_replay_paths_are_blind_and_the_rest_reads_everything(text):
    """A drawn token has read what its writer had: after a join all text before it, in a path nothing of the others."""
    runs = runs_of(text)
    by_token = [address for address, length in runs for _ in range(length)]
    laid = layout(runs, "replay")
    views = oracles.views(laid.mask().tolist())
    for place in laid.drawn.nonzero()[0]:
        token = laid.source[place]
        assert laid.source[views[place]].tolist() == oracles.read_before(by_token, token)
        if by_token[token] == TRUNK:
            assert laid.positions[place] == token


@given(anything)
@settings(max_examples=20)
def test_under_replay_the_trunk_reads_everything_whatever_the_defects(text):
    runs = runs_of(text)
    trunk = [address == TRUNK for address, length in runs for _ in range(length)]
    laid = layout(runs, "replay")
    views = oracles.views(laid.mask().tolist())
    for place in laid.drawn.nonzero()[0]:
        if trunk[laid.source[place]]:
            assert laid.source[views[place]].tolist() == list(range(laid.source[place] + 1))


prompted = st.lists(
    st.tuples(st.integers(0, 3), st.lists(well_formed.map(runs_of), min_size=1, max_size=3)), max_size=3
)


@given(prompted, st.sampled_from(["isolated", "replay", "causal"]))
@settings(max_examples=20)
def test_sequences_of_a_row_are_laid_out_as_if_alone(families, scorer):
    """Those with the same prompt have it once, and each sees it as if it were its own."""
    prompts = [prompt for prompt, _ in families]
    families = [[[(TRUNK, prompt), *runs] for runs in family] for prompt, family in families]
    packed = pack(families, scorer)
    expected = np.zeros((len(packed.positions),) * 2, dtype=bool)
    place = first = 0
    for prompt, family in zip(prompts, families, strict=True):
        shared = range(place, place + prompt)
        place += prompt
        for runs in family:
            alone = layout(runs, scorer)
            own = range(place, place + len(alone.positions) - prompt)
            row = [*shared, *own]
            expected[np.ix_(row, row)] |= alone.mask()
            assert packed.positions[row].tolist() == alone.positions.tolist()
            assert packed.drawn[row].tolist() == alone.drawn.tolist()
            assert (packed.source[own] == alone.source[prompt:] + first).all()
            previous = [row[at] if at >= 0 else -1 for at in alone.previous[prompt:]]
            assert packed.previous[own].tolist() == previous
            place += len(own)
            first += sum(length for _, length in runs)
    assert place == len(packed.positions)
    assert (packed.mask() == expected).all()


@given(addresses, addresses)
def test_strangers_are_mutual(a, b):
    assert strangers(a, b) == strangers(b, a)
    assert not strangers(a, a)
    assert not strangers(a, TRUNK)


def test_paths_share_positions_and_the_join_follows_the_longest():
    a, b = ((0, 0),), ((0, 1),)
    laid = layout([(TRUNK, 2), (a, 3), (b, 5), (TRUNK, 1)])
    assert laid.positions.tolist() == [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7]
    assert laid.critical_path == 8
    assert layout([]).critical_path == 0


@given(st.lists(well_formed, min_size=1, max_size=3))
@settings(max_examples=20)
def test_a_batch_holds_the_same_relation(tokenizer, tags, texts):
    """Rows of a padded batch and FlexAttention's mask_mod equal the oracle; padding sees itself only."""
    traces = [
        parse(tokenizer.encode(text, add_special_tokens=False), tags, prompt_ids=tokenizer.encode("Use 1"))
        for text in texts
    ]
    batch = collate([Sample(trace) for trace in traces], "isolated")
    mask = batch.sight.mask()
    n = batch.token_ids.shape[1]
    assert torch.equal(create_mask(batch.sight.mask_mod(), len(traces), None, n, n, device="cpu"), mask)
    for row, trace in enumerate(traces):
        by_token = [TRUNK] * len(trace.prompt_ids) + [span.address for span in trace.spans for _ in span.token_ids]
        size = len(by_token)
        assert mask[row, 0, :size, :size].tolist() == oracles.mask(by_token)
        assert batch.positions[row, :size].tolist() == oracles.positions(by_token)
        assert not mask[row, 0, :size, size:].any()
        assert torch.equal(mask[row, 0, size:, size:].diagonal(), torch.ones(n - size, dtype=torch.bool))
