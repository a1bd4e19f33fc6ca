"""Scoring does not depend on padding, on the company of other rows, or on how a batch is cut."""

from dataclasses import replace
from itertools import groupby

import oracles
import pytest
import torch
from common import samples
from hypothesis import given
from hypothesis import strategies as st

from parallel_r1.answers.parser import parse
from parallel_r1.answers.trace import TRUNK, Span, Trace
from parallel_r1.generation.distribution import Decoding
from parallel_r1.models import attention as attend
from parallel_r1.training import batch as batch_room
from parallel_r1.training.batch import collate, score, split
from parallel_r1.training.sample import Sample

FORKED = (
    "try <Parallel><Path>3+5=8</Path><Path>5*7=35, 35-3=32 no</Path></Parallel>\n<Summary>c</Summary>\nFinal Answer: 8"
)
NESTED = FORKED.replace("3+5=8", FORKED)
PLAIN = "3*5=15, 15+7=22 yes: 3*5+7\nFinal Answer: 3*5+7"


def traces_of(policy, texts=(FORKED, PLAIN, NESTED), sampler="isolated"):
    prompt = policy.encode("Use 3, 5, 7 to make 22.\n")
    return [parse(policy.encode(text), policy.tags, sampler=sampler, prompt_ids=prompt) for text in texts]


@torch.no_grad()
def scores(policy, traces, scorer):
    """For each trace the log-probabilities of its answer's tokens."""
    batch = collate(samples(traces), scorer)
    return batch.gather(score(policy.model, batch))


@pytest.mark.parametrize("scorer", ["isolated", "replay", "causal"])
def test_rows_do_not_depend_on_each_other(frozen, scorer):
    traces = traces_of(frozen)
    together = scores(frozen, traces, scorer)
    for trace, row in zip(traces, together, strict=True):
        assert torch.allclose(row, scores(frozen, [trace], scorer)[0], atol=1e-5)


def test_padding_is_never_seen(frozen):
    traces = traces_of(frozen)
    with torch.no_grad():
        first = score(frozen.model, collate(samples(traces), "isolated", pad_id=0))
        other = score(frozen.model, collate(samples(traces), "isolated", pad_id=77))
    batch = collate(samples(traces), "isolated")
    assert torch.allclose(first[batch.sampled], other[batch.sampled], atol=1e-6)


def test_no_fork_no_difference(frozen):
    """Without a fork both scorers are plain causal scoring, bit for bit."""
    traces = traces_of(frozen, (PLAIN, PLAIN[:20]))
    isolated, causal = collate(samples(traces), "isolated"), collate(samples(traces), "causal")
    assert isolated.plain
    assert causal.plain
    with torch.no_grad():
        assert torch.equal(score(frozen.model, isolated), score(frozen.model, causal))
        plain = frozen.model(isolated.token_ids).logits.log_softmax(-1)
    taken = plain[:, :-1].gather(-1, isolated.token_ids[:, 1:, None]).squeeze(-1)
    with torch.no_grad():
        found = score(frozen.model, isolated)
    assert torch.equal(found[:, 1:][isolated.sampled[:, 1:]], taken[isolated.sampled[:, 1:]])
    assert (found[isolated.source < 0] == 0).all()


def test_the_masked_forward_equals_the_plain_one_where_nothing_is_hidden(frozen):
    """The path with a mask and positions says the same as causal attention for an answer without a fork."""
    batch = collate(samples(traces_of(frozen, (PLAIN,))), "causal")
    with torch.no_grad():
        assert torch.allclose(score(frozen.model, batch), score(frozen.model, replace(batch, plain=False)), atol=1e-5)


def test_siblings_do_not_matter_to_each_other(frozen):
    """Changing one path changes nothing in the other, and does change what follows the join."""
    one, other = traces_of(frozen, (FORKED, FORKED.replace("5*7=35", "5*7=99")))
    a, b = scores(frozen, [one], "isolated")[0], scores(frozen, [other], "isolated")[0]
    spans, at = {}, 0
    for span in one.spans:
        spans.setdefault(span.address, []).extend(range(at, at + len(span.token_ids)))
        at += len(span.token_ids)
    assert torch.equal(a[spans[((0, 0),)]], b[spans[((0, 0),)]])
    assert not torch.allclose(a[-4:], b[-4:], atol=1e-4)


