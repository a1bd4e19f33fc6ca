"""Recipe files: read and write TOML, apply `a.b=value` overrides, report a mistake in one line."""

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
    "hold_back": "no key any more: no stage trains on validation problems",
    "allow_mismatch": "no key any more: the scorer that a recipe names is used unchanged",
}
"""Keys of a stage in earlier versions -> their present place."""
GONE = {"model.attention": "model", "model.lora.dropout": "model.lora"}
"""Removed keys that had only one legal value -> their table."""


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file, apply `a.b=value` overrides, fill in defaults, validate.

    Args:
        path: a file, or the path of a shipped recipe such as `recipes/tiny/demo.toml`.

    Raises:
        UserError: no such file, bad TOML, an unknown key, a value out of range.
    """
    path = resolve(path)
    return make_recipe(read_toml(path), path, overrides or [])


def read_toml(path: Path, over: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of a recipe file, merged into the tables of the file in its `extends`.

    Args:
        over: the files that extend this one, to detect a cycle.

    Raises:
        UserError: no such file, bad TOML, files that extend each other.
    """
    path = resolve(path)
    if not path.is_file():
        raise UserError("a recipe file", f"no file {path}", "`parallel-r1 recipes` lists the shipped ones")
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
    """The file that the recipe at `path` names in its `extends`. It is looked up beside the recipe, then from the
    current folder, then among the shipped files, such as `recipes/tiny/demo.toml`."""
    beside, other = path.parent / name, resolve(Path(name))
    return other if other.exists() and not beside.exists() else beside


def make_recipe(tree: dict[str, Any], path: Path, overrides: Sequence[str]) -> Recipe:
    """Build a recipe from nested tables. Values of a `[defaults]` table apply to every stage that does not set them.

    Args:
        tree: the tables; changed in place.
        path: the recipe's file, for error messages; its `imports` are relative to the folder of this file.
        overrides: changes such as `a.b=3`.

    Raises:
        UserError: an unknown key, a value out of range, an import that fails.
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
    """Raise an error that names the new place of a key of version 0.2."""
    stages = tree.get("stages", {})
    tables = {"defaults": tree.get("defaults"), **(stages if isinstance(stages, dict) else {})}
    for table, stage in tables.items():
        where = "defaults" if table == "defaults" else f"stages.{table}"
        for key, new in MOVED.items():
            if _holds(stage, key):
                raise UserError(f"the keys of this version in {path}", f"{where}.{key}", f"it is {new} now")
    for key, table in GONE.items():
        if _holds(tree, key):
            raise UserError(
                f"the keys of this version in {path}", key, f"leave it out of [{table}]: it had one legal value"
            )


def _holds(tree: Any, key: str) -> bool:
    """Whether nested tables contain a dotted key."""
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def validated(section: type[S], tree: dict[str, Any], path: Path) -> S:
    """Validate nested tables as settings.

    Args:
        section: the class of the settings.
        path: the file of the tables, for error messages.

    Raises:
        UserError: an unknown key, a value out of range.
    """
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, path, section, tree) from error


def _spread_defaults(tree: dict[str, Any], path: Path) -> None:
    """Copy the values of the `[defaults]` table into every stage that has such keys and does not set them, in place."""
    defaults, stages = tree.pop("defaults", {}), tree.get("stages", {})
    kinds: dict[str, type[Stage]] = {"sft": SFT, "rl": RL}
    valid = {key for kind in kinds.values() for key in kind.model_fields}
    if not isinstance(defaults, dict):
        raise UserError("a table [defaults]", f"{defaults!r} in {path}", "name keys of a stage in it")
    for key in defaults:
        if key not in valid:
            raise UserError("keys of a stage in [defaults]", f"'{key}' in {path}", nearest(key, valid))
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        if isinstance(stage, dict) and stage.get("kind") in kinds:
            fields = kinds[stage["kind"]].model_fields
            stages[name] = _merge({key: value for key, value in defaults.items() if key in fields}, stage)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one value of nested tables in place, from `a.b=3`. A value that is not valid TOML is a string."""
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
    """The recipe as TOML, with all defaults filled in."""
    import tomli_w

    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def difference(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first key whose values differ in two recipes, with both values; None if the recipes are equal."""
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := difference(old, new):
                return f"{key}.{inner[0]}", *inner[1:]
        elif old != new:
            old_text, new_text = ("nothing" if value is None else repr(value) for value in (old, new))
            return key, old_text, new_text
    return None


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested tables with the values of both; `over` has precedence."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(error: ValidationError, path: Path, section: type[BaseModel], tree: dict[str, Any]) -> UserError:
    """The first mistake in a file as one line."""
    # An unknown key comes first: it may be the misspelling of a key that another error reports as missing.
    first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    noun = section.__name__.lower()
    # pydantic puts the kind of a stage third in the location, where a recipe has no key.
    where = ".".join(str(part) for at, part in enumerate(first["loc"]) if at != 2 or first["loc"][0] != "stages")
    if first["type"] == "extra_forbidden":
        valid = _fields_at(first["loc"][:-1], section, tree)
        if section is Recipe and len(first["loc"]) == 1:
            valid += ["defaults", "extends"]
        return UserError("a valid key", f"'{where}' in {path}", nearest(str(first["loc"][-1]), valid))
    if first["type"] == UNKNOWN_NAME:
        context = first["ctx"]
        return UserError(
            f"a registered {context['kind']}", f"'{context['name']}' in {where} of {path}", context["advice"]
        )
    if first["type"] == "union_tag_not_found":
        return UserError(
            "a kind, 'sft' or 'rl', in every stage", f"none in {where} of {path}", "is the name of the stage misspelt?"
        )
    message = first["msg"].removeprefix("Value error, ")
    value = f" (found {first['input']!r})" if not isinstance(first["input"], dict) else ""
    return UserError(f"a valid {noun}", f"{path}: {where or noun}{value}", message)


def _fields_at(location: tuple[int | str, ...], section: type[BaseModel], tree: Any) -> list[str]:
    """The valid keys of the section at the location of a validation error.

    Args:
        tree: the validated tables; the fields of an algorithm depend on the name in its table.
    """
    for at, part in enumerate(location):
        if at == 2 and location[0] == "stages":  # the kind of a stage, which is not a key
            section = SFT if part == "sft" else RL
            continue
        tree = tree.get(part) if isinstance(tree, dict) else None
        if part in section.model_fields:
            kinds = _kinds(section.model_fields[str(part)].annotation)
            section = kinds[0] if kinds else section
    if issubclass(section, PolicyGradient) and isinstance(tree, dict):
        return ["name", *ALGORITHMS[tree.get("name", DEFAULT_ALGORITHM)].model_fields]
    return list(section.model_fields)


def _kinds(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes in a type annotation, such as `SFT` and `RL` in `SFT | RL`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for inner in getattr(annotation, "__args__", ()) for kind in _kinds(inner)]
