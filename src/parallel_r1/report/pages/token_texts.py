"""The text of every token of a span, where there is a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parallel_r1.answers.trace import Span
from parallel_r1.report.pages.pack import Cut, units


def cutter(decode: Callable[[Sequence[int]], str]) -> Cut:
    """A function that says where the tokens of a span lie in its text.

    Args:
        decode: token ids to text, special tokens included.
    """
    texts: dict[int, str] = {}

    def cut(span: Span, text: str) -> list[int]:
        for token in span.token_ids:
            if token not in texts:
                texts[token] = decode([token])
        parts = [texts[token] for token in span.token_ids]
        if "".join(parts) != text:
            parts = _aligned(span.token_ids, parts, text, decode)
        return [units(part) for part in parts]

    return cut


def _aligned(
    token_ids: Sequence[int], alone: Sequence[str], text: str, decode: Callable[[Sequence[int]], str]
) -> list[str]:
    """The text cut into one part per token where tokens alone decode differently: a token of an ending has no text, one
    of several tokens that share a character has none but the last, and a space may be missing before a word."""
    parts, at, waiting = [""] * len(token_ids), 0, 0
    for index, part in enumerate(alone):
        if "\ufffd" in part:
            part = decode(token_ids[waiting : index + 1])
        if "\ufffd" in part:
            continue
        waiting = index + 1
        if not part:
            continue
        start = text.find(part, at, at + len(part) + 2)  # a space or a mark of a word may stand before it
        if start >= 0:
            parts[index] = text[at : start + len(part)]
            at = start + len(part)
    last = max((index for index, part in enumerate(parts) if part), default=0)
    parts[last] += text[at:]
    return parts
