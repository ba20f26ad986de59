"""Zeros, saturation and dead units of modules' outputs: against oracles in float64, in every dtype and layout."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import tracer

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
Bools = npt.NDArray[np.bool_]
Shares = tuple[float, float | None, float | None]


class Plays(nn.Module):
    """Modules that are called with what a test wants, and a parameter to be traced."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.traced = nn.Parameter(torch.zeros(()))

    def forward(self, *inputs: torch.Tensor) -> None:
        """Call each part with an input of its own."""
        for part, given in zip(self.parts, inputs, strict=False):
            part(given)


def recorded(path: Path) -> dict[tuple[int, str, bool], Shares]:
    """Zeros, saturated and dead by step, module and mode."""
    frame = tracer.scan(path, "activations").collect()
    return {
        (row["step"], str(row["module"]), row["training"]): (row["zeros"], row["saturated"], row["dead"])
        for row in frame.iter_rows(named=True)
    }


def played(path: Path, module: nn.Module, *inputs: torch.Tensor) -> Shares:
    """What is recorded of a module that is called with each of these in one step."""
    model = Plays(module)
    with tracer.attach(model, path, activations=True):
        for each in inputs:
            model(each)
        model.traced.backward()
    return recorded(path)[0, "parts.0", True]


def as_numpy(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
    """A tensor's numbers in float64."""
    array: npt.NDArray[np.float64] = tensor.detach().double().numpy()
    return array


def held(bound: float, dtype: torch.dtype) -> float:
    """A bound as a dtype holds it."""
    return float(as_numpy(torch.tensor(bound, dtype=dtype)))


def close_to(low: float, high: float) -> Callable[[nn.Module, torch.Tensor], Bools]:
    """The oracle of a function that never reaches its bounds: outputs that are beyond these."""
    return lambda module, given: (as_numpy(module(given)) <= low) | (as_numpy(module(given)) >= high)


def beyond(low: float, high: float) -> Callable[[nn.Module, torch.Tensor], Bools]:
    """The oracle of a function that clips: inputs at its ends or beyond; it has no lower end at minus infinity."""

    def at_an_end(module: nn.Module, given: torch.Tensor) -> Bools:
        inputs = as_numpy(given)
        at_high = inputs >= held(high, given.dtype)
        return at_high if low == -math.inf else at_high | (inputs <= held(low, given.dtype))

    return at_an_end


BOUNDED: list[tuple[nn.Module, Callable[[nn.Module, torch.Tensor], Bools]]] = [
    (nn.Sigmoid(), close_to(1 / 64, 63 / 64)),
    (nn.Tanh(), close_to(-31 / 32, 31 / 32)),
    (nn.Softsign(), close_to(-31 / 32, 31 / 32)),
    (nn.Hardsigmoid(), beyond(-3, 3)),
    (nn.Hardtanh(), beyond(-1, 1)),
    (nn.Hardtanh(-0.1, 0.3), beyond(-0.1, 0.3)),
    (nn.Hardtanh(0, 20), beyond(-math.inf, 20)),
    (nn.ReLU6(), beyond(-math.inf, 6)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("module", "oracle"), BOUNDED, ids=[str(module) for module, _ in BOUNDED])
def test_the_saturated_share_is_that_of_an_oracle(
    module: nn.Module, oracle: Callable[[nn.Module, torch.Tensor], Bools], dtype: torch.dtype, tmp_path: Path
) -> None:
    """Within 1/64 of the range for a function that never reaches its bounds, at them for one that does; two calls."""
    ends = torch.tensor([[-3.0, 3.0, 0.3, -0.1], [math.inf, -math.inf, 6.0, 0.0], [31.0, -31.0, 30.9, 40.0]])
    calls = [(torch.randn(500, 4) * 4).to(dtype), ends.to(dtype)]
    found = played(tmp_path / "run", module, *calls)
    held_by = np.concatenate([oracle(module, given).ravel() for given in calls])
    zeros = np.concatenate([as_numpy(module(given)).ravel() == 0 for given in calls])
    assert 0 < held_by.sum() < held_by.size
    assert found[:2] == (zeros.sum() / zeros.size, held_by.sum() / held_by.size)


def test_nan_is_neither_zero_nor_saturated_and_its_unit_is_alive(tmp_path: Path) -> None:
    """Shares count a NaN among all numbers, and as none of what they look for."""
    outputs = torch.tensor([[math.nan, 0.0, 2.0], [0.0, 0.0, math.nan]])
    assert played(tmp_path / "run", nn.Hardtanh(), outputs) == (3 / 6, 1 / 6, 1 / 3)


@pytest.mark.parametrize("module", [nn.ReLU(), nn.GELU(), nn.Identity(), nn.Softmax(1), nn.ELU()], ids=str)
def test_what_has_no_two_bounds_is_not_saturated(module: nn.Module, tmp_path: Path) -> None:
    """Its share is null, and never 0."""
    assert played(tmp_path / "run", module, torch.randn(4, 3))[1] is None


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(8, 5), (8, 5, 7), (8, 5, 3, 4), (2, 5, 3, 4, 2)], ids=len)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_zeros_and_dead_channels_are_those_of_an_oracle(
    layout: str, shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    """Of batch × channels × …, a channel without a number that is not 0 is dead, however numbers lie in memory."""
    output = torch.randn(shape, dtype=torch.complex128 if dtype.is_complex else torch.float64).to(dtype)
    if layout == "transposed":
        output = output.transpose(0, -1).contiguous().transpose(0, -1)
    output[output.real < 0] = 0
    output[:, 1], output[:, 3] = 0, 0
    output[0, 3] = 2.0**-24
    found = played(tmp_path / "run", nn.Identity(), output)
    parts = as_numpy(torch.view_as_real(output)) if dtype.is_complex else as_numpy(output)
    dead = (np.moveaxis(parts, 1, 0).reshape(5, -1) == 0).all(axis=1)
    assert dead.tolist() == [False, True, False, False, False]
    assert found == ((parts == 0).sum() / parts.size, None, 1 / 5)


def test_more_zeros_than_float32_counts_are_counted(tmp_path: Path) -> None:
    """A unit of more than 2^24 numbers has them counted one by one."""
    output = torch.ones((1 << 24) + 3, 1, dtype=torch.bfloat16)
    output[7] = 0
    assert played(tmp_path / "run", nn.Identity(), output)[0] == 1 / len(output)


class Tokens(nn.Module):
    """Batch × tokens × features through a layer and a ReLU that is part of neither."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Whatever the layers make of it, without negative numbers."""
        outputs = self.layers(inputs)
        found: torch.Tensor = (outputs[0] if isinstance(outputs, tuple) else outputs).relu()
        return found


LAID_OUT: list[tuple[list[nn.Module], tuple[int, ...], int]] = [
    ([nn.Linear(4, 6), nn.ReLU()], (3, 5, 4), 2),
    ([nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU()], (3, 5, 2, 4), 3),
    ([nn.GRU(4, 6, batch_first=True)], (3, 5, 4), 2),
    ([nn.Conv1d(4, 6, 1), nn.ReLU()], (3, 4, 5), 1),
    ([nn.Linear(5, 5), nn.Conv1d(4, 6, 1), nn.BatchNorm1d(6), nn.ReLU()], (3, 4, 5), 1),
    ([nn.Conv2d(4, 6, 1), nn.ReLU(), nn.MaxPool2d(2)], (3, 4, 6, 4), 1),
    ([nn.Conv1d(4, 6, 1), nn.Linear(5, 5), nn.ReLU()], (3, 4, 5), 2),
]


@pytest.mark.parametrize(("layers", "shape", "unit"), LAID_OUT, ids=[str(case[0][:-1]) for case in LAID_OUT])
def test_the_layers_say_which_dimension_holds_units(
    layers: list[nn.Module], shape: tuple[int, ...], unit: int, tmp_path: Path
) -> None:
    """The last one behind layers of features, the second one behind those of channels; in what holds them, too."""
    model = Tokens(*layers)
    last_layer = [layer for layer in layers if list(layer.parameters())][-1]
    with torch.no_grad():
        # Its first four units are always negative, whatever comes in.
        for name, parameter in last_layer.named_parameters():
            if name == "bias":
                parameter[:4] = -1e4
    outputs: list[torch.Tensor] = []
    model.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    with tracer.attach(model, tmp_path / "run", activations="^$"):
        model(torch.randn(shape)).sum().backward()
    numbers = np.moveaxis(as_numpy(outputs[0]), unit, 0)
    dead = (numbers.reshape(len(numbers), -1) == 0).all(axis=1)
    assert recorded(tmp_path / "run")[0, "", True][2] == dead.mean()
    assert not isinstance(last_layer, nn.Linear | nn.Conv1d) or dead.mean() >= 4 / 6


def test_without_two_dimensions_no_unit_is_dead(tmp_path: Path) -> None:
    """There nobody can tell an example from a unit; all the same, zeros are counted, those of nested tensors, too."""
    nested = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)], layout=torch.jagged)
    for number, output in enumerate((torch.zeros(7), torch.zeros(()), nested)):
        assert played(tmp_path / str(number), nn.Identity(), output) == (1.0, None, None)


