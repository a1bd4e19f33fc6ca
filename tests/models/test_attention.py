"""Every way to compute attention equals the dense masked one: outputs and gradients, on random trees."""

from dataclasses import replace

import pytest
import torch
from architectures import FORKED, KINDS, WINDOW, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import anything, well_formed
from torch.nn.attention.flex_attention import create_mask, flex_attention

from parallel_r1.answers.parser import parse, pieces
from parallel_r1.answers.visibility import pack, stretches
from parallel_r1.models import attention as attend
from parallel_r1.models.attention import Ranges, Sight, capped, masked, merge
from parallel_r1.training.batch import collate, score
from parallel_r1.training.sample import Sample

scorers = st.sampled_from(["isolated", "replay", "causal"])
rows = st.lists(st.lists(well_formed | anything, min_size=1, max_size=2), min_size=1, max_size=2)


def runs_of(text):
    found = [(piece.address, len(piece.text)) for piece in pieces(text)]
    return [((), 3), *found]


def sight_of(texts, scorer):
    """One row of texts side by side for each list of them, padded; every second row shares its prompt."""
    families = [[[runs_of(text) for text in row]] for row in texts[::2]] + [
        [[runs_of(t)] for t in row] for row in texts[1::2]
    ]
    laid = [pack(row, scorer) for row in families]
    n, a = max(len(each.positions) for each in laid), 1 + max(len(each.sees) for each in laid)
    ids, positions = torch.full((len(laid), n), a - 1), torch.zeros(len(laid), n, dtype=torch.long)
    sees = torch.zeros(len(laid), a, a, dtype=torch.bool)
    sees[:, -1, -1] = True
    for row, each in enumerate(laid):
        ids[row, : len(each.positions)] = torch.from_numpy(each.address_ids)
        positions[row, : len(each.positions)] = torch.from_numpy(each.positions)
        sees[row, : len(each.sees), : len(each.sees)] = torch.from_numpy(each.sees)
    return Sight(ids, positions, sees)


def inputs(sight, heads=4, key_heads=2, head=8, seed=0):
    """Queries, keys and values laid out in memory as a model's are, and a gradient for the output."""
    generator = torch.Generator().manual_seed(seed)
    b, n = sight.positions.shape
    made = [torch.randn(b, n, h, head, generator=generator) for h in (heads, key_heads, key_heads, heads)]
    return [each.transpose(1, 2).requires_grad_() for each in made]


def slow(query, key, value, mask, scale, softcap=None):
    """Attention from its definition."""
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).mT * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value.repeat_interleave(groups, 1)


def results(function, query, key, value, grad):
    out = function(query, key, value)
    return [out, *torch.autograd.grad(out, (query, key, value), grad.detach())]


@given(rows, scorers)
def test_stretches_are_the_mask(texts, scorer):
    """Painted as triangles and rectangles they give the mask, and no two overlap."""
    sight = sight_of(texts, scorer)
    painted = torch.zeros(sight.mask().shape, dtype=torch.int)[:, 0]
    for row, each in enumerate(sight.stretches()):
        for stretch in each:
            for start, stop in stretch.blocks:
                painted[row, start:stop, start:stop] += torch.ones(stop - start, stop - start, dtype=torch.int).tril()
                for first, last in stretch.before:
                    painted[row, start:stop, first:last] += 1
    assert torch.equal(painted, sight.mask()[:, 0].int())


def test_a_fork_costs_few_calls():
    """A trunk with its first path, the other paths, what follows the join: three stretches, whatever the lengths."""
    text = "before<Parallel><Path>one</Path><Path>two</Path><Path>three</Path></Parallel>\n<Summary>s</Summary>after"
    sight = sight_of([[text]], "isolated")
    first, others, after = sight.stretches()[0]
    assert (len(first.blocks), first.before) == (1, ())
    assert len(others.blocks) == 2
    assert len(others.before) == 1
    assert after.before == ((0, after.blocks[0][0]),)
    assert len(stretches(torch.zeros(9, dtype=torch.long).numpy(), torch.ones(1, 1, dtype=torch.bool).numpy())) == 1


