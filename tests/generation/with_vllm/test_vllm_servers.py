"""vLLM servers that fail in every way: no path is lost, none is drawn twice, and no token is of other weights."""

import pytest
from pretended_vllm import Reader, ReadServer
from test_vllm_batch import SIZE, by_scheduler, requests_of

from parallel_r1.errors import UserError
from parallel_r1.generation.live import draw_all
from parallel_r1.generation.settings import Budget, Engine, Sampling
from parallel_r1.generation.vllm import server as server_module
from parallel_r1.generation.vllm.batch import VllmBatch
from parallel_r1.generation.vllm.server import Servers

SAMPLING = Sampling(sampler="causal_join", paths=3, temperature=0, budget=Budget(total=200, critical_path=120, path=40))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(server_module, "FIRST_WAIT", 0.01)


@pytest.fixture(scope="module")
def reader(frozen):
    return Reader(frozen.tags, SIZE)


def servers_of(*addresses, **more):
    return Servers(Engine(kind="vllm", servers=addresses, **more))


def drawn(servers, reader, count=6):
    batch = VllmBatch(servers, reader.tags, 4, longest=servers.longest)
    try:
        return draw_all(batch, [batch.submit(request) for request in requests_of(SAMPLING, count)], 3, None), batch
    finally:
        batch.close()


@pytest.mark.parametrize("scale_out", [True, False])
def test_a_server_draws_what_the_local_scheduler_draws(reader, scale_out):
    """At the end point for tokens, and at that for completions, which every vLLM has."""
    with ReadServer(reader, scale_out=scale_out) as server:
        traces, batch = drawn(servers_of(server.address), reader)
    assert traces == by_scheduler(reader, requests_of(SAMPLING, 6))
    assert max(trace.forks for trace in traces) >= 2
    assert batch.counts.cached
    assert server.texts >= len(batch.calls) + 6


FAULTS = [
    ["cut"] * 5,
    ["end", None, "end"],
    ["busy", "wait", "busy"],
    ["error", "cut", "busy", "end"],
    [None, "cut", None, "wait", "error", None, "cut", "end", "cut", "cut"],
]


@pytest.mark.parametrize("faults", FAULTS, ids=lambda faults: "-".join(map(str, faults)))
@pytest.mark.parametrize("seed", range(3))
def test_answers_survive_every_failure(reader, faults, seed):
    """The next token depends on all that was read, so an answer is only right if no token is missing or double."""
    with ReadServer(reader, faults, seed=seed) as server:
        traces, _ = drawn(servers_of(server.address), reader)
        assert not server.faults
    assert traces == by_scheduler(reader, requests_of(SAMPLING, 6))


def test_a_server_that_starts_again_gets_the_weights_again(reader, policy, tmp_path):
    with ReadServer(reader, [None, None, "restart"]) as server:
        servers = servers_of(server.address, weights=str(tmp_path))
        servers.take(policy)
        assert len(server.pushed) == 1
        assert server.weights.endswith(f"-{policy.version}")
        traces, _ = drawn(servers, reader)
        assert len(server.pushed) == 2
        assert server.pushed[0] == server.pushed[1]
    assert traces == by_scheduler(reader, requests_of(SAMPLING, 6))


def test_a_restart_between_two_batches_is_noticed(reader, policy, tmp_path):
    with ReadServer(reader) as server:
        servers = servers_of(server.address, weights=str(tmp_path))
        servers.take(policy)
        server.weights = "default"
        servers.wake()
        assert len(server.pushed) == 2


def test_tokens_of_other_weights_are_an_error(reader, policy, tmp_path):
    with ReadServer(reader, [None, None, "silent restart"]) as server:
        servers = servers_of(server.address, weights=str(tmp_path))
        servers.take(policy)
        with pytest.raises(UserError, match=r"expected tokens of the weights .* found tokens of default"):
            drawn(servers, reader)


def test_weights_go_through_a_folder_that_keeps_the_last_ones(reader, policy, tmp_path):
    from safetensors.torch import load_file

    with ReadServer(reader) as server:
        servers = servers_of(server.address, weights=str(tmp_path))
        for version in (0, 1, 2):
            policy.version = version
            servers.take(policy)
        (folder,) = tmp_path.iterdir()
        assert folder.name.endswith("-2")
        assert server.folder == str(folder)
        weights = load_file(folder / "model.safetensors")
    table = policy.model.get_input_embeddings().weight
    assert weights["lm_head.weight"].equal(table.detach())
    assert weights.keys() == {*dict(policy.model.named_parameters()), "lm_head.weight"}


def test_a_server_that_takes_no_weights_cannot_train(reader, policy):
    with ReadServer(reader, takes_weights=False) as server:
        servers = servers_of(server.address)
        policy.source = "models/some"
        servers.take(policy)  # it serves what it was started with
        policy.source = None
        with pytest.raises(UserError, match="VLLM_SERVER_DEV_MODE=1"):
            servers.take(policy)


def test_all_calls_of_an_answer_go_to_one_server(reader):
    with ReadServer(reader) as one, ReadServer(reader) as two:
        servers = servers_of(one.address, two.address)
        homes = {}
        start = servers.start

        def spy(call):
            homes.setdefault(call.key.partition("-")[0], set()).add(call.home % servers.places)
            start(call)

        servers.start = spy
        traces, _ = drawn(servers, reader)
        assert one.texts
        assert two.texts
    assert all(len(places) == 1 for places in homes.values())
    assert traces == by_scheduler(reader, requests_of(SAMPLING, 6))


def test_patience_ends(reader):
    with ReadServer(reader, ["busy"] * 100) as server:
        servers = servers_of(server.address, patience=1.0)
        with pytest.raises(UserError, match=r"none for 1 s \(status 503"):
            drawn(servers, reader)


def test_nobody_there():
    with pytest.raises(UserError, match=r"a vLLM server that answers at http://127.0.0.1:9"):
        servers_of("http://127.0.0.1:9", patience=0.5)


def test_a_refused_text_is_an_error_with_the_words_of_the_server(reader):
    with ReadServer(reader, ["refuse"]) as server, pytest.raises(UserError, match=r"status 400: .*too long"):
        drawn(servers_of(server.address), reader)


def test_an_answer_that_is_too_long_for_the_server_is_refused_before(reader):
    with ReadServer(reader, longest=100) as server, pytest.raises(UserError, match="at most 100 tokens"):
        drawn(servers_of(server.address), reader)
