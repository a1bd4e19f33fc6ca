"""What is sampled: the distribution, its filters, and the two log-probabilities."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.generation.distribution import RAW, Decoding, log_probabilities, sample


def test_sampling_follows_the_distribution():
    """Inverting the cumulative distribution on a grid of uniforms gives each token its probability."""
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    grid = [(index + 0.5) / 4000 for index in range(4000)]
    for shape in (RAW, Decoding(temperature=0.5), Decoding(top_k=2)):
        drawn = sample(logits.expand(4000, -1), grid, shape)
        expected = log_probabilities(logits, shape)[0]
        assert torch.allclose(torch.bincount(drawn.tokens, minlength=4) / 4000, expected.exp(), atol=1e-3)
        assert torch.allclose(drawn.logprobs, expected[drawn.tokens])
        assert torch.allclose(drawn.raw_logprobs, logits.log_softmax(-1)[0, drawn.tokens])
    assert sample(logits, [1 - 2**-53]).tokens.item() == 3
    assert sample(logits, [0.0]).tokens.item() == 0


def oracle(logits, temperature, top_k, top_p, min_p):
    """The distribution, token by token from the definitions, each filter on what the one before left."""

    def normal(p):
        return [each / sum(p) for each in p]

    p = normal([2.718281828459045 ** (each / temperature) for each in logits])
    if top_k:
        floor = sorted(p, reverse=True)[min(top_k, len(p)) - 1]
        p = normal([each if each >= floor else 0.0 for each in p])
    if top_p < 1:
        kept, mass = set(), 0.0
        for index in sorted(range(len(p)), key=lambda i: -p[i]):
            if mass >= top_p:
                break
            kept.add(index)
            mass += p[index]
        p = normal([each if index in kept else 0.0 for index, each in enumerate(p)])
    if min_p:
        p = normal([each if each >= min_p * max(p) else 0.0 for each in p])
    return p


@given(
    logits=st.lists(st.integers(-40, 40).map(lambda n: n / 7), min_size=2, max_size=9, unique=True),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([0.111, 0.537, 0.917, 1.0]),
    min_p=st.sampled_from([0.0, 0.0731, 0.531]),
)
def test_filters_equal_their_definitions(logits, temperature, top_k, top_p, min_p):
    found = log_probabilities(torch.tensor([logits]), Decoding(temperature, top_k, top_p, min_p)).exp()[0]
    assert torch.allclose(found, torch.tensor(oracle(logits, temperature, top_k, top_p, min_p)), atol=1e-4)


def test_greedy_takes_the_most_probable_token_with_certainty():
    drawn = sample(torch.tensor([[0.0, 3.0, 2.0]]), [0.99], Decoding(temperature=0.0))
    assert drawn.tokens.item() == 1
    assert drawn.logprobs.item() == 0.0
    assert drawn.raw_logprobs.item() == pytest.approx(-0.349, abs=1e-3)


@pytest.mark.parametrize("shape", [RAW, Decoding(0.0), Decoding(0.7, 2, 0.9, 0.1)])
def test_a_row_of_broken_logits_says_so_and_leaves_the_others(shape):
    logits = torch.tensor([[0.0, torch.nan, 1.0], [0.0, 1.0, 2.0]])
    drawn = sample(logits, [0.5, 0.5], shape)
    assert drawn.logprobs.isnan().tolist() == [True, False]
    assert 0 <= drawn.tokens[0] < 3


@given(
    logits=st.lists(st.integers(-40, 40).map(lambda n: n / 7), min_size=3, max_size=9, unique=True),
    data=st.data(),
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    top_k=st.integers(0, 4),
    top_p=st.sampled_from([0.537, 1.0]),
)
def test_ids_without_a_token_are_as_if_they_were_not_there(logits, data, temperature, top_k, top_p):
    missing = data.draw(st.sets(st.integers(0, len(logits) - 1), max_size=len(logits) - 1).map(sorted).map(tuple))
    kept = [index for index in range(len(logits)) if index not in missing]
    uniform = data.draw(st.floats(0, 1, exclude_max=True))
    table = torch.tensor([logits], requires_grad=True)
    shape = Decoding(temperature, top_k, top_p, 0.0, missing)
    found = log_probabilities(table, shape).exp()[0]
    alone = log_probabilities(table[:, kept], shape._replace(missing=())).exp()[0]
    assert torch.allclose(found[kept], alone, atol=1e-6)
    assert found.sum().item() == pytest.approx(1.0, abs=1e-5)
    drawn = sample(table.detach(), [uniform], shape)
    expected = sample(table.detach()[:, kept], [uniform], shape._replace(missing=()))
    assert drawn.tokens.item() == kept[expected.tokens.item()]
    assert drawn.raw_logprobs.item() == pytest.approx(expected.raw_logprobs.item(), abs=1e-5)
