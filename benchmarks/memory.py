"""Memory of keys and values: what is promised, what is held, and what is allocated, at the step that allocates most.

The promise is `engine.memory` where it is given. Without it, what is allocated may be 1.15 times what the tokens held
take, and one block for every branch. Answers of random weights, none of which ends before its length; forks are forced.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import measure
import numpy as np
from jaxtyping import Int
from measure import arguments, endless, report

from parallel_r1.answers.trace import TRUNK, Address
from parallel_r1.generation.local import engine as engine_file
from parallel_r1.generation.local.capacity import block_bytes, parse_bytes, token_bytes
from parallel_r1.generation.local.generator import LocalGenerator
from parallel_r1.generation.local.kv_pool import BLOCK, Branch, Pool
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Budget, Engine, Sampling
from parallel_r1.models.policy import Policy

PROMPT = 24
"""Tokens of a prompt."""


@dataclass
class Peak:
    """The step that allocated most: bytes, tokens held, blocks that are not full."""

    allocated: int = 0
    tokens: int = 0
    partly: int = 0


class Watched(Pool):
    """A pool that notes its peak."""

    peak = Peak()
    fed = (0, 0)

    def place(self, feeds: Iterable[tuple[Branch, int]]) -> Int[np.ndarray, "3 n"]:
        """Note what is held when a step is computed: afterwards answers end."""
        placed = super().place(feeds)
        self.fed = self.held, int(((self.fill > 0) & (self.fill < BLOCK)).sum())
        return placed

    def fit(self) -> None:
        """Note what the step before allocated."""
        if self.bytes > Watched.peak.allocated:
            Watched.peak = Peak(self.bytes, *self.fed)
        super().fit()


def forks(tag: int, address: Address, size: int) -> int | None:
    """Force a fork every 40 tokens of the trunk."""
    return tag if address == TRUNK and size % 40 == 0 else None


def cases(policy: Policy, quick: bool) -> dict[str, Sequence[tuple[Sampling, bool]]]:
    """Name -> the sampling of every answer, and whether forks are forced into it."""

    def plain(tokens: int) -> tuple[Sampling, bool]:
        return measure.plain(tokens), False

    part = 16 if quick else 1
    forked = Sampling(paths=8, budget=Budget(total=600 // part, critical_path=300, path=40, forks=8))
    return {
        "256 answers of 8 tokens and one of 1,600": [plain(1600 // part), *[plain(8)] * (256 // part)],
        "64 answers of 50 to 400 tokens": [plain((50 + 350 * index // 63) // part) for index in range(64)],
        "32 answers with forks of 8 paths": [(forked, True)] * 32,
    }


def main() -> None:
    options: argparse.Namespace = arguments(__doc__).parse_args()
    options.runs = 1
    engine_file.Pool = Watched  # type: ignore[misc]
    table: list[dict[str, object]] = []
    for name in options.model if options.model != measure.MODELS else ["20m"]:
        policy = endless(measure.policy(name))
        config, dtype = policy.model.config, policy.model.dtype
        tag = policy.tags.ids["<Parallel>"]
        for case, answers in cases(policy, options.quick).items():
            prompts = measure.prompts(policy, len(answers), PROMPT, options.seed)
            requests = [
                Request(prompt, sampling, str(index), partial(forks, tag) if forked else None)
                for index, (prompt, (sampling, forked)) in enumerate(zip(prompts, answers, strict=True))
            ]
            for memory in (None, 2500, f"{300 * block_bytes(config, dtype) / 1e6:.1f}MB"):
                Watched.peak = Peak()
                generator = LocalGenerator(policy, Engine(memory=memory, rows=512))
                generator.traces(requests)
                peak, token = Watched.peak, token_bytes(config, dtype)
                promise = parse_bytes(memory) if isinstance(memory, str) else None
                most = promise or 1.15 * token * peak.tokens + BLOCK * token * peak.partly
                assert peak.allocated <= most, (case, memory, peak)
                table.append(
                    {
                        "model": name,
                        "case": case,
                        "engine.memory": "none" if memory is None else f"{memory}",
                        "MB allocated": peak.allocated / 1e6,
                        "MB of the tokens held": token * peak.tokens / 1e6,
                        "allocated / held": peak.allocated / (token * peak.tokens),
                        "MB of dense rows": token * sum_dense(requests) / 1e6,
                        "pre-empted": generator.counts.preempted,
                    }
                )
    report(options, "memory", "Memory of keys and values", table)


def sum_dense(requests: Sequence[Request]) -> int:
    """Tokens of a cache with one row an answer, all as long as the longest."""
    return len(requests) * (PROMPT + max(request.sampling.budget.total for request in requests))


if __name__ == "__main__":
    main()
