"""How long one answer takes, drawn alone: the second of two models against the first, on the same problems.

Each model draws as its training card says. In a round both draw one answer to the same problem, the engine as it is and
nothing else running. Both loads and the first round, which warms up, are not counted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from measure import alternate, arguments, generators, policy, ratio, report

from parallel_r1.evaluation.measure import held_out
from parallel_r1.generation.rollouts import answer
from parallel_r1.generation.training_card import read_card
from parallel_r1.tasks.load import load_task


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--task", default="parts-easy", help="where the problems come from")
    options = parser.parse_args()
    first, second = options.model
    task = load_task(options.task)
    problems = held_out(task, options.runs + 1, options.seed)
    drawn: dict[str, list[tuple[int, int, bool]]] = {}
    ways: dict[str, Callable[[], None]] = {}
    names = {model: Path(model).name for model in (first, second)}
    if len(set(names.values())) < 2:
        raise SystemExit(f"expected two folders with different names; found {first} and {second}")
    for model, name in names.items():
        card, loaded = read_card(model), policy(model)
        if card is None:
            raise SystemExit(
                f"expected a model with a training card; found {model} without one; train it with a recipe"
            )
        for suffix, generator in generators(loaded, options, rows=1).items():
            rest = iter(problems)
            seen = drawn[name + suffix] = []

            def draw(loaded=loaded, card=card, generator=generator, rest=rest, seen=seen) -> None:
                problem = next(rest)
                (rollout,) = answer(
                    loaded, task, [problem], 1, card.sampling, options.seed, prompt=card.prompt, generator=generator
                )
                seen.append((rollout.critical_path, rollout.total, rollout.correct))

            ways[name + suffix] = draw
    times = alternate(ways, options.runs)
    rows: list[dict[str, object]] = []
    for suffix in ("", ", compiled") if options.compile else ("",):
        rows.append({"model": names[second], **ratio(times, names[first] + suffix, names[second] + suffix)})
    details = [
        {
            "model": name,
            "seconds": statistics.median(times[name]),
            "critical path": statistics.fmean(each[0] for each in seen),
            "tokens": statistics.fmean(each[1] for each in seen),
            "correct": statistics.fmean(each[2] for each in seen),
        }
        for name, seen in drawn.items()
    ]
    report(
        options, "latency", "One answer at a time: the first model's seconds over the second's", rows, details=details
    )


if __name__ == "__main__":
    main()
