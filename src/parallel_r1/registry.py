"""Open registries: the names by which recipes call rewards, tasks and algorithms, the user's own included.

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
_plugins: dict[Path, ModuleType] = {}


class Registry(Generic[T]):
    """Objects by name.

    Args:
        kind: what the objects are, for error messages, such as `reward`.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._places: dict[str, str] = {}

    def add(self, name: str, entry: T, definition: object) -> None:
        """Register an object. Running the same definition again, as a notebook cell does, replaces it.

        Args:
            definition: the function or class that the user wrote, whose file decides whether two of one name clash.

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
        """Look a name up.

        Raises:
            UserError: nothing has this name; suggests the nearest one.
        """
        if name not in self:
            raise UserError(f"a known {self.kind}", f"'{name}'", nearest(name, self._entries))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            _load_entry_points()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        _load_entry_points()
        return iter(self._entries)


def where(definition: object) -> str:
    """The place of a function or class in its source, as `file:line`; the name of its module where there is no file."""
    try:
        file, line = inspect.getsourcefile(definition), inspect.getsourcelines(definition)[1]  # type: ignore[arg-type]
    except (TypeError, OSError):
        return str(getattr(definition, "__module__", "?"))
    return f"{file}:{line}"


def _file(place: str) -> str:
    file = place.rpartition(":")[0] or place
    return "a notebook" if "ipykernel" in file or file.startswith("<") else file  # every run of a cell has a new file


def load_plugins(imports: Iterable[str], folder: Path) -> list[str]:
    """Import the Python files and modules that a recipe names. One that is loaded already is not loaded again.

    Args:
        imports: paths that end with `.py`, or names of modules that can be imported.
        folder: where relative paths start, unless they lead to a file from the current folder.

    Returns:
        The same list with absolute paths.

    Raises:
        UserError: no such file or module, or an exception while it runs: names the line.
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
    # Another module of this name may be there; the classes of this one must lead to its own file.
    name = (
        path.stem
        if path.stem not in sys.modules
        else f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that what it defines can be pickled
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, UserError) or not isinstance(error, Exception):
            raise
        raise _explain(error, path) from error
    return module


def _import(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:
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
    """What to tell the user of a recipe when code of a plug-in raised; None if no plug-in had a part in it."""
    files = {Path(frame.filename).resolve() for frame in traceback.extract_tb(error.__traceback__)}
    path = next((path for path in _plugins if path in files), None)
    return None if path is None else _explain(error, path)


def _explain(error: BaseException, path: Path) -> UserError:
    """An exception as one line, with the last line of the user's file that led to it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == path]
    line: Any = frames[-1].lineno if frames else getattr(error, "lineno", None)
    return UserError(
        f"{path.name} to run",
        f"{path}{f':{line}' if line else ''}: {type(error).__name__}: {error}",
        "correct it and give the same command again; a run goes on from its last saved step",
    )
