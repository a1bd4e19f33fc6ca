"""One generated answer, as Python code and notebooks see it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from parallel_r1.answers.trace import Trace
from parallel_r1.answers.visibility import latency
from parallel_r1.report.answers import answer_tree
from parallel_r1.report.html import answer_html

if TYPE_CHECKING:
    from rich.tree import Tree


@dataclass(frozen=True)
class Answer:
    """One generated answer. A notebook shows it with its paths side by side, `rich.print` as a tree.

    Attributes:
        prompt: the text that the model read.
        trace: the answer's tokens as spans, with their addresses and log-probabilities.
        texts: the text of every span of the trace, in the same order.
    """

    prompt: str
    trace: Trace
    texts: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole answer, tags included."""
        return "".join(self.texts)

    @property
    def trunk(self) -> str:
        """The text outside all paths, which is what a reader of the answer needs."""
        return self.trace.trunk_text(self.texts)

    @property
    def forks(self) -> int:
        """Number of forks that the answer opened, nested ones included."""
        return self.trace.forks

    @cached_property
    def critical_path(self) -> int:
        """Length of the longest chain of tokens generated one after the other: the latency of the answer."""
        return latency(self.trace)

    @property
    def total(self) -> int:
        """Number of tokens of the answer, over all paths: its cost."""
        return len(self.trace.token_ids)

    def _repr_html_(self) -> str:
        return answer_html(self.trace, self.texts, self.prompt)

    def __rich__(self) -> Tree:
        return answer_tree(self.trace, self.texts, self.prompt.strip())
