"""Processes that do the work of a study, several at a time, each piece after what it needs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from parallel_r1.errors import UserError
from parallel_r1.files import written
from parallel_r1.registry import plugin_error


class Work(Protocol):
    """Something that is done once in a folder, after something else. What was done stays done."""

    @property
    def key(self) -> str: ...

    @property
    def after(self) -> Work | None: ...

    def is_done(self, folder: Path) -> bool: ...

    def do(self, folder: Path, tell: Callable[[dict[str, Any]], None]) -> None: ...


Observer = Callable[[Work, dict[str, Any]], None]
"""Is told every row of metrics of some work, and {"kind": "done"} at its end."""


def run(works: Sequence[Work], folder: Path, jobs: int, tell: Observer) -> dict[str, str]:
    """Do what is not done yet, the first that can be done first. If this process ends, however it ends, all others do.

    Args:
        works: all there is to do, what others need included; none twice.
        folder: where they are done.
        jobs: how many at a time, each in a process with one thread.
        tell: is told what happens.

    Returns what failed, by key, and why.
    """
    todo = [work for work in works if not work.is_done(folder)]
    failed: dict[str, str] = {}
    running: dict[Connection, tuple[Work, Any]] = {}
    try:
        while todo or running:
            for work in _ready(todo, failed, [work for work, _ in running.values()])[: jobs - len(running)]:
                todo.remove(work)
                reader, process = _start(work, folder)
                running[reader] = work, process
            for ready in wait(list(running)) if running else []:
                assert isinstance(ready, Connection)
                work, process = running[ready]
                try:
                    row = ready.recv()
                except EOFError:
                    process.join()
                    del running[ready]
                    row = {"kind": "done"}
                    if not work.is_done(folder):
                        failed.setdefault(work.key, f"its process ended with exit code {process.exitcode}")
                if row["kind"] == "error":
                    failed[work.key] = row["error"]
                elif work.key not in failed:
                    tell(work, row)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
    return failed


def _ready(todo: list[Work], failed: dict[str, str], running: Sequence[Work]) -> list[Work]:
    """What may start now. What waits for something that failed is dropped, and has failed too."""
    pending = {work.key for work in (*todo, *running)}
    found = []
    for work in list(todo):
        if work.after is not None and work.after.key in failed:
            todo.remove(work)
            failed[work.key] = "what it starts from failed"
        elif work.after is None or work.after.key not in pending:
            found.append(work)
    return found


def _start(work: Work, folder: Path) -> tuple[Connection, Any]:
    """A process that does some work, and where to hear of it."""
    context = multiprocessing.get_context("forkserver")  # forked from one that has loaded torch and has run nothing
    context.set_forkserver_preload(["parallel_r1.runs.study.work", "accelerate", "transformers"])
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, folder, writer), daemon=True)
    process.start()
    writer.close()  # the other end is the process's alone, so that the pipe ends with it
    return reader, process


def _work(work: Work, folder: Path, writer: Connection) -> None:
    """What such a process runs. Where the work is being done already, by what another study has left behind or by
    another study that goes on, it waits for that to end."""
    _settle()
    lock = FileLock(folder / "locks" / work.key)
    try:
        with written(folder):
            lock.acquire()
        if not work.is_done(folder):
            work.do(folder, writer.send)
    except UserError as error:
        writer.send({"kind": "error", "error": str(error)})
    except Exception as error:
        mistake = plugin_error(error)
        if mistake is None:
            raise
        writer.send({"kind": "error", "error": str(mistake)})


def _settle() -> None:
    """One thread; quiet; ends with the study, which alone decides what an interrupt means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    study = multiprocessing.parent_process()
    assert study is not None

    def follow() -> None:
        study.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    import torch
    from transformers.utils import logging

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
