"""What an update changed: after minus before, for any optimizer, against copies made by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import nn

import tracer
from tests.training import loss_of, mlp, recorded

Changes = dict[str, tuple[float, float]]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01),
    "adamw fused": lambda ps: torch.optim.AdamW(ps, lr=0.01, fused=True),
    "rprop": lambda ps: torch.optim.Rprop(ps),
}


def copies(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters as they are now."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changes(model: nn.Module, before: dict[str, torch.Tensor]) -> Changes:
    """The extremes of what has changed since."""
    differences = {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}
    return {name: (each.min().item(), each.max().item()) for name, each in differences.items()}


def columns(run: Path, step: int) -> dict[str, tuple[float | None, float | None]]:
    """The extremes of updates that a step's rows hold."""
    return {name: (row["update_min"], row["update_max"]) for (at, name), row in recorded(run).items() if at == step}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_change_is_after_minus_before(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Of every parameter, in every step that measures it; in the steps between it is null."""
    model = mlp().to(dtype)
    optimizer = OPTIMIZERS[name](model.parameters())
    expected = []
    with tracer.attach(model, tmp_path / "run", update=True, update_every=2):
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(3, 6).to(dtype)).float().square().sum().backward()
            before = copies(model)
            optimizer.step()
            expected.append(changes(model, before))
    assert any(low < high for low, high in expected[0].values())
    nothing = dict.fromkeys(expected[0], (None, None))
    assert [columns(tmp_path / "run", step) for step in range(5)] == [
        expected[step] if step % 2 == 0 else nothing for step in range(5)
    ]


def test_every_statistic_is_that_of_the_change(tmp_path: Path) -> None:
    """In float64, as of values and gradients."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stats = ("mean", "std", "norm", "absmax", "zeros", "nonfinite")
    with tracer.attach(model, tmp_path / "run", update=True, stats=stats):
        loss_of(model).backward()
        before = copies(model)
        optimizer.step()
    (row,) = tracer.scan(tmp_path / "run").filter(pl.col("param") == "0.weight").collect().iter_rows(named=True)
    change = (model.get_parameter("0.weight").detach() - before["0.weight"]).double()
    assert row["update_mean"] == pytest.approx(change.mean().item())
    assert row["update_std"] == pytest.approx(change.std(correction=0).item())
    assert row["update_norm"] == pytest.approx(change.norm().item())
    assert row["update_absmax"] == change.abs().max().item()
    assert row["update_zeros"] == (change == 0).double().mean().item()
    assert row["update_nonfinite"] == 0


class Gains(nn.Module):
    """Parameters that move by hand: each loses its gradient, which is what it is multiplied by."""

    def __init__(self, gains: dict[str, list[float]], values: dict[str, list[float]]) -> None:
        super().__init__()
        self.gains = {name: torch.tensor(each, dtype=torch.float64) for name, each in gains.items()}
        for name, each in values.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(each, dtype=torch.float64)))

    def forward(self) -> torch.Tensor:
        """The sum of all products."""
        products = [(self.get_parameter(name) * gains).sum() for name, gains in self.gains.items()]
        return torch.stack(products).sum()


