"""CUDA graphs: what a replay writes is read before the update, since no hook is called.

There is no GPU in these tests: that one captures is what torch says, and to replay is to write what it would write.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
from tests.training import assert_rows, by_hand, mlp

REPLAYS = 3


@contextmanager
def capturing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stream is captured."""
    with monkeypatch.context() as patch, pytest.warns(tracer.TracerWarning, match="pauses while a CUDA graph"):
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        yield


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
