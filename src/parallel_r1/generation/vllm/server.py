"""vLLM servers: texts continued over HTTP, tokens in and tokens out, and new weights handed over.

A connection may be lost at any moment, and a server may be killed and start again with its first weights. A text that
was cut goes on from the tokens that arrived, so no path is lost and none is drawn twice. Before it does, the server is
asked which weights it has, and gets those of the policy again if they are others. Every text that ends names the
weights that drew it, so a restart that nobody noticed is an error and never a wrong answer.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import queue
import shutil
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2

from parallel_r1 import distributed
from parallel_r1.errors import UserError
from parallel_r1.generation.settings import Engine
from parallel_r1.generation.vllm.client import Call, Piece
from parallel_r1.generation.vllm.weights import HEAD, write_weights
from parallel_r1.models.policy import Policy

GENERATE, COMPLETIONS = "/inference/v1/generate", "/v1/completions"
"""Tokens in, tokens out: the end point for it, which servers have with --enable-scale-out and which names the weights
that drew a text; and the one that every server has."""
BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request is made again."""
POLL = 0.2
"""Longest wait of a `poll`, in seconds."""
FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0
"""Pauses between two tries, in seconds, where the server does not say how long to wait; each is twice the last."""
SILENCE = 120.0
"""So long a server may send nothing in the middle of a text, in seconds."""


