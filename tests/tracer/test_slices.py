"""``slices=``: the extremes of each slice of a stacked parameter, against numpy on copies made by hand."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

import tracer
from tests.training import Rows, events, metric, recorded
from tests.versions import needs_dtensor
from tracer.log.run import open_run
from tracer.log.store import at

Numbers = dict[tuple[int, str], tuple[float | None, ...]]
EXPERTS = 3
COLUMNS = ("value_min", "value_max", "grad_min", "grad_max")


class Experts(nn.Module):
    """Stacked experts, of which a step uses those that it is told; a gate that is not sliced."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(4, dtype=dtype))
        self.w = nn.Parameter(torch.randn(EXPERTS, 4, 5, dtype=dtype))
        self.b = nn.Parameter(torch.randn(EXPERTS, dtype=dtype))

    def forward(self, x: torch.Tensor, chosen: tuple[int, ...] = (0, 1)) -> torch.Tensor:
        """The sum over the chosen experts."""
        return sum((self.gate * x) @ self.w[expert] + self.b[expert] for expert in chosen)  # type: ignore[return-value]


def of_array(array: torch.Tensor | None) -> list[tuple[float | None, float | None]]:
    """The extremes of each slice, by numpy in float64."""
    if array is None:
        return [(None, None)] * EXPERTS
    slices = array.detach().to_dense().to(torch.float64).numpy()
    return [(float(np.min(each)), float(np.max(each))) for each in slices]


def by_hand(step: int, model: nn.Module, names: tuple[str, ...] = ("w", "b")) -> Numbers:
    """The rows of a step that all slices of these parameters should have, as they are now."""
    found: Numbers = {}
    for name in names:
        parameter = model.get_parameter(name)
        both = zip(of_array(parameter), of_array(parameter.grad), strict=True)
        found |= {(step, f"{name}[{index}]"): (*value, *grad) for index, (value, grad) in enumerate(both)}
    return found


def slices_of(run: Path, columns: tuple[str, ...] = COLUMNS) -> Numbers:
    """The rows of slices that a run has."""
    rows = recorded(run)
    return {key: tuple(row[name] for name in columns) for key, row in rows.items() if "[" in key[1]}


def wholes_of(run: Path) -> Rows:
    """All other rows, without their times."""
    return {key: {**row, "time": None} for key, row in recorded(run).items() if "[" not in key[1]}


def train(run: Path, steps: int = 3, dtype: torch.dtype = torch.float32, **options: Any) -> Numbers:
    """Train some steps, and return what a hand-run loop says of the slices of ``w`` and ``b``."""
    torch.manual_seed(0)
    model = Experts(dtype)
    expected: Numbers = {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, run, **options):
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.randn(2, 4, dtype=dtype)).square().sum().backward()
            expected |= by_hand(step, model)
            optimizer.step()
    return expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_each_slice_has_the_extremes_that_numpy_finds(dtype: torch.dtype, tmp_path: Path) -> None:
    """At every step, of value and gradient, exactly; one that was not used has a gradient of exactly 0, not null."""
    expected = train(tmp_path / "run", dtype=dtype, slices="^(w|b)$")
    assert slices_of(tmp_path / "run") == expected
    assert expected[1, "w[2]"][2:] == (0.0, 0.0)


def test_the_rows_of_whole_parameters_stay_as_they_are(tmp_path: Path) -> None:
    """With and without slices, with all other statistics."""
    stats = ("mean", "std", "norm", "absmax", "zeros", "nonfinite", "smallest")
    train(tmp_path / "without", stats=stats, applied=True, update=True, update_every=1)
    train(tmp_path / "with", stats=stats, applied=True, update=True, update_every=1, slices=lambda name: name != "gate")
    assert wholes_of(tmp_path / "with") == wholes_of(tmp_path / "without")


