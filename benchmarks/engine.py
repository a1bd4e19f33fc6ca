"""The local engine against `model.generate` and against continuous batching of transformers, without forks.

Three cases: answers of equal length; answers of unequal length, where `generate` runs each batch until its longest
answer is done, and the engine fills a row as soon as it is free; and groups of answers to one long prompt, which
`generate` reads for each answer and the engine once. At most 64 answers at a time, temperature 1, nothing ends early.
Only tokens that were asked for count.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from measure import alternate, arguments, endless, generate, generators, plain, policy, prompts, ratio, report
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching import ContinuousBatchingManager

from parallel_r1.generation.generator import Generator
from parallel_r1.generation.request import Request
from parallel_r1.models.policy import Policy

ROWS = 64
"""Answers at a time, for every way."""


@dataclass(frozen=True)
class Case:
    """What to draw: to each prompt `copies` answers of so many tokens.

    Attributes:
        continuous: whether continuous batching takes part.
    """

    name: str
    prompts: list[list[int]]
    lengths: list[int]
    copies: int = 1
    continuous: bool = True

    @property
    def tokens(self) -> int:
        """Tokens that are asked for."""
        return sum(self.lengths) * self.copies

    @property
    def requests(self) -> list[tuple[list[int], int]]:
        """Prompt and length of every answer."""
        pairs = zip(self.prompts, self.lengths, strict=True)
        return [pair for pair in pairs for _ in range(self.copies)]


def unequal(count: int, median: int, seed: int) -> list[int]:
    """Log-normal lengths, of which the longest is 8 times the median."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed)).exp()
    values = (values / values.median()).clamp(max=8)
    values[values.argmax()] = 8
    return [max(1, round(float(value) * median)) for value in values]


def cases(policy: Policy, options: argparse.Namespace) -> list[Case]:
    """The three cases."""
    small, seed = options.quick, options.seed
    equal, lengths = (4, 8) if small else (64, 128), unequal(16 if small else 256, 2 if small else 16, seed)
    groups, prompt, copies, new = (2, 16, 4, 4) if small else (8, 512, 8, 64)
    return [
        Case(
            f"equal: {equal[0]} prompts of 24 tokens, {equal[1]} new tokens",
            prompts(policy, equal[0], 24, seed),
            [equal[1]] * equal[0],
        ),
        Case(
            f"unequal: {len(lengths)} prompts of 24 tokens, {min(lengths)} .. {max(lengths)} new tokens, "
            f"median {sorted(lengths)[len(lengths) // 2]}",
            prompts(policy, len(lengths), 24, seed),
            lengths,
        ),
        Case(
            f"groups: {copies} answers to each of {groups} prompts of {prompt} tokens, {new} new tokens",
            prompts(policy, groups, prompt, seed),
            [new] * groups,
            copies,
            continuous=False,
        ),
    ]


def by_engine(generator: Generator, case: Case, seed: int) -> None:
    """Every answer by the engine, with a row for the next as soon as one has ended."""
    requests = [
        Request(prompt, plain(length), f"{seed}/{index}") for index, (prompt, length) in enumerate(case.requests)
    ]
    assert sum(len(trace.token_ids) for trace in generator.traces(requests)) == case.tokens


def by_generate(policy: Policy, case: Case) -> None:
    """Batch after batch, each as long as its longest answer; what is longer than asked for is cut."""
    got, size = 0, ROWS // case.copies
    for start in range(0, len(case.prompts), size):
        lengths = case.lengths[start : start + size]
        drawn = generate(policy, case.prompts[start : start + size], max(lengths), case.copies)
        wanted = [length for length in lengths for _ in range(case.copies)]
        got += sum(len(new[:length]) for new, length in zip(drawn, wanted, strict=True))
    assert got == case.tokens


class Continuous:
    """Continuous batching of transformers, on a copy of the model with the attention that it knows and may change."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = copy.deepcopy(model)
        self.model.set_attn_implementation("sdpa")

    def draw(self, case: Case) -> float:
        """The seconds that every answer of a case takes. It is started before and stopped after, untimed: its thread
        never rests, which would slow the other ways."""
        sampling = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=0, max_new_tokens=128
        )
        # Pages for 64 answers of up to 256 tokens with their prompts.
        limits = ContinuousBatchingConfig(
            max_requests_per_batch=ROWS, page_size=32, num_blocks=512, max_batch_tokens=2048, allow_block_sharing=False
        )
        manager = self.model.init_continuous_batching(sampling, limits)
        manager.start()
        try:
            _draw_all(manager, Case("trial", case.prompts[:2], [2, 3]))
            started = time.perf_counter()
            _draw_all(manager, case)
            return time.perf_counter() - started
        finally:
            manager.stop(block=True)


def _draw_all(manager: ContinuousBatchingManager, case: Case) -> None:
    for prompt, length in case.requests:
        manager.add_request(prompt, max_new_tokens=length, eos_token_id=-1)
    left, got = len(case.requests), 0
    while left:
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            left, got = left - 1, got + len(result.generated_tokens)
        elif result is None and not manager.is_running():
            raise RuntimeError("its thread has ended")
    assert got == case.tokens


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--no-continuous", action="store_true", help="leave continuous batching out")
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    details = []
    for name in options.model:
        subject = policy(name)
        for case in cases(subject, options):
            ways, skipped = ways_of(subject, case, options)
            torch.manual_seed(options.seed)
            times = alternate(ways, options.runs)
            engines = [name for name in ways if name.startswith("engine")]
            for ours, other in product(engines, [name for name in ways if name not in engines]):
                rows.append({"model": name, "case": case.name, **ratio(times, other, ours)})
            details.append({"model": name, "case": case.name, "tokens": case.tokens, "seconds": times, **skipped})
    report(options, "engine", "The engine without forks", rows, details=details)


def ways_of(
    policy: Policy, case: Case, options: argparse.Namespace
) -> tuple[dict[str, Callable[[], float | None]], dict[str, str]]:
    """The ways to draw a case, the engines first; and why one is left out."""
    ways: dict[str, Callable[[], float | None]] = {
        **{
            f"engine{name}": partial(by_engine, generator, case, options.seed)
            for name, generator in generators(endless(policy), options, ROWS).items()
        },
        "generate": partial(by_generate, policy, case),
    }
    if options.no_continuous or not case.continuous:
        return ways, {}
    try:
        continuous = Continuous(policy.model)
        continuous.draw(Case("trial", case.prompts[:2], [2, 3]))
    except Exception as error:  # it is young and made for CUDA: whatever it raises, the rest is worth measuring
        return ways, {"skipped": f"continuous batching does not work here: {error!r}"}
    return {**ways, "continuous": partial(continuous.draw, case)}, {}


if __name__ == "__main__":
    main()
