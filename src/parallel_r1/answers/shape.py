"""How an answer is built: its forks, paths and words, and how alike its paths are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from parallel_r1.answers.parser import parse_text, text_pieces
from parallel_r1.errors import need


def need_sacrebleu() -> None:
    """Refuse to begin what measures how alike paths are without the package that does it.

    Raises:
        UserError: it is not installed.
    """
    need("sacrebleu", "which says how alike paths are", "rewards")


def self_bleu(text: str) -> float:
    """How alike the paths of a fork are, 0 .. 1: the BLEU of each path against its siblings, as a mean over the paths
    and then over the forks that have siblings. 0 if there is none. Source: Texygen (arXiv 1802.01886)."""
    from sacrebleu import sentence_bleu

    forks: dict[int, dict[int, str]] = {}
    for (words, piece), address in zip(text_pieces(text), parse_text(text).addresses, strict=True):
        if address and piece.tag is None:
            fork, path = address[-1]
            paths = forks.setdefault(fork, {})
            paths[path] = paths.get(path, "") + words
    found = [
        fmean(sentence_bleu(path, [*paths[:at], *paths[at + 1 :]]).score / 100 for at, path in enumerate(paths))
        for paths in (list(fork.values()) for fork in forks.values())
        if len(paths) > 1
    ]
    return fmean(found) if found else 0.0


@dataclass(frozen=True)
class Shape:
    """How an answer is built.

    Attributes:
        paths: of every fork, how many.
        words: all of them, without the tags.
        inside: those in paths.
        first: where its first fork opens, 0 at the start and 1 at the end; None if there is none.
    """

    paths: tuple[int, ...]
    words: int
    inside: int
    first: float | None


def shape(text: str) -> Shape:
    """How an answer is built."""
    found = parse_text(text)
    counts = [
        (0 if piece.tag else len(words.split()), bool(address))
        for (words, piece), address in zip(text_pieces(text), found.addresses, strict=True)
    ]
    return Shape(
        tuple(found.paths),
        sum(words for words, _ in counts),
        sum(words for words, within in counts if within),
        found.fork_at[0] / len(text) if found.fork_at else None,
    )


def mean(values: Iterable[float]) -> float | None:
    """Their mean; None if there is none."""
    found = list(values)
    return fmean(found) if found else None
