"""TorchScript: models and submodules that torch.jit has compiled are traced like others."""

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
from tests.training import Rows, by_hand, events, extremes_of, loss_of, mlp, recorded


def scripted() -> nn.Module:
    """A model that is compiled as a whole."""
    model: nn.Module = torch.jit.script(mlp())
    return model


def by_example() -> nn.Module:
    """A model that is compiled by an example."""
    model: nn.Module = torch.jit.trace(mlp(), torch.randn(5, 6))
    return model


def loaded() -> nn.Module:
    """A model from a file, whose parameters are plain tensors."""
    file = io.BytesIO()
    torch.jit.save(scripted(), file)
    file.seek(0)
    model: nn.Module = torch.jit.load(file)
    return model


def part() -> nn.Module:
    """A model of which a part is compiled."""
    return nn.Sequential(scripted(), nn.Linear(3, 2))


def train(model: nn.Module, run: Path, change: Callable[[], None] | None = None) -> Rows:
    """Train three steps, with a change before the last; returns what the rows should be."""
    expected: Rows = {}
    with tracer.attach(model, run):
        for step in range(3):
            if step == 2 and change is not None:
                change()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            optimizer.zero_grad()
            loss_of(model).backward()
            expected |= {(step, name): numbers for name, numbers in by_hand(model).items()}
            optimizer.step()
    return expected


@pytest.mark.parametrize("made", [scripted, by_example, loaded, part])
def test_compiled_modules_are_traced(made: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Their rows are right, and the doctor says so before."""
    model = made()
    assert set(tracer.doctor(model)["state"]) == {"traced"}
    expected = train(model, tmp_path / "run")
    assert {key: extremes_of(row) for key, row in recorded(tmp_path / "run").items()} == expected


def test_a_parameter_that_is_replaced_in_a_compiled_module_is_followed(tmp_path: Path) -> None:
    """TorchScript gives no view of what a module holds."""
    model = scripted()

    def change() -> None:
        dict(model.named_children())["0"].weight = nn.Parameter(torch.zeros(8, 6))

    expected = train(model, tmp_path / "run", change)
    assert {key: extremes_of(row) for key, row in recorded(tmp_path / "run").items()} == expected
    assert [event[:2] for event in events(tmp_path / "run", "replaced")] == [(2, "0.weight")]


def test_a_copy_without_leaves_is_refused_and_the_doctor_says_why(tmp_path: Path) -> None:
    """The parameters of such a copy are calculated from others, which gradients do not reach: torch cannot train it."""
    model = copy.deepcopy(scripted())
    assert set(tracer.doctor(model)["state"]) == {"unsupported"}
    assert "gets no gradient of its own" in tracer.doctor(model)["note"][0]
    with pytest.raises(ValueError, match="RecursiveScriptModule has no trainable parameter"):
        tracer.attach(model, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_compiled_submodules_are_said_to_be_unseen_where_activations_are_recorded(tmp_path: Path) -> None:
    """TorchScript calls no hook within what it has compiled: once it is said, of three by name."""
    model = part()
    said_once = pytest.warns(tracer.TracerWarning, match=r"calls no hook: 3 modules are not seen \(0.0, 0.1, 0.2\)")
    with said_once as said, tracer.attach(model, tmp_path / "run", activations=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            loss_of(model).backward()
            optimizer.step()
    assert len(said) == 1
    assert {row["module"] for row in tracer.scan(tmp_path / "run", "activations").collect().to_dicts()} == {
        "",
        "0",
        "1",
    }
