"""Each sentence of DESIGN.md's paragraph on steps, in loops that people write."""

import gc
import math
import signal
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import _init_optim_state

import tracer
from tests.training import (
    assert_rows,
    by_hand,
    events,
    extremes_of,
    loss_of,
    metric,
    mlp,
    recorded,
    steps,
    values_of_first,
)
from tests.waiting import wait_until
from tracer.items import StepRows
from tracer.log.ranks import state
from tracer.log.store import Local as Path
from tracer.record import StepRecord
from tracer.recorder import Recorder
from tracer.rows import RowBuffer


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer of all parameters."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_an_update_and_a_later_gradient_begin_the_next_step(tmp_path: Path) -> None:
    """A plain loop counts its updates from 0, with no help, and close() ends the last step."""
    model = mlp()
    optimizer = sgd(model)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(4):
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


@pytest.mark.parametrize(
    ("every", "broken"),
    [(1, "tracer.hooks.Hooks.holds"), (1000, "tracer.hooks.Hooks.holds"), (1, "torch.cuda.is_initialized")],
)
def test_whatever_a_hook_asks_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, broken: str
) -> None:
    """In a measured step or another, training goes on, with one warning and an event; metrics are all there."""

    def failing(*_: object) -> bool:
        raise RuntimeError("asked in vain")

    model = mlp()
    first = next(model.parameters())
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run", every=every) as trace, pytest.warns(tracer.TracerWarning) as warned:
        for number in range(6):
            if number == 3:
                monkeypatch.setattr(broken, failing)
            optimizer.zero_grad()
            loss_of(model).backward()
            before = first.detach().clone()
            optimizer.step()
            assert not torch.equal(before, first)
            trace.log(number=number)
    assert ["asked in vain" in str(warning.message) for warning in warned] == [True]
    assert events(tmp_path / "run", "failed")
    assert [value for _, value in metric(tmp_path / "run", "number")] == list(range(6))


def test_a_rows_time_is_that_of_its_update(tmp_path: Path) -> None:
    """Rows bear the moment of their step's update, not that of the next gradient, with which they cross to the host."""
    model = mlp()
    optimizer = sgd(model)
    updates = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            loss_of(model).backward()
            begun = datetime.now(UTC)
            optimizer.step()
            updates.append((begun, datetime.now(UTC)))
    rows = recorded(tmp_path / "run")
    millisecond = timedelta(milliseconds=1)
    for step, (begun, ended) in enumerate(updates):
        assert begun - millisecond <= rows[step, "0.weight"]["time"] <= ended + millisecond


def test_gradient_accumulation_is_one_step(tmp_path: Path) -> None:
    """Several backwards before one update are one step, whose row holds the accumulated gradient."""
    model = mlp()
    optimizer = sgd(model)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(4):
                (loss_of(model) / 4).backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


def test_two_optimizers_after_one_backward_are_one_step(tmp_path: Path) -> None:
    """Optimizers that update one after the other end one step together."""
    model = mlp()
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[2].parameters(), lr=0.1)]
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            model.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            for optimizer in optimizers:
                optimizer.step()
    assert_rows(tmp_path / "run", expected)


@pytest.mark.parametrize("attach_first", [True, False])
def test_an_optimizer_inside_the_backward_is_one_step_a_backward(attach_first: bool, tmp_path: Path) -> None:
    """Optimizers that step in gradient hooks, set before or after attach, end one step with each backward."""
    model = mlp()
    expected: list[dict[str, dict[str, float | None]]] = []

    def step_inside_backward() -> None:
        for name, parameter in model.named_parameters():
            optimizer = torch.optim.SGD([parameter], lr=0.1)

            def step(_: torch.Tensor, name: str = name, optimizer: torch.optim.Optimizer = optimizer) -> None:
                expected[-1][name] = by_hand(model)[name]
                optimizer.step()
                optimizer.zero_grad()

            parameter.register_post_accumulate_grad_hook(step)

    if not attach_first:
        step_inside_backward()
    with tracer.attach(model, tmp_path / "run"):
        if attach_first:
            step_inside_backward()
        for _ in range(3):
            expected.append({})
            loss_of(model).backward()
    assert_rows(tmp_path / "run", expected)


