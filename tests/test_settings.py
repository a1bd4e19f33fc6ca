"""A mistake in the settings is one line, whoever makes it."""

import pytest
from pydantic import ValidationError

import parallel_r1 as pr
from parallel_r1.errors import UserError
from parallel_r1.generation.settings import Sampling


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"pathes": 3}, "expected a field of Sampling; found 'pathes'; did you mean 'paths'?"),
        (
            {"budget": {"totl": 3}},
            "expected a field of Sampling.budget; found 'totl'; see the fields of its class",
        ),
        ({"paths": 0, "pathes": 3}, "expected a field of Sampling; found 'pathes'; did you mean 'paths'?"),
    ],
)
def test_an_unknown_field_is_one_line(values, line):
    with pytest.raises(UserError) as error:
        pr.Sampling(**values)
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("values", "found"), [({"paths": 0}, "paths = 0"), ({"budget": {"total": -1}}, "budget.total = -1")]
)
def test_a_value_out_of_range_is_one_line(values, found):
    with pytest.raises(UserError, match=r"^expected a valid Sampling; found ") as error:
        pr.Sampling(**values)
    assert error.value.found == found


def test_a_recipe_reader_gets_all_mistakes_with_their_places():
    with pytest.raises(ValidationError) as error:
        Sampling.model_validate({"paths": 0, "budget": {"total": -1}})
    assert [entry["loc"] for entry in error.value.errors()] == [("paths",), ("budget", "total")]
