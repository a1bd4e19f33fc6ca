"""Says in plain words what goes wrong in a run, while it can still be stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

WINDOW = 5
"""Steps whose mean is looked at; the first so many of a stage are what it began with."""

Row = dict[str, Any]
Rule = Callable[[list[Row]], str | None]
"""Is told the metrics of all RL steps of a stage so far, at least `WINDOW`; says what is wrong, if anything is."""


def _began(rows: list[Row], name: str) -> float:
    return fmean(row[name] for row in rows[:WINDOW])


def _now(rows: list[Row], name: str) -> float:
    return fmean(row[name] for row in rows[-WINDOW:])


def serial(rows: list[Row]) -> str | None:
    """Forking dies out: what it costs is more than what it earns."""
    most = max(_now(rows[:end], "parallel_ratio") for end in range(WINDOW, len(rows) + 1))
    now = _now(rows, "parallel_ratio")
    if most >= 0.3 and now < 0.3 * most:
        return (
            f"serial collapse: {now:.0%} of the answers fork, it was {most:.0%}. A budget that counts all tokens, or a "
            "reward without a bonus, makes forks a loss; see docs/results.md"
        )
    return None


def form(rows: list[Row]) -> str | None:
    """Answers that fork break the format."""
    forking = [row for row in rows if row["parallel_ratio"] > 0]
    if len(forking) >= WINDOW and _now(forking, "well_formed") < 0.5:
        return (
            f"format collapse: {_now(forking, 'well_formed'):.0%} of the answers that fork are well-formed. Reward the "
            "form (gate(), bonus()), give paths more tokens, or train the cold start for longer"
        )
    return None


def entropy(rows: list[Row]) -> str | None:
    """The policy stops trying other things."""
    began, now = _began(rows, "surprise"), _now(rows, "surprise")
    if now < 0.2 * began:
        return (
            f"entropy collapse: {now:.3f} nats a token, it began with {began:.3f}. Raise algorithm.clip_high or "
            "algorithm.entropy, or lower optimizer.lr"
        )
    return None


def dead(rows: list[Row]) -> str | None:
    """Most problems teach nothing."""
    now = _now(rows, "dead_groups")
    if now > 0.8:
        accuracy = _now(rows, "accuracy")
        fix = "harder" if accuracy > 0.5 else "easier"
        return (
            f"dead groups: in {now:.0%} of the groups all answers earn the same, at {accuracy:.0%} accuracy. Take "
            f"{fix} problems, larger groups, or algorithm.refill"
        )
    return None


def mismatch(rows: list[Row]) -> str | None:
    """What is sampled is less and less what is scored."""
    measured = [row for row in rows if "mismatch_mean" in row]
    if len(measured) < 2 * WINDOW:
        return None
    began, now = _began(measured, "mismatch_mean"), _now(measured, "mismatch_mean")
    if now > max(0.05, 3 * began):
        return (
            f"mismatch growth: sampler and scorer differ by {now:.3f} nats a token, it began with {began:.3f}. Use the "
            "sampler's exact scorer, or algorithm.correction"
        )
    return None


def skipped(rows: list[Row]) -> str | None:
    """Updates are left out."""
    share = fmean(row.get("skipped", 0.0) for row in rows[-WINDOW:])
    if share > 0:
        return (
            f"skipped updates: {share:.0%} of those of the last {WINDOW} steps had a gradient that was not finite. "
            "Lower optimizer.lr"
        )
    return None


RULES: dict[str, Rule] = {rule.__name__: rule for rule in (serial, form, entropy, dead, mismatch, skipped)}


@dataclass
class Monitor:
    """Watches the metrics of a run; each warning is given once a stage."""

    rows: list[Row] = field(default_factory=list)
    given: set[str] = field(default_factory=set)
    stage: str = ""

    def __call__(self, row: Row) -> list[Row]:
        """The warnings that a row of metrics gives rise to, as rows of their own."""
        if row["kind"] != "rl":
            return []
        if row["stage"] != self.stage:
            self.rows, self.given, self.stage = [], set(), row["stage"]
        self.rows.append(row)
        found = {name: RULES[name](self.rows) for name in RULES.keys() - self.given if len(self.rows) >= WINDOW}
        said = {name: text for name, text in found.items() if text}
        self.given |= said.keys()
        about = {"step": row["step"], "kind": "warning", "stage": row["stage"]}
        return [{**about, "rule": name, "warning": text} for name, text in sorted(said.items())]

    def remember(self, rows: Iterable[Row]) -> Monitor:
        """Take notice of what was logged before, without a word."""
        for row in rows:
            self(row)
        return self
