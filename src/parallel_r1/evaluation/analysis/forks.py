"""The forks of one answer: where they open, how long their paths are, what these and the summary say."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from parallel_r1.answers.rollout import Rollout
from parallel_r1.answers.shape import texts_by_path
from parallel_r1.answers.trace import Address


@dataclass
class ForkText:
    """A fork of an answer.

    Attributes:
        at: index of the token that opens it.
        depth: number of paths that it lies in.
        addresses: of the paths.
        lengths: tokens of every path that are drawn one after the other, its tags included. Of a nested fork only the
            longest path counts.
        texts: text of every path, without tags, head and nested forks.
        cut: whether the policy did not close the path: a budget ended it, or the answer ends in it.
        summary: what the thread of the fork goes on with, up to the end of the summary or the next fork, without tags.
    """

    at: int
    depth: int
    addresses: list[Address] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)
    summary: str = ""


def forks_of(rollout: Rollout) -> list[ForkText]:
    """The forks of an answer in reading order, nested ones included."""
    trace = rollout.trace
    if not any(span.address for span in trace.spans):
        return []
    schema = trace.schema
    tokens: Counter[Address] = Counter()
    parents: dict[int, Address] = {}
    paths: dict[int, dict[int, None]] = {}
    closed: dict[Address, bool] = {}
    after: dict[int, str] = {}
    latest: dict[Address, int] = {}  # thread -> the fork that opened in it last
    for span, text in zip(trace.spans, rollout.texts, strict=True):
        tokens[span.address] += len(span.token_ids)
        for level, (fork, path) in enumerate(span.address):
            parents.setdefault(fork, span.address[:level])
            paths.setdefault(fork, {}).setdefault(path)
            latest[span.address[:level]] = fork
        if span.aside:
            continue
        closed[span.address] = span.sampled and text.rstrip().endswith(schema.path[1])
        if span.address in latest:
            fork = latest[span.address]
            after[fork] = after.get(fork, "") + text
    lengths = _lengths(tokens, parents, paths)
    spans = zip(trace.spans, rollout.texts, strict=True)
    texts = texts_by_path(((span.address, text, not span.sampled) for span, text in spans if not span.aside), schema)
    forks = []
    for (fork, numbers), at in zip(paths.items(), trace.fork_at, strict=True):
        summary = after.get(fork, "")
        if schema.summary:
            summary = summary.partition(schema.summary[1])[0]
        own = ForkText(at, len(parents[fork]), summary=schema.without_tags(summary))
        for path in sorted(numbers):
            address = (*parents[fork], (fork, path))
            own.addresses.append(address)
            own.lengths.append(lengths[address])
            own.texts.append(texts.get(fork, {}).get(path, ""))
            own.cut.append(not closed.get(address, False))
        forks.append(own)
    return forks


def _lengths(
    tokens: Counter[Address], parents: dict[int, Address], paths: dict[int, dict[int, None]]
) -> dict[Address, int]:
    """The tokens of every path that are drawn one after the other."""
    lengths: dict[Address, int] = dict(tokens)
    for fork in sorted(parents, key=lambda fork: -len(parents[fork])):  # inner forks first
        parent = parents[fork]
        longest = max(lengths.get((*parent, (fork, path)), 0) for path in paths[fork])
        lengths[parent] = lengths.get(parent, 0) + longest
    return {
        (*parents[fork], (fork, path)): lengths.get((*parents[fork], (fork, path)), 0)
        for fork in paths
        for path in paths[fork]
    }
