"""Registries: recipes refer to rewards, tasks and algorithms by name, the user's own included.

A user's Python file registers with a decorator. A recipe names the file (`imports = ["my_rewards.py"]`), or an
installed package announces its module under the entry-point group `parallel_r1.plugins`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import sys
import traceback
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from parallel_r1.errors import UserError, nearest

T = TypeVar("T")
log = logging.getLogger(__name__)
ENTRY_POINTS = "parallel_r1.plugins"
"""The entry-point group under which an installed package names a module that registers something."""
MISTAKES = (Exception, SystemExit)
"""What a user's code may raise by mistake. A script that ends itself must not end a training run without a word."""
_plugins: dict[Path, ModuleType] = {}


class Registry(Generic[T]):
    """Objects by name.

    Args:
        kind: the noun for an entry in error messages, such as `reward`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._places: dict[str, str] = {}

    def add(self, name: str, entry: T, definition: object) -> None:
        """Register an object. A second definition in the same file replaces the first: a notebook cell may run again.

        Args:
            definition: the function or class that the user wrote. A name may not be registered from two files.

        Raises:
            UserError: another file has registered this name.
        """
        place = where(definition)
        other = self._places.get(name)
        if other is not None and _file(other) != _file(place):
            raise UserError(
                f"one {self.kind} named '{name}'",
                f"a second one at {place}, the first at {other}",
                "rename one of them",
            )
        self._entries[name], self._places[name] = entry, place

    def __getitem__(self, name: str) -> T:
        """The entry with this name.

        Raises:
            UserError: no entry has this name; suggests the most similar one.
        """
        if name not in self:
            raise UserError(f"a registered {self.kind}", f"'{name}'", nearest(name, self._entries))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            _load_entry_points()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        _load_entry_points()
        return iter(self._entries)


def where(definition: object) -> str:
    """Where a function or class is defined, as `file:line`; the name of its module if it has no source file."""
    try:
        file, line = inspect.getsourcefile(definition), inspect.getsourcelines(definition)[1]  # type: ignore[arg-type]
    except (TypeError, OSError):
        return str(getattr(definition, "__module__", "?"))
    return f"{file}:{line}"


def _file(place: str) -> str:
    file = place.rpartition(":")[0] or place
    # Every run of a notebook cell has a file name of its own.
    return "a notebook" if "ipykernel" in file or file.startswith("<") else file


def load_plugins(imports: Iterable[str], folder: Path) -> list[str]:
    """Import the Python files and modules that a recipe names. A file is run once per process.

    Args:
        imports: paths that end with `.py`, or names of importable modules.
        folder: relative paths are looked up in this folder, then in the current folder.

    Returns:
        The same list with absolute paths.

    Raises:
        UserError: a file or module does not exist, or raises an exception; gives the file and line.
    """
    resolved = []
    for name in imports:
        if not name.endswith(".py"):
            _import(name)
            resolved.append(name)
            continue
        path = next((path for path in (folder / name, Path(name)) if path.is_file()), None)
        if path is None:
            raise UserError("a Python file in imports", f"no file {folder / name}", "correct the path")
        path = path.resolve()
        if path not in _plugins:
            _plugins[path] = _run(path)
            log.info("imported %s", path)
        resolved.append(str(path))
    return resolved


def _run(path: Path) -> ModuleType:
    # If a module of this name is loaded already, use another name: pickle finds a class by its module's name.
    name = (
        path.stem
        if path.stem not in sys.modules
        else f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its classes can be pickled
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, UserError) or not isinstance(error, MISTAKES):
            raise
        raise _explain(error, path) from error
    return module


def _import(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except UserError:
        raise
    except MISTAKES as error:
        raise UserError(
            f"a module '{name}' that can be imported",
            f"{type(error).__name__}: {error}",
            "install it, or correct the name in imports",
        ) from error
    log.info("imported the module %s", name)
    if module.__file__:
        _plugins[Path(module.__file__).resolve()] = module


@cache
def _load_entry_points() -> None:
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        _import(point.module)


def plugin_error(error: BaseException) -> UserError | None:
    """The error message for an exception whose traceback goes through a plug-in; None if it goes through none."""
    files = {Path(frame.filename).resolve() for frame in traceback.extract_tb(error.__traceback__)}
    path = next((path for path in _plugins if path in files), None)
    return None if path is None else _explain(error, path)


def _explain(error: BaseException, path: Path) -> UserError:
    """An exception as one line, with the innermost line of the user's file in its traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == path]
    line: Any = frames[-1].lineno if frames else getattr(error, "lineno", None)
    return UserError(
        f"{path.name} to run",
        f"{path}{f':{line}' if line else ''}: {type(error).__name__}: {error}",
        "correct it and give the same command again; a run resumes from its last saved step",
    )
