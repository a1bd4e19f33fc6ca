"""How an answer is written in one tokenizer: the ids of a schema's tags and of what the runtime writes, `Final Answer:`
and `\\boxed{}`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from parallel_r1.answers.schemas import DEFAULT, Role, Schema
from parallel_r1.errors import UserError

FINAL_ANSWER = "Final Answer:"


def fits(expected: str, blank: str) -> bool:
    """Whether white space may stand for what the runtime writes between tags. More of it is no defect: a blank line is
    read like a line break."""
    return not expected or not set(expected).isdisjoint(blank)


@dataclass(frozen=True)
class Tags:
    """A schema in one tokenizer.

    Attributes:
        ids: id of every tag.
        eos: ids that end an answer.
        blank: ids whose text is white space only.
        breaks: the blank ids that may stand for the white space of the schema; see `fits`.
        end, chat_end: the id of `eos` with which an answer to imitate ends, to a plain prompt and in a chat template.
        missing: rows of the embedding table that no token has. They are never drawn, and have no probability.
        join, tail: ids of what the runtime writes when all paths have ended, and after a summary inside a fork.
        stub: ids of what it writes at the start of every path, up to the opening tag.
        heads: ids of what follows, by the number of the path less 1: before its item and after it. Empty without.
        counts: id -> number, of the tokens that are a number of paths.
        schema: the schema.

    Raises:
        UserError: a tag ends an answer.
    """

    ids: dict[str, int]
    eos: frozenset[int]
    blank: frozenset[int]
    breaks: frozenset[int]
    end: int
    chat_end: int
    missing: tuple[int, ...]
    join: tuple[int, ...]
    tail: tuple[int, ...]
    stub: tuple[int, ...]
    heads: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    counts: dict[int, int] = field(default_factory=dict)
    schema: Schema = DEFAULT

    def __post_init__(self) -> None:
        tags = [tag for tag, token in self.ids.items() if token in self.eos]
        if tags:
            raise UserError(
                "ends of an answer that are no tags",
                f"{tags[0]} among them",
                "correct eos_token in tokenizer_config.json, or eos_token_id in generation_config.json",
            )

    def opening(self, role: Role) -> int | None:
        """Id of the opening tag of an element; None if the schema has no such element."""
        pair = self.schema.pairs.get(role)
        return self.ids[pair[0]] if pair else None

    def closing(self, role: Role) -> int | None:
        """The same for the closing tag."""
        pair = self.schema.pairs.get(role)
        return self.ids[pair[1]] if pair else None

    @property
    def opener(self) -> int:
        """Id of the tag after which the paths of a fork begin."""
        return self.ids[self.schema.opener]

    @property
    def first(self) -> int:
        """Id of the first tag that the policy writes to open a fork."""
        return next(token for token in (self.opening("fork"), self.opening("plan"), self.opener) if token is not None)

    def head(self, number: int, item: Sequence[int] = ()) -> tuple[int, ...]:
        """Ids at the start of a path, after its opening tag.

        Args:
            number: of the path, from 1.
            item: ids of its item of the plan.
        """
        if not self.heads:
            return ()
        before, after = self.heads[min(number, len(self.heads)) - 1]
        return (*before, *item, *after) if self.schema.has_items else before


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