class _Again(Exception):
    """A request failed in a way that may pass. `wait` is the pause that the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass
class _Server:
    """A server.

    Attributes:
        address: without a slash at its end.
        model: the name of its model.
        path: of the end point that continues texts.
        takes_weights: whether it takes new weights.
        processed: see `Client`.
        packs_head: whether it keeps a packed copy of a head that is tied to the embeddings; see `weights.py`.
        trusted: whether it has answered since it was last asked for its weights.
        lock: held while it is asked.
    """

    address: str
    model: str = ""
    path: str = GENERATE
    takes_weights: bool = False
    processed: bool = False
    packs_head: bool = False
    trusted: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Servers:
    """A `Client` that speaks to the servers of the settings. A thread of its own holds the connections.

    Args:
        settings: their addresses, the folder for weights, the patience.

    Raises:
        UserError: a server cannot be reached, or is no vLLM.
    """

    sleeps = False

    def __init__(self, settings: Engine) -> None:
        self.settings = settings
        self.owner: object = None
        self.servers = [_Server(address.rstrip("/")) for address in settings.servers]
        self.arrived: queue.SimpleQueue[Piece | Exception] = queue.SimpleQueue()
        self.running: dict[str, Future[None]] = {}
        self.version: str | None = None
        self.name = uuid.uuid4().hex[:8]
        folder = settings.weights or tempfile.mkdtemp(prefix="parallel-r1-weights-")
        (folder,) = distributed.gather([folder] if distributed.is_first() else [])
        self.folder = Path(folder).resolve()
        if settings.weights is None:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        key = os.environ.get("VLLM_API_KEY")
        self.http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(SILENCE, connect=10.0),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        )
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="vllm-servers", daemon=True).start()
        weakref.finalize(self, self.loop.call_soon_threadsafe, self.loop.stop)
        self.places = len(self.servers)
        self.longest = min(self._wait(self._ask_all(self._meet)))
        self.processed = all(server.processed for server in self.servers)

    def wake(self) -> None:
        """A server may have started again since the last batch: ask every one for its weights."""
        for server in self.servers:
            server.trusted = False
        if self.version is not None:
            self._wait(self._ask_all(self._check_weights))

    def sleep(self) -> None:
        """Servers have their memory for themselves."""

    def take(self, policy: Policy) -> None:
        """Hand over the weights of a policy, through a folder. A collective call: every process must make it.

        Raises:
            UserError: weights that have changed, and a server that does not take new ones.
        """
        fixed = [server.address for server in self.servers if not server.takes_weights]
        if fixed and policy.source is None:
            raise UserError(
                "vLLM servers that take new weights",
                f"{fixed[0]}, which does not",
                "start it with VLLM_SERVER_DEV_MODE=1, reachable for this run alone",
            )
        if packed := [server.address for server in self.servers if server.packs_head]:
            raise UserError(
                "vLLM servers on a CPU whose model has a head of its own",
                f"{packed[0]}, which would keep the old head",
                "start it from a folder that `parallel-r1 prepare --own-head` wrote",
            )
        if fixed:  # it has the weights that it was started with; the generator measures whether they are the policy's
            self.version = None
            return
        before = self.version
        (self.version,) = distributed.gather([f"{self.name}-{policy.version}"] if distributed.is_first() else [])
        write_weights(policy, self.folder / self.version)
        if distributed.is_first():
            self._wait(self._ask_all(self._push))
            if before not in (None, self.version):
                shutil.rmtree(self.folder / before, ignore_errors=True)
        distributed.gather([None])  # nobody draws before all servers have the weights

    def start(self, call: Call) -> None:
        coroutine = self._continue(call)
        self.running[call.key] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def stop(self, key: str) -> None:
        if running := self.running.pop(key, None):
            running.cancel()

    def poll(self) -> list[Piece]:
        pieces: list[Piece] = []
        try:
            news = self.arrived.get(timeout=POLL)
            while True:
                if isinstance(news, Exception):
                    raise news
                pieces.append(news)
                news = self.arrived.get_nowait()
        except queue.Empty:
            pass
        for piece in pieces:
            if piece.ended:
                self.running.pop(piece.key, None)
        return pieces

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    async def _ask_all(self, question: Any) -> list[Any]:
        """Ask all servers, each with patience."""
        return list(await asyncio.gather(*(self._patiently(server, question) for server in self.servers)))

    async def _patiently(self, server: _Server, question: Any) -> Any:
        """Ask a server until it answers.

        Raises:
            UserError: it has not, for as long as the settings have patience.
        """
        end, tries = time.monotonic() + self.settings.patience, 0
        while True:
            try:
                return await question(server)
            except (_Again, httpx2.TransportError) as error:
                await self._pause(server, error, tries, end)
                tries += 1

    async def _pause(self, server: _Server, error: Exception, tries: int, end: float) -> None:
        """Wait before a request is made again.

        Args:
            tries: how often it has been made again.
            end: when patience ends.
        """
        server.trusted = False
        wait = getattr(error, "wait", 0.0) or min(FIRST_WAIT * 2**tries, LONGEST_WAIT)
        if time.monotonic() + wait > end:
            raise UserError(
                f"a vLLM server that answers at {server.address}",
                f"none for {self.settings.patience:.0f} s ({str(error) or type(error).__name__})",
                "see to the server and give the same command again, or raise engine.patience",
            ) from error
        await asyncio.sleep(wait)

    async def _continue(self, call: Call) -> None:
        """Continue a text to its end, however often the connection is lost."""
        server = self.servers[call.home % len(self.servers)]
        tokens: list[int] = []
        end, tries = time.monotonic() + self.settings.patience, 0
        try:
            while True:
                try:
                    if not server.trusted:
                        await self._check_weights(server)
                    rest = replace(
                        call,
                        context=[*call.context, *tokens],
                        most=call.most - len(tokens),
                        seed=call.seed + len(tokens),
                    )
                    async for piece in self._stream(server, rest):
                        tokens += piece.tokens
                        self.arrived.put(piece)
                        end, tries = time.monotonic() + self.settings.patience, 0
                    return
                except (_Again, httpx2.TransportError) as error:
                    await self._pause(server, error, tries, end)
                    tries += 1
                    if tokens and (len(tokens) >= call.most or tokens[-1] in call.stops):
                        self.arrived.put(Piece(call.key, ended=True, read=len(call.context)))  # its end was lost
                        return
        except Exception as error:
            self.arrived.put(error)

    async def _stream(self, server: _Server, call: Call) -> AsyncIterator[Piece]:
        """The pieces of one request.

        Raises:
            _Again: it was cut, or the server has no room.
        """
        texts: dict[str, Any] = {"token_ids": list(call.context), "sampling_params": call.params}
        if server.path == COMPLETIONS:
            texts = {"prompt": list(call.context), "return_token_ids": True, **_for_completions(call)}
        body = {"model": server.model, **texts, "stream": True, "stream_options": {"include_usage": True}}
        ended = False
        last: tuple[Sequence[int], Sequence[float]] = (), ()
        usage: dict[str, Any] = {}
        async with self.http.stream("POST", server.address + server.path, json=body) as response:
            await _check(server, response)
            async for line in response.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                chunk = json.loads(data)
                if "error" in chunk:
                    raise _Again(str(chunk["error"]))
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices") or ():
                    if choice.get("finish_reason") in ("abort", "error"):
                        raise _Again("the server ended a text")
                    self._check_version(server, choice.get("weight_versions"))
                    tokens, logprobs = choice.get("token_ids") or (), _logprobs(choice)
                    if choice.get("finish_reason") is None:
                        yield Piece(call.key, tokens, logprobs)
                    else:  # with what it took, which comes last: nobody may listen any more once the tokens are there
                        ended, last = True, (tokens, logprobs)
        if not ended:
            raise _Again("the connection was lost in the middle of a text")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        yield Piece(call.key, *last, ended=True, read=len(call.context), cached=cached)

    def _check_version(self, server: _Server, spans: Sequence[dict[str, Any]] | None) -> None:
        others = {span["version"] for span in spans or ()} - {self.version}
        if self.version is not None and others:
            raise UserError(
                f"tokens of the weights {self.version} from {server.address}",
                f"tokens of {', '.join(sorted(others))}",
                "the server started again or serves another run; give the same command again",
            )

    async def _meet(self, server: _Server) -> int:
        """Ask a server what it is. Returns the most tokens of prompt and answer that it takes."""
        listed = await self._get(server, "/v1/models")
        server.takes_weights = (await self.http.get(server.address + "/weight_info")).status_code == 200
        if server.takes_weights:
            await self._inspect(server)
        offered = await self.http.post(server.address + GENERATE, json={})  # refused for its lack of tokens, if at all
        server.path = COMPLETIONS if offered.status_code in (403, 404, 405) else GENERATE
        try:
            server.model = listed["data"][0]["id"]
            return int(listed["data"][0]["max_model_len"])
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"a vLLM server at {server.address}", "another one", "check engine.servers") from error

    async def _inspect(self, server: _Server) -> None:
        """Ask a server that takes weights how it holds them, and which log-probabilities it reports."""
        info = (await self._get(server, "/server_info?config_format=json"))["vllm_config"]
        server.processed = info["model_config"]["logprobs_mode"] == "processed_logprobs"
        if info["device_config"]["device"] == "cpu":
            sums = await self._post(server, "/weight_checker", {"action": "checksum"})
            server.packs_head = not any(name.endswith(HEAD) for name in sums["checksums"])

    async def _check_weights(self, server: _Server) -> None:
        """Make sure that a server has the weights of the policy; after a restart it gets them again."""
        async with server.lock:
            if server.trusted:
                return
            if self.version is not None:
                info = await self._get(server, "/weight_info")
                if info.get("weight_version") != self.version:
                    await self._push(server)
            server.trusted = True

    async def _push(self, server: _Server) -> None:
        """Have a server read the weights in the folder, and forget what it has read under others."""
        assert self.version is not None
        await self._post(server, "/pause?mode=abort&clear_cache=true")
        path = str(self.folder / self.version)
        await self._post(server, "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})
        await self._post(server, "/reset_prefix_cache")
        await self._post(server, "/update_weight_version", {"new_version": self.version})
        await self._post(server, "/resume")
        server.trusted = True

    async def _get(self, server: _Server, path: str) -> Any:
        response = await self.http.get(server.address + path)
        await _check(server, response)
        return response.json()

    async def _post(self, server: _Server, path: str, body: dict[str, Any] | None = None) -> Any:
        response = await self.http.post(server.address + path, json=body)
        await _check(server, response)
        return response.json() if response.content else None


async def _check(server: _Server, response: httpx2.Response) -> None:
    """Refuse a response that is no success.

    Raises:
        _Again: the server has no room, or fails in a way that may pass.
        UserError: it refuses the request.
    """
    status = response.status_code
    if status == 200:
        return
    text = (await response.aread()).decode(errors="replace")
    if status in BUSY and "reload_weights" not in text:
        after = response.headers.get("Retry-After", "")
        raise _Again(f"status {status}: {text:.120}", float(after) if after.replace(".", "", 1).isdecimal() else 0.0)
    fix = {
        401: "set the environment variable VLLM_API_KEY",
        404: "check engine.servers",
    }.get(status, "see its log")
    raise UserError(f"a vLLM server at {server.address} that takes this request", f"status {status}: {text:.300}", fix)


def _for_completions(call: Call) -> dict[str, Any]:
    """The sampling parameters of a call as `COMPLETIONS` takes them: without those that it has no field for."""
    params = {name: value for name, value in call.params.items() if name not in ("detokenize", "stream_interval")}
    return params | ({"logit_bias": {str(token): -100.0 for token in call.forbidden}} if call.forbidden else {})


def _logprobs(choice: dict[str, Any]) -> list[float]:
    """The log-probabilities of the tokens of a choice; NaN where the server has none."""
    given = choice.get("logprobs") or {}
    values = given.get("token_logprobs") or [row["logprob"] for row in given.get("content") or ()]
    return [math.nan if value is None else float(value) for value in values]
