"""Statistics beyond the extremes, and histograms: against NumPy in float64, as plain functions and in logs."""

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.amp.grad_scaler import GradScaler

import tracer
from tests.training import loss_of, mlp, recorded, set_daemons
from tests.versions import needs_numpy_2
from tracer.log.parts import list_parts, merge
from tracer.log.store import Local as Path
from tracer.parameters import named_parameters
from tracer.rows import RowBuffer
from tracer.statistics import Measures

ALL = ("mean", "std", "norm", "absmax", "zeros", "nonfinite", "smallest")
# The last is measured by itself.
SUBSETS = [*(subset for size in range(len(ALL)) for subset in itertools.combinations(ALL[:-1], size)), ALL]
# Relative to the tensor's largest magnitude, or to the norm.
RTOL = {torch.float64: 1e-12, torch.complex128: 1e-12}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex128, torch.complex64]

Statistics = dict[str, float | None]
Floats = npt.NDArray[Any]


class Holder(nn.Module):
    """A module with one parameter."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.p = nn.Parameter(tensor, requires_grad=False)


def measured(tensor: torch.Tensor, stats: Sequence[str] = ALL) -> Statistics:
    """The statistics of a tensor, by the function for notebooks."""
    found = tracer.model_stats(Holder(tensor), stats)["p"]
    return {name: found[f"value_{name}"] for name in ("min", "max", *stats)}


def as_numpy(tensor: torch.Tensor) -> Floats:
    """A tensor's numbers in float64, real and imaginary parts apart."""
    tensor = tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()
    array: Floats = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double().numpy().ravel()
    return array


def by_numpy(tensor: torch.Tensor) -> Statistics:
    """The oracle: what NumPy makes of a tensor's numbers in float64; None for an empty tensor."""
    numbers = as_numpy(tensor)
    if not numbers.size:
        return dict.fromkeys(("min", "max", *ALL))
    with np.errstate(all="ignore"):
        return {
            "min": float(numbers.min()),
            "max": float(numbers.max()),
            "mean": float(numbers.mean()),
            "std": float(numbers.std()),
            "norm": float(np.linalg.norm(numbers)),
            "absmax": float(np.abs(numbers).max()),
            "zeros": float((numbers == 0).mean()),
            "nonfinite": float((~np.isfinite(numbers)).sum()),
            "smallest": min((abs(each) for each in numbers.tolist() if each and math.isfinite(each)), default=0.0),
        }


def assert_close(found: Statistics, expected: Statistics, dtype: torch.dtype) -> None:
    """Counts and extremes are exact; moments agree, relative to the largest magnitude, as far as the dtype allows."""
    rtol = RTOL.get(dtype, 1e-5)
    magnitude = expected["absmax"] or 0.0
    for name, number in found.items():
        wanted = expected[name]
        if number is None or wanted is None or not math.isfinite(wanted):
            assert number == wanted or (math.isnan(number or 0) and math.isnan(wanted or 0)), (name, number, wanted)
        elif name in ("mean", "std"):
            assert abs(number - wanted) <= rtol * magnitude, (name, number, wanted)
        elif name in ("norm", "zeros"):
            assert number == pytest.approx(wanted, rel=rtol, abs=0 if name == "norm" else 1e-15), name
        else:
            assert number == wanted, name


def assert_as_numpy(tensor: torch.Tensor, stats: Sequence[str] = ALL) -> None:
    """The statistics of a tensor are those that NumPy takes in float64."""
    assert_close(measured(tensor, stats), by_numpy(tensor), tensor.dtype)


def log_columns(path: Path, table: str = "extremes") -> list[str]:
    """The columns of a table of a run."""
    return tracer.scan(path, table).collect_schema().names()


def further_columns(path: Path) -> list[str]:
    """The columns of statistics in a run's extremes."""
    return log_columns(path)[6:]