def test_lbfgs_with_its_inner_backwards_is_one_step(tmp_path: Path) -> None:
    """The closure's backwards of one LBFGS step are one step: the values before it moves them, the last gradients."""
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    inputs = torch.randn(5, 6)
    backwards: list[list[dict[str, dict[str, float | None]]]] = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        backwards[-1].append(by_hand(model))
        return float(loss.detach())

    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            backwards.append([])
            optimizer.step(closure)
    assert min(len(inner) for inner in backwards) > 1, "one backward a step shows nothing"
    assert_rows(tmp_path / "run", list(map(values_of_first, backwards)))


def test_evaluation_between_epochs_counts_nothing(tmp_path: Path) -> None:
    """Forwards without a gradient, and metrics logged after them, move no count."""
    model = mlp()
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run") as trace:
        for epoch in range(2):
            for _ in range(3):
                optimizer.zero_grad()
                loss_of(model).backward()
                optimizer.step()
            with torch.no_grad():
                trace.log(val_loss=loss_of(model), epoch=epoch)
    assert steps(tmp_path / "run") == list(range(6))
    assert metric(tmp_path / "run", "epoch") == [(2, 0.0), (5, 1.0)]


def test_another_models_optimizer_ends_no_step(tmp_path: Path) -> None:
    """Only an optimizer that holds a traced parameter counts."""
    model, other = mlp(), mlp()
    with (
        pytest.warns(tracer.TracerWarning, match="no update of a torch optimizer"),
        tracer.attach(model, tmp_path / "run"),
    ):
        for _ in range(3):
            loss_of(model).backward()
            loss_of(other).backward()
            sgd(other).step()
    assert steps(tmp_path / "run") == [0]


