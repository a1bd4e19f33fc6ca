"""Block masks of FlexAttention, found from addresses, against those that torch finds place by place."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import anything, well_formed
from test_attention import rows, scorers, sight_of
from torch.nn.attention.flex_attention import create_block_mask

from parallel_r1.models import flex

block_sizes = st.sampled_from([1, 4, 16])


def pairs(sight, window, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "BLOCK", size)
        return flex._pairs(sight.address_ids, sight.positions, sight.sees, window)


def by_block(mask, size):
    """By pair of blocks, whether some and whether all of the places see each other; a place that is not there sees all
    and is seen by all for `all`, and is in no pair for `some`."""
    b, n, _ = mask.shape
    blocks = -(-n // size)
    some = torch.zeros(b, blocks * size, blocks * size, dtype=torch.bool)
    some[:, :n, :n] = mask
    cut = some.view(b, blocks, size, blocks, size)
    return cut.any(4).any(2), cut.all(4).all(2)


@given(rows, scorers, block_sizes)
def test_pairs_of_blocks_are_those_of_the_places(texts, scorer, size):
    sight = sight_of(texts, scorer)
    some, every = pairs(sight, None, size)
    expected = by_block(sight.mask()[:, 0], size)
    assert torch.equal(some, expected[0])
    # The diagonal of blocks larger than a place is never wholly visible; of blocks of one place it is left to the mask.
    inside = ~torch.eye(some.shape[1], dtype=torch.bool)
    assert torch.equal(every & inside, expected[1] & inside)


@given(rows, scorers, block_sizes, st.integers(1, 6))
def test_a_window_is_never_overlooked(texts, scorer, size, window):
    sight = sight_of(texts, scorer)
    some, every = pairs(sight, window, size)
    expected = by_block(sight.mask(window)[:, 0], size)
    assert not (expected[0] & ~some).any()
    assert not (every & ~expected[1]).any()


@given(st.lists(st.lists(well_formed | anything, min_size=1, max_size=2), min_size=1, max_size=2), scorers)
def test_the_block_mask_is_torch_s(texts, scorer):
    """Counts and indices of the blocks as `create_block_mask` lists them, which computes every place."""
    sight = sight_of(texts, scorer)
    b, n = sight.positions.shape
    ours = sight.blocks(None)
    theirs = create_block_mask(sight.mask_mod(), b, None, n, n, device="cpu")
    for count, indices in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
        most, counts = getattr(ours, indices).shape[-1], getattr(ours, count)
        assert torch.equal(counts, getattr(theirs, count))
        listed = torch.arange(most) < counts[..., None]
        assert torch.equal(getattr(ours, indices)[listed], getattr(theirs, indices)[listed])


def test_a_long_row_has_no_mask_of_all_places():
    """32,768 places: torch's own way would take a gigabyte for the mask alone, and several for the indices."""
    text = ("a" * 900 + "<Parallel><Path>{0}</Path><Path>{0}</Path></Parallel>\n<Summary>s</Summary>").format("b" * 900)
    sight = sight_of([[text * 12]], "isolated")
    assert sight.positions.shape[1] > 32_000
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            out = function(*arguments, **(keywords or {}))
            sizes.extend(each.numel() for each in torch.utils._pytree.tree_leaves(out) if torch.is_tensor(each))
            return out

    with Sizes():
        sight.blocks(None)
    assert max(sizes) < 300_000
