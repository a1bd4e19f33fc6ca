"""The final answer of a text."""

from __future__ import annotations

from parallel_r1.answers.syntax import FINAL_ANSWER, last_box


def final_answer(trunk: str) -> str | None:
    """What follows the last `Final Answer:` of a trunk, to the end of its line, or stands in its last `\\boxed{}`,
    whichever is later; None if there is neither."""
    at, box = trunk.rfind(FINAL_ANSWER), last_box(trunk)
    if box is not None and box[0] > at:
        return box[1].strip()
    return trunk[at + len(FINAL_ANSWER) :].lstrip().partition("\n")[0].strip() if at >= 0 else None
