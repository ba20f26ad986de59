"""``attach(every=k)``: of the steps that are not measured only their number is known, and that exactly."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import tracer
from tests.torture import often
from tests.training import extremes_of, metric, recorded
from tracer.warn import TracerWarning

_BACKWARDS = ("a", "b", "ab")
_OPTIMIZERS = ("a", "b", "ab", "foreign")
_ACTIONS = st.one_of(
    st.tuples(st.just("backward"), st.sampled_from(_BACKWARDS)),
    st.tuples(st.just("update"), st.sampled_from(_OPTIMIZERS)),
    st.tuples(st.sampled_from(["log", "closure", "replace", "freeze", "by hand"]), st.just("")),
)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """What an optimizer updates."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class Loop:
    """A model of two parts with optimizers for each, for both and for something else, driven action by action."""

    def __init__(self, inside: bool) -> None:
        torch.manual_seed(0)
        self.parts = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        other = nn.Linear(2, 2)
        holders = {"a": self.parts["a"], "b": self.parts["b"], "ab": self.parts, "foreign": other}
        self.optimizers = {name: torch.optim.SGD(held.parameters(), lr=0.1) for name, held in holders.items()}
        other(torch.ones(1, 2)).sum().backward()
        if inside:
            for parameter in self.parts["b"].parameters():
                optimizer = torch.optim.SGD([parameter], lr=0.1)
                parameter.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
        self.known = set(self.parts.parameters())
        self.logged = 0
        self.looked_at = False

    def backward(self, which: str) -> torch.Tensor:
        """Gradients for one part or both."""
        loss: torch.Tensor = sum(
            (self.parts[part](torch.randn(2, 3)).square().mean() for part in which), torch.zeros(())
        )
        if loss.requires_grad:
            loss.backward()
        return loss

    def closure(self) -> float:
        """What an optimizer calls for gradients."""
        self.optimizers["ab"].zero_grad()
        return self.backward("ab").item()

    def replace(self) -> None:
        """Another bias for the first part, known to its optimizers: not while its gradient waits to be used.

        Nor within a step whose parameters were looked at already, for an update that turned out to be none: a gradient
        that the new bias gets in this step is seen in the next one, if that is measured.
        """
        old = self.parts["a"].bias
        if old.grad is not None or self.looked_at:
            return
        new = nn.Parameter(torch.randn(3))
        self.parts["a"].bias = new
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["params"] = [new if held is old else held for held in group["params"]]

    def act(self, trace: tracer.Trace, action: str, which: str) -> None:
        """Do one thing."""
        match action:
            case "backward":
                self.backward(which)
            case "update":
                if which != "foreign":
                    self.looked_at = all(parameter.grad is None for parameter in parameters_of(self.optimizers[which]))
                self.optimizers[which].step()
                self.optimizers[which].zero_grad()
            case "closure":
                self.optimizers["ab"].step(self.closure)
                self.looked_at = False
            case "replace":
                self.replace()
            case "freeze":
                weight = self.parts["b"].weight
                weight.requires_grad_(not weight.requires_grad)
            case "by hand":
                # One that has come in since is left out: whether its gradient arrived before it was first seen, or was
                # set by hand, nobody can tell, and when it is first seen depends on which steps are measured.
                for parameter in self.parts.parameters():
                    if parameter.grad is None and parameter in self.known:
                        parameter.grad = torch.randn(parameter.shape)
        trace.log(at=self.logged)
        self.logged += 1


def rows_and_metrics(
    every: int, inside: bool, actions: Sequence[tuple[str, str]]
) -> tuple[dict[tuple[int, str], dict[str, float | None]], list[tuple[int, float]], list[int]]:
    """What a run of these actions records, and what checkpoints after each of them would say."""
    loop = Loop(inside)
    saved = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with warnings.catch_warnings(), tracer.attach(loop.parts, path, every=every) as trace:
            # Some of these loops never update.
            warnings.filterwarnings("ignore", "gradwatch: several backwards", TracerWarning)
            for action, which in actions:
                loop.act(trace, action, which)
                saved.append(trace.state_dict()["step"])
        return {key: extremes_of(row) for key, row in recorded(path).items()}, metric(path, "at"), saved


@pytest.mark.slow
@settings(max_examples=often(40, 100))
@example(2, False, [("closure", ""), ("backward", "a"), ("update", "foreign"), ("backward", "a")])
@example(2, False, [("backward", "a"), ("update", "a"), ("backward", "a"), ("update", "foreign"), ("closure", "")])
@given(every=st.integers(2, 4), inside=st.booleans(), actions=st.lists(_ACTIONS, max_size=30))
def test_every_measures_what_would_have_been_measured_anyway(
    every: int, inside: bool, actions: list[tuple[str, str]]
) -> None:
    """Whatever a loop does, steps are counted as with every=1, and the rows are those of each k-th step."""
    rows, metrics, saved = rows_and_metrics(1, inside, actions)
    some, same_metrics, same_saved = rows_and_metrics(every, inside, actions)
    assert (same_metrics, same_saved) == (metrics, saved)
    assert some == {(step, param): row for (step, param), row in rows.items() if step % every == 0}


def test_an_optimizer_that_calls_its_parents_step_updates_once(tmp_path: Path) -> None:
    """Where torch hooks both a step and the one that it calls, an update is one step, measured or not."""

    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    model = nn.Linear(2, 2)
    # From the first instance of a class on, its step calls hooks.
    torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = Own(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", every=4) as trace:
        for number in range(10):
            model(torch.ones(1, 2)).sum().backward()
            trace.log(at=number)
            optimizer.step()
            optimizer.zero_grad()
    assert metric(tmp_path / "run", "at") == [(number, number) for number in range(10)]
