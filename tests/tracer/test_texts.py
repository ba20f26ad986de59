"""Texts that UTF-8 cannot hold: they are written with escapes, and nothing is lost with them."""

import polars as pl
import pytest
import torch
from torch import nn

import tracer
from tests.training import events, loss_of, metric, steps
from tracer.log.ranks import closed_summaries
from tracer.log.run import open_run
from tracer.log.store import Local as Path

POISONED, ESCAPED = "a\udc80", "a\\udc80"


def poisoned() -> nn.Sequential:
    """A model with a module whose name holds a lone surrogate, as a file name in another encoding does."""
    model = nn.Sequential()
    model.add_module(POISONED, nn.Linear(6, 3))
    model.add_module("good", nn.Linear(3, 1))
    return model


def test_a_poisoned_name_costs_no_row(tmp_path: Path) -> None:
    """Names of metrics, modules and parameters with a lone surrogate are escaped; every row of every table is there."""
    model = poisoned()
    with tracer.attach(model, tmp_path / "run", activations=True, stats="histogram") as trace:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            loss_of(model).backward()
            optimizer.step()
            trace.log(**{POISONED: 1.0, "loss": 2.0})
    names = {f"{ESCAPED}.weight", f"{ESCAPED}.bias", "good.weight", "good.bias"}
    assert {param["name"] for param in open_run(tmp_path / "run").info["params"]} == names
    extremes = tracer.scan(tmp_path / "run").collect()
    assert (set(extremes["param"]), extremes.height) == (names, 12)
    assert set(tracer.scan(tmp_path / "run", "histograms").collect()["param"]) == names
    modules = tracer.scan(tmp_path / "run", "activations").select(pl.col("module").unique()).collect()
    assert set(modules["module"]) == {"", ESCAPED, "good"}
    assert metric(tmp_path / "run", ESCAPED) == [(step, 1.0) for step in range(3)]
    assert metric(tmp_path / "run", "loss") == [(step, 2.0) for step in range(3)]
    (summary,) = closed_summaries(tmp_path / "run")
    assert set(summary["rows_dropped"].values()) == {0}


def test_a_poisoned_message_costs_no_event(tmp_path: Path) -> None:
    """The exception that ends a training may say anything, and reaches the user as it was."""
    with pytest.raises(ValueError, match=POISONED), tracer.attach(nn.Linear(6, 3), tmp_path / "run"):
        raise ValueError(POISONED)
    assert events(tmp_path / "run", "closed") == [(0, None, f"ValueError: {ESCAPED}")]
    assert len(events(tmp_path / "run", "attached")) == 1
    (summary,) = closed_summaries(tmp_path / "run")
    assert summary["reason"] == f"ValueError: {ESCAPED}"


class _SpeechlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_exception_that_cannot_say_itself_is_no_second_one(tmp_path: Path) -> None:
    """An exception whose message raises ends the trace under its kind, and reaches the user as it was."""
    with pytest.raises(_SpeechlessError), tracer.attach(nn.Linear(6, 3), tmp_path / "run"):
        raise _SpeechlessError
    assert events(tmp_path / "run", "closed") == [(0, None, "_SpeechlessError: its message cannot be had")]


def test_a_statistic_that_fails_with_a_poisoned_message_costs_one_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message of torch's own error is written into events, whatever it holds."""
    model = nn.Linear(6, 3)
    with (
        pytest.warns(tracer.TracerWarning, match="no longer traced"),
        tracer.attach(model, tmp_path / "run", stats="mean") as trace,
    ):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        buffer = trace._parts.recorder._step_record.buffer  # type: ignore[union-attr]
        record = buffer.record

        def failing(index: int, value: torch.Tensor, gradient: torch.Tensor | None) -> None:
            if index == 0:
                raise RuntimeError(POISONED)
            record(index, value, gradient)

        monkeypatch.setattr(buffer, "record", failing)
        for _ in range(2):
            loss_of(model).backward()
            optimizer.step()
    assert events(tmp_path / "run", "failed") == [(0, "weight", f"RuntimeError: {ESCAPED}")]
    assert steps(tmp_path / "run") == [0, 1]
