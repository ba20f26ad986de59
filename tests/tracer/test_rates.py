"""Learning rates become metrics by themselves, at the steps whose updates used them."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import nn

import tracer
from tests.training import loss_of, metric, mlp


def names_in(run: Path) -> set[str]:
    """The names of all metrics."""
    return set(tracer.scan(run, table="metrics").select(pl.col("name").cast(pl.String)).collect()["name"])


def train(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], trace: tracer.Trace, steps: int, **logged: float
) -> list[list[float]]:
    """Train, each optimizer with a rate that a third is taken of at every third step; what each update used."""
    schedulers = [torch.optim.lr_scheduler.StepLR(each, 3, 1 / 3) for each in optimizers]
    used = []
    for _ in range(steps):
        loss_of(model).backward()
        used.append([group["lr"] for each in optimizers for group in each.param_groups])
        for each in optimizers:
            each.step()
            each.zero_grad()
        if logged:
            trace.log(**logged)
        for scheduler in schedulers:
            scheduler.step()
    return used


def changes(used: list[float]) -> list[tuple[int, float]]:
    """The steps in which a rate was another one than before, with it."""
    return [(step, rate) for step, rate in enumerate(used) if step == 0 or rate != used[step - 1]]


@pytest.mark.parametrize("options", [{}, {"every": 4}, {"budget": 0.5}, {"fold": 5}], ids=str)
def test_each_change_is_a_metric(options: dict[str, Any], tmp_path: Path) -> None:
    """At the step whose update used it, whichever steps are measured; where it stays as it is, nothing is written."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run", **options) as trace:
        used = train(model, [torch.optim.SGD(model.parameters(), lr=0.1)], trace, 11)
    assert metric(tmp_path / "run", "lr") == changes([rates[0] for rates in used])


def test_groups_that_differ_have_one_each(tmp_path: Path) -> None:
    """As long as they are alike there is one for all."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizer = torch.optim.SGD([{"params": layer.parameters()} for layer in model], lr=0.1)
    with tracer.attach(model, tmp_path / "run"):
        for rates in ([0.1, 0.1], [0.1, 0.2], [0.1, 0.3], [0.4, 0.3], [0.5, 0.5]):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
    run = tmp_path / "run"
    assert metric(run, "lr") == [(0, 0.1), (4, 0.5)]
    assert metric(run, "lr/group0") == [(1, 0.1), (3, 0.4)]
    assert metric(run, "lr/group1") == [(1, 0.2), (2, 0.3)]


def test_a_second_optimizer_has_its_own(tmp_path: Path) -> None:
    """They are told apart by the order of their first updates."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizers = [torch.optim.SGD(layer.parameters(), lr=rate) for layer, rate in zip(model, (0.1, 0.2), strict=True)]
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            model(torch.ones(1, 3)).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
    assert (metric(tmp_path / "run", "lr"), metric(tmp_path / "run", "lr/2")) == ([(0, 0.1)], [(0, 0.2)])


@pytest.mark.parametrize("name", ["lr", "train/learning_rate", "lr-SGD", "LR"])
def test_who_logs_it_has_it_once(name: str, tmp_path: Path) -> None:
    """Under whichever of the usual names: nothing is written beside it, and its name stays."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run") as trace:
        train(model, [torch.optim.SGD(model.parameters(), lr=0.1)], trace, 7, **{name: 0.5})
    assert names_in(tmp_path / "run") == {name}
    assert metric(tmp_path / "run", name) == [(step, 0.5) for step in range(7)]


def test_a_tensor_is_followed_by_its_version(tmp_path: Path) -> None:
    """Its number is read where it has been written to, and not otherwise."""
    model, rate = mlp(), torch.tensor(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, foreach=False)
    with tracer.attach(model, tmp_path / "run"):
        for step in range(5):
            if step == 3:
                rate.mul_(0.5)
            loss_of(model).backward()
            optimizer.step()
    assert metric(tmp_path / "run", "lr") == [(0, 0.5), (3, 0.25)]


def test_an_optimizer_without_a_rate_has_no_metric(tmp_path: Path) -> None:
    """Some find their rate themselves, and hold None, or nothing."""

    class Own(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for parameter in self.param_groups[0]["params"]:
                parameter.sub_(parameter.grad)

    for given in ({"lr": None}, {}):
        model, run = mlp(), tmp_path / str(given)
        optimizer = Own(model.parameters(), given)
        with tracer.attach(model, run) as trace:
            loss_of(model).backward()
            optimizer.step()
            trace.log(loss=1.0)
        assert names_in(run) == {"loss"}


def test_another_models_optimizer_is_none_of_ours(tmp_path: Path) -> None:
    """Only what holds a parameter of the model counts."""
    model, other = mlp(), mlp()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run") as trace:
        loss_of(other).backward()
        optimizer.step()
        trace.log(loss=1.0)
    assert names_in(tmp_path / "run") == {"loss"}


def test_after_a_restore_the_rate_is_written_again(tmp_path: Path) -> None:
    """Each attempt knows its own, though a change came in steps that were given up; none is mixed up."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = tmp_path / "run"

    def go_on(*rates: float) -> None:
        for rate in rates:
            optimizer.param_groups[0]["lr"] = rate
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()

    with tracer.attach(model, run) as trace:
        go_on(0.1, 0.1, 0.1, 0.2)
        trace.load_state_dict({"step": 2})
        go_on(0.2, 0.2, 0.3)
    rows = tracer.scan(run, "metrics", attempts="all").filter(pl.col("name") == "lr").sort("time")
    assert rows.select("attempt", "step", "value").collect().rows() == [
        *((0, 0, 0.1), (0, 3, 0.2)),
        *((1, 2, 0.2), (1, 4, 0.3)),
    ]
