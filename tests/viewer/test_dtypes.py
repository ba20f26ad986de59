"""Dynamic range: what dtypes hold, and what numbers of half precision need, against PyTorch and numpy."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from torch import nn

import tracer
from tests.figures import canvas, entries
from tests.viewer.rules.test_findings import made, only, row, said
from tracer.log.store import Local as Path
from viewer.draw.parameter import Parameter
from viewer.dtypes import RANGES
from viewer.options import View, ViewOptions
from viewer.read.changes import once
from viewer.read.monitor import FindingsMonitor
from viewer.read.runs import Runs
from viewer.rules.evidence import Evidence, Param
from viewer.snapshot import Snapshot

STEPS = 4


@pytest.mark.parametrize("name", RANGES)
def test_the_ends_are_those_of_torch(name: str) -> None:
    """The largest number, the smallest of full precision, and the smallest of all."""
    dtype, held = getattr(torch, name), RANGES[name]
    finfo = torch.finfo(dtype)
    assert (held.largest, held.normal) == (finfo.max, finfo.smallest_normal)
    # Its last bit alone.
    first = torch.zeros(dtype.itemsize, dtype=torch.uint8)
    first[0] = 1
    assert held.smallest == first.view(dtype).double().item()
    assert held.bits == pytest.approx(np.log2(held.largest) - np.log2(held.smallest))


def small(step: int) -> torch.Tensor:
    """Numbers of many sizes, more than half of them 0."""
    return torch.linspace(-1, 1, 33).pow(5 + 2 * step).relu() * 2.0 ** -(3 * step)


def bits_of(tensor: torch.Tensor) -> float:
    """The dynamic range by numpy, in float64."""
    magnitudes = np.abs(tensor.detach().double().numpy())
    return float(np.log2(magnitudes.max()) - np.log2(magnitudes[magnitudes > 0].min()))


def trained(path: Path, dtype: torch.dtype, **options: Any) -> tuple[list[float], list[float]]:
    """Train a parameter whose gradients are ``small``; the bits of values and of gradients at each step."""
    model = nn.ParameterDict({"w": torch.linspace(0.1, 3, 33).to(dtype)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    values, gradients = [], []
    with tracer.attach(model, path, **{"stats": "smallest", **options}):
        for step in range(STEPS):
            optimizer.zero_grad()
            (model["w"] * small(step).to(dtype)).sum().backward()
            values.append(bits_of(model["w"]))
            gradients.append(bits_of(model["w"].grad))
            optimizer.step()
    return values, gradients


def seen(path: Path, options: ViewOptions) -> Snapshot:
    """A run as a view shows it."""
    (snapshot,) = once(Runs([path], options))
    return snapshot


DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)


@DTYPES
def test_the_dynamic_range_is_that_of_numpy(dtype: torch.dtype, tmp_path: Path) -> None:
    """In the view of a parameter and in that of the layers, of values and of gradients."""
    values, gradients = trained(tmp_path / "run", dtype, slices="w")
    assert max(gradients) > min(gradients) > 1
    extremes = seen(tmp_path / "run", ViewOptions(view=View.PARAM, param="w")).extremes
    assert extremes is not None
    for of, expected in (("value", values), ("grad", gradients)):
        for end in ("low", "high"):
            assert extremes.statistics[f"{of}_bits_{end}"] == pytest.approx(expected, abs=1e-12)
        snapshot = seen(tmp_path / "run", ViewOptions(view=View.LAYERS, statistic=f"{of}_bits"))
        assert snapshot.layers is not None
        assert snapshot.layers.params == ["w"], "slices have none"
        assert snapshot.layers.magnitudes.tolist() == [pytest.approx(expected, abs=1e-12)]
        assert f"{of}_bits" in snapshot.statistics


def test_where_all_is_zero_there_is_no_range(tmp_path: Path) -> None:
    """It is null, and no alarm; where a number is not finite there is an alarm."""
    model = nn.ParameterDict({"w": torch.zeros(3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with tracer.attach(model, tmp_path / "run", stats="smallest"):
        for factor in (0.0, 1.0, torch.inf):
            optimizer.zero_grad()
            (model["w"] * torch.tensor([1.0, 4.0, 0.0]) * factor).sum().backward()
            model["w"].grad.nan_to_num_(0.0, torch.inf)
            optimizer.step()
    extremes = seen(tmp_path / "run", ViewOptions(view=View.PARAM, param="w")).extremes
    assert extremes is not None
    assert extremes.statistics["value_bits_high"] == [None, None, None]
    layers = seen(tmp_path / "run", ViewOptions(view=View.LAYERS, statistic="grad_bits")).layers
    assert layers is not None
    assert (layers.magnitudes[0, 1], layers.nonfinite.tolist()) == (2.0, [[False, False, True]])


def test_without_the_smallest_nothing_is_shown_of_it(tmp_path: Path) -> None:
    """There is no panel, and no such statistic of layers."""
    trained(tmp_path / "run", torch.float32, stats="extremes")
    options = ViewOptions(view=View.PARAM, param="w")
    assert "bits" not in panels(tmp_path / "run", options)
    assert not [name for name in seen(tmp_path / "run", options).statistics if name.endswith("_bits")]


def panels(path: Path, options: ViewOptions) -> dict[str, Axes]:
    """The panels of one parameter, by name."""
    shown = Parameter(canvas((12.0, 7.0)), options)
    shown.update([seen(path, options)], 0.0)
    shown.figure.canvas.draw()
    return {axes.get_ylabel(): axes for axes in shown.figure.axes}


@pytest.mark.parametrize(
    ("dtype", "bits", "smallest"),
    [
        (torch.float16, "float16  40", ["full precision  6.1e-05", "float16's least  5.96e-08"]),
        (torch.bfloat16, "bfloat16  261", ["full precision  1.18e-38", "bfloat16's least  9.18e-41"]),
    ],
    ids=str,
)
def test_the_lines_of_the_dtype_are_in_the_picture(
    dtype: torch.dtype, bits: str, smallest: list[str], tmp_path: Path
) -> None:
    """Where they are near; the legend names also those that are far away, of slices, too."""
    trained(tmp_path / "run", dtype, slices="w")
    for param in ("w", "w[32]"):
        found = panels(tmp_path / "run", ViewOptions(view=View.PARAM, param=param))
        if param == "w":
            assert entries(found["bits"])[-1] == bits
            assert entries(found["smallest"])[-2:] == smallest
            heights = [np.asarray(line.get_ydata())[0] for line in found["smallest"].lines[-2:]]
            near = [2.0**-14, 2.0**-24] if dtype is torch.float16 else [np.nan, np.nan]
            np.testing.assert_equal(heights, near)
        else:
            assert set(found) == {"value", "gradient"}


def tiny(dtype: str, smallest: float | None, size: float) -> Evidence:
    """A run whose gradients have elements up to a size and down to another."""
    evidence = made({"w": lambda step: row(step, grad=size), "v": row}, range(40))
    assert evidence.tables is not None
    tables = evidence.tables
    if smallest is not None:
        object.__setattr__(tables, "smallest_grads", {"w": smallest})
    return Evidence(tables=tables, described={"w": Param("w", (8, 8), dtype), "v": Param("v", (8, 8))})


def test_underflow_says_how_far_down_gradients_go() -> None:
    """In bits above the smallest number that the dtype holds."""
    found = only(tiny("float16", 2.0**-22, 2.0**-12), "underflow")
    words = "for 40 measured steps; those of w go down to 2.4e-07, 2 bits above the smallest number that it holds."
    assert found.sentence.endswith(words)
    assert found.numbers["smallest"] == 2.0**-22
    assert only(tiny("float16", None, 2.0**-12), "underflow").sentence.endswith("for 40 measured steps.")


@pytest.mark.parametrize("dtype", ["float16", "float8_e5m2"])
def test_where_all_elements_have_full_precision_nothing_underflows(dtype: str) -> None:
    """Though the largest ones are among the smallest numbers of full precision."""
    normal = RANGES[dtype].normal
    assert said(tiny(dtype, normal, 4 * normal), "underflow") == []
    assert len(said(tiny(dtype, normal / 2, 4 * normal), "underflow")) == 1


def test_a_real_training_in_half_precision_is_told_of_underflow(tmp_path: Path) -> None:
    """Without a scaler, its loss a mean over many."""
    model = nn.Linear(16, 4).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    smallest: list[float] = []
    with tracer.attach(model, tmp_path / "run", stats="smallest"):
        for _ in range(25):
            optimizer.zero_grad()
            (model(torch.randn(8, 16).half()).float().square().mean() / 4096).backward()
            gradient = model.weight.grad
            assert gradient is not None
            smallest.append(float(np.abs(gradient.double().numpy()[gradient.numpy() != 0]).min()))
            optimizer.step()
    monitor = FindingsMonitor(tmp_path / "run")
    monitor.refresh()
    (found,) = [finding for finding in monitor.findings if finding.kind == "underflow"]
    assert found.numbers["smallest"] == min(smallest)
