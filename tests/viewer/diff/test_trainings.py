"""``viewer diff`` of real trainings: what it says is what a look at every row finds."""

import json
import math
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import torch
from torch import nn

import tracer
from tests.training import mlp, recorded
from tests.viewing import view
from tracer.log.store import Local as Path
from viewer.diff.compare import difference, side


def train(
    path: Path,
    steps: int = 8,
    change: Callable[[int, torch.optim.Optimizer, torch.Tensor], None] = lambda *_: None,
    wrap: Callable[[nn.Module], Any] = lambda model: model,
    **options: Any,
) -> None:
    """A training that is the same each time, but for what ``change`` makes of a step's optimizer or input."""
    torch.manual_seed(0)
    model = mlp()
    traced = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(traced, path, **options) as trace:
        for step in range(steps):
            data = torch.randn(16, 6)
            change(step, optimizer, data)
            optimizer.zero_grad()
            loss = traced(data).square().mean()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)


def faster_at_5(step: int, optimizer: torch.optim.Optimizer, data: torch.Tensor) -> None:
    """Another learning rate from step 5 on."""
    if step == 5:
        optimizer.param_groups[0]["lr"] = 0.2


def spoiled_at_5(step: int, optimizer: torch.optim.Optimizer, data: torch.Tensor) -> None:
    """Another input at step 5."""
    if step == 5:
        data[3, 2] += 1.0


def test_the_same_training_twice_is_alike(tmp_path: Path) -> None:
    """With the same seed no number differs, and the exit code is 0."""
    for name in ("a", "b"):
        train(tmp_path / name)
    code, said, complained = view(tmp_path, "diff", "a", "b", "--rtol", "0")
    assert (code, complained) == (0, "")
    assert said == "a and b are alike: 4 parameters, 8 steps.\n"


def test_another_learning_rate_shows_in_the_next_steps_values(tmp_path: Path) -> None:
    """The values of a step are those before its update, so that one at step 5 is seen at step 6, and said so."""
    train(tmp_path / "a")
    train(tmp_path / "b", change=faster_at_5)
    code, said, complained = view(tmp_path, "diff", "a", "b")
    assert (code, complained) == (1, "")
    sentence, why, *_ = said.splitlines()
    first = expected(tmp_path)
    assert first[:2] == (6, "value")
    assert sentence.startswith(f"a and b are alike until step 5; at step 6 {first[3]} of {first[2]} is ")
    assert "the update of step 5" in why
    assert "loss is " in said.splitlines()[2]
    assert ", at step 6." in said.splitlines()[2]


def test_another_input_shows_in_the_same_steps_gradients(tmp_path: Path) -> None:
    """First of them in that of the last layer, where the backward begins."""
    train(tmp_path / "a")
    train(tmp_path / "b", change=spoiled_at_5)
    code, said, _ = view(tmp_path, "diff", "a", "b")
    sentence, why, *_ = said.splitlines()
    first = expected(tmp_path)
    assert (code, first[:2]) == (1, (5, "grad"))
    assert first[2].startswith("2.")
    assert sentence.startswith(f"a and b are alike until step 4; at step 5 {first[3]} of {first[2]} is ")
    assert "within the step" in why
    assert ", at step 5." in said.splitlines()[2]


def expected(folder: Path) -> tuple[int, str, str, str]:
    """The oracle: step, quantity, parameter and statistic of the first difference, found row by row."""
    rows = [recorded(folder / name) for name in ("a", "b")]
    detail = tracer.scan(folder / "a", "events").filter(pl.col("kind") == "order").collect()["detail"].item()
    order = json.loads(detail)
    for step in range(8):
        for quantity in ("value", "grad"):
            for param in order:
                for statistic in (f"{quantity}_min", f"{quantity}_max"):
                    one, other = (run[step, param][statistic] for run in rows)
                    if not math.isclose(one, other, rel_tol=1e-5):
                        return step, quantity, param, statistic
    raise AssertionError("they are alike")


@pytest.mark.parametrize(
    "wrap",
    [lambda model: torch.compile(model, backend="aot_eager"), nn.DataParallel],
    ids=["compiled", "data parallel"],
)
def test_a_wrapped_model_is_compared_with_the_plain_one(tmp_path: Path, wrap: Callable[[nn.Module], Any]) -> None:
    """Its parameters have the same names."""
    train(tmp_path / "a")
    train(tmp_path / "b", wrap=wrap)
    found = difference(side(tmp_path / "a"), side(tmp_path / "b"))
    assert (found.alike, found.params.names, found.params.steps) == (True, 4, 8)


def test_a_folded_run_is_compared_with_one_of_single_steps(tmp_path: Path) -> None:
    """The same training is alike whatever was folded, means and norms too; a difference is found within its row."""
    recorded_too = ("mean", "norm", "zeros")
    train(tmp_path / "a", stats=recorded_too)
    train(tmp_path / "b", stats=recorded_too, fold=4)
    train(tmp_path / "c", stats=recorded_too, fold=4, change=spoiled_at_5)
    a, b, c = (side(tmp_path / name) for name in "abc")
    assert (difference(a, b).alike, difference(b, a).params.steps) == (True, 2)
    assert {(each.step, each.span) for each in difference(a, c).params.partings} == {(7, 4)}
    said = view(tmp_path, "diff", "a", "c")[1]
    assert "a and c are alike until step 3; in the 4 steps up to 7 " in said
    assert "Each row covers several steps" in said
