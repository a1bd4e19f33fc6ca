"""The engine against vLLM on a CPU, on the cases of `engine.py`. vLLM needs its own virtual environment: `make
bench-vllm` makes it.

vLLM runs in a process of its own, which is started, compiled and warmed up before anything is timed and rests while the
engine draws. Both have 64 answers at a time, fp32 and the same number of threads. vLLM times itself, so what goes
through the pipe costs it nothing. It reads a prompt of a group once, as the engine does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from engine import ROWS, Case, by_engine, cases
from measure import ROOT, alternate, arguments, endless, generators, policy, ratio, report

from parallel_r1 import models
from parallel_r1.models.policy import Policy


class Vllm:
    """vLLM with a model, in its own process."""

    def __init__(self, python: Path, policy: Policy, log: Path) -> None:
        folder = log.parent / "model"
        policy.model.config.max_position_embeddings = 1024  # the tiny model knows fewer than a group needs
        models.save(policy, folder)
        threads = torch.get_num_threads()
        settings = {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",  # by default it leaves a core free
            "VLLM_NO_USAGE_STATS": "1",
            "LD_PRELOAD": str(python.parent.parent / "lib" / "libiomp5.so"),  # which vLLM asks for and comes with
        }
        self.log = log
        self.process = subprocess.Popen(
            [str(python), str(Path(__file__).with_name("vllm_side.py")), str(folder), str(ROWS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            env={**os.environ, **settings},
            text=True,
        )
        self.version = self._reply()["version"]

    def _reply(self) -> dict[str, object]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("error: vLLM has ended; its last words:\n" + "".join(self.log.read_text()[-2000:]))
        return json.loads(line)

    def draw(self, case: Case) -> float:
        """Seconds for every answer of a case."""
        wanted, lengths = zip(*case.requests, strict=True)
        assert self.process.stdin is not None
        print(json.dumps({"prompts": wanted, "lengths": lengths}), file=self.process.stdin, flush=True)
        reply = self._reply()
        assert reply["tokens"] == case.tokens
        time.sleep(1.5)  # its worker spins for a second before it rests
        return float(str(reply["seconds"]))

    def stop(self) -> None:
        """Let it end by itself."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python", help="that has vLLM")
    options = parser.parse_args()
    if not options.python.is_file():
        sys.exit(f"error: expected a Python with vLLM; found no {options.python}; run `make bench-vllm`")
    rows: list[dict[str, object]] = []
    details = []
    for name in options.model:
        subject = policy(name)
        with tempfile.TemporaryDirectory() as folder:
            server = Vllm(options.python, subject, Path(folder) / "vllm.log")
            for case in cases(subject, options):
                engines: dict[str, Callable[[], float | None]] = {
                    f"engine{how}": partial(by_engine, generator, case, options.seed)
                    for how, generator in generators(endless(subject), options, ROWS).items()
                }
                times = alternate({**engines, "vllm": partial(server.draw, case)}, options.runs)
                rows += [{"model": name, "case": case.name, **ratio(times, "vllm", engine)} for engine in engines]
                details.append({"model": name, "case": case.name, "tokens": case.tokens, "seconds": times})
            server.stop()
    report(options, "vllm", f"The engine and vLLM {server.version} without forks", rows, details=details)


if __name__ == "__main__":
    main()
