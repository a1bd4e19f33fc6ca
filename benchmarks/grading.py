"""How many verdicts on final answers are those of people: of this grader, and of math-verify alone on the whole text.

A case is a line `{"text": .., "answer": .., "correct": ..}`. Speed is counted over fresh pairs: every round has the
cases with other white space in their references, so that no verdict is remembered.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from math_verify import parse, verify

from parallel_r1.tasks.grading.extract import final_answer
from parallel_r1.tasks.grading.grader import Grader

CASES = Path(__file__).parents[2] / "shared" / "cases" / "grading.jsonl"


def alone(gold: str, text: str) -> bool:
    """The verdict of math-verify on a whole text."""
    return bool(verify(parse(f"${gold}$"), parse(text)))


def score(verdicts: list[bool], asked: list[bool]) -> dict[str, float]:
    """Agreement in percent, wrong answers that were accepted, right ones that were refused."""
    pairs = list(zip(verdicts, asked, strict=True))
    return {
        "agreement": round(100 * sum(one == two for one, two in pairs) / len(pairs), 1),
        "wrong_accepted": sum(one and not two for one, two in pairs),
        "right_refused": sum(two and not one for one, two in pairs),
    }


def speed(pairs: list[tuple[str | None, str]], processes: int, rounds: int) -> list[int]:
    """Gradings a second of every round, after one that does not count."""
    grader, speeds = Grader(size=processes), []
    for number in range(rounds + 1):
        # White space at the end changes no verdict, and makes another pair.
        fresh = [(answer, gold + " " * (5 * number + copy)) for copy in range(5) for answer, gold in pairs]
        started = time.perf_counter()
        grader.grade(fresh)
        speeds.append(round(len(fresh) / (time.perf_counter() - started)))
    grader.close()
    return speeds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, nargs="?", default=CASES, help="a JSONL file of cases")
    parser.add_argument("--processes", type=int, default=2, help="processes of math-verify")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the speed that count")
    options = parser.parse_args()
    if not options.cases.is_file():
        parser.error(f"expected a JSONL file of cases; found none at {options.cases}; give one")
    rows = [json.loads(line) for line in options.cases.read_text(encoding="utf-8").splitlines() if line]
    pairs = [(final_answer(row["text"], "lenient"), str(row["answer"])) for row in rows]
    asked = [row["correct"] for row in rows]
    grader = Grader(size=options.processes)
    report = {
        "cases": len(rows),
        "parallel-r1": score(grader.grade(pairs), asked),
        "math-verify": score([alone(str(row["answer"]), row["text"]) for row in rows], asked),
        "gradings_a_second": speed(pairs, options.processes, options.rounds),
    }
    grader.close()
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
