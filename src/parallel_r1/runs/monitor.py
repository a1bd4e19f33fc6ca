"""Warnings about a running RL stage: collapses that show in its metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

WINDOW = 5
"""Number of steps in a moving average. The first window of a stage is the baseline."""

SPREAD = "spread_"
"""Metrics with this beginning say how much a term of the reward differs within groups."""

Row = dict[str, Any]
Rule = Callable[[list[Row]], str | None]
"""(metrics of all RL steps of a stage so far, at least `WINDOW`) -> a warning, or None."""


def _baseline(rows: list[Row], name: str) -> float:
    return fmean(row[name] for row in rows[:WINDOW])


def _recent(rows: list[Row], name: str) -> float:
    return fmean(row[name] for row in rows[-WINDOW:])


def serial(rows: list[Row]) -> str | None:
    """The parallel ratio collapses: forks cost more than they earn."""
    most = max(_recent(rows[:end], "parallel_ratio") for end in range(WINDOW, len(rows) + 1))
    now = _recent(rows, "parallel_ratio")
    if most >= 0.3 and now < 0.3 * most:
        return (
            f"serial collapse: {now:.0%} of the answers fork, it was {most:.0%}. A budget that counts all tokens, or a "
            "reward without a bonus, makes forks a loss; see docs/results.md"
        )
    return None


def form(rows: list[Row]) -> str | None:
    """Most answers with forks are malformed."""
    forking = [row for row in rows if row["parallel_ratio"] > 0]
    if len(forking) >= WINDOW and _recent(forking, "well_formed") < 0.5:
        return (
            f"format collapse: {_recent(forking, 'well_formed'):.0%} of the answers that fork are well-formed. Reward "
            "the form (gate(), bonus()), give paths more tokens, or train the cold start for longer"
        )
    return None


def entropy(rows: list[Row]) -> str | None:
    """The entropy collapses: the policy no longer explores."""
    baseline, now = _baseline(rows, "surprise"), _recent(rows, "surprise")
    if now < 0.2 * baseline:
        return (
            f"entropy collapse: {now:.3f} nats a token, it began with {baseline:.3f}. Raise algorithm.clip_high or "
            "algorithm.entropy, or lower optimizer.lr"
        )
    return None


def cancelled(rows: list[Row]) -> str | None:
    """Terms of the reward cancel in most groups: answers differ, and earn the same all the same."""
    if any("cancelled_groups" not in row for row in rows[-WINDOW:]):  # a run that an earlier version began
        return None
    now = _recent(rows, "cancelled_groups")
    if _recent(rows, "dead_groups") > 0.8 and now > 0.4:
        spreads = {name for row in rows[-WINDOW:] for name, value in row.items() if name.startswith(SPREAD) and value}
        terms = sorted(name.removeprefix(SPREAD) for name in spreads)
        return (
            f"cancelling terms: in {now:.0%} of the groups all answers earn the same although {' and '.join(terms)} "
            "differ: what one term gives, another takes. Change the weight of one of them"
        )
    return None


def dead(rows: list[Row]) -> str | None:
    """In most groups all rewards are equal, so they have no gradient."""
    now = _recent(rows, "dead_groups")
    if now > 0.8 and not cancelled(rows):
        accuracy = _recent(rows, "accuracy")
        fix = "harder" if accuracy > 0.5 else "easier"
        return (
            f"dead groups: in {now:.0%} of the groups all answers earn the same, at {accuracy:.0%} accuracy. Take "
            f"{fix} problems, larger groups, or algorithm.refill"
        )
    return None


def mismatch(rows: list[Row]) -> str | None:
    """The mismatch between sampler and scorer grows."""
    measured = [row for row in rows if "mismatch_mean" in row]
    if len(measured) < 2 * WINDOW:
        return None
    baseline, now = _baseline(measured, "mismatch_mean"), _recent(measured, "mismatch_mean")
    if now > max(0.05, 3 * baseline):
        return (
            f"mismatch growth: sampler and scorer differ by {now:.3f} nats a token, it began with {baseline:.3f}. Use "
            "the sampler's exact scorer, or algorithm.correction"
        )
    return None


def skipped(rows: list[Row]) -> str | None:
    """Updates with a gradient that is not finite are skipped."""
    share = fmean(row.get("skipped", 0.0) for row in rows[-WINDOW:])
    if share > 0:
        return (
            f"skipped updates: {share:.0%} of the updates of the last {WINDOW} steps had a gradient that was not "
            "finite. Lower optimizer.lr"
        )
    return None


RULES: dict[str, Rule] = {rule.__name__: rule for rule in (serial, form, entropy, cancelled, dead, mismatch, skipped)}


@dataclass
class Monitor:
    """Applies all rules to the metrics of a run. A rule warns at most once per stage.

    Attributes:
        rows: the RL steps of the current stage.
        given: names of the rules that have warned in it.
    """

    rows: list[Row] = field(default_factory=list)
    given: set[str] = field(default_factory=set)
    stage: str = ""

    def __call__(self, row: Row) -> list[Row]:
        """The new warnings after a row of metrics, as rows for metrics.jsonl."""
        if row["kind"] != "rl":
            return []
        if row["stage"] != self.stage:
            self.rows, self.given, self.stage = [], set(), row["stage"]
        self.rows.append(row)
        verdicts = {name: RULES[name](self.rows) for name in RULES.keys() - self.given if len(self.rows) >= WINDOW}
        warnings = {name: text for name, text in verdicts.items() if text}
        self.given |= warnings.keys()
        place = {"step": row["step"], "kind": "warning", "stage": row["stage"]}
        return [{**place, "rule": name, "warning": text} for name, text in sorted(warnings.items())]

    def remember(self, rows: Iterable[Row]) -> Monitor:
        """Take in the rows of an interrupted run, whose warnings are logged already."""
        for row in rows:
            self(row)
        return self
