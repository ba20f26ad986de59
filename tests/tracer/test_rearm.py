"""Models that change while they are trained: every change is followed within its step, and is an event."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.testing._internal.two_tensor import TwoTensor

import tracer
from tests.training import Rows, assert_rows, by_hand, events, extremes_of, loss_of, mlp, recorded

CHANGE_AT = 2
Change = Callable[[nn.Sequential], None]


def train(model: nn.Sequential, change: Change, run: Path, count: int = 4) -> Rows:
    """Train with a change after two steps; returns by step and name what stood in the model before each update."""
    expected: Rows = {}
    with tracer.attach(model, run):
        for step in range(count):
            if step == CHANGE_AT:
                change(model)
            # Whoever changes a model makes its optimizer anew.
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = torch.optim.SGD(trained, lr=0.1)
            model.zero_grad()
            loss_of(model).backward()
            expected |= {(step, name): found for name, found in by_hand(model).items()}
            optimizer.step()
    return expected


def freeze(model: nn.Sequential) -> None:
    """Freeze the first layer."""
    model[0].requires_grad_(False)


def unfreeze(model: nn.Sequential) -> None:
    """Unfreeze the first layer."""
    model[0].requires_grad_(True)


def replace_one(model: nn.Sequential) -> None:
    """Put another tensor in the place of a weight."""
    model[0].weight = nn.Parameter(torch.randn(8, 6))


def assign(model: nn.Sequential) -> None:
    """Load a checkpoint whose tensors become the parameters."""
    model.load_state_dict({name: tensor * 2 for name, tensor in model.state_dict().items()}, assign=True)


def add(model: nn.Sequential) -> None:
    """Add a layer at the end."""
    model.append(nn.Linear(3, 2))


def add_to_a_module(model: nn.Sequential) -> None:
    """Add a parameter that no forward uses to a module that had none."""
    model[1].extra = nn.Parameter(torch.ones(2))


def take_away(model: nn.Sequential) -> None:
    """Take the last layer away."""
    del model[2]


def parametrized(model: nn.Sequential) -> None:
    """Compute a weight of another parameter."""
    parametrize.register_parametrization(model[0], "weight", nn.Softplus())


def rename(model: nn.Sequential) -> None:
    """Keep a module's last parameter under another key, as prune.remove and weight_norm do."""
    layer: Any = model[0]
    layer.shift = layer._parameters.pop("bias")
    layer.forward = lambda x: nn.functional.linear(x, layer.weight, layer.shift)


def move(model: nn.Sequential) -> None:
    """Keep the last module under another key."""
    model.add_module("last", model._modules.pop("2"))


def rebuild(model: nn.Sequential) -> None:
    """Give a model another dictionary of the same modules, under other names."""
    model._modules = {f"layer{name}": module for name, module in model._modules.items()}


def fill(model: nn.Sequential) -> None:
    """Give a module that held nothing another dictionary of parameters."""
    model[1]._parameters = {"extra": nn.Parameter(torch.ones(2))}


def take_over(model: nn.Sequential) -> None:
    """Give a module all that another one of its class holds."""
    model[0].__dict__.update(nn.Linear(6, 8).__dict__)


LAYERS = ("0.weight", "0.bias", "2.weight", "2.bias")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (rebuild, {("removed", name) for name in LAYERS} | {("joined", f"layer{name}") for name in LAYERS}),
        (fill, {("joined", "1.extra")}),
        (take_over, {("replaced", "0.weight"), ("replaced", "0.bias")}),
        (rename, {("removed", "0.bias"), ("joined", "0.shift")}),
        (move, {("removed", "2.weight"), ("removed", "2.bias"), ("joined", "last.weight"), ("joined", "last.bias")}),
        (freeze, {("frozen", "0")}),
        (replace_one, {("replaced", "0.weight")}),
        (assign, {("replaced", name) for name in LAYERS}),
        (add, {("joined", "3.weight"), ("joined", "3.bias")}),
        (add_to_a_module, {("joined", "1.extra")}),
        (take_away, {("removed", "2.weight"), ("removed", "2.bias")}),
        (parametrized, {("removed", "0.weight"), ("joined", "0.parametrizations.weight.original")}),
    ],
)
def test_a_change_is_followed_in_its_step_and_is_an_event(
    change: Change, expected: set[tuple[str, str]], tmp_path: Path
) -> None:
    """Rows hold what stands in the model in each step, from the first step after the change on, and events say it."""
    rows = train(mlp(), change, tmp_path / "run")
    assert {key: extremes_of(row) for key, row in recorded(tmp_path / "run").items()} == rows
    kinds = ("frozen", "unfrozen", "replaced", "joined", "removed")
    found = [(kind, param, step) for kind in kinds for step, param, _ in events(tmp_path / "run", kind)]
    assert sorted(found) == sorted((kind, param, CHANGE_AT) for kind, param in expected)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("subclass", [False, True])
