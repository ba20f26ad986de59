"""The outputs of modules: against an oracle of hooks of its own, in the loops that people write."""

import copy
import gc
import io
import math
import pickle
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules.module import _global_forward_hooks
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import tracer
from tests.halves import first_of
from tests.training import events, loss_of, metric, mlp, steps
from tests.training import recorded as recorded_extremes
from tests.warned import ignore_others
from tracer.statistics import moments_of

Key = tuple[int, str, bool]
Moments = tuple[float, float, float, float]
Floats = npt.NDArray[np.float64]

BACKEND = "aot_eager"


@pytest.fixture(autouse=True)
def no_global_hook_is_left() -> Iterator[None]:
    """Fail a test that leaves a hook on all modules of the process."""
    yield
    assert not _global_forward_hooks


def outputs_of(path: Path) -> dict[Key, Moments]:
    """Minimum, maximum, mean and standard deviation by step, module and mode; each must be there once."""
    frame = tracer.scan(path, "activations").collect()
    found: dict[Key, Moments] = {}
    for row in frame.iter_rows(named=True):
        key = row["step"], str(row["module"]), row["training"]
        found[key] = row["min"], row["max"], row["mean"], row["std"]
    assert len(found) == frame.height, "a module stands twice in a step"
    return found


def moments(*outputs: object) -> Moments:
    """The oracle: the four numbers of all of these tensors together, by NumPy in float64."""
    numbers = np.concatenate([as_numpy(output) for output in outputs])
    with np.errstate(all="ignore"):
        return float(numbers.min()), float(numbers.max()), float(numbers.mean()), float(numbers.std())


def as_numpy(output: object) -> Floats:
    """A tensor's numbers in float64, real and imaginary parts apart."""
    assert isinstance(output, torch.Tensor)
    tensor = output.detach().to_dense() if output.is_sparse else output.detach()
    array: Floats = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double().numpy().ravel()
    return array


class Oracle:
    """Hooks on every module of a model that keep what it gives out, under the step that the test says.

    Attributes:
        step: The step to which the forwards belong that run now; None where they are not to be recorded.
    """

    def __init__(self, model: nn.Module) -> None:
        self.step: int | None = 0
        self._seen: dict[Key, list[torch.Tensor]] = {}
        for name, module in model.named_modules():
            module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: object, output: object) -> None:
            if self.step is not None:
                seen = self._seen.setdefault((self.step, name, module.training), [])
                seen += [leaf.detach().clone() for leaf in tree_leaves(output)]

        return keep

    def expected(self) -> dict[Key, Moments]:
        """What the log should hold."""
        return {key: moments(*outputs) for key, outputs in self._seen.items()}


def assert_outputs(path: Path, expected: dict[Key, Moments], rtol: float = 1e-12) -> None:
    """The log holds exactly these rows; extremes are exact, moments agree relative to the largest magnitude."""
    found = outputs_of(path)
    assert found.keys() == expected.keys()
    for key, wanted in expected.items():
        assert_moments(found[key], wanted, rtol)


def assert_moments(found: Moments, wanted: Moments, rtol: float = 1e-12) -> None:
    """Extremes are exact, moments agree relative to the largest magnitude, and what is not finite is the same."""
    assert str(found[:2]) == str(wanted[:2])
    magnitude = max(abs(wanted[0]), abs(wanted[1]))
    for number, truth in zip(found[2:], wanted[2:], strict=True):
        if math.isfinite(truth):
            assert abs(number - truth) <= rtol * magnitude
        else:
            assert str(number) == str(truth)


def small() -> nn.Sequential:
    """A model in float64."""
    return mlp().double()


def inputs(size: int = 4) -> torch.Tensor:
    """Fresh random data for it."""
    return torch.randn(size, 6, dtype=torch.float64)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer of all parameters."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


def train(model: nn.Module, count: int = 3, oracle: Oracle | None = None, first: int = 0) -> None:
    """A plain loop; the oracle is told the steps."""
    optimizer = sgd(model)
    for step in range(first, first + count):
        if oracle is not None:
            oracle.step = step
        optimizer.zero_grad()
        model(inputs()).square().mean().backward()
        optimizer.step()


class Gives(nn.Module):
    """A module that gives out what it is called with, and a parameter to be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.zeros(()))

    def forward(self, *outputs: object) -> object:
        return outputs[0] if len(outputs) == 1 else outputs


def given_out(path: Path, *calls: object) -> dict[Key, Moments]:
    """What is recorded of a module that gives out each of these, all in one step."""
    module = Gives()
    with tracer.attach(module, path, activations=True):
        for output in calls:
            module(output)
        module.p.backward()
    return outputs_of(path)


# ---- what is recorded ----


def test_each_modules_outputs_are_recorded_in_each_step(tmp_path: Path) -> None:
    """Minimum, maximum, mean and standard deviation of each module's output equal those taken by hand."""
    model = small()
    oracle = Oracle(model)
    with tracer.attach(model, tmp_path / "run", activations=True):
        train(model, oracle=oracle)
    assert len(oracle.expected()) == 3 * 4
    assert_outputs(tmp_path / "run", oracle.expected())
    assert recorded_extremes(tmp_path / "run").keys() == {(s, n) for s in range(3) for n, _ in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128])
