import tomllib

import pytest
from common import RECIPES, SMALL, write

from parallel_r1.answers.trace import EXACT_SCORER
from parallel_r1.errors import UserError
from parallel_r1.runs.recipe_file import apply_override, dump_recipe, load_recipe
from parallel_r1.training.algorithms.grpo import GRPO
from parallel_r1.training.algorithms.gspo import GSPO
from parallel_r1.training.algorithms.rloo import RLOO


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_recipes_load_and_survive_being_written(path, tmp_path):
    recipe = load_recipe(path)
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe


def test_defaults_lie_under_every_stage(tmp_path):
    recipe = load_recipe(write(tmp_path, SMALL))
    assert recipe.stages["one"].sampling.paths == 3
    assert recipe.stages["two"].sampling.budget.path == 20
    assert recipe.stages["two"].sampling.sampler == "sequential"
    assert recipe.start_of("one") == "base"
    assert recipe.start_of("two") == "one"


def test_a_recipe_lies_over_the_one_that_it_extends(tmp_path):
    write(tmp_path, SMALL)
    child = tmp_path / "child.toml"
    child.write_text(
        "extends = 'r.toml'\nname = 'y'\n[stages.two]\nsteps = 9\n[stages.three]\nkind = 'rl'\n"
        "task = 'countdown-easy'\nsteps = 1\n[defaults.sampling]\npaths = 4"
    )
    recipe = load_recipe(child, ["stages.one.steps=1"])
    assert list(recipe.stages) == ["one", "two", "three"]
    assert [stage.steps for stage in recipe.stages.values()] == [1, 9, 1]
    assert [stage.sampling.paths for stage in recipe.stages.values()] == [4, 4, 4]
    assert (recipe.name, recipe.model.path) == ("y", "models/tiny-base")
    (tmp_path / "other.toml").write_text("extends = 'child.toml'")
    for wrong in ("'child.toml'", "'other.toml'", "'none.toml'", "3"):
        child.write_text(f"extends = {wrong}")
        with pytest.raises(UserError, match="recipe file"):
            load_recipe(child)


