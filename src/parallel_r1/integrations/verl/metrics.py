"""A stage that verl ran, as rows of metrics.jsonl: the figures of our agent loop beside verl's own metrics.

verl starts its metrics file anew at every launch, so every launch has a file of its own; the steps of a later one
replace those of the launches before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from parallel_r1 import files
from parallel_r1.answers.rollout import Rollout, from_json
from parallel_r1.evaluation.measure import summarise

NAMES = {
    "actor/pg_loss": "loss",
    "actor/pg_clipfrac": "clip_fraction",
    "actor/grad_norm": "gradient_norm",
    "actor/lr": "lr",
    "actor/entropy": "entropy",
    "actor/parallel_r1/mismatch_max": "mismatch_max",
    "actor/parallel_r1/mismatch_after_fork": "mismatch_after_fork",
    "actor/parallel_r1/mismatch_after_join": "mismatch_after_join",
    "timing_s/step": "seconds",
}
"""verl's names of metrics -> ours."""


def launches(folder: Path) -> list[Path]:
    """The metrics files of all launches of a stage, the earliest first."""
    return sorted(folder.glob("verl-*.jsonl"), key=lambda path: int(path.stem.removeprefix("verl-")))


def next_launch(folder: Path) -> Path:
    """The metrics file of the next launch; its log has the same name."""
    numbers = [int(path.stem.removeprefix("verl-")) for path in folder.glob("verl-*.log")]
    return folder / f"verl-{max(numbers, default=0) + 1}.jsonl"


def saved_step(states: Path) -> int:
    """The step of verl's last saved state, after which it goes on; 0 if there is none."""
    file = states / "latest_checkpointed_iteration.txt"
    return int(file.read_text()) if file.is_file() else 0


def rewind(folder: Path, step: int) -> None:
    """Drop what was logged after a step, which verl takes again."""
    for path in launches(folder):
        rows = [row for _, row in files.read_jsonl(path, drop_unfinished=True) if row["step"] <= step]
        files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def steps(folder: Path) -> dict[int, dict[str, Any]]:
    """verl's metrics by step, of the last launch that took it. A last line that is not whole yet is left out."""
    found: dict[int, dict[str, Any]] = {}
    for path in launches(folder):
        rows = [row for _, row in files.read_jsonl(path, drop_unfinished=True)]
        first = min((row["step"] for row in rows), default=None)
        if first is not None:
            found = {step: data for step, data in found.items() if step < first}
        for row in rows:
            found[row["step"]] = {**found.get(row["step"], {}), **row["data"]}
    return found


def figures(folder: Path, step: int) -> list[dict[str, Any]]:
    """The figures of the answers of a step, as `loop` wrote them. Of an answer that was drawn twice, because a run was
    killed and took the step again, the last counts."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    parts = sorted((folder / "figures").glob(f"step-{step}.*.jsonl"), key=lambda path: path.stat().st_mtime)
    for part in parts:
        for _, row in files.read_jsonl(part, drop_unfinished=True):
            rows[row["group"], row["number"]] = row
    return [rows[key] for key in sorted(rows)]


def describe(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the answers of a step, under the names that one process logs."""
    forked = [answer for answer in answers if answer["parallel"]]
    groups = [list(members) for _, members in groupby(answers, key=lambda answer: answer["group"])]
    terms = sorted({name for answer in answers for name in answer["terms"] or ()})
    sampled = sum(answer["sampled"] for answer in answers)
    surprise = sum(answer["surprise"] * answer["sampled"] for answer in answers) / max(1.0, sampled)
    plain = ("forks", "critical_path", "total", "cut")
    return {
        "reward": fmean(answer["reward"] for answer in answers),
        **{f"reward_{name}": fmean(answer["terms"].get(name, 0.0) for answer in answers) for name in terms},
        "accuracy": fmean(answer["acc"] for answer in answers),
        "parallel_ratio": len(forked) / len(answers),
        "well_formed": fmean(answer["well_formed"] for answer in forked) if forked else 1.0,
        **{name: fmean(answer[name] for answer in answers) for name in plain},
        "surprise": surprise,
        "sampled": sampled,
        **({"first_fork": fmean(answer["first_fork"] for answer in forked)} if forked else {}),
        "dead_groups": fmean(len({answer["reward"] for answer in members}) == 1 for members in groups),
        **{name: sum(answer[name] for answer in answers) for name in ("cached", "decoded", "closed_paths", "repeated")},
        "prefilled": sum(answer["read"] for answer in answers),
        "sampling_seconds": max(answer["ended"] for answer in answers) - min(answer["began"] for answer in answers),
    }


def row(folder: Path, step: int, data: Mapping[str, Any]) -> dict[str, Any]:
    """One step as a row of metrics.jsonl."""
    mine = {ours: data[name] for name, ours in NAMES.items() if name in data}
    total, tokens = (data.get(f"actor/parallel_r1/mismatch_{name}") for name in ("sum", "tokens"))
    if total is not None and tokens:
        mine["mismatch_mean"] = total / tokens
    answers = figures(folder, step)
    described = describe(answers) if answers else {}
    drawn = sum(answer["total"] for answer in answers)
    speed = {"tokens_per_second": drawn / mine["seconds"]} if mine.get("seconds") else {}
    return {"stage_step": step, **described, **mine, **speed}


def rollouts(folder: Path, name: str) -> list[Rollout]:
    """The answers that `loop` wrote whole, of `step-N` or of `validation-N`. Of an answer that was drawn twice, because
    a run was killed and took the step again, the last counts."""
    found: dict[tuple[int, int], Rollout] = {}
    for part in sorted((folder / "answers").glob(f"{name}.*.jsonl"), key=lambda path: path.stat().st_mtime):
        for _, row in files.read_jsonl(part, drop_unfinished=True):
            found[row["group"], row["number"]] = from_json(row["answer"])
    return [found[key] for key in sorted(found)]


def validation(folder: Path, step: int, stage: str) -> dict[str, Any] | None:
    """The validation after a step as a row: mean@k, pass@k and the rest of a result. None if there was none."""
    answers = rollouts(folder, f"validation-{step}")
    if not answers:
        return None
    result = summarise(answers, stage).to_json()
    kept = {name: value for name, value in result.items() if name not in ("by_problem", "passes", "intervals")}
    return {"kind": "validation", **kept, "stage_step": step}
