"""Slices of stacked parameters: the rules that name one, and all places that count parameters and not slices."""

from collections.abc import Callable
from functools import cache

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import tracer
from tests.commands import tracer_says, viewer_says
from tests.viewer.rules.test_findings import Row, made, only, row, said
from tracer.log.store import Local as Path
from viewer.draw.layers import grouped, row_of
from viewer.options import View, ViewOptions
from viewer.read.changes import once
from viewer.read.monitor import FindingsMonitor
from viewer.read.runs import Runs
from viewer.rules.findings import findings
from viewer.snapshot import Finding, Heatmap, Severity, Snapshot
from viewer.words import title

NAN = float("nan")


class Mixture(nn.Module):
    """A layer of stacked experts, of which a router chooses one for each example; it never chooses the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        with torch.no_grad():
            self.router.bias[3] = -1e4
        self.w1, self.w2 = nn.Parameter(torch.randn(4, 6, 8) / 2), nn.Parameter(torch.randn(4, 8, 1) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the chosen expert says, times its probability."""
        probability, chosen = self.router(x).softmax(dim=1).max(dim=1)
        hidden = torch.einsum("bi,eio->beo", x, self.w1).tanh()
        every = torch.einsum("beo,eoj->bej", hidden, self.w2)[:, :, 0]
        output: torch.Tensor = every.gather(1, chosen[:, None])[:, 0] * probability
        return output


