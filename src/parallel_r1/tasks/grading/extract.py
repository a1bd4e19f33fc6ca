"""The final answer of a text."""

from __future__ import annotations

from parallel_r1.answers.syntax import FINAL_ANSWER, last_box


def final_answer(trunk: str) -> str | None:
    """The final answer of a trunk: the rest of the line after its last `Final Answer:`, or the contents of its last
    `\\boxed{}`, whichever comes later; None if it has neither."""
    at, box = trunk.rfind(FINAL_ANSWER), last_box(trunk)
    if box is not None and box[0] > at:
        return box[1].strip()
    return trunk[at + len(FINAL_ANSWER) :].lstrip().partition("\n")[0].strip() if at >= 0 else None
