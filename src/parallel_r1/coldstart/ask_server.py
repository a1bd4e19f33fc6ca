"""Ask any server that speaks OpenAI's protocol, with many requests at a time."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from parallel_r1.coldstart.journal import Ask, Response
from parallel_r1.errors import UserError, need
from parallel_r1.models.tokens import as_chat

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Take = Callable[[Response], bool]
"""Called with every response; returns whether to go on."""
LONGEST_WAIT = 8.0
"""Longest pause between two tries, in seconds, where the server does not say how long to wait."""
FATAL = (401, 403, 404)
"""Statuses that a server answers every request with if the key, the address or the model is wrong."""
REFUSED = (400, 413, 422)
"""Statuses for a single request that the server cannot take, such as one that is too long for the model."""


@dataclass(frozen=True)
class Server:
    """A teacher on a server.

    Attributes:
        base_url: with its version, such as http://localhost:8000/v1.
        model: its name there.
        instruction: the text of a request, with `{problem}` where the statement goes.
        temperature, top_p, max_tokens: how an answer is sampled; `max_tokens` counts thoughts too.
        concurrency: number of requests at a time.
        timeout: seconds that one request may take.
        retries: how often a request is made again before it counts as lost.

    The key is read from the environment variable OPENAI_API_KEY.

    Raises:
        UserError: the package openai is not installed.
    """

    base_url: str
    model: str
    instruction: str
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 8192
    concurrency: int = 16
    timeout: float = 600.0
    retries: int = 8

    def __post_init__(self) -> None:
        need("openai", "which asks the teacher", "teacher")

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the answers depend on; the address of the server and the concurrency may change."""
        names = ("model", "instruction", "temperature", "top_p", "max_tokens")
        return {"teacher": "server"} | {name: getattr(self, name) for name in names}

    def ask(self, asks: Sequence[Ask], take: Take) -> None:
        """Ask until every request has its response, or `take` returns False.

        Raises:
            UserError: the server refuses all requests, cannot be reached any more, or left some without an answer.
        """
        asyncio.run(_Asking(self, deque(asks), take).run())


class _Unanswered(Exception):
    """A request without an answer after all retries."""


@dataclass
class _Asking:
    """The requests of one `ask`.

    Attributes:
        queue: requests that have not been made.
        lost, lost_in_a_row: requests without an answer, and how many of them since the last answer.
        enough: whether `take` has returned False.
        saving: held while a response is taken, one at a time.
    """

    server: Server
    queue: deque[Ask]
    take: Take
    lost: int = 0
    lost_in_a_row: int = 0
    enough: bool = False
    saving: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        from openai import AsyncOpenAI

        server = self.server
        async with AsyncOpenAI(
            base_url=server.base_url,
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            timeout=server.timeout,
            max_retries=server.retries,
        ) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(server.concurrency, len(self.queue))):
                        group.create_task(self.work(client))
            except ExceptionGroup as group:
                raise group.exceptions[0] from group
        if self.lost:
            raise UserError(
                f"an answer to every request from {server.base_url}",
                f"none to {self.lost} of them",
                "give the same command again; it asks for these alone",
            )

    async def work(self, client: AsyncOpenAI) -> None:
        """Make one request after the other until none is left."""
        while self.queue and not self.enough:
            ask = self.queue.popleft()
            try:
                response = await self.one(client, ask)
            except _Unanswered as error:
                self.lost, self.lost_in_a_row = self.lost + 1, self.lost_in_a_row + 1
                if self.lost_in_a_row >= self.server.concurrency:
                    raise UserError(
                        f"a server that answers at {self.server.base_url}",
                        f"{self.lost_in_a_row} requests in a row without an answer; the last: {error}",
                        "see to the server and give the same command again; nothing is asked twice",
                    ) from error
                continue
            self.lost_in_a_row = 0
            async with self.saving:  # grading may take seconds, in which others go on
                go_on = await asyncio.to_thread(self.take, response)
            self.enough |= not go_on

    async def one(self, client: AsyncOpenAI, ask: Ask) -> Response:
        """The response to a request. The client itself tries again after failures that may pass (no connection, 408,
        409, 429, 5xx), and waits as long as the server says."""
        import openai

        wait = 0.5
        for _ in range(self.server.retries + 1):
            try:
                return self.read(ask, await self.request(client, ask))
            except openai.APIStatusError as error:
                message = f"{error.status_code}: {_words(error)}"
                if error.status_code in FATAL:
                    raise UserError(
                        f"a server that takes requests for {self.server.model}",
                        message,
                        "check --base-url, --model and the environment variable OPENAI_API_KEY",
                    ) from error
                if error.status_code in REFUSED:
                    return Response(*ask.key, "", "refused", 0, 0, message)
                raise _Unanswered(message) from error
            except openai.APIConnectionError as error:
                raise _Unanswered(_words(error.__cause__ or error)) from error
            except (ValueError, TypeError, AttributeError, IndexError, openai.APIResponseValidationError) as error:
                broken = error  # no completion at all, such as JSON that was cut
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
        raise _Unanswered(f"a response that is no completion ({_words(broken)})")

    async def request(self, client: AsyncOpenAI, ask: Ask) -> Any:
        """Make one request and return the completion."""
        server = self.server
        asked = server.instruction.replace("{problem}", ask.statement)
        messages: Any = as_chat([*ask.problem.before, ("user", asked)])
        return await client.chat.completions.create(
            model=server.model,
            messages=messages,
            temperature=server.temperature,
            top_p=server.top_p,
            max_tokens=server.max_tokens,
        )

    def read(self, ask: Ask, completion: Any) -> Response:
        """A completion as a response, without thoughts that the server has put into a field of their own."""
        choice, usage = completion.choices[0], completion.usage
        text = choice.message.content or ""
        if not isinstance(text, str):
            raise TypeError(f"content is a {type(text).__name__}")
        text = text.encode("utf-8", "replace").decode()  # half a character of UTF-16 is no text
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Response(*ask.key, text, choice.finish_reason or "stop", *counts)


def _words(error: BaseException) -> str:
    """An error as one short line."""
    return " ".join(f"{error or type(error).__name__}".split())[:200]
