"""Traces that nobody closed, and whose models are gone."""

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tests.training import events, loss_of, metric, mlp, steps
from tests.waiting import wait_until
from tracer import updates
from tracer.log.ranks import state
from tracer.log.store import Local as Path
from tracer.trace import _open


def nested() -> nn.Module:
    """A model with modules in modules."""
    return nn.Sequential(mlp(), nn.Sequential(nn.Linear(3, 2)))


def alone() -> nn.Module:
    """A model that is one module."""
    return nn.Linear(6, 3)


def train(model: nn.Module, trace: tracer.Trace) -> None:
    """Three steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        loss_of(model).backward()
        optimizer.step()
        trace.log(loss=0.0)


def assert_nothing_is_held() -> None:
    """No trace that has a model, and no hook."""
    assert not _open
    assert not updates.reports
    assert not nn.modules.module._global_forward_hooks


@pytest.mark.parametrize("build", [nested, alone])
@pytest.mark.parametrize("options", [{}, {"activations": True, "stats": "histogram", "every": 2}], ids=["", "more"])
def test_a_trace_that_nobody_closes_ends_with_its_model(tmp_path: Path, build: Any, options: dict[str, Any]) -> None:
    """It keeps neither model, nor thread, nor hook, and its log is whole."""
    before = threading.active_count()
    models = []
    for number in range(3):
        model = build()
        trace = tracer.attach(model, tmp_path / f"{number}", **options)
        train(model, trace)
        models.append(weakref.ref(model))
    del model, trace
    gc.collect()
    assert not any(model() for model in models)
    assert_nothing_is_held()
    wait_until(lambda: threading.active_count() == before)
    for number in range(3):
        assert state(tmp_path / f"{number}") == "closed"
        assert steps(tmp_path / f"{number}") == ([0, 2] if options else [0, 1, 2])
        assert len(metric(tmp_path / f"{number}", "loss")) == 3


def test_a_trace_that_is_kept_takes_metrics_after_its_model_is_gone(tmp_path: Path) -> None:
    """A loop may delete its model and log a last accuracy: the trace holds no model, and ends when it is closed."""
    model = nested()
    trace = tracer.attach(model, tmp_path / "run", activations=True)
    train(model, trace)
    held: list[weakref.ref[Any]] = [weakref.ref(part) for part in [*model.modules(), *model.parameters()]]
    del model
    gc.collect()
    assert not any(reference() is not None for reference in held)
    assert_nothing_is_held()
    assert trace.state_dict() == {"step": 3}
    trace.log(accuracy=0.5)
    trace.close()
    assert metric(tmp_path / "run", "accuracy") == [(2, 0.5)]
    assert (state(tmp_path / "run"), steps(tmp_path / "run")) == ("closed", [0, 1, 2])


def test_a_model_that_was_made_for_attach_is_followed_as_long_as_its_modules(tmp_path: Path) -> None:
    """A container around two models, say: it is traced, and its changes are, though nobody else holds it."""
    one, other = nn.Linear(6, 4), nn.Linear(4, 1)
    with tracer.attach(nn.ModuleList([nn.ModuleDict({"one": one}), other]), tmp_path / "run", activations=True):
        optimizer = torch.optim.SGD([*one.parameters(), *other.parameters()], lr=0.1)
        for step in range(4):
            if step == 2:
                one.bias = nn.Parameter(torch.zeros(4))
                optimizer.add_param_group({"params": [one.bias]})
            optimizer.zero_grad()
            other(one(torch.randn(2, 6))).sum().backward()
            optimizer.step()
    rows = tracer.scan(tmp_path / "run").collect()
    assert set(rows["param"]) == {"0.one.weight", "0.one.bias", "1.weight", "1.bias"}
    assert (rows.height, rows["grad_min"].null_count()) == (16, 0)
    assert [(step, param) for step, param, _ in events(tmp_path / "run", "replaced")] == [(2, "0.one.bias")]
    assert set(tracer.scan(tmp_path / "run", "activations").collect()["module"]) == {"0.one", "1"}