# ---- one tensor ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 7, 1000, 70_001])
def test_statistics_equal_numpys_in_float64(dtype: torch.dtype, size: int) -> None:
    """Of every dtype that trains, all statistics are those that NumPy takes in float64; complex parts count apart."""
    tensor = (torch.randn(size, dtype=torch.complex128 if dtype.is_complex else torch.float64) * 3 + 0.5).to(dtype)
    tensor[:: max(1, size // 5)] = 0
    assert_as_numpy(tensor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_one_element_is_its_own_mean(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """A 0-dim or one-element tensor has its number as mean and norm, and no spread."""
    tensor = torch.full(shape, -2.5, dtype=dtype)
    assert_as_numpy(tensor)
    if not dtype.is_complex:
        assert measured(tensor) == {
            "min": -2.5, "max": -2.5, "mean": -2.5, "std": 0.0, "norm": 2.5, "absmax": 2.5, "zeros": 0.0,
            "nonfinite": 0, "smallest": 2.5
        }  # fmt: skip


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
@pytest.mark.parametrize("stats", [ALL, *((name,) for name in ALL)], ids=",".join)
def test_an_empty_tensor_has_no_statistics(stats: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Where there is no element every statistic is None, not 0 or NaN."""
    assert measured(torch.empty(shape), stats) == dict.fromkeys(("min", "max", *stats))


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4)])
def test_memory_order_changes_nothing(shape: tuple[int, ...]) -> None:
    """Transposed, strided and expanded tensors have the statistics of their elements."""
    tensor = torch.randn(shape)
    wide = torch.full((*shape, 2), 99.0)
    wide[..., 0] = tensor
    for view in (tensor.mT, wide[..., 0], tensor[:, :1].expand(shape)):
        assert_as_numpy(view)


def test_measuring_changes_no_tensor() -> None:
    """Nothing is divided or shifted in place: a parameter and its gradient are bit for bit what they were."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.complex64):
        holder = Holder(torch.randn(9, dtype=dtype)).requires_grad_()
        holder.p.grad = torch.randn(9, dtype=dtype)
        before = copy.deepcopy((holder.p.detach(), holder.p.grad))
        tracer.model_stats(holder, (*ALL, "histogram") if not dtype.is_complex else ALL)
        assert torch.equal(holder.p, before[0])
        assert torch.equal(holder.p.grad, before[1])


SPECIAL = {
    "nan": [1.0, math.nan, -2.0, 0.0],
    "inf": [1.0, math.inf, -2.0, 0.0],
    "-inf": [1.0, -math.inf, -2.0, 0.0],
    "both infinities": [math.inf, 1.0, -math.inf],
    "nan and inf": [math.inf, 1.0, math.nan],
    "nan and both": [math.inf, math.nan, -math.inf, 0.0],
    "only nan": [math.nan, math.nan],
    "only inf": [math.inf, math.inf],
    "zeros": [0.0, 0.0, -0.0],
    "one zero": [0.0],
}


@pytest.mark.parametrize("dtype", DTYPES[:4])
@pytest.mark.parametrize("stats", [ALL, *((name,) for name in ALL), ("mean", "norm")], ids=",".join)
@pytest.mark.parametrize("special", SPECIAL)
def test_what_is_not_finite_is_as_numpy_has_it(special: str, stats: tuple[str, ...], dtype: torch.dtype) -> None:
    """NaN, infinities and all zeros give NaN, inf and 0 exactly where NumPy does, whatever else is asked for."""
    assert_as_numpy(torch.tensor(SPECIAL[special], dtype=dtype), stats)


@pytest.mark.parametrize("place", [0, 17, 4095, 40_000])
def test_one_nan_is_counted_wherever_it_is(place: int) -> None:
    """A NaN in a vector's middle, a later thread's share or at the end is one that is not finite, and makes NaN."""
    tensor = torch.randn(40_001)
    tensor[place] = math.nan
    found = measured(tensor)
    assert found["nonfinite"] == 1
    assert all(math.isnan(found[name] or 0) for name in ("min", "max", "mean", "std", "norm", "absmax"))


@pytest.mark.parametrize("dtype", DTYPES[:4])
@pytest.mark.parametrize("constant", [1.0, -0.1, 1e-3, 300.0])
@pytest.mark.parametrize("size", [3, 1000, 70_001])
def test_a_constant_tensor_has_hardly_a_spread(constant: float, size: int, dtype: torch.dtype) -> None:
    """The spread of a constant is 0 but for rounding of the mean."""
    tensor = torch.full((size,), constant, dtype=dtype)
    std = measured(tensor, ("std",))["std"]
    assert std is not None
    assert 0 <= std <= abs(constant) * (1e-14 if dtype is torch.float64 else 2e-7)


@pytest.mark.parametrize("size", [64, 70_001])
def test_a_small_spread_about_one_is_right(size: int) -> None:
    """The weight of a LayerNorm, near 1, has its spread of 1e-4 to three digits, though squares would lose it."""
    tensor = 1 + 1e-4 * torch.randn(size)
    for stats in (("std",), ALL):
        assert measured(tensor, stats)["std"] == pytest.approx(as_numpy(tensor).std(), rel=1e-3)


@pytest.mark.parametrize("stats", [("norm",), ("mean", "norm"), ("std", "norm"), ALL], ids=",".join)
@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        *((torch.float32, factor) for factor in (2.0**-100, 1e-30, 1e-38, 1e30, 2.0**100)),
        *((torch.bfloat16, factor) for factor in (2.0**-100, 2.0**100)),
        *((torch.float16, factor) for factor in (2.0**-8, 2.0**13)),
        *((torch.float64, factor) for factor in (1e-140, 1e140)),
    ],
)
def test_squares_neither_vanish_nor_overflow(dtype: torch.dtype, factor: float, stats: tuple[str, ...]) -> None:
    """Tensors whose squares their dtype cannot hold have right norms and spreads."""
    unit = torch.randn(50, dtype=torch.float64)
    unit[0] = 4.0
    tensor = (unit * factor).to(dtype)
    assert_as_numpy(tensor, stats)


@pytest.mark.parametrize("number", [1e-40, 2e-45])
def test_subnormal_gradients_have_a_norm(number: float) -> None:
    """The norm of float32 numbers below the smallest normal one is not 0."""
    tensor = torch.full((4,), number)
    for stats in (("norm",), ("mean", "norm")):
        assert measured(tensor, stats)["norm"] == pytest.approx(2 * float(tensor[0]), rel=1e-6)
    assert_as_numpy(torch.tensor([number, -number, 0.0, 3 * number]))


@pytest.mark.parametrize("stats", [("norm",), ("mean", "norm"), ("std",), ALL], ids=",".join)
def test_millions_of_numbers_are_added_up_without_drift(stats: tuple[str, ...]) -> None:
    """The norm and spread of a large float32 tensor, in which single numbers are tiny beside the sum, are right."""
    tensor = torch.randn(3_000_000)
    expected = by_numpy(tensor)
    found = measured(tensor, stats)
    for name in {"norm", "std"} & set(stats):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)
    assert_close(found, expected, torch.float32)


@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, 1.0, -1.0]),
    )
)
@settings(deadline=None)
def test_any_float32_numbers(array: Floats) -> None:
    """Whatever finite float32 numbers a tensor holds, its statistics are NumPy's in float64."""
    assert_as_numpy(torch.from_numpy(array))


@given(
    hnp.arrays(
        np.float64, st.integers(1, 40), elements=st.floats(-1e140, 1e140).map(lambda x: x if abs(x) > 1e-140 else 0.0)
    )
)
@settings(deadline=None)
def test_any_float64_numbers(array: Floats) -> None:
    """Whatever float64 numbers a tensor holds, if only their squares are numbers too, its statistics are NumPy's."""
    assert_as_numpy(torch.from_numpy(array))


@given(hnp.arrays(np.float16, st.integers(1, 40), elements=st.floats(width=16)))
@settings(deadline=None)
def test_any_float16_numbers(array: Floats) -> None:
    """Whatever float16 numbers a tensor holds, NaN and infinities too, its statistics are NumPy's in float64."""
    assert_as_numpy(torch.from_numpy(array))


# ---- a model ----


class Mixed(nn.Module):
    """Parameters of many dtypes, each with a gradient, and one without."""

    def __init__(self) -> None:
        super().__init__()
        for name, dtype in (("a", torch.float32), ("b", torch.float64), ("c", torch.bfloat16), ("d", torch.complex64)):
            self.register_parameter(name, nn.Parameter(torch.randn(6, dtype=dtype)))
        self.e = nn.Parameter(torch.tensor(0.0))
        for parameter in self.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.g = nn.Parameter(torch.randn(2, 3))


