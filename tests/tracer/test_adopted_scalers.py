"""A GradScaler that was not given to attach: where it drives an optimizer of the model, it is found."""

import gc
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

import tracer
from tests.tracer.test_amp import OPTIMIZERS, SCALE, numbers, scaler_of, train, wanted
from tests.training import by_hand, events, loss_of, metric, mlp, recorded, steps
from tracer.log.store import Local
from viewer.read.monitor import FindingsMonitor


@pytest.fixture(autouse=True, scope="module")
def _few_objects() -> Iterator[None]:
    """Of the objects of libraries and earlier tests, which are no scalers, none is looked at again and again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _no_scaler_of_another_test(_few_objects: None) -> None:
    """Scalers that nobody has any more are gone."""
    gc.collect()


class Further(GradScaler):
    """As PyTorch's own subclasses."""


class Furthest(Further):
    """A subclass of a subclass."""


@OPTIMIZERS
@pytest.mark.parametrize("bad", [None, 0, 2, 3])
@pytest.mark.parametrize("made", ["before attach", "before the first backward"])
def test_gradients_are_unscaled_from_the_first_step(fused: bool, bad: int | None, made: str, tmp_path: Path) -> None:
    """Rows, skipped steps and metrics are as with scaler=, also those of the first step, and if it is skipped."""
    given, found = mlp(), mlp()
    found.load_state_dict(given.state_dict())
    state = torch.random.get_rng_state()
    with tracer.attach(given, tmp_path / "given", scaler=(scaler := scaler_of())):
        expected = train(given, scaler, fused=fused, bad=bad)
    del scaler
    torch.random.set_rng_state(state)
    early = scaler_of() if made == "before attach" else None
    with tracer.attach(found, tmp_path / "found"):
        assert train(found, early or scaler_of(), fused=fused, bad=bad)[0].keys() == expected[0].keys()
    assert numbers(recorded(tmp_path / "found")) == numbers(wanted(expected))
    for name in ("amp_scale", "skipped"):
        assert metric(tmp_path / "found", name) == metric(tmp_path / "given", name)
    assert [step for step, skipped in metric(tmp_path / "found", "skipped") if skipped] == (
        [] if bad is None else [bad]
    )
    assert events(tmp_path / "found", "adopted") == [(0, None, "scaler")]
    assert events(tmp_path / "given", "adopted") == []


@OPTIMIZERS
@pytest.mark.parametrize("bad", [None, 0])
@pytest.mark.parametrize("kind", [GradScaler, Furthest])
@pytest.mark.parametrize("every", [1, 2])
def test_a_scaler_made_later_is_followed_from_its_first_step_on(
    every: int, kind: type[GradScaler], bad: int | None, fused: bool, tmp_path: Path
) -> None:
    """Steps before it have no scale, and steps from it on are without it, be the first of them skipped or not."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run", every=every):
        before = train(model, GradScaler("cpu", enabled=False), count=2)
        scaler = kind("cpu", init_scale=SCALE, growth_interval=2)
        after = train(model, scaler, fused=fused, bad=bad)
    expected = {key: row for key, row in wanted(before + after).items() if key[0] % every == 0}
    assert numbers(recorded(tmp_path / "run")) == numbers(expected)
    skips = metric(tmp_path / "run", "skipped")
    assert [step for step, skipped in skips if skipped] == ([] if bad is None else [2])
    assert [step for step, _ in skips] == [2, 3, 4, 5]
    assert metric(tmp_path / "run", "amp_scale")[0] == (2, SCALE)
    assert events(tmp_path / "run", "adopted") == [(2, None, "scaler")]


def test_a_scaler_that_cannot_be_found_is_known_by_its_update(tmp_path: Path) -> None:
    """Frozen objects are hidden from the tracer; from the first update that the scaler makes on, it is followed."""
    model, scaler = mlp(), scaler_of()
    gc.freeze()
    with tracer.attach(model, tmp_path / "run"):
        expected = train(model, scaler)
    assert numbers(recorded(tmp_path / "run")) == numbers(wanted(expected))


class Halves(nn.Module):
    """Two networks, trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 1)
        self.b = nn.Linear(2, 1)
        self.unused = nn.Linear(2, 1)


