"""How long `analyse` takes for a large run, and how much memory: 100,000 answers of 1,000 tokens, in at most 60 s and
2 GB on two cores.

The run is synthetic and has the format of a real one, log-probabilities included. The answers are those of countdown's
procedural teacher with long paths, in one fork or two; 125 problems with 8 answers are drawn, and every step repeats
some of them. A sampler has the memory of all processes every 50 ms: what is private to them, and their share of what
they have in common.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from measure import MODELS, TINY, report

from parallel_r1 import models
from parallel_r1.answers.parser import parse
from parallel_r1.answers.rollout import Problem, Rollout, to_json
from parallel_r1.answers.schemas import DEFAULT
from parallel_r1.answers.trace import Span
from parallel_r1.answers.visibility import latency
from parallel_r1.models.policy import Policy
from parallel_r1.tasks.base import verdicts
from parallel_r1.tasks.chains import Chain
from parallel_r1.tasks.countdown import HARD, _write

GROUP, PROBLEMS = 8, 125
TOKENS = 1000
ANALYSE = "from pathlib import Path; from parallel_r1.evaluation.analysis import analyse\n" + (
    "if __name__ == '__main__':\n"
    "    import sys, json\n"
    "    analysis = analyse(Path(sys.argv[1]))\n"
    "    answers, forks = analysis.answers, analysis.forks\n"
    "    print(json.dumps([len(answers['step']), len(forks['step']), answers['tokens'].mean()]))\n"
)


def text_of(problem: Problem, rng: random.Random) -> str:
    """An answer of the teacher with about 1,000 tokens in one fork or two. A path has up to 12 tries, and a try about
    20 tokens; a fork gets paths until it has its share of them."""
    parts, solution = [], "None"
    forks = rng.choice([1, 2])
    for _ in range(forks):
        tried: list[list[tuple[Chain, bool]]] = []
        while len(tried) < 2 or sum(map(len, tried)) < TOKENS / 20 / forks:
            tried.append(HARD.tries(problem, rng, rng.randint(8, 12)))
        solution = next((tries[-1][0].expression for tries in tried if tries[-1][1]), solution)
        parts.append(DEFAULT.write([_write(tries) for tries in tried], f"{solution} reached {problem.answer}."))
    return "\n".join([*parts, f"Final Answer: {solution}"])


def rows(seed: int) -> list[list[str]]:
    """Groups of answers as lines of JSON."""
    policy, rng = models.load(str(TINY)), random.Random(seed)
    groups = []
    for problem, _ in zip(HARD.problems("train", seed), range(PROBLEMS), strict=False):
        groups.append([_row(policy, problem, text_of(problem, rng), rng) for _ in range(GROUP)])
    return groups


def _row(policy: Policy, problem: Problem, text: str, rng: random.Random) -> str:
    trace = parse(policy.encode(text), policy.tags, sampler="isolated")
    spans = tuple(
        Span(span.token_ids, span.address, span.sampled, logprobs(len(span.token_ids), rng) if span.sampled else None)
        for span in trace.spans
    )
    texts = trace.texts(policy.decode)
    trunk = policy.decode(trace.trunk_ids)
    (correct,) = verdicts(HARD, [problem], [trunk])
    terms = {"accuracy": 1.0 if correct else -1.0, "parallel": 0.2}
    whole = replace(trace, prompt_ids=tuple(policy.encode(problem.prompt)), spans=spans)
    rollout = Rollout(problem, whole, texts, correct, latency(whole), len(whole.token_ids), terms)
    return json.dumps(to_json(rollout), ensure_ascii=False)


def logprobs(count: int, rng: random.Random) -> tuple[float, ...]:
    """Log-probabilities with as many digits as real ones have in a file."""
    return tuple(-rng.expovariate(2.0) for _ in range(count))


def write_run(folder: Path, groups: list[list[str]], steps: int, size: int, rng: random.Random) -> None:
    """A run folder with `steps` steps of `size` answers."""
    (folder / "rollouts").mkdir(parents=True)
    with (folder / "metrics.jsonl").open("w") as metrics:
        for step in range(1, steps + 1):
            stage = "easy" if step <= steps // 2 else "hard"
            entry = {"step": step, "stage": stage, "kind": "rl", "stage_step": step, "mismatch_mean": 1e-6}
            metrics.write(json.dumps(entry) + "\n")
            with (folder / "rollouts" / f"step-{step}.jsonl").open("w", encoding="utf-8") as file:
                for group in rng.sample(groups, size // GROUP):
                    file.writelines(line + "\n" for line in group)


def measured(folder: Path) -> tuple[float, float, int, list[float]]:
    """Of one analysis in processes of its own: seconds, seconds of a processor, the most bytes; and its answers, forks
    and tokens an answer."""
    script = folder.parent / "analyse_run.py"
    script.write_text(ANALYSE)
    before, started, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, script, folder], stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.05)
    seconds = time.perf_counter() - started
    assert process.stdout is not None
    if process.returncode:
        sys.exit("error: the analysis failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, busy, peak, json.loads(process.stdout.read())


def memory(pid: int) -> int:
    """Bytes of a process and those that it started."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:  # one has just ended
        pass
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, help="rounds that count; no round warms up")
    parser.add_argument("--steps", type=int, default=202, help="steps of the run, of 496 answers each")
    parser.add_argument("--seed", type=int, default=0, help="of the answers")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: does it work at all?")
    parser.add_argument("--out", type=Path, help="a folder for the JSON; printed if none is given")
    parser.add_argument(
        "--keep", type=Path, help="a new folder for the synthetic run, about 3.5 GB; removed if none is given"
    )
    parser.set_defaults(model=MODELS)  # nothing is drawn
    options = parser.parse_args()
    with TemporaryDirectory() as place:
        folder = options.keep or Path(place) / "run"
        steps, size = (4, 16) if options.quick else (options.steps, 62 * GROUP)
        if not (folder / "rollouts").is_dir():
            write_run(folder, rows(options.seed), steps, size, random.Random(options.seed))
        total = sum(file.stat().st_size for file in (folder / "rollouts").iterdir())
        table: list[dict[str, Any]] = []
        for _ in range(options.runs):
            load = os.getloadavg()[0]
            seconds, busy, peak, (answers, forks, tokens) = measured(folder)
            table.append(
                {
                    "answers": answers,
                    "forks": forks,
                    "tokens an answer": tokens,
                    "GB read": total / 1e9,
                    "seconds": seconds,
                    "asked for, s": 60,
                    "processor seconds": busy,
                    "peak GB": peak / 1e9,
                    "asked for, GB": 2,
                    "load before": load,
                }
            )
    report(options, "analysis", "Analysis of a run folder", table)


if __name__ == "__main__":
    main()
