"""Measures summed up: by step for curves, by stage for a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import nan
from typing import Any

import numpy as np

from parallel_r1.evaluation.analysis.columns import TERM, Columns, columns
from parallel_r1.evaluation.analysis.paths import USES, VERDICTS
from parallel_r1.training.rewards.spread import spread_of

QUANTILES = (10, 25, 50, 75, 90)
"""The quantiles of a spread, in percent."""
SPREADS = ("position", "paths", "length", "longest", "balance", "diversity", "agreement")
"""Columns of forks with a mean and quantiles in the table of steps."""
SUMMED = ("rescued", "rescued_from_none", "spoiled")
STEP: dict[str, type] = {
    **{"step": int, "stage": object, "stage_step": float, "answers": int, "groups": int, "measured_forks": int},
    "alarms": object,
}
"""Types of the columns of steps that are no floats."""
Metrics = Sequence[dict[str, Any]]
"""Rows of metrics.jsonl."""


def mean(values: np.ndarray) -> float:
    """Arithmetic mean of the values that are numbers; NaN without one."""
    numbers = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    return float(numbers.mean()) if len(numbers) else nan


def spread(name: str, values: np.ndarray) -> dict[str, float]:
    """Mean and quantiles of the values that are numbers, as columns NAME_mean, NAME_q10 and so on."""
    numbers = values[~np.isnan(values)].astype(float)
    quantiles = np.percentile(numbers, QUANTILES) if len(numbers) else [nan] * len(QUANTILES)
    return {
        f"{name}_mean": mean(numbers),
        **{f"{name}_q{share}": float(value) for share, value in zip(QUANTILES, quantiles, strict=True)},
    }


def sums(answers: Columns, forks: Columns) -> dict[str, Any]:
    """The measures of some answers and their forks, as docs/analysis.md defines them."""
    size, forked = len(answers["step"]), answers["forks"] > 0
    verdicts = {name: int(answers[f"paths_{name}"].sum()) for name in VERDICTS}
    with_siblings = forks["use"][forks["use"] != ""]
    decided = ~np.isnan(answers["rescued"])
    return {
        "answers": size,
        "accuracy": mean(answers["correct"]),
        "parallel_ratio": mean(forked),
        "well_formed": mean(answers["well_formed"][forked]),
        "forks": mean(answers["forks"]),
        "tokens": mean(answers["tokens"]),
        "critical_path": mean(answers["critical_path"]),
        **{key: value for name in SPREADS for key, value in spread(name, forks[name]).items()},
        "measured_forks": int((~np.isnan(forks["diversity"])).sum()),
        **{name: mean(with_siblings == name) for name in USES},
        **{
            f"paths_{name}": count / sum(verdicts.values()) if forked.any() else nan for name, count in verdicts.items()
        },
        "decided": mean(decided),
        **{name: mean(answers[name]) for name in SUMMED},
        "reward": mean(answers["reward"]),
        **_terms(answers),
    }


def _terms(answers: Columns) -> dict[str, Any]:
    """Means of the terms of the reward, and how far they differ inside groups: the answers of one step to one problem.
    Answers without a reward, as of an evaluation, are in no group."""
    rewarded = {name: column[~np.isnan(answers["reward"])] for name, column in answers.items()}
    terms = [name for name, column in rewarded.items() if name.startswith(TERM) and not np.isnan(column).all()]
    groups: dict[tuple[int, str, str], list[dict[str, float]]] = {}
    values = np.nan_to_num([rewarded[name] for name in terms])  # a term that an answer lacks is 0
    places = zip(*(rewarded[name].tolist() for name in ("step", "task", "key")), strict=True)
    for place, reward in zip(places, values.T.tolist() if terms else (), strict=bool(terms)):
        groups.setdefault(place, []).append(dict(zip(terms, reward, strict=True)))
    spreads = [spread_of(rewards) for rewards in groups.values()]
    return {
        **{name: mean(column) for name, column in zip(terms, values, strict=True)},
        "groups": len(groups),
        "cancelled_groups": mean(np.array([spread.cancelled for spread in spreads], dtype=float)),
        **{
            f"spread_{name.removeprefix(TERM)}": mean(np.array([spread.terms[name] for spread in spreads]))
            for name in terms
        },
    }


def steps_of(answers: Columns, forks: Columns, metrics: Metrics) -> Columns:
    """One row per step that saved rollouts, or that metrics.jsonl has as a step of RL. Such a step without rollouts has
    0 answers and no measure of them, but its mismatch and its alarms."""
    logged = {row["step"]: row for row in metrics if row.get("kind") == "rl"}
    alarms: dict[int, list[str]] = {}
    for row in alarms_of(metrics):
        alarms.setdefault(row["step"], []).append(row["rule"])
    saved = dict(_ranges(answers, forks))
    rows = []
    for step in sorted({*logged, *saved}):
        log = logged.get(step, {})
        empty = [slice(0, 0), slice(0, 0)]
        own, branches = (
            {name: column[part] for name, column in table.items()}
            for table, part in zip((answers, forks), saved.get(step, empty), strict=True)
        )
        rows.append(
            {
                "step": step,
                "stage": log.get("stage", ""),
                "stage_step": log.get("stage_step", nan),
                **sums(own, branches),
                **{name: value for name, value in log.items() if name.startswith("mismatch_")},
                "alarms": " ".join(alarms.get(step, [])),
            }
        )
    return columns(rows, STEP)


def alarms_of(metrics: Metrics) -> list[dict[str, Any]]:
    """The warnings in metrics.jsonl: step, stage, rule and text."""
    names = ("step", "stage", "rule", "warning")
    return [{name: row.get(name, "") for name in names} for row in metrics if row.get("kind") == "warning"]


def _ranges(answers: Columns, forks: Columns) -> Iterator[tuple[int, list[slice]]]:
    """The rows of every step in the two tables, which are in order of steps."""
    for step in np.unique(answers["step"]).tolist():
        edges = (np.searchsorted(table["step"], [step, step + 1]).tolist() for table in (answers, forks))
        yield step, [slice(*edge) for edge in edges]
