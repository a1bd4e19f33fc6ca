"""The heart: what is drawn, what it costs, and that its log-probabilities are the scorer's."""

import random
from dataclasses import replace
from typing import get_args

import pytest
import torch
from common import draw, force_forks, mismatch, prompts_of, submit
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from parallel_r1.answers.parser import parse, parse_ids
from parallel_r1.answers.trace import EXACT_SCORER, TRUNK, Sampler, Scorer
from parallel_r1.answers.visibility import layout
from parallel_r1.errors import UserError
from parallel_r1.evaluation.parity import measure
from parallel_r1.generation.distribution import decoding
from parallel_r1.generation.local.engine import LocalEngine
from parallel_r1.generation.scheduler import Scheduler
from parallel_r1.generation.settings import Budget, Engine, Sampling
from parallel_r1.generation.tree import Fork


def raw(trace):
    """The trace with the log-probabilities of the raw policy."""
    return replace(trace, spans=tuple(replace(span, logprobs=span.raw_logprobs) for span in trace.spans))


@pytest.mark.parametrize("paths", [1, 2, 3, 5])
@pytest.mark.parametrize("depth", [1, 3])
def test_what_is_sampled_is_what_is_scored(frozen, paths, depth):
    """Several forks in an answer, nested ones, paths of different lengths, prompts of different lengths, rows that
    are reused: the isolated sampler's log-probabilities are the isolated scorer's."""
    sampling = Sampling(paths=paths, budget=Budget(total=400, critical_path=90, path=30, forks=5, depth=depth))
    force, prompts = force_forks(frozen.tags), prompts_of(frozen, 8)
    traces = draw(LocalEngine(frozen.model), frozen.tags, prompts, sampling, 0, force=force, rows=3)
    assert max(trace.forks for trace in traces) >= 3
    for trace in traces:
        if trace.well_formed:  # what was drawn is what its text says
            read = parse(trace.token_ids, frozen.tags)
            by_token = [[span.address for span in each.spans for _ in span.token_ids] for each in (trace, read)]
            assert by_token[0] == by_token[1]
    if depth == 3 and paths > 1:
        assert max(len(span.address) for trace in traces for span in trace.spans) >= 2
    assert mismatch(frozen, traces) <= 1e-4


@pytest.mark.parametrize(
    "shape",
    [{"temperature": 0.5}, {"temperature": 1.3}, {"top_k": 20}, {"top_p": 0.8}, {"temperature": 0.8, "min_p": 0.02}],
)
def test_log_probabilities_are_those_of_the_distribution_that_was_sampled(frozen, shape):
    """And beside them those of the raw policy, so that a scorer can be exact with either."""
    sampling = Sampling(**shape, budget=Budget(critical_path=60, path=20))
    traces = draw(
        LocalEngine(frozen.model), frozen.tags, prompts_of(frozen, 4), sampling, 0, force=force_forks(frozen.tags)
    )
    assert mismatch(frozen, traces, shape=decoding(sampling, frozen.tags)) <= 1e-4
    assert mismatch(frozen, traces) > 1e-2
    assert mismatch(frozen, [raw(trace) for trace in traces]) <= 1e-4


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
        assert set(trace.spans[0].logprobs) == {0.0}  # greedy: all probability is on one token
    assert mismatch(frozen, [raw(trace) for trace in traces], "causal") <= 1e-4


@pytest.mark.parametrize("sampler", ["isolated", "causal_join", "sequential"])
def test_a_seed_repeats_a_run_whatever_shares_the_batch(frozen, sampler):
    prompts = prompts_of(frozen, 6)

    def run(rows, seed):
        sampling = Sampling(sampler=sampler, paths=2, budget=Budget(critical_path=50, path=20))
        traces = draw(
            LocalEngine(frozen.model),
            frozen.tags,
            prompts,
            sampling,
            seed,
            force=force_forks(frozen.tags) if sampler != "sequential" else None,
            rows=rows,
        )
        return [trace.token_ids for trace in traces]

    assert run(6, 1) == run(6, 1) == run(2, 1)
    assert run(6, 1) != run(6, 2)


