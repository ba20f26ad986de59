"""doctor: what of a model would be recorded, before it is trained."""

from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
from tests.training import recorded

# Torch calculates with neither; float4 is of torch 2.8 and later.
PACKED = getattr(torch, "float4_e2m1fn_x2", torch.bits8)


def packed() -> nn.Parameter:
    """A parameter of a dtype that cannot be recorded."""
    return nn.Parameter(torch.zeros(4, dtype=torch.uint8).view(PACKED), requires_grad=False)


class Patient(nn.Module):
    """A parameter of every kind that the doctor tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(3, 2)
        self.tied = nn.Linear(3, 2, bias=False)
        self.tied.weight = self.plain.weight
        self.frozen = nn.Parameter(torch.zeros(2, 2).to(torch.float8_e4m3fn), requires_grad=False)
        self.lazy = nn.LazyLinear(4)
        self.meta = nn.Linear(2, 2, bias=False, device="meta")
        self.empty = nn.Parameter(torch.empty(0))
        self.scalar = nn.Parameter(torch.tensor(1.0))
        self.packed = packed()


def test_the_doctor_names_every_parameter_and_its_state() -> None:
    """Each parameter has a row with its state, shape, dtype, what is recorded of it, and what there is to know."""
    rows = {row[0]: row[1:] for row in tracer.doctor(Patient()).iter_rows()}
    why = rows.pop("packed")
    assert rows == {
        "frozen": ("frozen", "2 x 2", "float8_e4m3fn", "value", ""),
        "empty": ("traced", "0", "float32", "value, grad", "empty here, so its rows are null"),
        "scalar": ("traced", "0-dim", "float32", "value, grad", ""),
        "plain.weight": ("traced", "2 x 3", "float32", "value, grad", "tied to tied.weight"),
        "plain.bias": ("traced", "2", "float32", "value, grad", ""),
        "lazy.weight": ("lazy", "", "float32", "value, grad", "from its module's first forward on"),
        "lazy.bias": ("lazy", "", "float32", "value, grad", "from its module's first forward on"),
        "meta.weight": ("unsupported", "2 x 2", "float32", "", "on the meta device, so it has no numbers yet"),
    }
    assert why[:4] == ("unsupported", "4", str(PACKED).removeprefix("torch."), "")
    assert "not implemented" in why[4]


def test_the_doctor_leaves_the_model_as_it_is() -> None:
    """A look sets no hook, makes no gradient and materialises nothing."""
    model = Patient()
    tracer.doctor(model)
    assert all(parameter._post_accumulate_grad_hooks is None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert isinstance(model.lazy, nn.LazyLinear)


def test_what_the_doctor_calls_unsupported_is_left_out_of_a_run(tmp_path: Path) -> None:
    """The parameter that cannot be recorded costs a warning, and the others are recorded."""
    model = nn.Sequential(nn.Linear(2, 2))
    model.packed = packed()
    with (
        pytest.warns(tracer.TracerWarning, match="packed is no longer traced"),
        tracer.attach(model, tmp_path / "run"),
    ):
        model[0](torch.ones(1, 2)).sum().backward()
    assert set(recorded(tmp_path / "run")) == {(0, "0.weight"), (0, "0.bias")}


def test_flattened_parameters_are_unsupported_and_said_to_be(tmp_path: Path) -> None:
    """Inside the older FSDP no parameter's gradient can be seen: the doctor says why, and attach warns."""

    class FullyShardedDataParallel(nn.Sequential):
        """Torch's class of this name needs a process group; it is known by its name."""

    model = FullyShardedDataParallel(nn.Linear(2, 1))
    states = tracer.doctor(model)
    assert states["state"].to_list() == ["unsupported", "unsupported"]
    assert "shard with fully_shard instead" in states["note"][0]
    with pytest.warns(tracer.TracerWarning, match="shard with fully_shard instead"):
        tracer.attach(model, tmp_path / "run").close()
