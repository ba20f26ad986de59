"""Models that are compiled, called with other parameters, copied or stored while they are traced."""

import contextlib
import copy
import io
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tests.tracer.test_hooks import hooks_on
from tests.training import assert_rows, by_hand, events, loss_of, metric, mlp, recorded, steps

Extremes = dict[str, float | None]
Compile = Callable[[nn.Module], nn.Module]

BACKEND = "aot_eager"
NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def fresh_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test finds what another one compiled."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    # Loading what torch 2.4 has compiled turns subnormal numbers into zeros, for every test after it.
    torch.set_flush_denormal(False)


def sgd(model: nn.Module, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """An optimizer of all parameters."""
    return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=weight_decay)


def wrapped(model: nn.Module) -> nn.Module:
    """The model inside a compiled one."""
    compiled: object = torch.compile(model, backend=BACKEND)
    assert isinstance(compiled, nn.Module)
    return compiled


def in_place(model: nn.Module) -> nn.Module:
    """The model itself, compiled."""
    model.compile(backend=BACKEND)
    return model


def in_part(model: nn.Module) -> nn.Module:
    """The model with one compiled part."""
    assert isinstance(model, nn.Sequential)
    model[0] = wrapped(model[0])
    return model


def train(model: nn.Module, called: nn.Module, count: int = 3) -> list[dict[str, Extremes]]:
    """Train a little; what each step's rows should be, under the names without prefixes."""
    optimizer = sgd(model)
    expected = []
    for _ in range(count):
        optimizer.zero_grad()
        loss_of(called).backward()
        expected.append({name.replace("_orig_mod.", ""): extremes for name, extremes in by_hand(model).items()})
        optimizer.step()
    return expected


@pytest.mark.parametrize("compiled", [wrapped, in_place, in_part])
def test_a_model_that_was_compiled_is_traced_like_any_other(compiled: Compile, tmp_path: Path) -> None:
    """Attached after compiling, the rows are those of the gradients at hand, under the model's own names."""
    plain = mlp()
    names = [name for name, _ in plain.named_parameters()]
    model = compiled(plain)
    with tracer.attach(model, tmp_path / "run"):
        expected = train(model, model)
    assert list(expected[0]) == names
    assert_rows(tmp_path / "run", expected)


@pytest.mark.parametrize("compiled", [wrapped, in_place])
def test_a_traced_model_may_be_compiled(compiled: Compile, tmp_path: Path) -> None:
    """Compiled in mid-run, after eager steps, a model goes on in the same rows, and no parameter is said to be new."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run"):
        expected = train(model, model, 2)
        expected += train(model, compiled(model))
    assert_rows(tmp_path / "run", expected)
    assert events(tmp_path / "run", "joined") + events(tmp_path / "run", "replaced") == []


class HalfUsed(nn.Module):
    """Uses its second layer only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Linear(6, 3)
        self.sometimes = nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor, both: bool) -> torch.Tensor:
        output: torch.Tensor = self.always(inputs)
        return output.add(self.sometimes.forward(inputs)) if both else output


def test_a_compiled_loss_and_a_compiled_update_are_recorded_exactly(tmp_path: Path) -> None:
    """With forward, loss and optimizer.step compiled, rows are those before each update, unused parameters included."""
    model = HalfUsed()
    # The decay moves what is not used as well, since its old gradient is zeroed and not freed.
    optimizer = sgd(model, weight_decay=0.5)
    loss = torch.compile(lambda inputs, both: model(inputs, both).square().mean(), backend=BACKEND)
    update = torch.compile(optimizer.step, backend=BACKEND)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for number in range(4):
            optimizer.zero_grad(set_to_none=False)
            loss(torch.randn(4, 6), number % 2 == 0).backward()
            expected.append(by_hand(model))
            if number % 2:
                for name in ("sometimes.weight", "sometimes.bias"):
                    expected[-1][name] |= {"grad_min": None, "grad_max": None}
            update()
    assert_rows(tmp_path / "run", expected)


