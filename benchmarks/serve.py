"""The server under load: what it costs beside its engine, when first tokens come, many clients at once, its memory.

`server` answers requests of 32 clients that each hold one stream; `engine` draws the same answers (the same prompts,
settings and seeds, so the same tokens) in this process, 32 at a time. Both use one thread for the model; the event loop
and the clients have the other core. Fixed before it was run: tokens/s of the engine / tokens/s of the server (asked: at
most 1.05), the most engine steps from a request to its first token while rows are free (asked: 2), 200 clients at once
with 32 rows (asked: all are answered; reported: longest time / median time), and the memory of the server after 10,000
requests against after 1,000 (asked: flat).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from measure import ROOT, alternate, arguments, policy, ratio, report

from parallel_r1 import models
from parallel_r1.generation.generator import make_generator
from parallel_r1.generation.request import Request
from parallel_r1.generation.settings import Budget, Engine, Sampling
from parallel_r1.models.policy import Policy
from parallel_r1.models.tokens import encode_foreign

CLIENTS, ANSWERS, QUESTION = 32, 128, "Use 3, 5, 7 to make 22."
SHAPE = {"paths": 4, "forks": 2, "latency": 200, "budget": {"total": 400, "path": 60}, "mode": "parallel"}
SAMPLING = Sampling(paths=4, budget=Budget(total=400, critical_path=200, path=60, forks=2))


class Server:
    """`parallel-r1 serve` in a process of its own, with one thread for the model."""

    def __init__(self, folder: Path, rows: int) -> None:
        words = [sys.executable, "-m", "parallel_r1", "serve", str(folder), "--port", "0", "--rows", str(rows)]
        self.process = subprocess.Popen(
            [*words, "--name", "model", "--queue", "10000"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        address = re.search(r"http://([^:]+):(\d+)", self.process.stdout.readline())
        assert address, "the server did not start"
        self.host, self.port = address[1], int(address[2])

    def memory(self) -> float:
        """MB of the server and of its engine."""
        server = psutil.Process(self.process.pid)
        return sum(one.memory_info().rss for one in (server, *server.children(recursive=True))) / 1e6

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)

    async def ask(self, seed: int, **more: Any) -> dict[str, Any]:
        """One stream to its end. Returns its last object, with the seconds that it took."""
        began = time.perf_counter()
        body = {"model": "model", "messages": [{"role": "user", "content": QUESTION}], "seed": seed, "stream": True}
        data = json.dumps({**body, "parallel": {**SHAPE, "branches": True}, **more}).encode()
        reader, writer = await asyncio.open_connection(self.host, self.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        text = await reader.read()
        writer.close()
        assert b" 200 OK" in text[:40], text[:300]
        last = next(part for part in reversed(text.split(b"data: ")) if b'"usage"' in part)
        return json.loads(last.partition(b"\n")[0]) | {"took": time.perf_counter() - began}

    def all(self, count: int, clients: int, **more: Any) -> list[dict[str, Any]]:
        """So many answers by so many clients, each of which asks one after the other."""

        async def run() -> list[dict[str, Any]]:
            seeds = iter(range(count))
            done: list[dict[str, Any]] = []

            async def client() -> None:
                for seed in seeds:
                    done.append(await self.ask(seed, **more))

            await asyncio.gather(*(client() for _ in range(clients)))
            return done

        return asyncio.run(run())


def direct(policy: Policy, count: int, rows: int) -> int:
    """The tokens of the same answers, drawn by the engine in this process."""
    ids = encode_foreign(policy.tokenizer, QUESTION + "\n")
    first = policy.tags.first
    requests = [
        Request(ids, SAMPLING, f"{seed}/0", lambda address, size: first if not address and size == 0 else None)
        for seed in range(count)
    ]
    return sum(len(trace.token_ids) for trace in make_generator(policy, Engine(rows=rows)).traces(requests))


def measure(name: str, server: Server, model: Policy, options: Any, answers: int, requests: int) -> dict[str, Any]:
    """All figures of one model."""
    seen: dict[str, int] = {}
    ends: list[dict[str, Any]] = []

    def by_server() -> None:
        ends[:] = server.all(answers, CLIENTS)
        seen["server"] = sum(end["usage"]["completion_tokens"] for end in ends)

    def by_engine() -> None:
        seen["engine"] = direct(model, answers, CLIENTS)

    took = alternate({"server": by_server, "engine": by_engine}, options.runs)
    assert seen["server"] == seen["engine"], seen
    alone = [server.all(1, 1)[0] for _ in range(10)]
    crowd = [end["took"] for end in server.all(200, 200)]
    small = {"max_tokens": 12, "parallel": {"mode": "sequential", "branches": True}}
    server.all(requests // 10, CLIENTS, **small)
    before = server.memory()
    server.all(requests - requests // 10, CLIENTS, **small)
    after = server.memory()
    return {
        "model": name,
        **ratio(took, "server", "engine"),
        "first_token_steps": max(end["parallel"]["first_token_steps"] for end in [*ends, *alone]),
        "crowd": len(crowd),
        "longest_to_median": max(crowd) / statistics.median(crowd),
        "requests": requests,
        "memory_mb": [round(before), round(after)],
        "times": took,
    }


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    rows = []
    for name in options.model:
        model = policy(name)
        with tempfile.TemporaryDirectory() as folder:
            models.save(model, Path(folder) / "model")
            server = Server(Path(folder) / "model", CLIENTS)
            try:
                served = models.load(Path(folder) / "model")
                sizes = (CLIENTS, 200) if options.quick else (ANSWERS, 10_000 if name == "tiny" else 1_000)
                rows.append(measure(name, server, served, options, *sizes))
            finally:
                server.stop()
    report(options, "serve", "the server under load", rows)


if __name__ == "__main__":
    main()
