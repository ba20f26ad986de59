"""Training is untouched: with every optimizer, precision and option, each bit is as without a trace."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tests.faults.injection import bits, weights
from tests.torture import often
from tests.training import steps

STEPS = often(6, 100)
Figures = Callable[..., None]
EVERYTHING = ("mean", "std", "norm", "absmax", "zeros", "nonfinite", "smallest", "histogram")
Optimize = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimize] = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "sgd fused": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda ps: torch.optim.Adam(ps, amsgrad=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, foreach=False),
    "adamw foreach": lambda ps: torch.optim.AdamW(ps, foreach=True),
    "adamw fused": lambda ps: torch.optim.AdamW(ps, fused=True),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.05),
    "adadelta": lambda ps: torch.optim.Adadelta(ps),
    "adamax": lambda ps: torch.optim.Adamax(ps),
    "nadam": lambda ps: torch.optim.NAdam(ps),
    "radam": lambda ps: torch.optim.RAdam(ps),
    "asgd": lambda ps: torch.optim.ASGD(ps),
    "rprop": lambda ps: torch.optim.Rprop(ps),
    "lbfgs": lambda ps: torch.optim.LBFGS(ps, lr=0.1, max_iter=4),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "every": {"every": 3},
    "budget": {"budget": 0.01},
    "fold": {"fold": 4},
    "params": {"params": r"weight"},
    "stats": {"stats": EVERYTHING, "histogram_every": 1, "bins": 7},
    "applied": {"applied": True},
    "update": {"update": True, "update_every": 1},
    "slices": {"slices": "weight", "applied": True},
    "activations": {"activations": True},
    "total_steps": {"total_steps": 1000},
    "all": {
        "fold": 2,
        "params": lambda name: True,
        "stats": EVERYTHING,
        "histogram_every": 2,
        "bins": 3,
        "applied": True,
        "update": True,
        "update_every": 2,
        "activations": r"0|1",
        "total_steps": 6,
    },
}


class Net(nn.Sequential):
    """A network with everything that has a state of its own: running averages, dropout, an unused parameter."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 3))
        self.unused = nn.Parameter(torch.randn(2))


class Complex(nn.Module):
    """A complex parameter beside a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.wave = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The product's magnitude."""
        return torch.view_as_real(inputs.to(torch.complex64) @ self.wave).square().sum(-1) + self.bias


def trained(
    path: Path | None,
    build: Callable[[], nn.Module] = Net,
    optimize: Optimize = OPTIMIZERS["sgd"],
    dtype: torch.dtype = torch.float32,
    scaled: bool = False,
    **options: Any,
) -> list[bytes]:
    """Every bit of model, gradients and optimizer after a training, and of the random numbers that come next."""
    torch.manual_seed(5)
    model = build() if build is Complex else build().to(dtype)
    optimizer = optimize(iter(model.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2) if scaled else None
    if path is not None and scaler is not None:
        options["scaler"] = scaler
    with nullcontext() if path is None else tracer.attach(model, path, **options) as trace:
        for step in range(STEPS):

            def closure(step: int = step) -> torch.Tensor:
                optimizer.zero_grad()
                inputs = torch.randn(5, 6).to(dtype)
                # An infinity has the scaler skip its step.
                loss: torch.Tensor = model(inputs * torch.inf if scaled and step == 3 else inputs).square().mean()
                (loss if scaler is None else scaler.scale(loss)).backward()
                return loss

            if isinstance(optimizer, torch.optim.LBFGS):
                loss = optimizer.step(closure)
            elif scaler is not None:
                loss = closure()
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                scaler.step(optimizer)
                scaler.update()
            else:
                loss = closure()
                optimizer.step()
            if trace is not None:
                trace.log(loss=loss)
                if "stats" in options:
                    trace.snapshot()
    if path is not None:
        assert steps(path), "nothing was traced"
    gradients = [torch.zeros(0) if each.grad is None else each.grad for each in model.parameters()]
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return [*weights(model), *map(bits, gradients), *map(bits, states), bits(torch.get_rng_state())]


def assert_same(traced: list[bytes], plain: list[bytes], figures: Figures) -> None:
    """A training that was traced is bit for bit the one that was not."""
    differ = sum(one != other for one, other in zip(traced, plain, strict=True))
    figures(trainings_compared=1, steps=STEPS, tensors_compared=len(plain), tensors_that_differ=differ)
    assert traced == plain


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_with_every_optimizer(optimizer: str, tmp_path: Path, figures: Figures) -> None:
    """Weights, buffers, gradients, the optimizer's state and the random numbers are bit for bit the same."""
    optimize = OPTIMIZERS[optimizer]
    everything = OPTIONS["all"]
    traced = trained(tmp_path / "run", optimize=optimize, **everything)
    assert_same(traced, trained(None, optimize=optimize), figures)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw foreach"])
def test_in_every_precision(optimizer: str, dtype: torch.dtype, tmp_path: Path, figures: Figures) -> None:
    """In each dtype that a CPU trains in, likewise."""
    optimize = OPTIMIZERS[optimizer]
    traced = trained(tmp_path / "run", optimize=optimize, dtype=dtype, **OPTIONS["all"])
    assert_same(traced, trained(None, optimize=optimize, dtype=dtype), figures)


def test_with_complex_parameters(tmp_path: Path, figures: Figures) -> None:
    """Likewise, real and imaginary parts."""
    traced = trained(tmp_path / "run", Complex, **{**OPTIONS["all"], "activations": True})
    assert_same(traced, trained(None, Complex), figures)


@pytest.mark.parametrize("option", OPTIONS)
def test_with_every_option_of_attach(option: str, tmp_path: Path, figures: Figures) -> None:
    """Whatever is recorded, and however often."""
    assert_same(trained(tmp_path / "run", **OPTIONS[option]), trained(None), figures)


@pytest.mark.parametrize("option", ["nothing", "every", "applied", "all"])
def test_with_a_scaler(option: str, tmp_path: Path, figures: Figures) -> None:
    """Likewise with a GradScaler that skips a step, and gradients that are unscaled and clipped."""
    traced = trained(tmp_path / "run", scaled=True, **OPTIONS[option])
    assert_same(traced, trained(None, scaled=True), figures)