def test_outputs_of_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    """Whatever the dtype, the numbers are those that NumPy takes in float64; complex parts count apart."""
    outputs = [torch.randn(size, dtype=torch.complex128).mul(3).add(1) for size in (1000, 1, 77)]
    tensors = [(output if dtype.is_complex else output.real).to(dtype) for output in outputs]
    ((key, found),) = given_out(tmp_path / "run", *tensors).items()
    assert key == (0, "", True)
    assert_moments(found, moments(*tensors), 1e-12 if dtype is torch.complex128 else 1e-5)


def test_the_table_has_the_columns_of_the_format(tmp_path: Path) -> None:
    """The table activations has the key of every table, and module, training and seven statistics."""
    model = small()
    with tracer.attach(model, tmp_path / "run", activations=True):
        train(model, 1)
    frame = tracer.scan(tmp_path / "run", "activations").collect()
    statistics = ["min", "max", "mean", "std", "zeros", "saturated", "dead"]
    assert frame.columns == ["step", "time", "rank", "attempt", "module", "training", *statistics]
    assert set(frame.select("step", "rank", "attempt", "training").rows()) == {(0, 0, 0, True)}
    nulls = dict(frame.select("module", pl.col("saturated").is_null()).cast({"module": pl.String}).iter_rows())
    assert nulls == {"0": True, "1": False, "2": True, "": True}
    assert frame.drop("saturated").null_count().sum_horizontal().item() == 0


SELECTIONS: dict[str, tuple[Any, set[str]]] = {
    "all": (True, {"", "0", "1", "2"}),
    "pattern": ("^[02]$", {"0", "2"}),
    "the model": ("^$", {""}),
    "callable": (lambda name: name in ("", "1"), {"", "1"}),
}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_modules_are_selected_by_pattern_or_callable(selection: str, tmp_path: Path) -> None:
    """True means every module, a pattern is searched for in the names, a callable is asked; the model's name is ""."""
    model = small()
    with tracer.attach(model, tmp_path / "run", activations=SELECTIONS[selection][0]):
        train(model, 1)
    assert {name for _, name, _ in outputs_of(tmp_path / "run")} == SELECTIONS[selection][1]


def test_by_default_no_output_is_looked_at(tmp_path: Path) -> None:
    """Without activations there is neither a table nor a hook on modules."""
    model = small()
    with tracer.attach(model, tmp_path / "run"):
        assert not _global_forward_hooks
        train(model, 1)
    assert not (tmp_path / "run" / "activations").exists()


def test_wrappers_add_nothing_to_names(tmp_path: Path) -> None:
    """Names are those that parameters have: without what a wrapper adds, and a shared module has its first one."""
    inner = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    model = nn.DataParallel(nn.Sequential(inner, inner, nn.Linear(6, 1)).double())
    with tracer.attach(model, tmp_path / "run", activations=True):
        train(model, 1)
    assert {name for _, name, _ in outputs_of(tmp_path / "run")} == {"", "0", "0.0", "0.1", "2"}


def test_a_lazy_module_is_recorded_from_its_first_forward_on(tmp_path: Path) -> None:
    """A module that gets its shape in the first forward is seen in that forward already."""
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1)).double()
    with tracer.attach(model, tmp_path / "run", activations="0"):
        model(inputs())
        train(model, 1)
    assert outputs_of(tmp_path / "run").keys() == {(0, "0", True)}


def test_a_module_that_is_replaced_is_followed(tmp_path: Path) -> None:
    """What takes a module's place is recorded under its name two steps later at the latest, and the old one let go."""
    model = small()
    with tracer.attach(model, tmp_path / "run", activations=True):
        train(model, 3)
        old = weakref.ref(model[2])
        model[2] = nn.Linear(8, 3).double()
        train(model, 2)
        gc.collect()
        assert old() is None
        oracle = Oracle(model)
        train(model, 2, oracle, first=5)
    found = outputs_of(tmp_path / "run")
    for key, wanted in oracle.expected().items():
        assert_moments(found[key], wanted)


def test_an_output_is_measured_before_it_is_overwritten(tmp_path: Path) -> None:
    """Where the next module works in place, the output is recorded as it was given out."""
    model = nn.Sequential(nn.Linear(6, 50), nn.ReLU(inplace=True), nn.Linear(50, 1)).double()
    oracle = Oracle(model)
    with tracer.attach(model, tmp_path / "run", activations=True):
        train(model, 1, oracle)
    assert_outputs(tmp_path / "run", oracle.expected())
    found = outputs_of(tmp_path / "run")
    assert found[0, "0", True][0] < 0 == found[0, "1", True][0]


def test_autocast_outputs_are_recorded_as_given_out(tmp_path: Path) -> None:
    """Under autocast a module's output is measured in the dtype that it has there, and training is untouched."""
    losses = []
    for traced in (False, True):
        torch.manual_seed(0)
        model = mlp()
        oracle = Oracle(model)
        trace = tracer.attach(model, tmp_path / "run", activations=True) if traced else None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model)
        loss.backward()
        losses.append(loss.item())
        if trace is not None:
            trace.close()
            assert_outputs(tmp_path / "run", oracle.expected(), 1e-5)
    assert losses[0] == losses[1]


