"""Parameters that are meant to train and do not are said once, in the training's own output, and in the log."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tests.training import events
from tracer.log.store import Local
from tracer.untrained import KINDS, STEPS
from tracer.warn import TracerWarning
from viewer.read.monitor import FindingsMonitor


class Two(nn.Module):
    """Two layers, of which the second may be left out."""

    def __init__(self, both: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self._both = both

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The output of the first, or of both."""
        hidden: torch.Tensor = self.first(inputs)
        return self.second(hidden) if self._both else hidden


def train(model: Two, optimizer: torch.optim.Optimizer, path: Path, steps: int = STEPS + 5, every: int = 1) -> None:
    """Train so many steps."""
    with tracer.attach(model, path, every=every):
        for _ in range(steps):
            model(torch.ones(3, 2)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()


def kinds(path: Path) -> dict[str, list[str]]:
    """The parameters that the log says do not train, by the kind of event."""
    return {kind: json.loads(detail) for kind in KINDS for _, _, detail in events(path, kind)}


SECOND = ["second.weight", "second.bias"]


def test_what_no_optimizer_holds_is_said(tmp_path: Path) -> None:
    """Though it has gradients: one warning, an event, and a finding."""
    model = Two()
    optimizer = torch.optim.SGD(model.first.parameters(), lr=0.01)
    words = r"2 \(first second.weight\) have a gradient, and no optimizer holds them"
    with pytest.warns(TracerWarning, match=words) as warned:
        train(model, optimizer, tmp_path / "run")
    assert len(warned) == 1
    assert kinds(tmp_path / "run") == {"unheld": SECOND}
    monitor = FindingsMonitor(Local(tmp_path / "run"))
    monitor.refresh()
    (found,) = [finding for finding in monitor.findings if finding.kind == "untrained"]
    assert (found.title, found.params) == ("No optimizer holds it: second.weight and others", tuple(SECOND))


def test_a_learning_rate_of_0_is_said(tmp_path: Path) -> None:
    """Of the group that has it; a rate that was 0 at first is none."""
    model = Two()
    groups: list[dict[str, Any]] = [
        {"params": model.first.parameters()},
        {"params": model.second.parameters(), "lr": 0.0},
    ]
    with pytest.warns(TracerWarning, match=r"2 \(first second.weight\) have a learning rate of 0"):
        train(model, torch.optim.SGD(groups, lr=0.01), tmp_path / "run")
    assert kinds(tmp_path / "run") == {"rate_zero": SECOND}


def test_what_never_had_a_gradient_is_said(tmp_path: Path) -> None:
    """An optimizer holds it, and the loss does not depend on it."""
    model = Two(both=False)
    with pytest.warns(TracerWarning, match="are held by an optimizer, and never had a gradient"):
        train(model, torch.optim.SGD(model.parameters(), lr=0.01), tmp_path / "run")
    assert kinds(tmp_path / "run") == {"ungraded": SECOND}


def trainings() -> Iterator[tuple[str, Two, torch.optim.Optimizer]]:
    """Trainings in which nothing is to be said."""
    model = Two()
    yield "all", model, torch.optim.SGD(model.parameters(), lr=0.01)
    model = Two(both=False)
    model.second.requires_grad_(False)
    yield "frozen", model, torch.optim.SGD(model.parameters(), lr=0.01)
    model = Two(both=False)
    yield "a copy that nothing holds", model, torch.optim.SGD(model.first.parameters(), lr=0.01)


@pytest.mark.parametrize(
    ("model", "optimizer"), [each[1:] for each in trainings()], ids=[each[0] for each in trainings()]
)
def test_nothing_is_said_where_all_is_well(model: Two, optimizer: torch.optim.Optimizer, tmp_path: Path) -> None:
    """All train, or are frozen, or have no part in it at all, as a target network that requires gradients."""
    train(model, optimizer, tmp_path / "run")
    assert kinds(tmp_path / "run") == {}


def test_one_gradient_is_enough(tmp_path: Path) -> None:
    """An expert that gets few examples trains, if seldom."""
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with tracer.attach(model, tmp_path / "run"):
        for step in range(STEPS + 5):
            model._both = step == 3
            model(torch.ones(3, 2)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert kinds(tmp_path / "run") == {}


def test_nothing_is_said_of_fewer_steps(tmp_path: Path) -> None:
    """A generator may be updated more rarely."""
    model = Two()
    optimizer = torch.optim.SGD(model.first.parameters(), lr=0.01)
    train(model, optimizer, tmp_path / "run", steps=STEPS - 1)
    train(model, optimizer, tmp_path / "rarely", steps=2 * (STEPS - 1), every=2)
    assert kinds(tmp_path / "run") == kinds(tmp_path / "rarely") == {}


def test_an_optimizer_that_updates_rarely_counts(tmp_path: Path) -> None:
    """Both of a GAN's have updated by then."""
    model = Two()
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.01) for each in (model.first, model.second)]
    with tracer.attach(model, tmp_path / "run"):
        for step in range(STEPS + 5):
            model(torch.ones(3, 2)).square().sum().backward()
            optimizers[0].step()
            if step % 10 == 9:
                optimizers[1].step()
    assert kinds(tmp_path / "run") == {}


def test_a_loop_that_updates_by_itself_is_not_judged(tmp_path: Path) -> None:
    """Nobody knows what it updates."""
    model = Two()
    optimizer = torch.optim.SGD(model.first.parameters(), lr=0.01)
    with tracer.attach(model, tmp_path / "run") as trace:
        for _ in range(STEPS + 5):
            model(torch.ones(3, 2)).square().sum().backward()
            optimizer.step()
            with torch.no_grad():
                for parameter in model.second.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(parameter.grad, alpha=0.01)
            trace.step()
    assert kinds(tmp_path / "run") == {}


def test_what_is_updated_or_given_its_gradient_by_hand_trains(tmp_path: Path) -> None:
    """Beside an optimizer for the rest: its values move, whatever else is not seen of it."""
    model = Two()
    optimizer = torch.optim.SGD(model.first.parameters(), lr=0.01)
    with tracer.attach(model, tmp_path / "held"):
        for _ in range(STEPS + 5):
            loss = model(torch.ones(3, 2)).square().sum()
            gradients = torch.autograd.grad(loss, list(model.first.parameters()), retain_graph=True)
            model.second(model.first(torch.ones(3, 2)).detach()).square().sum().backward()
            for parameter, gradient in zip(model.first.parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            with torch.no_grad():
                for parameter in model.second.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(parameter.grad, alpha=0.01)
            optimizer.zero_grad()
            model.zero_grad()
    assert kinds(tmp_path / "held") == {}