def test_a_loop_without_an_optimizer_ends_its_steps_itself(tmp_path: Path) -> None:
    """With trace.step(), weights updated by hand under no_grad give one step a call."""
    model = mlp()
    expected = []
    with tracer.attach(model, tmp_path / "run") as trace:
        for number in range(3):
            loss_of(model).backward()
            expected.append(by_hand(model))
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(0.1 * parameter.grad)
                    parameter.grad = None
            trace.step(loss=number)
    assert_rows(tmp_path / "run", expected)
    assert metric(tmp_path / "run", "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_from_its_first_call_on_only_trace_step_ends_steps(tmp_path: Path) -> None:
    """In a loop that calls both, the optimizer's updates no longer count: a step may then hold several of them."""
    model = mlp()
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run") as trace:
        for _ in range(3):
            for _ in range(2):
                optimizer.zero_grad()
                loss_of(model).backward()
                optimizer.step()
                trace.log(update=1)
            trace.step()
    # The very first update is followed by a gradient before the first call, so it ended a step of its own.
    assert steps(tmp_path / "run") == [0, 1, 2, 3]
    assert [step for step, _ in metric(tmp_path / "run", "update")] == [0, 1, 2, 2, 3, 3]


def test_trace_step_after_each_update_counts_each_once(tmp_path: Path) -> None:
    """A user who calls trace.step() beside a torch optimizer gets the same steps as one who does not."""
    model = mlp()
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run") as trace:
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            trace.step(loss=0)
    assert steps(tmp_path / "run") == [0, 1, 2]
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == [0, 1, 2]


def test_trace_step_counts_a_step_without_any_gradient(tmp_path: Path) -> None:
    """Each call ends a step, also where no gradient came: its values are recorded, its gradients null."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run") as trace:
        loss_of(model).backward()
        trace.step()
        trace.step()
        loss_of(model).backward()
        trace.step()
    rows = recorded(tmp_path / "run")
    assert steps(tmp_path / "run") == [0, 1, 2]
    assert rows[1, "0.weight"]["grad_min"] is None
    assert rows[1, "0.weight"]["value_min"] == next(model.parameters()).min().item()
    assert rows[2, "0.weight"]["grad_min"] is not None


def test_log_belongs_to_the_step_whose_gradients_came_last(tmp_path: Path) -> None:
    """Metrics logged before the backward belong to the step before, those after it, or after the update, to its own."""
    model = mlp()
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run") as trace:
        trace.log(before=0)
        for _ in range(3):
            optimizer.zero_grad()
            loss = loss_of(model)
            trace.log(before=0)
            loss.backward()
            trace.log(between=0)
            optimizer.step()
            trace.log(after=0)
    assert [step for step, _ in metric(tmp_path / "run", "before")] == [0, 0, 0, 1]
    assert [step for step, _ in metric(tmp_path / "run", "between")] == [0, 1, 2]
    assert [step for step, _ in metric(tmp_path / "run", "after")] == [0, 1, 2]


def test_a_last_backward_without_an_update_is_ended_by_close(tmp_path: Path) -> None:
    """A loop that breaks between backward and update, at a NaN loss say, keeps the row of that backward."""
    model = mlp()
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run"):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        (loss_of(model) * math.nan).backward()
    rows = recorded(tmp_path / "run")
    assert steps(tmp_path / "run") == [0, 1]
    assert math.isnan(rows[1, "2.bias"]["grad_max"])


def test_every_k_measures_each_k_th_step(tmp_path: Path) -> None:
    """With every=3, the steps 0, 3, 6 … have rows, equal to the oracle's, and metrics are kept at every step."""
    model = mlp()
    optimizer = sgd(model)
    expected = {}
    with tracer.attach(model, tmp_path / "run", every=3) as trace:
        for step in range(8):
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            expected[step] = by_hand(model)
            optimizer.step()
            trace.log(loss=loss)
    rows = recorded(tmp_path / "run")
    assert steps(tmp_path / "run") == [0, 3, 6]
    assert all(extremes_of(row) == expected[step][name] for (step, name), row in rows.items())
    assert len(metric(tmp_path / "run", "loss")) == 8


class HalfUsed(nn.Module):
    """Uses its second layer in every other forward."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(6, 3)
        self.sometimes = nn.Linear(6, 3)
        self.calls = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        output: torch.Tensor = self.always(inputs)
        return output.add(self.sometimes.forward(inputs)) if self.calls % 2 else output


def test_a_parameter_without_a_gradient_has_null_and_its_value(tmp_path: Path) -> None:
    """In a step that does not use a parameter its gradient columns are null, never 0, and its value is there."""
    model = HalfUsed()
    optimizer = sgd(model)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(4):
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert expected[1]["sometimes.weight"]["grad_min"] is None
    assert_rows(tmp_path / "run", expected)


def test_an_unused_parameters_value_is_the_one_before_the_update(tmp_path: Path) -> None:
    """Weight decay moves a parameter whose old gradient was zeroed, not freed; its row holds the value before that."""
    model = HalfUsed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.5)
    values = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(4):
            optimizer.zero_grad(set_to_none=False)
            loss_of(model).backward()
            values.append(model.sometimes.weight.max().item())
            optimizer.step()
    rows = recorded(tmp_path / "run")
    assert [rows[step, "sometimes.weight"]["value_max"] for step in range(4)] == values
    assert [rows[step, "sometimes.weight"]["grad_max"] is None for step in range(4)] == [False, True, False, True]


def test_a_closure_records_values_from_before_the_update(tmp_path: Path) -> None:
    """Where the optimizer itself calls for the gradients, an unused parameter's value is still the one before."""
    model = HalfUsed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.5)
    values = []

    def closure() -> float:
        optimizer.zero_grad(set_to_none=False)
        loss = loss_of(model)
        loss.backward()
        values.append(model.sometimes.weight.max().item())
        return loss.item()

    with tracer.attach(model, tmp_path / "run") as trace:
        for _ in range(4):
            trace.log(loss=optimizer.step(closure))
    rows = recorded(tmp_path / "run")
    assert [rows[step, "sometimes.weight"]["value_max"] for step in range(4)] == values
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == [0, 1, 2, 3]