def test_overrides(tmp_path):
    recipe = load_recipe(
        write(tmp_path, SMALL),
        [
            "seed=7",
            "stages.one.steps=9",
            "model.path=elsewhere",
            "stages.two.reward=bonus(0.3)",
            "defaults.sampling.paths=5",
            "stages.two.sampling.budget.total=33",
        ],
    )
    assert (recipe.seed, recipe.stages["one"].steps, recipe.model.path) == (7, 9, "elsewhere")
    assert recipe.stages["two"].reward == "bonus(0.3)"
    assert recipe.stages["two"].sampling.paths == 5
    assert recipe.stages["two"].sampling.budget.total == 33
    tree = {}
    apply_override(tree, "a.b=[1, 2]")
    assert tree == {"a": {"b": [1, 2]}}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sede=1", "did you mean 'seed'"),
        ("stages.one.stepz=1", "did you mean 'steps'"),
        ("stages.two.sampling.budget.pth=1", "did you mean 'path'"),
        ("stages.two.algorithm.clip_hihg=1", "did you mean 'clip_high'"),
        ("stages.two.algorithm.name=gspoo", "did you mean 'gspo'"),
        ("stages.two.algorithm={name='rloo',std='none'}", "'stages.two.algorithm.std'"),
        ("stages.two.algorithm={name='gspo',minibatchs=2}", "did you mean 'minibatches'"),
        ("stages.two.algorithm.nam=rloo", "did you mean 'name'"),
        ("stages.two.algorithm=rlo", "did you mean 'rloo'"),
        ("stages.two.algorithm=3", "stages.two.algorithm"),
        ("defaults.algorithm.clip_lwo=1", "did you mean 'clip_low'"),
        ("stages.two.algorithm.std=grup", "'group', 'batch' or 'none'"),
        ("stages.two.algorithm.minibatches=3", "divisible by algorithm.minibatches"),
        ("stages.two.group=1", "greater than or equal to 2"),
        ("defaults.stpes=1", "did you mean 'steps'"),
        ("stages.one.steps=0", "greater than or equal to 1"),
        ("stages.one.steps=many", "stages.one.steps"),
        ("stages.two.allow_mismatch=true", "stages.two.allow_mismatch; it is no key any more"),
        ("stages.two.sampling.rows=3", "stages.two.sampling.rows; it is engine.rows"),
        ("defaults.sampling.memory=3", "defaults.sampling.memory; it is engine.memory"),
        ("defaults.sampling.compile=true", "it is engine.compile"),
        ("stages.two.sampling.instruction=x", "it is prompt.instruction"),
        ("stages.two.sampling.final=anywhere", "it is prompt.final_answer"),
        ("model.attention=sdpa", "leave it out of [model]"),
        ("imports=['nowhere.py']", "nowhere.py"),
        ("stages.two.start=three", "three"),
        ("stages.two.kind=rll", "stages.two"),
        ("steps", "--set section.key=value"),
        (".=1", "--set section.key=value"),
        ("seed.x=1", "seed"),
        ('compare=[["one", "tow"]]', "did you mean 'two'"),
        ("stages.one.data.file=x.jsonl", "exactly one of file and tasks"),
        ("defaults=3", "a table [defaults]"),
        ("defualts.steps=3", "did you mean 'defaults'"),
        ("stages.tow.steps=3", "none in stages.tow"),
        ("stages.one.optimizer.lr=inf", "finite number"),
        ("stages.one.optimizer.betas=[1.0, 0.9]", "less than 1"),
        ("engine.memory=512", "above stages.one.sampling.budget.total (512)"),
        ("evaluation.problems=1000000", "less than or equal to 100000"),
        (
            "stages.two={kind='rl',task='x',steps=1,scorer='replay',algorithm={kl=1},sampling={top_p=0.9}}",
            "kl",
        ),
    ],
)
def test_a_mistake_is_one_clear_error(tmp_path, override, said):
    with pytest.raises(UserError, match="expected") as caught:
        load_recipe(write(tmp_path, "seed = 1\n" + SMALL), [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_algorithm_is_chosen_by_its_name_and_written_in_full(tmp_path):
    recipe = load_recipe(write(tmp_path, SMALL), ["stages.two.algorithm={name='gspo',clip_low=1e-3}"])
    assert recipe.stages["two"].algorithm == GSPO(clip_low=1e-3)
    table = tomllib.loads(dump_recipe(recipe))["stages"]["two"]["algorithm"]
    assert table["name"] == "gspo"
    assert (table["clip_low"], table["clip_high"], table["average"]) == (1e-3, 4e-4, "answers")
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe
    assert load_recipe(write(tmp_path, SMALL)).stages["two"].algorithm == GRPO()
    assert load_recipe(write(tmp_path, SMALL), ["stages.two.algorithm=rloo"]).stages["two"].algorithm == RLOO()
    changed = load_recipe(write(tmp_path, SMALL), ["defaults.algorithm.name=rloo", "stages.two.algorithm.kl=0.1"])
    assert changed.stages["two"].algorithm == RLOO(kl=0.1)


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="no file"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(UserError, match="TOML"):
        load_recipe(write(tmp_path, "a = = 1"))
    with pytest.raises(UserError, match="stages"):
        load_recipe(write(tmp_path, 'name = "x"\n[model]\npath = "y"'))


def test_one_kind_of_stage_only(tmp_path):
    recipe = load_recipe(write(tmp_path, SMALL + 'start = "one"\n'))
    assert list(recipe.only("rl").stages) == ["two"]
    assert recipe.only("rl").start_of("two") == "base"
    with pytest.raises(UserError, match="'rl'"):
        recipe.only("sft").only("rl")


def test_a_stage_whose_start_is_left_out_begins_where_that_began(tmp_path):
    """Two branches from one cold start stay two."""
    other = "[stages.other]\nkind = 'rl'\ntask = 'countdown-easy'\nsteps = 1\nstart = 'one'\n"
    more = "[stages.last]\nkind = 'rl'\ntask = 'countdown-easy'\nsteps = 1\n"
    recipe = load_recipe(write(tmp_path, SMALL + other + more)).only("rl")
    assert {name: recipe.start_of(name) for name in recipe.stages} == {"two": "base", "other": "base", "last": "other"}


def test_a_scorer_is_the_samplers_exact_partner_unless_written_down(tmp_path):
    for sampler, scorer in EXACT_SCORER.items():
        recipe = load_recipe(write(tmp_path, SMALL), [f"stages.one.sampling.sampler={sampler}"])
        assert recipe.stages["one"].scorer == scorer
        assert recipe.stages["one"].is_exact
    recipe = load_recipe(write(tmp_path, SMALL), ["stages.one.scorer=causal"])
    assert not recipe.stages["one"].is_exact
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe
