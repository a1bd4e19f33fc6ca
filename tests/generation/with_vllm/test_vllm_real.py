"""vLLM itself, in this process and as a server: what it draws is what is scored, and training goes on through failures.

Run by `make test-vllm`, in the environment of vLLM.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from common import ROOT

import parallel_r1 as pr
from parallel_r1.errors import UserError
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.vllm.weights import write_weights

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
]
TRAINED = ROOT / "models" / "tiny-parallel"
PROMPTS = ["Use 3, 5, 7 to make 22.\n", "Use 2, 9, 4, 6 to make 30.\n", "Use 1, 8, 5 to make 13.\n"]
SHAPE = {"sampler": "causal_join", "paths": 3, "total": 300, "critical_path": 200, "path": 40}
FLAGS = ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", "300000000"]
FLAGS += ["--no-enable-chunked-prefill", "--enable-prompt-tokens-details", "--block-size", "32"]


class VllmServer:
    """A real server on 127.0.0.1, which can be killed and started again."""

    def __init__(self, model, log, *flags, dev=True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address, self.model, self.log, self.flags, self.dev = (
            f"http://127.0.0.1:{self.port}",
            model,
            log,
            flags,
            dev,
        )
        self.start()
        self.wait()

    def start(self):
        words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        words += ["--host", "127.0.0.1", "--port", str(self.port), *FLAGS, *self.flags]
        environment = os.environ | {"VLLM_SERVER_DEV_MODE": str(int(self.dev)), "OMP_NUM_THREADS": "1"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                words, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self.log.parent
            )

    def wait(self):
        for _ in range(600):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(self.log.read_text()[-3000:])

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)  # the server and its engine, which this test started
        self.process.wait()


@pytest.fixture(scope="module")
def trained():
    return pr.load(TRAINED)


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """The trained model with a head of its own, for servers."""
    path = tmp_path_factory.mktemp("served") / "model"
    write_weights(trained, path)
    return path


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    running = VllmServer(folder, tmp_path_factory.mktemp("log") / "server.log", "--enable-scale-out")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def plain_server(tmp_path_factory):
    """A server as anybody starts it: without the end points for tokens and for weights."""
    running = VllmServer(TRAINED, tmp_path_factory.mktemp("log") / "plain.log", dev=False)
    yield running
    running.kill()


def engine_of(request, place):
    if place == "in process":
        return pr.Engine(kind="vllm", memory="200MB")
    return pr.Engine(kind="vllm", servers=[request.getfixturevalue(place).address], patience=60)


PLACES = ["in process", "server", "plain_server"]


@pytest.mark.parametrize("paths", [1, 2, 5])
@pytest.mark.parametrize("place", PLACES)
def test_what_vllm_draws_is_what_is_scored(request, trained, place, paths):
    found = pr.parity(trained, "causal_join", paths=paths, answers=4, engine=engine_of(request, place))
    assert found.exact
    assert found.tokens > 100
    assert found.max_abs <= 1e-4


@pytest.mark.parametrize("place", PLACES)
def test_a_plain_answer_is_scored_exactly_too(request, trained, place):
    found = pr.parity(trained, "sequential", answers=4, engine=engine_of(request, place))
    assert found.tokens > 100
    assert found.max_abs <= 1e-4


@pytest.mark.parametrize("place", PLACES)
def test_greedy_answers_are_those_of_the_local_engine(request, trained, place):
    local = pr.generate(trained, PROMPTS, temperature=0, **SHAPE)
    drawn = pr.generate(trained, PROMPTS, temperature=0, **SHAPE, engine=engine_of(request, place))
    assert [answer.trace.token_ids for answer in drawn] == [answer.trace.token_ids for answer in local]
    assert [answer.trace.runs for answer in drawn] == [answer.trace.runs for answer in local]
    assert all(answer.forks for answer in drawn)
    for ours, theirs in zip(local, drawn, strict=True):
        for one, other in zip(ours.trace.spans, theirs.trace.spans, strict=True):
            assert one.sampled == other.sampled
            assert (other.raw_logprobs or ()) == pytest.approx(one.raw_logprobs or (), abs=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_the_same_seed_gives_the_same_answers(request, trained, place):
    engine = engine_of(request, place)
    first, second = (pr.generate(trained, PROMPTS, seed=3, samples=2, **SHAPE, engine=engine) for _ in range(2))
    assert [answer.text for answer in first] == [answer.text for answer in second]
    assert len({answer.text for answer in first}) > 3


def test_other_distributions_in_this_process(trained):
    """The engine in this process reports log-probabilities under the distribution that was sampled."""
    engine = pr.Engine(kind="vllm", memory="200MB")
    (answer,) = pr.generate(trained, PROMPTS[0], temperature=0.7, top_p=0.9, **SHAPE, engine=engine)
    sampled = [span for span in answer.trace.spans if span.sampled]
    assert all(span.logprobs and span.raw_logprobs is None for span in sampled)
    assert max(value for span in sampled for value in span.logprobs) <= 0


def test_the_prefix_cache_has_what_paths_share(trained, server):
    """The trunk has read the prompt, so every path finds its whole blocks of 32 tokens, and so does the summary."""
    prompt = trained.encode_prompt(PROMPTS[0] * 8)
    sampling = pr.Sampling(sampler="causal_join", paths=4, budget=pr.Budget(total=200, critical_path=100, path=20))
    force = lambda address, size: trained.tags.opener if not address and size == 1 else None  # noqa: E731
    generator = make_generator(trained, pr.Engine(kind="vllm", servers=[server.address]))
    (trace,) = generator.traces([Request(prompt, sampling, "s", force)])
    assert trace.forks == 1
    assert len(prompt) >= 64
    assert generator.counts.cached >= (4 + 1) * (len(prompt) // 32) * 32


def test_a_server_with_other_weights_is_refused(trained, plain_server):
    other = pr.load(ROOT / "models" / "tiny-base")
    other.source = "models/tiny-base"
    with pytest.raises(UserError, match="the weights of models/tiny-base in vLLM"):
        pr.generate(other, PROMPTS[0], **SHAPE, engine=pr.Engine(kind="vllm", servers=[plain_server.address]))


def test_a_server_that_would_keep_its_old_head_is_refused(trained, tmp_path):
    tied = VllmServer(TRAINED, tmp_path / "tied.log")
    try:
        with pytest.raises(UserError, match="whose model has a head of its own"):
            pr.generate(trained, PROMPTS[0], **SHAPE, engine=pr.Engine(kind="vllm", servers=[tied.address]))
    finally:
        tied.kill()


@pytest.mark.parametrize("place", ["in process", "server"])
def test_new_weights_arrive(request, place):
    """Every weight changes; afterwards vLLM draws what the local engine draws with the new ones."""
    policy, engine = pr.load(TRAINED), engine_of(request, place)
    generator = make_generator(policy, engine)
    sampling = pr.Sampling(sampler="causal_join", paths=3, temperature=0, budget=pr.Budget(total=120, critical_path=80))
    requests = [Request(policy.encode_prompt(prompt), sampling, "s") for prompt in PROMPTS]
    before = generator.traces(requests)
    with torch.no_grad():
        for index, weight in enumerate(policy.model.parameters()):
            torch.manual_seed(index)
            weight.add_(0.02 * torch.randn_like(weight))
    policy.version, policy.source = 1, None
    generator.sync(policy)
    after = generator.traces(requests)
    assert [trace.policy_version for trace in before + after] == [0] * 3 + [1] * 3
    assert [trace.token_ids for trace in after] != [trace.token_ids for trace in before]
    local = make_generator(policy).traces(requests)
    assert [trace.token_ids for trace in after] == [trace.token_ids for trace in local]


def test_a_server_that_is_killed_and_started_again(folder, tmp_path):
    """In the middle of drawing with weights that it did not start with."""
    policy = pr.load(TRAINED)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(1.02)
    policy.version, policy.source = 5, None
    sampling = pr.Sampling(
        sampler="causal_join", paths=4, temperature=0, budget=pr.Budget(total=400, critical_path=300)
    )
    requests = [Request(policy.encode_prompt(prompt), sampling, f"{n}") for n in range(20) for prompt in PROMPTS]
    running = VllmServer(folder, tmp_path / "killed.log", "--enable-scale-out")
    drawn, killed = [0], []

    def on_token(*_):
        drawn[0] += 1
        if drawn[0] in (500, 3000):
            running.kill()
            running.start()
            killed.append(drawn[0])

    try:
        generator = make_generator(policy, pr.Engine(kind="vllm", servers=[running.address], patience=120))
        traces = generator.traces(requests, on_token=on_token)
    finally:
        running.kill()
    assert len(killed) == 2
    local = make_generator(policy).traces(requests)
    assert [trace.token_ids for trace in traces] == [trace.token_ids for trace in local]
    assert {trace.policy_version for trace in traces} == {5}


CURRICULUM = [sys.executable, "-m", "parallel_r1", "train", "recipes/tiny/vllm.toml", "--set", "evaluation.problems=40"]
CURRICULUM += ["--set", "stages.cold-start.steps=40", "--out"]


def rows_of(out):
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_whole_curriculum_both_ways(tmp_path):
    """Cold start and RL with the alternating reward; every step measures sampler against learner. Drawn in this process
    and by a server that is killed in between, the results are the same."""
    base, here, there = tmp_path / "base", tmp_path / "here", tmp_path / "there"
    write_weights(pr.load(ROOT / "models" / "tiny-base"), base)
    subprocess.run([*CURRICULUM, str(here)], cwd=ROOT, check=True)
    running = VllmServer(base, tmp_path / "server.log", "--enable-scale-out")
    try:
        words = [*CURRICULUM, str(there), "--set", f'engine.servers=["{running.address}"]']
        training = subprocess.Popen(words, cwd=ROOT)
        while training.poll() is None and not any(row.get("stage") == "easy" for row in rows_of(there)):
            time.sleep(0.2)
        running.kill()
        running.start()
        assert training.wait(timeout=900) == 0
    finally:
        running.kill()
    for steps in (rows_of(here), rows_of(there)):
        measured = [row["mismatch_max"] for row in steps if "mismatch_max" in row]
        assert len(measured) == 10
        assert max(measured) <= 1e-3
    assert (there / "table.md").read_text() == (here / "table.md").read_text()


def test_the_benchmark_of_forks_runs(tmp_path):
    words = [sys.executable, "benchmarks/vllm_forks.py", "--quick", "--runs", "1", "--model", "tiny"]
    subprocess.run([*words, "--out", str(tmp_path)], cwd=ROOT, check=True)
    (report,) = tmp_path.iterdir()
    compared = [row["compared"] for row in json.loads(report.read_text())["rows"]]
    assert compared == ["forks / texts", "calls / forks"]


def test_the_server_over_vllm(tmp_path):
    """`parallel-r1 serve --engine vllm` in this environment: forks over HTTP, drawn by vLLM."""
    from server_process import QUESTION, Serving

    with Serving("--engine", "vllm", "--memory", "200MB", "--sampler", "causal_join") as running:
        body = {"model": "tiny-parallel", "messages": [{"role": "user", "content": QUESTION}], "seed": 1}
        body["parallel"] = {"mode": "parallel", "paths": 3, "output": "trace"}
        asked = urllib.request.Request(
            f"{running.address}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(asked) as answer:
            said = json.load(answer)
        assert said["usage"]["forks"] == 1
        text = said["choices"][0]["message"]["content"]
        assert text.startswith("<Parallel><Path>")
        assert text.count("<Path>") >= 3
        assert running.stop() == 0


def test_an_evaluation_over_vllm(server, tmp_path):
    """Through the command line, in this process and by a server: the same verdicts."""
    words = [sys.executable, "-m", "parallel_r1", "eval", str(TRAINED), "--task", "countdown-easy", "--problems", "20"]
    words += ["--samples", "2", "--sampler", "causal_join", "--engine", "vllm", "--json"]
    results = [
        subprocess.run([*words, *more], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for more in (
            ["--memory", "200MB", "--out", str(tmp_path / "a")],
            ["--server", server.address, "--out", str(tmp_path / "b")],
        )
    ]
    lines = [(tmp_path / name / "countdown-easy.jsonl").read_text().splitlines() for name in "ab"]
    assert len(lines[0]) >= 40
    keys = [[(row.get("correct"), row.get("total")) for row in map(json.loads, part)] for part in lines]
    assert sorted(map(str, keys[0])) == sorted(map(str, keys[1]))
    assert all("mean" in result for result in results)