def test_gradients_set_by_hand_still_count_their_updates(tmp_path: Path) -> None:
    """Where gradients come from autograd.grad and no hook can see them, each update is a step, with null gradients."""
    model = mlp()
    optimizer = sgd(model)
    values = []
    with tracer.attach(model, tmp_path / "run") as trace:
        for _ in range(3):
            gradients = torch.autograd.grad(loss_of(model), list(model.parameters()))
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            values.append(next(model.parameters()).max().item())
            optimizer.step()
            trace.log(loss=0.0)
    rows = recorded(tmp_path / "run")
    assert [rows[step, "0.weight"]["value_max"] for step in range(3)] == values
    assert [rows[step, "0.weight"]["grad_max"] for step in range(3)] == [None] * 3
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == [0, 1, 2]


def no_gradient(optimizer: torch.optim.Optimizer) -> None:
    """Update although all gradients are None."""
    optimizer.zero_grad()
    optimizer.step()


def empty_closure(optimizer: torch.optim.Optimizer) -> None:
    """Update with a closure that skips its batch, as Lightning's does where training_step returns None."""
    optimizer.zero_grad()
    optimizer.step(lambda: 0.0)


class Twice(torch.optim.Adam):
    """An optimizer whose step is another's."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update as Adam does, whose hooks are called within those of this one."""
        super().step(closure)


