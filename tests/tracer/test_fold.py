"""``fold``: a row that covers several steps hides none of them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

import tracer
from tests.logs import new_run
from tests.tracer.test_daemon import encode
from tests.training import loss_of, metric, mlp, recorded
from tests.waiting import wait_until
from tracer.daemon import Daemon, DaemonSettings
from tracer.log.parts import all_parts
from tracer.log.store import Local as Path

EVERYTHING = ("mean", "std", "norm", "absmax", "zeros", "nonfinite")


def train(
    path: Path, steps: int, spoil: Callable[[int, nn.Sequential], None] = lambda *_: None, **options: Any
) -> None:
    """A training that is the same whatever is recorded of it; ``spoil`` may change gradients before they are used."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, path, **options) as trace:
        for step in range(steps):
            optimizer.zero_grad()
            spoil(step, model)
            loss_of(model).backward()
            optimizer.step()
            trace.log(step_number=step)


def folded(rows: pl.DataFrame, steps: int) -> dict[tuple[int, str], dict[str, float | None]]:
    """The oracle: rows of single steps reduced by hand, for every so many steps and each parameter."""
    found: dict[tuple[int, str], dict[str, float | None]] = {}
    windows = rows.with_columns(window=pl.col("step") // steps).partition_by("window", "param")
    statistics = [name for name in rows.columns if name.startswith(("value_", "grad_", "applied_"))]
    for window in windows:
        key = int(window["window"][0] * steps + steps - 1), str(window["param"][0])
        found[key] = {"span": len(window)}
        for name in statistics:
            numbers = np.array([number for number in window[name] if number is not None])
            reduce = np.min if name.endswith("_min") else np.mean if name.endswith("_mean") else np.max
            found[key][name] = float(reduce(numbers)) if len(numbers) else None
    return found


def assert_equal_to(rows: dict[tuple[int, str], dict[str, Any]], oracle: dict[tuple[int, str], dict[str, Any]]) -> None:
    """The same rows, with the same numbers; NaN equals NaN, and means may differ in their last bits."""
    assert rows.keys() == oracle.keys()
    for key, expected in oracle.items():
        assert {name: rows[key][name] for name in expected} == pytest.approx(expected, rel=1e-12, abs=0, nan_ok=True)


@pytest.mark.parametrize("fold", [2, 5, 12])
def test_a_row_holds_the_extremes_of_all_its_steps(tmp_path: Path, fold: int) -> None:
    """Each statistic of a row is that of the single steps of the same training, reduced; their number is the span."""
    train(tmp_path / "single", 60, stats=EVERYTHING, applied=True)
    train(tmp_path / "folded", 60, stats=EVERYTHING, applied=True, fold=fold)
    single = tracer.scan(tmp_path / "single").collect()
    assert_equal_to(recorded(tmp_path / "folded"), folded(single, fold))
    assert metric(tmp_path / "folded", "step_number") == [(step, float(step)) for step in range(60)]


def test_a_nan_of_one_step_is_in_its_row(tmp_path: Path) -> None:
    """A gradient that is NaN in one step, and gone in the next, is NaN in the row that covers it."""

    def spoil(step: int, model: nn.Sequential) -> None:
        if step == 3:
            next(model.parameters()).register_hook(lambda gradient: gradient * math.nan)

    train(tmp_path / "run", 4, spoil, fold=4)
    ((_, row),) = [(key, row) for key, row in recorded(tmp_path / "run").items() if key[1] == "0.weight"]
    assert math.isnan(row["grad_max"])
    assert math.isfinite(row["value_max"])


def test_steps_without_a_gradient_do_not_count(tmp_path: Path) -> None:
    """Where a parameter had a gradient in some of the steps, they alone are folded; where in none, it is null."""
    torch.manual_seed(0)
    # The gradients of what is sometimes used are all positive, or all negative: a zero left over would be an extreme.
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("always", "up", "down", "never")})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    largest: dict[str, list[float]] = {"up": [], "down": []}
    with tracer.attach(model, tmp_path / "run", fold=4):
        for step in range(4):
            optimizer.zero_grad()
            data = torch.rand(3, 2)
            loss = model["always"](data).sum()
            if step % 2:
                loss = loss + model["up"](data).sum() - model["down"](data).sum()
            loss.backward()
            if step % 2:
                for name, found in largest.items():
                    gradient = model.get_parameter(f"{name}.weight").grad
                    found += [] if gradient is None else gradient.flatten().tolist()
            optimizer.step()
    rows = recorded(tmp_path / "run")
    for name, found in largest.items():
        row = rows[3, f"{name}.weight"]
        assert (row["grad_min"], row["grad_max"]) == (min(found), max(found))
    assert rows[3, "never.weight"]["grad_max"] is None
    assert rows[3, "never.weight"]["value_max"] is not None
    assert {row["span"] for row in rows.values()} == {4}


