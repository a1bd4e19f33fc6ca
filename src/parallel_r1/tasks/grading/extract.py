"""The final answer of a text.

There are two settings. `strict` is for training on our own format: `Final Answer:` and `\\boxed{}`. `lenient` is for
evaluating other models: bold, headings, `####`, `The answer is`, and any case. Both read answers of several lines, and
leave out the tokens and tags that end a text.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Literal

from parallel_r1.answers.syntax import FINAL_ANSWER, Box, boxes

Find = Literal["strict", "lenient"]
"""How a final answer is located."""
_END = re.compile(
    r"<\|(?!im_start|start|begin|user|assistant|system|channel|message)[^|<>\n]{1,40}\|>|<｜(?!begin)[^｜<>\n]{1,40}｜>|"
    r"</s>|<eos>|<bos>|<pad>|<unk>|<end_of_turn>|<EOS>|\[EOS\]|\[PAD\]|\[/INST\]"
)
"""A token that ends a text."""
_TAG = re.compile(r"(?:\s*</[a-zA-Z_]{1,20}>)+\s*$")
_FENCE = re.compile(r"^```[a-zA-Z]*\s*\n?|\n?\s*```.*$", re.DOTALL)
_RULE = re.compile(r"^[-=]{3,}\s*\n\s*")
"""The line under a heading."""
_DISPLAY = re.compile(r"(?<!\\)\\\[")
_LONGEST = 4000
"""Most characters that are read behind a mark; an answer is shorter by far."""
_TURNS = 8
"""Most tokens that end a text at which a final answer is looked for."""
_STRICT = re.compile(re.escape(FINAL_ANSWER))
_SIGN = r"[ \t]*[*_]*[ \t]*(?:is\b|[:：=—–→]|->)?[ \t]*[*_]*:?"
"""What may stand between the name of an answer and the answer."""
_STRONG = re.compile(
    r"(?:^[ \t#*_>-]{0,20}(?:the\s+|my\s+)?final[\s_]*answer\b|"
    rf"\bfinal[\s_]*answer\b(?=\s*[*_]*\s*(?:[:：=—–→]|->|is\b)))>?{_SIGN}",
    re.IGNORECASE | re.MULTILINE,
)
_WEAK = re.compile(
    r"<(?:final_)?answer>|^[ \t]*####(?=[ \t]*\S)|^[ \t#*_>-]{0,20}answer[ \t]*[*_:]*[ \t]*$|"
    rf"\banswer\b[^.\n:=]{{0,60}}?\bis\b{_SIGN}|"
    rf"\b(?:answer|solution|result)\b(?=[ \t]*[*_]*[ \t]*(?:is\b|[:：=])){_SIGN}",
    re.IGNORECASE | re.MULTILINE,
)
_BETWEEN = re.compile(r"[\s$.]*(?:[,;&]|,?\s*(?:\\text\s*\{)?\s*(?:and|or)\s*\}?)(?:\\[,; ]|\\q?quad|[\s$])*")
_SENTENCE = re.compile(r"(?<=[^\s.])[.!]\s+(?=[A-Z])")


def final_answer(trunk: str, find: Find = "strict") -> str | None:
    """The final answer of a trunk; None if it has none.

    It is the text behind the last mark, to the end of the line or of the block of mathematics or code that begins
    there; or the contents of the last `\\boxed{}`, if that comes later. What follows a token that ends a text does not
    count.

    Args:
        find: which marks count. With `lenient`, boxes with `and`, `or` or a comma between them are one answer.
    """
    if find == "strict" and FINAL_ANSWER not in trunk and "box" not in trunk:
        return None  # most paths have neither mark, and looking for both takes long
    for end in islice(_END.finditer(trunk), _TURNS):
        if (answer := _located(trunk[: end.start()], find)) is not None:
            return answer
    return _located(trunk, find)


def without_cut_answer(trunk: str) -> str:
    """A trunk that a budget ended, without a final answer that runs up to its end: 7 may be the beginning of 72."""
    at = trunk.rfind(FINAL_ANSWER)
    box = max(boxes(trunk), default=None)
    if at < 0 or (box is not None and box.start > at) or "\n" in trunk[at + len(FINAL_ANSWER) :].lstrip():
        return trunk
    return trunk[:at]


def _located(text: str, find: Find) -> str | None:
    closed = boxes(text)
    box = None if not closed else closed[-1] if find == "strict" else _joined(text, closed)
    mark = _last(_STRICT if find == "strict" else _STRONG, text)
    if mark is not None and (box is None or mark.start() > box.start):
        answer = _behind(text[mark.end() :], find)
        if find == "strict" or box is None or _is_plausible(answer):
            return answer
    if box is not None:
        return box.content.strip()
    weak = _last(_WEAK, text) if find == "lenient" else None
    return _behind(text[weak.end() :], find) if weak else None


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = None
    for last in pattern.finditer(text):  # noqa: B007
        pass
    return last


def _joined(text: str, closed: list[Box]) -> Box:
    """The last box, together with those before it that are the same answer: `\\boxed{3}` and `\\boxed{4}`."""
    last = closed[-1]
    start, contents = last.start, [last.content]
    for box in reversed(closed[:-1]):
        if box.end > start or not _BETWEEN.fullmatch(text, box.end, start):
            break
        start = box.start
        contents.insert(0, box.content)
    return Box(start, last.end, ", ".join(contents))


def _behind(rest: str, find: Find) -> str:
    """The answer at the beginning of a text: its first line, or all lines of a block that begins in it."""
    lines = _RULE.sub("", rest[:_LONGEST].lstrip(" \t\r\n*_:")).split("\n")
    block = lines[0]
    for line in lines[1:]:
        if _is_closed(block):
            break
        block += "\n" + line
    answer = block if _is_closed(block) else lines[0]
    if answer.startswith("```"):
        answer = _FENCE.sub("", answer)
    if find == "lenient":
        answer = _SENTENCE.split(answer, maxsplit=1)[0]
    return _TAG.sub("", answer).strip()


def _is_closed(block: str) -> bool:
    """Whether all environments, displays and fences that begin in a text end in it."""
    return (
        block.count(r"\begin{") <= block.count(r"\end{")
        and block.count("$$") % 2 == 0
        and len(_DISPLAY.findall(block)) <= block.count(r"\]")
        and block.count("```") % 2 == 0
    )


def _is_plausible(answer: str) -> bool:
    """Whether what stands behind a mark is an answer rather than the rest of a sentence."""
    return bool(re.search(r"[\d\\$]", answer)) or 0 < len(answer.split()) <= 3
