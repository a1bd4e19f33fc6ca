"""Control of branches at run time: which open paths of an answer are closed because of what their siblings did.

`closable` depends on the threads of one answer alone, and is asked once all tokens of a step have been accepted:
siblings of one step are then judged together, whatever their order in the batch. The settings are `settings.Branches`.

A closed path gets its closing tag as a given token, exactly as one that the budget cuts, and so the trace needs nothing
more for exact scoring. Why it was closed is no part of the answer; how many were is counted in `Counts.closed`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from parallel_r1.generation.tree import Fork, Run, Thread
from parallel_r1.tasks.base import Task, conclusion_of

Conclude = Callable[[str], str | None]
"""The text of a path, without tags, to what it concludes; None or "" if nothing."""
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def concluded(text: str, task: Task | None = None) -> str | None:
    """What a path concludes: its final answer, or what the task's method `conclusion` reads; without such a method, its
    last number."""
    own = conclusion_of(task, text, cut=False)
    if own is not None or hasattr(task, "conclusion"):
        return own
    numbers = _NUMBER.findall(text)
    return numbers[-1].rstrip(",") if numbers else None


def closable(trunk: Thread, conclude: Conclude) -> list[Thread]:
    """The paths of an answer that its settings close now.

    Args:
        conclude: reads what a path concludes from its text, tags included.
    """
    closed = []
    for paths, wanted in _open_forks(trunk):
        ended = [path for path in paths if path.then == "end" and not path.closed]
        if not ended:
            continue
        going = [path for path in paths if _may_close(path)]
        if going and (len(ended) >= wanted or _agree(ended, conclude)):
            closed += going
        elif going:
            closed += _stragglers(going, ended, len(paths))
    return closed


def _open_forks(thread: Thread) -> Iterator[tuple[list[Thread], int]]:
    """The paths of every fork that has not been joined, and how many of them are wanted."""
    fork = thread.parts[-1] if thread.parts else None
    if not thread.waiting or not isinstance(fork, Fork):
        return
    yield fork.paths, len(fork.paths) - fork.spare
    for path in fork.paths:
        yield from _open_forks(path)


def _may_close(path: Thread) -> bool:
    """Whether a path may end here: it draws, has drawn since its head or its last join, and is in no part of a fork."""
    free = path.then == "sample" and not path.waiting and not path.counting and not path.in_summary
    return free and path.drawn > 0


def _agree(ended: Sequence[Thread], conclude: Conclude) -> bool:
    """Whether enough of the ended paths have the same conclusion. It is read once per path."""
    agree = ended[0].answer.sampling.branches.agree
    if agree is None:
        return False
    for path in ended:
        if path.conclusion is None:
            path.conclusion = "" if was_cut(path) else " ".join((conclude(_text(path)) or "").split())
    votes = Counter(path.conclusion for path in ended if path.conclusion)
    return max(votes.values(), default=0) >= agree


def _text(path: Thread) -> str:
    """The text of a path outside its forks, without what the runtime gave for forks and without tags."""
    decode, tags = path.answer.decode, path.answer.tags
    assert decode is not None
    tokens = [token for part in path.parts if isinstance(part, Run) and not part.structural for token in part.tokens]
    return tags.schema.without_tags(decode(tokens))


def was_cut(path: Thread) -> bool:
    """Whether the closing tag of an ended path was given, not drawn."""
    last = path.parts[-1]
    return isinstance(last, Run) and last.structural


def _stragglers(going: Sequence[Thread], ended: Sequence[Thread], count: int) -> list[Thread]:
    """The open paths that are too long, once half of all `count` paths have ended. The length of a path is that of its
    longest chain of tokens."""
    factor = ended[0].answer.sampling.branches.straggler
    if factor is None or 2 * len(ended) < count:
        return []
    parent = ended[0].parent
    assert parent is not None
    most = factor * median(path.length - parent.length for path in ended)
    return [path for path in going if path.length - parent.length > most]
