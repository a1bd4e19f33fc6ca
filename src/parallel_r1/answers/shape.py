"""How an answer is built: its forks, paths and words, and how alike its paths are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from parallel_r1.answers.parser import parse_text, pieces
from parallel_r1.answers.rollout import Rollout
from parallel_r1.answers.schemas import DEFAULT, Schema
from parallel_r1.answers.trace import Address
from parallel_r1.errors import need


def need_sacrebleu() -> None:
    """Refuse to measure how alike paths are without the package that computes BLEU.

    Raises:
        UserError: sacrebleu is not installed.
    """
    need("sacrebleu", "which computes BLEU", "rewards")


def paths_of_rollout(rollout: Rollout) -> tuple[tuple[str, ...], ...]:
    """Texts of the paths of every fork, read from the spans; see `path_texts`."""
    spans = zip(rollout.trace.spans, rollout.texts, strict=True)
    return path_texts(((span.address, text, not span.sampled) for span, text in spans), rollout.trace.schema)


def paths_of_text(text: str, schema: Schema = DEFAULT) -> tuple[tuple[str, ...], ...]:
    """The same for an answer that has no spans because no model of ours wrote it, such as a teacher's."""
    return path_texts(((piece.address, piece.text, piece.given) for piece in pieces(text, schema)), schema)


def path_texts(parts: Iterable[tuple[Address, str, bool]], schema: Schema = DEFAULT) -> tuple[tuple[str, ...], ...]:
    """Texts of the paths of every fork, without heads and tags, in reading order of their first text; see
    `texts_by_path`."""
    return tuple(tuple(paths.values()) for paths in texts_by_path(parts, schema).values())


def texts_by_path(parts: Iterable[tuple[Address, str, bool]], schema: Schema = DEFAULT) -> dict[int, dict[int, str]]:
    """Fork -> path -> its text, without head and tags. Forks and paths are in reading order of their first text.

    Args:
        parts: address, text and whether the runtime gave it, of parts of the answer in reading order. Text inside a
            nested fork belongs to the nested fork only. A path without text is left out.
    """
    forks: dict[int, dict[int, str]] = {}
    begun: set[Address] = set()
    for address, part, given in parts:
        words = "" if given and address not in begun else schema.without_tags(part)
        if not given:
            begun.add(address)
        if address and words:
            fork, path = address[-1]
            paths = forks.setdefault(fork, {})
            paths[path] = paths.get(path, "") + words
    return forks


def self_bleu(forks: Iterable[Sequence[str]]) -> float:
    """How alike sibling paths are, 0 .. 1: BLEU of every path against its siblings, averaged over the paths of a fork
    and then over the forks with at least two paths; 0 without such a fork. Source: Texygen (arXiv 1802.01886).

    Args:
        forks: texts of the paths of every fork.
    """
    scores = [fmean(_bleus(paths)) for paths in forks if len(paths) > 1]
    return fmean(scores) if scores else 0.0


ORDER = 4
"""Words of the longest n-grams of BLEU."""


def _bleus(paths: Sequence[str]) -> list[float]:
    """`sacrebleu.sentence_bleu` of every path against its siblings, 0 .. 1. The n-grams of every path are counted once
    instead of once per sibling, which is three times as fast for eight paths."""
    from sacrebleu.metrics import BLEU

    tokenize = BLEU(effective_order=True).tokenizer
    words = [tokenize(path.rstrip()).split() for path in paths]
    counts = [
        Counter(tuple(own[at : at + n]) for n in range(1, ORDER + 1) for at in range(len(own) - n + 1)) for own in words
    ]
    most: dict[tuple[str, ...], tuple[int, int]] = {}  # n-gram -> the largest two of its counts
    for own_counts in counts:
        for gram, count in own_counts.items():
            first, second = most.get(gram, (0, 0))
            most[gram] = (count, first) if count > first else (first, max(second, count))
    scores = []
    for at, (own, own_counts) in enumerate(zip(words, counts, strict=True)):
        correct, total = [0] * ORDER, [0] * ORDER
        for gram, count in own_counts.items():
            first, second = most[gram]
            total[len(gram) - 1] += count
            correct[len(gram) - 1] += min(count, second if count == first else first)
        others = [len(other) for place, other in enumerate(words) if place != at]
        closest = min(others, key=lambda size: (abs(size - len(own)), size))
        score = BLEU.compute_bleu(correct, total, len(own), closest, smooth_method="exp", effective_order=True)
        scores.append(score.score / 100)
    return scores


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


def shape(text: str, schema: Schema = DEFAULT) -> Shape:
    """Forks, paths and words of an answer that has no spans because no model of ours wrote it, such as a teacher's."""
    structure = parse_text(text, schema)
    counts = [(0 if piece.is_tag else len(piece.text.split()), bool(piece.address)) for piece in pieces(text, schema)]
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
