"""What the optimizer really used, beside what the backward gave."""

from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
from tests.training import by_hand, loss_of, mlp, recorded

NAMES = ("0.weight", "0.bias", "2.weight", "2.bias")


def gradients(model: nn.Module) -> dict[str, tuple[float | None, float | None]]:
    """The extremes of each gradient as it is now, taken in float64."""
    return {name: (found["grad_min"], found["grad_max"]) for name, found in by_hand(model).items()}


def columns(run: Path, quantity: str) -> list[dict[str, tuple[float | None, float | None]]]:
    """By step, the extremes of a quantity that a run recorded."""
    rows = recorded(run)
    steps = sorted({step for step, _ in rows})
    return [
        {
            name: (row[f"{quantity}_min"], row[f"{quantity}_max"])
            for (at, name), row in rows.items()
            if at == step
        }
        for step in steps
    ]  # fmt: skip


def test_with_clipping_both_gradients_are_recorded(tmp_path: Path) -> None:
    """grad_* is what the backward gave, applied_* what clipping left of it."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    raw, clipped = [], []
    with tracer.attach(model, tmp_path / "run", applied=True):
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            raw.append(gradients(model))
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            clipped.append(gradients(model))
            optimizer.step()
    assert raw != clipped
    assert columns(tmp_path / "run", "grad") == raw
    assert columns(tmp_path / "run", "applied") == clipped


def test_without_applied_there_is_no_such_column(tmp_path: Path) -> None:
    """Nobody pays for what was not asked for."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run"):
        loss_of(model).backward()
    assert not [name for name in tracer.scan(tmp_path / "run").collect_schema() if name.startswith("applied")]


def test_a_step_without_an_update_has_applied_nothing(tmp_path: Path) -> None:
    """Gradients of a last backward without an update, and of parameters that no optimizer holds, are not applied."""
    model = mlp()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", applied=True):
        loss_of(model).backward()
        expected = gradients(model)
        optimizer.step()
        loss_of(model).backward()
    nothing = (None, None)
    assert columns(tmp_path / "run", "applied") == [
        {name: expected[name] if name.startswith("0") else nothing for name in NAMES},
        dict.fromkeys(NAMES, nothing),
    ]


def test_a_closures_gradients_are_those_it_gave_last(tmp_path: Path) -> None:
    """An optimizer that calls a closure has applied the gradients of the closure, not those from before it."""
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    inputs = torch.randn(5, 6)
    expected = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(inputs).square().mean()
        loss.backward()
        return loss

    with tracer.attach(model, tmp_path / "run", applied=True):
        for _ in range(2):
            optimizer.step(closure)
            expected.append(gradients(model))
    assert columns(tmp_path / "run", "applied") == expected


@pytest.mark.parametrize("closure_by_name", [False, True])
def test_a_first_closure_finds_no_gradient_before_it(closure_by_name: bool, tmp_path: Path) -> None:
    """With a closure, by position or by name, the first step has its applied gradients too."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure() -> float:
        loss = loss_of(model)
        loss.backward()
        return float(loss.detach())

    with tracer.attach(model, tmp_path / "run", applied=True):
        optimizer.step(closure=closure) if closure_by_name else optimizer.step(closure)
        expected = gradients(model)
    assert columns(tmp_path / "run", "applied") == [expected]


def test_an_optimizer_inside_the_backward_applies_what_it_frees(tmp_path: Path) -> None:
    """One optimizer a parameter, stepping in hooks and freeing the gradient at once: applied_* equals grad_*."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run", applied=True):
        for parameter in model.parameters():
            optimizer = torch.optim.SGD([parameter], lr=0.1)

            def step(_: torch.Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad()

            parameter.register_post_accumulate_grad_hook(step)
        for _ in range(3):
            loss_of(model).backward()
    found = columns(tmp_path / "run", "applied")
    assert len(found) == 3
    assert found == columns(tmp_path / "run", "grad")
    assert all(None not in extremes for step in found for extremes in step.values())


def test_several_optimizers_apply_each_their_own(tmp_path: Path) -> None:
    """Gradients changed between two updates of one step are recorded as each optimizer found them."""
    model = mlp()
    first, second = (torch.optim.SGD(model[index].parameters(), lr=0.1) for index in (0, 2))
    with tracer.attach(model, tmp_path / "run", applied=True):
        loss_of(model).backward()
        before = gradients(model)
        first.step()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(2)
        after = gradients(model)
        second.step()
    expected = {name: (before if name.startswith("0") else after)[name] for name in NAMES}
    assert columns(tmp_path / "run", "applied") == [expected]


def test_gradients_set_by_hand_are_applied(tmp_path: Path) -> None:
    """Gradients that no backward gave are null in grad_*, and in applied_* what the optimizer found."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", applied=True):
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.5)
            optimizer.step()
    assert columns(tmp_path / "run", "applied") == [dict.fromkeys(NAMES, (0.5, 0.5))] * 2
    assert columns(tmp_path / "run", "grad") == [dict.fromkeys(NAMES, (None, None))] * 2
