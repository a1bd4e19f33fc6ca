"""Files and folders that are whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parallel_r1.errors import UserError


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Say in one line what could not be written, and why."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (reason := _reason(error)) is None:
            raise
        raise UserError(
            f"to write {path}", reason, "make room, or give another --out; a run goes on from its last saved step"
        ) from error


def _reason(error: BaseException | None) -> str | None:
    """What the system said, which libraries put into errors of their own; those in Rust put its words there."""
    while error is not None:
        if isinstance(error, OSError) or "(os error " in str(error):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file or folder under; it gets its own name when it is whole. What could not be written is
    removed, and what was there before stays. The folder that it lies in is made."""
    part = path.with_name(f".{path.name}.part")
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)  # what a run that was broken off has left there
        try:
            yield part
            move(part, path)
        except BaseException:
            _remove(part)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text as a file, whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def move(source: Path, path: Path) -> None:
    """Give a file or folder another name once the disk has all of it: whatever is cut off, power too, what has the name
    is whole."""
    for each in (*source.rglob("*"), source):
        _sync(each)
    os.replace(source, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until the disk has what was written to a file, or the names in a folder."""
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
