"""Optimizers that train what the model does not register: they are told of, before a training and in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tests.training import by_hand, extremes_of, recorded


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
