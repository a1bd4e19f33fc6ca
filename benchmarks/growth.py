"""What a step of the engine costs as its answers grow, beside the least that this machine could do it in.

A step feeds one token to every answer. It must read all weights once and the keys and values of every answer once, and
multiply every token by every weight. The floor is the larger of two times: those bytes at the speed at which this
machine reads memory, and those products at the speed at which it multiplies matrices; both speeds are measured here.
The weights of a small model stay in the processor's cache, so its floor is too high by that much and too low by what
Python and torch take to start some hundred operations.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from measure import alternate, arguments, policy, ratio, report
from transformers import PreTrainedModel

from parallel_r1 import models
from parallel_r1.generation.local.engine import LocalEngine

BYTES = 4
"""Of a number in fp32."""
MEMORY = 2e9
"""Bytes of keys and values that an answer's tokens may take; what needs more is left out."""


def kv_numbers(model: PreTrainedModel) -> int:
    """Numbers that are kept for one token: keys and values of all layers."""
    config = model.config
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


@torch.inference_mode()
def stepper(model: PreTrainedModel, rows: int, context: int, steps: int) -> Callable[[], float]:
    """Answers of so many tokens, without reading them: what their keys hold does not matter here. Calling it takes
    some steps and returns the seconds of one."""
    engine = LocalEngine(model)
    branches = engine.open([[10]] * rows, [False] * rows)
    engine.pool.place((branch, context - 1) for branch in branches)
    engine.step([(branch, 10) for branch in branches])
    for part in (part for pair in engine.pool.layers.values() for part in pair):
        part.fill_(0.01)

    def run() -> float:
        started = time.perf_counter()
        for _ in range(steps):
            engine.step([(branch, 10) for branch in branches])
        return (time.perf_counter() - started) / steps

    return run


def machine(small: bool) -> tuple[float, float]:
    """Bytes/s of reading memory and floating-point operations/s of multiplying matrices, in fp32."""
    side = 256 if small else 2048
    numbers, square = torch.ones(2**20 if small else 2**27), torch.ones(side, side)

    def median(act: Callable[[], object]) -> float:
        def timed() -> float:
            started = time.perf_counter()
            act()
            return time.perf_counter() - started

        timed()
        return statistics.median(timed() for _ in range(5))

    return numbers.numel() * BYTES / median(numbers.sum), 2 * side**3 / median(lambda: square @ square)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 4096, 8192], help="tokens held a row")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64], help="answers at a time")
    parser.add_argument("--steps", type=int, default=10, help="steps of a round")
    options = parser.parse_args()
    if options.quick:
        options.contexts, options.rows, options.steps = [8, 16], [1, 2], 1
    bandwidth, speed = machine(options.quick)
    rows: list[dict[str, object]] = []
    details = []
    for name in options.model:
        model = policy(name).model
        weights, numbers, config = models.parameter_count(model), kv_numbers(model), model.config
        first = options.contexts[0]
        for count in options.rows:
            held = {context: count * context * numbers * BYTES for context in options.contexts}
            contexts = [context for context in options.contexts if context == first or held[context] <= MEMORY]
            times = alternate(
                {str(context): stepper(model, count, context, options.steps) for context in contexts}, options.runs
            )
            for context in contexts:
                attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * context
                read, operations = weights * BYTES + held[context], count * (2 * weights + attention)
                floor = max(read / bandwidth, operations / speed)
                median = statistics.median(times[str(context)])
                rows.append(
                    {
                        "model": name,
                        "answers": count,
                        **ratio(times, str(context), str(first)),
                        "step ms": 1e3 * median,
                        "weights MB": weights * BYTES / 1e6,
                        "keys and values MB": held[context] / 1e6,
                        "GFLOP": operations / 1e9,
                        "floor ms": 1e3 * floor,
                        "step / floor": median / floor,
                    }
                )
            details.append({"model": name, "answers": count, "seconds": times})
    title = "A step of the engine against the tokens it holds"
    report(options, "growth", title, rows, bytes_per_second=bandwidth, operations_per_second=speed, details=details)


if __name__ == "__main__":
    main()
