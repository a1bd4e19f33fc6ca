"""How an answer is written: the six tags, the text of a join, `Final Answer:` and `\\boxed{}`."""

from __future__ import annotations

import re
from dataclasses import dataclass

FORK_OPEN, FORK_CLOSE = "<Parallel>", "</Parallel>"


PATH_OPEN, PATH_CLOSE = "<Path>", "</Path>"


SUMMARY_OPEN, SUMMARY_CLOSE = "<Summary>", "</Summary>"


TAGS = (FORK_OPEN, FORK_CLOSE, PATH_OPEN, PATH_CLOSE, SUMMARY_OPEN, SUMMARY_CLOSE)


JOIN_TEXT = f"{FORK_CLOSE}\n{SUMMARY_OPEN}"
"""What the runtime writes when all paths of a fork have ended."""


@dataclass(frozen=True)
class Tags:
    """The ids of the six tags, of the newline between a fork and its summary, and of the end of text.

    Attributes:
        ids: tag text -> token id.
        newline: the token ids of a line break.
        eos: the ids that end an answer.
        blank: the ids whose text is white space only.
        breaks: those of them that hold a line break.
    """

    ids: dict[str, int]
    newline: tuple[int, ...]
    eos: frozenset[int]
    blank: frozenset[int] = frozenset()
    breaks: frozenset[int] = frozenset()

    @property
    def join(self) -> tuple[int, ...]:
        """The ids of `JOIN_TEXT`."""
        return (self.ids[FORK_CLOSE], *self.newline, self.ids[SUMMARY_OPEN])


_TAG = re.compile("(" + "|".join(TAGS) + ")")


def without_tags(text: str, instead: str) -> str:
    """A text with something else in the place of every tag."""
    return _TAG.sub(instead, text)


FINAL_ANSWER = "Final Answer:"


_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(\d+))|\\.|[{}]", re.DOTALL)


def last_box(text: str) -> tuple[int, str] | None:
    """Where the last closed `\\boxed{}` of a text begins, and what is in it; braces inside may nest."""
    last: tuple[int, str] | None = None
    opened: list[tuple[int, int, bool]] = []
    for match in _BOX.finditer(text):
        token = match.group()
        if match[1]:  # \boxed 2
            last = match.start(), match[1]
        elif token.endswith("{") and token != r"\{":
            opened.append((match.start(), match.end(), token != "{"))
        elif token == "}" and opened:
            start, inside, is_box = opened.pop()
            if is_box and (last is None or start > last[0]):
                last = start, text[inside : match.start()]
    return last