@torch.no_grad()
def alone(policy, trace, seen):
    """The log-probability of the last of the answer's tokens `seen`, as the end of a plain text behind the prompt."""
    text = torch.tensor([[*trace.prompt_ids, *(trace.token_ids[index] for index in seen)]])
    return policy.model(text).logits[0, -2].log_softmax(-1)[text[0, -1]].item()


@pytest.mark.parametrize("text", [FORKED, NESTED, FORKED + "<Parallel><Path>1</Path><Path>2</Path></Parallel>3"])
def test_replay_scores_every_token_as_the_server_drew_it(frozen, text):
    """Paths are scored as plain texts without their siblings, what follows a join as a plain text with all of them:
    there `replay` says what `causal` says."""
    (trace,) = traces_of(frozen, (text,))
    found, causal = scores(frozen, [trace], "replay")[0], scores(frozen, [trace], "causal")[0]
    by_token = [span.address for span in trace.spans for _ in span.token_ids]
    for token, address in enumerate(by_token):
        assert found[token].item() == pytest.approx(
            alone(frozen, trace, oracles.read_before(by_token, token)), abs=1e-4
        )
        if address == TRUNK:
            assert found[token].item() == pytest.approx(causal[token].item(), abs=1e-4)
    assert not torch.allclose(found, causal, atol=1e-2)


def test_the_first_tag_of_a_later_path_is_predicted_where_the_path_leaves_its_thread(frozen):
    """Where the policy itself wrote `<Path>`, its predecessor is `<Parallel>`, whatever stands beside it in the row."""
    (trace,) = traces_of(frozen, (FORKED,), "sequential")
    opening = [at for at, token in enumerate(trace.token_ids) if token == frozen.tags.ids["<Path>"]]
    fork = trace.token_ids.index(frozen.tags.ids["<Parallel>"])
    for scorer in ("isolated", "replay"):
        found = scores(frozen, [trace], scorer)[0]
        for at in opening:
            expected = alone(frozen, trace, [*range(fork + 1), at])
            assert found[at].item() == pytest.approx(expected, abs=1e-4)


def test_values_of_tokens_go_to_their_places_and_back(frozen):
    traces = traces_of(frozen)
    values = [torch.arange(1.0, 1.0 + len(trace.token_ids)) + 1000 * index for index, trace in enumerate(traces)]
    valued = [Sample(trace, 1.0 + i, old=values[i]) for i, trace in enumerate(traces)]
    for scorer in ("isolated", "replay", "causal"):
        for rows in (None, [3], [1, 2]):
            batch = collate(valued, scorer, rows=rows)
            for there, back in zip(values, batch.gather(batch.old), strict=True):
                assert torch.equal(there, back)
            assert (batch.old > 0).sum() == sum(len(trace.token_ids) for trace in traces)
            assert batch.sampled.sum() == sum(len(s.token_ids) for t in traces for s in t.spans if s.sampled)
            for weight, found in zip((1.0, 2.0, 3.0), batch.gather(batch.advantages), strict=True):
                assert (found == weight).all()


def test_a_sample_without_old_log_probabilities_has_those_it_was_sampled_with():
    traces = [Trace((1,), (Span((2, 3), (), True, (-1.0, -2.0)), Span((4,), (), False)))] * 2
    batch = collate([Sample(traces[0]), Sample(traces[1], old=torch.tensor([-5.0, -6.0, -7.0]))], "causal")
    assert [old.tolist() for old in batch.gather(batch.old)] == [[-1, -2, 0], [-5, -6, -7]]
    assert batch.gather(batch.behaviour)[1].tolist() == [-1, -2, 0]
    assert (batch.reference == 0).all()


