"""An answer goes through verl's columns and comes back the same; and it is scored there as our learner scores it."""

import pytest
import torch
from common import force_forks, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_vllm import ReadBackend, Reader

from parallel_r1.answers.trace import Span, Trace
from parallel_r1.errors import UserError
from parallel_r1.generation.distribution import Decoding
from parallel_r1.generation.live import draw_all
from parallel_r1.generation.request import Request
from parallel_r1.generation.scheduler import Scheduler
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.integrations.verl.scoring import as_rows, lay_out, model_inputs, read_logits
from parallel_r1.integrations.verl.structure import columns, pack, unpack
from parallel_r1.training.batch import collate, score_with_entropy


def forked(policy, count=3, seed=0):
    """Answers with nested forks, of tokens that a pretended policy drew."""
    reader = Reader(policy.tags, 60, seed)
    sampling = Sampling(
        sampler="causal_join", paths=3, temperature=0, budget=Budget(total=120, critical_path=70, path=30, depth=2)
    )
    force = force_forks(policy.tags)
    requests = [
        Request([5, 6, 7 + index], sampling, f"s/{index}", lambda a, s, i=index: force(i, a, s))
        for index in range(count)
    ]
    batch = Scheduler(ReadBackend(reader), reader.tags, 4)
    return draw_all(batch, [batch.submit(request) for request in requests], 0, None)


@settings(max_examples=20)
@given(seed=st.integers(0, 99))
def test_structure_survives_the_way_through_plain_columns(frozen, seed):
    for trace in forked(frozen, seed=seed):
        ids, mask, logprobs = columns(trace)
        back = unpack(pack(trace), trace.prompt_ids, ids, logprobs)
        assert back.token_ids == trace.token_ids
        assert back.runs == trace.runs
        assert [span.sampled for span in back.spans] == [span.sampled for span in trace.spans]
        assert [span.logprobs for span in back.spans] == [span.logprobs for span in trace.spans]
        assert (back.finish, back.sampler, back.schema) == (trace.finish, trace.sampler, trace.schema)
        sampled = [span.sampled for span in trace.spans for _ in span.token_ids]
        assert [bool(one) for one in mask] == sampled
        assert not any(value for value, one in zip(logprobs, sampled, strict=True) if not one)


def test_a_row_without_its_structure_is_refused():
    with pytest.raises(UserError, match="a row without extra_fields"):
        unpack(None, [1], [2])
    packed = pack(Trace((1,), (Span((2, 3), (), True),)))
    with pytest.raises(UserError, match="an answer of 1 tokens; found one of 2 tokens"):
        unpack(packed, [1], [2])


@pytest.mark.parametrize("scorer", ["isolated", "replay", "causal"])
def test_scores_are_those_of_the_learner(frozen, scorer):
    """The whole model is called, as verl does; the learner calls its body."""
    traces, shape = forked(frozen), Decoding(temperature=0.7, missing=frozen.tags.missing)
    batch = lay_out(traces, scorer)
    logits = frozen.model(**model_inputs(batch), use_cache=False).logits
    logprobs, entropies = read_logits(logits, batch, shape, entropy=True)
    expected = score_with_entropy(frozen.model, collate(samples(traces), scorer), shape)
    for mine, theirs in ((logprobs, expected[0]), (entropies, expected[1])):
        for one, two in zip(mine, batch.gather(theirs), strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    assert all(values.abs().sum() == 0 for values in read_logits(logits, batch, shape)[1])


@pytest.mark.parametrize("scorer", ["isolated", "replay"])
def test_a_path_does_not_see_its_sibling(frozen, scorer):
    """Another token in one path leaves the log-probabilities of its sibling exactly equal."""
    trace = next(trace for trace in forked(frozen) if trace.forks)
    ids, _, _ = columns(trace)
    paths = sorted({span.address for span in trace.spans if len(span.address) == 1})[:2]
    places = {path: [] for path in paths}
    at = 0
    for span in trace.spans:
        if span.address in places and span.sampled:
            places[span.address] += range(at, at + len(span.token_ids))
        at += len(span.token_ids)
    changed = list(ids)
    changed[places[paths[0]][0]] = 9 if ids[places[paths[0]][0]] != 9 else 10
    scored = []
    for tokens in (ids, changed):
        batch = lay_out([unpack(pack(trace), trace.prompt_ids, tokens)], scorer)
        logits = frozen.model(**model_inputs(batch), use_cache=False).logits
        scored.append(read_logits(logits, batch, Decoding())[0][0])
    assert torch.equal(scored[0][places[paths[1]]], scored[1][places[paths[1]]])
    assert not torch.equal(scored[0][places[paths[0]]], scored[1][places[paths[0]]])


def test_values_stand_one_place_before_their_tokens():
    rows = as_rows([torch.tensor([1.0, 2.0]), torch.tensor([3.0])], [3, 1], [5, 2])
    assert [row.tolist() for row in rows] == [[0, 0, 1, 2, 0], [3, 0]]
