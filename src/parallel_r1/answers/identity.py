"""Which problems are the same: their identity by content."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|textstyle)(?![a-zA-Z])|\\[,;:! ]|\\q?quad(?![a-zA-Z])|(?<!\\)\$")
_LOOSE = re.compile(r"(?<!\w)\s+|\s+(?!\w)")


def key_of(statement: str) -> str:
    """The identity of a problem whose statement is text: 16 hexadecimal digits.

    Statements that differ in white space, case, LaTeX layout, dollar signs, Unicode form or a last full stop alone have
    the same key. White space between two letters or digits counts: `1 2` is not `12`.
    """
    text = unicodedata.normalize("NFKC", _LAYOUT.sub(" ", statement)).casefold()
    spelling = _LOOSE.sub("", " ".join(text.split())).rstrip(".")
    return hashlib.blake2b(spelling.encode(errors="surrogatepass"), digest_size=8).hexdigest()
