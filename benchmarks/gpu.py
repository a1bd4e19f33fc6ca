"""What one GPU does beside the least it could do it in: drawing, forks, a training step, a long answer. Prints JSON.

    python benchmarks/gpu.py            under 9 minutes on one GPU; --only steps forks training long for parts

The model has the shape of one with half a billion parameters and random weights, so nothing is downloaded.

* `steps`: a step of the engine in bf16, against the time in which this card reads weights, keys and values once.
* `forks`: answers with forks, against a loop of fresh `generate` calls (see `forks.py`), in bf16.
* `training`: forward and backward pass of one answer with forks in bf16 over fp32 weights: FlexAttention with block
  masks, the same with a dense mask handed to the model, and the same tokens as plain causal text.
* `long`: the same for an answer of 32,768 tokens, with activations computed again, and the memory that it takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import forks
import torch
from measure import TINY, alternate, generators, prompts, ratio
from scoring import answer
from transformers import Qwen3ForCausalLM

from parallel_r1 import models
from parallel_r1.generation.local.engine import LocalEngine, compiled
from parallel_r1.models import attention as attend
from parallel_r1.models.policy import Policy
from parallel_r1.training.batch import Batch, collate, score
from parallel_r1.training.sample import Sample

SHAPE = {"hidden": 896, "layers": 24, "heads": 14, "kv_heads": 2, "intermediate": 4864, "positions": 65_536}
VOCABULARY = 151_936
PARTS = ("steps", "forks", "training", "long")


def half_billion(dtype: torch.dtype) -> Policy:
    """A model of about half a billion random weights with the tiny model's tokenizer, on the GPU."""
    tokenizer = models.load_tokenizer(str(TINY))
    config = models.qwen3(VOCABULARY, **SHAPE)
    config._attn_implementation = attend.ATTENTION
    with torch.device("cuda"):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config).eval().to(dtype)
    model.generation_config.eos_token_id = None
    return Policy(model, tokenizer, models.tag_ids(tokenizer))


def seconds(act: Callable[[], object], rounds: int = 5) -> list[float]:
    """Seconds of every round but the first, with the GPU's work in them."""
    times = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        act()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return times[1:]


def card() -> dict[str, float]:
    """Bytes/s of a copy (read and written), and bf16 operations/s of a product of large matrices."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    copied = statistics.median(seconds(lambda: target.copy_(source)))
    multiplied = statistics.median(seconds(lambda: square @ square))
    return {"bytes_per_second": 2 * source.nbytes / copied, "operations_per_second": 2 * 8192**3 / multiplied}


@torch.inference_mode()
def steps(policy: Policy, bandwidth: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A step of the engine by answers at a time and tokens held by each."""
    weights = sum(weight.nbytes for weight in policy.model.parameters())
    config, rows = policy.model.config, []
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2
    forwards = {"": None, **({"compiled": compiled(policy.model)} if options.compile else {})}
    for name, forward in forwards.items():
        for answers, held in ((1, 1024), (32, 1024), (128, 1024), (32, 8192)):
            engine = LocalEngine(policy.model, forward=forward)
            trunks = engine.open(prompts(policy, answers, held, 0), [False] * answers)
            feeds = [(trunk, 10) for trunk in trunks]
            for _ in range(3):
                engine.step(feeds)
            taken = statistics.median(seconds(partial(engine.step, feeds), 20))
            floor = (weights + per_token * answers * held) / bandwidth
            rows.append(
                {"answers": answers, "held": held, "ms": 1e3 * taken, "floor_ms": 1e3 * floor, "times": taken / floor}
                | ({"forward": name} if name else {})
            )
            del engine, trunks, feeds
    return rows


def fork_loops(policy: Policy, runs: int) -> dict[str, Any]:
    """The engine against the loops of `forks.py`: 8 answers, 2 forks of 4 paths each."""
    forks.without_tags(policy, policy.tags)
    answers = forks.plan(8, 32, 48, 24, 4, uneven=False, seed=0)
    questions = prompts(policy, len(answers), 64, 0)
    (generator,) = generators(policy, argparse.Namespace(compile=False)).values()
    ways: dict[str, Callable[[], None]] = {
        "isolated": partial(forks.by_engine, policy, answers, questions, "isolated", 0, generator),
        "loop": partial(forks.by_loop, policy, answers, questions, together=False),
        "batched loop": partial(forks.by_loop, policy, answers, questions, together=True),
    }
    times = alternate(ways, runs)
    return {"seconds": times, "rows": [ratio(times, loop, "isolated") for loop in ("loop", "batched loop")]}


def learn(policy: Policy, batch: Batch, way: str) -> None:
    """Forward and backward pass of one answer."""
    model = policy.model
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        body = model.get_decoder()
        if way == "block mask":
            out = attend.forward(body, batch.token_ids, batch.sight)
        else:
            mask = batch.sight.mask() if way == "dense mask" else None
            out = body(batch.token_ids, attention_mask=mask, position_ids=batch.positions, use_cache=False)
        loss = out.last_hidden_state.float().square().mean()
    loss.backward()


def training(policy: Policy, lengths: tuple[int, ...], runs: int) -> list[dict[str, Any]]:
    """Time and peak memory of a training step without the head, whose work is the same in all ways."""
    rows = []
    for length in lengths:
        trace = answer(length, len(policy.tokenizer), 4 * length // 9)
        batches = {
            "block mask": collate([Sample(trace)], "isolated").to("cuda"),
            "dense mask": collate([Sample(trace)], "isolated").to("cuda"),
            "causal": collate([Sample(trace)], "causal").to("cuda"),
        }
        for way, batch in batches.items():
            policy.model.zero_grad(set_to_none=True)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            taken = seconds(partial(learn, policy, batch, way), runs)
            peak = torch.cuda.max_memory_allocated() - before
            rows.append({"tokens": length, "way": way, "ms": 1e3 * statistics.median(taken), "MB": peak / 1e6})
    return rows


def long(policy: Policy, length: int = 32_768) -> dict[str, Any]:
    """One training step on one long answer, with its head and with activations computed again."""
    attend.recompute(policy.model.train())
    batch = collate([Sample(answer(length, len(policy.tokenizer), 4 * length // 9))], "isolated").to("cuda")
    policy.model.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    def act() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            values = score(policy.model, batch)
        (values * batch.sampled).sum().backward()

    taken = seconds(act, 2)
    return {
        "tokens": length,
        "seconds": statistics.median(taken),
        "MB": (torch.cuda.max_memory_allocated() - before) / 1e6,
        "MB_of_a_dense_mask_in_bf16": 2 * length**2 / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--compile", action="store_true", help="measure the compiled engine too")
    parser.add_argument("--runs", type=int, default=2, help="rounds that count")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: expected a GPU; found none; run this where torch.cuda.is_available()")
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, **card()}
    acts: dict[str, Callable[[], Any]] = {
        "steps": lambda: steps(half_billion(torch.bfloat16), found["bytes_per_second"], options),
        "forks": lambda: fork_loops(half_billion(torch.bfloat16), options.runs),
        "training": lambda: training(half_billion(torch.float32), (2048, 8192), 5),
        "long": lambda: long(half_billion(torch.float32)),
    }
    for part in options.only:
        started = time.perf_counter()
        try:
            found[part] = acts[part]()
        except Exception as error:  # the other parts are still worth having
            found[part] = {"error": f"{type(error).__name__}: {error}"[:600]}
        found[f"{part}_took"] = time.perf_counter() - started
        torch.cuda.empty_cache()
        print(json.dumps({part: found[part]}), file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
