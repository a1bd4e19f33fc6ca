"""What the benchmarks share: arguments, models, prompts, times in alternation, and the report.

Every benchmark compares ways to do the same work. They run in turn, round after round and every other round backwards,
so that whatever slows the machine down for a while slows all of them; the first round warms up and is not counted. What
is reported is a ratio of medians, with the smallest and the largest ratio of one round beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from transformers.utils import logging

from parallel_r1 import models
from parallel_r1.generation.generator import Generator, make_generator
from parallel_r1.generation.settings import Budget, Engine, Sampling
from parallel_r1.models.policy import Policy
from parallel_r1.runs.folder import environment

ROOT = Path(__file__).parent.parent
TINY = ROOT / "models" / "tiny-base"
MODELS = ["tiny", "20m"]
Times = Mapping[str, Sequence[float]]
"""Way -> seconds of every round."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=MODELS, help="tiny, 20m, or model folders")
    parser.add_argument("--runs", type=int, default=5, help="rounds that count")
    parser.add_argument("--compile", action="store_true", help="measure the compiled engine too")
    parser.add_argument("--seed", type=int, default=0, help="of prompts, lengths and draws")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: does it work at all?")
    parser.add_argument("--out", type=Path, help="a folder for the JSON; printed if none is given")
    return parser


def policy(name: str) -> Policy:
    """A model to measure: `tiny` ships with the project, `20m` has 20.3M random weights and the same tokenizer, and
    anything else is a model folder. Nothing ends by chance: `generate` knows no end of text."""
    if name == "20m":
        tokenizer = models.load_tokenizer(str(TINY))
        model = models.random_model(
            tokenizer, hidden=384, layers=10, heads=6, kv_heads=2, intermediate=1408, positions=16384, seed=0
        )
        found = Policy(model, tokenizer, models.tag_ids(tokenizer))
    else:
        found = models.load(str(TINY) if name == "tiny" else name)
    found.model.generation_config.eos_token_id = None
    return found


def prompts(policy: Policy, count: int, length: int, seed: int) -> list[list[int]]:
    """Random prompts without a tag."""
    random = torch.Generator().manual_seed(seed)
    return torch.randint(10, len(policy.tokenizer), (count, length), generator=random).tolist()


def plain(tokens: int) -> Sampling:
    """The raw policy for exactly so many tokens, if nothing can end an answer before."""
    return Sampling(sampler="sequential", budget=Budget(total=tokens, critical_path=tokens))


def generators(policy: Policy, options: argparse.Namespace, rows: int = 256) -> dict[str, Generator]:
    """The generators that take part, by what they add to the name of a way.

    Args:
        rows: the most answers that are drawn at once.
    """
    kinds = {"": False, ", compiled": True} if options.compile else {"": False}
    return {name: make_generator(policy, Engine(rows=rows, compile=compile)) for name, compile in kinds.items()}


def endless(policy: Policy) -> Policy:
    """The policy without an end of text, so that answers have the length that their budget says."""
    return dataclasses.replace(policy, tags=dataclasses.replace(policy.tags, eos=frozenset()))


def generate(policy: Policy, prompts: Sequence[Sequence[int]], tokens: int, copies: int = 1) -> list[list[int]]:
    """So many new tokens after each of some prompts, by one call of `model.generate`: the raw policy. Shorter prompts
    are padded on the left."""
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    device = policy.model.device
    batch = torch.tensor(
        [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)], device=device
    )
    drawn = policy.model.generate(
        batch,
        attention_mask=(torch.arange(longest) >= torch.tensor(padding)[:, None]).long().to(device),
        max_new_tokens=tokens,
        num_return_sequences=copies,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=0,
    )
    new = drawn[:, longest:]
    assert new.shape == (len(prompts) * copies, tokens), "an answer ended early"
    return new.tolist()


def alternate(ways: Mapping[str, Callable[[], float | None]], runs: int) -> dict[str, list[float]]:
    """Seconds of every way in every round but the first. A way that returns a number has timed itself."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, act in list(ways.items())[:: -1 if run % 2 else 1]:
            started = time.perf_counter()
            own = act()
            seconds = time.perf_counter() - started if own is None else own
            if run:
                times[name].append(seconds)
    return times


def ratio(times: Times, upper: str, lower: str) -> dict[str, object]:
    """How many times as long one way takes as another: of the medians, and the extremes of single rounds."""
    each = [above / below for above, below in zip(times[upper], times[lower], strict=True)]
    return {
        "compared": f"{upper} / {lower}",
        "ratio": statistics.median(times[upper]) / statistics.median(times[lower]),
        "range": [min(each), max(each)],
    }


def report(options: argparse.Namespace, name: str, title: str, rows: list[dict[str, object]], **more: object) -> None:
    """Print a benchmark's JSON or write it to `<out>/<name>.json`; the name says which models
    took part if not all did. Rows are what `table.py` shows, `more` is the rest, such as all times."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    whole = {
        "benchmark": title,
        "rows": rows,
        **more,
        "runs": options.runs,
        "seed": options.seed,
        "quick": options.quick,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "commit": commit.stdout.strip(),
        "environment": environment(),
    }
    text = json.dumps(whole, indent=1)
    if options.out is None:
        print(text)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        if options.model != MODELS:
            name = "-".join([name, *(Path(model).name for model in options.model)])
        (options.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def processor() -> str:
    """The name of the processor."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


logging.disable_progress_bar()