@cache
def mixture(folder: Path, sliced: bool = True, spoilt: bool = False) -> Path:
    """A real training of it; ``spoilt`` gives the second expert a NaN at step 60."""
    torch.manual_seed(0)
    model, run = Mixture(), folder / f"{sliced}-{spoilt}"
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with tracer.attach(model, run, slices=r"^w\d$" if sliced else None) as trace:
        for step in range(120):
            x = torch.randn(64, 6)
            loss = (model(x) - x.sum(dim=1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if spoilt and step == 60:
                with torch.no_grad():
                    model.w1[1, 0, 0] = NAN
            optimizer.step()
            trace.log(loss=loss)
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this module are."""
    return Path(tmp_path_factory.mktemp("runs"))


def checked(run: Path) -> list[Finding]:
    """What is wrong with a run."""
    monitor = FindingsMonitor(run)
    monitor.refresh()
    return list(monitor.findings)


def zero_from(first: int) -> Callable[[int], Row]:
    """A row with a gradient until a step."""
    return lambda step: row(step, grad=0.0 if step >= first else 0.1)


def test_an_expert_that_is_never_chosen_is_named(folder: Path) -> None:
    """In a real training: by its slices, once, with what to do about routers; without slices, nothing is known."""
    found = [finding for finding in checked(mixture(folder)) if finding.kind == "dead"]
    assert [finding.params for finding in found] == [("w1[3]", "w2[3]")]
    assert found[0].sentence == (
        "Dead (2 slices, first w1[3]): the gradient has been exactly 0 for 120 measured steps, and still is: nothing "
        "is learnt there, while other slices of the same parameter learn."
    )
    assert "router never chooses" in found[0].advice
    assert found[0].severity is Severity.WARNING
    assert not [finding for finding in checked(mixture(folder, sliced=False)) if finding.kind == "dead"]


def test_slices_change_no_other_finding(folder: Path) -> None:
    """But for the one that they are for, a run has the findings that it has without slices."""
    with_slices = [each for each in checked(mixture(folder)) if each.kind != "dead"]
    assert with_slices == checked(mixture(folder, sliced=False))


def test_the_first_nan_names_its_slice(folder: Path) -> None:
    """And how many slices the parameter has; parameters are counted without slices."""
    (found,) = (each for each in checked(mixture(folder, spoilt=True)) if each.kind == "nonfinite")
    assert "; of its 4 slices, in w1[1]" in found.sentence
    assert found.params[:2] == ("w1", "w1[1]")
    assert found.numbers["parameters"] == 4


@pytest.mark.parametrize("whole", [100, 300])
def test_where_all_of_a_parameter_is_dead_its_slices_are_not_named(whole: int) -> None:
    """Neither if they are dead for longer; and if others learn, these are dead."""
    rows = {"w": zero_from(300 - whole), "w[0]": zero_from(0), "w[1]": zero_from(300 - whole), "v": row}
    found = only(made(rows, range(300)), "dead")
    assert found.params == ("w",)


def test_a_slice_is_dead_only_while_others_of_its_parameter_learn() -> None:
    """Here no expert learns for long, and then the other one for less than the threshold."""
    rows = {"w": zero_from(90), "w[0]": zero_from(0), "w[1]": zero_from(90), "v": row}
    assert said(made(rows, range(180)), "dead") == []


def test_values_of_a_slice_that_do_not_move_are_named() -> None:
    """Though there are gradients, while others of its parameter move."""
    still = lambda step: row(step, value=0.05)  # noqa: E731
    found = only(made({"w": row, "w[0]": still, "w[1]": row, "v": row}), "unchanged")
    assert (found.params, found.severity) == (("w[0]",), Severity.NOTE)
    assert found.sentence.startswith("Values do not move (w[0])")


def test_rules_that_do_not_ask_for_slices_see_none() -> None:
    """An expert that is chosen seldom has gradients that rise and spike, and nothing is wrong with it."""
    often, seldom = (
        lambda step, usual=usual: row(step, grad=0.5 if step % 50 == 49 else usual) for usual in (0.1, 1e-6)
    )
    assert findings(made({"w": often, "w[0]": seldom, "w[1]": row, "v": row})) == []


def test_a_name_in_brackets_without_its_parameter_is_a_parameter() -> None:
    """As a container may give it."""
    assert only(made({"w[0]": zero_from(0), "v": row}), "dead").params == ("w[0]",)


def test_batches_that_were_thrown_away_name_no_slices(tmp_path: Path) -> None:
    """What was bad in one was bad in its parameter."""
    model = nn.ParameterDict({"w": torch.ones(2, 3), "v": torch.ones(2)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", slices="w"):
        for step in range(4):
            optimizer.zero_grad()
            (model["w"].sum() * (NAN if step == 2 else 1.0) + model["v"].sum()).backward()
            if step != 2:
                optimizer.step()
    (found,) = (each for each in checked(tmp_path / "run") if each.kind == "discarded")
    assert found.params == ("w",)


def test_diff_takes_slices_for_their_parameter(folder: Path) -> None:
    """A run with slices and one without are alike, and parameters are counted without slices."""
    whole, sliced, spoilt = mixture(folder, sliced=False), mixture(folder), mixture(folder, spoilt=True)
    said = viewer_says(folder, "diff", sliced, whole)
    assert (said.returncode, "are alike: 4 parameters, 120 steps." in said.stdout) == (0, True), said.stdout
    said = viewer_says(folder, "diff", sliced, spoilt)
    assert said.returncode == 1
    assert "value_min of w1 is" in said.stdout
    assert "w1[" not in said.stdout
    assert "0 of 4 parameters stay alike" in said.stdout


def test_diff_names_a_slice_that_parts_before_its_parameter(tmp_path: Path) -> None:
    """Its extremes lie within those of its parameter."""
    for number in (0, 1):
        w = torch.tensor([[-9.0, 9.0], [1.0, 2.0]])
        w[1, 0] += number
        model = nn.ParameterDict({"w": w})
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tracer.attach(model, tmp_path / str(number), slices="w"):
            model["w"].sum().backward()
            optimizer.step()
    assert "value_min of w[1] is 1 in 0 and 2 in 1." in viewer_says(tmp_path, "diff", "0", "1").stdout


def test_info_and_titles_count_parameters(folder: Path) -> None:
    """Slices are none of them."""
    run = mixture(folder)
    assert '"params": 4' in tracer_says("info", run, "--json").stdout
    for pattern, words in (("w1", "1 of 4 parameters"), (r"w1\[2\]", "1 of 4 parameters"), ("w", "3 of 4 parameters")):
        options = ViewOptions(view=View.LAYERS, params=pattern)
        assert title([seen(run, options)], 0.0, options).endswith(words)


def seen(run: Path, options: ViewOptions) -> Snapshot:
    """A run as a view shows it."""
    (snapshot,) = once(Runs([run], options))
    return snapshot


def test_the_layers_show_slices_below_their_parameter(folder: Path) -> None:
    """In the order of their indices, and the view of one parameter shows one of them."""
    run = mixture(folder)
    layers = seen(run, ViewOptions(view=View.LAYERS)).layers
    of = [f"{name}[{index}]" for name in ("w1", "w2") for index in range(4)]
    assert layers is not None
    assert layers.params == ["w1", *of[:4], "w2", *of[4:], "router.weight", "router.bias"]
    extremes = seen(run, ViewOptions(view=View.PARAM, param="w1[2]")).extremes
    rows = tracer.scan(run).filter(pl.col("param") == "w1[2]").sort("step").collect()
    assert extremes is not None
    assert extremes.statistics["grad_max"] == rows["grad_max"].to_list()


def test_where_rows_are_too_many_slices_share_that_of_their_parameter() -> None:
    """Before modules are put together; and a finding's flag finds its row."""
    params = ["a.w", *(f"a.w[{index}]" for index in range(8)), "a.b"]
    layers = Heatmap(params, 0, 1, np.arange(10.0)[:, None], np.zeros((10, 1), np.bool_))
    rows, magnitudes, _ = grouped(layers, limit=5)
    assert (rows, magnitudes.ravel().tolist()) == ([["a.w"], ["a.b"]], [8.0, 9.0])
    assert row_of(rows, "a.w[3]") == 0
    assert row_of(grouped(layers)[0], "a.w[3]") == 4
