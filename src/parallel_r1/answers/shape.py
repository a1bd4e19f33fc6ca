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
    """Forks, paths and words of an answer.

    Attributes:
        paths: number of paths of every fork.
        words: number of words, without tags.
        inside: number of words in paths.
        first: character at which the first fork opens, as a share of the text, 0 .. 1; None without a fork.
    """

    paths: tuple[int, ...]
    words: int
    inside: int
    first: float | None


def shape(text: str) -> Shape:
    """Forks, paths and words of an answer that has no spans because no model of ours wrote it, such as a teacher's."""
    structure = parse_text(text)
    counts = [
        (0 if symbol.tag else len(words.split()), bool(address))
        for (words, symbol), address in zip(text_pieces(text), structure.addresses, strict=True)
    ]
    return Shape(
        tuple(structure.paths),
        sum(words for words, _ in counts),
        sum(words for words, within in counts if within),
        structure.fork_at[0] / len(text) if structure.fork_at else None,
    )


def mean(values: Iterable[float]) -> float | None:
    """Arithmetic mean; None without values."""
    numbers = list(values)
    return fmean(numbers) if numbers else None
