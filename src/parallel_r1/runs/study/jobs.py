"""Run the work of a study in several processes, in the order of its dependencies."""

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
from parallel_r1.registry import MISTAKES, plugin_error


class Work(Protocol):
    """A piece of work in the folder of a study.

    Attributes:
        key: names the piece; equal keys mean equal results.
        after: the piece that must be done before, if any.
    """

    @property
    def key(self) -> str: ...

    @property
    def after(self) -> Work | None: ...

    def is_done(self, folder: Path) -> bool: ...

    def do(self, folder: Path, on_row: Callable[[dict[str, Any]], None]) -> None: ...


Observer = Callable[[Work, dict[str, Any]], None]
"""Called as `observer(work, row)` with every row of metrics, and with {"kind": "done"} when the work is done."""


def run(works: Sequence[Work], folder: Path, jobs: int, observer: Observer) -> dict[str, str]:
    """Do all unfinished work, in order as far as dependencies allow. When this process ends, even by a kill, the worker
    processes end too.

    Args:
        works: all work, without duplicates; the dependencies of a piece are among them.
        folder: the folder of the study.
        jobs: number of worker processes, with one thread per process.
        observer: see `Observer`.

    Returns:
        Key of a failed piece -> the reason.
    """
    todo = [work for work in works if not work.is_done(folder)]
    failed: dict[str, str] = {}
    running: dict[Connection, tuple[Work, Any]] = {}
    try:
        while todo or running:
            for work in _startable(todo, failed, [work for work, _ in running.values()])[: jobs - len(running)]:
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
                    observer(work, row)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
    return failed


def _startable(todo: list[Work], failed: dict[str, str], running: Sequence[Work]) -> list[Work]:
    """The work that may start now. Work that depends on failed work is moved from `todo` to `failed`."""
    pending = {work.key for work in (*todo, *running)}
    startable = []
    for work in list(todo):
        if work.after is not None and work.after.key in failed:
            todo.remove(work)
            failed[work.key] = "the stage that it starts from failed"
        elif work.after is None or work.after.key not in pending:
            startable.append(work)
    return startable


def _start(work: Work, folder: Path) -> tuple[Connection, Any]:
    """Start a process for a piece of work. Returns the pipe that its rows arrive on, and the process."""
    context = multiprocessing.get_context("forkserver")  # forked from a process that has loaded torch, without threads
    context.set_forkserver_preload(["parallel_r1.runs.study.work", "accelerate", "transformers"])
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, folder, writer), daemon=True)
    process.start()
    writer.close()  # only the worker keeps the other end open, so the pipe ends when it does
    return reader, process


def _work(work: Work, folder: Path, writer: Connection) -> None:
    """The main function of a worker process. If another process does the same work already, such as a worker of a
    second study in this folder, it waits for that one. An exception in a user's plug-in is sent as an error."""
    _settle()
    lock = FileLock(folder / "locks" / work.key)
    try:
        with written(folder):
            lock.acquire()
        if not work.is_done(folder):
            work.do(folder, writer.send)
    except UserError as error:
        writer.send({"kind": "error", "error": str(error)})
    except MISTAKES as error:
        mistake = plugin_error(error)
        if mistake is None:
            raise
        writer.send({"kind": "error", "error": str(mistake)})


def _settle() -> None:
    """Set a worker up: one thread, no progress bars, exits with the study. Only the study itself handles interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    import torch
    from transformers.utils import logging

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
