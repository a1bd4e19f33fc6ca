"""The file of a teacher's responses. Every response is on the disk before it is used."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from parallel_r1.answers.rollout import Problem
from parallel_r1.errors import UserError
from parallel_r1.files import read_jsonl, write_text, written

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Ask:
    """A request to a teacher for one answer.

    Attributes:
        problem: its prompt is the one that the answer will be imitated with.
        statement: the problem without the instruction of its task.
        sample: number of the answer, from 0, among several answers to the problem.
    """

    problem: Problem
    statement: str
    sample: int

    @property
    def key(self) -> Key:
        """Identifies the request among all others."""
        return self.problem.source, self.problem.id, self.sample


@dataclass(frozen=True)
class Response:
    """A teacher's response to one request.

    Attributes:
        source, id, sample: the key of the request.
        text: the answer as it came, thoughts included.
        finish: why it ended: `stop`, or `length` if it was cut.
        prompt_tokens, answer_tokens: as the teacher counts them.
        refused: why the teacher refused the request; None if it answered.
    """

    source: str
    id: str
    sample: int
    text: str
    finish: str
    prompt_tokens: int
    answer_tokens: int
    refused: str | None = None

    @property
    def key(self) -> Key:
        """The key of the request."""
        return self.source, self.id, self.sample


class Journal:
    """The responses in a folder: `responses.jsonl`, one per line, in the order in which they came.

    A line that was being written when the process ended is dropped, and its request is made again.

    Args:
        folder: created if it does not exist.
        settings: everything that a response depends on besides the problem; kept in `settings.json`.

    Raises:
        UserError: another process writes to the folder, its responses come from other settings, or a file is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.path = folder, folder / "responses.jsonl"
        with written(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / ".lock", timeout=0)
        try:
            self.lock.acquire()
        except Timeout as error:
            raise UserError(
                "a folder that no other process writes to", f"one that writes to {folder}", "wait for it"
            ) from error
        try:
            self._check_settings(settings)
            self.responses = self._read()
            self.file = self.path.open("ab")
        except BaseException:
            self.lock.release()
            raise

    def add(self, response: Response) -> None:
        """Append a response. When this returns it is on the disk.

        Raises:
            UserError: it cannot be written.
        """
        with written(self.path):
            self.file.write(json.dumps(asdict(response), ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
            self.file.flush()
            os.fsync(self.file.fileno())
        self.responses[response.key] = response

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.file.close()
        self.lock.release()

    def _check_settings(self, settings: dict[str, Any]) -> None:
        """Write the settings into a new folder; in an old one, refuse others than it was begun with."""
        path = self.folder / "settings.json"
        if not path.is_file():
            write_text(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
            return
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"the settings of earlier responses in {path}", f"{error}", "give another --out") from error
        for name in sorted({*before, *settings}):
            if before.get(name) != settings.get(name):
                raise UserError(
                    f"the settings of {path}, since its responses come from them",
                    f"{name} {settings.get(name)!r:.60} instead of {before.get(name)!r:.60}",
                    "give them again, or another --out",
                )

    def _read(self) -> dict[Key, Response]:
        """The responses on the disk, after a line that is not complete has been cut off."""
        if not self.path.is_file():
            return {}
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            with written(self.path):
                os.truncate(self.path, end)
        responses, fix = {}, "remove that line; its request is made again"
        for number, row in read_jsonl(self.path, fix=fix):
            try:
                response = Response(**row)
            except TypeError as error:
                raise UserError("a response on every line", f"{self.path}:{number}: {error}", fix) from error
            responses[response.key] = response
        return responses
