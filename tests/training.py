"""Small real trainings for tests, and what they wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import nn

import tracer
from tracer.daemon import Daemon, DaemonSettings

Rows = dict[tuple[int, str], dict[str, Any]]
STATISTICS = ("value_min", "value_max", "grad_min", "grad_max")


def recorded(path: Path) -> Rows:
    """The rows of a run's extremes by step and parameter; each must be there once."""
    frame = tracer.scan(path).collect()
    rows = {(row["step"], str(row["param"])): row for row in frame.iter_rows(named=True)}
    assert len(rows) == frame.height, "a step and parameter stands twice"
    return rows


def steps(path: Path) -> list[int]:
    """The steps that a run recorded, ascending."""
    return tracer.scan(path).select(pl.col("step").unique().sort()).collect()["step"].to_list()


def metric(path: Path, name: str) -> list[tuple[int, float]]:
    """A metric's steps and values, in the order in which they were logged."""
    frame = tracer.scan(path, "metrics").filter(pl.col("name") == name).sort("time").collect()
    return list(zip(frame["step"].to_list(), frame["value"].to_list(), strict=True))


def events(path: Path, kind: str) -> list[tuple[int, str | None, str]]:
    """The step, parameter and detail of every event of a kind."""
    frame = tracer.scan(path, "events").filter(pl.col("kind") == kind).collect()
    return list(frame.select("step", "param", "detail").iter_rows())


def by_hand(model: nn.Module) -> dict[str, dict[str, float | None]]:
    """The oracle: each parameter's extremes now, taken in float64; None for a gradient that is not there."""
    found: dict[str, dict[str, float | None]] = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().double()
        gradient = None if parameter.grad is None else parameter.grad.double()
        found[name] = {
            "value_min": value.min().item(),
            "value_max": value.max().item(),
            "grad_min": None if gradient is None else gradient.min().item(),
            "grad_max": None if gradient is None else gradient.max().item(),
        }
    return found


def values_of_first(backwards: list[dict[str, dict[str, float | None]]]) -> dict[str, dict[str, float | None]]:
    """The row of several backwards: the values at the first, which the forward used, and the last's gradients."""
    first, last = backwards[0], backwards[-1]
    return {name: last[name] | {key: first[name][key] for key in ("value_min", "value_max")} for name in last}


def extremes_of(row: dict[str, Any]) -> dict[str, float | None]:
    """The four numbers of a row."""
    return {statistic: row[statistic] for statistic in STATISTICS}


def assert_rows(path: Path, expected: list[dict[str, dict[str, float | None]]]) -> None:
    """The log holds exactly these steps and parameters, with exactly these numbers."""
    found = {key: extremes_of(row) for key, row in recorded(path).items()}
    wanted = {(step, name): extremes for step, names in enumerate(expected) for name, extremes in names.items()}
    assert found == wanted


def mlp() -> nn.Sequential:
    """A small network, its weights fixed by the seed."""
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(model: Callable[[torch.Tensor], torch.Tensor], size: int = 4) -> torch.Tensor:
    """A loss on fresh random data."""
    loss: torch.Tensor = model(torch.randn(size, 6)).square().mean()
    return loss


def daemon_of(trace: tracer.Trace) -> Daemon:
    """An open trace's daemon."""
    assert trace._parts is not None, "the trace is open"
    return trace._parts.daemon


def set_daemons(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Give daemons that begin from now on these settings, of ``DaemonSettings``."""
    monkeypatch.setattr("tracer.daemon.SETTINGS", DaemonSettings(**changes))
