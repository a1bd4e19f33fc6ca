"""The command that lists, prints and copies the shipped recipes."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from parallel_r1 import shipped
from parallel_r1.cli import options
from parallel_r1.cli.app import app, console, print_json
from parallel_r1.errors import UserError, nearest
from parallel_r1.files import written


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe of the list, such as tiny/demo.")] = None,
    copy: Annotated[
        Path | None,
        typer.Option("--copy", help="Copy the recipe into this folder, with the recipes that it extends."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the recipes and studies that ship with the package, print one, or copy one to change it."""
    files = _files()
    if name is None:
        if copy is not None:
            raise UserError("a recipe to copy", "none", "write parallel-r1 recipes NAME --copy FOLDER")
        _print_list(files, as_json)
        return
    name = name.removeprefix("recipes/").removesuffix(".toml")
    if name not in files:
        raise UserError("a recipe that ships", f"'{name}'", nearest(name, files))
    if copy is None:
        text = files[name].read_text(encoding="utf-8")
        if as_json:
            print_json({**_about(name, files[name]), "text": text})
        else:
            print(text, end="")
        return
    copies = _copy(files[name], copy)
    if as_json:
        print_json({"name": name, "files": [str(path) for path in copies]})
    else:
        for path in copies:
            console.print(f"wrote {path}", soft_wrap=True, highlight=False)


def _files() -> dict[str, Path]:
    """The shipped recipes and studies by name. Files without the key `name` only serve to be extended by others."""
    folder = shipped.root() / "recipes"
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.toml"))}
    return {name: path for name, path in files.items() if "name" in tomllib.loads(path.read_text(encoding="utf-8"))}


def _print_list(files: dict[str, Path], as_json: bool) -> None:
    rows = [_about(name, path) for name, path in files.items()]
    if as_json:
        print_json(rows)
        return
    width = max(map(len, files))
    for row in rows:
        console.print(f"{row['name']:{width}}  {row['description']}", markup=False, highlight=False, soft_wrap=True)
    console.print("run one with parallel-r1 train recipes/NAME.toml, a study with parallel-r1 study", style="dim")


def _about(name: str, path: Path) -> dict[str, Any]:
    """Name, kind, description and file of a recipe. The description is the first sentence of the file's comment."""
    text = path.read_text(encoding="utf-8")
    tree = tomllib.loads(text)
    comment: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#") or line == "#":
            break
        comment.append(line.removeprefix("#").strip())
    first, stop, _ = " ".join(comment).partition(". ")
    return {
        "name": name,
        "kind": "study" if "rows" in tree else "recipe",
        "description": first + "." if stop else first,
        "file": f"recipes/{name}.toml",
    }


def _copy(path: Path, folder: Path) -> list[Path]:
    """Copy a recipe and the recipes that it extends into a folder. No file is overwritten."""
    from parallel_r1.runs.recipe_file import extended

    sources = [path]
    while under := tomllib.loads(sources[-1].read_text(encoding="utf-8")).get("extends"):
        sources.append(extended(sources[-1], under))
    copies = [folder / source.name for source in sources]
    for copy in copies:
        if copy.exists():
            raise UserError("a folder without this recipe for --copy", f"{copy} exists", "name another folder")
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for source, copy in zip(sources, copies, strict=True):
            shutil.copyfile(source, copy)
    return copies