@pytest.mark.parametrize("stats", SUBSETS, ids=",".join)
def test_every_subset_gives_the_same_numbers(stats: tuple[str, ...]) -> None:
    """Each statistic of each parameter is NumPy's, whatever others are asked for, and none is there unasked."""
    model = Mixed()
    found = tracer.model_stats(model, stats)
    for name, parameter in model.named_parameters():
        names = ("min", "max", *stats)
        assert set(found[name]) == {f"{of}_{statistic}" for of in ("value", "grad") for statistic in names}
        for of, tensor in (("value", parameter), ("grad", parameter.grad)):
            numbers = {statistic: found[name][f"{of}_{statistic}"] for statistic in names}
            if tensor is None:
                assert set(numbers.values()) == {None}
            else:
                assert_close(numbers, by_numpy(tensor), tensor.dtype)


@pytest.mark.parametrize("stats", ["norm", ("norm",), {"norm"}, iter(["norm", "norm"])])
def test_statistics_are_asked_for_by_name_or_names(stats: str | Iterable[str]) -> None:
    """One name, a tuple, a set and an iterator mean the same, and a name twice is a name."""
    model = nn.Linear(2, 1)
    assert tracer.model_stats(model, stats) == tracer.model_stats(model, ["norm"])


def test_model_stats_without_stats_is_model_extremes() -> None:
    """Without further statistics both functions give the same."""
    model = mlp()
    loss_of(model).backward()
    assert tracer.model_stats(model) == tracer.model_extremes(model)
    assert tracer.model_stats(model, "extremes") == tracer.model_extremes(model)


@pytest.mark.parametrize("stats", ["median", ("mean", "Norm"), "", ["histograms"]])
def test_an_unknown_statistic_is_refused(stats: str | Sequence[str], tmp_path: Path) -> None:
    """The error names the one that there is none of and all that there are, and no folder is made."""
    (unknown,) = [name for name in ([stats] if isinstance(stats, str) else stats) if name not in ALL]
    words = (
        rf"there is no statistic '{unknown}'.*extremes, mean, std, norm, absmax, zeros, nonfinite, smallest, histogram"
    )
    for refuse in (
        lambda: tracer.attach(mlp(), tmp_path / "run", stats=stats),
        lambda: tracer.model_stats(mlp(), stats),
    ):
        with pytest.raises(ValueError, match=words):
            refuse()
    assert not (tmp_path / "run").exists()


# ---- in a log ----