def test_a_unit_is_dead_once_it_was_zero_in_all_of_the_last_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the step itself, all of its calls together, and in those before it as far as memory reaches; modes apart."""
    monkeypatch.setattr("tracer.units.DEAD_STEPS", 3)
    generator = np.random.default_rng(0)
    model = Plays(nn.Identity())
    active: dict[bool, list[Bools]] = {True: [], False: []}
    expected: dict[tuple[int, str, bool], float] = {}
    with tracer.attach(model, tmp_path / "run", activations="parts"):
        for step in range(12):
            for training in (True, False):
                model.train(training)
                calls = [generator.random((2, 40)) < 0.1 for _ in range(2)]
                with torch.set_grad_enabled(training):
                    for call in calls:
                        model(torch.tensor(call, dtype=torch.float32))
                if training:
                    model.traced.backward()
                    model.traced.grad = None
                    trace_step(model)
                active[training].append(np.array(np.concatenate(calls).any(axis=0)))
                lately = np.stack(active[training][-3:]).any(axis=0)
                expected[step, "parts.0", training] = float((~lately).mean())
    assert {key: shares[2] for key, shares in recorded(tmp_path / "run").items()} == expected
    assert len(set(expected.values())) > 6


def trace_step(model: nn.Module) -> None:
    """Update a model once."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_units_that_are_seldom_active_are_not_dead_for_long(tmp_path: Path) -> None:
    """One example a batch, half of whose numbers are zero, and then dropped out: hardly a unit is zero in all steps."""
    model = nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with tracer.attach(model, tmp_path / "run", activations=True):
        for _ in range(60):
            optimizer.zero_grad()
            model(torch.randn(1, 4)).sum().backward()
            optimizer.step()
    found = recorded(tmp_path / "run")
    assert all(found[step, name, True][0] > 0.2 for step in range(60) for name in ("1", "2"))
    dead = [found[59, name, True][2] for name in ("0", "1", "2", "3")]
    assert dead[0] == dead[3] == 0
    assert all(share is not None and share < 0.1 for share in dead)


def test_outputs_of_ever_new_sizes_are_not_all_remembered(tmp_path: Path) -> None:
    """Memory holds the sizes of the newest step alone."""
    model = Plays(nn.Identity(), nn.Identity())
    with tracer.attach(model, tmp_path / "run", activations="parts") as trace:
        for step in range(20):
            model(torch.zeros(2, 3 + step), torch.zeros(2, 3))
            model.traced.backward()
            trace_step(model)
        live = trace._live
        assert live is not None
        assert live.activations is not None
        activity = live.activations._activity["parts.0", True]
        assert len(activity._last) == 1
    assert {shares[2] for shares in recorded(tmp_path / "run").values()} == {1.0}


def test_training_is_bit_identical_with_bounded_functions(tmp_path: Path) -> None:
    """Whatever is counted of a module's output, no bit of it changes."""

    def trained(path: Path | None) -> Sequence[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU6(inplace=True), nn.Linear(8, 2))
        trace = None if path is None else tracer.attach(model, path, activations=True)
        optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.1), []
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 6)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if trace is not None:
            trace.close()
        return losses

    assert trained(None) == trained(tmp_path / "run")