def test_tensors_that_are_swapped_are_recorded_on(subclass: bool, every: int, tmp_path: Path) -> None:
    """Where a model that is moved swaps its tensors with new ones, as of some subclasses, hooks are set anew."""
    model = mlp()
    if subclass:
        model[0].bias = nn.Parameter(TwoTensor(torch.ones(8), torch.ones(8)))
    torch.__future__.set_swap_module_params_on_conversion(not subclass)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, expected = torch.randn(4, 6), []
    try:
        with tracer.attach(model, tmp_path / "run", every=every):
            for step in range(6):
                if step == 3:
                    model.double()
                    inputs = inputs.double()
                optimizer.zero_grad()
                model(inputs).square().mean().backward()
                expected.append(by_hand(model) if step % every == 0 else {})
                optimizer.step()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert_rows(tmp_path / "run", expected)


def test_a_pruned_parameter_gets_its_own_name_back(tmp_path: Path) -> None:
    """prune.remove gives the same tensor its first name: rows have it, and two events say what was what."""
    model = mlp()
    prune.l1_unstructured(model[2], "bias", amount=1)
    rows = train(model, lambda model: prune.remove(model[2], "bias"), tmp_path / "run")
    assert {key: extremes_of(row) for key, row in recorded(tmp_path / "run").items()} == rows
    assert {step for step, name in rows if name == "2.bias"} == {2, 3}
    assert events(tmp_path / "run", "removed") == [(2, "2.bias_orig", "is 2.bias now")]
    assert events(tmp_path / "run", "joined") == [(2, "2.bias", "(3,) torch.float32, was 2.bias_orig")]


def test_a_parameter_renamed_in_mid_step_keeps_the_steps_gradient(tmp_path: Path) -> None:
    """Between backward and update, where an unused parameter has the model looked at again: names may be exchanged."""
    model = mlp()
    model.unused = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", applied=True):
        loss_of(model).backward()
        model.add_module("last", model._modules.pop("2"))
        first, last = model[0].bias, model[2].bias
        model[0].bias, model[2].bias = last, first
        expected = by_hand(model)
        optimizer.step()
    found = {name: extremes_of(row) for (_, name), row in recorded(tmp_path / "run").items()}
    assert found == expected
    assert found["last.bias"]["grad_max"] is not None


def test_an_unfrozen_parameter_is_recorded_from_then_on(tmp_path: Path) -> None:
    """A frozen layer has values and null gradients; once it is unfrozen, in mid-run, gradients too."""
    model = mlp()
    model[0].requires_grad_(False)
    rows = train(model, unfreeze, tmp_path / "run")
    found = {key: extremes_of(row) for key, row in recorded(tmp_path / "run").items()}
    assert found == rows
    assert [found[step, "0.weight"]["grad_max"] is None for step in range(4)] == [True, True, False, False]
    assert events(tmp_path / "run", "unfrozen") == [(2, "0", '["0"]')]


def test_models_that_are_frozen_in_turns_are_one_event_a_change(tmp_path: Path) -> None:
    """As Lightning's toggle_optimizer does for a GAN: an event names the network that is frozen, not its parameters."""
    gan = nn.ModuleDict({"generator": mlp(), "critic": nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))})
    parts = list(gan.values())
    expected = []
    with tracer.attach(gan, tmp_path / "run"):
        for step in range(6):
            trained = parts[step % 2]
            for part in parts:
                part.requires_grad_(part is trained)
            gan.zero_grad()
            gan["critic"](gan["generator"](torch.randn(5, 6))).mean().backward()
            expected.append(by_hand(gan))
            torch.optim.SGD(trained.parameters(), lr=0.1).step()
    assert_rows(tmp_path / "run", expected)
    names = ["critic", "generator"]
    for kind, first in (("frozen", 0), ("unfrozen", 1)):
        told = [(step, names[(step + first) % 2]) for step in range(first, 6)]
        assert events(tmp_path / "run", kind) == [(step, name, f'["{name}"]') for step, name in told]