@pytest.mark.parametrize("every", [1, 1000])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, Twice])
@pytest.mark.parametrize("update", [no_gradient, empty_closure, _init_optim_state])
def test_an_update_without_any_gradient_is_no_step(
    update: Callable[[torch.optim.Optimizer], None],
    kind: Callable[..., torch.optim.Optimizer],
    every: int,
    tmp_path: Path,
) -> None:
    """Neither before the first step nor between two, nor where it only makes the optimizer's state: metrics stay."""
    model = mlp()
    optimizer = kind(model.parameters(), lr=0.0)
    with tracer.attach(model, tmp_path / "run", every=every) as trace:
        update(optimizer)
        for _ in range(4):
            # A learning rate of 0 is one like another where gradients have come.
            loss_of(model).backward()
            optimizer.step()
            trace.log(loss=0.0)
            update(optimizer)
            optimizer.zero_grad()
            update(optimizer)
        assert trace.state_dict() == {"step": 4}
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == [0, 1, 2, 3]
    assert sorted({step for step, _ in recorded(tmp_path / "run")}) == ([0, 1, 2, 3] if every == 1 else [0])


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("closure", [False, True])
def test_an_update_whose_gradients_were_taken_back_is_no_step(
    closure: bool, fused: bool, every: int, tmp_path: Path
) -> None:
    """A loop that clears the gradients of a bad batch, and updates nevertheless, as Lightning does."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)
    with tracer.attach(model, tmp_path / "run", every=every) as trace:
        for bad in (True, False, True, True, False, False):

            def backward(bad: bool = bad) -> float:
                optimizer.zero_grad()
                loss_of(model).backward()
                if bad:
                    optimizer.zero_grad()
                return 0.0

            if closure:
                optimizer.step(backward)
            else:
                backward()
                optimizer.step()
            if not bad:
                trace.log(loss=0.0)
        assert trace.state_dict() == {"step": 3}
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == [0, 1, 2]
    assert sorted({step for step, _ in recorded(tmp_path / "run")}) == list(range(0, 3, every))


def test_an_optimizer_without_gradients_does_not_end_the_step_of_another(tmp_path: Path) -> None:
    """While one accumulates, another updates after each backward, although its layer gets no gradient yet."""
    model = mlp()
    first, last = torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.SGD(model[2].parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run") as trace:
        for _ in range(3):
            for _ in range(2):
                model[0](torch.ones(4, 6)).sum().backward()
                last.step()
            first.step()
            first.zero_grad()
            trace.log(loss=0.0)
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == [0, 1, 2]
    assert [recorded(tmp_path / "run")[step, "0.bias"]["grad_max"] for step in range(3)] == [8.0] * 3


def test_an_update_that_has_moved_its_gradients_away_is_a_step(tmp_path: Path) -> None:
    """An optimizer that offloads keeps gradients and weights elsewhere, and copies the weights back."""
    model = mlp()

    class Offloaded(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(parameter * 0.9)

    optimizer = Offloaded(model.parameters())
    with tracer.attach(model, tmp_path / "run") as trace:
        for _ in range(3):
            loss_of(model).backward()
            optimizer.zero_grad()
            optimizer.step()
            trace.log(loss=0.0)
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == [0, 1, 2]


@pytest.mark.parametrize("what", ["parameter", "module", "everything"])
def test_what_is_replaced_in_mid_run_is_followed(what: str, tmp_path: Path) -> None:
    """A new parameter, a new module, or a state dict that was assigned: its first gradient is recorded already."""
    model = mlp()
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for step in range(4):
            if step == 2 and what == "parameter":
                model[2].weight = nn.Parameter(torch.randn(3, 8))
            elif step == 2 and what == "module":
                model[2] = nn.Linear(8, 3)
            elif step == 2:
                model.load_state_dict({name: torch.randn_like(p) for name, p in model.named_parameters()}, assign=True)
            optimizer = sgd(model)
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)
    replaced = {name for _, name, _ in events(tmp_path / "run", "replaced")}
    names = {"parameter": {"2.weight"}, "module": {"2.weight", "2.bias"}, "everything": set(expected[0])}
    assert replaced == names[what]


def broken_run(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, breaks: Callable[[int], bool], count: int
) -> list[str]:
    """Six or more steps with metrics, of which these break when their rows are taken; the warnings."""
    model = mlp()
    optimizer = sgd(model)
    take = RowBuffer.take

    def failing(self: RowBuffer, step: int, time_ns: int, loss_scale: float) -> StepRows:
        if breaks(step):
            raise error
        return take(self, step, time_ns)

    monkeypatch.setattr(RowBuffer, "take", failing)
    with (
        pytest.warns(tracer.TracerWarning) as caught,
        tracer.attach(model, path) as trace,
    ):
        for _ in range(count):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            trace.log(loss=0.0)
    assert [step for step, _ in metric(path, "loss")] == list(range(count))
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("error", [MemoryError("no memory left"), RecursionError("too deep")])
def test_what_breaks_between_two_steps_costs_that_step_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Training and metrics go on, later steps are recorded, and the log says what was lost and why."""
    (warned,) = broken_run(tmp_path / "run", monkeypatch, error, {2, 4}.__contains__, 6)
    assert "the extremes of step 2 are lost" in warned
    assert steps(tmp_path / "run") == [0, 1, 3, 5]
    message = f"{type(error).__name__}: {error}"
    assert events(tmp_path / "run", "failed") == [(2, None, message), (4, None, message)]