def test_of_further_statistics_slices_have_absmax(tmp_path: Path) -> None:
    """It is the larger magnitude of their extremes; the others are null."""
    train(tmp_path / "run", steps=1, stats=("mean", "norm", "absmax", "zeros"), slices="w")
    columns = ("value_absmax", "grad_absmax", "value_mean", "grad_norm", "value_zeros")
    rows, extremes = slices_of(tmp_path / "run", columns), slices_of(tmp_path / "run")
    for key, (low, high, grad_low, grad_high) in extremes.items():
        assert None not in (low, high, grad_low, grad_high)
        sizes = max(abs(low or 0), abs(high or 0)), max(abs(grad_low or 0), abs(grad_high or 0))
        assert rows[key] == (*sizes, None, None, None)


def test_the_applied_gradient_and_the_update_are_of_each_slice(tmp_path: Path) -> None:
    """After clipping, and after minus before."""
    model = Experts()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    expected: Numbers = {}
    with tracer.attach(model, tmp_path / "run", slices="w", applied=True, update=True, update_every=1):
        for step in range(2):
            optimizer.zero_grad()
            model(torch.randn(2, 4)).square().sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            applied, before = of_array(model.w.grad), model.w.detach().clone()
            optimizer.step()
            update = of_array(model.w.detach() - before)
            both = enumerate(zip(applied, update, strict=True))
            expected |= {(step, f"w[{index}]"): (*a, *u) for index, (a, u) in both}
    columns = ("applied_min", "applied_max", "update_min", "update_max")
    assert slices_of(tmp_path / "run", columns) == expected
    assert expected[1, "w[2]"] == (0.0, 0.0, 0.0, 0.0)


def test_every_leaves_out_the_steps_between(tmp_path: Path) -> None:
    """With ``every``; the others are as by hand."""
    expected = train(tmp_path / "run", steps=4, every=2, slices="w|b")
    assert slices_of(tmp_path / "run") == {key: row for key, row in expected.items() if key[0] % 2 == 0}


def test_a_budget_measures_slices_in_the_steps_that_it_measures(tmp_path: Path) -> None:
    """These and no others, with the numbers that they had."""
    expected = train(tmp_path / "run", steps=6, budget=0.5, slices="w|b")
    steps = {step for step, name in recorded(tmp_path / "run") if name == "w"}
    assert slices_of(tmp_path / "run") == {key: row for key, row in expected.items() if key[0] in steps}


def test_a_folded_row_has_the_outermost_extremes(tmp_path: Path) -> None:
    """Of all steps that it covers."""
    expected = train(tmp_path / "run", steps=4, fold=2, slices="w")
    numbers = np.array([[expected[step, f"w[{index}]"] for index in range(EXPERTS)] for step in range(4)], float)
    found = slices_of(tmp_path / "run")
    for row in (0, 1):
        both = numbers[2 * row : 2 * row + 2]
        for index in range(EXPERTS):
            low, high = both[:, index].min(axis=0), both[:, index].max(axis=0)
            assert found[2 * row + 1, f"w[{index}]"] == (low[0], high[1], low[2], high[3])


def test_a_nan_is_that_of_its_slice(tmp_path: Path) -> None:
    """Others are finite, and the parameter is not."""
    model = Experts()
    with torch.no_grad():
        model.w[1, 2, 3] = torch.nan
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with tracer.attach(model, tmp_path / "run", slices="w"):
        model(torch.ones(1, 4), chosen=(0,)).sum().backward()
        optimizer.step()
    rows = {name: row["value_min"] for (_, name), row in recorded(tmp_path / "run").items()}
    assert [name for name, number in rows.items() if np.isnan(number)] == ["w", "w[1]"]


@pytest.mark.parametrize("layout", ["transposed", "stacked last", "gaps", "channels_last"])
def test_any_layout_in_memory_gives_the_same(layout: str, tmp_path: Path) -> None:
    """Numbers may lie in any order."""
    model = Experts()
    tensor = {
        "transposed": torch.randn(EXPERTS, 5, 4).transpose(1, 2),
        "stacked last": torch.randn(4, 5, EXPERTS).permute(2, 0, 1),
        "gaps": torch.randn(EXPERTS, 4, 10)[..., ::2],
        "channels_last": torch.randn(EXPERTS, 4, 5, 1).to(memory_format=torch.channels_last)[..., 0],
    }[layout]
    model.w = nn.Parameter(tensor)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", slices="w"):
        model(torch.randn(2, 4)).square().sum().backward()
        expected = by_hand(0, model, ("w",))
        optimizer.step()
    assert slices_of(tmp_path / "run") == expected


