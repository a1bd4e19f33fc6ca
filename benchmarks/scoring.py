"""What a training step costs under the relation of forks, against plain causal attention.

A step is the forward and backward pass of `batch.score` on one answer with forks of 2, 3 and 4 paths. Four ways, in one
process, in alternation: `causal` (the same tokens as plain text), `ranges`, `masked` (our dense mask) and `boolean`
(the mask handed to the model, as transformers computes it). The report holds the time to lay out the row too, and the
peak memory of a step, measured in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from measure import Times, alternate, arguments, policy, ratio, report
from transformers import PreTrainedModel

from parallel_r1 import models
from parallel_r1.answers.trace import Address, Span, Trace
from parallel_r1.models import attention as attend
from parallel_r1.training.batch import Batch, collate, score
from parallel_r1.training.sample import Sample

WAYS = ("causal", "ranges", "masked", "boolean")
PROMPT = 64


def answer(tokens: int, vocabulary: int, cycle_tokens: int) -> Trace:
    """A random answer of so many tokens, the prompt counted: trunk, fork, summary, over and over, in so many each."""
    left, spans = tokens - PROMPT, []
    share = min(cycle_tokens, left)
    ids = torch.randint(10, vocabulary, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()

    def add(length: int, address: Address) -> None:
        nonlocal left
        length = min(length, left)
        if length:
            spans.append(Span(tuple(ids[-left:][:length]), address, True))
            left -= length

    for fork, paths in enumerate(cycle((3, 2, 4))):
        add(share // 4, ())
        for path in range(paths):
            add(share // 2 // paths, ((fork, path),))
        add(share // 4, ())
        if not left:
            return Trace(tuple(ids[:PROMPT]), tuple(spans))
    raise AssertionError("a cycle has no end")


def step(model: PreTrainedModel, trace: Trace, way: str) -> Callable[[], None]:
    """One training step without the optimiser."""
    batch = collate([Sample(trace)], "causal" if way == "causal" else "isolated")
    attend.CALL = 0 if way == "ranges" else sys.maxsize

    def logprobs(batch: Batch) -> torch.Tensor:
        if way != "boolean":
            return score(model, batch)
        logits = model(
            input_ids=batch.token_ids, attention_mask=batch.sight.mask(), position_ids=batch.positions, use_cache=False
        ).logits
        return logits.log_softmax(-1)[torch.zeros(1, dtype=torch.long), batch.previous, batch.token_ids]

    def run() -> None:
        model.zero_grad()
        (logprobs(replace(batch)) * batch.sampled).sum().backward()

    return run


def peak_memory(name: str, length: int, way: str) -> float:
    """Megabytes that one step adds to the largest memory of a fresh process with the model in it. Linux only."""
    command = [sys.executable, __file__, "--model", name, "--lengths", str(length), "--one", way]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def highest() -> float:
    """The largest memory of this process so far, in megabytes. (`resource` would count the parent's too.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--cycle", type=int, default=448, help="tokens between the ends of two forks")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.lengths, options.cycle, options.no_memory = [128], 32, True
    if options.one:
        model = policy(options.model[0]).model
        before = highest()
        step(model, answer(options.lengths[0], model.config.vocab_size, options.cycle), options.one)()
        print(highest() - before)
        return
    rows: list[dict[str, object]] = []
    details = []
    for name in options.model:
        for length in options.lengths:
            found = measure(name, length, options)
            times: Times = found["seconds"]
            peaks = found["peak_megabytes"]
            for way in WAYS[1:]:
                memory = {"MB": peaks[way], "MB of causal": peaks["causal"]} if peaks else {}
                rows.append({"model": name, "tokens": length, **ratio(times, way, "causal"), **memory})
            details.append(found)
    report(options, "scoring", "A training step on one answer with forks", rows, details=details)


def measure(name: str, length: int, options: argparse.Namespace) -> dict[str, Any]:
    """Times and memory of every way on one model at one length."""
    model = policy(name).model
    trace = answer(length, model.config.vocab_size, options.cycle)
    default = attend.CALL

    def timed(way: str) -> float:
        act = step(model, trace, way)
        started = time.perf_counter()
        act()
        return time.perf_counter() - started

    times = alternate({way: partial(timed, way) for way in WAYS}, options.runs)
    attend.CALL = default
    started = time.perf_counter()
    sight = collate([Sample(trace)], "isolated").sight
    long = sight.is_long()
    return {
        "model": name,
        "parameters": models.parameter_count(model),
        "length": length,
        "forks": trace.forks,
        "layout_seconds": time.perf_counter() - started,
        "chosen": "ranges" if long else "masked",
        "seconds": times,
        "peak_megabytes": {} if options.no_memory else {way: peak_memory(name, length, way) for way in WAYS},
    }


if __name__ == "__main__":
    main()
