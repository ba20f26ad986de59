"""``attach(budget=...)``: the tracer measures as often as its own cost allows."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tracer
from tests.training import by_hand, events, extremes_of, loss_of, metric, mlp, recorded, steps
from tracer.budget import Budget


@dataclass
class Clock:
    """A clock that nothing moves but work."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        """Work for so long."""
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that budgets look at."""
    clock = Clock()
    monkeypatch.setattr("tracer.budget.clock", clock)
    return clock


@dataclass
class Costs:
    """What a training takes, in seconds a step: itself, and tracing a step that is measured, or not."""

    training: float = 1.0
    measured: float = 0.05
    unmeasured: float = 0.0
    pauses: dict[int, float] | None = None

    def run(self, clock: Clock, budget: Budget, count: int) -> Iterator[tuple[int, float, float]]:
        """Each step's stride, and the seconds of tracing and of all."""
        for step in range(count):
            measured, began = step % budget.stride == 0, clock.now
            clock.work(self.training)
            work = (self.measured if measured else self.unmeasured) + (self.pauses or {}).get(step, 0.0)
            budget.billed(clock.work)(work)
            budget.end_step(measured)
            yield budget.stride, work, clock.now - began


def share(found: list[tuple[int, float, float]]) -> float:
    """The part of the time that tracing took."""
    return sum(work for _, work, _ in found) / sum(seconds for _, _, seconds in found)


@pytest.mark.slow
@given(
    limit=st.floats(0.005, 0.3),
    measured=st.floats(1e-5, 2.0),
    unmeasured=st.floats(0.0, 0.4),
)
def test_the_budget_is_kept_after_a_hundred_steps(limit: float, measured: float, unmeasured: float) -> None:
    """Whatever reductions cost, tracing keeps its share after a hundred steps, and measures as often as that allows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracer.budget.clock", clock := Clock())
        costs = Costs(measured=measured, unmeasured=unmeasured * limit)
        found = list(costs.run(clock, Budget(limit, 1), 100 + 20 * 1024))[100:]
    assert share(found) <= limit
    # Twice as often would take nearly all that is allowed, or more.
    stride = found[-1][0]
    often = measured + (stride // 2 - 1) * costs.unmeasured
    assert stride == 1 or often / (often + stride // 2) > 0.65 * limit


def test_nothing_keeps_a_budget_that_the_steps_between_exceed(clock: Clock) -> None:
    """Where steps that are not measured cost too much, too, the stride ends at 1,024, and rows still come."""
    budget = Budget(0.01, 1)
    found = list(Costs(unmeasured=0.02).run(clock, budget, 5000))
    assert found[-1][0] == 1024


def test_strides_are_multiples_of_every(clock: Clock) -> None:
    """With ``every=3`` the stride is 3 times a power of two, and not less than 3."""
    cheap, dear = Budget(0.01, 3), Budget(0.01, 3)
    assert [stride for stride, _, _ in Costs(measured=0.0001).run(clock, cheap, 300)][-1] == 3
    assert [stride for stride, _, _ in Costs(measured=0.3).run(clock, dear, 300)][-1] == 48


def test_a_step_that_the_machine_interrupts_changes_little(clock: Clock) -> None:
    """One measured step that takes as long as a hundred is outlived: the stride comes back to where it was."""
    budget = Budget(0.01, 1)
    quiet = [stride for stride, _, _ in Costs().run(clock, budget, 200)][-1]
    again = [stride for stride, _, _ in Costs(pauses={0: 100.0}).run(clock, budget, 200)]
    assert max(again) == quiet
    assert again[-1] == quiet


def test_one_slow_first_sample_is_forgotten(clock: Clock) -> None:
    """Where the very first cost that counts was an accident, later ones bring the stride down, by half at a time."""
    budget = Budget(0.01, 1)
    strides = [stride for stride, _, _ in Costs(pauses={16: 5.0}).run(clock, budget, 6000)]
    assert strides[16] > 256
    assert strides[-1] == 8
    falls = [(a, b) for a, b in itertools.pairwise(strides[16:]) if a != b]
    assert all(b == a // 2 for a, b in falls)


def slow_reductions(monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: float) -> None:
    """Have the extremes of a parameter and its gradient take so long."""
    aminmax = torch.aminmax

    def slowly(*arguments: Any, **keywords: Any) -> Any:
        clock.work(seconds / 2)
        return aminmax(*arguments, **keywords)

    monkeypatch.setattr(torch, "aminmax", slowly)


def train(
    path: Path, clock: Clock, model: nn.Module, count: int, **settings: Any
) -> list[dict[str, dict[str, float | None]]]:
    """Train for so many steps of a second each; what each step's rows should hold."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with tracer.attach(model, path, **settings) as trace:
        for step in range(count):
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            trace.log(at=step)
            optimizer.step()
            clock.work(1.0)
    return expected