@given(rows, scorers, st.sampled_from([(4, 2, 8), (4, 4, 16), (6, 2, 64), (2, 1, 4)]), st.sampled_from([None, 0.1]))
@settings(max_examples=20)
def test_ranges_equal_the_definition(texts, scorer, shape, scale):
    sight = sight_of(texts, scorer)
    query, key, value, grad = inputs(sight, *shape)
    scale = scale or shape[-1] ** -0.5
    expected = results(lambda q, k, v: slow(q, k, v, sight.mask(), scale), query, key, value, grad)
    for function in (
        lambda q, k, v: Ranges.apply(q, k, v, sight.stretches(), scale),
        lambda q, k, v: masked(q, k, v, sight.bias(None, torch.float32), scale),
    ):
        for ours, theirs in zip(results(function, query, key, value, grad), expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


@given(rows, scorers, st.integers(1, 6), st.sampled_from([None, 2.0]))
@settings(max_examples=30)
def test_windows_and_soft_caps_equal_the_definition(texts, scorer, window, softcap):
    """Windows are measured in positions; FlexAttention's mask says the same."""
    sight = sight_of(texts, scorer)
    distance = sight.positions[:, :, None] - sight.positions[:, None, :]
    mask = sight.mask() & (distance < window)[:, None]
    b, n = sight.positions.shape
    assert torch.equal(create_mask(sight.mask_mod(window), b, None, n, n, device="cpu"), mask)
    query, key, value, grad = inputs(sight)
    bias = sight.bias(window, torch.float32)
    expected = results(lambda q, k, v: slow(q, k, v, mask, 0.4, softcap), query, key, value, grad)
    found = results(
        lambda q, k, v: capped(q, k, v, bias, 0.4, softcap) if softcap else masked(q, k, v, bias, 0.4),
        query,
        key,
        value,
        grad,
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_block_masks_say_the_same(window):
    """FlexAttention under the block mask, as it would run on CUDA, in the slow form that a CPU has."""
    text = "ab<Parallel><Path>one</Path><Path>two</Path></Parallel>\n<Summary>s</Summary>c"
    sight = sight_of([[text, "plain"], [text]], "replay")
    query, key, value, _ = (each.detach() for each in inputs(sight, head=16))
    found = flex_attention(query, key, value, block_mask=sight.blocks(window), enable_gqa=True)
    assert torch.allclose(found, slow(query, key, value, sight.mask(window), 0.25), atol=1e-5)


def test_half_precision_is_close():
    text = "ab<Parallel><Path>one</Path><Path>two</Path></Parallel>\n<Summary>s</Summary>c"
    sight = sight_of([[text]], "isolated")
    query, key, value, grad = inputs(sight)
    expected = results(lambda q, k, v: slow(q, k, v, sight.mask(), 0.35), query, key, value, grad)
    halves = [each.detach().bfloat16().requires_grad_() for each in (query, key, value)]
    found = results(lambda q, k, v: Ranges.apply(q, k, v, sight.stretches(), 0.35), *halves, grad.bfloat16())
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours.float(), theirs, atol=0.05)


def test_two_parts_merge_into_the_whole():
    """A query that sees nothing of a part takes the other one, whatever the kernel returned for it."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, size, 8, generator=generator) for size in (3, 7, 7))
    scores = query @ key.mT
    scores[0, 0, 0, 4:] = scores[0, 1, 1, :4] = -torch.inf
    parts = [
        (torch.softmax(s, -1) @ v, s.logsumexp(-1))
        for s, v in ((scores[..., :4], value[:, :, :4]), (scores[..., 4:], value[:, :, 4:]))
    ]
    assert parts[1][0][0, 0, 0].isnan().all()
    first, second = ((out.nan_to_num(0.0), sums) for out, sums in parts)
    for (out, total), other in ((first, parts[1]), (second, (first[0], parts[0][1]))):
        whole, sums = merge(out, total, *other)
        assert torch.allclose(whole, scores.softmax(-1) @ value, atol=1e-6)
        assert torch.allclose(sums, scores.logsumexp(-1), atol=1e-6)


def test_a_number_that_is_none_stays_one_when_parts_merge():
    """A model that has diverged must not look well."""
    out, sums = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1)
    assert merge(out, sums, torch.full_like(out, torch.nan), sums)[0].isnan().all()


def test_the_way_is_chosen_by_length_and_layer(monkeypatch):
    """Ranges for long rows without a window, one dense call otherwise."""
    sight = sight_of([["a<Parallel><Path>b</Path><Path>c</Path></Parallel>\n<Summary>d</Summary>"]], "isolated")
    query, key, value, _ = inputs(sight)
    calls = []
    monkeypatch.setattr(attend, "masked", lambda *a: calls.append("masked") or masked(*a))
    monkeypatch.setattr(attend, "capped", lambda *a: calls.append("capped") or capped(*a))
    for call, arguments, expected in (
        (10_000, {}, ["masked"]),
        (0, {}, []),
        (0, {"sliding_window": 4}, ["masked"]),
        (0, {"softcap": 2.0}, ["capped"]),
    ):
        monkeypatch.setattr(attend, "CALL", call)
        calls.clear()
        out, _ = attend.attend(torch.nn.Module(), query, key, value, None, sight=sight, **arguments)
        assert calls == expected
        mask = sight.mask(arguments.get("sliding_window"))
        slowly = slow(query, key, value, mask, 8**-0.5, arguments.get("softcap"))
        assert torch.allclose(out, slowly.transpose(1, 2), atol=1e-5)


def test_long_rows_with_few_forks_are_computed_by_ranges():
    fork = "<Parallel><Path>{0}</Path><Path>{0}</Path></Parallel>\n<Summary>c</Summary>"
    assert sight_of([[fork.format("a" * 500)]], "isolated").is_long()
    assert not sight_of([[fork.format("a" * 50)]], "isolated").is_long()
    assert not sight_of([[fork.format("a" * 5) * 10]], "isolated").is_long()


@pytest.mark.parametrize("call", [0, 10_000])
@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_architectures_score_as_their_own_forward_does(tokenizer, tags, monkeypatch, name, call):
    """A text without structure, and under `isolated` each path as the plain text that it follows, windows included."""
    model = random_model(name, len(tokenizer))
    monkeypatch.setattr(attend, "CALL", call)
    trace = parse(tokenizer.encode(FORKED), tags)
    by_token = [span.address for span in trace.spans for _ in span.token_ids]
    assert sum(address == ((0, 0),) for address in by_token) > WINDOW
    plain = collate([Sample(trace)], "causal")
    assert torch.allclose(score(model, plain), score(model, replace(plain, plain=False)), atol=1e-4)
    for scorer in ("isolated", "replay"):
        batch = collate([Sample(trace)], scorer)
        (found,) = batch.gather(score(model, batch))
        for path in (((0, 0),), ((0, 1),)):
            before = range(by_token.index(((0, 0),)))
            text = [*before, *(at for at, address in enumerate(by_token) if address == path)]
            ids = torch.tensor([[trace.token_ids[at] for at in text]])
            expected = model(ids).logits[0].log_softmax(-1)[torch.arange(len(text) - 1), ids[0, 1:]]
            assert torch.allclose(found[text[1:]], expected, atol=1e-4)
        if scorer == "replay":
            trunk = [at for at, address in enumerate(by_token) if not address]
            assert torch.allclose(found[trunk], plain.gather(score(model, plain))[0][trunk], atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (4, None), (None, 2.0)])
def test_flex_attention_on_cuda_equals_the_definition(window, softcap):
    fork = "<Parallel><Path>{0}</Path><Path>{0}{0}</Path></Parallel>\n<Summary>c</Summary>"
    sight = sight_of([["a" * 200 + fork.format("b" * 90), "plain"], [fork.format("c" * 30)]], "replay")
    device = Sight(*(each.cuda() for each in (sight.address_ids, sight.positions, sight.sees)))
    query, key, value, grad = inputs(sight, head=32)
    mask = sight.mask(window)
    expected = results(lambda q, k, v: slow(q, k, v, mask, 32**-0.5, softcap), query, key, value, grad)
    there = [each.detach().cuda().requires_grad_() for each in (query, key, value)]
    found = results(
        lambda q, k, v: attend.attend(
            torch.nn.Module(), q, k, v, None, sight=device, sliding_window=window, softcap=softcap
        )[0].transpose(1, 2),
        *there,
        grad.cuda(),
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours.cpu(), theirs, atol=1e-3)
