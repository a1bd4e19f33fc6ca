"""The local engine against `model.generate`, in one process, in alternation. Run it on an idle machine: `make bench`.

64 prompts of 24 tokens, 128 new tokens each, no end of text, temperature 1. Prints one JSON object with every time, the
medians and their ratio.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import time

import torch
from transformers.utils import logging

from parallel_r1 import models
from parallel_r1.config import Budget, Sampling
from parallel_r1.engines.local import LocalEngine
from parallel_r1.fork_join import draw
from parallel_r1.run_folder import environment

ROWS, PROMPT, ANSWER = 64, 24, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="models/tiny-base")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    logging.disable_progress_bar()
    policy = models.load(options.model)
    endless = dataclasses.replace(policy.tags, eos=frozenset())
    vocabulary = len(policy.tokenizer)
    prompts = torch.randint(10, vocabulary, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    budget = Budget(total=ANSWER, critical_path=ANSWER)
    sampling = Sampling(sampler="sequential", rows=ROWS, budget=budget)

    def engine() -> None:
        traces = draw(LocalEngine(policy.model), endless, prompts.tolist(), sampling, 0)
        assert all(len(trace.token_ids) == ANSWER for trace in traces)

    def generate() -> None:
        drawn = policy.model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=ANSWER,
            do_sample=True,
            top_k=0,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert drawn.shape == (ROWS, PROMPT + ANSWER)

    times: dict[str, list[float]] = {"engine": [], "generate": []}
    for run in range(options.runs + 1):
        for name, draw_all in (("engine", engine), ("generate", generate)):
            started = time.perf_counter()
            draw_all()
            if run:  # the first run of each warms up
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    print(
        json.dumps(
            {
                "benchmark": f"{ROWS} prompts of {PROMPT} tokens, {ANSWER} new tokens",
                "seconds": times,
                "tokens_per_second": {name: ROWS * ANSWER / median for name, median in medians.items()},
                "ratio": medians["generate"] / medians["engine"],
                "threads": torch.get_num_threads(),
                "commit": commit,
                "environment": environment(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
