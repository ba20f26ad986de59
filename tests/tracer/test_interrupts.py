"""A signal handler that closes the trace, wherever it interrupts the training."""

import sys
from itertools import count
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tests.tracer.test_hooks import hooks_on
from tests.training import loss_of, mlp, set_daemons
from tracer.log.ranks import state
from tracer.log.store import Local as Path

pytestmark = pytest.mark.slow

# The modules that run in the training's thread.
_MODULES = {"hooks", "recorder", "record", "clock", "rows", "outbox", "activations", "trace", "items", "budget"}


class Interruption:
    """Closes a trace at the N-th line that the tracer runs in this thread, as a handler of a signal would."""

    def __init__(self, place: int, trace: tracer.Trace) -> None:
        self._left = place
        self._trace = trace

    @property
    def came(self) -> bool:
        """Whether there are so many lines."""
        return self._left <= 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        """The trace function of a thread: see ``sys.settrace``."""
        module = frame.f_globals.get("__name__", "")
        if module.removeprefix("tracer.") not in _MODULES or self.came:
            return None
        self._left -= event == "line"
        if self.came:
            self._trace.close()
        return self


def trained(model: nn.Module, trace: tracer.Trace, interruption: Interruption | None = None) -> list[bytes]:
    """Train a little, with all that a loop calls; the weights at the end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = sys.gettrace()
    sys.settrace(interruption or before)
    try:
        for step in range(3):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)
            if step == 1 and trace.state_dict() and not (interruption and interruption.came):
                try:
                    trace.load_state_dict({"step": 1})
                except RuntimeError as error:
                    # It came between the question and the call, which says so, as of every closed trace.
                    if interruption is None or not interruption.came or "is closed" not in str(error):
                        raise
    finally:
        sys.settrace(before)
    return [parameter.detach().numpy().tobytes() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("options", "every_place"),
    [
        ({}, 3),
        ({"every": 2, "applied": True}, 11),
        ({"stats": ("mean", "histogram"), "histogram_every": 1, "activations": True, "budget": 0.5}, 13),
    ],
    ids=["plain", "every", "everything"],
)
def test_closing_from_a_signal_handler_raises_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], every_place: int
) -> None:
    """Neither close nor the interrupted training raises or warns; the run is closed, and the model has no hook left."""
    set_daemons(monkeypatch, tick_seconds=0.005)
    weights: list[bytes] = []
    for place in count(1, every_place):
        torch.manual_seed(0)
        model = mlp()
        path = tmp_path / f"run-{place}"
        trace = tracer.attach(model, path, **options)
        interruption = Interruption(place, trace)
        after = trained(model, trace, interruption)
        trace.close()
        if not interruption.came:
            break
        assert after == (weights := weights or after)
        assert state(path) == "closed"
        assert hooks_on(model) == 0, place
    assert place > 300
