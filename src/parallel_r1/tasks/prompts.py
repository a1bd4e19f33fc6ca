"""The text around a problem when a model reads it, and where its final answer may stand."""

from __future__ import annotations

from typing import Literal

from parallel_r1.answers.rollout import Problem
from parallel_r1.answers.syntax import FINAL_ANSWER, fork_text
from parallel_r1.settings import Section

EXAMPLE = fork_text(["one line of thought", "another one"], "what they found, compared and put together")
PARALLEL = f"""Solve the problem step by step. Where several independent views of a step would help, open a block:
{EXAMPLE}
A block has two paths or more, and no path knows of the others. Its summary follows at once, and the solution goes on \
from there. Open a block as often as it helps, and not where it does not. Write the answer alone on the last line, \
after "{FINAL_ANSWER}".

Problem: {{problem}}

Solution:
"""
PLAIN = f"""Solve the problem step by step. Write the answer alone on the last line, after "{FINAL_ANSWER}".

Problem: {{problem}}

Solution:
"""
WITHOUT_FORKS = "@plain"
"""The end of a task's name that selects the prompt which does not mention forks."""


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
