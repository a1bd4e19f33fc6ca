"""What clients get: answers and chunks of streams as JSON objects of OpenAI's API."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from parallel_r1.answers.trace import TRUNK, Address, Trace
from parallel_r1.answers.visibility import latency
from parallel_r1.models.policy import Policy
from parallel_r1.serve.protocol import Asked, Chat, Output
from parallel_r1.serve.text import Branches, Decoder, Delta
from parallel_r1.serve.worker import Job

FINISH = {"stop": "stop", "length": "length", "cancelled": "length", "error": "stop"}
"""Why an answer ended -> OpenAI's word for it; the exact one is in `parallel.finish`."""


class Answers:
    """The answers to one request.

    Args:
        asked: the request.
        jobs: one for every answer.
        policy: whose tokenizer decodes.
        name: id of the response.
    """

    def __init__(self, asked: Asked, jobs: Sequence[Job], policy: Policy, name: str) -> None:
        self.asked, self.jobs, self.policy, self.name = asked, jobs, policy, name
        self.created = int(time.time())
        self.branches = Branches(policy)
        self.plain = Plain(policy, asked.parallel.output)

    def new(self) -> Iterator[dict[str, Any]]:
        """Deltas of the tokens that have come; for a stream."""
        (job,) = self.jobs
        tokens, job.tokens = job.tokens, []
        if self.asked.parallel.branches:
            yield from map(_delta, self.branches.push(tokens))
        elif text := self.plain.push(tokens):
            yield {"content": text}

    def rest(self) -> Iterator[dict[str, Any]]:
        """Deltas of what was held back until the end."""
        if self.asked.parallel.branches:
            yield from map(_delta, self.branches.finish())
        elif text := self.plain.finish():
            yield {"content": text}

    def finish(self, index: int) -> str:
        trace = self.trace(index)
        return FINISH[trace.finish]

    def trace(self, index: int) -> Trace:
        trace = self.jobs[index].trace
        assert trace is not None
        return trace

    def whole(self) -> dict[str, Any]:
        """The response to a request that is no stream."""
        choices = []
        for index, job in enumerate(self.jobs):
            plain = Plain(self.policy, self.asked.parallel.output)
            text = plain.push(job.tokens) + plain.finish()
            said = (
                {"message": {"role": "assistant", "content": text}} if isinstance(self.asked, Chat) else {"text": text}
            )
            choices.append({"index": index, **said, "finish_reason": self.finish(index), "logprobs": None})
        kind = "chat.completion" if isinstance(self.asked, Chat) else "text_completion"
        return {
            "id": self.name,
            "object": kind,
            "created": self.created,
            "model": self.asked.model,
            "choices": choices,
            **usage_of(self),
        }


class Plain:
    """The text of one output of an answer, as its tokens come. The paths of a fork come when they are joined, one after
    the other.

    Args:
        output: see `protocol.Parallel`.
    """

    def __init__(self, policy: Policy, output: Output) -> None:
        self.policy, self.output, self.decoder = policy, output, Decoder(policy)
        self.held: dict[Address, list[Any]] = {}
        """Address of a path -> its tokens, and the addresses of the paths that it forked into, in reading order."""

    def push(self, tokens: Sequence[tuple[Address, int, bool]]) -> str:
        """The text that tokens add."""
        shown: list[int] = []
        tags = self.policy.tags.ids.values()
        for address, token, sampled in tokens:
            if address != TRUNK:
                if self.output == "trace":
                    self._hold(address, token)
                continue
            shown += self._joined(TRUNK)
            if self.output != "final" or (sampled and token not in tags):
                shown.append(token)
        return self.decoder.push(shown)

    def finish(self) -> str:
        """The text that is left at the end."""
        return self.decoder.push(self._joined(TRUNK), last=True)

    def _hold(self, address: Address, token: int) -> None:
        if address not in self.held:
            self.held[address] = []
            self.held.setdefault(address[:-1], []).append(address)
        self.held[address].append(token)

    def _joined(self, address: Address) -> list[int]:
        """Tokens that are held at an address, in reading order; nothing is held afterwards."""
        tokens: list[int] = []
        inside = sorted(part for part in self.held.get(address, ()) if isinstance(part, tuple))
        for part in self.held.pop(address, []):
            tokens += [part] if isinstance(part, int) else self._joined(inside.pop(0))
        return tokens


def _delta(delta: Delta) -> dict[str, Any]:
    """A delta of a branch as JSON."""
    row: dict[str, Any] = {"content": delta.text, "branch": [list(pair) for pair in delta.branch]}
    if delta.tokens:
        row["tokens"] = delta.tokens
    if delta.summary:
        row["in"] = "summary"
    if delta.event:
        row["event"] = delta.event
    if delta.event == "fork":
        row |= {"fork": delta.fork, "paths": delta.paths}
    if delta.event == "end":
        row["cut"] = delta.cut
    return row


def chunk_of(answers: Answers, delta: dict[str, Any] | None, finish: str | None = None) -> dict[str, Any]:
    """A chunk of a stream; without choices for a delta of None."""
    chat = isinstance(answers.asked, Chat)
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
    if delta is not None:
        choice |= {"delta": delta} if chat else {"text": delta.get("content", "")}
    return {
        "id": answers.name,
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": answers.created,
        "model": answers.asked.model,
        "choices": [] if delta is None else [choice],
    }


def usage_of(answers: Answers) -> dict[str, Any]:
    """The tokens of all answers, and what they took."""
    traces = [answers.trace(index) for index in range(len(answers.jobs))]
    prompt = len(traces[0].prompt_ids)
    completion = sum(len(trace.token_ids) for trace in traces)
    paths = sum(len(span.token_ids) for trace in traces for span in trace.spans if span.address)
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "critical_path_tokens": max(latency(trace) for trace in traces),
        "path_tokens": paths,
        "forks": sum(trace.forks for trace in traces),
    }
    job = answers.jobs[0]
    took: dict[str, Any] = {
        "seconds": round(job.ended - job.began, 4),
        "finish": traces[0].finish,
        "defects": [defect.kind for defect in traces[0].defects],
    }
    if job.first:
        took |= {"first_token_seconds": round(job.first[0] - job.began, 4), "first_token_steps": job.first[1]}
    return {"usage": usage, "parallel": took}
