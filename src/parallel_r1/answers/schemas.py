"""Schemas: how answers with forks are written, and who writes which token.

A schema is data. It names the tags, and says what the runtime writes: where a path begins, and when all paths have
ended. Everything that reads or writes a fork asks the schema: parser, sampler, scorers, repair, conversion and reports.
The tags of a fork are spelt in this file alone.

An answer opens a fork with the *opener*: the opening tag of the fork or, where a schema has a plan, the closing tag of
the plan. A plan lists its items; as many paths open as there are items. Then the runtime writes, in this order:

* at the start of every path: `before_path`, the opening tag, and `head`;
* once all paths have ended, the *join*: `before_join`, the closing tag of the fork, `gap` and the opening tag of the
  summary; without a summary only the first two; with a summary inside the fork only the first and the last;
* after a summary inside the fork, the *tail*: `before_join` and the closing tag of the fork.

Sources: Parallel-R1 (arXiv 2509.07980), ThreadWeaver (2512.07843), Multiverse (2506.09991), NPR (2512.07461).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from parallel_r1.errors import UserError, nearest

Pair = tuple[str, str]
"""An opening and a closing tag."""
Role = Literal["fork", "plan", "item", "path", "summary"]
ROLES: tuple[Role, ...] = ("fork", "plan", "item", "path", "summary")
MOST_PATHS = 64
"""The largest number of paths of a fork."""
NUMBER, ITEM = "{number}", "{item}"
"""What stands in a head for the number of a path, from 1, and for the item of the plan that it works on."""
FIX = "correct the schema; docs/schemas.md has examples"


@dataclass(frozen=True)
class Schema:
    """How a fork is written.

    Attributes:
        name: what recipes, commands and model folders call it.
        path: the tags around a path.
        fork: the tags around a fork; None where the plan opens it.
        plan: the tags around the list of what the paths will do; None without a plan.
        item: the tags around one item of the plan. The closing one may be left out in an answer.
        summary: the tags around the summary; None where the trunk just goes on.
        inside: whether the summary stands inside the fork.
        head: text at the start of a path, after its opening tag. `{number}` is its number, `{item}` its item.
        before_path: white space before every path.
        before_join: white space after the last path, and before the closing tag of a fork with its summary inside.
        gap: white space between a fork and its summary.
        nests: whether a path may fork again.

    Raises:
        UserError: tags that overlap, or parts that contradict each other.
    """

    name: str
    path: Pair
    fork: Pair | None = None
    plan: Pair | None = None
    item: Pair | None = None
    summary: Pair | None = None
    inside: bool = False
    head: str = ""
    before_path: str = ""
    before_join: str = ""
    gap: str = ""
    nests: bool = True

    def __post_init__(self) -> None:
        for tag in self.tags:
            if not tag or tag != tag.strip() or tag.isalnum():
                raise UserError("tags such as '<Path>'", f"{tag!r}", FIX)
            over = [other for other in self.tags if other is not tag and tag in other]
            if over:
                raise UserError("tags of which none is part of another", f"{tag!r} in {over[0]!r}", FIX)
        wrong = {
            "a plan has items": (self.plan is None) != (self.item is None),
            "a fork opens with its own tag or with a plan": self.fork is None and self.plan is None,
            "a fork ends with its own tag or with a summary": self.fork is None and self.summary is None,
            "a summary stands inside a fork that has tags": self.inside and not (self.fork and self.summary),
            "only a plan has an item for the head of a path": ITEM in self.head and self.plan is None,
            "a head has one {number} and one {item} at most": max(map(self.head.count, (NUMBER, ITEM))) > 1,
            "a gap stands before a summary outside the fork": bool(self.gap) and not self.apart,
            "a head has no placeholder but {number} and {item}": bool(
                re.search(r"{\w*}", self.head_of(1, "1") if self.head else "")
            ),
            "tags stand in no head": any(tag in self.head for tag in self.tags),
            "only white space stands between tags": bool((self.before_path + self.before_join + self.gap).strip()),
        }
        broken = [rule for rule, holds in wrong.items() if holds]
        if broken:
            raise UserError(f"a schema in which {broken[0]}", f"'{self.name}'", FIX)

    @property
    def apart(self) -> bool:
        """Whether the fork closes before its summary begins."""
        return self.fork is not None and self.summary is not None and not self.inside

    @cached_property
    def pairs(self) -> dict[Role, Pair]:
        """The tags of every element that the schema has."""
        every = {role: getattr(self, role) for role in ROLES}
        return {role: pair for role, pair in every.items() if pair is not None}

    @cached_property
    def roles(self) -> dict[str, tuple[Role, bool]]:
        """Tag -> the element that it belongs to, and whether it opens it."""
        return {tag: (role, not place) for role, pair in self.pairs.items() for place, tag in enumerate(pair)}

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags."""
        return tuple(tag for role in ROLES for tag in (getattr(self, role) or ()))

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """One tag, as a group, so that `pattern.split(text)` keeps the tags at odd places."""
        return re.compile("(" + "|".join(map(re.escape, self.tags)) + ")")

    @property
    def opener(self) -> str:
        """The tag after which the paths of a fork begin."""
        return self.plan[1] if self.plan else self.pairs["fork"][0]

    @property
    def join(self) -> str:
        """What the runtime writes when all paths of a fork have ended."""
        close = self.fork[1] if self.fork and not self.inside else ""
        return self.before_join + close + self.gap + (self.summary[0] if self.summary else "")

    @property
    def has_items(self) -> bool:
        """Whether a path begins with its item of the plan."""
        return ITEM in self.head

    @property
    def tail(self) -> str:
        """What the runtime writes after a summary."""
        return self.before_join + self.fork[1] if self.fork and self.inside else ""

    @property
    def stub(self) -> str:
        """What the runtime writes at the start of every path, as far as it is the same for all."""
        return self.before_path + self.path[0]

    def head_of(self, number: int, item: str = "") -> str:
        """The text at the start of a path, after its opening tag.

        Args:
            number: of the path, from 1.
            item: of the plan.
        """
        return self.head.replace(NUMBER, str(number)).replace(ITEM, item)

    def write(
        self,
        paths: Sequence[str],
        summary: str | None,
        items: Sequence[str] = (),
        goal: str = "",
        *,
        counted: bool = False,
    ) -> str:
        """A fork as text, as this schema has it.

        Args:
            paths: texts of the paths, without their heads.
            summary: text of the summary, or what follows the fork where the schema has none; None for a fork without
                one, a defect where the schema has summaries.
            items: of the plan, one for each path; "1", "2" and so on if left out.
            goal: text of the plan before its items.
            counted: whether the number of paths stands at the start of a fork without a plan.
        """
        text = self.fork[0] if self.fork else ""
        if counted and not self.plan:
            text += f"{len(paths)}"
        items = items or [f"{number}" for number in range(1, len(paths) + 1)]
        if self.plan and self.item:
            lines = [*([goal] if goal else []), *(f"{self.item[0]}{item}{self.item[1]}" for item in items)]
            text += self.before_path * bool(self.fork) + self.before_path.join([self.plan[0], *lines, self.plan[1]])
        for number, path in enumerate(paths, 1):
            item = items[number - 1] if number <= len(items) else ""
            text += self.stub + self.head_of(number, item) + path + self.path[1]
        if self.summary is None:
            return text + self.join + (summary or "")
        if summary is None:
            return text + (self.before_join + self.fork[1] if self.fork else "")
        return text + self.join + summary + self.summary[1] + self.tail

    def without_tags(self, text: str, replacement: str = "") -> str:
        """A text with `replacement` in the place of every tag."""
        return self.pattern.sub(lambda _: replacement, text)

    def to_dict(self) -> dict[str, Any]:
        """The schema as plain data; `Schema.from_dict` reads it back."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "", False)} | {
            "nests": self.nests
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], place: str) -> Schema:
        """The schema of plain data, such as a table of TOML.

        Args:
            place: where the data are from, for errors.

        Raises:
            UserError: an unkeys key, one that is missing, or a value of another type.
        """
        keys = {field.name: field for field in fields(cls)}
        for key, value in values.items():
            if key not in keys:
                raise UserError(f"keys of a schema in {place}", f"'{key}'", nearest(key, list(keys)))
            kind = bool if key in ("inside", "nests") else str
            pair = key in ROLES
            texts = list(value) if pair and isinstance(value, list | tuple) else [value]
            if len(texts) != 1 + pair or not all(isinstance(text, str if pair else kind) for text in texts):
                form = "a pair of tags" if pair else "true or false" if kind is bool else "a text"
                raise UserError(f"{form} for '{key}' in {place}", f"{value!r:.60}", FIX)
        missing = [key for key in ("name", "path") if key not in values]
        if missing:
            raise UserError(f"'{missing[0]}' in {place}", "a schema without it", FIX)
        given: dict[str, Any] = {key: tuple(value) if key in ROLES else value for key, value in values.items()}
        return cls(**given)


def _pair(name: str) -> Pair:
    return f"<{name}>", f"</{name}>"


def _planned(name: str, plan: str, item: str, path: str, fork: str = "", **more: Any) -> Schema:
    """A schema with a plan, every element of which stands on a line of its own, and with numbered paths."""
    return Schema(
        name,
        path=_pair(path),
        fork=_pair(fork) if fork else None,
        plan=_pair(plan),
        item=_pair(item),
        head="\n{number}:",
        before_path="\n",
        before_join="\n",
        **more,
    )


DEFAULT = Schema("parallel-r1", fork=_pair("Parallel"), path=_pair("Path"), summary=_pair("Summary"), gap="\n")
"""The schema of Parallel-R1: six tags, no plan, and paths that do not know their number."""
NUMBERED = Schema(
    "parallel-r1-numbered", DEFAULT.path, DEFAULT.fork, summary=DEFAULT.summary, gap=DEFAULT.gap, head="{number}: "
)
"""The same with the number of every path at its start, so that paths can share out the work."""
SCHEMAS = {
    schema.name: schema
    for schema in (
        DEFAULT,
        NUMBERED,
        _planned("threadweaver", "Outlines", "Outline", "Thread", fork="Parallel"),
        _planned("multiverse", "Goal", "Outline", "Path", fork="Parallel", summary=_pair("Conclusion"), inside=True),
        _planned("npr", "guideline", "plan", "step", summary=_pair("takeaway")),
    )
}
"""The schemas that ship here, by name."""


def load_schema(name: str) -> Schema:
    """The schema of a name, or in a TOML file.

    Raises:
        UserError: no such name or file, or a file that holds no schema.
    """
    if name in SCHEMAS:
        return SCHEMAS[name]
    path = Path(name)
    if path.suffix != ".toml":
        expected = f"a schema among {', '.join(SCHEMAS)}, or a TOML file"
        raise UserError(expected, f"'{name}'", nearest(name, list(SCHEMAS)))
    if not path.is_file():
        raise UserError("a TOML file with a schema", f"no file {name}", "check the path")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError("a TOML file with a schema", f"'{name}' ({error})", FIX) from error
    schema = Schema.from_dict(values, name)
    if not schema.name or SCHEMAS.get(schema.name, schema) != schema:
        raise UserError("a name of its own for a schema", f"'{schema.name}' in {name}", "give another name")
    return schema
