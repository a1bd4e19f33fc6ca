"""Processes that start quickly: forked from one that has loaded torch and transformers and has run nothing."""

import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    [
        "torch",
        "accelerate",
        "transformers.models.qwen3.modeling_qwen3",
        "parallel_r1.runs.curriculum",
        "victim",
        "processes",
    ]
)


def start(function: Any, *arguments: Any) -> Any:
    """A process that calls a function of a module."""
    process = server.Process(target=function, args=arguments)
    process.start()
    return process


def begin(words: list[str], cwd: Path, width: str, paths: list[Path]) -> Any:
    """A process that runs `parallel-r1` with these words, with files for what it reads, says and complains."""
    return start(_command, words, cwd, width, paths)


def command(words: list[str], stdin: str | None, cwd: Path, width: str, limit: float) -> CompletedProcess:
    """What `parallel-r1` with these words does, with its own files for input and output."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
        paths[0].write_text(stdin or "")
        process = begin(words, cwd, width, paths)
        process.join(limit)
        assert process.exitcode is not None, f"{words} takes longer than {limit} s"
        return CompletedProcess(words, process.exitcode, *(path.read_text() for path in paths[1:]))


def _command(words: list[str], cwd: Path, width: str, paths: list[Path]) -> None:
    """What `begin` starts."""
    for descriptor, path in enumerate(paths):
        file = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
    sys.stdin, sys.stdout, sys.stderr = (open(at, mode) for at, mode in enumerate("rww"))  # noqa: SIM115
    os.environ["COLUMNS"] = width
    os.chdir(cwd)
    sys.argv = ["parallel-r1", *words]
    from parallel_r1.__main__ import main

    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
