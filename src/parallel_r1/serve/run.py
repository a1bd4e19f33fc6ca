"""Run the server until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from parallel_r1.errors import UserError
from parallel_r1.serve.app import Options, State, make_app
from parallel_r1.serve.protocol import Reader
from parallel_r1.serve.worker import Worker

AFTER = 5
"""Seconds for sending what is left after all answers have been ended."""


class Server(uvicorn.Server):
    """Stops in order: takes no new requests, lets answers end for a while, then ends them and sends what there is."""

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self.state, self.crashed = state, False

    def crash(self) -> None:
        """Stop because the engine has failed."""
        self.crashed = self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals that ask to stop; the exit code is then 0 and not that of the signal."""
        before = {one: signal.signal(one, self.handle_exit) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.state.draining:
            self.state.drain()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.get_running_loop().call_later(self.state.options.grace, self.state.end_all)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()


def run(
    engine: Callable[[], Worker],
    reader: Reader,
    options: Options,
    host: str,
    port: int,
    started: Callable[[str], None],
) -> int:
    """Serve until a signal.

    Args:
        engine: starts the engine, once the address is ours.
        started: called with the address once requests are taken.

    Returns:
        The exit code: 0, or 1 if the engine failed.

    Raises:
        UserError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise UserError(f"a free address for --host and --port, {host}:{port}", str(error), "give another") from error
    listening.listen(2048)
    holder: list[Server] = []
    app = make_app(engine(), reader, options, on_crash=lambda: holder[0].crash())
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(options.grace) + AFTER,
        limit_concurrency=None,
    )
    server = Server(config, app.state.serving)
    holder.append(server)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    _when_started(server, lambda: started(address))
    server.run(sockets=[listening])
    return 1 if server.crashed else 0


def _when_started(server: Any, call: Callable[[], None]) -> None:
    """Call a function once the server takes requests."""
    startup = server.startup

    async def then(sockets: Any = None) -> None:
        await startup(sockets=sockets)
        if not server.should_exit:
            call()

    server.startup = then