def part(module: nn.Module, factor: float = 1.0) -> torch.Tensor:
    """A loss of one of them."""
    result: torch.Tensor = module(torch.tensor([[1.0, -3.0]])).sum() * factor
    return result


@pytest.mark.parametrize("bad", [None, "a", "b"])
@pytest.mark.parametrize("first", ["a", "b"])
def test_each_parameter_is_without_the_scale_of_its_own_scaler(first: str, bad: str | None, tmp_path: Path) -> None:
    """Two scalers that drive two optimizers of one model in one step, of which either may skip its update."""
    model = Halves()
    parts: dict[str, Any] = {"a": model.a, "b": model.b}
    scalers = {"a": scaler_of(8.0), "b": scaler_of(32.0)}
    optimizers = {name: torch.optim.SGD(module.parameters(), lr=0.1) for name, module in parts.items()}
    names = sorted(parts, reverse=first == "b")
    with tracer.attach(model, tmp_path / "run"):
        for step in range(3):
            model.zero_grad()
            for name in names:
                factor = math.inf if (step, name) == (1, bad) else 1.0
                scalers[name].scale(part(parts[name], factor)).backward()
            for name in names:
                scalers[name].step(optimizers[name])
                scalers[name].update()
    rows = recorded(tmp_path / "run")
    assert steps(tmp_path / "run") == [0, 1, 2]
    for (step, param), row in rows.items():
        good = not (step == 1 and bad == param[0])
        if param.startswith("unused"):
            assert row["grad_max"] is None
        elif param.endswith("bias"):
            assert row["grad_max"] == (1.0 if good else math.inf)
        else:
            assert (row["grad_min"], row["grad_max"]) == ((-3.0, 1.0) if good else (-math.inf, math.inf))
    assert metric(tmp_path / "run", "skipped") == [(0, 0.0), (1, float(bad is not None)), (2, 0.0)]


def test_histograms_are_without_the_scale_of_their_own_scaler(tmp_path: Path) -> None:
    """As rows are."""
    model = Halves()
    modules, scalers = (model.a, model.b), (scaler_of(8.0), scaler_of(32.0))
    with tracer.attach(model, tmp_path / "run", stats="histogram", bins=4):
        optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in modules]
        for module, scaler in zip(modules, scalers, strict=True):
            scaler.scale(part(module)).backward()
        for optimizer, scaler in zip(optimizers, scalers, strict=True):
            scaler.step(optimizer)
            scaler.update()
        # As at the end of a function that trains.
        del optimizers, optimizer
    found = tracer.scan(tmp_path / "run", "histograms").collect().rows(named=True)
    low = {row["param"]: row["low"] for row in found if row["of"] == "grad"}
    assert low == {"a.weight": -3.0, "a.bias": 1.0, "b.weight": -3.0, "b.bias": 1.0}


@pytest.mark.parametrize("first", ["a", "b"])
def test_an_optimizer_that_no_scaler_drives_has_its_gradients_as_they_are(first: str, tmp_path: Path) -> None:
    """Beside one, of the same model and in the same step, that a scaler drives."""
    model, scaler = Halves(), scaler_of()
    parts: dict[str, Any] = {"a": model.a, "b": model.b}
    optimizers = {name: torch.optim.SGD(module.parameters(), lr=0.1) for name, module in parts.items()}
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            model.zero_grad()
            scaler.scale(part(model.a)).backward()
            part(model.b).backward()
            for name in sorted(parts, reverse=first == "b"):
                if name == "a":
                    scaler.step(optimizers[name])
                else:
                    optimizers[name].step()
            scaler.update()
    found = {row["grad_min"] for (_, param), row in recorded(tmp_path / "run").items() if param.endswith(".weight")}
    assert found == {-3.0, None}
    assert steps(tmp_path / "run") == [0, 1, 2]


