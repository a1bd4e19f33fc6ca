"""One answer that forks, drawn by asynchronous calls to a server that continues texts.

The tree of the answer and its rules are those of every generator of this package (`generation.threads`); a call goes on
for each thread that samples, all of them at once. A call is repeated when it fails or takes too long. That can neither
lose nor double a token: a call names its whole context and its seed, and what it returns counts once it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from parallel_r1.answers.syntax import Tags
from parallel_r1.answers.trace import Trace
from parallel_r1.errors import UserError
from parallel_r1.generation.backend import Counts
from parallel_r1.generation.request import Request
from parallel_r1.generation.threads import Decode
from parallel_r1.generation.vllm.batch import VllmBatch
from parallel_r1.generation.vllm.client import Call, Piece

log = logging.getLogger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
"""Seconds before the first repetition of a call, and at most; every pause is twice the one before."""
MISTAKES = (ValueError, TypeError, AssertionError, UserError)
"""What a server raises for a call that it will never answer. Such a call is not repeated."""


@dataclass(frozen=True)
class Continued:
    """What a server returned for a call.

    Attributes:
        tokens: token ids, at most `Call.most`; fewer if the server was interrupted.
        logprobs: natural-log probability of each under the distribution that was sampled.
        cached: number of tokens of the context that its prefix cache had.
        versions: the first and the last update of the weights that drew them; None if unknown.
    """

    tokens: Sequence[int]
    logprobs: Sequence[float]
    cached: int = 0
    versions: tuple[int, int] | None = None


Continue = Callable[[Call], Awaitable[Continued]]
"""Sends a call to a server."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server.

    Attributes:
        call: seconds for one try of a call, after which it is repeated.
        whole: seconds from the first try that failed in which the call must succeed.
    """

    call: float = 3600.0
    whole: float = 600.0


@dataclass
class Calls:
    """A `Client` over asynchronous calls.

    Attributes:
        processed: as for every `Client`: verl's servers report the distribution that was sampled.
        repeated: number of calls that were repeated.
        versions: of the weights that drew the answer so far; see `Continued`.
    """

    send: Continue
    patience: Patience
    processed: bool = True
    places: int = 1
    repeated: int = 0
    versions: tuple[int, int] | None = None
    running: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    arrived: list[Piece] = field(default_factory=list)
    failed: BaseException | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def start(self, call: Call) -> None:
        self.running[call.key] = asyncio.get_running_loop().create_task(self._run(call))

    def stop(self, key: str) -> None:
        task = self.running.pop(key, None)
        if task is not None:
            task.cancel()

    def poll(self) -> list[Piece]:
        if self.failed is not None:
            raise self.failed
        pieces, self.arrived = self.arrived, []
        self.news.clear()
        return pieces

    def close(self) -> None:
        """Cancel all calls."""
        for key in list(self.running):
            self.stop(key)

    async def _run(self, call: Call) -> None:
        """Send a call until it succeeds, and keep what it returned."""
        try:
            done = await self._insist(call)
        except Exception as error:
            self.failed = error
        else:
            if done.versions is not None:
                first, last = self.versions or done.versions
                self.versions = min(first, done.versions[0]), max(last, done.versions[1])
            cached = min(done.cached, len(call.context))
            self.arrived.append(Piece(call.key, done.tokens, done.logprobs, True, len(call.context), cached))
        self.running.pop(call.key, None)
        self.news.set()

    async def _insist(self, call: Call) -> Continued:
        loop, pause = asyncio.get_running_loop(), FIRST_PAUSE
        deadline: float | None = None
        while True:
            try:
                async with asyncio.timeout(self.patience.call):
                    return _checked(call, await self.send(call))
            except MISTAKES:
                raise
            except Exception as error:
                deadline = deadline or loop.time() + self.patience.whole
                if loop.time() + pause > deadline:
                    raise UserError(
                        f"a server that continues a text within {self.patience.whole:g} s",
                        f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]:.200}",
                        "look into the log of the servers; a run that was saved goes on from its last checkpoint",
                    ) from error
                log.warning("a call is repeated after %s: %s", type(error).__name__, str(error)[:200])
            self.repeated += 1
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _checked(call: Call, done: Continued) -> Continued:
    """What a server returned, if it can be what was asked for.

    Raises:
        UserError: no log-probability for every token, or more tokens than asked for.
        ConnectionError: no token, as from a server that was interrupted; the call is repeated.
    """
    if len(done.logprobs) != len(done.tokens):
        raise UserError(
            "a log-probability for every token of a server",
            f"{len(done.logprobs)} for {len(done.tokens)} tokens",
            "set actor_rollout_ref.rollout.calculate_log_probs=True",
        )
    if len(done.tokens) > call.most:
        raise UserError(
            f"at most {call.most} tokens from a server", f"{len(done.tokens)}", "use the vLLM servers of verl"
        )
    if not done.tokens:
        raise ConnectionError("the server returned no token")
    return done


@dataclass(frozen=True)
class Drawn:
    """An answer, and what drawing it took.

    Attributes:
        counts: of tokens that were read and drawn.
        repeated: number of calls that were repeated.
        versions: of the weights, the first and the last; None if the server does not say.
    """

    trace: Trace
    counts: Counts
    repeated: int
    versions: tuple[int, int] | None


async def draw(
    send: Continue,
    request: Request,
    tags: Tags,
    *,
    decode: Decode | None = None,
    patience: Patience | None = None,
) -> Drawn:
    """Draw one answer, with all calls of its paths at once.

    Args:
        send: sends a call to a server.
        request: its sampler is `causal_join` or `sequential`.
        tags: token ids of the tags and of the stop tokens.
        decode: token ids to text, for stop texts and `branches.agree`.
        patience: how long to wait for a server.

    Raises:
        UserError: a request that a server cannot draw, or a server that never answers.
    """
    calls = Calls(send, patience or Patience())
    batch = VllmBatch(calls, tags, 1, decode=decode)
    answer = batch.submit(request)
    try:
        while batch.is_busy:
            if calls.running and not calls.arrived and calls.failed is None:
                await calls.news.wait()
            batch.step()
    finally:
        calls.close()
    trace = answer.trace(calls.versions[0] if calls.versions else 0)
    return Drawn(trace, batch.counts, calls.repeated, calls.versions)
