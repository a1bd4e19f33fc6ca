"""What a server counts, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from parallel_r1.serve.worker import Job

if TYPE_CHECKING:
    from parallel_r1.serve.app import State

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("parallel_r1_requests", "Answers by how they ended.", ["outcome"], registry=registry)
        self.tokens = Counter("parallel_r1_tokens", "Tokens of answers by place.", ["place"], registry=registry)
        self.forks = Counter("parallel_r1_forks", "Forks that opened.", registry=registry)
        self.first = Histogram(
            "parallel_r1_first_token_seconds", "Time to the first token.", buckets=SECONDS, registry=registry
        )
        self.seconds = Histogram(
            "parallel_r1_answer_seconds", "Time of a whole answer.", buckets=SECONDS, registry=registry
        )
        self.running = Gauge("parallel_r1_answers_open", "Answers that run or wait.", registry=registry)
        self.steps = Gauge("parallel_r1_engine_steps", "Steps of the engine.", registry=registry)
        self.kv = Gauge("parallel_r1_kv_tokens", "Tokens in the KV cache.", registry=registry)

    def outcome(self, name: str) -> None:
        self.requests.labels(name).inc()

    def ended(self, job: Job) -> None:
        """Count an answer whose client has it, or has gone."""
        trace = job.trace
        self.outcome("failed" if job.failed else "gone" if trace is None else trace.finish)
        if job.first:
            self.first.observe(job.first[0] - job.began)
        if trace is None:
            return
        self.seconds.observe(job.ended - job.began)
        self.forks.inc(trace.forks)
        for span in trace.spans:
            place = "given" if not span.sampled else "path" if span.address else "trunk"
            self.tokens.labels(place).inc(len(span.token_ids))

    def text(self, state: State) -> bytes:
        """The metrics in Prometheus' format."""
        worker = state.worker
        self.running.set(state.open)
        self.steps.set(worker.steps)
        self.kv.set(worker.kv)
        return generate_latest(self.registry)
