"""Every kind of number that a parameter may hold, from the tensor to the log."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tests.training import assert_rows, by_hand, events, extremes_of, loss_of, mlp, recorded

Extremes = dict[str, float | None]


class Weight(nn.Module):
    """One parameter, which gets exactly the gradient that it is asked for."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values)

    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        if self.weight.is_complex():
            return (torch.view_as_real(self.weight) * torch.view_as_real(gradient)).sum()
        return (self.weight * gradient).sum()


def extremes(value: tuple[float, float], gradient: tuple[float, float]) -> Extremes:
    """A row."""
    return dict(zip(("value_min", "value_max", "grad_min", "grad_max"), value + gradient, strict=True))


def test_float64_is_recorded_to_the_last_bit(tmp_path: Path) -> None:
    """Numbers that no float32 holds, too large, too small or too fine, stand in the log as they were."""
    pairs = [(-1e-310, 1e300), (1.0, 1 + 2**-52), (-(2**53 + 2.0), 5e-324)]
    expected = []
    for number, (smallest, largest) in enumerate(pairs):
        model = Weight(torch.tensor([largest, smallest], dtype=torch.float64))
        gradient = torch.tensor([-smallest, -largest], dtype=torch.float64)
        with tracer.attach(model, tmp_path / str(number)):
            model(gradient).backward()
        expected.append(extremes((smallest, largest), (-largest, -smallest)))
    for number, wanted in enumerate(expected):
        assert_rows(tmp_path / str(number), [{"weight": wanted}])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_ends_of_a_dtype_are_recorded_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    """The largest finite number, the smallest subnormal one and the next after one come out as they went in."""
    info = torch.finfo(dtype)
    subnormal = info.smallest_normal * info.eps
    model = Weight(torch.tensor([info.max, -subnormal, 0.0], dtype=dtype))
    with tracer.attach(model, tmp_path / "run"):
        model(torch.tensor([1 + info.eps, -info.max, 1.0], dtype=dtype)).backward()
    assert_rows(tmp_path / "run", [{"weight": extremes((-subnormal, info.max), (-info.max, 1 + info.eps))}])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_training_in_another_precision_is_recorded_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    """A model that trains wholly in one dtype has the rows that float64 arithmetic takes from its tensors."""
    model = mlp().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 6, dtype=dtype)).square().mean().backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters_count_real_and_imaginary_parts_together(dtype: torch.dtype, tmp_path: Path) -> None:
    """The extremes are taken over both parts, of the parameter and of its gradient, at every step."""
    model = Weight(torch.tensor([1 + 5j, -7 + 2j], dtype=dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.tensor([3 - 4j, 1 + 6j], dtype=dtype)).backward()
            optimizer.step()
    # (1 + 5j) - (3 - 4j) / 2 = -0.5 + 7j and (-7 + 2j) - (1 + 6j) / 2 = -7.5 - 1j.
    gradient = (-4.0, 6.0)
    expected = [{"weight": extremes(value, gradient)} for value in ((-7.0, 5.0), (-7.5, 7.0))]
    assert_rows(tmp_path / "run", expected)


def test_complex128_is_recorded_to_the_last_bit(tmp_path: Path) -> None:
    """The parts of a complex128 are float64 numbers, and stay so."""
    model = Weight(torch.tensor([complex(1 + 2**-52, -1e300)], dtype=torch.complex128))
    with tracer.attach(model, tmp_path / "run"):
        model(torch.tensor([complex(1e-310, 1 - 2**-53)], dtype=torch.complex128)).backward()
    expected = extremes((-1e300, 1 + 2**-52), (1e-310, 1 - 2**-53))
    assert_rows(tmp_path / "run", [{"weight": expected}])


class Quantized(nn.Module):
    """Frozen codes and a scale that trains."""

    def __init__(self, codes: torch.Tensor) -> None:
        super().__init__()
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(torch.tensor([2.0]))

    def forward(self) -> torch.Tensor:
        return (self.codes.float() * self.scale).sum()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_frozen_codes_stand_beside_what_trains(dtype: torch.dtype, tmp_path: Path) -> None:
    """Weights that were quantized to eight bits have their exact values and null gradients, at every step."""
    model = Quantized(torch.tensor([3.0, -1.0, 7.0]).to(dtype))
    optimizer = torch.optim.SGD([model.scale], lr=0.125)
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(2):
            optimizer.zero_grad()
            model().backward()
            optimizer.step()
    codes: Extremes = {"value_min": -1.0, "value_max": 7.0, "grad_min": None, "grad_max": None}
    # The scale's gradient is the sum of the codes, 9, and 2 - 9 / 8 = 0.875.
    scales = [extremes((value, value), (9.0, 9.0)) for value in (2.0, 0.875)]
    assert_rows(tmp_path / "run", [{"codes": codes, "scale": scale} for scale in scales])


class Everything(nn.Module):
    """Parameters of three dtypes, one without an element and one without a dimension, all used."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0))
        self.half_ = nn.Parameter(torch.tensor([1.5, -2.0], dtype=torch.float16))
        self.temperature = nn.Parameter(torch.tensor(3.0))
        self.double_ = nn.Parameter(torch.tensor([1 + 2**-52, 9.0], dtype=torch.float64))

    def forward(self) -> torch.Tensor:
        return self.nothing.sum() + (self.half_.sum() + 4 * self.temperature + self.double_.sum())


def test_an_empty_and_a_0_dim_parameter_train_beside_others(tmp_path: Path) -> None:
    """Even with a gradient an empty parameter's row is null, and a 0-dim one's numbers are its own."""
    model = Everything()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(2):
            optimizer.zero_grad()
            model().backward()
            assert model.nothing.grad is not None
            optimizer.step()
    nothing: Extremes = dict.fromkeys(("value_min", "value_max", "grad_min", "grad_max"))
    ones = (1.0, 1.0)
    first = {
        "nothing": nothing,
        "half_": extremes((-2.0, 1.5), ones),
        "temperature": extremes((3.0, 3.0), (4.0, 4.0)),
        "double_": extremes((1 + 2**-52, 9.0), ones),
    }
    second = {
        "nothing": nothing,
        "half_": extremes((-2.5, 1.0), ones),
        "temperature": extremes((1.0, 1.0), (4.0, 4.0)),
        "double_": extremes((0.5 + 2**-52, 8.5), ones),
    }
    assert_rows(tmp_path / "run", [first, second])


def embedding(rows: int) -> nn.Embedding:
    """An embedding with sparse gradients, whose row n is n + 1."""
    values = torch.arange(1.0, rows + 1).unsqueeze(1).repeat(1, 2)
    return nn.Embedding(rows, 2, sparse=True, _weight=values)


@pytest.mark.parametrize("optimize", [torch.optim.SGD, torch.optim.SparseAdam])
def test_a_sparse_gradient_is_recorded_as_the_dense_one_it_stands_for(
    optimize: Callable[..., torch.optim.Optimizer], tmp_path: Path
) -> None:
    """Rows that a batch repeats count as their sum, and rows that no batch of the step hits as zero."""
    model = embedding(5)
    optimizer = optimize(model.parameters(), lr=0.5)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for sign in (1.0, -1.0):
            optimizer.zero_grad()
            # Two backwards, which torch accumulates without summing what stands at one place.
            (sign * model(torch.tensor([1, 3, 3]))).sum().backward()
            (sign * model(torch.tensor([3, 4]))).sum().backward()
            assert model.weight.grad is not None
            assert model.weight.grad.is_sparse
            value = (model.weight.min().item(), model.weight.max().item())
            expected.append(extremes(value, (0.0, 3.0) if sign > 0 else (-3.0, 0.0)))
            optimizer.step()
    assert_rows(tmp_path / "run", [{"weight": wanted} for wanted in expected])
    assert expected[0] != expected[1]
    assert expected[0]["value_max"] == 5.0


def test_a_sparse_gradient_that_hits_every_row_has_no_implicit_zero(tmp_path: Path) -> None:
    """Where each row of an embedding is used, zero is no extreme of its gradient."""
    model = embedding(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    with tracer.attach(model, tmp_path / "run"):
        for indices in ([0, 1, 2, 1], [2, 2, 0, 1]):
            optimizer.zero_grad()
            model(torch.tensor(indices)).sum().backward()
            optimizer.step()
    # The rows 1, 2, 3 become 0.75, 1.5, 2.75.
    expected = [extremes(value, (1.0, 2.0)) for value in ((1.0, 3.0), (0.75, 2.75))]
    assert_rows(tmp_path / "run", [{"weight": wanted} for wanted in expected])


def test_a_sparse_gradient_without_an_entry_is_zero_and_not_null(tmp_path: Path) -> None:
    """A batch of nothing but padding gives an embedding a gradient, and all of it is zero."""
    model = nn.Embedding(4, 2, padding_idx=0, sparse=True)
    with tracer.attach(model, tmp_path / "run"):
        model(torch.tensor([0, 0])).sum().backward()
    (row,) = recorded(tmp_path / "run").values()
    assert (row["grad_min"], row["grad_max"]) == (0.0, 0.0)


def test_a_nan_in_a_sparse_gradient_is_not_hidden_by_its_zeros(tmp_path: Path) -> None:
    """One NaN among the entries makes both extremes NaN, though most places hold a zero."""
    model = embedding(5)
    with tracer.attach(model, tmp_path / "run"):
        (model(torch.tensor([1, 3])) * torch.tensor([[1.0, math.nan], [1.0, 1.0]])).sum().backward()
    row = extremes_of(recorded(tmp_path / "run")[0, "weight"])
    assert (row["value_min"], row["value_max"]) == (1.0, 5.0)
    assert math.isnan(row["grad_min"] or 0)
    assert math.isnan(row["grad_max"] or 0)


def test_autocast_needs_nothing(tmp_path: Path) -> None:
    """Under autocast to bfloat16, parameters and their gradients are the float32 ones, recorded to the last bit."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                output = model(torch.randn(4, 6))
                assert output.dtype is torch.bfloat16
                loss = output.square().mean()
            loss.backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)
    assert events(tmp_path / "run", "failed") == []


