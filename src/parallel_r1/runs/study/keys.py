"""The keys of a study's results: digests of everything that a result depends on.

A key knows all settings, the contents of the data files and of the Python files that a recipe names, the version of the
package, and the source code that computes the result. So a changed loss, verifier or reward gives new keys, and results
of other code never stand beside new ones in a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from parallel_r1 import __version__
from parallel_r1.files import fingerprint
from parallel_r1.generation.settings import Engine, Sampling
from parallel_r1.runs.inputs import data_files, plugin_files, task_files
from parallel_r1.runs.recipe import Recipe
from parallel_r1.runs.recipe_file import dump_recipe
from parallel_r1.tasks.prompts import Prompt

SOURCE = Path(__file__).parents[2]
SHOWS_ONLY = ("cli", "report")
"""Parts of the package that only show results."""


def digest(*parts: str) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of some texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def training_key(recipe: Recipe) -> str:
    """The key of a stage.

    Args:
        recipe: with this stage alone, and the key of the weights that it starts from as its model.
    """
    settings = dump_recipe(recipe.model_copy(update={"imports": _modules(recipe.imports)}))
    return digest(code(), settings, *_contents([*data_files(recipe), *plugin_files(recipe.imports)]))


def measurement_key(
    start: str, task: str, settings: str, sampling: Sampling, prompt: Prompt, engine: Engine, imports: tuple[str, ...]
) -> str:
    """The key of an evaluation.

    Args:
        start: the key of the weights.
        settings: of the evaluation, as JSON.
    """
    sections = (section.model_dump_json() for section in (sampling, prompt, engine))
    files = _contents([*task_files(task), *plugin_files(imports)])
    return digest(code(), start, settings, *sections, *_modules(imports), *files)


@cache
def code() -> str:
    """The version of the package, with a digest of its source files, except those that only show results."""
    files = sorted(path for path in SOURCE.rglob("*") if path.suffix in (".py", ".txt"))
    chosen = [path for path in files if path.relative_to(SOURCE).parts[0] not in SHOWS_ONLY]
    names = (path.relative_to(SOURCE).as_posix() for path in chosen)
    return digest(__version__, *names, *_contents(chosen))


def _modules(imports: Iterable[str]) -> tuple[str, ...]:
    """The imports that are no files, but modules by name: of these only the names are part of a key."""
    return tuple(name for name in imports if not name.endswith(".py"))


def _contents(files: Iterable[Path]) -> list[str]:
    return [_content(file, file.stat().st_mtime_ns) for file in files]


@cache
def _content(file: Path, time: int) -> str:
    """The digest of a file as it is at a time: many pieces of work read the same file."""
    return fingerprint(file)