@pytest.mark.parametrize(("reduction", "stride"), [(0.0001, 1), (0.02, 16), (0.2, 128)])
def test_a_trace_with_a_budget_measures_what_it_can_afford(
    reduction: float, stride: int, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a slow reduction of four parameters, rows come at the stride that keeps 1 %, and each of them is exact."""
    slow_reductions(monkeypatch, clock, reduction)
    path, model = tmp_path / "run", mlp()
    expected = train(path, clock, model, 400, budget=0.01)
    found = steps(path)
    assert found[:2] == [0, 16]
    assert {b - a for a, b in itertools.pairwise(found) if a >= 100} <= {stride}
    assert {key: extremes_of(row) for key, row in recorded(path).items()} == {
        (step, name): expected[step][name] for step in found for name in expected[step]
    }
    assert metric(path, "at") == [(step, step) for step in range(400)]


def test_cost_and_strides_are_in_the_log(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of the time that tracing took since the last measured step is a metric, a change of stride an event."""
    slow_reductions(monkeypatch, clock, 0.05)
    path = tmp_path / "run"
    train(path, clock, mlp(), 200, budget=0.01)
    costs = metric(path, "tracer_cost")
    assert [step for step, _ in costs] == [16, 32, 64, 96, 128, 160, 192]
    # Four parameters take a fifth of a second, in one step of 16, then of 32.
    assert [cost for _, cost in costs] == pytest.approx([0.2 / 16.2] * 2 + [0.2 / 32.2] * 5)
    assert events(path, "stride") == [(16, None, "every 16 -> every 32: 0.62% of the time expected")]
    run = pl.read_json(path / "run.json")
    assert run["settings"].struct.field("budget").item() == 0.01


def test_activations_are_recorded_in_the_steps_that_are_measured(clock: Clock, tmp_path: Path) -> None:
    """What modules give out is recorded at the same stride as what parameters hold."""
    train(tmp_path / "run", clock, mlp(), 100, budget=0.01, activations=True)
    seen = tracer.scan(tmp_path / "run", "activations").select(pl.col("step").unique().sort()).collect()
    assert seen["step"].to_list() == steps(tmp_path / "run")
    assert 99 in steps(tmp_path / "run"), "nothing costs anything by this clock"


@pytest.mark.parametrize("limit", [0, 1, -0.1, 2.0, math.nan, "1%"])
def test_a_budget_is_a_share(limit: Any, tmp_path: Path) -> None:
    """A budget that is not between 0 and 1 is refused with what it was."""
    with pytest.raises(ValueError, match=r"budget=.* must be a share of the time between 0 and 1"):
        tracer.attach(mlp(), tmp_path / "run", budget=limit)


def test_a_budget_and_fold_are_refused_together(tmp_path: Path) -> None:
    """One leaves steps out, and the other measures each."""
    with pytest.raises(ValueError, match=r"budget=0\.01 leaves steps out"):
        tracer.attach(mlp(), tmp_path / "run", budget=0.01, fold=2)
