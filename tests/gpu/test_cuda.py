"""What holds on a GPU alone: nothing waits for it, and what crosses from it is what was there."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

import tracer
from tests.training import assert_rows, by_hand, events, metric, mlp
from tracer.items import HostCopy, number
from tracer.parameters import named_parameters
from tracer.rows import RowBuffer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

DEVICE = "cuda"
STEPS = 4
STATISTICS = ("mean", "std", "norm", "absmax", "zeros", "nonfinite")


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Raise where the CPU waits for the GPU; the tracer makes a warning of it, which no test may leave behind."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def twin_on_host(model: nn.Module) -> nn.Module:
    """A copy of a model and its gradients in the host's memory."""
    twin = copy.deepcopy(model).cpu()
    for here, there in zip(twin.parameters(), model.parameters(), strict=True):
        here.grad = None if there.grad is None else there.grad.cpu()
    return twin


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> torch.Tensor:
    """One step up to the backward; the update is left to the caller."""
    optimizer.zero_grad()
    loss: torch.Tensor = model(inputs).square().mean()
    loss.backward()
    return loss


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"every": 2},
        {"fold": 2},
        {"applied": True},
        {"stats": STATISTICS},
        {"stats": "histogram", "histogram_every": 1},
        {"activations": True},
    ],
    ids=lambda settings: ", ".join(settings) or "extremes",
)
def test_a_traced_training_never_waits_for_the_gpu(settings: dict[str, Any], tmp_path: Path) -> None:
    """Steps and logged losses pass where every wait is an error, and every loss arrives."""
    model = resnet18(weights=None, num_classes=10).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    inputs = torch.randn(STEPS, 8, 3, 32, 32).to(DEVICE)
    losses = []
    trace = tracer.attach(model, tmp_path / "run", **settings)
    with nothing_waits():
        for batch in inputs:
            loss = train_step(model, optimizer, batch)
            losses.append(loss.detach())
            optimizer.step()
            trace.log(loss=loss)
    trace.close()
    assert metric(tmp_path / "run", "loss") == [(step, loss.item()) for step, loss in enumerate(losses)]
    assert events(tmp_path / "run", "failed") == []


def test_what_is_recorded_without_waiting_is_exact(tmp_path: Path) -> None:
    """Rows of steps that follow each other while the GPU is behind equal copies that were taken in their steps."""
    model = nn.Sequential(nn.Linear(2048, 2048), nn.Tanh(), nn.Linear(2048, 2048)).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.randn(STEPS, 2048, 2048).to(DEVICE)
    moments = []
    trace = tracer.attach(model, tmp_path / "run")
    with nothing_waits():
        for batch in inputs:
            train_step(model, optimizer, batch)
            moment = copy.deepcopy(model)
            for here, there in zip(moment.parameters(), model.parameters(), strict=True):
                assert there.grad is not None
                here.grad = there.grad.clone()
            moments.append(moment)
            optimizer.step()
    trace.close()
    assert_rows(tmp_path / "run", [by_hand(twin_on_host(moment)) for moment in moments])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rows_equal_a_float64_oracle_on_the_host(dtype: torch.dtype, tmp_path: Path) -> None:
    """In every precision each row equals what float64 arithmetic and model_extremes take from a copy on the host."""
    model = mlp().to(DEVICE, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(STEPS):
            train_step(model, optimizer, torch.randn(4, 6).to(DEVICE, dtype))
            twin = twin_on_host(model)
            expected.append(by_hand(twin))
            assert tracer.model_extremes(model) == tracer.model_extremes(twin) == expected[-1]
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


def test_a_model_that_moves_to_the_gpu_is_followed(tmp_path: Path) -> None:
    """A model that was attached on the host and has trained there goes on being recorded on the GPU."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for device in ("cpu", DEVICE, DEVICE):
            model.to(device)
            train_step(model, optimizer, torch.randn(4, 6).to(device))
            expected.append(by_hand(twin_on_host(model)))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


class Split(nn.Module):
    """A model whose first layer is on the host and whose second is on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 3).to(DEVICE)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Cross from one to the other."""
        output: torch.Tensor = self.second(self.first(inputs).to(DEVICE))
        return output


def test_a_model_on_two_devices_has_all_its_rows(tmp_path: Path) -> None:
    """Parameters on the host and on the GPU, whose gradients arrive in two threads, stand in the same steps."""
    model = Split()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(STEPS):
            train_step(model, optimizer, torch.randn(4, 6))
            expected.append(by_hand(twin_on_host(model)))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


def test_a_copy_lands_in_pinned_memory_with_what_was_there() -> None:
    """What arrives on the host is what the tensor held when the copy began, though it is overwritten at once."""
    tensor = torch.full((1 << 20,), 3.0, device=DEVICE)
    with nothing_waits():
        arriving = HostCopy(tensor)
        tensor.fill_(4.0)
    arrived = arriving.wait()
    assert arrived.is_pinned()
    assert torch.equal(arrived, torch.full((1 << 20,), 3.0))


def test_a_number_on_the_gpu_is_a_copy_on_its_way() -> None:
    """A one-element tensor is not read, but copied into pinned memory."""
    tensor = torch.tensor(2.5, device=DEVICE)
    with nothing_waits():
        arriving = number(tensor)
    assert isinstance(arriving, HostCopy)
    assert arriving.wait().is_pinned()
    assert arriving.wait().item() == 2.5


def test_a_step_crosses_to_pinned_memory_in_one_copy() -> None:
    """All numbers of a step, in whatever dtype, cross at once, and into pinned memory."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3).half()).to(DEVICE)
    buffer = RowBuffer(named_parameters(model))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            buffer.record(index, parameter, None)
    (arriving,) = buffer.take(0, 0).copies
    assert isinstance(arriving, HostCopy)
    assert arriving.wait().is_pinned()
