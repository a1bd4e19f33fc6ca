"""Tokens to text while they arrive: a character is shown once it is whole, and what was shown never changes."""

from __future__ import annotations

from dataclasses import dataclass, field

from parallel_r1.answers.trace import TRUNK, Address
from parallel_r1.models.policy import Policy

UNFINISHED = "\ufffd"
"""What tokenizers write for the bytes of a character that is not whole."""
CONTEXT = 8
"""So many tokens that were shown are decoded again with new ones: what white space a token brings depends on those
before it."""


def concatenates(policy: Policy) -> bool:
    """Whether the text of tokens is that of their bytes one after the other, so that no token needs those before it."""
    backend = getattr(policy.tokenizer, "backend_tokenizer", None)
    return type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"


class Decoder:
    """Text of a growing list of tokens.

    Args:
        policy: whose tokenizer decodes.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.context = 0 if concatenates(policy) else CONTEXT
        self.tokens: list[int] = []  # the last ones that were shown, and those that were not
        self.shown = 0

    def push(self, tokens: list[int], last: bool = False) -> str:
        """The text that these tokens add.

        Args:
            last: whether no more will come, so that an unfinished character is shown as it is.
        """
        self.tokens += tokens
        if len(self.tokens) == self.shown:
            return ""
        before = self.policy.decode(self.tokens[: self.shown]) if self.shown else ""
        text = self.policy.decode(self.tokens)
        if text.endswith(UNFINISHED) and not last:
            return ""
        start = max(0, len(self.tokens) - self.context)
        self.tokens, self.shown = self.tokens[start:], len(self.tokens) - start
        return text[len(before) :]


@dataclass
class Delta:
    """New text of a branch, or an event there.

    Attributes:
        branch: address of the trunk or of a path.
        text: new text, without the tags of forks.
        tokens: number of tokens that it stands for.
        event: "fork" if paths have just opened, "end" if this path has ended, "join" if the branch goes on after its
            paths.
        fork, paths: of a fork: its number, and how many paths opened.
        cut: whether the runtime closed the path.
        summary: whether the text is part of a summary.
    """

    branch: Address
    text: str = ""
    tokens: int = 0
    event: str | None = None
    fork: int | None = None
    paths: int | None = None
    cut: bool = False
    summary: bool = False


@dataclass
class _Branch:
    decoder: Decoder
    waiting: bool = False
    summary: bool = False
    delta: Delta | None = None


@dataclass
class Branches:
    """The branches of an answer, as they grow. Forks are numbered in the order in which they open.

    Attributes:
        policy: whose tokenizer and tags they have.
        branches: by address.
    """

    policy: Policy
    branches: dict[Address, _Branch] = field(default_factory=dict)

    def push(self, tokens: list[tuple[Address, int, bool]]) -> list[Delta]:
        """What tokens change, in the order in which they came.

        Args:
            tokens: (address, token, whether it was sampled).
        """
        deltas: list[Delta] = []
        opened: dict[int, set[int]] = {}
        for address, _, _ in tokens:
            if address and address not in self.branches:
                opened.setdefault(address[-1][0], set()).add(address[-1][1])
        pending: dict[Address, list[int]] = {}
        for address, token, sampled in tokens:
            self._open(address, opened, deltas, pending)
            branch = self.branches[address]
            if branch.waiting:  # its paths have all ended
                branch.waiting = False
                self._flush(deltas, pending)
                deltas.append(Delta(address, event="join"))
            self._take(address, branch, token, sampled, deltas, pending)
        self._flush(deltas, pending)
        return deltas

    def finish(self) -> list[Delta]:
        """What is left of unfinished characters at the end."""
        rest = [(address, branch.decoder.push([], last=True)) for address, branch in self.branches.items()]
        return [Delta(address, text) for address, text in rest if text]

    def _open(
        self, address: Address, opened: dict[int, set[int]], deltas: list[Delta], pending: dict[Address, list[int]]
    ) -> None:
        """Add a branch that is new, and announce its fork."""
        if address in self.branches:
            return
        self.branches[address] = _Branch(Decoder(self.policy))
        if address == TRUNK:
            return
        parent, fork = self.branches[address[:-1]], address[-1][0]
        if not parent.waiting:
            parent.waiting = True
            self._flush(deltas, pending)
            deltas.append(Delta(address[:-1], event="fork", fork=fork, paths=len(opened[fork])))

    def _take(
        self,
        address: Address,
        branch: _Branch,
        token: int,
        sampled: bool,
        deltas: list[Delta],
        pending: dict[Address, list[int]],
    ) -> None:
        tags = self.policy.tags
        if token not in tags.ids.values():
            if sampled or address != TRUNK:  # white space between tags is given
                pending.setdefault(address, []).append(token)
            return
        self._flush(deltas, pending)
        if token == tags.opening("summary"):
            branch.summary = True
        elif token == tags.closing("summary"):
            branch.summary = False
        elif address != TRUNK and token == tags.closing("path"):
            deltas.append(Delta(address, event="end", cut=not sampled))

    def _flush(self, deltas: list[Delta], pending: dict[Address, list[int]]) -> None:
        """Show what has come of all branches, so that what follows is later for all of them."""
        for address, tokens in pending.items():
            branch = self.branches[address]
            deltas.append(Delta(address, branch.decoder.push(tokens), len(tokens), summary=branch.summary))
        pending.clear()
