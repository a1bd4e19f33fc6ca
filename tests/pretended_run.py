"""A run folder that is written row by row, as a run writes it, but without any training."""

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

RECIPE = """
name = "pretended"
[stages.cold-start]
kind = "sft"
steps = 4
[stages.easy]
kind = "rl"
steps = 10
[stages.hard]
kind = "rl"
steps = 20
[stages.grpo]
kind = "rl"
start = "base"
steps = 30
"""


class PretendedRun:
    """Writes the files of a run: `step` and `evaluate` log a row, `save` writes the answers of the last step."""

    def __init__(self, path):
        self.path, self.at = path, 0
        for name in ("rollouts", "checkpoints", "eval", "state"):
            (path / name).mkdir(parents=True)
        (path / "environment.json").write_text(json.dumps({"time": datetime.now(UTC).isoformat()}))
        (path / "recipe.toml").write_text(RECIPE)
        self.metrics = path / "metrics.jsonl"

    def log(self, row, end="\n"):
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.at, **row}) + end)

    def step(self, stage, kind, number, of, **metrics):
        self.at += 1
        row = {"stage": stage, "kind": kind, "stage_step": number, "stage_steps": of, "parallel_ratio": 0.9}
        if kind == "sft":
            row["loss"] = 4.0 / number
        else:
            row |= {"reward": number / 20 - 1, "accuracy": number / 40, "critical_path": 50 + number % 7}
            row |= {"surprise": 1 / number}
        self.log({**row, "tokens_per_second": 1234.5, "seconds": 0.5, **metrics})

    def evaluate(self, stage, **changes):
        row = {"kind": "evaluation", "stage": stage, "task": "countdown-hard", "problems": 9, "samples": 1}
        row |= {"mean": 0.2, "low": 0.1, "high": 0.3, "passed": 0.2, "parallel_ratio": 0.9, "well_formed": None}
        self.log({**row, "forks": 1.0, "critical_path": 50.0, "total": 150.0, "seconds": 2.0, **changes})

    def warn(self, stage, text):
        self.log({"kind": "warning", "stage": stage, "rule": "dead", "warning": text})

    def over(self, stage):
        (self.path / "checkpoints" / stage).mkdir()

    def save(self, rollouts):
        from parallel_r1.answers.rollout import write_jsonl

        file = self.path / "rollouts" / f"step-{self.at}.jsonl"
        part = file.with_name(f".{file.name}.part")
        write_jsonl(part, rollouts)
        part.rename(file)

    def rewind(self, step):
        """Drop later rows, as a run does that resumes: the file is replaced."""
        rows = [line for line in self.metrics.read_text().splitlines() if json.loads(line)["step"] <= step]
        part = self.metrics.with_name(".metrics.jsonl.part")
        part.write_text("".join(f"{row}\n" for row in rows))
        part.rename(self.metrics)
        self.at = step

    def finish(self):
        (self.path / "state").rmdir()


def go(path, pause, rollouts):
    """A whole run, with a pause after every step."""
    run = PretendedRun(path)
    run.evaluate("base")
    for stage, kind, steps in (("cold-start", "sft", 4), ("easy", "rl", 10), ("hard", "rl", 20), ("grpo", "rl", 30)):
        for number in range(1, steps + 1):
            run.step(stage, kind, number, steps)
            if kind == "rl" and number % 5 == 0:
                run.save(rollouts)
            time.sleep(pause)
        if stage == "easy":
            run.warn(stage, "dead groups: in 90% of the groups all answers earn the same")
        run.over(stage)
        run.evaluate(stage)
    run.finish()


if __name__ == "__main__":
    from parallel_r1.answers.rollout import read_jsonl

    go(Path(sys.argv[1]), float(sys.argv[2]), list(read_jsonl(Path(sys.argv[3]))))
