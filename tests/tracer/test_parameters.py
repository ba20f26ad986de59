import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import tracer
from tests.training import by_hand, extremes_of, loss_of, mlp, recorded
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


class Wrapper(nn.Module):
    """Wraps a model as libraries do: Opacus keeps it as ``_module``, DeepSpeed and Megatron as ``module``."""

    def __init__(self, model: nn.Module, name: str = "module") -> None:
        super().__init__()
        self.add_module(name, model)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Call the wrapped model."""
        (model,) = self.children()
        result: torch.Tensor = model(*inputs)
        return result


WRAPPERS: list[Callable[[nn.Module], Any]] = [
    nn.DataParallel,
    torch.compile,
    checkpoint_wrapper,
    AveragedModel,
    Wrapper,
    lambda model: Wrapper(model, "_module"),
    lambda model: Wrapper(model, "_fsdp_wrapped_module"),
    lambda model: nn.DataParallel(Wrapper(checkpoint_wrapper(model), "_module")),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_model_is_logged_under_its_own_class_and_names(
    wrap: Callable[[nn.Module], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever wraps a model, or a part of it, the log has the names and the class that it has without."""
    monkeypatch.chdir(tmp_path)
    inner = mlp()
    plain = names(copy.deepcopy(inner))
    with tracer.attach(wrap(inner)) as trace:
        pass
    info = json.loads((trace.path / "run.json").content())
    assert info["model"] == "Sequential"
    assert str(trace.path).endswith("-Sequential")
    assert [param["name"] for param in info["params"]] == plain
    assert names(nn.Sequential(wrap(inner[0]), inner[1], inner[2])) == plain


def test_what_users_add_to_a_wrapper_leaves_the_other_names_as_they_are() -> None:
    """A wrapper of torch's that has got a further child hides its own name still."""
    wrapper = nn.DataParallel(nn.Linear(2, 2, bias=False))
    wrapper.head = nn.Linear(2, 2, bias=False)
    assert names(wrapper) == ["weight", "head.weight"]


@pytest.mark.parametrize("name", ["module", "_module"])
def test_a_part_that_the_user_called_module_keeps_its_name(name: str) -> None:
    """Only a wrapper's prefix is dropped, not the name of one part among others, or in a container."""
    model = Wrapper(nn.Linear(2, 2, bias=False), name)
    model.head = nn.Linear(2, 2, bias=False)
    assert names(model) == [f"{name}.weight", "head.weight"]
    scaled = Wrapper(nn.Linear(2, 2, bias=False), name)
    scaled.weight = nn.Parameter(torch.ones(2))
    assert names(scaled) == ["weight", f"{name}.weight"]


def test_a_module_that_the_user_called_module_keeps_its_name() -> None:
    """Only a wrapper's prefix is dropped, not a name that a user gave."""
    model = nn.ModuleDict({"module": nn.Linear(2, 2, bias=False)})
    assert names(model) == ["module.weight"]


def keras_names(model: nn.Module) -> nn.Module:
    """A model whose parameters are called as Keras calls them: by one flat name each, with slashes."""
    keras = nn.Module()
    keras._functional = nn.Module()
    keras._functional._torch_params = nn.ParameterDict()
    for name, parameter in model.named_parameters():
        keras._functional._torch_params[f"sequential/{name.replace('.', '/')}"] = parameter
    return keras


def test_a_callable_gives_parameters_their_names(tmp_path: Path) -> None:
    """With rename=, run.json, rows and params= have the new names, and each row is that of its parameter."""
    model = mlp()
    renamed = keras_names(model)
    with tracer.attach(renamed, tmp_path / "run", rename=lambda name: name.rpartition("sequential/")[2], params="^0/"):
        loss_of(model).backward()
        expected = by_hand(model)
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [param["name"] for param in info["params"]] == ["0/weight", "0/bias"]
    found = {name.replace("/", "."): extremes_of(row) for (_, name), row in recorded(tmp_path / "run").items()}
    assert found == {name: expected[name] for name in ("0.weight", "0.bias")}


