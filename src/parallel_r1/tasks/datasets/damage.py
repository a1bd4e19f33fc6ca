"""Damage to the problems of a set: cut statements, missing figures, lost LaTeX commands, copies and so on."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from parallel_r1.answers.syntax import last_box
from parallel_r1.tasks.datasets.sources import Record
from parallel_r1.tasks.datasets.splits import words
from parallel_r1.tasks.grading.text import spelling, tidy

Kind = Literal[
    "truncated",
    "figure",
    "lost-command",
    "control-character",
    "language",
    "answer",
    "given-away",
    "duplicate",
    "conflict",
]
MEANING: dict[str, str] = {
    "truncated": "the statement ends too early, or asks nothing",
    "figure": "it speaks of a figure that is not there",
    "lost-command": "the beginning of a LaTeX command was read as an escape, such as \\f of \\frac",
    "control-character": "a control character that is no line break or tab, or a line break written out",
    "language": "it is not in English",
    "answer": "the answer cannot be one: it is cut, too long, or nothing that can be read",
    "given-away": "the statement says the answer",
    "duplicate": "another problem has the same statement, or goes on after it, and the same answer",
    "conflict": "problems have the same statement and different answers",
}
REPAIRED: tuple[Kind, ...] = ("lost-command", "control-character")
"""Kinds of damage that `repair` removes."""


@dataclass(frozen=True)
class Damage:
    """One kind of damage to one problem; `detail` quotes it."""

    kind: Kind
    id: str
    detail: str


def find(records: Sequence[Record]) -> list[Damage]:
    """All damage to some records, in their order."""
    damage = [
        Damage(kind, record.id, detail)
        for record in records
        for kind, check in _CHECKS.items()
        if (detail := check(record)) is not None
    ]
    same: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        same[tuple(words(record.problem))].append(record)
    order = {record.id: number for number, record in enumerate(records)}
    return sorted([*damage, *_copies(same), *_beginnings(same, damage)], key=lambda one: order[one.id])


_ESCAPES = {"\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r"}
_TAILS = {
    "\a": "lpha|pprox|ngle|rccos|rcsin|rctan|st|cute|leph|llowbreak",
    "\b": "eta|egin|inom|ar|oxed|f|ullet|ig|igl|igr|igg|mod|oldsymbol|ot|ecause|ackslash|eth",
    "\t": "imes|heta|ext|extbf|extit|extrm|frac|riangle|ilde|herefore|binom",
    "\n": "eq|abla|otin|leq|geq|subseteq|cong",
    "\v": "ec|dots|ert|arphi|arepsilon|ee|arnothing|space",
    "\f": "rac|orall|lat|box|rown",
    "\r": "ight|ightarrow|ho|angle|floor|ceil|brace|vert",
}
_LOST = re.compile("|".join(f"{escape}(?:{tails})(?![a-z])" for escape, tails in _TAILS.items()))
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ufffd\ufeff]")
_WRITTEN_OUT = re.compile(r"\\n(?=[A-Z(\d\s-]|\\n)(?!(?:Left|Right|V?[vV][dD]ash))")


def repair(record: Record) -> Record:
    """The same problem with lost commands put back, `\\n` that was written out turned into a line break, and all other
    control characters removed."""
    problem = _LOST.sub(lambda match: "\\" + _ESCAPES[match[0][0]] + match[0][1:], record.problem)
    return replace(record, problem=_CONTROL.sub("", _WRITTEN_OUT.sub("\n", problem.replace("\r\n", "\n"))))


def _lost_command(record: Record) -> str | None:
    lost = _LOST.findall(record.problem)
    return f"{len(lost)}, the first {lost[0]!r}" if lost else None


def _control_character(record: Record) -> str | None:
    text = _LOST.sub("", record.problem.replace("\r\n", "\n"))
    matches = _CONTROL.findall(text) + _WRITTEN_OUT.findall(text)
    return f"{len(matches)}, the first {matches[0]!r}" if matches else None


_DANGLING = re.compile(
    r"(?<!\\)[:,][\s$]*$|"
    r"\b(?:such that|where|and|or|of|the|that|with|if|for|by|to|in|as|let|satisfying|satisfy|satisfies)[\s$]*$"
)
_ASKS = re.compile(
    r"[?]|_{2,}|=\W*$|\(a\)|\\q?quad\s*\$|\\q?quad\W*$|\\underline|"
    r"\b(?:find|determine|what|which|how|closest|exhibit|study|compute|calculate|evaluate|estimate|count|solve|prove|show|express|simplify|factor|"
    r"expand|rationalize|convert|write|give|list|name|state|enter|answer|round|maximi[sz]e|minimi[sz]e|identify|decide|"
    r"choose|select|provide|report|obtain|equals?|multiply|divide|rewrite|reduce|complete|fill|arrange)\b|"
    r"[求则為为是多几何计算证明等于值数请]"
)
"""Marks of a question or a request, in lower case."""
_DRAWN = re.compile(
    r"\[asy\]|\[img|!\[|\\begin\{(?:asy|tikzpicture|array|tabular|[bpv]?matrix)|\|\s*-{3}|\\includegraphics"
)
_PICTURE = r"(?:figure|diagram|graph|chart|table|picture)"
_SHOWN = re.compile(
    rf"\b{_PICTURE} (?:[a-z]+ ){{0,2}}(?:shown|shows|below|above)\b|\b{_PICTURE} (?:on|to|at) the (?:right|left)\b|"
    r"\bin the (?:figure|diagram|picture)\b|\b(?:as|is|are) shown\b|\b[sS]hown (?:below|above)\b|\bshown[,.?]|"
    r"pictured|如图"
)


def _truncated(record: Record) -> str | None:
    text = unicodedata.normalize("NFKC", record.problem).rstrip()
    if _DANGLING.search(text, len(text) - 40):  # it can only match at the end
        return f"ends with {text[-20:]!r}"
    _, *parts = re.split(r"(?<!\\)\$", text)
    amounts = all(part[:1].isdigit() for part in parts)  # of money
    if len(parts) % 2 and not amounts and not re.search(r"[.?!)]\W*$", parts[-1]):
        return "a dollar sign is not closed"
    for opening, closing in ((r"\begin{", r"\end{"), (r"\[", r"\]"), ("[asy]", "[/asy]")):
        if text.count(opening) > text.count(closing) + text.count("\\" + opening):
            return f"{opening} is not closed"
    return None if _ASKS.search(text.lower()) else "nothing is asked"


def _figure(record: Record) -> str | None:
    if _DRAWN.search(record.problem) or not (mention := _SHOWN.search(record.problem)):
        return None
    return f"speaks of {mention.group()[:40]!r}"


_ENGLISH = re.compile(
    r"\b(?:the|of|an|is|are|and|in|to|find|what|how|that|for|if|let|be|with|at|on|by|each|has|have|was|will|one)\b",
    re.I,
)
_NO_PROSE = re.compile(r"(\[|\\begin\{)asy.*?(?:/asy|end\{asy|$)|\$[^$]*\$|\\[a-zA-Z]+", re.DOTALL)


def _language(record: Record) -> str | None:
    return foreign(record.problem)


def foreign(text: str) -> str | None:
    """Why a text is not in English; None if it may be."""
    text = _NO_PROSE.sub(" ", text)
    scripts = ("LATIN", "GREEK", "MATHEMATICAL")
    others = {
        letter for letter in set(text) if letter.isalpha() and not unicodedata.name(letter, "").startswith(scripts)
    }
    if sum(letter in others for letter in text) > 0.02 * sum(map(str.isalpha, text)):
        names = {unicodedata.name(letter, "unknown").split()[0].partition("-")[0].lower() for letter in others}
        return f"written in {', '.join(sorted(names))}"
    count = len(re.findall(r"[^\W\d_]{2,}", text))
    is_prose = count > 11 and 2 * count > len(text.split())  # and not only a calculation
    return "no word of English" if is_prose and not _ENGLISH.search(text) else None


def _answer(record: Record) -> str | None:
    return f"{record.answer[:40]!r}" if tidy(record.answer) is None else None


_SAYS = re.compile(
    r"(?:\b(?:answer|ans|solution)\b[*)]{0,2}\s*[:=]|"
    r"(?:^|[.?!])\s*(?:the |final |correct )*(?:answer|solution) is\b|"  # `if .., the answer is 0` gives nothing away
    r"####)[\s*]*(.+)",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE = re.compile(r"(?<=\S)\.(?:\s|$)|\)?[;?!]|\s{2,}")


def _given_away(record: Record) -> str | None:
    """The answer in the statement, behind words such as `Answer:` or in a box."""
    said = [(match[0], _SENTENCE.split(match[1])[0]) for match in _SAYS.finditer(record.problem)]
    if box := last_box(record.problem):
        said.append((rf"\boxed{{{box[1]}}}", box[1]))
    quoted = next((text for text, value in said if _compared(value) == _compared(record.answer)), None)
    return None if quoted is None else f"{quoted[:40]!r}"


_CHECKS: dict[Kind, Callable[[Record], str | None]] = {
    "truncated": _truncated,
    "figure": _figure,
    "lost-command": _lost_command,
    "control-character": _control_character,
    "language": _language,
    "answer": _answer,
    "given-away": _given_away,
}


def _copies(same: Mapping[tuple[str, ...], Sequence[Record]]) -> Iterator[Damage]:
    """Problems with the same statement: all but the first are duplicates; where their answers differ, all of them are
    in conflict."""
    for copies in same.values():
        answers = list(dict.fromkeys(_compared(copy.answer) for copy in copies))
        if len(answers) > 1:
            for copy in copies:
                yield Damage("conflict", copy.id, f"answers {' and '.join(answers)}: {', '.join(c.id for c in copies)}")
        else:
            for copy in copies[1:]:
                yield Damage("duplicate", copy.id, f"of {copies[0].id}")


def _beginnings(same: Mapping[tuple[str, ...], Sequence[Record]], damage: Sequence[Damage]) -> Iterator[Damage]:
    """Statements that are the beginning of another one: duplicates if the answers agree, else truncated."""
    truncated = {one.id for one in damage if one.kind == "truncated"}
    for text, longer in pairwise(sorted(same)):
        short, whole = same[text][0], same[longer][0]
        if longer[: len(text)] == text and short.id not in truncated:
            kind: Kind = "duplicate" if _compared(short.answer) == _compared(whole.answer) else "truncated"
            yield Damage(kind, short.id, f"the beginning of {whole.id}")


def _compared(answer: str) -> str:
    """An answer in the form in which it is compared with others."""
    return spelling(tidy(answer) or answer)
