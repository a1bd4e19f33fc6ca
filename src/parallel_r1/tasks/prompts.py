"""What stands around a problem when a model reads it, and where its final answer may stand."""

from __future__ import annotations

from typing import Literal

from parallel_r1.answers.rollout import Problem
from parallel_r1.settings import Section


class Prompt(Section):
    """How problems are put to a model.

    Attributes:
        instruction: text before every problem; tags in it are text.
        final_answer: where the final answer may stand: in the trunk, or, if the trunk gives none, in a path too.
    """

    instruction: str = ""
    final_answer: Literal["trunk", "anywhere"] = "trunk"

    def text(self, problem: Problem) -> str:
        """What the model reads."""
        return self.instruction + problem.prompt
