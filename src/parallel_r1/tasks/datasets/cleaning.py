"""A set of problems without its damage, and the card that says what became of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from parallel_r1.errors import UserError
from parallel_r1.files import whole
from parallel_r1.tasks.datasets.damage import REPAIRED, Damage, find, repair
from parallel_r1.tasks.datasets.overlap import Overlap, overlaps
from parallel_r1.tasks.datasets.rows import check_new, write_file
from parallel_r1.tasks.datasets.sources import Record, Source


@dataclass(frozen=True)
class Cleaned:
    """What is left of a set, and why the rest is not.

    Attributes:
        records: the problems that stay, repaired.
        read: how many there were.
        damage: everything found.
        overlap: pairs with benchmarks.
        dropped: for every kind of damage or overlap the number of problems that it alone or with others removed.
    """

    records: list[Record]
    read: int
    damage: list[Damage]
    overlap: list[Overlap]
    dropped: dict[str, int]


def clean(records: Sequence[Record], benchmarks: Sequence[Record], keep: Collection[str]) -> Cleaned:
    """Repair what can be repaired and drop the other damaged problems, and those that are in a benchmark.

    Args:
        benchmarks: problems that must not be trained on.
        keep: kinds of damage that are left alone.
    """
    damage, overlap = find(records), overlaps(records, benchmarks)
    reasons: dict[str, set[str]] = defaultdict(set)
    for kind, name in [(each.kind, each.id) for each in damage] + [(each.kind, each.id) for each in overlap]:
        if kind not in (*keep, *REPAIRED):
            reasons[kind].add(name)
    gone = set[str]().union(*reasons.values())
    broken = {each.id for each in damage if each.kind in REPAIRED and each.kind not in keep}
    left = [repair(record) if record.id in broken else record for record in records if record.id not in gone]
    return Cleaned(left, len(records), damage, overlap, {kind: len(ids) for kind, ids in reasons.items()})


def write(cleaned: Cleaned, source: Source, benchmarks: Sequence[str], path: Path) -> Path:
    """Write a cleaned set as a parquet or JSONL file and its data card beside it; the path of the card.

    Raises:
        UserError: another ending, or one of the files is there.
    """
    card = path.with_suffix(".md")
    check_vacant(path)
    write_file(path, map(asdict, cleaned.records))
    with whole(card) as part:
        part.write_text(describe(cleaned, source, benchmarks, path), encoding="utf-8")
    return card


def check_vacant(path: Path) -> None:
    """Refuse a path that would not be a new file with a new card."""
    check_new(path)
    if (card := path.with_suffix(".md")).exists():
        raise UserError("a new name for --out, with a new data card", f"{card} exists", "give another name")


def describe(cleaned: Cleaned, source: Source, benchmarks: Sequence[str], path: Path) -> str:
    """The data card, in Markdown."""
    found: Counter[str] = Counter(kind for kind, _ in {(each.kind, each.id) for each in cleaned.damage})
    rows = [
        (kind, count, "repaired" if kind in REPAIRED else "dropped" if kind in cleaned.dropped else "kept")
        for kind, count in sorted(found.items())
    ]
    rows += [
        (f"{kind} overlap", count, "dropped") for kind, count in sorted(cleaned.dropped.items()) if kind not in found
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
        "| found | problems | what became of them |",
        "|---|---|---|",
        *(f"| {kind} | {count:,} | {fate} |" for kind, count, fate in rows),
        "",
        "A problem can be in several rows. Train on it with the task name",
        f"`{path.suffix[1:]}:{path.name}`, with the path as seen from where the command runs.",
        "",
    ]
    return "\n".join(lines)
