import pytest
import torch
from torch import nn

from tracer.parameters import name_filter, named_parameters


def names(model: object) -> list[str]:
    """The names in the log."""
    assert isinstance(model, nn.Module)
    return [parameter.name for parameter in named_parameters(model)]


def test_names_are_those_of_named_parameters() -> None:
    """Without wrappers and ties, names and order are torch's own."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2), nn.BatchNorm1d(2)]))
    assert names(model) == [name for name, _ in model.named_parameters()]


def test_wrappers_leave_no_prefix() -> None:
    """A model has the same names inside DataParallel and torch.compile, also where they wrap a part of it."""
    inner = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    plain = names(inner)
    assert names(nn.DataParallel(inner)) == plain
    assert names(torch.compile(inner)) == plain
    inner[1].compile()
    assert names(nn.DataParallel(inner)) == plain
    assert names(nn.Sequential(nn.DataParallel(inner[0]), inner[1])) == plain


def test_a_module_that_the_user_called_module_keeps_its_name() -> None:
    """Only a wrapper's prefix is dropped, not a name that a user gave."""
    model = nn.ModuleDict({"module": nn.Linear(2, 2, bias=False)})
    assert names(model) == ["module.weight"]


def test_a_tied_parameter_has_one_name_and_its_aliases() -> None:
    """A parameter shared by three modules appears once, under its first name."""
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3)))
    model[1].weight = model[2].weight = model[0].weight
    (tied,) = named_parameters(model)
    assert (tied.name, tied.aliases) == ("0.weight", ("1.weight", "2.weight"))


def test_a_module_used_twice_gives_aliases() -> None:
    """A module that stands in two places ties all its parameters."""
    shared = nn.Linear(2, 2)
    found = {parameter.name: parameter.aliases for parameter in named_parameters(nn.Sequential(shared, shared))}
    assert found == {"0.weight": ("1.weight",), "0.bias": ("1.bias",)}


@pytest.mark.parametrize(
    ("select", "chosen"),
    [
        (None, ["conv.weight", "fc.bias"]),
        ("^conv", ["conv.weight"]),
        ("bias", ["fc.bias"]),
        (str.isupper, []),
        (lambda name: name.endswith("weight"), ["conv.weight"]),
    ],
)
def test_a_filter_is_a_pattern_or_a_callable(select: object, chosen: list[str]) -> None:
    """A pattern may match anywhere in the name; a callable decides by itself."""
    wanted = name_filter(select)  # type: ignore[arg-type]
    assert [name for name in ("conv.weight", "fc.bias") if wanted(name)] == chosen
