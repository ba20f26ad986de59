"""The event ``order``: in which order the gradients of the first measured step arrived."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import tracer
from tests.training import events, loss_of, mlp, recorded
from tracer.hooks import ParamHook
from tracer.recorder import Recorder


class Crossed(nn.Module):
    """A model whose parameters are used in another order than that in which they are declared."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.unused = nn.Parameter(torch.ones(2))
        self.first = nn.Linear(6, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The last layer of the first."""
        result: torch.Tensor = self.last(torch.tanh(self.frozen(self.first(x))))
        return result


def arrivals(model: nn.Module) -> list[str]:
    """The oracle: a list that hooks of the test's own fill, parameter by parameter, as gradients arrive."""
    heard: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: heard.append(name))
    return heard


def train(model: nn.Module, path: Path, steps: int = 3, backwards: int = 1, **options: Any) -> None:
    """A plain loop, each update after so many backwards."""
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    with tracer.attach(model, path, **options):
        for _ in range(steps):
            optimizer.zero_grad()
            for _ in range(backwards):
                loss_of(model).backward()
            optimizer.step()


def orders(path: Path) -> list[tuple[int, list[str]]]:
    """The step and the names of each event ``order``."""
    found = events(path, "order")
    assert all(param is None for _, param, _ in found)
    return [(step, json.loads(detail)) for step, _, detail in found]


@pytest.mark.parametrize("make", [mlp, Crossed])
@pytest.mark.parametrize("backwards", [1, 3])
def test_the_order_is_that_of_the_first_backward(tmp_path: Path, make: Callable[[], nn.Module], backwards: int) -> None:
    """It is written once, holds what has a gradient and nothing else, and is autograd's own order."""
    model = make()
    heard = arrivals(model)
    train(model, tmp_path / "run", backwards=backwards)
    first = list(dict.fromkeys(heard))
    assert orders(tmp_path / "run") == [(0, first)]
    assert heard == first * backwards * 3
    # Model order it is not, and that is the point.
    assert first != [name for name, _ in model.named_parameters()]


def test_a_later_backward_adds_what_the_first_did_not_reach(tmp_path: Path) -> None:
    """Of several backwards in a step each parameter counts where its gradient arrived first."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run"):
        loss_of(lambda x: model[2](torch.ones(1, 8) * x.sum())).backward()
        heard = arrivals(model)
        loss_of(model).backward()
        optimizer.step()
    ((step, order),) = orders(tmp_path / "run")
    assert (step, set(order[:2]), set(order[2:])) == (0, {"2.weight", "2.bias"}, {"0.weight", "0.bias"})
    assert order[2:] == [name for name in heard if name.startswith("0")]


def test_it_is_that_of_the_first_step_that_is_measured(tmp_path: Path) -> None:
    """With ``every=3`` a run that goes on at step 4 notes the order at step 6, once more for its attempt."""
    model = mlp()
    heard = arrivals(model)
    train(model, tmp_path / "run", steps=4, every=3)
    train(model, tmp_path / "run", steps=8, every=3, resume=True)
    assert orders(tmp_path / "run") == [(0, heard[:4]), (6, heard[:4])]
    assert sorted({step for step, _ in recorded(tmp_path / "run")}) == [0, 3, 6, 9]


def test_what_arrived_before_the_first_measured_step_is_not_in_it(tmp_path: Path) -> None:
    """Where a run goes on between two measured steps, the gradients until the next one say nothing of its order."""
    model = mlp()
    train(model, tmp_path / "run", steps=4, every=3)
    heard = arrivals(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", every=3, resume=True):
        for parts in (model[:1], model[:1], model):
            heard.clear()
            loss_of(parts).backward()
            optimizer.step()
    assert orders(tmp_path / "run")[1:] == [(6, heard)]
    assert heard[0].startswith("2.")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_has_the_order_of_its_own_backward(tmp_path: Path) -> None:
    """What the compiler makes of a model may have another order, and that one is noted, under the plain names."""
    model = mlp()
    heard = arrivals(model)
    compiled: Any = torch.compile(model, backend="aot_eager")
    train(compiled, tmp_path / "run", steps=1)
    assert orders(tmp_path / "run") == [(0, heard)]


def test_an_optimizer_inside_the_backward_cuts_no_order_short(tmp_path: Path) -> None:
    """Where the step ends with the first parameter's update, the gradients after it are still in the order."""
    model = mlp()
    heard = arrivals(model)
    with tracer.attach(model, tmp_path / "run"):
        for parameter in model.parameters():
            optimizer = torch.optim.SGD([parameter], lr=0.1)
            parameter.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
        for _ in range(2):
            loss_of(model).backward()
    assert orders(tmp_path / "run") == [(0, heard[:4])]


def test_a_checkpoint_with_a_backward_of_its_own_is_in_the_order(tmp_path: Path) -> None:
    """A reentrant checkpoint runs a backward inside the backward; its parameters stand where they arrived."""
    model = mlp()
    heard = arrivals(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run"):
        inputs = torch.randn(4, 6, requires_grad=True)
        checkpoint(lambda x: model(x), inputs, use_reentrant=True).square().mean().backward()
        optimizer.step()
    assert orders(tmp_path / "run") == [(0, heard)]


def test_a_loop_that_ends_its_steps_itself_has_an_order(tmp_path: Path) -> None:
    """With ``trace.step()`` it is the order of the step that the first call ends."""
    model = mlp()
    heard = arrivals(model)
    with tracer.attach(model, tmp_path / "run") as trace:
        for _ in range(2):
            loss_of(model).backward()
            trace.step()
    assert orders(tmp_path / "run") == [(0, heard[:4])]


def test_a_run_without_a_gradient_has_no_order(tmp_path: Path) -> None:
    """Nothing is written where nothing arrived."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run"):
        optimizer.step()
    assert orders(tmp_path / "run") == []


def test_once_it_is_known_hooks_record_by_themselves_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second step on a backward reports one gradient to the recorder, as before, and not each."""
    reported: list[int] = []
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = Recorder.on_gradient

    def on_gradient(self: Recorder, hook: ParamHook, tensor: torch.Tensor) -> None:
        reported[-1] += 1
        plain(self, hook, tensor)

    monkeypatch.setattr(Recorder, "on_gradient", on_gradient)
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            reported.append(0)
            loss_of(model).backward()
            optimizer.step()
    assert reported == [4, 1, 1]