def test_frozen_integers_and_complex_numbers_have_slices(tmp_path: Path) -> None:
    """Of what has no gradient, these columns are null; the parts of a complex number count as numbers of their own."""
    model = Experts()
    model.codes = nn.Parameter(torch.arange(-6, 6, dtype=torch.int8).reshape(EXPERTS, 4), requires_grad=False)
    model.wave = nn.Parameter(torch.randn(EXPERTS, dtype=torch.complex64))
    optimizer = torch.optim.SGD([model.w, model.wave], lr=0.1)
    with tracer.attach(model, tmp_path / "run", slices="codes|wave"):
        (model(torch.randn(2, 4)).sum() + model.wave.abs().sum()).backward()
        assert model.wave.grad is not None
        parts = torch.view_as_real(model.wave.detach()), torch.view_as_real(model.wave.grad)
        both = enumerate(zip(*map(of_array, parts), strict=True))
        expected: Numbers = {(0, f"wave[{index}]"): (*value, *grad) for index, (value, grad) in both}
        expected |= by_hand(0, model, ("codes",))
        optimizer.step()
    assert slices_of(tmp_path / "run") == expected
    assert expected[0, "codes[1]"] == (-2.0, 1.0, None, None)


def test_a_sparse_gradient_is_zero_where_it_has_no_row(tmp_path: Path) -> None:
    """An embedding's slices are its rows."""
    model = nn.Embedding(EXPERTS, 4, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", slices="weight"):
        model(torch.tensor([0, 2, 2])).square().sum().backward()
        expected = by_hand(0, model, ("weight",))
        optimizer.step()
    assert slices_of(tmp_path / "run") == expected
    assert expected[0, "weight[1]"][2:] == (0.0, 0.0)


def test_gradients_of_another_dtype_than_their_parameter(tmp_path: Path) -> None:
    """As a leaf may declare."""
    model = Experts(torch.bfloat16)
    if not hasattr(model.w, "grad_dtype"):
        pytest.skip("this torch has no grad_dtype")
    model.w.grad_dtype = torch.float32
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with tracer.attach(model, tmp_path / "run", slices="w"):
        model(torch.randn(2, 4, dtype=torch.bfloat16)).square().sum().backward()
        assert model.w.grad is not None
        assert model.w.grad.dtype is torch.float32
        expected = by_hand(0, model, ("w",))
        optimizer.step()
    assert slices_of(tmp_path / "run") == expected


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_gradients_are_those_without_the_scale(fused: bool, tmp_path: Path) -> None:
    """Of a GradScaler; of a step that it skips, nothing was applied."""
    model, scaler = Experts(), GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    expected: Numbers = {}
    with tracer.attach(model, tmp_path / "run", slices="w", applied=True):
        for step in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(2, 4)).square().sum()
            scaler.scale(loss * (torch.inf if step == 1 else 1.0)).backward()
            assert model.w.grad is not None
            plain = of_array(model.w.grad.double() / scaler.get_scale())
            applied = of_array(None) if step == 1 else plain
            both = enumerate(zip(plain, applied, strict=True))
            expected |= {(step, f"w[{index}]"): (*grad, *used) for index, (grad, used) in both}
            scaler.step(optimizer)
            scaler.update()
    assert metric(tmp_path / "run", "skipped") == [(0, 0.0), (1, 1.0), (2, 0.0)]
    found = slices_of(tmp_path / "run", ("grad_min", "grad_max", "applied_min", "applied_max"))
    np.testing.assert_equal(found, expected)