@pytest.mark.parametrize(
    "backend",
    [
        BACKEND,
        pytest.param(
            "inductor",
            marks=[pytest.mark.slow, NEEDS_COMPILER],
        ),
    ],
)
def test_a_whole_compiled_step_is_recorded_exactly(backend: str, tmp_path: Path) -> None:
    """Where one compiled function does forward, backward and update, each call is one step with the right numbers."""
    model = mlp()
    optimizer = sgd(model)

    def step(inputs: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(inputs).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    compiled = torch.compile(step, backend=backend)
    expected, losses = [], []
    with tracer.attach(model, tmp_path / "run") as trace, warnings.catch_warnings():
        # The compiler itself looks at the gradient of the loss, which it says not to do.
        warnings.filterwarnings("ignore", "Skipping serialization of", UserWarning)  # torch 2.6
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed")
        for _ in range(4):
            before = by_hand(model)
            loss = compiled(torch.randn(4, 6))
            trace.log(loss=loss)
            losses.append(loss.item())
            after = by_hand(model)
            # The values are those before the call, the gradients are there still after it.
            expected.append({name: before[name] | gradient_of(after[name]) for name in before})
    assert_rows(tmp_path / "run", expected)
    assert metric(tmp_path / "run", "loss") == list(enumerate(losses))


@pytest.mark.parametrize("begin", [0, 3])
def test_a_backward_that_is_compiled_itself_is_right_or_null(begin: int, tmp_path: Path) -> None:
    """Compiled autograd never says that a backward ends: after its first one, gradients are read as they come."""
    model = mlp()
    optimizer = sgd(model)
    expected: list[dict[str, Extremes]] = []
    compiled: Any = torch._dynamo.compiled_autograd
    # It is named otherwise in torch 2.4.
    enable = getattr(compiled, "_enable", None) or compiled.enable
    with warnings.catch_warnings(), tracer.attach(model, tmp_path / "run"):
        # Torch's own, while it compiles.
        warnings.filterwarnings("ignore", message="The .grad attribute")
        for step in range(6):
            optimizer.zero_grad()
            compile_all = (
                enable(lambda graph: torch.compile(graph, backend="eager"))
                if step >= begin
                else contextlib.nullcontext()
            )
            with compile_all:
                loss_of(model).backward()
            expected.append(by_hand(model))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
    if begin:
        rows = recorded(tmp_path / "run")
        lost: Extremes = {"grad_min": None, "grad_max": None}
        expected[begin] = {
            name: row | lost if rows[begin, name]["grad_min"] is None else row for name, row in expected[begin].items()
        }
    assert_rows(tmp_path / "run", expected)


def test_the_compiler_takes_nothing_of_the_tracer_for_the_loops(tmp_path: Path) -> None:
    """A whole compiled step is compiled once, and of the tracer's own code nothing is."""

    def compiled_step() -> Callable[[torch.Tensor], None]:
        model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(10)))
        optimizer = sgd(model)
        models.append(model)

        @torch.compile(backend=BACKEND)
        def step(inputs: torch.Tensor) -> None:
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()

        return step

    models: list[nn.Module] = []
    step = compiled_step()
    with (
        tracer.attach(models[0], tmp_path / "run"),
        torch._dynamo.config.patch(error_on_recompile=True),
    ):
        for _ in range(3):
            step(torch.randn(4, 6))
    assert steps(tmp_path / "run") == [0, 1, 2]
    compiled = [code for code in (seen() for seen in torch._dynamo.convert_frame.input_codes.seen) if code is not None]
    assert any(code.co_name == "step" for code in compiled)
    ours = str(Path(tracer.__file__).parent)
    assert not [code for code in compiled if code.co_filename.startswith(ours)]


def gradient_of(extremes: Extremes) -> Extremes:
    """A row's gradient columns."""
    return {name: extremes[name] for name in ("grad_min", "grad_max")}


