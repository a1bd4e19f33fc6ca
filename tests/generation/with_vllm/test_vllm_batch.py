"""Answers over an engine that continues texts are those of the local scheduler, in whatever order tokens come."""

import pytest
from common import force_forks
from hypothesis import given, settings
from hypothesis import strategies as st
from pretended_vllm import ReadClient, Reader, by_scheduler

from parallel_r1.answers.schemas import SCHEMAS
from parallel_r1.errors import UserError
from parallel_r1.generation.live import draw_all
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Budget, Sampling
from parallel_r1.generation.vllm.batch import VllmBatch

SIZE = 60


def requests_of(sampling, count=3, force=None):
    return [
        Request([5, 6, 7 + index], sampling, f"s/{index}", force and (lambda a, s, i=index: force(i, a, s)))
        for index in range(count)
    ]


def by_vllm(reader, requests, client=None, rows=2, **more):
    batch = VllmBatch(client or ReadClient(reader), reader.tags, rows, **more)
    return draw_all(batch, [batch.submit(request) for request in requests], 3, None)


@pytest.fixture(scope="module")
def reader(frozen):
    """Tags at their places in the tiny model's vocabulary, which is cut behind them."""
    assert max(frozen.tags.ids.values()) < SIZE
    return Reader(frozen.tags, SIZE)


samplings = st.builds(
    Sampling,
    sampler=st.sampled_from(["causal_join", "sequential"]),
    paths=st.integers(1, 5),
    temperature=st.just(0.0),
    budget=st.builds(
        Budget,
        total=st.integers(8, 160),
        critical_path=st.integers(8, 90),
        path=st.integers(3, 30),
        forks=st.integers(0, 4),
        depth=st.integers(1, 3),
    ),
)


@settings(max_examples=120)
@given(sampling=samplings, seed=st.integers(0, 99))
def test_the_answers_are_those_of_the_local_scheduler(frozen, sampling, seed):
    """Whatever the budget, and in whatever order and pieces tokens arrive: paths are cut where the scheduler cuts them,
    which depends on what all of them have drawn."""
    reader = Reader(frozen.tags, SIZE, seed)
    requests = requests_of(sampling)
    client = ReadClient(reader, seed)
    assert by_vllm(reader, requests, client) == by_scheduler(reader, requests)
    assert not client.left  # nothing goes on that nobody wants


def test_answers_fork_and_nest(reader):
    """The test above is about something."""
    sampling = Sampling(
        sampler="causal_join", paths=3, temperature=0, budget=Budget(total=400, critical_path=200, path=60, depth=2)
    )
    traces = by_vllm(reader, requests_of(sampling, 12))
    assert max(trace.forks for trace in traces) >= 2
    assert max(len(span.address) for trace in traces for span in trace.spans) == 2


def test_forced_tokens_are_given_and_cost_no_call(reader):
    sampling = Sampling(sampler="causal_join", paths=3, temperature=0, budget=Budget(total=200, critical_path=90))
    requests = requests_of(sampling, force=force_forks(reader.tags))
    client = ReadClient(reader)
    traces = by_vllm(reader, requests, client)
    assert traces == by_scheduler(reader, requests)
    assert any(trace.forks >= 2 for trace in traces)
    assert all(call.most >= 1 for call in client.calls)
    forced = sum(not span.sampled for trace in traces for span in trace.spans)
    assert forced
    assert len(client.calls) < sum(len(trace.token_ids) for trace in traces)


def test_a_policy_that_chooses_the_number_of_paths(frozen):
    liked = [*frozen.tags.ids.values(), *frozen.tags.counts]
    sampling = Sampling(sampler="causal_join", paths=(2, 5), temperature=0, budget=Budget(total=200, critical_path=80))
    for seed in range(6):
        reader = Reader(frozen.tags, max(liked) + 1, seed, liked)
        assert by_vllm(reader, requests_of(sampling)) == by_scheduler(reader, requests_of(sampling))


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_every_schema(tagged, name):
    policy = tagged(SCHEMAS[name])
    tags = policy.tags
    liked = [*tags.ids.values(), *tags.ids.values(), *sorted(tags.eos)]
    sampling = Sampling(sampler="causal_join", paths=3, temperature=0, budget=Budget(total=200, critical_path=120))
    forks = 0
    for seed in range(4):
        reader = Reader(tags, max(liked) + 1, seed, liked)
        traces = by_vllm(reader, requests_of(sampling))
        assert traces == by_scheduler(reader, requests_of(sampling))
        forks += sum(trace.forks for trace in traces)
    assert forks or tags.schema.plan


def test_a_stop_text_ends_an_answer(reader, frozen):
    sampling = Sampling(sampler="causal_join", temperature=0, budget=Budget(total=200, critical_path=150))
    (free,) = by_scheduler(reader, requests_of(sampling, 1))
    stop = frozen.decode(free.trunk_ids[-3:-2]) or frozen.decode(free.trunk_ids[:1])
    sampling = sampling.model_copy(update={"stop": (stop,)})
    requests = requests_of(sampling)
    expected = by_scheduler(reader, requests, decode=frozen.decode)
    assert by_vllm(reader, requests, decode=frozen.decode) == expected
    assert any(trace.finish == "stop" for trace in expected)