def test_the_last_row_covers_what_is_left_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """A run that ends, or begins again, within a row's steps covers those there were."""
    train(tmp_path / "run", 5, fold=4)
    train(tmp_path / "run", 2, fold=4, resume=True)
    spans = {step: row["span"] for (step, _), row in recorded(tmp_path / "run").items()}
    assert spans == {3: 4, 4: 1, 6: 2}


def test_each_steps_own_scale_is_divided_out(tmp_path: Path) -> None:
    """Under a scaler whose scale grows within a row, the row holds the gradients without any."""
    for name, fold in (("single", 1), ("folded", 4)):
        torch.manual_seed(0)
        model, scaler = mlp(), GradScaler("cpu", init_scale=2.0, growth_interval=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tracer.attach(model, tmp_path / name, scaler=scaler, fold=fold):
            for _ in range(8):
                optimizer.zero_grad()
                scaler.scale(loss_of(model)).backward()
                scaler.step(optimizer)
                scaler.update()
    single = tracer.scan(tmp_path / "single").collect()
    assert_equal_to(recorded(tmp_path / "folded"), folded(single, 4))


def test_rows_are_published_whole_while_the_run_goes_on(tmp_path: Path) -> None:
    """However often the daemon publishes, no row is torn in two; the unfinished one waits for its steps."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", fold=10):
        for step in range(45):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            if step in (12, 33):
                before = len(all_parts(tmp_path / "run", "extremes"))
                wait_until(lambda before=before: len(all_parts(tmp_path / "run", "extremes")) > before)  # type: ignore[misc]
    rows = recorded(tmp_path / "run")
    assert {step: row["span"] for (step, _), row in rows.items()} == {9: 10, 19: 10, 29: 10, 39: 10, 44: 5}


def test_what_is_not_ripe_is_published_before_memory_runs_out(tmp_path: Path) -> None:
    """Items that wait for others do so only while there is room; the rest is published in their order."""
    settings = DaemonSettings(limit_bytes=4000)
    daemon = Daemon(
        new_run(tmp_path / "run"), 0, {"metrics": encode}, lambda item: item, lambda *_: 0, settings=settings
    )
    for number in range(5):
        daemon.put("metrics", number, size_bytes=300)
    daemon.put("metrics", 5, size_bytes=1000)
    wait_until(lambda: tracer.scan(tmp_path / "run", "metrics").collect()["step"].to_list() == list(range(6)))
    daemon.put("metrics", 6)
    daemon.close({})
    assert tracer.scan(tmp_path / "run", "metrics").collect()["step"].to_list() == list(range(7))


def test_a_stride_and_a_fold_exclude_each_other(tmp_path: Path) -> None:
    """One leaves steps out, the other measures each: both at once are refused, and no folder is made."""
    with pytest.raises(ValueError, match="every=2 leaves steps out, and fold=3 measures each step"):
        tracer.attach(mlp(), tmp_path / "run", every=2, fold=3)
    assert not (tmp_path / "run").exists()