def train(
    model: nn.Module,
    steps: int = 3,
    backwards: int = 1,
    seen: Callable[[int], None] = lambda step: None,
    done: Callable[[int], None] = lambda step: None,
) -> None:
    """A plain loop; ``seen`` is called before each update, ``done`` after it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dtype = list(model.parameters())[-1].dtype
    for step in range(steps):
        optimizer.zero_grad()
        for _ in range(backwards):
            model(torch.randn(4, 6, dtype=dtype)).square().mean().backward()
        seen(step)
        optimizer.step()
        done(step)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backwards", [1, 3])
def test_rows_hold_the_statistics_of_each_step(dtype: torch.dtype, backwards: int, tmp_path: Path) -> None:
    """In a log each row has the statistics of the value before the update and of the accumulated gradient."""
    model = mlp().to(dtype)
    expected: dict[tuple[int, str], dict[str, Statistics]] = {}

    def note(step: int) -> None:
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            expected[step, name] = {"value": by_numpy(parameter), "grad": by_numpy(parameter.grad)}

    with tracer.attach(model, tmp_path / "run", stats=ALL):
        train(model, backwards=backwards, seen=note)
    rows = recorded(tmp_path / "run")
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        for of in ("value", "grad"):
            assert_close({name: row[f"{of}_{name}"] for name in ("min", "max", *ALL)}, expected[key][of], dtype)


def test_a_log_has_only_the_columns_that_were_asked_for(tmp_path: Path) -> None:
    """By default there are the four extremes, otherwise exactly those and what was asked for, in a fixed order."""
    four = ["value_min", "value_max", "grad_min", "grad_max"]
    for number, (stats, further) in enumerate(
        {
            "extremes": [],
            "norm": ["value_norm", "grad_norm"],
            ("nonfinite", "mean"): ["value_mean", "value_nonfinite", "grad_mean", "grad_nonfinite"],
            "histogram": [],
        }.items()
    ):
        model, path = mlp(), tmp_path / str(number)
        with tracer.attach(model, path, stats=stats):
            train(model, 1)
        assert further_columns(path) == [*four, *further]
        assert (path / "histograms").exists() == (stats == "histogram")
    with tracer.attach(mlp(), tmp_path / "default"):
        pass
    assert further_columns(tmp_path / "default") == four


def test_applied_has_the_statistics_too(tmp_path: Path) -> None:
    """With applied=True every statistic has an applied_ column: of the clipped gradient, as the optimizer uses it."""
    model = mlp().double()
    expected: dict[tuple[int, str], Statistics] = {}

    def clip(step: int) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            expected[step, name] = by_numpy(parameter.grad)

    with tracer.attach(model, tmp_path / "run", stats=ALL, applied=True):
        train(model, seen=clip)
    for key, row in recorded(tmp_path / "run").items():
        assert_close({name: row[f"applied_{name}"] for name in ("min", "max", *ALL)}, expected[key], torch.float64)
        assert row["grad_norm"] > 2 * row["applied_norm"]


def test_a_parameter_without_a_gradient_has_null_statistics(tmp_path: Path) -> None:
    """Frozen, or not used in this step: the value's statistics are there, and the gradient's are null, not 0."""
    model = mlp()
    model[0].requires_grad_(requires_grad=False)
    with tracer.attach(model, tmp_path / "run", stats=ALL, applied=True):
        train(model, 2)
    row = recorded(tmp_path / "run")[1, "0.weight"]
    assert_close({name: row[f"value_{name}"] for name in ALL}, by_numpy(model.get_parameter("0.weight")), torch.float32)
    assert {row[f"{of}_{name}"] for of in ("grad", "applied") for name in ALL} == {None}


def test_a_sparse_gradient_is_measured_as_a_dense_one(tmp_path: Path) -> None:
    """Of an embedding's sparse gradient, repeated entries are summed, and implicit zeros count."""
    sparse, dense = nn.Embedding(7, 3, sparse=True), nn.Embedding(7, 3)
    # Numbers with few digits, so that the two kinds of update round nothing.
    sparse.weight.data.mul_(8).round_().div_(8)
    dense.load_state_dict(sparse.state_dict())
    for name, model in (("sparse", sparse), ("dense", dense)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
        with tracer.attach(model, tmp_path / name, stats=(*ALL, "histogram"), applied=True):
            for _ in range(2):
                optimizer.zero_grad()
                model(torch.tensor([1, 4, 1])).square().sum().backward()
                optimizer.step()
    frames = [tracer.scan(tmp_path / name).drop("time").collect() for name in ("sparse", "dense")]
    assert frames[0].equals(frames[1])
    assert frames[0]["grad_zeros"].to_list() == [pytest.approx(5 / 7)] * 2
    counts = [tracer.scan(tmp_path / name, "histograms").drop("time").collect() for name in ("sparse", "dense")]
    assert counts[0].equals(counts[1])


def test_an_empty_parameter_is_null_beside_others(tmp_path: Path) -> None:
    """A parameter without an element has a row of nulls, and costs no other row."""
    model = mlp()
    model.register_parameter("nothing", nn.Parameter(torch.empty(0, 3)))
    with tracer.attach(model, tmp_path / "run", stats=(*ALL, "histogram"), applied=True):
        train(model, 1)
    rows = recorded(tmp_path / "run")
    assert len(rows) == 5
    names = [name for name in rows[0, "nothing"] if name.startswith(("value_", "grad_", "applied_"))]
    assert len(names) == 3 * 9
    assert {rows[0, "nothing"][name] for name in names} == {None}
    assert None not in {rows[0, "0.weight"][name] for name in names}


def test_a_frozen_float8_parameter_is_measured_through_float32(tmp_path: Path) -> None:
    """A dtype that torch cannot calculate with has statistics and a histogram all the same."""
    model = mlp()
    quantized = torch.tensor([1.5, -0.25, 3.0, 0.0]).to(torch.float8_e4m3fn)
    model.register_parameter("quantized", nn.Parameter(quantized, requires_grad=False))
    with tracer.attach(model, tmp_path / "run", stats=(*ALL, "histogram"), bins=4):
        train(model, 1)
    row = recorded(tmp_path / "run")[0, "quantized"]
    assert_close({name: row[f"value_{name}"] for name in ALL}, by_numpy(quantized.float()), torch.float32)
    assert histograms_of(tmp_path / "run")[0, "quantized", "value"] == (-0.25, 3.0, [2, 0, 1, 1])


def test_a_model_that_changes_its_dtype_is_measured_in_the_new_one(tmp_path: Path) -> None:
    """A model that is made float64 within a step keeps what was measured in it, and goes on in float64."""
    model = mlp()
    before, after = {}, {}
    with tracer.attach(model, tmp_path / "run", stats=ALL) as trace:
        loss_of(model).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            before[name] = by_numpy(parameter), by_numpy(parameter.grad)
        trace.step()
        model.double().zero_grad()
        model(torch.randn(4, 6, dtype=torch.float64)).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            after[name] = by_numpy(parameter), by_numpy(parameter.grad)
        trace.step()
    for (step, name), row in recorded(tmp_path / "run").items():
        expected, dtype = (before, torch.float32) if step == 0 else (after, torch.float64)
        for of, wanted in zip(("value", "grad"), expected[name], strict=True):
            assert_close({statistic: row[f"{of}_{statistic}"] for statistic in ALL}, wanted, dtype)


def test_what_was_measured_survives_a_parameter_that_joins(tmp_path: Path) -> None:
    """Where a parameter is replaced between a step's backwards, the others keep all that was measured of them."""
    model = nn.ModuleDict({"kept": nn.Linear(6, 3), "replaced": nn.Linear(3, 1)})
    optimizer = torch.optim.SGD(model["kept"].parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", stats=(*ALL, "histogram"), applied=True):
        model["kept"](torch.randn(4, 6)).square().sum().backward()
        expected = by_numpy(model.get_parameter("kept.weight"))
        model["replaced"] = nn.Linear(3, 1)
        model["replaced"](torch.randn(4, 3)).sum().backward()
        optimizer.step()
    row = recorded(tmp_path / "run")[0, "kept.weight"]
    assert_close({name: row[f"value_{name}"] for name in ("min", "max", *ALL)}, expected, torch.float32)
    assert {row[f"grad_{name}"] for name in ALL} == {row[f"applied_{name}"] for name in ALL} != {None}


def test_a_nan_gradient_is_in_the_log_as_it_is(tmp_path: Path) -> None:
    """Statistics of a gradient that is not finite are NaN and inf in the log, never null, and counted."""
    model = nn.Linear(2, 1, bias=False)
    with tracer.attach(model, tmp_path / "run", stats=ALL):
        model(torch.tensor([[math.inf, 0.0]])).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.0).step()
    row = recorded(tmp_path / "run")[0, "weight"]
    found = {name: row[f"grad_{name}"] for name in ("min", "max", *ALL)}
    assert_close(found, by_numpy(torch.tensor([math.inf, 0.0])), torch.float32)
    assert (found["norm"], found["mean"], found["nonfinite"], found["zeros"]) == (math.inf, math.inf, 1, 0.5)


def test_a_loss_scale_is_taken_from_all_but_counts(tmp_path: Path) -> None:
    """Under a GradScaler every statistic is that of the gradient without the scale, and counts are what they are."""
    model = nn.Linear(4, 1, bias=False)
    scaler = GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = [torch.tensor(numbers) for numbers in ([0.0, 0.0, 1.0, -3.0], [0.0, math.inf, 1.0, 0.0])]
    with tracer.attach(model, tmp_path / "run", scaler=scaler, stats=ALL, applied=True):
        for gradient in gradients:
            optimizer.zero_grad()
            scaler.scale(model(gradient).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    rows = recorded(tmp_path / "run")
    for step, gradient in enumerate(gradients):
        row = rows[step, "weight"]
        assert_close({name: row[f"grad_{name}"] for name in ("min", "max", *ALL)}, by_numpy(gradient), torch.float32)
    applied = {name: rows[0, "weight"][f"applied_{name}"] for name in ("min", "max", *ALL)}
    assert_close(applied, by_numpy(gradients[0]), torch.float32)
    assert {rows[1, "weight"][f"applied_{name}"] for name in ALL} == {None}


def test_every_measures_only_those_steps(tmp_path: Path) -> None:
    """With every=3 the statistics of steps 0, 3 and 6 are recorded, each of its own step."""
    model = mlp().double()
    norms: list[float | None] = []
    with tracer.attach(model, tmp_path / "run", every=3, stats="norm"):
        train(model, 8, seen=lambda step: norms.append(by_numpy(model.get_parameter("0.weight"))["norm"]))
    rows = recorded(tmp_path / "run")
    assert {step for step, _ in rows} == {0, 3, 6}
    for step in (0, 3, 6):
        assert rows[step, "0.weight"]["value_norm"] == pytest.approx(norms[step], rel=1e-12)


def test_a_run_may_go_on_with_other_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a run is resumed with other statistics, what was not measured is null: in its parts, and once merged."""
    # Without the time to merge.
    set_daemons(monkeypatch, last_tries_seconds=-1.0)
    model, path = mlp(), tmp_path / "run"
    for stats in ("norm", ("mean", "histogram"), "extremes"):
        with tracer.attach(model, path, stats=stats, applied=stats == "extremes", resume=True):
            train(model, 2)

    def check() -> None:
        rows = recorded(path)
        assert {step for step, _ in rows} == set(range(6))
        for (step, _), row in rows.items():
            there = {name for name, number in row.items() if number is not None and name.startswith(("value", "grad"))}
            extra = {0: {"value_norm", "grad_norm"}, 1: {"value_mean", "grad_mean"}, 2: set()}[step // 2]
            assert there == {"value_min", "value_max", "grad_min", "grad_max"} | extra
            assert (row["applied_min"] is None) == (step < 4)

    assert len(list_parts(path, "extremes")) == 3
    check()
    before = tracer.scan(path).collect()
    merge(path, "extremes", 0)
    assert len(list_parts(path, "extremes")) == 1
    check()
    assert tracer.scan(path).select(before.columns).collect().equals(before)
    assert {step for step, _, _ in histograms_of(path)} == {2}


# ---- histograms ----

Histogram = tuple[float, float, list[int] | None]


def histograms_of(path: Path) -> dict[tuple[int, str, str], Histogram]:
    """The histograms of a run by step, parameter and quantity; each must be there once."""
    frame = tracer.scan(path, "histograms").collect()
    found: dict[tuple[int, str, str], Histogram] = {}
    for row in frame.iter_rows(named=True):
        counts = row["counts"]
        found[row["step"], str(row["param"]), str(row["of"])] = row["low"], row["high"], counts
    assert len(found) == frame.height, "a histogram stands twice"
    return found


def counted(tensor: torch.Tensor, bins: int) -> Histogram:
    """A tensor's histogram by NumPy, in its own dtype; bfloat16, which NumPy lacks, as float32."""
    numbers = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy(force=True)
    try:
        counts, _ = np.histogram(numbers, bins)
    except ValueError as error:
        assume("Too many bins" not in str(error))
        raise
    return float(numbers.min()), float(numbers.max()), [int(count) for count in counts]


def histogrammed(tensor: torch.Tensor, bins: int) -> Histogram:
    """A tensor's histogram by the function for notebooks."""
    found = tracer.model_stats(Holder(tensor), "histogram", bins=bins)["p"]["value_histogram"]
    assert list(found) == ["low", "high", "counts"]
    return found["low"], found["high"], found["counts"]


def numbers_of(dtype: type[np.floating[Any]], limit: float, smallest: float) -> st.SearchStrategy[Floats]:
    """Arrays of numbers, of few different ones, evenly spaced ones that lie on edges, and constant ones."""
    width = np.dtype(dtype).itemsize * 8
    anything = st.floats(-limit, limit, width=width).map(lambda x: x if abs(x) >= smallest else 0.0)  # type: ignore[arg-type]
    few = st.lists(anything, min_size=1, max_size=4).flatmap(st.sampled_from)
    spaced = st.builds(lambda start, tick: start + tick, st.integers(-3, 3), st.integers(0, 50).map(lambda n: n / 10))
    whole = st.integers(-20, 20).map(float)
    sizes = st.integers(1, 60)
    return st.one_of(
        [hnp.arrays(dtype, sizes, elements=elements) for elements in (anything, whole)]
        + [st.lists(elements, min_size=1, max_size=60).map(lambda x: np.array(x, dtype)) for elements in (few, spaced)]
        + [st.builds(lambda n, x: np.full(n, x, dtype), sizes, anything)]
    )


class Foreign(torch.Tensor):
    """A tensor that is counted as those on a GPU are: the tracer does not know its class."""


def assert_counts(tensor: torch.Tensor, bins: int) -> None:
    """The counts are NumPy's, in the way of the host and in that of other devices."""
    expected = counted(tensor, bins)
    assert histogrammed(tensor, bins) == expected
    assert histogrammed(tensor.as_subclass(Foreign), bins) == expected


@needs_numpy_2
@pytest.mark.slow
@given(numbers_of(np.float32, 2.0**100, 2.0**-100), st.integers(1, 50))
@settings(deadline=None, max_examples=300)
def test_float32_counts_are_numpys(array: Floats, bins: int) -> None:
    """In float32 every count is that of numpy.histogram, on edges and of constants too."""
    assert_counts(torch.from_numpy(array), bins)


@needs_numpy_2
@pytest.mark.slow
@given(numbers_of(np.float64, 2.0**500, 2.0**-500), st.integers(1, 50))
@settings(deadline=None, max_examples=300)
def test_float64_counts_are_numpys(array: Floats, bins: int) -> None:
    """In float64 every count is that of numpy.histogram, on edges and of constants too."""
    assert_counts(torch.from_numpy(array), bins)


@needs_numpy_2
@given(numbers_of(np.float16, 2.0**14, 2.0**-6), st.integers(1, 50))
@settings(deadline=None, max_examples=300)
def test_float16_counts_are_numpys(array: Floats, bins: int) -> None:
    """In float16, where it has all its digits, every count is that of numpy.histogram."""
    assume(len(set(array.tolist())) == 1 or float(np.ptp(array)) / bins >= 2.0**-14)
    assert_counts(torch.from_numpy(array), bins)


@needs_numpy_2
@given(numbers_of(np.float32, 2.0**100, 2.0**-100), st.integers(1, 50))
@settings(deadline=None)
def test_bfloat16_counts_are_numpys_of_float32(array: Floats, bins: int) -> None:
    """Of bfloat16 every count is that of numpy.histogram of the same numbers in float32."""
    assert_counts(torch.from_numpy(array).bfloat16(), bins)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=needs_numpy_2)]
)
@pytest.mark.parametrize("bins", [1, 2, 10, 50])
def test_a_large_tensors_counts_are_numpys(dtype: torch.dtype, bins: int) -> None:
    """Of many numbers none is lost, and none is in a neighbour's bin."""
    tensor = torch.randn(100_003, dtype=torch.float64).to(dtype)
    assert sum(histogrammed(tensor, bins)[2] or ()) == 100_003
    assert_counts(tensor, bins)


