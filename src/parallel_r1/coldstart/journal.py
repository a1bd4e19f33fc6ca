"""Every response of a teacher, on disk before it counts."""

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
from parallel_r1.files import whole, written

Key = tuple[str, str, int]


@dataclass(frozen=True)
class Ask:
    """What a teacher is asked for.

    Attributes:
        problem: with the prompt that the answer will be learnt with.
        statement: the problem without the instruction of its task.
        sample: which of several answers to it.
    """

    problem: Problem
    statement: str
    sample: int

    @property
    def key(self) -> Key:
        """What tells it from all others."""
        return self.problem.source, self.problem.id, self.sample


@dataclass(frozen=True)
class Response:
    """What came back.

    Attributes:
        source, id, sample: what was asked.
        text: the answer as it came, thoughts and all.
        finish: why it ended: `stop`, or `length` if it was cut.
        prompt_tokens, answer_tokens: as the teacher counts them.
        refused: why the teacher did not answer this one; None if it did.
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
        """That of what was asked."""
        return self.source, self.id, self.sample


class Journal:
    """The responses in a folder: `responses.jsonl`, one line each, in the order in which they came.

    A line that was being written when the process ended is no response; what it answers is asked again.

    Args:
        folder: made if it is not there.
        settings: what a response depends on besides the problem; kept in `settings.json`.

    Raises:
        UserError: another process writes here, the responses here come from other settings, or the file is damaged.
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
            self._settle(settings)
            self.responses = self._read()
            self.file = self.path.open("ab")
        except BaseException:
            self.lock.release()
            raise

    def add(self, response: Response) -> None:
        """Keep a response; when this returns, nothing but the disk can lose it.

        Raises:
            UserError: it cannot be written.
        """
        with written(self.path):
            self.file.write(json.dumps(asdict(response), ensure_ascii=False).encode() + b"\n")
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

    def _settle(self, settings: dict[str, Any]) -> None:
        path = self.folder / "settings.json"
        if not path.is_file():
            with whole(path) as part:
                part.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
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
        if not self.path.is_file():
            return {}
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            with written(self.path):
                os.truncate(self.path, end)
        found = {}
        for number, line in enumerate(data[:end].splitlines(), 1):
            try:
                response = Response(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise UserError(
                    "a response on every line",
                    f"{self.path}:{number}: {error}",
                    "take that line out; it is asked again",
                ) from error
            found[response.key] = response
        return found
