"""What a run on the shim measured, as the file that `parallel-r1 plan RECIPE --check` reads.

python tests/cluster/measured.py RUN STEP > measured.json
parallel-r1 plan tests/cluster/curriculum.toml --check measured.json --rollouts RUN/rollouts/step-N.jsonl
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

CONTEXT, TOKENS, ROUNDS = 60, 40, 5


@torch.no_grad()
def decode_step(model, batch):
    """Median seconds of a decode step of so many texts, as the stand-in server takes it, and of reading a token."""
    reading, steps = [], []
    for _ in range(ROUNDS):
        ids = torch.randint(10, 200, (batch, CONTEXT))
        began = time.perf_counter()
        out = model(input_ids=ids, use_cache=True)
        reading.append((time.perf_counter() - began) / (batch * CONTEXT))
        for _ in range(TOKENS):
            began = time.perf_counter()
            scores = torch.log_softmax(out.logits[:, -1], -1)
            ids = torch.multinomial(scores.exp(), 1)
            out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
            steps.append(time.perf_counter() - began)
    return statistics.median(steps), statistics.median(reading)


def measured(run: Path, step: int) -> dict:
    """The decode steps of a run's model, timed now, and the rollout of one of its RL steps, as verl timed it."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["kind"] == "rl" and row["step"] == step]
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(run / "checkpoints/base", dtype=torch.float32).eval()
    decode_step(model, 1)  # warms up
    times = {batch: decode_step(model, batch) for batch in (1, 2, 4)}
    return {
        "steps": [{"batch": batch, "seconds": seconds} for batch, (seconds, _) in times.items()],
        "read_seconds_per_token": times[1][1],
        "rollout": {"servers": 1, "rows": 1, "seconds": row["sampling_seconds"]},
    }


if __name__ == "__main__":
    json.dump(measured(Path(sys.argv[1]), int(sys.argv[2])), sys.stdout, indent=1)
