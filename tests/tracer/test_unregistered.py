"""Optimizers that train what the model does not register: they are told of, before a training and in it."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tests.training import by_hand, extremes_of, recorded, steps
from tests.versions import needs_dtensor


class Last(nn.Linear):
    """Keeps more than it registers."""

    def __init__(self) -> None:
        super().__init__(2, 1)
        self.heads: dict[str, Any] = {"a": (nn.Linear(2, 1, bias=False),), "scale": nn.Parameter(torch.ones(1))}


class Hidden(nn.Module):
    """Keeps layers and parameters where PyTorch does not see them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)]
        self.last = Last()
        # Neither is searched for ever.
        self.loop: list[Any] = []
        self.loop.append(self.loop)
        self.data = list(range(100_000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Use them all."""
        for layer in self.layers:
            x = layer(x)
        heads = self.last.heads
        result: torch.Tensor = self.last(x) + heads["a"][0](x) * heads["scale"]
        return result


PLACES = ["layers[0].weight", "layers[1].weight", "last.heads['a'][0].weight", "last.heads['scale']"]


def everything(model: Hidden) -> list[nn.Parameter]:
    """All that the forward uses, as a user who knows of it gives it to an optimizer."""
    heads = model.last.heads
    hidden = [*(layer.weight for layer in model.layers), heads["a"][0].weight, heads["scale"]]
    return [*model.parameters(), *hidden]


def train(model: nn.Module, *optimizers: torch.optim.Optimizer, count: int = 3) -> list[dict[str, Any]]:
    """Some steps; what stood in the model before each update."""
    expected = []
    for _ in range(count):
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.ones(4, 2)).sum().backward()
        expected.append(by_hand(model))
        for optimizer in optimizers:
            optimizer.step()
    return expected


def test_what_the_model_does_not_register_is_one_warning_at_the_first_update(tmp_path: Path) -> None:
    """It says where the model keeps them, and what to do; the others are recorded."""
    model = Hidden()
    optimizer = torch.optim.SGD(everything(model), lr=0.1)
    with pytest.warns(tracer.TracerWarning) as caught, tracer.attach(model, tmp_path / "run"):
        expected = train(model, optimizer)
    (warning,) = caught
    assert str(warning.message) == (
        "gradwatch: SGD trains parameters that are not recorded: Hidden does not register layers[0].weight, "
        "layers[1].weight, last.heads['a'][0].weight and 1 more. Keep layers in an nn.ModuleList or nn.ModuleDict, or "
        "trace a module that holds them all"
    )
    wanted = {(step, name): found for step, names in enumerate(expected) for name, found in names.items()}
    assert {key: extremes_of(row) for key, row in recorded(tmp_path / "run").items()} == wanted


def test_the_doctor_tells_of_it_before() -> None:
    """Given the optimizer, it has a row for each such parameter, named by where it is kept."""
    model = Hidden()
    stranger = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizers = torch.optim.SGD(everything(model), lr=0.1), torch.optim.Adam([stranger, model.last.weight])
    found = [row[:5] for row in tracer.doctor(model, *optimizers).iter_rows() if "does not register" in row[5]]
    names = {
        **dict.fromkeys(PLACES[:2], "2 x 2"),
        PLACES[2]: "1 x 2",
        PLACES[3]: "1",
    }
    assert found == [
        *((name, "unregistered", shape, "float32", "") for name, shape in names.items()),
        ("optimizer.param_groups[0]['params'][0]", "unregistered", "3", "float64", ""),
    ]
    assert "unregistered" not in tracer.doctor(model)["state"]


def test_what_is_kept_too_deep_or_far_is_named_by_its_place_in_the_optimizer() -> None:
    """A module may hold a data set, too: it is not searched to its end, nor under keys that are no names."""
    model: Any = nn.Linear(2, 1)
    model.far = [*range(100_000), nn.Parameter(torch.ones(1))]
    model.deep = [[[[[nn.Parameter(torch.ones(1))]]]]]
    model.by_object = {model.weight: nn.Parameter(torch.ones(1))}
    hidden = [model.far[-1], model.deep[0][0][0][0][0], model.by_object[model.weight]]
    found = tracer.doctor(model, torch.optim.SGD(hidden)).filter(state="unregistered")
    assert found["param"].to_list() == [f"optimizer.param_groups[0]['params'][{index}]" for index in range(3)]


@needs_dtensor
def test_shards_of_what_is_whole_at_the_moment_are_no_warning() -> None:
    """FSDP leaves gathered parameters in their places after some forwards; the optimizer holds the shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        model = nn.Linear(2, 2)
        mesh = init_device_mesh("cpu", (2,))
        shards = [nn.Parameter(distribute_tensor(parameter.detach(), mesh)) for parameter in model.parameters()]
        assert "unregistered" not in tracer.doctor(model, torch.optim.SGD(shards, lr=0.1))["state"]
    finally:
        torch.distributed.destroy_process_group()


def tied(model: Any) -> list[torch.optim.Optimizer]:
    """A parameter under two names."""
    model.again = model[0].weight
    return [torch.optim.SGD(model.parameters(), lr=0.1)]


def an_optimizer_each(model: nn.Module) -> list[torch.optim.Optimizer]:
    """One optimizer a parameter."""
    return [torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()]


def beside_a_frozen_one(model: nn.Module) -> list[torch.optim.Optimizer]:
    """The optimizer holds a tensor that it does not train."""
    return [torch.optim.SGD([*model.parameters(), torch.zeros(2)], lr=0.1)]


@pytest.mark.parametrize(
    "optimizers",
    [lambda model: [torch.optim.SGD(model.parameters(), lr=0.1)], tied, an_optimizer_each, beside_a_frozen_one],
)
@pytest.mark.parametrize("params", [None, "0.bias"])
@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_what_the_model_registers_is_no_warning(
    optimizers: Callable[[nn.Module], list[torch.optim.Optimizer]],
    params: str | None,
    wrap: Callable[[nn.Module], nn.Module],
    tmp_path: Path,
) -> None:
    """Nor is what a selection leaves out, nor an optimizer of other models alone."""
    model, other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), nn.Linear(2, 1)
    wrapped = wrap(model)
    chosen = optimizers(model)
    with tracer.attach(wrapped, tmp_path / "run", params=params):
        train(model, *chosen)
        train(other, torch.optim.SGD(other.parameters(), lr=0.1))


def test_the_flat_partition_that_zero_makes_of_a_model_is_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimizer holds nothing else, and updates the model's parameters through it, each by its place there."""
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    flat = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    place = 0
    parameter: Any
    for parameter in model.parameters():
        fragment = flat.detach()[place : (place := place + parameter.numel())]
        parameter._hp_mapping = SimpleNamespace(hp_fragment=fragment)
    optimizer = torch.optim.SGD([flat], lr=0.1)
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            model(torch.ones(4, 2)).sum().backward()
            flat.grad = torch.cat(
                [gradient.flatten() for each in model.parameters() if (gradient := each.grad) is not None]
            )
            optimizer.step()
    assert steps(tmp_path / "run") == [0, 1, 2]
    assert "unregistered" not in tracer.doctor(model, optimizer)["state"]


def test_what_another_trace_records_is_no_warning(tmp_path: Path) -> None:
    """An actor and a critic that are traced each on its own may share an optimizer."""
    actor, critic = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer = torch.optim.SGD([*actor.parameters(), *critic.parameters()], lr=0.1)
    with tracer.attach(actor, tmp_path / "actor"), tracer.attach(critic, tmp_path / "critic"):
        train(nn.Sequential(actor, critic), optimizer)
    with (
        pytest.warns(tracer.TracerWarning, match=r"Linear does not register optimizer.param_groups\[0\]") as caught,
        tracer.attach(actor, tmp_path / "alone"),
    ):
        train(nn.Sequential(actor, critic), optimizer)
    assert len(caught) == 1
