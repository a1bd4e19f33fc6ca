"""Cleaning a set of problems, and the data card that counts what was repaired, dropped and kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from parallel_r1.errors import UserError
from parallel_r1.files import write_text
from parallel_r1.tasks.datasets.damage import REPAIRED, Damage, find, repair
from parallel_r1.tasks.datasets.overlap import Overlap, overlaps
from parallel_r1.tasks.datasets.rows import check_new, write_file
from parallel_r1.tasks.datasets.sources import Record, Source


@dataclass(frozen=True)
class Cleaned:
    """The problems of a set that are left, and why the others are dropped.

    Attributes:
        records: the problems that stay, repaired.
        read: the number of problems before.
        damage: all damage to them.
        overlap: all pairs with problems of benchmarks.
        dropped: kind of damage or overlap -> number of problems dropped for it, alone or with other reasons.
    """

    records: list[Record]
    read: int
    damage: list[Damage]
    overlap: list[Overlap]
    dropped: dict[str, int]


def clean(records: Sequence[Record], benchmarks: Sequence[Record], keep: Collection[str]) -> Cleaned:
    """Repair what can be repaired; drop the other damaged problems, and problems that are in a benchmark.

    Args:
        benchmarks: problems that must not be trained on.
        keep: kinds of damage that are neither repaired nor dropped.
    """
    damage, overlap = find(records), overlaps(records, benchmarks)
    reasons: dict[str, set[str]] = defaultdict(set)
    for kind, name in [(one.kind, one.id) for one in damage] + [(one.kind, one.id) for one in overlap]:
        if kind not in (*keep, *REPAIRED):
            reasons[kind].add(name)
    dropped = set[str]().union(*reasons.values())
    broken = {one.id for one in damage if one.kind in REPAIRED and one.kind not in keep}
    left = [repair(record) if record.id in broken else record for record in records if record.id not in dropped]
    return Cleaned(left, len(records), damage, overlap, {kind: len(ids) for kind, ids in reasons.items()})


def write(cleaned: Cleaned, source: Source, benchmarks: Sequence[str], path: Path) -> Path:
    """Write a cleaned set as a parquet or JSONL file with its data card beside it. Returns the path of the card.

    Raises:
        UserError: another ending, or one of the files exists.
    """
    card = path.with_suffix(".md")
    check_vacant(path)
    write_file(path, map(asdict, cleaned.records))
    write_text(card, describe(cleaned, source, benchmarks, path))
    return card


def check_vacant(path: Path) -> None:
    """Refuse a path where the file or its data card exists."""
    check_new(path)
    if (card := path.with_suffix(".md")).exists():
        raise UserError("a new name for --out, with a new data card", f"{card} exists", "give another name")


def describe(cleaned: Cleaned, source: Source, benchmarks: Sequence[str], path: Path) -> str:
    """The data card, in Markdown."""
    damaged: Counter[str] = Counter(kind for kind, _ in {(damage.kind, damage.id) for damage in cleaned.damage})
    rows = [
        (kind, count, "repaired" if kind in REPAIRED else "dropped" if kind in cleaned.dropped else "kept")
        for kind, count in sorted(damaged.items())
    ]
    rows += [
        (f"{kind} overlap", count, "dropped") for kind, count in sorted(cleaned.dropped.items()) if kind not in damaged
    ]
    splits = Counter(record.split for record in cleaned.records)
    lines = [
        f"# {path.stem}",
        "",
        f"{len(cleaned.records):,} of the {cleaned.read:,} problems of `{source.name}`: "
        + ", ".join(f"{count:,} in {split}" for split, count in splits.items())
        + ".",
        "",
        f"* From: {source.about or source.name}" + (f" (`{source.hub}` on the hub)" if source.hub else ""),
        f"* Licence: {source.licence}",
        f"* Compared with: {', '.join(benchmarks) or 'no benchmark'}",
        "* Columns: id, problem (the whole statement), answer, source, split",
        "",
        "| kind | problems | what was done with them |",
        "|---|---|---|",
        *(f"| {kind} | {count:,} | {outcome} |" for kind, count, outcome in rows),
        "",
        "A problem can be in several rows. Train on it with the task name",
        f"`{path.suffix[1:]}:{path.name}`, with the path as seen from where the command runs.",
        "",
    ]
    return "\n".join(lines)