def test_frozen_and_unfrozen_parameters_are_followed(tmp_path: Path) -> None:
    """A frozen one has values, and null for gradients."""
    model = Experts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected: Numbers = {}
    with tracer.attach(model, tmp_path / "run", slices="w"):
        for step in range(3):
            model.w.requires_grad_(step != 1)
            optimizer.zero_grad()
            model(torch.randn(2, 4)).square().sum().backward()
            expected |= by_hand(step, model, ("w",))
            optimizer.step()
    assert slices_of(tmp_path / "run") == expected
    assert expected[1, "w[0]"][2:] == (None, None)


@pytest.mark.parametrize("how", ["replaced", "in place"])
def test_a_parameter_that_gets_another_number_of_slices(how: str, tmp_path: Path) -> None:
    """From then on it has so many rows; nothing is recorded that was not there."""
    model = nn.Module()
    model.w = nn.Parameter(torch.randn(2, 3))
    model.other = nn.Parameter(torch.randn(3))
    names: list[set[str]] = []
    with tracer.attach(model, tmp_path / "run", slices="w"):
        for count in (2, 4):
            if count == 4 and how == "replaced":
                model.w = nn.Parameter(torch.randn(count, 3))
            elif count == 4:
                model.w.grad, model.w.data = None, torch.randn(count, 3)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            (model.w.square().sum() + model.other.sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
            names.append({f"w[{index}]" for index in range(count)})
    rows = recorded(tmp_path / "run")
    for step in (0, 1):
        assert {name for at, name in rows if at == step} == {"w", "other"} | names[step]
        slices = [rows[step, name] for name in names[step]]
        for end, most in (("min", min), ("max", max)):
            for of in ("value", "grad"):
                assert most(row[f"{of}_{end}"] for row in slices) == rows[step, "w"][f"{of}_{end}"]
    assert events(tmp_path / "run", "failed") == []


def test_another_number_of_slices_within_a_step(tmp_path: Path) -> None:
    """The numbers that were there before are not shown as those of other slices."""
    model = nn.Module()
    model.w = nn.Parameter(torch.ones(2, 3))
    model.other = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([model.w, model.other], lr=0.1)
    with tracer.attach(model, tmp_path / "run", slices="w"):
        (model.w.sum() + model.other.sum()).backward()
        model.w.grad, model.w.data = None, torch.full((4, 3), 7.0)
        (model.w.sum() + model.other.sum()).backward()
        optimizer.step()
    rows = {name: row["value_max"] for (_, name), row in recorded(tmp_path / "run").items()}
    assert rows == {"w": 7.0, "other": 1.0, **{f"w[{index}]": 7.0 for index in range(4)}}


def test_a_lazy_parameter_has_slices_once_it_has_a_shape(tmp_path: Path) -> None:
    """With its first forward."""
    model = nn.LazyLinear(EXPERTS)
    with tracer.attach(model, tmp_path / "run", slices="weight"):
        loss = model(torch.randn(2, 4)).square().sum()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss.backward()
        expected = by_hand(0, model, ("weight",))
        optimizer.step()
    assert slices_of(tmp_path / "run") == expected


def test_a_backward_that_is_thrown_away_has_rows_of_slices(tmp_path: Path) -> None:
    """They say in which slice the NaN was."""
    model = Experts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", slices="w"):
        for step in range(3):
            optimizer.zero_grad()
            x = torch.randn(2, 4)
            loss = model(x, chosen=(0,)).sum() + model(x, chosen=(1,)).sum() * (torch.nan if step == 1 else 1.0)
            loss.backward()
            if step != 1:
                optimizer.step()
    rows = tracer.scan(tmp_path / "run", "discarded").filter(pl.col("grad_min").is_nan()).collect()
    assert set(rows["param"]) == {"gate", "b", "w", "w[1]"}


def test_run_json_says_how_many_slices_a_parameter_has(tmp_path: Path) -> None:
    """Only of those whose slices are recorded; slices are no parameters."""
    train(tmp_path / "run", steps=1, slices="w")
    params = json.loads((tmp_path / "run" / "run.json").read_text())["params"]
    assert {param["name"]: param.get("slices") for param in params} == {"gate": None, "w": EXPERTS, "b": None}
    assert open_run(at(str(tmp_path / "run"))).names == ["gate", "w", "w[0]", "w[1]", "w[2]", "b"]


def test_a_resumed_run_goes_on_with_or_without_slices(tmp_path: Path) -> None:
    """Its parameters are the same: nothing is said."""
    train(tmp_path / "run", steps=1, slices="w")
    train(tmp_path / "run", steps=1, resume=True)
    train(tmp_path / "run", steps=1, resume=True, slices="w|b")
    names = {step: {name for at, name in recorded(tmp_path / "run") if at == step and "[" in name} for step in range(3)}
    of_w, of_b = ({f"{name}[{index}]" for index in range(EXPERTS)} for name in "wb")
    assert names == {0: of_w, 1: set(), 2: of_w | of_b}


def test_what_has_no_slices_is_left_out_with_one_warning(tmp_path: Path) -> None:
    """More than 1,024, or none: of a number, or of nothing."""
    model = Experts()
    model.large = nn.Parameter(torch.zeros(1025, 1))
    model.scale, model.empty = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(3, 0))
    words = "the slices of large are not recorded (1,025 are more than 1,024), nor are those of 2 other parameters"
    with pytest.warns(UserWarning, match=re.escape(words)):
        trace = tracer.attach(model, tmp_path / "run", slices="w|large|scale|empty")
    with trace:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        (model(torch.randn(2, 4)).sum() * model.scale + model.large.sum()).backward()
        optimizer.step()
    assert {name for _, name in slices_of(tmp_path / "run")} == {"w[0]", "w[1]", "w[2]"}


