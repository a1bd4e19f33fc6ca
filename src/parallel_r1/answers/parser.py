"""Parse an answer: from text (`parse_text`), or from token ids into a trace (`parse`).

A *trace* is a tree written as text. Its trunk may open a fork; a fork holds paths; a summary in the trunk follows the
fork. Every token has an *address*, the (fork, path) pairs that it lies in, outermost first; the trunk has the empty
address. Forks are numbered in reading order over the whole answer, the paths of a fork from 0.

One scanner reads both, so they agree on what a fork is. Parsing never raises: whatever is wrong becomes a `Defect`.
An answer that has been parsed or drawn keeps its structure in `Trace.spans`; only text that no model of ours wrote is
parsed as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from parallel_r1.answers.scanner import scan
from parallel_r1.answers.schemas import DEFAULT, SCHEMAS, Schema
from parallel_r1.answers.symbols import Content, Structure, Symbol
from parallel_r1.answers.syntax import Tags, fits
from parallel_r1.answers.trace import TRUNK, Address, Defect, Sampler, Span, Trace


@dataclass(frozen=True)
class Piece:
    """A part of a text: one tag, or text between two tags that has one address and one writer.

    Attributes:
        text: the tag, or the text.
        address: where it lies.
        given: whether the runtime writes it.
        is_tag: whether it is a tag.
    """

    text: str
    address: Address
    given: bool
    is_tag: bool


def parse_text(text: str, schema: Schema = DEFAULT) -> Structure:
    """The structure of a text. Places are characters."""
    symbols, at = [], 0
    blanks = (schema.before_path, schema.before_join, schema.gap)
    for number, part in enumerate(schema.pattern.split(text)):
        if number % 2:
            symbols.append(Symbol(part, at, part))
        elif part:
            blank = part.isspace()
            gap = blank and any(white and fits(white, part) for white in blanks)
            count = int(part) if len(part) < 3 and part.isdecimal() and part.isascii() else None
            symbols.append(Symbol(None, at, part, blank, gap, count=count))
        at += len(part)

    def head(number: int, item: Content) -> str:
        return schema.head_of(number, str(item or ""))

    return scan(symbols, schema, head)


def foreign_tag(text: str, schema: Schema) -> Defect | None:
    """The first tag in a text that its schema lacks and another schema that ships here has. Such a text mixes two
    schemas, or has been read in the wrong one: its forks would be plain text."""
    others = {tag: other.name for other in reversed(SCHEMAS.values()) for tag in other.tags if tag not in schema.tags}
    match = re.search("|".join(map(re.escape, sorted(others, key=len, reverse=True))), text) if others else None
    if match is None:
        return None
    name, tag = others[match[0]], match[0]
    return Defect("foreign-tag", match.start(), f"{tag} is a tag of {name}, and this is read in {schema.name}")


def defects_of(text: str, schema: Schema = DEFAULT) -> list[Defect]:
    """Where a text that no model of ours wrote breaks its schema, in order of place, with `foreign_tag`."""
    foreign = foreign_tag(text, schema)
    defects = parse_text(text, schema).defects + ([foreign] if foreign else [])
    return sorted(defects, key=lambda defect: defect.at)


def pieces(text: str, schema: Schema = DEFAULT) -> list[Piece]:
    """A text cut at its tags, and where its address or its writer changes."""
    cut, at = [], 0
    for address, given, length in parse_text(text, schema).runs:
        part = text[at : at + length]
        cut.append(Piece(part, address, given, part in schema.roles))
        at += length
    return cut


def trunk(text: str, schema: Schema = DEFAULT) -> str:
    """The part of a text that lies outside every path; a verifier reads this alone."""
    return "".join(piece.text for piece in pieces(text, schema) if piece.address == TRUNK)


def parse_ids(token_ids: Sequence[int], tags: Tags) -> Structure:
    """The structure of an answer's token ids. Places are tokens."""
    kinds: dict[int, str] = dict.fromkeys(tags.blank, "blank") | dict.fromkeys(tags.breaks, "break")
    kinds |= dict.fromkeys(tags.eos, "end") | {token: tag for tag, token in tags.ids.items()}
    symbols: list[Symbol] = []
    at = 0
    for kind, run in groupby(token_ids, key=kinds.get):  # a run of plain text is one symbol
        content = tuple(run)
        if kind in tags.ids:
            symbols += (Symbol(kind, at + place, content[place : place + 1]) for place in range(len(content)))
        else:
            count = tags.counts.get(content[0]) if len(content) == 1 else None
            symbols.append(Symbol(None, at, content, kind in ("blank", "break"), kind == "break", kind == "end", count))
        at += len(content)

    def head(number: int, item: Content) -> tuple[int, ...]:
        assert not isinstance(item, str)
        return tags.head(number, item)

    return scan(symbols, tags.schema, head)


def parse(
    token_ids: Sequence[int], tags: Tags, *, sampler: Sampler = "isolated", prompt_ids: Sequence[int] = ()
) -> Trace:
    """Parse an answer into a trace with the same token ids. Never raises.

    Args:
        token_ids: the answer, without the prompt.
        tags: the ids of the tags.
        sampler: decides which tokens count as sampled. Under `isolated` and `causal_join` the runtime writes the
            start of every path and the join, so these are given; under `sequential` the policy writes everything.
        prompt_ids: the prompt, kept as it is; tags in it are text.
    """
    structure = parse_ids(token_ids, tags)
    spans, at = [], 0
    places = [(address, sampler == "sequential" or not given, length) for address, given, length in structure.runs]
    for (address, sampled), run in groupby(places, key=lambda place: place[:2]):
        end = at + sum(length for *_, length in run)
        spans.append(Span(tuple(token_ids[at:end]), address, sampled))
        at = end
    return Trace(tuple(prompt_ids), tuple(spans), sampler=sampler, defects=tuple(structure.defects), schema=tags.schema)
