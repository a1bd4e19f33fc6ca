"""What is sampled: the distribution, its filters, and the two log-probabilities."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.generation.distribution import RAW, log_probabilities, sample


def test_sampling_follows_the_distribution():
    """Inverting the cumulative distribution on a grid of uniforms gives each token its probability."""
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    grid = [(index + 0.5) / 4000 for index in range(4000)]
    for shape in (RAW, (0.5, 0, 1.0, 0.0), (1.0, 2, 1.0, 0.0)):
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
    found = log_probabilities(torch.tensor([logits]), (temperature, top_k, top_p, min_p)).exp()[0]
    assert torch.allclose(found, torch.tensor(oracle(logits, temperature, top_k, top_p, min_p)), atol=1e-4)


def test_greedy_takes_the_most_probable_token_with_certainty():
    drawn = sample(torch.tensor([[0.0, 3.0, 2.0]]), [0.99], (0.0, 0, 1.0, 0.0))
    assert drawn.tokens.item() == 1
    assert drawn.logprobs.item() == 0.0
    assert drawn.raw_logprobs.item() == pytest.approx(-0.349, abs=1e-3)


@pytest.mark.parametrize("shape", [RAW, (0.0, 0, 1.0, 0.0), (0.7, 2, 0.9, 0.1)])
def test_a_row_of_broken_logits_says_so_and_leaves_the_others(shape):
    logits = torch.tensor([[0.0, torch.nan, 1.0], [0.0, 1.0, 2.0]])
    drawn = sample(logits, [0.5, 0.5], shape)
    assert drawn.logprobs.isnan().tolist() == [True, False]
    assert 0 <= drawn.tokens[0] < 3