@needs_dtensor
def test_a_parameter_of_which_ranks_hold_parts_is_left_out(tmp_path: Path) -> None:
    """Which of its slices a rank holds is not known here; its own rows are as ever."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        model = Experts()
        model.shard = nn.Parameter(DTensor.from_local(torch.ones(2, 3), init_device_mesh("cpu", (2,)), [Shard(0)]))
        words = "the slices of shard are not recorded (each rank holds a part of it)"
        with pytest.warns(UserWarning, match=re.escape(words)):
            trace = tracer.attach(model, tmp_path / "run", slices="shard|w")
        with trace:
            optimizer = torch.optim.SGD([model.w], lr=0.1)
            model(torch.randn(2, 4)).sum().backward()
            optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    rows = recorded(tmp_path / "run")
    assert {name for _, name in rows} == {"gate", "w", "b", "shard", "w[0]", "w[1]", "w[2]"}
    assert rows[0, "shard"]["value_max"] == 1.0


def test_a_parameter_called_as_a_slice_keeps_its_rows_apart(tmp_path: Path) -> None:
    """The slices of the other one are left out."""
    model = nn.ParameterDict({"w": torch.ones(2, 3), "w[0]": torch.zeros(2)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", slices=lambda name: True):
        (model["w"].sum() + model["w[0]"].sum()).backward()
        optimizer.step()
    assert {name for _, name in recorded(tmp_path / "run")} == {"w", "w[0]", "w[0][0]", "w[0][1]"}


def test_a_selection_of_nothing_is_refused(tmp_path: Path) -> None:
    """As a mistake in the pattern would be silent otherwise."""
    with pytest.raises(ValueError, match=r"slices='expert' selects none of the 3 traced parameters; their names begin"):
        tracer.attach(Experts(), tmp_path / "run", slices="expert")
    with pytest.raises(ValueError, match=r"slices='\(' is not a regular expression"):
        tracer.attach(Experts(), tmp_path / "run", slices="(")
    with pytest.raises(TypeError, match="slices=3 must be a regular expression, or a callable"):
        tracer.attach(Experts(), tmp_path / "run", slices=3)  # type: ignore[arg-type]
