"""Recipe files: TOML in and out, `a.b=value` overrides, and mistakes in one line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from parallel_r1.errors import UserError, nearest
from parallel_r1.registry import load_plugins
from parallel_r1.runs.recipe import Recipe
from parallel_r1.shipped import resolve
from parallel_r1.training.algorithms.base import ALGORITHMS, UNKNOWN_NAME, PolicyGradient
from parallel_r1.training.settings import DEFAULT_ALGORITHM, RL, SFT, Stage

S = TypeVar("S", bound=BaseModel)


MOVED = {
    "sampling.rows": "engine.rows, for all stages",
    "sampling.memory": "engine.memory, for all stages",
    "sampling.compile": "engine.compile, for all stages",
    "sampling.instruction": "prompt.instruction",
    "sampling.final": "prompt.final_answer",
    "grpo": "algorithm",
    "allow_mismatch": "no key any more: a scorer that is written down is used as it is",
}
"""Keys of a stage that have another place since version 0.2, and that place."""
GONE = {"model.attention": "model", "model.lora.dropout": "model.lora"}
"""Keys that had one legal value, and the table that they were in."""


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe, apply `a.b=value` overrides, fill in defaults, check everything.

    Args:
        path: a file, or the path of a shipped recipe such as `recipes/tiny/demo.toml`.

    Raises:
        UserError: no such file, bad TOML, an unknown key, a value out of range.
    """
    path = resolve(path)
    return make_recipe(read_toml(path), path, overrides or [])


def read_toml(path: Path, over: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of a recipe file, laid over the tables of the file that its `extends` names.

    Args:
        over: the files that extend it.

    Raises:
        UserError: no such file, bad TOML, files that extend each other.
    """
    path = resolve(path)
    if not path.is_file():
        raise UserError("a recipe file", f"no file {path}", "`parallel-r1 recipes` lists those that ship")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError("a recipe in TOML", f"{path}: {error}", "correct the line that it names") from error
    under = tree.pop("extends", None)
    if under is None:
        return tree
    over = (*over, path.resolve())
    if not isinstance(under, str) or extended(path, under).resolve() in over:
        raise UserError("the name of another recipe file in extends", f"{under!r} in {path}", "name one beside it")
    return _merge(read_toml(extended(path, under), over), tree)


def extended(path: Path, name: str) -> Path:
    """The file that the recipe at `path` names in its `extends`: a file beside it, or else one from the current folder
    or a shipped one, such as `recipes/tiny/demo.toml`."""
    beside, other = path.parent / name, resolve(Path(name))
    return other if other.exists() and not beside.exists() else beside


def make_recipe(tree: dict[str, Any], path: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe that a tree says, which is used up. A `[defaults]` table is laid under every stage, so that stages say
    only what differs.

    Raises:
        UserError: an unknown key, a value out of range; `path` is what they are said to stand in.
    """
    for override in overrides:
        apply_override(tree, override)
    _refuse_old_keys(tree, path)
    model = tree.get("model")
    if isinstance(model, dict) and isinstance(model.get("path"), str):
        model["path"] = resolve(model["path"])
    if isinstance(tree.get("imports"), list) and all(isinstance(name, str) for name in tree["imports"]):
        tree["imports"] = load_plugins(tree["imports"], path.parent)
    _spread_defaults(tree, path)
    return validated(Recipe, tree, path)


def _refuse_old_keys(tree: dict[str, Any], path: Path) -> None:
    """Say the new key of one that has moved or gone."""
    stages = tree.get("stages", {})
    tables = {"defaults": tree.get("defaults"), **(stages if isinstance(stages, dict) else {})}
    for table, stage in tables.items():
        where = "defaults" if table == "defaults" else f"stages.{table}"
        for key, new in MOVED.items():
            if _holds(stage, key):
                raise UserError(f"the keys of version 0.2 in {path}", f"{where}.{key}", f"it is {new} now")
    for key, table in GONE.items():
        if _holds(tree, key):
            raise UserError(
                f"the keys of version 0.2 in {path}", key, f"leave it out of [{table}]: it had one legal value"
            )


def _holds(tree: Any, key: str) -> bool:
    """Whether nested tables have a dotted key."""
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def validated(section: type[S], tree: dict[str, Any], path: Path) -> S:
    """A tree as what a file may say.

    Raises:
        UserError: an unknown key, a value out of range.
    """
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, path, section, tree) from error


