"""The heart: what is drawn, what it costs, and that its log-probabilities are the scorer's."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_r1.attention import layout
from parallel_r1.batch import collate, score
from parallel_r1.config import Budget, Sampling
from parallel_r1.engines import sample
from parallel_r1.engines.local import LocalEngine
from parallel_r1.errors import UserError
from parallel_r1.fork_join import draw
from parallel_r1.parity import measure
from parallel_r1.trace import TRUNK, parse, parse_ids


def force_forks(tags, every=7, lengths=(4, 6, 5)):
    """Open a fork after every few trunk tokens, and inside paths; close paths at different lengths."""

    def force(answer, address, size):
        if address == TRUNK:
            return (
                tags.ids["<Parallel>"]
                if size % every == every - 2
                else (tags.ids["</Summary>"] if size % every == every - 4 else None)
            )
        if size == 2 and len(address) < 3 and address[-1][1] == 0:
            return tags.ids["<Parallel>"]
        return tags.ids["</Path>"] if size > lengths[address[-1][1] % len(lengths)] else None

    return force


def prompts_of(policy, count):
    return [policy.encode("Use 3, 5, 7 to make 22.\n" * (1 + index % 3)) for index in range(count)]


def mismatch(policy, traces, scorer="isolated", temperature=1.0):
    batch = collate(traces, scorer)
    with torch.no_grad():
        return (score(policy.model, batch, temperature) - batch.behaviour).abs()[batch.sampled].max().item()


@pytest.mark.parametrize("paths", [1, 2, 3, 5])
@pytest.mark.parametrize("depth", [1, 3])
def test_what_is_sampled_is_what_is_scored(frozen, paths, depth):
    """Several forks in an answer, nested ones, paths of different lengths, prompts of different lengths, rows that
    are reused: the isolated sampler's log-probabilities are the isolated scorer's."""
    sampling = Sampling(paths=paths, rows=3, budget=Budget(total=400, critical_path=90, path=30, forks=5, depth=depth))
    traces = draw(
        LocalEngine(frozen.model), frozen.tags, prompts_of(frozen, 8), sampling, 0, force=force_forks(frozen.tags)
    )
    assert max(trace.forks for trace in traces) >= 3
    for trace in traces:
        if trace.well_formed:  # what was drawn is what its text says
            read = parse(trace.token_ids, frozen.tags)
            by_token = [[span.address for span in each.spans for _ in span.token_ids] for each in (trace, read)]
            assert by_token[0] == by_token[1]
    if depth == 3 and paths > 1:
        assert max(len(span.address) for trace in traces for span in trace.spans) >= 2
    assert mismatch(frozen, traces) <= 1e-4


@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_log_probabilities_are_those_of_the_distribution_that_was_sampled(frozen, temperature):
    sampling = Sampling(temperature=temperature, budget=Budget(critical_path=60, path=20))
    traces = draw(
        LocalEngine(frozen.model), frozen.tags, prompts_of(frozen, 4), sampling, 0, force=force_forks(frozen.tags)
    )
    assert mismatch(frozen, traces, temperature=temperature) <= 1e-4
    assert mismatch(frozen, traces, temperature=1.0) > 1e-2


def test_an_isolated_path_equals_the_path_run_alone(frozen):
    """Each path, put behind its prefix as plain text, has the log-probabilities that it was drawn with."""
    sampling = Sampling(paths=3, budget=Budget(critical_path=60, path=20, forks=1))
    (trace,) = draw(
        LocalEngine(frozen.model), frozen.tags, prompts_of(frozen, 1), sampling, 0, force=force_forks(frozen.tags)
    )
    first_path = next(index for index, span in enumerate(trace.spans) if span.address)
    prefix = [*trace.prompt_ids, *(token for span in trace.spans[:first_path] for token in span.token_ids)]
    for path in range(3):
        spans = [span for span in trace.spans if span.address == ((0, path),)]
        tokens = [token for span in spans for token in span.token_ids]
        with torch.no_grad():
            logits = frozen.model(torch.tensor([prefix + tokens])).logits[0].log_softmax(-1)
        at = len(prefix)
        for span in spans:
            for offset, token in enumerate(span.token_ids):
                if span.sampled:
                    assert abs(logits[at + offset - 1, token].item() - span.logprobs[offset]) <= 1e-4
            at += len(span.token_ids)


def test_sequential_is_plain_decoding(frozen):
    """Greedy sequential answers are those of model.generate."""
    sampling = Sampling(sampler="sequential", temperature=0, budget=Budget(critical_path=40, total=40))
    prompts = prompts_of(frozen, 3)
    traces = draw(LocalEngine(frozen.model), frozen.tags, prompts, sampling, 0)
    for prompt, trace in zip(prompts, traces, strict=True):
        expected = frozen.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=40,
        )[0, len(prompt) :].tolist()
        assert list(trace.token_ids) == expected
    assert mismatch(frozen, traces, "causal") <= 1e-4


@pytest.mark.parametrize("sampler", ["isolated", "sequential"])
def test_a_seed_repeats_a_run_whatever_shares_the_batch(frozen, sampler):
    prompts = prompts_of(frozen, 6)

    def run(rows, seed):
        sampling = Sampling(sampler=sampler, paths=2, rows=rows, budget=Budget(critical_path=50, path=20))
        traces = draw(
            LocalEngine(frozen.model),
            frozen.tags,
            prompts,
            sampling,
            seed,
            force=force_forks(frozen.tags) if sampler == "isolated" else None,
        )
        return [trace.token_ids for trace in traces]

    assert run(6, 1) == run(6, 1) == run(2, 1)
    assert run(6, 1) != run(6, 2)


@given(
    total=st.integers(5, 200),
    critical=st.integers(1, 80),
    path=st.integers(1, 30),
    forks=st.integers(0, 4),
    paths=st.integers(1, 4),
    depth=st.integers(1, 3),
)
@settings(max_examples=40)
def test_no_budget_is_ever_exceeded(frozen, total, critical, path, forks, paths, depth):
    budget = Budget(total=total, critical_path=critical, path=path, forks=forks, depth=depth)
    traces = draw(
        LocalEngine(frozen.model),
        frozen.tags,
        prompts_of(frozen, 2),
        Sampling(paths=paths, budget=budget),
        3,
        force=force_forks(frozen.tags),
    )
    for trace in traces:
        laid = layout(trace.runs)
        assert len(trace.token_ids) <= total
        assert laid.critical_path <= critical
        assert trace.forks <= forks
        by_address: dict = {}
        for span in trace.spans:
            if len(span.address) == 1:
                by_address[span.address] = by_address.get(span.address, 0) + len(span.token_ids)
            assert len(span.address) <= depth
        if depth == 1:
            assert all(tokens <= path for tokens in by_address.values())
        assert trace.finish == "length" or trace.token_ids[-1] in frozen.tags.eos


def test_the_trunk_finishes_after_the_last_fork(frozen):
    """A `<Parallel>` beyond the budget is text: it opens nothing, and the trunk goes on to its end."""
    tags = frozen.tags
    (end,) = tags.eos

    def force(answer, address, size):
        if address == TRUNK:
            return {3: tags.ids["<Parallel>"], 8: tags.ids["</Summary>"], 11: tags.ids["<Parallel>"], 15: end}.get(size)
        return tags.ids["</Path>"] if size > 3 else None

    sampling = Sampling(paths=2, budget=Budget(forks=1))
    (trace,) = draw(LocalEngine(frozen.model), tags, prompts_of(frozen, 1), sampling, 0, force=force)
    assert trace.forks == 1
    assert trace.finish == "stop"
    assert len(trace.trunk_ids) == 16
    assert "unclosed-fork" in [defect.kind for defect in trace.defects]


def test_given_tokens_are_marked(frozen):
    """The runtime's tags are given, the policy's are sampled; a path that was cut is closed by a given tag."""
    tags = frozen.tags

    def force(answer, address, size):
        return tags.ids["<Parallel>"] if address == TRUNK and size == 2 else None

    sampling = Sampling(paths=2, budget=Budget(path=6, critical_path=40))
    (trace,) = draw(LocalEngine(frozen.model), tags, prompts_of(frozen, 1), sampling, 0, force=force)
    for span in trace.spans:
        if not span.sampled:
            assert span.logprobs is None
            assert set(span.token_ids) <= {*tags.ids.values(), *tags.newline}
        else:
            assert len(span.logprobs) == len(span.token_ids)
            assert tags.ids["</Parallel>"] not in span.token_ids or parse_ids(trace.token_ids, tags).defects
    paths = [span for span in trace.spans if span.address]
    assert {span.address for span in paths} == {((0, 0),), ((0, 1),)}
    assert paths[0].token_ids == (tags.ids["<Path>"],)


def test_end_of_text_inside_a_path_closes_the_path_only(frozen):
    tags = frozen.tags
    (end,) = tags.eos

    def force(answer, address, size):
        if address == TRUNK:
            return tags.ids["<Parallel>"] if size == 1 else None
        return end if size == 2 and address[-1][1] == 0 else None

    sampling = Sampling(paths=2, budget=Budget(path=8, critical_path=50))
    (trace,) = draw(LocalEngine(frozen.model), tags, prompts_of(frozen, 1), sampling, 0, force=force)
    first = [token for span in trace.spans if span.address == ((0, 0),) for token in span.token_ids]
    assert first[-2:] == [end, tags.ids["</Path>"]]
    assert "end-inside" in [defect.kind for defect in trace.defects]
    assert mismatch(frozen, [trace]) <= 1e-4


def test_an_empty_prompt_is_refused(frozen):
    with pytest.raises(UserError, match="prompt 1 is empty"):
        draw(LocalEngine(frozen.model), frozen.tags, [[5], []], Sampling(), 0)


def test_parity_tells_exact_pairs_from_mismatches(frozen):
    for paths in (1, 2, 3, 4, 5):
        found = measure(frozen, "isolated", "isolated", paths)
        assert found.max_abs <= 1e-4
        assert found.forks >= 2
        assert found.after_fork is not None
        assert found.after_join is not None
    assert measure(frozen, "sequential", "causal", 3).max_abs <= 1e-4
    for sampler, scorer in (("isolated", "causal"), ("sequential", "isolated")):
        wrong = measure(frozen, sampler, scorer, 3)
        assert wrong.max_abs > 1e-2
        assert wrong.after_join > 1e-3


def test_sampling_follows_the_distribution():
    """Inverting the cumulative distribution on a grid of uniforms gives each token its probability."""
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    grid = [(index + 0.5) / 4000 for index in range(4000)]
    tokens, logprobs = sample(logits.expand(4000, -1), grid, 1.0)
    assert torch.allclose(torch.bincount(tokens, minlength=4) / 4000, logits.softmax(-1)[0], atol=1e-3)
    assert torch.allclose(logprobs, logits.log_softmax(-1)[0, tokens])
    assert sample(logits, [1 - 2**-53], 1.0)[0].item() == 3
    assert sample(logits, [0.0], 1.0)[0].item() == 0
    assert sample(logits, [0.1], 0.0)[0].item() == 3


def test_tags_only_matter_through_their_ids(frozen):
    """Without an end of text the trunk runs to its budget."""
    endless = replace(frozen.tags, eos=frozenset())
    sampling = Sampling(sampler="sequential", budget=Budget(critical_path=30, total=30))
    traces = draw(LocalEngine(frozen.model), endless, prompts_of(frozen, 2), sampling, 0)
    assert [len(trace.token_ids) for trace in traces] == [30, 30]
    assert {trace.finish for trace in traces} == {"length"}