@pytest.mark.parametrize("scorer", ["isolated", "replay", "causal"])
@pytest.mark.parametrize("rows", [None, [3], [1, 2]])
def test_sums_over_an_answer_and_one_value_for_all_its_tokens(frozen, scorer, rows):
    """Side by side or not, with the copies that `replay` reads again or without; gradients included."""
    batch = collate(samples(traces_of(frozen)), scorer, rows=rows)
    values = torch.rand(batch.token_ids.shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = [0.0] * 3
    ends = torch.tensor(batch.sizes).cumsum(0).tolist()
    for row, column in (batch.source >= 0).nonzero().tolist():
        trace = next(i for i, end in enumerate(ends) if batch.source[row, column] < end)
        expected[trace] += values[row, column].item()
    sums = batch.sums(values)
    assert sums.tolist() == pytest.approx(expected, rel=1e-5)
    spread = batch.spread(torch.tensor([1.0, 2.0, 3.0]))
    assert [set(part.tolist()) for part in batch.gather(spread)] == [{1.0}, {2.0}, {3.0}]
    assert (spread[batch.source < 0] == 0).all()
    (sums * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert torch.equal(values.grad, spread)


def test_the_loss_mask_is_where_the_policy_drew(frozen):
    trace = traces_of(frozen)[0]
    batch = collate([Sample(trace)], "isolated")
    expected = [False] * len(trace.prompt_ids) + [s.sampled for s in trace.spans for _ in s.token_ids]
    assert batch.sampled[0].tolist() == expected
    given = [token for span in trace.spans if not span.sampled for token in span.token_ids]
    ids = frozen.tags.ids
    assert given == [ids["<Path>"], ids["<Path>"], *frozen.tags.join]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(1, 200))
def test_micro_batches_hold_every_trace_once(lengths, most):
    traces = [Trace((1,), (Span((2,) * length, (), True),)) for length in lengths]
    chunks = list(split(traces, "isolated", most))
    assert sorted(index for chunk in chunks for [index] in chunk) == list(range(len(traces)))
    for chunk in chunks:
        padded = len(chunk) * (1 + max(lengths[index] for [index] in chunk))
        assert padded <= most or len(chunk) == 1


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(1, 200))
def test_packed_rows_are_filled_first_fit_decreasing(lengths, most):
    traces = [Trace((prompt,), (Span((2,) * length, (), True),)) for prompt, length in enumerate(lengths)]
    chunks = list(split(traces, "isolated", most, packing=True))
    assert sorted(index for [row] in chunks for index in row) == list(range(len(traces)))
    used = []
    for [row] in chunks:
        assert [lengths[index] for index in row] == sorted((lengths[index] for index in row), reverse=True)
        used.append(sum(1 + lengths[index] for index in row))
        assert used[-1] <= most or len(row) == 1
    for earlier, later in zip(range(len(chunks)), range(1, len(chunks)), strict=False):
        assert used[earlier] + 1 + lengths[chunks[later][0][0]] > most


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60)), min_size=1, max_size=20), st.integers(1, 200))
def test_packed_answers_to_a_prompt_lie_together_and_share_it(answers, most):
    traces = [Trace((prompt,) * 5, (Span((2,) * length, (), True),)) for prompt, length in answers]
    chunks = list(split(traces, "isolated", most, packing=True))
    assert sorted(index for [row] in chunks for index in row) == list(range(len(traces)))
    for [row] in chunks:
        prompts = [prompt for prompt, _ in (answers[index] for index in row)]
        assert len([*groupby(prompts)]) == len(set(prompts))
        places = collate([Sample(traces[index]) for index in row], "isolated", rows=[len(row)]).token_ids.shape[1]
        assert places == 5 * len(set(prompts)) + sum(answers[index][1] for index in row)
        assert places <= most or len(row) == 1
    for prompt in range(4):  # a prompt is there again only where its answers did not fit
        rows = [row for [row] in chunks if any(answers[index][0] == prompt for index in row)]
        used = sorted(sum(answers[index][1] for index in row if answers[index][0] == prompt) for row in rows)
        assert len(used) < 2 or 5 + used[0] + used[1] > most