def test_what_breaks_step_after_step_ends_the_extremes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three in a row no further step is tried, with no event for each step to come."""
    (lost,) = broken_run(tmp_path / "run", monkeypatch, MemoryError("full"), lambda step: 2 <= step < 5, 9)
    assert "the extremes of step 2 are lost" in lost
    assert "after 3 such steps in a row they are no longer recorded, metrics are" in lost
    assert steps(tmp_path / "run") == [0, 1]
    assert [step for step, _, _ in events(tmp_path / "run", "failed")] == [2, 3, 4]


@pytest.mark.parametrize("error", [MemoryError("full"), RecursionError("too deep")])
@pytest.mark.parametrize("backwards", [1, 2])
def test_a_gradient_that_cannot_be_recorded_once_costs_that_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, backwards: int
) -> None:
    """The parameter goes on with the next step; no part of a gradient stands for it, and an event names it."""
    model = mlp()
    optimizer = sgd(model)
    record, failures = RowBuffer.record, iter([error])
    done: list[bool] = []
    expected: list[dict[str, dict[str, float | None]]] = []

    def failing(self: RowBuffer, index: int, value: torch.Tensor, gradient: torch.Tensor | None) -> None:
        if (len(expected), index, len(done)) == (2, 1, backwards - 1):
            for each in failures:
                raise each
        record(self, index, value, gradient)

    monkeypatch.setattr(RowBuffer, "record", failing)
    with (
        pytest.warns(tracer.TracerWarning, match=r"step 2 lacks numbers of 0\.bias; after 3 such steps") as caught,
        tracer.attach(model, tmp_path / "run", stats="mean"),
    ):
        for _ in range(5):
            optimizer.zero_grad()
            done.clear()
            while len(done) < backwards:
                loss_of(model).backward()
                done.append(True)
            expected.append(by_hand(model))
            optimizer.step()
    expected[2]["0.bias"] |= {"grad_min": None, "grad_max": None}
    assert_rows(tmp_path / "run", expected)
    assert len(caught) == 1
    assert events(tmp_path / "run", "failed") == [(2, "0.bias", f"{type(error).__name__}: {error}")]


def test_a_buffer_that_cannot_be_renewed_once_costs_one_step_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the next step cannot begin afresh either, it is lost as well, and the one after it is recorded."""
    renew, failures = StepRecord.renew, iter([RecursionError("still too deep")])

    def failing(self: StepRecord) -> None:
        for each in failures:
            raise each
        renew(self)

    monkeypatch.setattr(StepRecord, "renew", failing)
    broken_run(tmp_path / "run", monkeypatch, RecursionError("too deep"), {2}.__contains__, 6)
    assert steps(tmp_path / "run") == [0, 1, 4, 5]
    assert [step for step, _, _ in events(tmp_path / "run", "failed")] == [2, 3]


@pytest.mark.parametrize("method", ["on_gradient", "before_update", "after_update"])
def test_what_fails_even_to_say_so_raises_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Deep in a recursion no call is left to handle an error with: training goes on, and later steps are recorded."""
    model = mlp()
    optimizer = sgd(model)
    original = getattr(Recorder, method)
    deep = False

    def failing(self: Recorder, *args: Any) -> None:
        if deep:
            raise RecursionError("no frame left")
        original(self, *args)

    monkeypatch.setattr(Recorder, method, failing)
    with tracer.attach(model, tmp_path / "run", stats="mean"):
        for step in range(6):
            deep = step == 2
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
    # An update of which nothing was heard ends no step.
    assert steps(tmp_path / "run") == list(range(5 if method == "after_update" else 6))
    unknown = tracer.scan(tmp_path / "run").filter(pl.col("grad_min").is_null()).collect()
    assert unknown["step"].to_list() == ([2] * 4 if method == "on_gradient" else [])


@pytest.mark.parametrize("which", ["params", "activations"])
def test_a_callable_that_raises_later_costs_what_is_new(tmp_path: Path, which: str) -> None:
    """What was selected goes on; what the callable raises for inside training is left out, with one warning."""
    model = mlp()

    def select(name: str) -> bool:
        if name.startswith("new"):
            raise ValueError("unknown name")
        return True

    optimizer = sgd(model)
    with (
        pytest.warns(tracer.TracerWarning, match=f"{which} raises for new") as caught,
        tracer.attach(model, tmp_path / "run", **{"activations": True, which: select}),  # type: ignore[arg-type]
    ):
        for step in range(6):
            if step == 2:
                model.add_module("new", nn.Linear(3, 3))
                optimizer.add_param_group({"params": model[-1].parameters()})
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
    assert len(caught) == 1
    rows = tracer.scan(tmp_path / "run").filter(pl.col("param").is_in(["0.weight", "0.bias", "2.weight", "2.bias"]))
    assert rows.collect().height == 24
    of_modules = tracer.scan(tmp_path / "run", "activations").filter(pl.col("module").is_in(["0", "1", "2", ""]))
    assert of_modules.collect().height == 24
    assert events(tmp_path / "run", "failed") == []


def test_closing_from_a_signal_handler_at_any_moment_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that closes the trace may interrupt the training thread between two steps."""
    model = mlp()
    optimizer = sgd(model)
    take = RowBuffer.take
    trace = tracer.attach(model, tmp_path / "run")

    def interrupted(self: RowBuffer, step: int, time_ns: int, loss_scale: float) -> StepRows:
        monkeypatch.setattr(RowBuffer, "take", take)
        signal.raise_signal(signal.SIGUSR1)
        return take(self, step, time_ns)

    previous = signal.signal(signal.SIGUSR1, lambda *_: trace.close())
    monkeypatch.setattr(RowBuffer, "take", interrupted)
    try:
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert state(tmp_path / "run") == "closed"