def test_a_whole_loop_under_autocast_is_recorded_exactly(tmp_path: Path) -> None:
    """Backward and update inside the autocast block as well change nothing of what is recorded."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with tracer.attach(model, tmp_path / "run"), torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no Tensor.grad_dtype")
def test_a_gradient_that_is_finer_than_its_parameter_is_not_rounded(tmp_path: Path) -> None:
    """Where a bfloat16 weight has a float32 gradient, that is recorded to the last bit, and the weight as it is."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    model.weight.grad_dtype = torch.float32
    with tracer.attach(model, tmp_path / "run", stats="norm"):
        for scale in (1.0, 2**-12):
            (model.weight * scale).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.5).step()
        expected = model.weight.item()
    row = recorded(tmp_path / "run")[0, "weight"]
    assert (row["grad_max"], row["grad_norm"]) == (1 + 2**-12, 1 + 2**-12)
    assert row["value_max"] != expected


def test_a_gradient_that_is_yet_to_be_conjugated_is_recorded(tmp_path: Path) -> None:
    """Where a complex parameter is used conjugated, its gradient is a lazy view, and recorded like any other."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(4, dtype=torch.complex64))
    factor = torch.randn(4, dtype=torch.complex64)
    with tracer.attach(model, tmp_path / "run", stats="norm"):
        (model.weight.conj() * factor).real.sum().backward()
        gradient = model.weight.grad
        assert gradient is not None
        parts = torch.view_as_real(gradient.resolve_conj()).double()
    row = recorded(tmp_path / "run")[0, "weight"]
    assert (row["grad_min"], row["grad_max"]) == (parts.min().item(), parts.max().item())
    assert row["grad_norm"] == pytest.approx(parts.norm().item())


class Unstackable(torch.Tensor):
    """A tensor that does not go together with others, as quantized ones do not."""

    @classmethod
    def __torch_function__(  # type: ignore[no-untyped-def]
        cls, function, types, args=(), kwargs=None
    ) -> Any:
        if function is torch.stack:
            raise RuntimeError("not with others")
        return super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]


def test_a_tensor_subclass_costs_no_other_its_numbers(tmp_path: Path) -> None:
    """One parameter, and one output, of a subclass: histograms and activations of all are there, its own as well."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[1].weight = nn.Parameter(torch.randn(2, 4).as_subclass(Unstackable))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", stats="histogram", histogram_every=1, activations=True):
        for _ in range(2):
            model(torch.randn(5, 3)).sum().backward()
            optimizer.step()
    names = {f"{layer}.{kind}" for layer in "01" for kind in ("weight", "bias")}
    histograms = tracer.scan(tmp_path / "run", "histograms").collect()
    assert {(row["step"], row["param"], row["of"]) for row in histograms.to_dicts()} == {
        (step, name, of) for step in range(2) for name in names for of in ("value", "grad")
    }
    assert set(tracer.scan(tmp_path / "run", "activations").collect()["module"]) == {"", "0", "1"}
    assert set(tracer.model_stats(model, "histogram")) == names