def _spread_defaults(tree: dict[str, Any], path: Path) -> None:
    """Lay the `[defaults]` table under every stage that knows its keys, in place."""
    defaults, stages = tree.pop("defaults", {}), tree.get("stages", {})
    kinds: dict[str, type[Stage]] = {"sft": SFT, "rl": RL}
    known = {key for kind in kinds.values() for key in kind.model_fields}
    if not isinstance(defaults, dict):
        raise UserError("a table [defaults]", f"{defaults!r} in {path}", "name keys of a stage in it")
    for key in defaults:
        if key not in known:
            raise UserError("keys of a stage in [defaults]", f"'{key}' in {path}", nearest(key, known))
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        if isinstance(stage, dict) and stage.get("kind") in kinds:
            fields = kinds[stage["kind"]].model_fields
            stages[name] = _merge({key: value for key, value in defaults.items() if key in fields}, stage)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one value of a nested table in place: `a.b=3`. The value is read as TOML, else as a string."""
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError("--set section.key=value", f"'{override}'", "write it like --set stages.easy.steps=10")
    node: Any = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"a section '{part}'", f"a value in --set {override}", "name a key of a section")
    try:
        node[parts[-1]] = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        node[parts[-1]] = value


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as TOML: everything that a run used, defaults filled in."""
    import tomli_w

    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(error: ValidationError, path: Path, section: type[BaseModel], tree: dict[str, Any]) -> UserError:
    """The first problem of a file as one line."""
    # A key that nobody knows comes first: it may be the misspelt name of one that is said to be missing.
    first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    what = section.__name__.lower()
    # The third place inside a stage is its kind, which a recipe does not write there.
    where = ".".join(str(part) for at, part in enumerate(first["loc"]) if at != 2 or first["loc"][0] != "stages")
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1], section, tree)
        if section is Recipe and len(first["loc"]) == 1:
            known += ["defaults", "extends"]
        return UserError("a known key", f"'{where}' in {path}", nearest(str(first["loc"][-1]), known))
    if first["type"] == UNKNOWN_NAME:
        named = first["ctx"]
        return UserError(f"a known {named['kind']}", f"'{named['name']}' in {where} of {path}", named["advice"])
    if first["type"] == "union_tag_not_found":
        return UserError(
            "a kind, 'sft' or 'rl', in every stage", f"none in {where} of {path}", "is the name of the stage misspelt?"
        )
    message = first["msg"].removeprefix("Value error, ")
    found = f" (found {first['input']!r})" if not isinstance(first["input"], dict) else ""
    return UserError(f"a valid {what}", f"{path}: {where or what}{found}", message)


def _fields_at(location: tuple[int | str, ...], section: type[BaseModel], tree: Any) -> list[str]:
    """The keys that the section at a location of a validation error may have.

    Args:
        tree: what was validated; the fields of an algorithm depend on the name in its table.
    """
    for at, part in enumerate(location):
        if at == 2 and location[0] == "stages":  # the kind of a stage, which is no key
            section = SFT if part == "sft" else RL
            continue
        tree = tree.get(part) if isinstance(tree, dict) else None
        if part in section.model_fields:
            kinds = [kind for kind in _kinds(section.model_fields[str(part)].annotation)]
            section = kinds[0] if kinds else section
    if issubclass(section, PolicyGradient) and isinstance(tree, dict):
        return ["name", *ALGORITHMS[tree.get("name", DEFAULT_ALGORITHM)].model_fields]
    return list(section.model_fields)


def _kinds(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for inner in getattr(annotation, "__args__", ()) for kind in _kinds(inner)]
