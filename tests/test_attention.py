import numpy as np
import oracles
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import anything, well_formed
from torch.nn.attention.flex_attention import create_mask

from parallel_r1.attention import layout, strangers
from parallel_r1.batch import collate
from parallel_r1.trace import TRUNK, parse, parse_text, text_pieces

addresses = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=3).map(tuple)


def runs_of(text):
    return [
        (address, len(piece)) for (piece, _), address in zip(text_pieces(text), parse_text(text).addresses, strict=True)
    ]


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
    batch = collate(traces, "isolated")
    mask = batch.mask()
    n = batch.token_ids.shape[1]
    assert torch.equal(create_mask(batch.mask_mod(), len(traces), None, n, n, device="cpu"), mask)
    for row, trace in enumerate(traces):
        by_token = [TRUNK] * len(trace.prompt_ids) + [span.address for span in trace.spans for _ in span.token_ids]
        size = len(by_token)
        assert mask[row, 0, :size, :size].tolist() == oracles.mask(by_token)
        assert batch.positions[row, :size].tolist() == oracles.positions(by_token)
        assert not mask[row, 0, :size, size:].any()
        assert torch.equal(mask[row, 0, size:, size:].diagonal(), torch.ones(n - size, dtype=torch.bool))