def test_a_functional_call_with_the_models_own_parameters_is_recorded(tmp_path: Path) -> None:
    """Where torch.func calls the model with the parameters that it has, their gradients are recorded as ever."""
    model = mlp()
    optimizer = sgd(model)
    own: dict[str, torch.Tensor] = dict(model.named_parameters())
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            optimizer.zero_grad()
            torch.func.functional_call(model, own, torch.randn(4, 6)).square().mean().backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


def test_a_functional_call_with_other_parameters_records_nothing(tmp_path: Path) -> None:
    """Training tensors in the parameters' place, or torch.func.grad over them, leaves the traced model's rows alone."""
    model = mlp()
    optimizer = sgd(model)
    others = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    inner = torch.optim.SGD(others.values(), lr=0.1)

    def loss_with(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        loss: torch.Tensor = torch.func.functional_call(model, parameters, torch.randn(4, 6)).square().mean()
        return loss

    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            loss_with(others).backward()
            inner.step()
            assert set(torch.func.grad(loss_with)(others)) == set(others)
            optimizer.step()
    assert_rows(tmp_path / "run", expected)
    assert events(tmp_path / "run", "replaced") == []


def test_only_other_parameters_leave_no_row(tmp_path: Path) -> None:
    """A run in which the traced parameters themselves never had a gradient has no rows."""
    model = mlp()
    others = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    with tracer.attach(model, tmp_path / "run"):
        torch.func.functional_call(model, others, torch.randn(4, 6)).square().mean().backward()
        torch.optim.SGD(others.values(), lr=0.1).step()
    assert recorded(tmp_path / "run") == {}


def pickled(model: nn.Module) -> nn.Module:
    """The model through pickle."""
    restored: nn.Module = pickle.loads(pickle.dumps(model))
    return restored


def saved(model: nn.Module) -> nn.Module:
    """The model through a checkpoint file of the whole model."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    restored: nn.Module = torch.load(file, weights_only=False)
    return restored


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_a_copy_of_a_traced_model_is_not_traced(copied: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    """A copy has the same weights and no hook, and training it counts no step and changes no row."""
    model = mlp()
    optimizer = sgd(model)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            other = copied(model)
            assert hooks_on(other) == 0
            assert hooks_on(model) == 4
            torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
            loss_of(other).backward()
            sgd(other).step()
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


def test_a_copy_of_a_traced_model_may_be_traced_itself(tmp_path: Path) -> None:
    """A deep copy is another model, with a run of its own beside the first one."""
    model = mlp()
    with tracer.attach(model, tmp_path / "first"):
        other = copy.deepcopy(model)
        with tracer.attach(other, tmp_path / "second"):
            expected_second = train(other, other, 2)
        expected_first = train(model, model, 3)
    assert_rows(tmp_path / "first", expected_first)
    assert_rows(tmp_path / "second", expected_second)


def test_a_moving_average_is_not_traced(tmp_path: Path) -> None:
    """An averaged model, which copies the traced one and follows it at every step, adds nothing to the run."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run"):
        average = torch.optim.swa_utils.AveragedModel(model)
        optimizer = sgd(model)
        expected = []
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            optimizer.step()
            average.update_parameters(model)
            loss_of(average).backward()
    assert hooks_on(average.module) == 0
    assert_rows(tmp_path / "run", expected)


def test_a_state_dict_is_that_of_the_untraced_model(tmp_path: Path) -> None:
    """Tracing adds no key and no attribute to what is stored, and what was stored loads into a plain model."""
    model, plain = mlp(), mlp()
    keys, attributes = list(model.state_dict()), set(vars(model))
    file = io.BytesIO()
    with tracer.attach(model, tmp_path / "run"):
        train(model, model, 2)
        torch.save(model.state_dict(), file)
        assert list(model.state_dict()) == keys
        assert set(vars(model)) == attributes
    file.seek(0)
    plain.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(plain.state_dict(), model.state_dict(), rtol=0, atol=0)
