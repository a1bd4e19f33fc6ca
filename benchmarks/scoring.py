"""What a training step costs under the relation of forks, against plain causal attention. Run it on an idle machine.

A step is the forward and backward pass of `batch.score` on one answer with forks of 2, 3 and 4 paths. Four ways, in one
process, in alternation: `causal` (the same tokens as plain text), `ranges`, `masked` (our dense mask) and `boolean`
(the mask handed to the model, as transformers computes it). Prints one JSON object with every time, the medians and
their ratios to `causal`; the time to lay out the row; and the peak memory of a step, measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from parallel_r1 import attend, models
from parallel_r1.batch import Batch, collate, score
from parallel_r1.run_folder import environment
from parallel_r1.trace import Address, Span, Trace

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
    batch = collate([trace], "causal" if way == "causal" else "isolated")
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


def load(name: str) -> PreTrainedModel:
    """A model folder, or `random`: 20M parameters with the vocabulary of the tiny model."""
    if name != "random":
        return models.load(name).model
    tokenizer = models.load_tokenizer("models/tiny-base")
    return models.random_model(
        tokenizer, hidden=384, layers=8, heads=6, kv_heads=2, intermediate=1536, positions=8192, seed=0
    )


def peak_memory(name: str, length: int, way: str) -> float:
    """Megabytes that one step adds to the largest memory of a fresh process with the model in it. Linux only."""
    command = [sys.executable, __file__, "--model", name, "--lengths", str(length), "--one", way]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def highest() -> float:
    """The largest memory of this process so far, in megabytes. (`resource` would count the parent's too.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="+", default=["models/tiny-base", "random"], help="folders, or `random`")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cycle", type=int, default=448, help="tokens between the ends of two forks")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable_progress_bar()
    if options.one:
        model = load(options.model[0])
        before = highest()
        step(model, answer(options.lengths[0], model.config.vocab_size, options.cycle), options.one)()
        print(highest() - before)
        return
    found = [measure(name, length, options) for name in options.model for length in options.lengths]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    report = {"results": found, "threads": torch.get_num_threads(), "commit": commit, "environment": environment()}
    print(json.dumps({"benchmark": "training step of one answer with forks", **report}, indent=1))


def measure(name: str, length: int, options: argparse.Namespace) -> dict[str, object]:
    """Times and memory of every way on one model at one length."""
    model = load(name)
    trace = answer(length, model.config.vocab_size, options.cycle)
    default = attend.CALL
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for run in range(options.runs + 1):
        for way in WAYS:
            act = step(model, trace, way)
            started = time.perf_counter()
            act()
            if run:  # the first run of each warms up
                times[way].append(time.perf_counter() - started)
    attend.CALL = default
    started = time.perf_counter()
    sight = collate([trace], "isolated").sight
    long = sight.is_long()
    medians = {way: statistics.median(values) for way, values in times.items()}
    return {
        "model": name,
        "parameters": models.parameter_count(model),
        "length": length,
        "forks": trace.forks,
        "layout_seconds": time.perf_counter() - started,
        "chosen": "ranges" if long else "masked",
        "seconds": times,
        "medians": medians,
        "ratios": {way: medians[way] / medians["causal"] for way in WAYS},
        "peak_megabytes": {} if options.no_memory else {way: peak_memory(name, length, way) for way in WAYS},
    }


if __name__ == "__main__":
    main()
