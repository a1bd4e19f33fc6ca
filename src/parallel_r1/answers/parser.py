"""Parse an answer: from text (`parse_text`), or from token ids into a trace (`parse`).

A *trace* is a tree written as text. Its trunk may open a fork; a fork holds paths; a summary in the trunk follows the
fork. Every token has an *address*, the (fork, path) pairs that it lies in, outermost first; the trunk has the empty
address. Forks are numbered in reading order over the whole answer, the paths of a fork from 0.

One scanner reads both, so they agree on what a fork is. Parsing never raises: whatever is wrong becomes a `Defect`.
An answer that has been parsed or drawn keeps its structure in `Trace.spans`; only text that no model of ours wrote is
parsed as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from parallel_r1.answers.scanner import Structure, Symbol, scan
from parallel_r1.answers.syntax import TAG_PATTERN, TAGS, Tags, holds_gap
from parallel_r1.answers.trace import TRUNK, Sampler, Span, Trace


def text_pieces(text: str) -> list[tuple[str, Symbol]]:
    """A text cut at its tags, every part with the symbol that the scanner reads."""
    pieces, at = [], 0
    for number, part in enumerate(TAG_PATTERN.split(text)):
        if number % 2:
            pieces.append((part, Symbol(part, at)))
        elif part:
            blank = part.isspace()
            pieces.append((part, Symbol(None, at, blank, blank and holds_gap(part))))
        at += len(part)
    return pieces


def parse_text(text: str) -> Structure:
    """The structure of a text. Places are characters; `addresses` and `given` have one entry per part of
    `text_pieces`."""
    return scan(symbol for _, symbol in text_pieces(text))


def trunk(text: str) -> str:
    """The part of a text that lies outside every path; a verifier reads this alone."""
    pieces = text_pieces(text)
    addresses = scan(symbol for _, symbol in pieces).addresses
    return "".join(words for (words, _), address in zip(pieces, addresses, strict=True) if address == TRUNK)


def parse_ids(token_ids: Sequence[int], tags: Tags) -> Structure:
    """The structure of an answer's token ids. Places are tokens; `addresses` and `given` have one entry per token."""
    kinds: dict[int, str] = dict.fromkeys(tags.blank, "blank") | dict.fromkeys(tags.breaks, "break")
    kinds |= dict.fromkeys(tags.eos, "end") | {token: tag for tag, token in tags.ids.items()}
    symbols: list[Symbol] = []
    lengths: list[int] = []
    at = 0
    for kind, run in groupby(token_ids, key=kinds.get):  # a run of plain text is one symbol
        length = len(list(run))
        tag = kind if kind in TAGS else None
        size = 1 if tag else length
        for start in range(at, at + length, size):
            symbols.append(Symbol(tag, start, kind in ("blank", "break"), kind == "break", kind == "end"))
            lengths.append(size)
        at += length
    structure = scan(symbols)
    structure.addresses = [address for address, n in zip(structure.addresses, lengths, strict=True) for _ in range(n)]
    structure.given = [given for given, n in zip(structure.given, lengths, strict=True) for _ in range(n)]
    return structure


def parse(
    token_ids: Sequence[int], tags: Tags, *, sampler: Sampler = "isolated", prompt_ids: Sequence[int] = ()
) -> Trace:
    """Parse an answer into a trace with the same token ids. Never raises.

    Args:
        token_ids: the answer, without the prompt.
        tags: the ids of the tags.
        sampler: decides which tokens count as sampled. Under `isolated` and `causal_join` the runtime writes `<Path>`
            and the join, so these are given; under `sequential` the policy writes everything.
        prompt_ids: the prompt, kept as it is; tags in it are text.
    """
    structure = parse_ids(token_ids, tags)
    sampled = [sampler == "sequential" or not given for given in structure.given]
    places = zip(structure.addresses, sampled, token_ids, strict=True)
    spans = tuple(
        Span(tuple(token for *_, token in run), *key) for key, run in groupby(places, key=lambda place: place[:2])
    )
    return Trace(tuple(prompt_ids), spans, sampler=sampler, defects=tuple(structure.defects))