@pytest.mark.parametrize(
    ("rename", "error", "message"),
    [
        (lambda name: name.rpartition(".")[2], ValueError, "gives 0.weight and 2.weight one name, 'weight'"),
        (lambda name: None, TypeError, "gives None for 0.weight: it must return a text"),
        ({"0.weight": "a"}.__getitem__, KeyError, "0.bias"),
        ("weight", TypeError, "rename='weight' must be a callable"),
    ],
)
def test_names_that_are_none_are_refused(rename: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    """Two parameters of one name, a name that is no text, and a callable that raises end attach, and make no folder."""
    with pytest.raises(error, match=message):
        tracer.attach(mlp(), tmp_path / "run", rename=rename)
    assert not (tmp_path / "run").exists()


def test_a_name_that_utf_8_cannot_hold_is_given_with_escapes(tmp_path: Path) -> None:
    """As a file name in another encoding may be: it costs no row."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run", rename=lambda name: f"{name}\udcff"):
        loss_of(model).backward()
    assert {param for _, param in recorded(tmp_path / "run")} == {rf"{name}\udcff" for name in names(model)}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({}, "extra"),
        ({"extra": "w0"}, "extra"),
        ({"extra": "w0", "0.bias": "extra"}, "extra'"),
        ({"extra": "w0", "0.bias": "extra", "2.bias": "extra'"}, "extra''"),
    ],
    ids=["it raises", "taken", "taken, and its own, too", "taken, and what it would get, too"],
)
def test_a_name_that_cannot_be_given_in_mid_training_is_one_warning(
    names: dict[str, str], expected: str, tmp_path: Path
) -> None:
    """A parameter that joins, and for which rename fails, is recorded beside the others; training goes on."""
    model = mlp()
    given = {name: f"w{number}" for number, name in enumerate(dict(model.named_parameters()))} | names
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(tracer.TracerWarning, match=rf"extra is recorded as {expected}, since rename fails") as caught,
        tracer.attach(model, tmp_path / "run", rename=given.__getitem__),
    ):
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            model.extra = nn.Parameter(torch.full((2,), 7.0))
    assert len(caught) == 1
    rows = recorded(tmp_path / "run")
    assert {param for step, param in rows if step == 2} == {*list(given.values())[:4], expected}
    assert rows[2, expected]["value_max"] == 7.0


def test_names_that_cannot_be_given_are_said_once(tmp_path: Path) -> None:
    """Of several parameters for which rename fails in mid-training, each is recorded, and the first is warned of."""
    model = mlp()
    given = {name: name for name, _ in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.warns(tracer.TracerWarning, match="one is recorded as one, since rename fails") as caught,
        tracer.attach(model, tmp_path / "run", rename=given.__getitem__),
    ):
        for name in ("one", "two", "three"):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            model.register_parameter(name, nn.Parameter(torch.ones(2)))
    assert len(caught) == 1
    assert {param for step, param in recorded(tmp_path / "run") if step == 2} == {*given, "one", "two"}


def test_a_tied_parameter_has_one_name_and_its_aliases() -> None:
    """A parameter shared by three modules appears once, under its first name."""
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3)))
    model[1].weight = model[2].weight = model[0].weight
    (tied,) = named_parameters(model)
    assert (tied.name, tied.aliases) == ("0.weight", ("1.weight", "2.weight"))


def test_an_alias_that_utf_8_cannot_hold_has_escapes(tmp_path: Path) -> None:
    """A tied parameter's further name is written into run.json as its first one is."""
    model = nn.Linear(2, 1, bias=False)
    model.register_parameter("again\udcff", next(model.parameters()))
    tracer.attach(model, tmp_path / "run").close()
    (described,) = json.loads((tmp_path / "run" / "run.json").read_text())["params"]
    assert described["aliases"] == [r"again\udcff"]


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