def test_a_scaler_of_another_model_scales_nothing_here(tmp_path: Path) -> None:
    """Nothing is divided, no metric is written, and the step that no optimizer made is null where it cannot be told."""
    generator, critic, scaler = mlp(), mlp(), scaler_of()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (generator, critic)]
    expected = []
    with tracer.attach(critic, tmp_path / "run") as trace:
        for step in range(3):
            generator.zero_grad()
            scaler.scale(loss_of(generator) * (math.inf if step == 1 else 1.0)).backward()
            scaler.step(optimizers[0])
            scaler.update()
            critic.zero_grad()
            loss_of(critic).backward()
            expected.append(by_hand(critic))
            optimizers[1].step()
            trace.log(skipped=1.0)
    assert numbers(recorded(tmp_path / "run")) == numbers(wanted(expected))
    assert metric(tmp_path / "run", "amp_scale") == []
    evidence = FindingsMonitor(Local(tmp_path / "run")).refresh()
    assert evidence is not None
    assert evidence.own("skipped") is None


def test_phases_with_and_without_a_scaler_follow_each_other(tmp_path: Path) -> None:
    """Each step is divided by the scale that it had, and by none where there was none."""
    model = mlp()
    expected = []
    scalers = [scaler_of(), scaler_of(64.0)]
    with tracer.attach(model, tmp_path / "run"):
        for scaler in (scalers[0], GradScaler("cpu", enabled=False), scalers[1], scalers[0]):
            expected += train(model, scaler, count=2)
    assert numbers(recorded(tmp_path / "run")) == numbers(wanted(expected))
    assert [step for step, _ in metric(tmp_path / "run", "amp_scale")] == [0, 1, 4, 5, 6, 7]


@pytest.mark.parametrize("before", [0, 2])
def test_gradients_of_which_nobody_tells_whether_they_are_scaled_are_null(before: int, tmp_path: Path) -> None:
    """A training that ends before the first update tells nothing; later, its scaler is known."""
    model, scaler = mlp(), scaler_of(8.0)
    with tracer.attach(model, tmp_path / "run"):
        train(model, scaler, count=before)
        model.zero_grad()
        scaler.scale(loss_of(model)).backward()
        last = by_hand(model)
    row = recorded(tmp_path / "run")[before, "0.weight"]
    largest = last["0.weight"]["grad_max"]
    assert largest is not None
    assert row["grad_max"] == (None if before == 0 else largest / scaler.get_scale())
    assert row["value_max"] == last["0.weight"]["value_max"]


class Plain:
    """An optimizer that is none of torch's, as fastai's."""

    def __init__(self, model: nn.Module) -> None:
        self.param_groups = [{"params": list(model.parameters())}]

    def step(self) -> None:
        """Update."""
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=0.1)


def test_an_optimizer_that_is_none_of_torchs_is_driven_by_a_scaler_as_well(tmp_path: Path) -> None:
    """Its updates end steps with trace.step(), and the scaler is found by the first of them."""
    model, scaler = mlp(), scaler_of()
    optimizer: Any = Plain(model)
    expected = []
    with tracer.attach(model, tmp_path / "run") as trace:
        for _ in range(4):
            model.zero_grad()
            scaler.scale(loss_of(model)).backward()
            scale = scaler.get_scale()
            found = by_hand(model)
            scaled = {"grad_min", "grad_max"}
            expected.append(
                {name: {key: n / scale if key in scaled else n for key, n in of.items()} for name, of in found.items()}  # type: ignore[operator]
            )
            scaler.step(optimizer)
            scaler.update()
            trace.step()
    assert numbers(recorded(tmp_path / "run")) == numbers(wanted(expected))


def test_metrics_of_a_found_scaler_are_the_traces(tmp_path: Path) -> None:
    """The log says so, for the findings: a scaler that skips every step is told of."""
    model, scaler = mlp(), scaler_of()
    with tracer.attach(model, tmp_path / "run"):
        train(model, scaler)
    evidence = FindingsMonitor(Local(tmp_path / "run")).refresh()
    assert evidence is not None
    assert evidence.own_metrics == {"skipped", "amp_scale"}


def test_found_scalers_are_let_go(tmp_path: Path) -> None:
    """A trace keeps no scaler that its training has let go of."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            train(model, scaler_of(), count=1)
        gc.collect()
        assert [each for each in gc.get_objects() if issubclass(type(each), GradScaler)] == []