# ---- to which step it belongs ----


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_validation_belongs_to_the_step_before_it(without: Callable[[], Any], tmp_path: Path) -> None:
    """A validation is marked as not training, and belongs to the step whose gradients came last."""
    model = small()
    oracle = Oracle(model)
    with tracer.attach(model, tmp_path / "run", activations=True):
        for epoch in range(3):
            train(model, 2, oracle, first=2 * epoch)
            model.eval()
            with without():
                for _ in range(2):
                    model(inputs(7))
            model.train()
    expected = oracle.expected()
    assert {(step, training) for step, _, training in expected} == {
        *((step, True) for step in range(6)), (1, False), (3, False), (5, False)
    }  # fmt: skip
    assert_outputs(tmp_path / "run", expected)


def test_a_wrapped_models_validation_belongs_to_the_step_before(tmp_path: Path) -> None:
    """Where the loop puts the wrapped model in eval mode, and not its wrapper, a validation is of the step before."""
    model = small()
    wrapped = nn.DataParallel(model)
    oracle = Oracle(model)
    with tracer.attach(wrapped, tmp_path / "run", activations=True):
        for step in range(2):
            train(wrapped, 1, oracle, first=step)
            model.eval()
            with torch.no_grad():
                model(inputs())
            model.train()
    assert_outputs(tmp_path / "run", oracle.expected())


def test_a_part_that_is_not_in_training_mode_belongs_to_the_training_forward(tmp_path: Path) -> None:
    """A frozen part in eval mode, in a forward with gradients, is marked so and belongs to the step of that forward."""
    model = small()
    model[0].eval()
    oracle = Oracle(model)
    with tracer.attach(model, tmp_path / "run", activations=True):
        train(model, 3, oracle)
    assert {(name, training) for _, name, training in oracle.expected()} == {
        ("", True), ("0", False), ("1", True), ("2", True)
    }  # fmt: skip
    assert_outputs(tmp_path / "run", oracle.expected())


def test_a_frozen_part_that_runs_without_gradients_belongs_to_the_training_forward(tmp_path: Path) -> None:
    """A backbone in eval mode, run under no_grad to train what follows it, belongs to the step that it leads to."""
    model = small()
    model[0].eval()
    oracle = Oracle(model)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", activations=True):
        for step in range(3):
            oracle.step = step
            with torch.no_grad():
                features = model[1](model[0](inputs()))
            optimizer.zero_grad()
            model[2](features).square().mean().backward()
            optimizer.step()
    assert len(oracle.expected()) == 9
    assert_outputs(tmp_path / "run", oracle.expected())


def test_a_validation_before_training_belongs_to_step_0(tmp_path: Path) -> None:
    """A sanity check before the first gradient belongs to the first step, beside its training forward."""
    model = small()
    oracle = Oracle(model)
    with tracer.attach(model, tmp_path / "run", activations=True):
        model.eval()
        with torch.no_grad():
            model(inputs())
        model.train()
        train(model, 2, oracle)
    assert_outputs(tmp_path / "run", oracle.expected())


def test_a_look_between_forward_and_backward_belongs_to_the_step_before(tmp_path: Path) -> None:
    """An evaluation between a training forward and its backward takes that forward to no other step."""
    model = small()
    oracle = Oracle(model)
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run", activations=True):
        for step in range(3):
            oracle.step = step
            loss = model(inputs()).square().mean()
            model.eval()
            oracle.step = max(0, step - 1)
            with torch.no_grad():
                model(inputs(5))
            model.train()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert_outputs(tmp_path / "run", oracle.expected())


