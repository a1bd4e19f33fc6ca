"""The text around a problem when a model reads it, and where its final answer may stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from parallel_r1.answers.rollout import Message
from parallel_r1.answers.schemas import DEFAULT, Schema
from parallel_r1.answers.syntax import FINAL_ANSWER
from parallel_r1.models.tokens import Form
from parallel_r1.settings import Section

if TYPE_CHECKING:
    from parallel_r1.models.policy import Policy


def example(schema: Schema) -> str:
    """A fork, to show how one is written."""
    return schema.write(
        ["one line of thought", "another one"],
        "what they found, compared and put together",
        ["1: the first way", "2: the second way"],
    )


EXAMPLE = example(DEFAULT)
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
        form: "plain" puts a problem to the model as text, "chat" as a message in the model's own chat template.
        instruction: text before every problem; tags in it are text.
        final_answer: where the final answer may stand: in the trunk, or, if the trunk gives none, in a path too.
    """

    form: Form = "plain"
    instruction: str = ""
    final_answer: Literal["trunk", "anywhere"] = "trunk"

    def encode(self, policy: Policy, text: str, before: Sequence[Message] = ()) -> list[int]:
        """The tokens that the model reads: of the prompt of a problem, and of the messages before it. An example of a
        fork in the prompt is written in the schema of the model."""
        if policy.tags.schema != DEFAULT:
            text = text.replace(EXAMPLE, example(policy.tags.schema))
        return policy.encode_prompt(self.instruction + text, self.form, before)
