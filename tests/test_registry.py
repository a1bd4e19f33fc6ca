"""Names of the user's own objects, and what goes wrong in files that register them."""

import pytest

from parallel_r1 import registry
from parallel_r1.errors import UserError
from parallel_r1.registry import Registry, load_plugins, plugin_error

THINGS = Registry("thing")


def write(folder, name, text):
    (folder / name).write_text(f"from test_registry import THINGS\n{text}")
    return name


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Plug-ins import this file; nothing that one test registers is there for the next."""
    monkeypatch.syspath_prepend(str(__import__("pathlib").Path(__file__).parent))
    import test_registry

    test_registry.THINGS.__init__("thing")


def things():
    import test_registry

    return test_registry.THINGS


def test_a_file_registers_and_is_loaded_once(tmp_path):
    name = write(tmp_path, "mine.py", "def f(): pass\nTHINGS.add('f', f, f)\n")
    (path,) = load_plugins([name], tmp_path)
    assert path == str(tmp_path / "mine.py")
    first = things()["f"]
    assert load_plugins([path], tmp_path) == [path]
    assert things()["f"] is first
    assert list(things()) == ["f"]


def test_two_files_of_one_name_have_classes_of_their_own(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(
            tmp_path / folder,
            "same.py",
            f"class {folder.title()}: pass\nTHINGS.add('{folder}', {folder.title()}, {folder.title()})\n",
        )
        load_plugins(["same.py"], tmp_path / folder)
    for folder in ("one", "two"):
        assert registry.where(things()[folder]) == f"{tmp_path / folder / 'same.py'}:2"


def test_an_unknown_name_suggests_the_nearest():
    things().add("brief", 1, test_an_unknown_name_suggests_the_nearest)
    with pytest.raises(UserError, match=r"a registered thing; found 'breif'; did you mean 'brief'"):
        things()["breif"]


def test_two_files_may_not_share_a_name(tmp_path):
    for name in ("one.py", "two.py"):
        write(tmp_path, name, "def f(): pass\nTHINGS.add('f', f, f)\n")
    with pytest.raises(UserError, match=r"one thing named 'f'; found a second one at .*two.py:2, the first at .*one"):
        load_plugins(["one.py", "two.py"], tmp_path)


def test_the_same_definition_may_be_run_again():
    def f(): ...

    things().add("f", 1, f)
    things().add("f", 2, f)
    assert things()["f"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = missing\n", r"mine.py:3: NameError: name 'missing'"),
        ("def f(:\n", r"mine.py:2: SyntaxError"),
        ("import no_such_package\n", r"mine.py:2: ModuleNotFoundError"),
        ("raise SystemExit(3)\n", r"mine.py:2: SystemExit: 3"),
    ],
)
def test_a_file_that_does_not_import_is_one_line_with_its_place(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load_plugins([write(tmp_path, "mine.py", text)], tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere.py", "no_such_module"])
def test_what_is_not_there_is_named(tmp_path, name):
    with pytest.raises(UserError, match=name):
        load_plugins([name], tmp_path)


def test_an_exception_in_a_plugin_is_explained_and_others_are_not(tmp_path):
    load_plugins([write(tmp_path, "mine.py", "def f():\n    return 1 / 0\nTHINGS.add('f', f, f)\n")], tmp_path)
    with pytest.raises(ZeroDivisionError) as caught:
        things()["f"]()
    assert "mine.py:3: ZeroDivisionError" in str(plugin_error(caught.value))
    with pytest.raises(ZeroDivisionError) as caught:
        1 / 0  # noqa: B018
    assert plugin_error(caught.value) is None
