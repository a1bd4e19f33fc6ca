"""Write files and folders atomically, name them safely, and read JSONL with line numbers."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

from parallel_r1.errors import UserError

try:
    import orjson
except ImportError:
    orjson = None  # type: ignore[assignment]


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Turn an operating-system error while writing `path` into a `UserError` with the path and the reason."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (reason := _reason(error)) is None:
            raise
        raise UserError(
            f"to write {path}", reason, "free some space, or give another name; the same command then goes on"
        ) from error


def _reason(error: BaseException | None) -> str | None:
    """The operating system's message behind an exception; None if no `OSError` caused it. Libraries wrap an `OSError`
    in exceptions of their own, and libraries written in Rust keep only its text."""
    while error is not None:
        if isinstance(error, OSError) or "(os error " in str(error):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Write a file or folder atomically: yields a temporary path, which is renamed to `path` at the end. After an
    exception the temporary file is removed and `path` is as before. Creates the parent folders."""
    part = path.with_name(f".{path.name}.part")
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)  # left behind by a process that was killed
        try:
            yield part
            move(part, path)
        except BaseException:
            _remove(part)
            raise


def safe_name(*parts: str) -> str:
    """A file name, without its ending, made of names that a user chose, such as a stage and a task.

    Short names of letters, digits, `_`, `@` and `-` are joined by dots as they are: `sft.countdown-easy`. In all others
    every other character becomes a `-`, their end is kept, and a digest of the names is added: then no two lists of
    names share a file, and none leaves its folder.
    """
    name = ".".join(parts)
    if len(name) <= _LONGEST and all(_PLAIN.fullmatch(part) for part in parts):
        return name
    readable = re.sub(r"[^\w@.-]+|\.{2,}", "-", name, flags=re.ASCII)[-_LONGEST:].strip("-.")
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{readable}-{digest}"


_LONGEST = 80
_PLAIN = re.compile(r"\w[\w@-]*", re.ASCII)


def fingerprint(path: Path) -> str:
    """The SHA-256 of a file's contents, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. A lone surrogate, which UTF-8 does not have, is written as its escape."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write a value as a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1))


def read_jsonl(
    path: Path, *, fix: str = "correct or remove that line", drop_unfinished: bool = False, ours: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file with one JSON object per line, as (line number from 1, object). Blank lines are skipped.

    Args:
        fix: advice for the user about a bad line.
        drop_unfinished: skip a last line without a line break, left by a process that was killed while it wrote.
        ours: whether this package wrote the file, so that `parse_ours` reads its lines.

    Raises:
        UserError: a line is not UTF-8, not JSON or not an object; names the file and the line.
    """
    with path.open("rb") as file:
        lines = takewhile(_ends, file) if drop_unfinished else file
        yield from _objects(path, lines, 0, fix, parse_ours if ours else parse_object)


def _ends(line: bytes) -> bool:
    return line.endswith(b"\n")


class Tail:
    """Reads a JSONL file that another process appends to, every line once. No lock is taken.

    The open file is kept, so that a file that takes its place is recognised. A file that has been replaced, has become
    shorter, or differs before the place where reading stopped is read from its beginning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._restart()

    def _restart(self) -> None:
        self.close()
        self._offset = self._number = 0  # bytes and lines that have been read
        self._end = b""  # the bytes before the offset, at most `_COMPARED`

    def read(self) -> tuple[bool, Iterator[dict[str, Any]]]:
        """The rows of the lines that were completed since the last call; a last line without its line break is left for
        the next call.

        Returns:
            Whether the file is read anew, so that all earlier rows are void; and the rows, read while they are iterated
            over, so that a long file is never in memory. A file that does not exist has no rows.

        Raises:
            UserError: a line is not UTF-8, not JSON or not an object; names the file and the line.
        """
        anew = self._file is not None and not self._continues(self._file)
        if anew:
            self._restart()
        if self._file is None:
            try:
                self._file = self.path.open("rb")
            except FileNotFoundError:
                return anew, iter(())
        return anew, self._rows(self._file)

    def _rows(self, file: BinaryIO) -> Iterator[dict[str, Any]]:
        while text := self._lines(file):
            lines, before = list(BytesIO(text)), self._number
            self._offset, self._number = self._offset + len(text), self._number + len(lines)
            self._end = (self._end + text)[-_COMPARED:]
            yield from (row for _, row in _objects(self.path, lines, before, "correct or remove that line", parse_ours))

    def _lines(self, file: BinaryIO) -> bytes:
        """The next whole lines, about a megabyte of them; empty at the end of the file."""
        file.seek(self._offset)
        text = file.read(_PIECE)
        while b"\n" not in text and (more := file.read(_PIECE)):
            text += more
        return text[: text.rfind(b"\n") + 1]

    def _continues(self, file: BinaryIO) -> bool:
        """Whether the open file is still the one at the path, with the bytes that were read last."""
        try:
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                return False
        except FileNotFoundError:
            return False
        file.seek(self._offset - len(self._end))
        return file.read(len(self._end)) == self._end

    def close(self) -> None:
        """Close the file; the next `read` begins anew."""
        if self._file is not None:
            self._file.close()
            self._file = None


_COMPARED = 4096
_PIECE = 1 << 20


def _objects(
    path: Path, lines: Iterable[bytes], before: int, fix: str, parse: Callable[[bytes], dict[str, Any]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of the non-blank lines of a file, with their line numbers.

    Args:
        before: number of lines of the file before the first of `lines`.
        fix: advice for the user about a bad line.
    """
    for number, line in numbered_lines(lines):
        try:
            yield before + number, parse(line)
        except ValueError as error:
            raise UserError("a JSON object on every line", f"{path}:{before + number}: {error}", fix) from error


def numbered_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The non-blank lines, with their line numbers from 1. A byte order mark counts as blank."""
    return ((number, line) for number, line in enumerate(lines, 1) if line.removeprefix(codecs.BOM_UTF8).strip())


def parse_object(line: bytes, parse_float: Callable[[str], Any] = float) -> dict[str, Any]:
    """Parse one line of JSON.

    Args:
        parse_float: makes a number of its text.

    Raises:
        ValueError: it is not UTF-8, not JSON, nested too deeply, not an object, or holds half a surrogate pair.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_float=parse_float)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}")
    if _SURROGATE.search(line) and (half := lone_surrogate(json.dumps(row, ensure_ascii=False, default=str))):
        raise ValueError(f"{half}, half of a surrogate pair, which is no text")
    return row


def parse_ours(line: bytes) -> dict[str, Any]:
    """Parse one line of JSON that this package wrote, by orjson if it is installed, which takes a quarter of the time.
    What it does not read, such as a NaN, `parse_object` reads, or refuses in words."""
    if orjson is not None:
        try:
            row: Any = orjson.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            return row
    return parse_object(line)


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def lone_surrogate(text: str) -> str | None:
    """The escape of the first lone surrogate of a text, which no UTF-8 file and no tokenizer can hold; None if there is
    none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x}"
    return None


def move(source: Path, path: Path) -> None:
    """Rename a file or folder after flushing its contents to disk, so that it is complete even after a power cut."""
    for entry in (*source.rglob("*"), source):
        _sync(entry)
    os.replace(source, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)
