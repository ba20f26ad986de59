"""CUDA graphs: what a replay writes is read before the update, since no hook is called.

There is no GPU in these tests: that one captures is what torch says, and to replay is to write what it would write.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tracer
from tests.training import assert_rows, by_hand, loss_of, metric, mlp

REPLAYS = 3


@contextmanager
def capturing(monkeypatch: pytest.MonkeyPatch, warning: str = "pauses while a CUDA graph") -> Iterator[None]:
    """A stream is captured, of which there is one warning."""
    with monkeypatch.context() as patch, pytest.warns(tracer.TracerWarning, match=warning) as caught:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        yield
    assert len(caught) == 1


class OnDevice(torch.Tensor):
    """A tensor that says that it is on a CUDA device, and may not be touched."""

    is_cuda = True
    is_cpu = False

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Whatever is asked of the device would become a part of the graph."""
        raise AssertionError(f"{function} has entered the graph")


class Operations(TorchDispatchMode):
    """Takes down all operations of torch that are called, as a graph does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.called: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take one down, and do it."""
        self.called.append(str(function))
        return function(*args, **kwargs or {})


def gradients(model: nn.Module) -> list[torch.Tensor]:
    """Those of a loss on fresh data, with no hook called."""
    return list(torch.autograd.grad(model(torch.randn(4, 6)).square().mean(), list(model.parameters())))


@pytest.mark.parametrize("freed", [False, True])
def test_gradients_that_a_graph_leaves_in_place_are_read_before_the_update(
    freed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of each replay; and null where the loop has freed what the graph writes into, and sets others."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        model(torch.randn(4, 6)).square().mean().backward()
        expected.append(by_hand(model))
        optimizer.step()
        optimizer.zero_grad()
        with capturing(monkeypatch):
            model(torch.randn(4, 6)).square().mean().backward()
        for _ in range(REPLAYS):
            for parameter, gradient in zip(model.parameters(), gradients(model), strict=True):
                if freed:
                    parameter.grad = gradient
                else:
                    # A replay writes into memory, of which Python is told nothing.
                    assert parameter.grad is not None
                    parameter.grad.data.copy_(gradient)
            expected.append(by_hand(model))
            if freed:
                for extremes in expected[-1].values():
                    extremes |= dict.fromkeys(("grad_min", "grad_max"))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


@pytest.mark.parametrize("hooked", [0, 1], ids=["noted", "in the hook"])
def test_a_captured_micro_batch_does_not_reach_an_open_buffer(
    hooked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where hooks write or note without a report, a later backward of the same step is asked for a capture first."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        # Where a parameter has another hook, too, its gradient is read at once.
        others = list(model.parameters())[:hooked]
        handles = [parameter.register_post_accumulate_grad_hook(lambda _: None) for parameter in others]
        for step in range(3):
            loss_of(model).backward()
            expected.append(by_hand(model))
            if step == 2:
                with capturing(monkeypatch):
                    (1000 * loss_of(model)).backward()
            optimizer.step()
            optimizer.zero_grad()
    for handle in handles:
        handle.remove()
    assert_rows(tmp_path / "run", expected)


def test_activations_put_no_work_into_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured forward is what it is without the tracer: not recorded, and no earlier step is sent to the host."""
    model, inputs = mlp(), torch.randn(4, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    largest = []
    with tracer.attach(model, tmp_path / "run", activations=True):
        for step in range(3):
            if step == 2:
                with capturing(monkeypatch, "activations are recorded neither"), Operations() as captured:
                    model(1000 * inputs)
            outputs = model(inputs)
            largest.append(outputs.max().item())
            outputs.square().mean().backward()
            optimizer.step()
    with Operations() as alone:
        model(1000 * inputs)
    assert captured.called == alone.called
    rows = tracer.scan(tmp_path / "run", "activations").filter(pl.col("module") == "").sort("step").collect()
    assert rows["max"].to_list() == largest


def test_a_tensor_that_is_logged_while_a_graph_is_captured_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no number yet, and a copy of it would become a part of the graph. One warning says so."""
    loss = torch.ones(()).as_subclass(OnDevice)
    with tracer.attach(mlp(), tmp_path / "run") as trace:
        with capturing(monkeypatch, "loss is not logged while a CUDA graph is captured: log it after each replay"):
            trace.log(loss=loss, captured=1)
            trace.log(loss=loss, step=3)
            trace.step(loss=loss)
        trace.log(loss=2)
    assert metric(tmp_path / "run", "loss") == [(0, 2.0)]
    assert metric(tmp_path / "run", "captured") == [(0, 1.0)]