def with_edges(array: Floats, bins: int, times: int = 1) -> torch.Tensor:
    """An array's numbers, and so often each edge of its histogram and the numbers next to it on both sides."""
    try:
        edges = np.histogram_bin_edges(array, bins)
    except ValueError:
        # NumPy has too little room for so many bins, or none at all.
        assume(False)
    beside = [np.nextafter(edges, to, dtype=edges.dtype) for to in (-np.inf, np.inf)]
    numbers = np.concatenate([array, *[edges, *beside] * times])
    return torch.from_numpy(numbers[(numbers >= array.min()) & (numbers <= array.max())])


@needs_numpy_2
@given(
    st.one_of(
        numbers_of(np.float64, 2.0**500, 2.0**-500),
        numbers_of(np.float32, 2.0**100, 2.0**-100),
        numbers_of(np.float16, 2.0**6, 2.0**-6),
    ),
    st.sampled_from([1, 2, 7, 10, 50, 64]),
)
@settings(deadline=None)
def test_numbers_beside_an_edge_are_in_numpys_bins(array: Floats, bins: int) -> None:
    """Each edge is in the bin above it, the number just below it in the bin below, in every dtype of NumPy."""
    # Where a bin is narrower, NumPy contradicts its own edges.
    assume(np.ptp(array) == 0 or np.ptp(array) / bins >= np.finfo(array.dtype).smallest_normal)
    assert_counts(with_edges(array, bins), bins)