@given(
    total=st.integers(5, 200),
    critical=st.integers(1, 80),
    path=st.integers(1, 30),
    forks=st.integers(0, 4),
    paths=st.integers(1, 16),
    depth=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=40)
def test_no_budget_is_ever_exceeded(frozen, total, critical, path, forks, paths, depth, seed):
    budget = Budget(total=total, critical_path=critical, path=path, forks=forks, depth=depth)
    traces = draw(
        LocalEngine(frozen.model),
        frozen.tags,
        prompts_of(frozen, 2),
        Sampling(paths=paths, budget=budget),
        3,
        force=wild(frozen.tags, seed),
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
            assert set(span.token_ids) <= {*tags.ids.values(), *tags.join}
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


def wild(tags, seed, answers=()):
    """A force that opens forks, closes paths and summaries and ends answers at random places, in any order; answers
    that are named run without it."""
    ids = tags.ids
    menu = [ids["<Parallel>"]] * 3 + [ids["</Path>"]] * 2 + [ids["</Summary>"], *tags.eos]

    def force(answer, address, size):
        rng = random.Random(f"{seed}/{answer}/{address}/{size}")
        return None if answer in answers or rng.random() < 0.7 else rng.choice(menu)

    return force


@pytest.mark.parametrize(
    "sampler", ["isolated", *(pytest.param(name, marks=pytest.mark.slow) for name in ("causal_join", "sequential"))]
)
@given(data=st.data())
@settings(max_examples=10, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking would take minutes
def test_exact_pairs_are_exact(frozen, sampler, data):
    """Any number of paths, forks anywhere and nested, paths that end at once or are cut, answers without forks beside
    them, little memory: the log-probabilities of the sampler are those of its exact scorer."""
    paths, depth = data.draw(st.integers(1, 16)), data.draw(st.integers(1, 3))
    total = data.draw(st.integers(10, 250))
    budget = Budget(
        total=total,
        critical_path=data.draw(st.integers(5, 120)),
        path=data.draw(st.integers(3, 40)),
        forks=data.draw(st.integers(0, 6)),
        depth=depth,
    )
    prompts = prompts_of(frozen, 4) * 2
    memory = max(map(len, prompts)) + total + data.draw(st.sampled_from([0, 50, 10_000]))
    rows = data.draw(st.integers(1, 8))
    sampling = Sampling(sampler=sampler, paths=paths, budget=budget)
    engine = LocalEngine(frozen.model)
    force = wild(frozen.tags, data.draw(st.integers(0, 10_000)), answers=(0, 5))
    traces = draw(engine, frozen.tags, prompts, sampling, 0, force=force, rows=rows, memory=memory)
    assert mismatch(frozen, traces, EXACT_SCORER[sampler]) <= 1e-4
    assert engine.counts.peak_kv <= memory
    assert engine.counts.kv == 0


@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_tags_in_a_prompt_are_text(frozen, sampler):
    """A fork that a prompt leaves open, or a path that it closes, says nothing about the answer: what it may do, its
    structure, and who sees whom."""
    prompt = frozen.encode("Write <Parallel><Path>, then </Path> and </Parallel>\n<Summary>, or <Parallel><Path>")
    assert sum(token in frozen.tags.ids.values() for token in prompt) == 7
    sampling = Sampling(sampler=sampler, budget=Budget(total=120, critical_path=90, path=20, forks=2))
    engine, force = LocalEngine(frozen.model), force_forks(frozen.tags)
    traces = draw(engine, frozen.tags, [prompt] * 3, sampling, 0, force=force)
    assert mismatch(frozen, traces, EXACT_SCORER[sampler]) <= 1e-4
    newline = frozen.tags.join[1]
    (plain,) = draw(engine, frozen.tags, [prompt], sampling, 0, force=lambda _, __, size: newline if size % 3 else None)
    assert (plain.forks, plain.well_formed, plain.spans[0].address) == (0, True, TRUNK)
    assert mismatch(frozen, [plain], EXACT_SCORER[sampler]) == mismatch(frozen, [plain], "causal") <= 1e-4
    for trace in traces:
        assert trace.prompt_ids == tuple(prompt)
        read = parse(trace.token_ids, frozen.tags, sampler=sampler, prompt_ids=prompt)
        assert list(read.defects) == [each for each in trace.defects if each.kind != "fork-as-text"]
        assert read.runs == parse(trace.token_ids, frozen.tags, sampler=sampler).runs
        laid = layout([(TRUNK, len(prompt)), *trace.runs], EXACT_SCORER[sampler])
        assert laid.positions[: len(prompt)].tolist() == list(range(len(prompt)))
        assert laid.mask()[len(prompt) :, : len(prompt)].all()  # every token of the answer sees all of the prompt


@pytest.mark.parametrize("paths", [1, 3, pytest.param(16, marks=pytest.mark.slow)])
def test_parity_tells_exact_pairs_from_mismatches(frozen, paths):
    for sampler in get_args(Sampler):
        for found in measure(frozen, sampler, get_args(Scorer), paths, answers=4, forks=2):
            if found.exact:
                assert found.max_abs <= 1e-4
            elif paths > 1:  # a single path is plain text, however it is read
                assert found.max_abs > 1e-2
            assert found.after_fork is not None
            assert found.after_join is not None


def test_where_the_mismatches_are(frozen):
    """What re-reading changes comes after the join, what blindness changes comes after the fork. With this seed the
    policy draws no tag of its own, so all forks are those that are forced."""
    found = {
        (each.sampler, each.scorer): each
        for sampler in get_args(Sampler)
        for each in measure(frozen, sampler, get_args(Scorer), 3, seed=1)
    }
    assert found["causal_join", "causal"].after_join <= 1e-4 < found["causal_join", "causal"].after_fork
    assert found["sequential", "replay"].after_join <= 1e-4 < found["sequential", "replay"].after_fork
    assert found["isolated", "replay"].after_fork <= found["isolated", "replay"].after_join
    assert found["causal_join", "isolated"].after_join > 1e-3


def test_tags_only_matter_through_their_ids(frozen):
    """Without an end of text the trunk runs to its budget."""
    endless = replace(frozen.tags, eos=frozenset())
    sampling = Sampling(sampler="sequential", budget=Budget(critical_path=30, total=30))
    traces = draw(LocalEngine(frozen.model), endless, prompts_of(frozen, 2), sampling, 0)
    assert [len(trace.token_ids) for trace in traces] == [30, 30]
    assert {trace.finish for trace in traces} == {"length"}


def answers_of(drawing):
    """Run a drawing to its end."""
    while drawing.is_busy:
        drawing.step()


@pytest.mark.parametrize("sampler", ["isolated", "causal_join"])
def test_an_answer_that_had_to_wait_is_the_same(frozen, sampler):
    """With little memory answers give theirs up and are read again; nothing that they drew changes."""
    prompts = prompts_of(frozen, 6)
    budget = Budget(total=150, critical_path=60, path=20, depth=2)

    def run(memory):
        drawing, force = Scheduler(LocalEngine(frozen.model), frozen.tags, 6, memory), force_forks(frozen.tags)
        sampling = Sampling(sampler=sampler, paths=3, budget=budget)
        answers = [submit(drawing, prompt, sampling, index, force) for index, prompt in enumerate(prompts)]
        answers_of(drawing)
        return drawing, [answer.trace(0) for answer in answers]

    free, expected = run(None)
    tight, found = run(200)
    assert free.engine.counts.preempted == 0 < tight.engine.counts.preempted
    assert tight.engine.counts.peak_kv <= 200 < free.engine.counts.peak_kv
    assert tight.engine.counts.prefilled > free.engine.counts.prefilled
    assert [trace.token_ids for trace in found] == [trace.token_ids for trace in expected]
    assert mismatch(frozen, found, EXACT_SCORER[sampler]) <= 1e-4


def test_memory_of_a_fork(frozen):
    """A fork holds its prefix once and every path's own tokens; a join of `isolated` reads nothing again, one of
    `causal_join` the second and later paths, in their place."""
    tags = frozen.tags

    def force(answer, address, size):
        if address == TRUNK:
            return tags.ids["<Parallel>"] if size == 4 else None
        return tags.ids["</Path>"] if size > 5 + address[-1][1] else 7

    prompt = prompts_of(frozen, 1)[0]
    for sampler in ("isolated", "causal_join"):
        engine = LocalEngine(frozen.model)
        drawing = Scheduler(engine, tags, 1)
        answer = submit(drawing, prompt, Sampling(sampler=sampler, paths=3, budget=Budget(path=30)), 0, force)
        while answer.open_forks == 0:
            drawing.step()
        while answer.open_forks:
            drawing.step()
        (paths,) = (part.paths for part in answer.trunk.parts if isinstance(part, Fork))
        lengths = [len(path.token_ids()) for path in paths]
        assert engine.counts.peak_kv == len(prompt) + 5 + sum(lengths)
        drawing.step()  # reads `</Parallel>`, and with it what the join reads again
        assert engine.counts.peak_kv == engine.counts.kv == len(prompt) + 5 + sum(lengths) + 1
        assert engine.counts.prefilled == len(prompt) - 1 + (sum(lengths[1:]) if sampler == "causal_join" else 0)
        assert engine.counts.decoded == 1 + 5 + sum(lengths) + 1
        drawing.cancel(answer)
        assert drawing.step() == [answer]
        assert engine.counts.kv == 0


def test_prompts_of_a_group_are_read_and_held_once(frozen):
    """However few rows there are, a prompt is read once for all its answers, and they are what they are alone."""
    prompts = [prompt for prompt in prompts_of(frozen, 3) for _ in range(4)]
    lengths = [len(prompt) for prompt in prompts[::4]]
    sampling = Sampling(budget=Budget(critical_path=30, path=10))
    for rows in (12, 3, 1):
        engine = LocalEngine(frozen.model)
        found = draw(engine, frozen.tags, prompts, sampling, 0, rows=rows)
        assert engine.counts.prefilled == sum(lengths) - 3
        for index in (0, 5, 11):
            drawing = Scheduler(LocalEngine(frozen.model), frozen.tags, 1)
            alone = submit(drawing, prompts[index], sampling, f"0/{index}")
            answers_of(drawing)
            assert alone.trace(0).token_ids == found[index].token_ids


def test_cancelling_in_mid_fork_frees_before_the_next_step_and_changes_nobody_else(frozen):
    prompts = prompts_of(frozen, 3)
    sampling = Sampling(paths=4, budget=Budget(critical_path=80, path=30))

    def start():
        drawing, force = Scheduler(LocalEngine(frozen.model), frozen.tags, 3), force_forks(frozen.tags)
        return drawing, [submit(drawing, prompt, sampling, index, force) for index, prompt in enumerate(prompts)]

    whole, expected = start()
    answers_of(whole)
    drawing, answers = start()
    while not answers[1].trunk.waiting:
        drawing.step()
    held = drawing.engine.counts.kv
    drawing.cancel(answers[1])
    drawing.cancel(answers[1])  # twice is once
    assert answers[1].finish is None
    assert drawing._cancel(drawing.cancelled) == [answers[1]]
    assert drawing.engine.counts.kv == held - len(prompts[1]) - answers[1].total + sum(
        len(thread.feed) for thread in (answers[1].trunk, *answers[1].trunk.parts[-1].paths)
    )
    answers_of(drawing)
    assert drawing.engine.counts.kv == 0
    for index in (0, 2):
        assert answers[index].trace(0).token_ids == expected[index].trace(0).token_ids
    cut = answers[1].trace(0)
    assert cut.finish == "cancelled"
    assert "unclosed-fork" in [defect.kind for defect in cut.defects]
    drawing.cancel(answers[1])
    assert drawing.step() == []  # one that has ended stays as it is


def test_logits_that_are_not_numbers_end_one_answer(policy):
    """A NaN ends its answer with a defect; the answers beside it, and those that take its memory later, go on."""
    poisoned = policy.encode("9")[0]
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[poisoned] = torch.nan
        policy.model.lm_head = torch.nn.Linear(32, len(policy.tokenizer), bias=False)
    clean = policy.encode("Use 3, 5, 7 to make 22.\n")
    assert poisoned not in clean

    def force(answer, address, size):
        return 7 if answer != 1 or size < 5 else poisoned if size == 5 else None

    sampling = Sampling(budget=Budget(critical_path=20, total=40))
    traces = draw(LocalEngine(policy.model), policy.tags, [clean] * 5, sampling, 0, force=force, rows=2)
    assert [trace.finish for trace in traces] == ["length", "error", "length", "length", "length"]
    assert [defect.kind for defect in traces[1].defects] == ["broken-logits"]
    assert len(traces[1].token_ids) == 6


def test_answers_of_different_kinds_share_a_batch(frozen):
    """Each request has its own sampler, decoding and seed, and gets what it would get alone."""
    prompt = prompts_of(frozen, 1)[0]
    budget = Budget(critical_path=40, path=15)
    kinds = [
        Sampling(budget=budget),
        Sampling(sampler="causal_join", paths=5, temperature=0.7, budget=budget),
        Sampling(sampler="sequential", top_k=3, budget=budget),
        Sampling(temperature=0, budget=budget),
        Sampling(top_p=0.9, min_p=0.05, paths=1, budget=budget),
    ]

    def run(chosen):
        drawing, force = Scheduler(LocalEngine(frozen.model), frozen.tags, 8), force_forks(frozen.tags)
        answers = [submit(drawing, prompt, kinds[index], index, force) for index in chosen]
        answers_of(drawing)
        return [answer.trace(0).token_ids for answer in answers]

    # The force counts answers, not kinds, and does the same for all of them.
    assert run(range(5)) == [run([index])[0] for index in range(5)]


def test_a_stop_text_ends_the_answer(frozen):
    word = [frozen.encode(letter)[0] for letter in "stop"]

    def force(answer, address, size):
        return word[size - 5] if 5 <= size < 9 else frozen.encode("=")[0]

    sampling = Sampling(sampler="sequential", stop=("never", "top"), budget=Budget(critical_path=60, total=60))
    (trace,) = draw(
        LocalEngine(frozen.model), frozen.tags, prompts_of(frozen, 1), sampling, 0, force=force, decode=frozen.decode
    )
    assert trace.finish == "stop"
    assert frozen.decode(trace.token_ids) == "=====stop"


def test_bad_requests_are_refused(frozen):
    prompt = prompts_of(frozen, 1)[0]
    drawing = Scheduler(LocalEngine(frozen.model), frozen.tags, 4, memory=40)
    with pytest.raises(UserError, match="memory for"):
        submit(drawing, prompt, Sampling(budget=Budget(total=40)), 0)
    with pytest.raises(UserError, match="a decode function for stop texts"):
        submit(drawing, prompt, Sampling(stop=("x",), budget=Budget(total=10)), 0)
    tag = frozen.tags.ids["</Path>"]
    with pytest.raises(UserError, match="ends of an answer that are no tags; found </Path>"):
        replace(frozen.tags, eos=frozenset([*frozen.tags.eos, tag]))
    for wrong in (
        {"paths": 0},
        {"paths": 1000},
        {"stop": ("</Path>",)},
        {"stop": ("",)},
        {"top_p": 0.0},
        {"budget": {"total": 0}},
        {"budget": {"critical_path": -1}},
        {"budget": {"path": 0}},
        {"budget": {"forks": -1}},
    ):
        with pytest.raises(ValidationError):
            Sampling.model_validate(wrong)
    for wrong in ({"memory": 0}, {"memory": -5}, {"rows": 0}, {"device": "gpu"}, {"kind": "remote"}):
        with pytest.raises(ValidationError):
            Engine.model_validate(wrong)
