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
    except OSError as error:
        raise UserError(
            f"to write {path}",
            str(error),
            "make room, or give another --out; a run goes on from its last saved step",
        ) from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write a file or folder under; it gets its own name when it is whole. What could not be written is
    removed, and what was there before stays."""
    part = path.with_name(f".{path.name}.part")
    with written(path):
        _remove(part)  # what a run that was broken off has left there
        try:
            yield part
            os.replace(part, path)
        except BaseException:
            _remove(part)
            raise


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)
