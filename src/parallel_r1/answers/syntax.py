"""How an answer is written: the six tags, a fork as text, `Final Answer:` and `\\boxed{}`.

No other file spells a fork. To write a summary in another way, change `SUMMARY_GAP` or `fork_text` here: the sampler
draws the ids of `JOIN_TEXT`, the parser and repair ask `is_gap`, and everything that composes an answer calls
`fork_text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from parallel_r1.errors import UserError

FORK_OPEN, FORK_CLOSE = "<Parallel>", "</Parallel>"
PATH_OPEN, PATH_CLOSE = "<Path>", "</Path>"
SUMMARY_OPEN, SUMMARY_CLOSE = "<Summary>", "</Summary>"
TAGS = (FORK_OPEN, FORK_CLOSE, PATH_OPEN, PATH_CLOSE, SUMMARY_OPEN, SUMMARY_CLOSE)
TAG_PATTERN = re.compile("(" + "|".join(TAGS) + ")")
"""One tag, as a group, so that `TAG_PATTERN.split(text)` keeps the tags at odd places."""

SUMMARY_GAP = "\n"
"""The white space between a fork and its summary; may be empty."""
JOIN_TEXT = f"{FORK_CLOSE}{SUMMARY_GAP}{SUMMARY_OPEN}"
"""What the runtime writes when all paths of a fork have ended."""
FINAL_ANSWER = "Final Answer:"


def fork_text(paths: Iterable[str], summary: str | None) -> str:
    """A fork as text: `<Parallel><Path>..</Path>..</Parallel>`, a line break and `<Summary>..</Summary>`.

    Args:
        paths: texts of the paths.
        summary: text of the summary; None for a fork without one, which is a defect of the answer.
    """
    body = "".join(f"{PATH_OPEN}{path}{PATH_CLOSE}" for path in paths)
    end = FORK_CLOSE if summary is None else f"{JOIN_TEXT}{summary}{SUMMARY_CLOSE}"
    return f"{FORK_OPEN}{body}{end}"


def holds_gap(blank: str) -> bool:
    """Whether white space may stand between a fork and its summary as it is. More of it than `SUMMARY_GAP` is no
    defect: a blank line is read like a line break."""
    return not SUMMARY_GAP or not set(SUMMARY_GAP).isdisjoint(blank)


def without_tags(text: str, replacement: str) -> str:
    """A text with `replacement` in the place of every tag."""
    return TAG_PATTERN.sub(lambda _: replacement, text)


@dataclass(frozen=True)
class Tags:
    """Token ids of the syntax in one tokenizer.

    Attributes:
        ids: id of every tag.
        gap: ids of `SUMMARY_GAP`.
        eos: ids that end an answer.
        blank: ids whose text is white space only.
        breaks: the blank ids that may stand for `SUMMARY_GAP`; see `holds_gap`.
        end, chat_end: the id of `eos` with which an answer to imitate ends, to a plain prompt and in a chat template.
        missing: rows of the embedding table that no token has. They are never drawn, and have no probability.

    Raises:
        UserError: a tag ends an answer.
    """

    ids: dict[str, int]
    gap: tuple[int, ...]
    eos: frozenset[int]
    blank: frozenset[int]
    breaks: frozenset[int]
    end: int
    chat_end: int
    missing: tuple[int, ...]

    def __post_init__(self) -> None:
        tags = [tag for tag, token in self.ids.items() if token in self.eos]
        if tags:
            raise UserError(
                "ends of an answer that are no tags",
                f"{tags[0]} among them",
                "correct eos_token in tokenizer_config.json, or eos_token_id in generation_config.json",
            )

    @property
    def join(self) -> tuple[int, ...]:
        """The ids of `JOIN_TEXT`."""
        return (self.ids[FORK_CLOSE], *self.gap, self.ids[SUMMARY_OPEN])


_BARE = r"[-+]?\s*(?:[\d.(]|\\[a-zA-Z])(?:\{[^{}]*\}|[^\s${}]|\s*[-+*/^=<>]\s*(?=[^\s${}]))*"
"""What a `\\boxed` without braces holds: all that no space or dollar sign ends, so that `\\boxed 3/4` is not 3."""
_BOX = re.compile(rf"\\(?:boxed|fbox|framebox)(?:\s|\\n(?=\s*\{{))*(?:\{{|({_BARE}))|\\.|[{{}}]", re.DOTALL)


class Box(NamedTuple):
    """A closed `\\boxed{}`: the characters at which it begins and ends, and its content."""

    start: int
    end: int
    content: str


def boxes(text: str) -> list[Box]:
    """All closed `\\boxed{}` of a text, in the order in which they begin. Braces inside may nest."""
    closed: list[Box] = []
    opened: list[tuple[int, int, bool]] = []
    for match in _BOX.finditer(text):
        token = match.group()
        if match[1]:  # \boxed 2, perhaps at the end of a sentence
            closed.append(Box(match.start(), match.end(), match[1].rstrip(".,;:?")))
        elif token.endswith("{") and token != r"\{":
            opened.append((match.start(), match.end(), token != "{"))
        elif token == "}" and opened:
            start, inside, is_box = opened.pop()
            if is_box:
                closed.append(Box(start, match.end(), text[inside : match.start()]))
    return sorted(closed)


def last_box(text: str) -> tuple[int, str] | None:
    """The last closed `\\boxed{}` of a text: the character at which it begins, and its content; None without one."""
    last = max(boxes(text), default=None)
    return None if last is None else (last.start, last.content)