class Gan(nn.Module):
    """A generator and a discriminator, each with an optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Linear(6, 6)
        self.discriminator = nn.Linear(6, 1)
        self.double()
        self.optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in self.children()]


def test_a_gans_two_updates_are_two_steps(tmp_path: Path) -> None:
    """Of a loop that updates two parts in turn, each forward belongs to the update that its backward leads to."""
    model = Gan()
    oracle = Oracle(model)
    with tracer.attach(model, tmp_path / "run", activations=True):
        for turn in range(3):
            # The discriminator sees a fake that is made in training mode, without gradients.
            oracle.step = 2 * turn
            real = model.discriminator(inputs())
            with torch.no_grad():
                fake = model.generator(inputs())
            model.zero_grad()
            (model.discriminator(fake).mean() - real.mean()).backward()
            model.optimizers[1].step()
            oracle.step = 2 * turn + 1
            model.zero_grad()
            model.discriminator(model.generator(inputs())).mean().neg().backward()
            model.optimizers[0].step()
    assert steps(tmp_path / "run") == list(range(6))
    assert len(oracle.expected()) == 12
    assert_outputs(tmp_path / "run", oracle.expected())


def test_a_skipped_steps_forward_belongs_to_it(tmp_path: Path) -> None:
    """A step that a GradScaler skips has its own forward, and the next step has the next one."""
    model = small()
    oracle = Oracle(model)
    optimizer, scaler = sgd(model), GradScaler("cpu", init_scale=1024.0)
    with tracer.attach(model, tmp_path / "run", activations=True, scaler=scaler):
        for step in range(5):
            oracle.step = step
            optimizer.zero_grad()
            loss = model(inputs()).square().mean() * (math.inf if step in (0, 2, 3) else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            model.eval()
            with torch.no_grad():
                model(inputs(2))
            model.train()
    assert metric(tmp_path / "run", "skipped") == [(step, float(step in (0, 2, 3))) for step in range(5)]
    assert_outputs(tmp_path / "run", oracle.expected())


def test_a_loop_that_calls_step_itself(tmp_path: Path) -> None:
    """Without a torch optimizer, what runs after trace.step() belongs to the next step."""
    model = small()
    oracle = Oracle(model)
    with tracer.attach(model, tmp_path / "run", activations=True) as trace:
        for step in range(3):
            oracle.step = step
            for parameter in model.parameters():
                parameter.grad = None
            model(inputs()).square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(0.1 * parameter.grad)
            trace.step()
    assert_outputs(tmp_path / "run", oracle.expected())


def test_a_forward_without_a_backward_is_of_the_next_step(tmp_path: Path) -> None:
    """The forward after which a loop ends, since its loss is NaN, say, is recorded under the step that it began."""
    model = small()
    oracle = Oracle(model)
    with tracer.attach(model, tmp_path / "run", activations=True):
        train(model, 2, oracle)
        oracle.step = 2
        model(math.nan * inputs())
    assert steps(tmp_path / "run") == [0, 1]
    assert_outputs(tmp_path / "run", oracle.expected())


def test_the_forwards_of_a_closure_are_one_step(tmp_path: Path) -> None:
    """LBFGS calls its closure several times in a step, and all of these forwards belong to it."""
    model = small()
    oracle = Oracle(model)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(inputs()).square().mean()
        loss.backward()
        return loss

    with tracer.attach(model, tmp_path / "run", activations=True):
        for step in range(3):
            oracle.step = step
            optimizer.step(closure)
    assert_outputs(tmp_path / "run", oracle.expected())


@pytest.mark.parametrize("every", [2, 3])
def test_every_measures_only_those_steps(every: int, tmp_path: Path) -> None:
    """With every=k the outputs of steps 0, k, 2k are recorded, and those of validations after them."""
    model = small()
    oracle = Oracle(model)
    with tracer.attach(model, tmp_path / "run", activations=True, every=every):
        for step in range(7):
            train(model, 1, oracle, first=step)
            model.eval()
            with torch.no_grad():
                model(inputs())
            model.train()
    expected = {key: found for key, found in oracle.expected().items() if key[0] % every == 0}
    assert_outputs(tmp_path / "run", expected)


def test_a_resumed_run_goes_on(tmp_path: Path) -> None:
    """A resumed run's outputs follow at its next steps, even where it began without recording any."""
    model = small()
    oracle = Oracle(model)
    for first, activations in ((0, False), (2, True), (4, True)):
        with tracer.attach(model, tmp_path / "run", activations=activations, resume=True):
            train(model, 2, oracle, first=first)
    expected = {key: found for key, found in oracle.expected().items() if key[0] >= 2}
    assert_outputs(tmp_path / "run", expected)


@pytest.mark.parametrize("ran", ["nothing", "too few steps"])
def test_a_trace_that_measured_no_step_does_not_complain(ran: str, tmp_path: Path) -> None:
    """Where no forward was to be seen, none is missed: no warning speaks of compiled code."""
    model = small()
    train_first = 1 if ran == "too few steps" else 0
    with tracer.attach(model, tmp_path / "run", every=5):
        train(model, train_first)
    with tracer.attach(model, tmp_path / "run", every=5, activations=True, resume=True):
        train(model, 2 * train_first)
    assert events(tmp_path / "run", "failed") == []
    assert outputs_of(tmp_path / "run") == {}


# ---- several outputs in one step ----


def test_gradient_accumulation_is_pooled(tmp_path: Path) -> None:
    """All forwards of a step are one: the mean and spread of all their numbers, whatever the sizes of the batches."""
    model = small()
    oracle = Oracle(model)
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run", activations=True):
        for step in range(3):
            oracle.step = step
            optimizer.zero_grad()
            for size in (5, 1, 2):
                (model(inputs(size) * size).square().mean() / 3).backward()
            optimizer.step()
    assert_outputs(tmp_path / "run", oracle.expected())


def test_a_module_that_is_called_several_times_is_pooled(tmp_path: Path) -> None:
    """The calls of a module that a forward repeats are one row, as if their outputs were one tensor."""

    class Repeats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.Linear(6, 6).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = 10 * self.cell(x)
            return x

    model = Repeats()
    oracle = Oracle(model)
    with tracer.attach(model, tmp_path / "run", activations=True):
        train(model, 2, oracle)
    assert_outputs(tmp_path / "run", oracle.expected())