def test_parameters_that_are_frozen_across_modules_are_one_event(tmp_path: Path) -> None:
    """A module and a part of another one: the event lists them; a further change in the model hides nothing of it."""

    def change(model: nn.Sequential) -> None:
        model[2].bias.requires_grad_(False)
        model[0].requires_grad_(False)
        model.append(nn.Dropout(0.0))

    rows = train(nn.Sequential(*mlp(), nn.Linear(3, 2)), change, tmp_path / "run")
    assert {key: extremes_of(row) for key, row in recorded(tmp_path / "run").items()} == rows
    assert events(tmp_path / "run", "frozen") == [(CHANGE_AT, None, '["0", "2.bias"]')]


def test_a_parameter_that_is_frozen_while_another_joins_is_an_event(tmp_path: Path) -> None:
    """A change of what is trained is told beside a change of what there is."""

    def change(model: nn.Sequential) -> None:
        model[0].weight.requires_grad_(False)
        model[2].weight = nn.Parameter(torch.randn(3, 8), requires_grad=False)

    rows = train(mlp(), change, tmp_path / "run")
    assert {key: extremes_of(row) for key, row in recorded(tmp_path / "run").items()} == rows
    assert events(tmp_path / "run", "frozen") == [(CHANGE_AT, "0.weight", '["0.weight"]')]
    assert [param for _, param, _ in events(tmp_path / "run", "replaced")] == ["2.weight"]


def test_a_model_from_the_meta_device_is_recorded_once_it_has_numbers(tmp_path: Path) -> None:
    """A model that is attached before to_empty is followed to its new parameters."""
    with torch.device("meta"):
        model = mlp()
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            optimizer.step()
    wanted = {(step, name): found for step, names in enumerate(expected) for name, found in names.items()}
    assert {key: extremes_of(row) for key, row in recorded(tmp_path / "run").items()} == wanted


def test_a_layer_that_replaces_one_at_the_same_address_is_followed(tmp_path: Path) -> None:
    """A new layer is noticed even where it lies in memory where the old one lay."""
    model = mlp()
    expected: Rows = {}
    with tracer.attach(model, tmp_path / "run"):
        for step in range(5):
            del model[2]
            model.append(nn.Linear(8, 3))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model.zero_grad()
            loss_of(model).backward()
            expected |= {(step, name): found for name, found in by_hand(model).items()}
            optimizer.step()
    assert {key: extremes_of(row) for key, row in recorded(tmp_path / "run").items()} == expected


@pytest.mark.parametrize("removed", ["a", "b"])
def test_the_first_gradient_of_a_step_may_be_that_of_a_removed_parameter(removed: str, tmp_path: Path) -> None:
    """A part that has left the model gets the first gradient: training goes on, and no other's row holds it."""
    model = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    kept = "b" if removed == "a" else "a"
    gone, stays = model[removed], model[kept]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run"):
        for step in range(4):
            if step == 2:
                del model[removed]
            optimizer.zero_grad()
            if step >= 2:
                gone(torch.full((1, 1), 1000.0)).sum().backward()
            stays(torch.ones(1, 1)).sum().backward()
            optimizer.step()
    rows = recorded(tmp_path / "run")
    assert {rows[step, f"{kept}.weight"]["grad_max"] for step in range(4)} == {1.0}
    assert not [key for key in rows if key[0] > 2 and key[1].startswith(removed)]


def test_parameters_in_another_order_keep_their_names(tmp_path: Path) -> None:
    """A parameter that is taken out and put back stands elsewhere in the model, and has its own rows as before."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for step in range(4):
            if step == 2:
                weight = model.weight
                del model.weight
                model.weight = weight
            optimizer.zero_grad()
            model(torch.randn(4, 3)).square().sum().backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)
