"""The simulation of `parallel-r1 plan` against the engine on this machine: predicted / measured seconds of rollouts.

Timed are decode steps of plain answers in batches of several sizes with short and long prompts, and how long a token of
a prompt takes to read. To the steps a line is fitted (`runs.scale.calibrate`), from whose constants the simulation
predicts rollouts of answers with forks of unequal lengths, which are timed too: few and many, `isolated` and
`causal_join`. Nothing of a rollout is fitted. All steps and rollouts take turns, and their seconds are those of the
processor (one thread: OMP_NUM_THREADS=1), so that other work on the machine counts little.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product

import torch
from forks import FORKS, Answer, by_engine, plan, without_tags
from measure import alternate, arguments, endless, plain, policy, prompts, report

from parallel_r1.answers.trace import Sampler
from parallel_r1.generation.generator import Generator, make_generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Engine, Sampling
from parallel_r1.models.policy import Policy
from parallel_r1.runs.scale.calibrate import Measured, check
from parallel_r1.training.settings import RL

PATHS, PROMPT, LONGER = 4, 64, 512
SHORT, LONG = 16, 64
"""Tokens of plain answers; the difference of their times is that of the steps alone."""
SAMPLERS: tuple[Sampler, ...] = ("isolated", "causal_join")


def draw(generator: Generator, asked: list[list[int]], tokens: int) -> None:
    """Plain answers of so many tokens."""
    generator.traces([Request(prompt, plain(tokens), str(index)) for index, prompt in enumerate(asked)])


def form(answer: Answer, join: int) -> list[object]:
    """Trunk tokens and lists of path tokens in turn; tags, what a join gives and the end of text count too."""
    parts: list[object] = []
    before = 0
    for part in answer:
        parts += [before + part.trunk + 1, [2 + size for size in part.paths]]
        before = join + part.summary + 1
    return [*parts, before + 1]


def processor_time(act: Callable[[], None]) -> float:
    """Seconds that the processor works on a call."""
    start = time.process_time()
    act()
    return time.process_time() - start


def ways_of(
    subject: Policy, batches: list[int], forms: dict[int, list[Answer]], seed: int
) -> dict[str, Callable[[], float]]:
    """What is timed, by name."""
    rows = PATHS * max(forms)
    plainly, forking = (make_generator(one, Engine(rows=rows)) for one in (endless(subject), subject))
    ways: dict[str, Callable[[], None]] = {}
    for batch, length in product(batches, (PROMPT, LONGER)):
        asked = prompts(subject, batch, length, seed)
        for tokens in (SHORT, LONG):
            ways[f"{batch} rows after {length}, {tokens}"] = partial(draw, plainly, asked, tokens)
    for count, answers in forms.items():
        asked = prompts(subject, count, PROMPT, seed)
        for sampler in SAMPLERS:
            ways[f"{count} answers, {sampler}"] = partial(by_engine, subject, answers, asked, sampler, seed, forking)
    return {name: partial(processor_time, act) for name, act in ways.items()}


def _more(steps: Sequence[Mapping[str, float]]) -> float:
    """How many seconds longer the second step takes."""
    return steps[1]["seconds"] - steps[0]["seconds"]


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    details = []
    for name in options.model:
        subject = policy(name)
        without_tags(subject, subject.tags)
        torch.manual_seed(options.seed)
        batches = [1, 4] if options.quick else [1, 4, 16, 32]
        sizes = (3, 4, 3) if options.quick else (32, 48, 24)
        counts = (2,) if options.quick else (2, 8)
        forms = {count: plan(count, *sizes, PATHS, True, options.seed) for count in counts}
        times = alternate(ways_of(subject, batches, forms, options.seed), options.runs)
        median = {way: statistics.median(seconds) for way, seconds in times.items()}
        steps, most = [], batches[-1]
        for batch, length in product(batches, (PROMPT, LONGER)):
            taken = median[f"{batch} rows after {length}, {LONG}"] - median[f"{batch} rows after {length}, {SHORT}"]
            seen = batch * (length + (SHORT + LONG) / 2)
            steps.append({"batch": batch, "context": seen, "seconds": taken / (LONG - SHORT)})
        both = (median[f"{most} rows after {length}, {SHORT}"] for length in (LONGER, PROMPT))
        reading = (next(both) - next(both) - _more(steps[-2:]) * SHORT) / ((LONGER - PROMPT) * most)
        for count, answers in forms.items():
            for sampler in SAMPLERS:
                rollout = {
                    "answers": [form(answer, len(subject.tags.join)) for answer in answers],
                    "prompt": PROMPT,
                    "rows": PATHS * count,
                    "seconds": median[f"{count} answers, {sampler}"],
                }
                measured = {"steps": steps, "read_seconds_per_token": max(0.0, reading), "rollout": rollout}
                stage = RL(kind="rl", steps=1, task="countdown-easy", sampling=Sampling(sampler=sampler))
                predicted = check(Measured.model_validate(measured), stage).comparisons[-1]
                ratios = [predicted.predicted / seconds for seconds in times[f"{count} answers, {sampler}"]]
                case = f"{count} answers, {sampler}"
                compared = {"compared": "predicted / measured", "ratio": predicted.ratio}
                rows.append({"model": name, "case": case, **compared, "range": [min(ratios), max(ratios)]})
                details.append({"model": name, "case": case, "measured": measured, "predicted": predicted.predicted})
    report(options, "scale", f"rollouts with {FORKS} forks of {PATHS} paths, unequal lengths", rows, details=details)


if __name__ == "__main__":
    main()