@needs_numpy_2
@pytest.mark.parametrize("bins", [2, 10, 64])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_thousands_of_numbers_on_edges_are_in_numpys_bins(dtype: type[np.floating[Any]], bins: int) -> None:
    """A tensor that is nothing but edges and their neighbours, hundreds of each, has the counts of NumPy."""
    array = np.random.default_rng(0).normal(size=1_000).astype(dtype)
    assert_counts(with_edges(array, bins, times=30_000 // bins), bins)


@needs_numpy_2
@given(st.floats(-1000, 1000, width=32), st.lists(st.integers(0, 200), min_size=2, max_size=60), st.integers(1, 20))
@settings(deadline=None)
def test_a_range_of_few_numbers_has_numpys_counts(low: float, steps: list[int], bins: int) -> None:
    """Where float32 has only some numbers between minimum and maximum, each is in the bin in which NumPy has it."""
    bits = np.float32(abs(low)).view(np.int32) + np.array(steps, np.int32)
    assert_counts(torch.from_numpy(np.copysign(bits.view(np.float32), low)), bins)


@needs_numpy_2
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("bins", [3, 10, 64])
def test_a_range_near_the_end_of_its_dtype_has_numpys_counts(dtype: type[np.floating[Any]], bins: int) -> None:
    """Numbers up to half of the largest one that there is are counted as NumPy counts them."""
    array = np.random.default_rng(0).uniform(-0.499, 0.499, size=1_000) * float(np.finfo(dtype).max)
    assert_counts(with_edges(array.astype(dtype), bins), bins)


@given(
    st.sampled_from([np.float64, np.float32, np.float16]),
    st.lists(st.integers(-60, 60), min_size=1, max_size=60),
    st.integers(1, 1_000),
    st.integers(1, 64),
)
@settings(deadline=None)
def test_numbers_below_the_smallest_normal_one_are_counted(
    dtype: type[np.floating[Any]], whole: list[int], factor: int, bins: int
) -> None:
    """Of subnormal numbers each is between the edges of its bin; NumPy puts some of them beside its own edges."""
    array = (np.array(whole) * factor * float(np.finfo(dtype).smallest_subnormal)).astype(dtype)
    assume(array.min() < array.max())
    ticks, step = np.arange(1, bins, dtype=dtype), (array.max() - array.min()) / dtype(bins)
    edges = (ticks * step if step else ticks / dtype(bins) * (array.max() - array.min())) + array.min()
    counts = np.bincount(np.searchsorted(edges, array, side="right"), minlength=bins)
    for tensor in (torch.from_numpy(array), torch.from_numpy(array).as_subclass(Foreign)):
        assert histogrammed(tensor, bins) == (float(array.min()), float(array.max()), counts.tolist())


@pytest.mark.parametrize("bins", [255, 256, 1_000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_many_bins_have_the_same_counts_on_every_device(dtype: torch.dtype, bins: int) -> None:
    """The way of the host and that of other devices agree, with any release of NumPy."""
    tensor = torch.randn(5_000).to(dtype)
    assert histogrammed(tensor, bins) == histogrammed(tensor.as_subclass(Foreign), bins)


@pytest.mark.parametrize(
    "reorder",
    [
        lambda tensor: tensor.to(memory_format=torch.channels_last),
        lambda tensor: tensor.mT,
        lambda tensor: tensor[:, ::2],
        lambda tensor: tensor[:, :1].expand(tensor.shape),
        torch._neg_view,
    ],
    ids=["channels_last", "transposed", "gaps", "expanded", "negative view"],
)
def test_the_order_in_memory_changes_no_count(reorder: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """A tensor whose numbers lie in another order, with gaps, or several times in one place, is counted whole."""
    tensor = reorder(torch.randn(4, 6, 5, 3))
    assert_counts(tensor, 7)


@pytest.mark.parametrize("constant", [0.0, -3.0, 0.25])
def test_a_constants_bins_lie_about_it(constant: float) -> None:
    """All of a constant tensor is in the bin of low..high that numpy puts it in, and low equals high in the log."""
    found = histogrammed(torch.full((7,), constant), 4)
    assert found == (constant, constant, [0, 0, 7, 0])


def test_complex_histograms_count_both_parts() -> None:
    """Real and imaginary parts are counted as numbers of their own."""
    assert histogrammed(torch.tensor([1 + 5j, -7 + 2j]), 3) == (-7.0, 5.0, [1, 0, 3])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_counts(number: float) -> None:
    """With a NaN or an infinity there are no bins: counts are null, and the extremes say why."""
    low, high, counts = histogrammed(torch.tensor([1.0, number, 2.0]), 4)
    assert counts is None
    expected = by_numpy(torch.tensor([1.0, number, 2.0]))
    assert str((low, high)) == str((expected["min"], expected["max"]))


def test_numbers_with_gaps_between_them_have_a_histogram_without_a_word(tmp_path: Path) -> None:
    """A column of another tensor as a parameter: torch would warn that it is slow to sort."""
    model = nn.Module()
    model.column = nn.Parameter(torch.arange(12.0).view(6, 2)[:, 0])
    with tracer.attach(model, tmp_path / "run", stats="histogram", bins=10):
        model.column.sum().backward()
    rows = tracer.scan(tmp_path / "run", "histograms").filter(of="value").collect().to_dicts()
    assert [(row["low"], row["high"], row["counts"]) for row in rows] == [(0.0, 10.0, [1, 0, 1, 0, 1, 0, 1, 0, 1, 1])]


def test_an_empty_parameter_and_a_missing_gradient_have_no_histogram() -> None:
    """In a notebook they are None, beside the histograms that there are."""
    model = Mixed()
    model.f = nn.Parameter(torch.empty(0))
    model.f.grad = torch.empty(0)
    found = tracer.model_stats(model, "histogram", bins=3)
    assert found["f"]["value_histogram"] is None
    assert found["f"]["grad_histogram"] is None
    assert found["g"]["grad_histogram"] is None
    assert sum(found["g"]["value_histogram"]["counts"]) == 6
    assert sum(found["a"]["grad_histogram"]["counts"]) == 6


@pytest.mark.parametrize(
    ("dtype", "number"), [(torch.float64, 1e308), (torch.float32, 3e38), (torch.bfloat16, 3e38), (torch.float16, 4e4)]
)
def test_a_range_that_its_dtype_cannot_hold_has_no_counts(dtype: torch.dtype, number: float) -> None:
    """Where numpy finds no edges, since their distance overflows, counts are null beside the right extremes."""
    tensor = torch.tensor([-number, 0.0, number], dtype=dtype)
    assert histogrammed(tensor, 3) == (float(tensor[0]), float(tensor[2]), None)


@pytest.mark.parametrize("bins", [0, -1, 2.5, True])
def test_a_notebooks_histogram_needs_a_number_of_bins(bins: Any) -> None:
    """The error names the value, as attach does."""
    with pytest.raises(ValueError, match=rf"bins={bins} must be a whole number"):
        tracer.model_stats(mlp(), "histogram", bins=bins)


def test_a_scale_that_has_become_zero_costs_no_row(tmp_path: Path) -> None:
    """A diverged model whose GradScaler has halved its scale down to 0 keeps all its rows and histograms."""
    model = nn.Linear(2, 1)
    scaler = GradScaler("cpu", init_scale=2.0**-147)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    every: dict[str, Any] = {"stats": ("norm", "histogram"), "histogram_every": 1, "applied": True}
    with tracer.attach(model, tmp_path / "run", scaler=scaler, **every):
        for _ in range(6):
            optimizer.zero_grad()
            scaler.scale(model(torch.tensor([[math.nan, 1.0]])).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
    # The gradient of the bias is the scale itself: 0 / 0.
    assert scaler.get_scale() == 0.0
    assert {step for step, _ in recorded(tmp_path / "run")} == set(range(6))
    assert len(histograms_of(tmp_path / "run")) == 6 * 4


@pytest.mark.parametrize("backwards", [1, 3])
def test_a_logs_histograms_are_those_of_the_step(backwards: int, tmp_path: Path) -> None:
    """The value is counted before the update and the gradient as accumulated, beside the same extremes in extremes."""
    model, path = mlp(), tmp_path / "run"
    expected: dict[tuple[int, str, str], Histogram] = {}

    def note(step: int) -> None:
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            expected[step, name, "value"] = counted(parameter, 7)
            expected[step, name, "grad"] = counted(parameter.grad, 7)

    with tracer.attach(model, path, stats="histogram", histogram_every=1, bins=7):
        train(model, backwards=backwards, seen=note)
    found = histograms_of(path)
    assert found == expected
    for (step, name), row in recorded(path).items():
        assert found[step, name, "value"][:2] == (row["value_min"], row["value_max"])
        assert found[step, name, "grad"][:2] == (row["grad_min"], row["grad_max"])


def test_a_histogram_has_64_bins_unless_another_number_is_asked_for(tmp_path: Path) -> None:
    """Its counts are those of numpy.histogram, and so are the edges that NumPy makes of its low and high."""
    model = mlp()
    expected = {name: np.histogram(parameter.detach().numpy(), 64) for name, parameter in model.named_parameters()}
    with tracer.attach(model, tmp_path / "run", stats="histogram"):
        train(model, 1)
    of_function = tracer.model_stats(model, "histogram")
    for (_, name, of), (low, high, counts) in histograms_of(tmp_path / "run").items():
        if of == "value":
            assert np.array_equal(np.asarray(counts), expected[name][0])
            assert np.array_equal(np.histogram_bin_edges(np.array([low, high], np.float32), 64), expected[name][1])
        assert len(of_function[name][f"{of}_histogram"]["counts"]) == 64


def test_the_table_has_the_columns_of_the_format(tmp_path: Path) -> None:
    """The table histograms has the key of every table, and param, of, low, high and counts, at the step's time."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run", stats="histogram"):
        train(model, 1)
    assert log_columns(tmp_path / "run", "histograms") == [
        "step", "time", "rank", "attempt", "param", "of", "low", "high", "counts"
    ]  # fmt: skip
    times = [tracer.scan(tmp_path / "run", table).collect()["time"].unique() for table in ("histograms", "extremes")]
    assert times[0].equals(times[1])


@pytest.mark.parametrize(
    ("every", "histogram_every", "expected"),
    [(1, 100, [0]), (1, 4, [0, 4, 8]), (3, 5, [0, 6]), (3, 4, [0, 6, 9]), (3, 2, [0, 3, 6, 9]), (3, 3, [0, 3, 6, 9])],
)
def test_histograms_are_made_every_so_many_steps(
    every: int, histogram_every: int, expected: list[int], tmp_path: Path
) -> None:
    """First at step 0, then at the first measured step at or after each multiple of histogram_every."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run", every=every, stats="histogram", histogram_every=histogram_every):
        train(model, 10)
    found = histograms_of(tmp_path / "run")
    assert sorted({step for step, _, _ in found}) == expected
    assert len(found) == len(expected) * 4 * 2


def test_64_bins_every_hundred_steps_is_the_default(tmp_path: Path) -> None:
    """Without a choice there are 64 bins, made at steps 0 and 100."""
    model = nn.Linear(6, 1)
    with tracer.attach(model, tmp_path / "run", stats="histogram"):
        train(model, 102)
    found = histograms_of(tmp_path / "run")
    assert {step for step, _, _ in found} == {0, 100}
    assert {len(counts or ()) for _, _, counts in found.values()} == {64}


def test_a_gradient_that_is_not_finite_has_null_counts_in_the_log(tmp_path: Path) -> None:
    """The row is there, with the extremes as they are, and null counts; the value's counts are not touched."""
    model = nn.Linear(2, 1, bias=False)
    with tracer.attach(model, tmp_path / "run", stats="histogram", bins=2):
        model(torch.tensor([[math.inf, 0.0]])).sum().backward()
    found = histograms_of(tmp_path / "run")
    assert found[0, "weight", "grad"] == (0.0, math.inf, None)
    assert found[0, "weight", "value"][2] == [1, 1]


def test_frozen_and_unused_parameters_have_value_histograms(tmp_path: Path) -> None:
    """A parameter without a gradient in the step has a histogram of its value alone."""
    model = mlp()
    model[0].requires_grad_(requires_grad=False)
    with tracer.attach(model, tmp_path / "run", stats="histogram"):
        train(model, 1)
    found = histograms_of(tmp_path / "run")
    assert (0, "0.weight", "value") in found
    assert (0, "0.weight", "grad") not in found
    assert (0, "2.weight", "grad") in found


def test_params_selects_histograms_too(tmp_path: Path) -> None:
    """Histograms are made, and snapshots taken, of the selected parameters alone."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run", params="0", stats="histogram") as trace:
        train(model, 2)
        trace.snapshot()
    assert {name for _, name, _ in histograms_of(tmp_path / "run")} == {"0.weight", "0.bias"}


def test_a_snapshot_records_what_is_there_now(tmp_path: Path) -> None:
    """After an update a snapshot has the new values and the gradients that made them, under the step that ended."""
    model, path = mlp(), tmp_path / "run"
    with tracer.attach(model, path, stats="histogram", bins=5) as trace:
        train(model, 3)
        expected = {
            name: (counted(p, 5), counted(p.grad, 5)) for name, p in model.named_parameters() if p.grad is not None
        }
        trace.snapshot()
        train(model, 1)
    found = histograms_of(path)
    assert {step for step, _, _ in found} == {0, 2}
    assert len(expected) == 4
    assert {name: (found[2, name, "value"], found[2, name, "grad"]) for name in expected} == expected


def test_a_snapshot_without_gradients_has_none(tmp_path: Path) -> None:
    """After zero_grad there is no row of a gradient, and before the first backward neither."""
    model, path = mlp(), tmp_path / "run"
    with tracer.attach(model, path, stats="histogram", histogram_every=10) as trace:
        trace.snapshot()
    assert {of for _, _, of in histograms_of(path)} == {"value"}
    with tracer.attach(model, tmp_path / "second", stats="histogram") as trace:
        train(model, 2)
        model.zero_grad(set_to_none=True)
        trace.snapshot()
    assert {of for step, _, of in histograms_of(tmp_path / "second") if step == 1} == {"value"}


def test_snapshots_move_no_step(tmp_path: Path) -> None:
    """Snapshots between backwards and updates change neither the steps nor the rows of a training."""
    frames = []
    for name in ("plain", "snapshots"):
        torch.manual_seed(1)
        model = mlp()
        with tracer.attach(model, tmp_path / name, stats=("norm", "histogram"), histogram_every=2) as trace:

            def note(step: int, trace: tracer.Trace = trace, takes: bool = name == "snapshots") -> None:
                if takes:
                    trace.snapshot()

            train(model, seen=note, done=note)
        frames.append(tracer.scan(tmp_path / name).drop("time").collect())
    assert frames[0].equals(frames[1])
    steps = tracer.scan(tmp_path / "snapshots", "histograms").collect()["step"].value_counts(sort=False).sort("step")
    # Two snapshots in each of three steps, and what histogram_every asks for in steps 0 and 2.
    assert steps["count"].to_list() == [24, 16, 24]


def test_a_snapshot_needs_histograms(tmp_path: Path) -> None:
    """Without stats="histogram" snapshot() says what to ask attach for, open or closed."""
    with (
        tracer.attach(mlp(), tmp_path / "run", stats="norm") as trace,
        pytest.raises(ValueError, match=r'attach\(model, stats="histogram"\)'),
    ):
        trace.snapshot()
    with pytest.raises(ValueError, match="histogram"):
        trace.snapshot()


def test_a_snapshot_after_close_is_harmless(tmp_path: Path) -> None:
    """A closed trace takes no snapshot, and its log stays as it is."""
    with tracer.attach(mlp(), tmp_path / "run", stats="histogram") as trace:
        trace.snapshot()
    before = tracer.scan(tmp_path / "run", "histograms").collect()
    trace.snapshot()
    assert tracer.scan(tmp_path / "run", "histograms").collect().equals(before)


def test_training_is_bit_identical_with_all_statistics(tmp_path: Path) -> None:
    """All statistics, histograms and snapshots leave every bit of the trained model as it is without them."""
    trained = []
    for traced in (False, True):
        torch.manual_seed(3)
        model = mlp()
        if traced:
            every: dict[str, Any] = {"stats": (*ALL, "histogram"), "applied": True, "histogram_every": 1}
            with tracer.attach(model, tmp_path / "run", **every) as trace:
                train(model, done=lambda step: trace.snapshot())
        else:
            train(model)
        trained.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(trained[0], trained[1])


@pytest.mark.parametrize("asked", [{"stats": "mean"}, {"stats": "histogram"}, {"activations": True}], ids=str)
def test_a_device_without_float64_is_told_what_it_cannot_have(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is measured in float64 is refused at once there, in one sentence, and no run begins."""
    monkeypatch.setattr("tracer.trace.WITHOUT_FLOAT64", {"cpu"})
    with pytest.raises(ValueError, match="the model is on 'cpu', which has no float64: there only extremes and absmax"):
        tracer.attach(mlp(), tmp_path / "run", **asked)
    assert not (tmp_path / "run").exists()


def test_extremes_and_absmax_need_no_float64_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are recorded where there is none, and a step's numbers have the parameters' own dtype."""
    monkeypatch.setattr("tracer.trace.WITHOUT_FLOAT64", {"cpu"})
    model = mlp()
    with tracer.attach(model, tmp_path / "run", stats="absmax"):
        loss_of(model).backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert len(recorded(tmp_path / "run")) == len(list(model.parameters()))
    (groups,) = RowBuffer(named_parameters(model), Measures.of("absmax")).layout.groups
    assert [group.dtype for group in groups] == [torch.float32]
