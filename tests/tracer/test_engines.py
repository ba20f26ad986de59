"""Engines that keep gradients in places of their own: the truth is recorded, or null."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tests.training import extremes_of, metric, recorded

MICROS, STEPS = 3, 4
Numbers = dict[str, dict[str, float | None]]


class ByKernel(torch.autograd.Function):
    """A linear layer whose weight's gradient is added to ``main_grad`` at once, as a fused kernel of Megatron does."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(inputs, weight)
        return inputs @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, weight = ctx.saved_tensors
        weight.main_grad += gradients[0].t() @ inputs
        weight.grad_added_to_main_grad = True
        # Autograd gets a dummy: memory that nobody has written to, or zeros where another use may add to them.
        dummy = torch.full_like(weight, 0.0 if getattr(weight, "zero_out_wgrad", False) else torch.nan)
        return gradients[0] @ weight, dummy


class Model(nn.Module):
    """A layer that autograd differentiates, one with a kernel, and one with both; and one that is not used."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.plain, self.fused, self.tied, self.unused = (nn.Linear(8, 8, bias=False, dtype=dtype) for _ in range(4))
        self.tied.weight.zero_out_wgrad = True  # type: ignore[attr-defined]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.tied(self.plain(inputs).tanh()).tanh()
        for layer in (self.fused, self.tied):
            hidden = ByKernel.apply(hidden, layer.weight).tanh()
        return hidden


def wrap(model: nn.Module) -> list[Any]:
    """Move each gradient into ``main_grad`` and free it, as Megatron's data parallel does; what has to be kept."""

    def move(parameter: Any) -> None:
        if not parameter.grad_added_to_main_grad or getattr(parameter, "zero_out_wgrad", False):
            parameter.main_grad += parameter.grad
        parameter.grad = None

    nodes = []
    parameter: Any
    for parameter in model.parameters():
        parameter.main_grad = torch.zeros_like(parameter, dtype=torch.float32)
        parameter.grad_added_to_main_grad = False
        # After the hooks on the tensor, whenever they were set.
        node = parameter.expand_as(parameter).grad_fn.next_functions[0][0]
        node.register_hook(lambda *_, parameter=parameter: move(parameter))
        nodes.append(node)
    return nodes


def numbers(of: str, tensor: torch.Tensor | None) -> dict[str, float | None]:
    """A tensor's extremes."""
    ends = (None, None) if tensor is None else (tensor.double().min().item(), tensor.double().max().item())
    return dict(zip((f"{of}_min", f"{of}_max"), ends, strict=True))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("stats", ["extremes", ("norm", "histogram")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_megatron_the_gradients_in_main_grad_are_recorded(
    dtype: torch.dtype, stats: Any, late: bool, tmp_path: Path
) -> None:
    """Those that autograd hands over and those that a kernel has added, over all micro-batches; never the dummy."""
    torch.manual_seed(0)
    model = Model(dtype)
    nodes = wrap(model) if late else []
    expected: list[Numbers] = []
    with tracer.attach(model, tmp_path / "run", stats=stats) as trace:
        nodes = nodes or wrap(model)
        for _ in range(STEPS):
            parameter: Any
            for parameter in model.parameters():
                parameter.main_grad.zero_()
                parameter.grad_added_to_main_grad = False
            for _ in range(MICROS):
                model(torch.randn(4, 8, dtype=dtype)).float().square().sum().backward()
            expected.append({})
            for name, parameter in model.named_parameters():
                gradient = None if name == "unused.weight" else parameter.main_grad
                expected[-1][name] = numbers("value", parameter) | numbers("grad", gradient)
                with torch.no_grad():
                    parameter -= 0.01 * parameter.main_grad
            trace.step()
    found = {key: extremes_of(row) for key, row in recorded(tmp_path / "run").items()}
    assert found == {(step, name): each for step, names in enumerate(expected) for name, each in names.items()}
    assert len(nodes) == 4
    assert metric(tmp_path / "run", "discarded") == []


def test_a_dummy_gradient_is_recorded_nowhere() -> None:
    """Where it is not freed, neither plain functions nor the doctor take it for a gradient."""
    model = Model(torch.float32)
    wrap(model)
    weight: Any = model.fused.weight
    weight.main_grad.fill_(2.0)
    weight.grad, weight.grad_added_to_main_grad = torch.full_like(weight, torch.nan), True
    assert tracer.model_extremes(model)["fused.weight"]["grad_max"] == 2.0
    del weight.main_grad
    assert tracer.model_extremes(model)["fused.weight"]["grad_max"] is None
    assert "main_grad" in tracer.doctor(model)["note"][1]
