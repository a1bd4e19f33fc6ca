"""The tables of a folder of benchmarks, as markdown: what `docs/performance.md` shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def cell(value: Any) -> str:
    """A number with three digits that count, a range as `a .. b`."""
    if isinstance(value, list):
        return " .. ".join(map(cell, value))
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def table(report: dict[str, Any]) -> str:
    """One benchmark: its title, its rows, and on which machine and how it ran."""
    rows = report["rows"]
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell(row[head]) for head in heads) + " |" for row in rows]
    machine = f"{report['processor']}, {report['threads']} of {report['environment']['cpus']} threads"
    how = f"median of {report['runs']} rounds, seed {report['seed']}, commit {report['commit'][:12]}"
    return f"**{report['benchmark']}**\n\n" + "\n".join(lines) + f"\n\n{machine}; {how}.\n"


def main() -> None:
    if len(sys.argv) != 2 or not (found := sorted(Path(sys.argv[1]).glob("*.json"))):
        sys.exit(f"error: expected a folder with the JSON of benchmarks; found {sys.argv[1:]}; run `make bench` first")
    print("\n".join(table(json.loads(path.read_text(encoding="utf-8"))) for path in found))


if __name__ == "__main__":
    main()