def test_a_text_is_what_its_thread_sees_in_reading_order(reader):
    """The whole answer before it, with the paths of joined forks, and nothing of its siblings."""
    sampling = Sampling(
        sampler="causal_join", paths=3, temperature=0, budget=Budget(total=150, critical_path=80, depth=2)
    )
    forks = 0
    for index in range(8):
        client = ReadClient(reader)
        request = requests_of(sampling, 8, force_forks(reader.tags))[index]
        (trace,) = by_vllm(reader, [request], client)
        tokens = [(token, span.address) for span in trace.spans for token in span.token_ids]
        seen = [
            [*trace.prompt_ids, *(token for token, other in tokens[:place] if not siblings(other, address))]
            for place, (_, address) in enumerate(tokens)
        ]
        forks += trace.forks
        assert all(list(call.context) in seen and call.home == 0 for call in client.calls)
    assert forks >= 4


def siblings(one, other):
    """Whether two addresses are in different paths of one fork."""
    return any(fork == another and path != its for fork, path in one for another, its in other)


def test_a_cancelled_answer_stops_its_calls(reader):
    sampling = Sampling(sampler="causal_join", paths=3, temperature=0, budget=Budget(total=400, critical_path=300))
    client = ReadClient(reader)
    batch = VllmBatch(client, reader.tags, 4)
    answers = [batch.submit(request) for request in requests_of(sampling, 3, force_forks(reader.tags))]
    batch.step()
    batch.cancel(answers[1])
    assert batch.step()[0] is answers[1]
    assert answers[1].trace(0).finish == "cancelled"
    assert all(not key.startswith("1-") for key in client.left)
    while batch.is_busy:
        batch.step()
    assert [answer.finish != "cancelled" for answer in answers] == [True, False, True]


def test_an_answer_that_waits_can_be_cancelled(reader):
    sampling = Sampling(sampler="sequential", temperature=0, budget=Budget(total=50, critical_path=50))
    batch = VllmBatch(ReadClient(reader), reader.tags, 1)
    first, second = (batch.submit(request) for request in requests_of(sampling, 2))
    batch.cancel(second)
    assert batch.step() == [second]
    while batch.is_busy:
        batch.step()
    assert first.finish in ("stop", "length")


def test_counts_tell_what_was_read_and_what_the_cache_had(reader):
    sampling = Sampling(sampler="sequential", temperature=0, budget=Budget(total=50, critical_path=50))
    client = ReadClient(reader)
    batch = VllmBatch(client, reader.tags, 1)
    (trace,) = draw_all(batch, [batch.submit(request) for request in requests_of(sampling, 1)], 0, None)
    assert batch.counts.decoded == len(trace.token_ids)
    assert batch.counts.prefilled + batch.counts.cached == sum(len(call.context) for call in client.calls)
    assert batch.counts.cached


def test_log_probabilities_are_those_of_a_known_distribution(reader):
    """A server reports those of the raw policy. Under another distribution nobody knows them, and none are written."""
    budget = Budget(total=30, critical_path=30)
    for temperature, known in ((1, (True, True)), (0, (True, True)), (0.7, (False, False))):
        sampling = Sampling(sampler="sequential", temperature=temperature, budget=budget)
        (trace,) = by_vllm(reader, requests_of(sampling, 1))
        for span in trace.spans:
            assert (span.logprobs is not None, span.raw_logprobs is not None) == known
            if temperature == 0:
                assert set(span.logprobs) == {0.0} != set(span.raw_logprobs)
    client = ReadClient(reader)
    client.processed = True
    (trace,) = by_vllm(reader, requests_of(Sampling(sampler="sequential", temperature=0.7, budget=budget), 1), client)
    assert all(span.logprobs and span.raw_logprobs is None for span in trace.spans)


def test_logits_that_are_no_numbers_end_an_answer(reader):
    class Broken(ReadClient):
        def poll(self):
            return [
                piece.__class__(piece.key, piece.tokens, [float("nan")] * len(piece.tokens)) for piece in super().poll()
            ]

    sampling = Sampling(sampler="sequential", temperature=1, budget=Budget(total=30, critical_path=30))
    (trace,) = by_vllm(reader, requests_of(sampling, 1), Broken(reader))
    assert trace.finish == "error"
    assert [defect.kind for defect in trace.defects] == ["broken-logits"]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request([], Sampling(sampler="causal_join"), "s"), "prompts of at least one token"),
        (Request([1], Sampling(), "s"), "a sampler that vLLM can draw"),
        (Request([1] * 600, Sampling(sampler="causal_join"), "s"), "at most 1000 tokens"),
        (Request([1], Sampling(sampler="causal_join", stop=("x",)), "s"), "a decode function"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(reader, request_, expected):
    batch = VllmBatch(ReadClient(reader), reader.tags, 2, longest=1000)
    with pytest.raises(UserError, match=expected):
        batch.submit(request_)
    assert not batch.is_busy
