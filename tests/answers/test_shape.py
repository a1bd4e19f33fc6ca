"""Self-BLEU, against sacrebleu path by path."""

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import sentence_bleu

from parallel_r1.answers.shape import self_bleu

words = st.sampled_from(["a", "b.", "c,", "4*9=36", "no\n", " ", "$5", "&amp;"])
path = st.lists(words, max_size=24).map(" ".join)


@given(st.lists(st.lists(path, min_size=1, max_size=5), min_size=1, max_size=3))
def test_self_bleu_is_that_of_sacrebleu(forks):
    scores = [
        fmean(sentence_bleu(own, [*paths[:at], *paths[at + 1 :]]).score / 100 for at, own in enumerate(paths))
        for paths in forks
        if len(paths) > 1
    ]
    assert self_bleu(forks) == pytest.approx(fmean(scores) if scores else 0.0)