@given(
    st.lists(
        st.lists(
            st.floats(-1e6, 1e6).map(lambda x: x if abs(x) > 1e-140 else 0.0) | st.sampled_from([0.0, 1.0]),
            min_size=1,
            max_size=9,
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(deadline=None, max_examples=30)
def test_pooling_is_as_if_all_outputs_were_one(calls: list[list[float]]) -> None:
    """However a step's numbers are shared among calls, the row is that of all of them in one tensor."""
    outputs = [torch.tensor(numbers, dtype=torch.float64) for numbers in calls]
    with tempfile.TemporaryDirectory() as folder:
        found = given_out(Path(folder) / "run", *outputs)
    assert_moments(found[0, "", True], moments(*outputs))


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [(torch.float64, 1e140), (torch.float64, 1e-140), (torch.float32, 2.0**100), (torch.float32, 2.0**-100)],
)
def test_squares_neither_vanish_nor_overflow(dtype: torch.dtype, factor: float, tmp_path: Path) -> None:
    """Outputs whose squares no number holds have the mean and spread of a unit tensor, scaled; pooled ones, too."""
    units = [torch.randn(size, dtype=torch.float64) for size in (9, 1, 30)]
    tensors = [(unit * factor).to(dtype) for unit in units]
    found = given_out(tmp_path / "run", *tensors)[0, "", True]
    wanted = moments(*(tensor.double() / factor for tensor in tensors))
    assert found == pytest.approx([number * factor for number in wanted], rel=1e-5 if dtype is torch.float32 else 1e-12)


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_constant_outputs_have_hardly_a_spread(size: int, tmp_path: Path) -> None:
    """Equal numbers have no spread but for rounding, in one call or several, and all zeros have none."""
    for number, output in enumerate((torch.full((size,), 0.1), torch.zeros(size))):
        (found,) = given_out(tmp_path / str(number), output, output).values()
        assert found[:3] == pytest.approx([float(output[0])] * 3, rel=1e-6)
        assert 0 <= found[3] <= float(output[0]) * 2e-7


INFINITE = {
    "nan": ([1.0, math.nan], [2.0, 0.0]),
    "nan later": ([1.0, 2.0], [math.nan, 0.0]),
    "inf": ([1.0, math.inf],),
    "-inf": ([-math.inf, 1.0],),
    "inf twice": ([1.0, math.inf], [math.inf, 2.0]),
    "inf in one": ([math.inf, 0.0], [1.0, 2.0]),
    "one each": ([math.inf, 0.0], [1.0, -math.inf]),
    "both in one": ([math.inf, 0.0, -math.inf],),
    "nan and inf": ([math.inf, 0.0], [1.0, math.nan]),
    "nan before inf": ([1.0, math.nan], [math.inf]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", INFINITE)
def test_what_is_not_finite_is_as_numpy_has_it(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """NaN and infinities are recorded as they are, and no later call covers them up."""
    outputs = [torch.tensor(numbers, dtype=dtype) for numbers in INFINITE[case]]
    assert_moments(given_out(tmp_path / "run", *outputs)[0, "", True], moments(*outputs))


# ---- what a module may give out ----


def test_a_recurrent_networks_outputs_are_one_row(tmp_path: Path) -> None:
    """All tensors of a nested output, such as the tuples of nn.LSTM, are measured together."""
    model = nn.LSTM(6, 5).double()
    with tracer.attach(model, tmp_path / "run", activations=True):
        outputs, (hidden, cell) = model(inputs())
        outputs.sum().backward()
    assert_outputs(tmp_path / "run", {(0, "", True): moments(outputs, hidden, cell)})


def test_a_packed_sequences_numbers_count(tmp_path: Path) -> None:
    """A recurrent network that is given packed sequences gives out one, whose numbers are recorded too."""
    model = nn.LSTM(6, 5).double()
    with tracer.attach(model, tmp_path / "run", activations=True):
        packed, (hidden, cell) = model(pack_sequence([10 * inputs(4), inputs(2)]))
        packed.data.sum().backward()
    assert_outputs(tmp_path / "run", {(0, "", True): moments(packed.data, hidden, cell)})


def test_outputs_in_dictionaries_and_lists_count(tmp_path: Path) -> None:
    """Tensors are found wherever they stand in dictionaries, lists and tuples; other things are passed over."""
    first, second, third = (torch.randn(3, dtype=torch.float64) for _ in range(3))
    output = {"logits": first, "hidden": [second, (third, None, "text", 7, 1e9)], "ids": torch.tensor([10**6])}
    assert_outputs_of(tmp_path / "run", output, wanted=moments(first, second, third))


def assert_outputs_of(path: Path, *calls: object, wanted: Moments) -> None:
    """A module that gives these out has one row with these numbers."""
    ((key, found),) = given_out(path, *calls).items()
    assert key == (0, "", True)
    assert_moments(found, wanted)


@pytest.mark.parametrize(
    "nothing",
    [
        torch.tensor([3, 4]),
        torch.tensor([True]),
        torch.empty(0, 3),
        None,
        "text",
        1.5,
        (),
        torch.empty(2, device="meta"),
    ],
    ids=["integers", "booleans", "empty", "None", "text", "number", "tuple", "meta"],
)
def test_what_is_no_number_in_floating_point_is_ignored(nothing: object, tmp_path: Path) -> None:
    """Integers, empty tensors and what is no tensor have no row, raise no warning, and change no other call's row."""
    assert given_out(tmp_path / "alone", nothing) == {}
    tensor = torch.tensor([2.0, -1.0], dtype=torch.float64)
    assert_outputs_of(tmp_path / "beside", nothing, tensor, nothing, wanted=moments(tensor))


def test_a_sparse_output_counts_its_zeros(tmp_path: Path) -> None:
    """A sparse output is measured in its dense form."""
    places = torch.tensor([[0, 3, 3]])
    sparse = torch.sparse_coo_tensor(places, torch.tensor([1.0, 5.0, 2.0]).double(), (7,), check_invariants=True)
    assert_outputs_of(tmp_path / "run", sparse, wanted=moments(sparse))


def test_nested_tensors_count_their_own_numbers(tmp_path: Path) -> None:
    """The layers of a transformer encoder, which evaluates without its padding, are recorded like any other."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2).double()
    padding = torch.tensor([[False, False, True], [False, False, False]])
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    with tracer.attach(model, tmp_path / "run", activations="^layers.[01]$|^$"):
        model.eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
            padded = model(x, src_key_padding_mask=padding)
        model.train()
        output = model(x)
        output.sum().backward()
    found = outputs_of(tmp_path / "run")
    assert found.keys() == {(0, name, training) for name in ("layers.0", "layers.1", "") for training in (True, False)}
    assert_moments(found[0, "", True], moments(output))
    assert_moments(found[0, "", False], moments(padded))
    assert_moments(found[0, "layers.1", False], moments(padded[~padding]))


def test_no_output_is_kept_alive(tmp_path: Path) -> None:
    """The tracer holds no output beyond its module's call, so that activation memory is not its business."""
    model = small()
    with tracer.attach(model, tmp_path / "run", activations=True):
        output = model(inputs())
        reference = weakref.ref(output)
        del output
        gc.collect()
        assert reference() is None
        model(inputs()).sum().backward()


# ---- what else runs a forward ----


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoints_second_forward_is_not_counted(reentrant: bool, tmp_path: Path) -> None:
    """A checkpointed module's forward counts once, in its own step; that which repeats it in the backward does not."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(6, 6), mlp(), nn.Linear(3, 1)
            self.double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            # Not always: where all were counted twice, no number would change.
            x = self.inner(x) if len(x) == 1 else checkpoint(self.inner, x, use_reentrant=reentrant)
            out: torch.Tensor = self.last(x)
            return out

    model = Checkpointed()
    oracle = Oracle(model)
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run", activations=True):
        for step in range(3):
            oracle.step = step
            optimizer.zero_grad()
            for size in (1, 3):
                loss = model(inputs(size)).square().mean()
                oracle.step = None
                loss.backward()
                oracle.step = step
            optimizer.step()
    assert_outputs(tmp_path / "run", oracle.expected())


class Stubborn(torch.Tensor):
    """A tensor that cannot be reduced."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.aminmax:
            raise RuntimeError("stubborn\nfor reasons of its own")
        return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def test_a_module_that_fails_once_costs_its_row_of_that_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is recorded again from the next step on; no part of its outputs stands for all of them."""
    model = nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    oracle = Oracle(model)
    failing = iter([False] * 13 + [True])

    def moments(tensor: torch.Tensor, further: Sequence[torch.Tensor]) -> torch.Tensor:
        if next(failing, False):
            raise RecursionError("too deep")
        return moments_of(tensor, further)

    monkeypatch.setattr("tracer.activations.moments_of", moments)
    with (
        pytest.warns(tracer.TracerWarning, match="step 3 lacks activations of 1; after 3 such steps") as caught,
        tracer.attach(model, tmp_path / "run", activations=True),
    ):
        train(model, 6, oracle)
    assert len(caught) == 1
    expected = {key: found for key, found in oracle.expected().items() if key[:2] != (3, "1")}
    assert_outputs(tmp_path / "run", expected)


def test_a_module_that_fails_costs_one_warning_and_itself(tmp_path: Path) -> None:
    """Where an output cannot be measured, a warning and an event name the module; the others, and training, go on."""

    class Awkward(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            stubborn: torch.Tensor = x.as_subclass(Stubborn)
            return stubborn

    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            plain: torch.Tensor = x.as_subclass(torch.Tensor)
            return plain

    model = nn.Sequential(nn.Linear(6, 2), Awkward(), Awkward(), Plain(), nn.Linear(2, 1)).double()
    oracle = Oracle(model)
    with (
        pytest.warns(tracer.TracerWarning, match="activations of 1 are no longer recorded .*stubborn") as caught,
        tracer.attach(model, tmp_path / "run", activations=True),
    ):
        train(model, 3, oracle)
    assert len(caught) == 1
    assert "reasons" not in str(caught[0].message)
    assert any("activations of 1 are no longer" in detail for _, _, detail in events(tmp_path / "run", "failed"))
    expected = {key: found for key, found in oracle.expected().items() if key[1] not in ("1", "2")}
    assert_outputs(tmp_path / "run", expected)
    assert steps(tmp_path / "run") == [0, 1, 2]


COPIES: dict[str, Callable[[nn.Module], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: torch.load(saved(model), weights_only=False),
}


def saved(model: nn.Module) -> io.BytesIO:
    """A model as torch stores it."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_of_a_traced_model_is_not_recorded(how: str, tmp_path: Path) -> None:
    """A traced model can be copied and stored, and the copy is a model of its own, of which nothing is recorded."""
    model = small()
    x = inputs()
    with tracer.attach(model, tmp_path / "run", activations=True):
        output = model(x)
        twin = COPIES[how](model)
        assert torch.equal(twin(x), output)
        twin(100 * x).sum().backward()
        output.sum().backward()
    found = outputs_of(tmp_path / "run")
    assert found.keys() == {(0, name, True) for name in ("", "0", "1", "2")}
    assert_moments(found[0, "", True], moments(output))


def test_two_models_are_recorded_apart(tmp_path: Path) -> None:
    """Each trace records its own model's modules, and goes on when another one is closed."""
    models = [small(), small()]
    oracles = [Oracle(model) for model in models]
    traces = [tracer.attach(model, tmp_path / str(n), activations=True) for n, model in enumerate(models)]
    for model, oracle in zip(models, oracles, strict=True):
        train(model, 2, oracle)
    traces[0].close()
    train(models[1], 1, oracles[1], first=2)
    traces[1].close()
    for number, oracle in enumerate(oracles):
        assert_outputs(tmp_path / str(number), oracle.expected())


def test_functional_transformations_are_left_alone(tmp_path: Path) -> None:
    """Inside torch.func's grad and vmap nothing is recorded, and their results are those of an untraced model."""

    def per_sample(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
        parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

        def loss(parameters: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
            called: torch.Tensor = torch.func.functional_call(model, parameters, (row.unsqueeze(0),))
            return called.square().mean()

        gradients: dict[str, torch.Tensor] = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
        return gradients

    model, x = small(), inputs()
    expected = per_sample(model, x)
    oracle = Oracle(model)
    with tracer.attach(model, tmp_path / "run", activations=True):
        oracle.step = None
        found = per_sample(model, x)
        train(model, 1, oracle)
        oracle.step = None
        per_sample(model, x)
        train(model, 1, oracle, first=1)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert_outputs(tmp_path / "run", oracle.expected())


def test_forwards_without_numbers_are_left_alone(tmp_path: Path) -> None:
    """A forward of fake tensors, and one that torch.jit traces, leave no row behind and lose none of the others."""
    model, x = small(), inputs()
    oracle = Oracle(model)
    with tracer.attach(model, tmp_path / "run", activations=True):
        train(model, 1, oracle)
        oracle.step = None
        with FakeTensorMode(allow_non_fake_inputs=True):
            model(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))
            traced: Any = torch.jit.trace(model, x, check_trace=False)
        assert torch.equal(traced(x), model(x))
        assert "aminmax" not in str(traced.inlined_graph)
        train(model, 1, oracle, first=1)
    found = outputs_of(tmp_path / "run")
    expected = oracle.expected()
    assert {step for step, _, _ in found} == {0, 1}
    # The plain forward after tracing was of step 1 too.
    assert found[0, "0", True] == pytest.approx(expected[0, "0", True], rel=1e-12)


# ---- torch.compile ----


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No test finds what another one compiled."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def wrapped(model: nn.Module) -> nn.Module:
    """The model inside a compiled one."""
    compiled: object = torch.compile(model, backend=BACKEND)
    assert isinstance(compiled, nn.Module)
    return compiled


def in_place(model: nn.Module) -> nn.Module:
    """The model itself, compiled."""
    model.compile(backend=BACKEND)
    return model


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("compiled", first_of([wrapped, in_place]))
@pytest.mark.parametrize("when", first_of(["before", "before, and attached itself", "after"]))
def test_compiled_code_is_said_to_call_no_hook(
    compiled: Callable[[nn.Module], nn.Module], when: str, tmp_path: Path
) -> None:
    """One warning and one event say that a compiled model's outputs are not seen; training is what it is without."""
    losses: list[list[float]] = []
    for traced in (False, True):
        torch.manual_seed(0)
        torch.compiler.reset()
        model = mlp()
        called = model if when == "after" else compiled(model)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ignore_others()
            target = called if when.endswith("itself") else model
            trace = tracer.attach(target, tmp_path / "run", activations=True) if traced else None
            if when == "after":
                called = compiled(model)
            optimizer = sgd(model)
            losses.append([])
            for _ in range(3):
                optimizer.zero_grad()
                loss = loss_of(called)
                loss.backward()
                optimizer.step()
                losses[-1].append(loss.item())
            if trace is not None:
                trace.close()
                said = [str(warning.message) for warning in caught]
                assert len(said) == 1, said
                assert "torch.compile" in said[0]
                assert "calls no hook" in said[0]
    assert losses[0] == losses[1]
    assert len(events(tmp_path / "run", "failed")) == 1
    assert outputs_of(tmp_path / "run") == {}
    assert steps(tmp_path / "run") == [0, 1, 2]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("when", first_of(["before", "before, and already run", "after"]))
def test_a_compiled_part_is_named_and_the_rest_recorded(when: str, tmp_path: Path) -> None:
    """Where a part is compiled, one warning names what is not seen, and all other modules are recorded."""
    model = nn.Sequential(mlp(), nn.Linear(3, 1)).double()
    oracle = Oracle(nn.Sequential(model[1]))
    if when != "after":
        model[0].compile(backend=BACKEND)
    if when.endswith("run"):
        oracle.step = None
        train(model, 1)
    with (
        pytest.warns(tracer.TracerWarning, match=r"4 modules are not seen \(0, 0\.0, 0\.1\)") as caught,
        tracer.attach(model, tmp_path / "run", activations=True),
    ):
        if when == "after":
            model[0].compile(backend=BACKEND)
        train(model, 2, oracle)
    assert sum(warning.category is tracer.TracerWarning for warning in caught) == 1
    found = outputs_of(tmp_path / "run")
    assert {name for _, name, _ in found} == {"", "1"}
    for step in range(2):
        for name in ("", "1"):
            assert_moments(found[step, name, True], oracle.expected()[step, "0", True])


# ---- beginning and end ----


@pytest.mark.parametrize(
    ("activations", "error", "words"),
    [
        ("nothing", ValueError, r"activations='nothing' selects none of the model's modules"),
        (lambda name: False, ValueError, "selects none"),
        ("[", ValueError, r"activations='\[' is not a regular expression"),
        (3, TypeError, "activations=3 must be a regular expression, or a callable"),
        (lambda name: 1 / 0, ZeroDivisionError, "division"),
    ],
    ids=["no match", "none wanted", "no pattern", "a number", "a callable that raises"],
)
def test_a_bad_selection_leaves_nothing_behind(
    activations: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    """It says what is wrong, and there is no folder, thread or hook; another attach to the same path succeeds."""
    model = small()
    threads = set(threading.enumerate())
    with pytest.raises(error, match=words):
        tracer.attach(model, tmp_path / "run", activations=activations)
    assert not (tmp_path / "run").exists()
    assert set(threading.enumerate()) == threads
    assert not _global_forward_hooks
    assert all(not parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    with tracer.attach(model, tmp_path / "run", activations=True):
        train(model, 1)
    assert steps(tmp_path / "run") == [0]


@pytest.mark.parametrize("end", ["close", "error"])
def test_the_end_of_a_trace_removes_the_hook(end: str, tmp_path: Path) -> None:
    """After close, or an error in the with block, no hook on modules is left, and forwards are no longer recorded."""
    model = small()
    if end == "close":
        trace = tracer.attach(model, tmp_path / "run", activations=True)
        assert len(_global_forward_hooks) == 1
        train(model, 1)
        trace.close()
        trace.close()
    else:
        with pytest.raises(RuntimeError, match="shapes"), tracer.attach(model, tmp_path / "run", activations=True):
            model(torch.zeros(1, 7, dtype=torch.float64))
    assert not _global_forward_hooks
    before = outputs_of(tmp_path / "run")
    train(model, 1)
    assert outputs_of(tmp_path / "run") == before


def test_a_closed_trace_keeps_no_model_alive(tmp_path: Path) -> None:
    """The recorder of outputs lets go of the model's modules with the end of the trace."""
    model = small()
    reference = weakref.ref(model)
    trace = tracer.attach(model, tmp_path / "run", activations=True)
    train(model, 1)
    trace.close()
    del model
    gc.collect()
    assert reference() is None


def test_training_is_bit_identical(tmp_path: Path) -> None:
    """With all outputs recorded, every bit of weights and buffers is as an untraced training leaves it."""
    results = []
    for traced in (False, True):
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).double()
        if traced:
            with tracer.attach(model, tmp_path / "run", activations=True):
                train(model, 4)
        else:
            train(model, 4)
        results.append(torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()]))
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("layers", [1, 2])
def test_the_fast_path_of_transformers_is_said_to_call_no_hook(layers: int, tmp_path: Path) -> None:
    """In evaluation torch does a layer's work in one operation: one warning names what is not seen there."""
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=4, batch_first=True)
    model: nn.Module = layer
    if layers > 1:
        model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    some = ", ".join(
        f"{'layers.0.' if layers > 1 else ''}{name}" for name in ("self_attn", "self_attn.out_proj", "linear1")
    )
    said_once = pytest.warns(
        tracer.TracerWarning, match=rf"fast path .* {9 * layers} modules are not seen there \({some}\)"
    )
    with said_once as said, tracer.attach(model, tmp_path / "run", activations=True):
        optimizer = sgd(model)
        for _ in range(3):
            model.train()(torch.randn(2, 3, 8)).sum().backward()
            optimizer.step()
            with torch.no_grad():
                model.eval()(torch.randn(2, 3, 8))
    assert len(said) == 1
    assert len(events(tmp_path / "run", "failed")) == 1


@pytest.mark.parametrize("select", ["linear", "norm|stubborn"])
def test_the_fast_path_is_said_where_the_layer_itself_is_not_recorded(select: str, tmp_path: Path) -> None:
    """Of what was asked for, whatever else: even if another module has failed before, an event says so."""
    stubborn = nn.Module()
    model = nn.ModuleDict({"layer": nn.TransformerEncoderLayer(4, 2, 4, batch_first=True), "stubborn": stubborn})

    class Unreadable(torch.Tensor):
        @classmethod
        def __torch_function__(cls, *_: Any, **__: Any) -> Any:
            raise RuntimeError("no")

    stubborn.forward = lambda: torch.ones(1).as_subclass(Unreadable)
    optimizer = sgd(model)
    with pytest.warns(tracer.TracerWarning) as said, tracer.attach(model, tmp_path / "run", activations=select):
        for _ in range(3):
            model.train()
            stubborn()
            model["layer"](torch.randn(2, 3, 4)).sum().backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                model["layer"](torch.randn(2, 3, 4))
    assert len(said) == 1
    details = [detail for _, _, detail in events(tmp_path / "run", "failed")]
    assert len(details) == 1 + ("stubborn" in select)
    assert "fast path" in details[-1]
    assert "2 modules are not seen there (layer." in details[-1]


def test_nothing_is_said_of_transformers_whose_modules_are_all_seen(tmp_path: Path) -> None:
    """With gradients, or without the fast path, a layer in evaluation calls all hooks."""
    model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=4, batch_first=True)
    with tracer.attach(model, tmp_path / "run", activations=True):
        optimizer = sgd(model)
        for _ in range(2):
            model.train()(torch.randn(2, 3, 8)).sum().backward()
            optimizer.step()
            model.eval()(torch.randn(2, 3, 8))
    assert not events(tmp_path / "run", "failed")