def ratios(run: Path) -> dict[tuple[int, str], float | None]:
    """The column by step and parameter."""
    return {key: row["update_ratio"] for key, row in recorded(run).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_the_ratio_is_that_of_deviations_without_asking_for_any(dtype: torch.dtype, tmp_path: Path) -> None:
    """NumPy's, of change over value before, in float64; other columns are no more than before."""
    model = nn.ParameterDict({name: torch.randn(5, 400, dtype=dtype) for name in ("a", "b")})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    expected = {}
    with tracer.attach(model, tmp_path / "run", update=True, update_every=2):
        for step in range(4):
            optimizer.zero_grad()
            (model["a"] * torch.randn(5, 400, dtype=dtype)).abs().float().sum().backward()
            model["b"].abs().float().square().sum().backward()
            before = copies(model)
            optimizer.step()
            for name, parameter in model.items():
                numbers = [
                    each if each.is_floating_point() else torch.view_as_real(each)
                    for each in (before[name], parameter.detach() - before[name])
                ]
                value, change = (each.double().numpy().std() for each in numbers)
                expected[step, name] = change / value if step % 2 == 0 else None
    approximately = {key: ratio and pytest.approx(ratio, rel=1e-12) for key, ratio in expected.items()}
    assert ratios(tmp_path / "run") == approximately
    names = tracer.scan(tmp_path / "run").collect_schema()
    assert [name for name in names if name.startswith("value")] == ["value_min", "value_max"]
    assert [name for name in names if name.startswith("update")] == ["update_min", "update_max", "update_ratio"]


@pytest.mark.parametrize(
    ("values", "gradient", "ratio"),
    [
        ([3.0], [1.0], None),
        ([0.1] * 7, [1.0, 2.0] + [0.0] * 5, None),
        ([1.0, 2.0], [0.5, 0.5], None),
        ([1.0, 2.0], [0.0, 0.0], 0.0),
        ([1.0, 3.0], [1.0, -1.0], 0.5),
        ([1.0, 3.0], [math.nan, 1.0], math.nan),
        ([1.0, math.nan], [1.0, 0.0], math.nan),
        ([1.0, 3.0], [math.inf, 1.0], math.nan),
    ],
)  # fmt: skip
def test_a_ratio_that_says_nothing_is_null(
    values: list[float], gradient: list[float], ratio: float | None, tmp_path: Path
) -> None:
    """Of one element, of elements that are alike or move alike there is none; no change is 0; NaN is the news."""
    model = Gains({"p": gradient}, {"p": values})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with tracer.attach(model, tmp_path / "run", update=True):
        model().backward()
        optimizer.step()
    assert ratios(tmp_path / "run") == {(0, "p"): pytest.approx(ratio, nan_ok=True)}


def test_who_holds_a_frozen_parameter_changes_nothing_of_it(tmp_path: Path) -> None:
    """Its ratio is 0 where an optimizer holds it, and null where none does."""
    held, free = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3).requires_grad_(False)
    model = nn.Sequential(held, free, nn.Linear(3, 1))
    optimizer = torch.optim.Adam([*held.parameters(), *model[2].parameters()])
    with tracer.attach(model, tmp_path / "run", update=True):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    found = ratios(tmp_path / "run")
    assert (found[0, "0.weight"], found[0, "1.weight"]) == (0.0, None)


def test_a_device_without_float64_has_no_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extremes of the change are recorded there all the same."""
    monkeypatch.setattr("tracer.rows.WITHOUT_FLOAT64", {"cpu"})
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", update=True):
        loss_of(model).backward()
        before = copies(model)
        optimizer.step()
    assert columns(tmp_path / "run", 0) == changes(model, before)
    assert set(ratios(tmp_path / "run").values()) == {None}


def test_of_a_closure_the_whole_update_counts(tmp_path: Path) -> None:
    """LBFGS moves the weights for trials inside of it."""
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(torch.ones(3, 6)).square().sum()
        loss.backward()
        return loss

    expected = []
    with tracer.attach(model, tmp_path / "run", update=True, update_every=1):
        for _ in range(2):
            before = copies(model)
            optimizer.step(closure)
            expected.append(changes(model, before))
    assert [columns(tmp_path / "run", step) for step in range(2)] == expected


def test_two_optimizers_measure_what_each_holds(tmp_path: Path) -> None:
    """And what none holds has changed by nothing that is known."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in list(model)[:2]]
    with tracer.attach(model, tmp_path / "run", update=True):
        model(torch.ones(2, 3)).sum().backward()
        before = copies(model)
        for optimizer in optimizers:
            optimizer.step()
    expected: dict[str, Any] = changes(model, before) | {"2.weight": (None, None), "2.bias": (None, None)}
    assert columns(tmp_path / "run", 0) == expected


def test_an_optimizer_inside_the_backward_is_measured(tmp_path: Path) -> None:
    """Each parameter is updated as its gradient comes."""
    model = nn.Linear(3, 2)
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        parameter.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
    before = copies(model)
    with tracer.attach(model, tmp_path / "run", update=True):
        model(torch.ones(2, 3)).sum().backward()
    assert columns(tmp_path / "run", 0) == changes(model, before)


@pytest.mark.parametrize("options", [{"every": 3}, {"fold": 4}], ids=str)
def test_of_steps_that_are_left_out_or_folded_there_are_some(options: dict[str, Any], tmp_path: Path) -> None:
    """One in ten of the training's steps, as near as the measured ones allow."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", update=True, **options):
        for _ in range(40):
            loss_of(model).backward()
            optimizer.step()
            optimizer.zero_grad()
    rows = tracer.scan(tmp_path / "run").filter(pl.col("update_min").is_not_null() & (pl.col("param") == "0.bias"))
    assert rows.collect()["step"].to_list() == ([0, 12, 21, 30] if "every" in options else [3, 11, 23, 31])


def test_without_it_there_is_no_such_column(tmp_path: Path) -> None:
    """Nobody pays for what was not asked for."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run"):
        loss_of(model).backward()
    assert not [name for name in tracer.scan(tmp_path / "run").collect_schema() if name.startswith("update")]