def test_micro_batches_are_cut_by_what_a_scorer_lays_out(frozen):
    """Under `replay` a row holds copies too."""
    (trace,) = traces_of(frozen, (FORKED,))
    longest = collate([Sample(trace)], "replay").token_ids.shape[1]
    assert longest > len(trace.prompt_ids) + len(trace.token_ids)
    assert len(list(split([trace] * 2, "replay", 2 * longest))) == 1
    assert len(list(split([trace] * 2, "replay", 2 * longest - 1))) == 2
    assert len(list(split([trace] * 2, "isolated", 2 * longest - 1))) == 1


@pytest.mark.parametrize("scorer", ["isolated", "replay", "causal"])
@pytest.mark.parametrize("call", [0, 10_000])
def test_loss_and_gradient_do_not_depend_on_packing_or_padding(policy, monkeypatch, scorer, call):
    """Alone, padded in one batch, or side by side in one row, by ranges or by a mask: the same log-probabilities of
    every token, and the same gradient of a weighed sum."""
    monkeypatch.setattr(attend, "CALL", call)
    traces = traces_of(policy, (FORKED, PLAIN, NESTED, PLAIN[:9]))
    traces[1] = replace(traces[1], prompt_ids=traces[1].prompt_ids[1:])  # the others share their prompt where they can
    weights = [1.0, -0.5, 2.0, 0.3]

    def run(*groups):
        found = {}
        policy.model.zero_grad()
        for rows in groups:
            members = [index for row in rows for index in row]
            batch = collate([Sample(traces[i], weights[i]) for i in members], scorer, rows=[len(row) for row in rows])
            logprobs = score(policy.model, batch)
            (logprobs * batch.advantages).sum().backward()
            found.update(zip(members, batch.gather(logprobs.detach()), strict=True))
        return [found[i] for i in range(4)], [p.grad.clone() for p in policy.model.parameters()]

    expected, gradient = run([[0]], [[1]], [[2]], [[3]])
    for groups in ([[[0], [1], [2], [3]]], [[[2, 0, 1, 3]]], [[[3, 1], [2]], [[0]]], [[[1, 2], [0, 3]]]):
        values, gradients = run(*groups)
        for ours, theirs in zip(values, expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
        for ours, theirs in zip(gradients, gradient, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("scorer", ["isolated", "causal"])
def test_logits_in_pieces_are_the_logits(policy, scorer, monkeypatch):
    """Values and gradients do not depend on how many logits exist at once; nor on whether activations are kept."""
    traces = traces_of(policy)

    def scored():
        policy.model.zero_grad()
        batch = collate(samples(traces), scorer)
        values, entropies = batch_room.score_with_entropy(policy.model, batch, Decoding(0.9, 30))
        (values.nan_to_num(neginf=0.0).sum() + entropies.sum()).backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])
        return values.detach(), entropies.detach(), gradient

    expected = scored()
    monkeypatch.setattr(batch_room, "LOGITS", 3 * policy.model.config.vocab_size)
    for found, known in zip(scored(), expected, strict=True):
        assert torch.allclose(found, known, atol=1e-5)


@pytest.mark.parametrize("scorer", ["isolated", "replay"])
@pytest.mark.parametrize("long", [False, True])
def test_activations_that_are_computed_again_are_the_same(policy, scorer, long, monkeypatch):
    """Transformers would compute them again with its own attention, which knows nothing of forks."""
    monkeypatch.setattr(attend.Sight, "is_long", lambda self: long)
    batch = collate(samples(traces_of(policy, [NESTED, FORKED])), scorer)

    def gradient():
        policy.model.zero_grad()
        policy.model.train()
        score(policy.model, batch).sum().backward()
        policy.model.eval()
        return torch.cat([parameter.grad.flatten() for parameter in policy.model.parameters()])

    expected = gradient()
    attend.recompute(policy.model)
    assert policy.model.is_activation_checkpointing
    assert torch.allclose(gradient(), expected, atol=1e-5)
    policy.model.activation_checkpointing_disable()
