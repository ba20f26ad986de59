"""What the frameworks' tests share: a small network and its data, and an oracle around the optimizer's own step."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import polars as pl
import torch
from torch import nn
from torch.utils.data import TensorDataset

import tracer
import tracer.daemon
from tracer.daemon import DaemonSettings

ROOT = Path(__file__).parents[2]
COLUMNS = [f"{of}_{extreme}" for of in ("value", "grad", "applied") for extreme in ("min", "max")]
Numbers = dict[str, float | None]
Row = dict[str, Numbers]


def network() -> nn.Module:
    """A small network, its weights the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def dataset(size: int = 24) -> TensorDataset:
    """Data for it, the same each time."""
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(torch.randn(size, 6, generator=generator), torch.randn(size, 3, generator=generator))


class Oracle:
    """What each update used, taken by hand: the first value and last gradient of its backwards, and what it applied.

    It wraps each optimizer's own ``step``, and a closure that the framework gives to it.

    Attributes:
        rows: For each update, each parameter's numbers in the columns of the log.
    """

    def __init__(self, model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
        self.rows: list[Row] = []
        self._parameters = dict(model.named_parameters())
        self._row: Row = {}
        for name, parameter in self._parameters.items():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._gradient(name))
        for optimizer in optimizers:
            optimizer.step = MethodType(self._wrapped(optimizer.step), optimizer)  # type: ignore[method-assign]

    def _gradient(self, name: str) -> Callable[[torch.Tensor], None]:
        def see(parameter: torch.Tensor) -> None:
            row = self._row.setdefault(name, _extremes("value", parameter))
            row.update(_extremes("grad", parameter.grad))

        return see

    def _wrapped(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
            if closure is None:
                self._update(optimizer)
                return step()

            def inner() -> Any:
                loss = closure()
                self._update(optimizer)
                return loss

            return step(inner)

        return wrapped

    def _update(self, optimizer: torch.optim.Optimizer) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in self._parameters.items():
            row = self._row.setdefault(name, _extremes("value", parameter))
            row.update(_extremes("applied", parameter.grad if id(parameter) in held else None))
        self.rows.append(self._row)
        self._row = {}


def _extremes(of: str, tensor: torch.Tensor | None) -> Numbers:
    """A tensor's extremes, taken in float64."""
    numbers = None if tensor is None else tensor.detach().double()
    return {
        f"{of}_min": None if numbers is None else numbers.min().item(),
        f"{of}_max": None if numbers is None else numbers.max().item(),
    }


def assert_rows(run: Path, rows: list[Row], first: int = 0, rank: int = 0) -> None:
    """A rank's log of a run holds exactly these rows, from step ``first`` on; ``applied=True`` was asked for."""
    frame = tracer.scan(run).filter(pl.col("rank") == rank, pl.col("step") >= first).collect()
    found = {(row["step"], str(row["param"])): [row[name] for name in COLUMNS] for row in frame.iter_rows(named=True)}
    wanted = {
        (step, name): [numbers.get(column) for column in COLUMNS]
        for step, row in enumerate(rows, first)
        for name, numbers in row.items()
    }
    assert found == wanted


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    """Two models are alike, bit for bit."""
    states = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    for (name, tensor), (other_name, other_tensor) in states:
        assert name == other_name
        assert tensor.numpy().tobytes() == other_tensor.numpy().tobytes(), name


def runs(folder: Path) -> list[str]:
    """The names of the runs in a folder."""
    return sorted(path.parent.name for path in folder.glob("*/run.json"))


def settings(run: Path) -> dict[str, Any]:
    """With what a run was begun."""
    given: dict[str, Any] = json.loads((run / "run.json").read_text())["settings"]
    return given


def reason(run: Path, rank: int = 0) -> str:
    """Why a rank of a run has closed; "" where it ended well."""
    mark = json.loads((run / f"closed-r{rank:05d}.json").read_text())
    return str(mark["reason"])


def in_a_process(folder: Path, code: str, *paths: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of this code in a process of its own, in a folder; ``paths`` are searched for modules first."""
    (folder / "script.py").write_text(code)
    found = os.pathsep.join(str(path) for path in (*paths, ROOT))
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def be_patient() -> None:
    """Let the daemons of this process, one of several that share few cores, take their time to write."""
    tracer.daemon.SETTINGS = DaemonSettings(wait_seconds=60)


def keep(folder: Path, rows: list[Row]) -> None:
    """Let a rank keep its oracle's rows for the test that started it."""
    (folder / f"rows-{os.environ['RANK']}.json").write_text(json.dumps(rows))


def kept(folder: Path, rank: int) -> list[Row]:
    """What a rank has kept."""
    rows: list[Row] = json.loads((folder / f"rows-{rank}.json").read_text())
    return rows
