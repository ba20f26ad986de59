"""The rules on the size of updates, where it was measured: made-up runs beside each threshold, and trainings."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import nn

import tracer
from tests.digits import batches, classify, digits, mlp
from tests.logs import statistics
from tracer.log.store import Local
from viewer.read.monitor import FindingsMonitor
from viewer.reduce.param_history import ParamHistory
from viewer.rules.evidence import Evidence, Param
from viewer.rules.findings import findings
from viewer.snapshot import Finding, Severity

KINDS = ("update_large", "update_small")
Ratio = Callable[[int], float | None]
Parameters = Iterable[nn.Parameter]


def said(ratio: Ratio, steps: Sequence[int] = range(200), moves: float = 1e-4, ranks: int = 1) -> list[Finding]:
    """What is said of a weight and a bias with these ratios, whose extremes move by a share of their size in a step."""
    history = ParamHistory(["a", "b"])
    rows = [(step, name) for step in steps for name in "ab"]
    size = [(1 + moves) ** step for step, _ in rows]
    columns: dict[str, list[float | None]] = {
        "value_min": [-each for each in size],
        "value_max": list(size),
        "update_ratio": [ratio(step) for step, _ in rows],
    }
    for rank in range(ranks):
        history.absorb(pl.DataFrame(pl.from_arrow(statistics(steps, ["a", "b"], columns, rank))).lazy())
    shapes = {"a": Param("a", (8, 8)), "b": Param("b", (8,))}
    found = findings(Evidence(tables=history.tables(), described=shapes))
    return [finding for finding in found if finding.kind in KINDS]


def every(count: int, ratio: float) -> Ratio:
    """A ratio that is measured in one of so many steps."""
    return lambda step: ratio if step % count == 0 else None


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("ratio", "kinds"),
    [
        (0.21, ["update_large"]),
        (0.19, []),
        (1e-3, []),
        (1.1e-5, []),
        (0.9e-5, ["update_small"]),
    ],
)
def test_a_measured_ratio_decides(ratio: float, kinds: list[str], ranks: int) -> None:
    """Beyond 0.2, or never beyond 1e-5, which are two decades from the rule of thumb; how extremes move does not."""
    for moves in (0.0, 1e-9, 1e-4, 0.11):
        assert [finding.kind for finding in said(every(10, ratio), moves=moves, ranks=ranks)] == kinds
    for finding in said(every(10, ratio), ranks=ranks):
        assert (finding.params, finding.first_step, finding.last_step) == (("a",), 0, 190)
        assert finding.numbers["rows"] == 20
        assert finding.numbers["largest"] == pytest.approx(ratio)
        assert "measured updates" in finding.sentence or "values move" in finding.sentence


@pytest.mark.parametrize("ratio", [0.0, math.nan, math.inf])
def test_of_no_change_and_of_nan_other_rules_speak(ratio: float) -> None:
    """Neither is large or small."""
    assert said(every(10, ratio), moves=0.0) == []


@pytest.mark.parametrize(("moves", "kinds"), [(0.11, ["update_large"]), (1e-4, []), (0.9e-7, ["update_small"])])
def test_without_a_measured_ratio_extremes_decide(moves: float, kinds: list[str]) -> None:
    """As in a log that has no such column, or no number in it for this parameter."""
    assert [finding.kind for finding in said(lambda step: None, moves=moves)] == kinds


@pytest.mark.parametrize("ratio", [0.5, 1e-6])
@pytest.mark.parametrize(
    ("apart", "steps", "count"), [(1, 50, 1), (1, 49, 0), (10, 91, 1), (10, 90, 0), (25, 226, 1), (25, 225, 0)]
)
def test_a_few_updates_prove_nothing(ratio: float, apart: int, steps: int, count: int) -> None:
    """It takes ten measured updates, and fifty steps: weights that begin as 0 double at first."""
    assert len(said(every(apart, ratio), range(steps))) == count


def test_large_updates_are_those_in_a_row_and_small_ones_all() -> None:
    """One usual update ends a stretch of large ones; small ones are a schedule's aim where any was usual."""
    assert said(lambda step: (1e-3 if step % 90 == 0 else 0.5) if step % 10 == 0 else None) == []
    assert said(lambda step: (1e-3 if step == 0 else 1e-7) if step % 10 == 0 else None) == []
    (found,) = said(lambda step: (0.5 if step >= 60 else 1e-3) if step % 10 == 0 else None)
    assert (found.first_step, found.last_step) == (60, 190)


def judged(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, warm_up: int = 0) -> list[Finding]:
    """What is said of a classifier's training on digits of 150 steps whose updates are measured."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / warm_up) if warm_up else 1.0)
    with tracer.attach(model, path, update=True) as trace:
        classify(model, optimizer, batches(*digits(), 150, 16), trace, lambda step: schedule.step())
    monitor = FindingsMonitor(Local(path))
    monitor.refresh()
    return list(monitor.findings)


def network(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A small one, its weights fixed by the seed."""
    torch.manual_seed(0)
    return mlp(64, 16, 16, 10, activation=activation)


@pytest.mark.parametrize(
    ("optimize", "kind", "severity"),
    [
        (lambda ps: torch.optim.SGD(ps, lr=100.0), "update_large", Severity.WARNING),
        (lambda ps: torch.optim.Adam(ps, lr=1e-7), "update_small", Severity.NOTE),
        (lambda ps: torch.optim.SGD(ps, lr=1e-5), "update_small", Severity.NOTE),
    ],
    ids=["sgd 100", "adam 1e-7", "sgd 1e-5"],
)  # fmt: skip
def test_a_learning_rate_far_off_is_found(
    optimize: Callable[[Parameters], torch.optim.Optimizer], kind: str, severity: Severity, tmp_path: Path
) -> None:
    """In real trainings, within a hundred steps; the other rule is silent."""
    model = network(nn.Tanh)
    found = [each for each in judged(tmp_path / "run", model, optimize(model.parameters())) if each.kind in KINDS]
    assert [(each.kind, each.severity) for each in found] == [(kind, severity)]


@pytest.mark.parametrize("case", ["adam", "sgd", "warm-up", "frozen", "frozen and held", "zeros", "half"])
def test_a_healthy_training_is_left_alone(case: str, tmp_path: Path) -> None:
    """With Adam, SGD, a warm-up from 0, a frozen backbone, weights that begin as 0, and in bfloat16."""
    model = network()
    if case.startswith("frozen"):
        model[0].requires_grad_(False)
    if case == "zeros":
        nn.init.zeros_(model[4].weight)  # type: ignore[arg-type]
    if case == "half":
        model = model.to(torch.bfloat16)
        model.register_forward_pre_hook(lambda _, inputs: inputs[0].to(torch.bfloat16))
    trained = [each for each in model.parameters() if each.requires_grad or case == "frozen and held"]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9) if case == "sgd" else torch.optim.Adam(trained, lr=1e-3)
    found = judged(tmp_path / "run", model, optimizer, 100 if case == "warm-up" else 0)
    assert [finding for finding in found if finding.kind in KINDS] == []
