"""Warnings inside training: they name the line of the user's that they are about."""

import linecache
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
from tests.training import loss_of, mlp


def update_by_hand(run: Path) -> None:
    """A loop without a torch optimizer: said inside a backward."""
    model = mlp()
    with tracer.attach(model, run):
        for _ in range(4):
            loss_of(model).backward()  # here
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(1)


def hide(run: Path) -> None:
    """An optimizer that trains what the model does not register: said inside an update."""
    model, hidden = mlp(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *hidden.parameters()], lr=0.1)
    with tracer.attach(model, run):
        loss_of(model).backward()
        optimizer.step()  # here


def evaluate(run: Path) -> None:
    """A layer whose fast path calls no hook: said inside a forward."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.Sequential(layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, run, activations=True):
        for _ in range(3):
            model.train()(torch.ones(1, 2, 4)).sum().backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                model(torch.ones(1, 2, 4))  # here


@pytest.mark.parametrize("loop", [update_by_hand, hide, evaluate])
def test_a_warning_names_the_users_line(loop: Callable[[Path], None], tmp_path: Path) -> None:
    """However deep in torch the tracer was called, the line is that of the loop."""
    with pytest.warns(tracer.TracerWarning) as said:
        loop(tmp_path / "run")
    assert [(found.filename, linecache.getline(__file__, found.lineno)[-7:]) for found in said] == [
        (__file__, "# here\n")
    ]
