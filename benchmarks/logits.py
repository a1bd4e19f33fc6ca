"""What the logits of a large vocabulary cost in memory while an answer is scored and learnt from.

A forward and backward pass over 3,000 tokens by a model with one narrow layer and 151,936 tokens of vocabulary, so that
its head is nearly all of it. `plain` makes all logits at once, as a model's own forward pass does; `pieces` is
`batch.score`. Each runs in a process of its own; what is reported is how far its largest memory lies above what it held
before. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch
from measure import arguments, report
from scoring import highest
from transformers import Qwen3ForCausalLM

from parallel_r1.answers.trace import Span, Trace
from parallel_r1.models.tiny import qwen3
from parallel_r1.training.batch import collate, score
from parallel_r1.training.sample import Sample

VOCABULARY = 151_936
WAYS = ("plain", "pieces")


def measure(way: str, tokens: int) -> tuple[float, float]:
    """Megabytes that a step adds, and its seconds."""
    shape = {"hidden": 64, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate": 128}
    model = Qwen3ForCausalLM(qwen3(VOCABULARY, **shape, positions=tokens + 1))
    ids = torch.randint(10, VOCABULARY, (tokens + 1,), generator=torch.Generator().manual_seed(0))
    batch = collate([Sample(Trace((int(ids[0]),), (Span(tuple(ids[1:].tolist()), (), True),)))], "causal")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before, started = highest(), time.perf_counter()
    if way == "pieces":
        value = score(model, batch).sum()
    else:
        logits = model(batch.token_ids[:, :-1], use_cache=False).logits
        value = torch.log_softmax(logits, dim=-1).gather(-1, batch.token_ids[:, 1:, None]).sum()
    value.backward()
    return highest() - before, time.perf_counter() - started


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(*measure(options.way, options.tokens))
        return
    tokens = 300 if options.quick else options.tokens
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--tokens", str(tokens)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[way] = [float(each) for each in out.split()]
    (plain, slow), (pieces, fast) = found["plain"], found["pieces"]
    rows = [
        {
            "what": "memory",
            "compared": "plain / pieces",
            "ratio": plain / pieces,
            "megabytes or seconds": [plain, pieces],
        },
        {"what": "time", "compared": "plain / pieces", "ratio": slow / fast, "megabytes or seconds": [slow, fast]},
    ]
    report(options, "logits", f"Scoring {tokens} tokens of a vocabulary of {VOCABULARY:,}", rows)


if __name__ == "__main__":
    main()