def test_a_frozen_parameter_has_values_and_null_gradients(tmp_path: Path) -> None:
    """A frozen parameter's values are recorded; unfrozen in mid-run, its gradients are from the next step on."""
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = sgd(model)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for step in range(4):
            if step == 2:
                model[0].requires_grad_(True)
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            optimizer.step()
    rows = recorded(tmp_path / "run")
    assert [rows[step, "0.weight"]["value_max"] for step in range(4)] == [e["0.weight"]["value_max"] for e in expected]
    assert [rows[step, "0.weight"]["grad_max"] is None for step in (0, 1, 3)] == [True, True, False]


@pytest.mark.parametrize("change", [lambda model: model.double(), lambda model: model.bfloat16()])
def test_a_model_that_changes_its_dtype_is_followed(change: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    """A model converted after attach, in mid-run, is recorded exactly in its new dtype."""
    model = mlp()
    optimizer = sgd(model)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for step in range(4):
            if step == 2:
                optimizer.zero_grad()
                change(model)
            optimizer.zero_grad()
            model(torch.randn(4, 6).to(next(model.parameters()).dtype)).square().mean().backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


def test_create_graph_keeps_no_graph_alive(tmp_path: Path) -> None:
    """A backward with create_graph=True, which runs hooks in grad mode, is recorded like any other."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run") as trace:
        gradients = torch.autograd.grad(loss_of(model), list(model.parameters()), create_graph=True)
        penalty = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        with warnings.catch_warnings():
            # Torch says so once a process.
            warnings.filterwarnings("ignore", message="Using backward")
            penalty.backward(create_graph=True)
        expected = by_hand(model)
        trace.step()
        model.zero_grad()
    assert_rows(tmp_path / "run", [expected])


def test_a_lazy_model_is_recorded_from_its_first_step(tmp_path: Path) -> None:
    """Parameters that materialise in the first forward join in that very step, wherever they stand in the model."""
    model = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 8), nn.LazyLinear(3))
    optimizer: torch.optim.Optimizer | None = None
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            loss = loss_of(model)
            optimizer = optimizer or sgd(model)
            optimizer.zero_grad()
            loss.backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)
    joined = [name for _, name, _ in events(tmp_path / "run", "joined")]
    assert joined == ["0.weight", "0.bias", "3.weight", "3.bias"]


def test_a_wholly_lazy_model_is_recorded_from_its_first_step(tmp_path: Path) -> None:
    """A model in which no hook could be set at attach loses no step."""
    model = nn.LazyLinear(3)
    expected = []
    optimizer: torch.optim.Optimizer | None = None
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(2):
            loss = loss_of(model)
            optimizer = optimizer or sgd(model)
            optimizer.zero_grad()
            loss.backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


def test_nothing_grows_with_the_steps(tmp_path: Path) -> None:
    """Once what was measured is published, no more tensors are alive after many steps than after a few."""
    # Garbage of other tests would hide what grows.
    gc.collect()
    model = mlp()
    optimizer = sgd(model)

    def train_until(last: int) -> int:
        while trace.state_dict()["step"] <= last:
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        # The last step's rows cross when the next one begins.
        wait_until(lambda: steps(tmp_path / "run")[-1:] == [last - 1])
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    with tracer.attach(model, tmp_path / "run") as trace:
        few = train_until(10)
        assert train_until(300) <= few
