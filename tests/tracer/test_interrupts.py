"""A signal handler that closes the trace, wherever it interrupts the training."""

import sys
from itertools import count
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tests.torture import often
from tests.tracer.test_hooks import hooks_on
from tests.training import events, loss_of, mlp, set_daemons, steps
from tracer.log.ranks import state
from tracer.log.store import Local as Path

pytestmark = pytest.mark.slow

# The modules that run in the training's thread.
_MODULES = {
    *("hooks", "updates", "recorder", "record", "clock", "rows", "outbox", "activations", "trace", "items", "budget"),
    *("daemon", "threading"),
}


class Interruption:
    """Closes a trace at the N-th line that the tracer runs in this thread, as a handler of a signal would.

    Attributes:
        ended: The numbers of the steps that had ended by then.
    """

    def __init__(self, place: int, trace: tracer.Trace) -> None:
        self._left = place
        self._trace = trace
        self.ended: set[int] = set()

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
            assert state(self._trace.path) == "closed"
        return self


def trained(model: nn.Module, trace: tracer.Trace, interruption: Interruption | None = None) -> list[bytes]:
    """Train a little, with all that a loop calls, and close the trace; the weights at the end."""
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
            if interruption and not interruption.came:
                # One step is taken back below.
                interruption.ended.add(min(step, 1))
            trace.log(loss=loss)
            if step == 1 and trace.state_dict() and not (interruption and interruption.came):
                try:
                    trace.load_state_dict({"step": 1})
                except RuntimeError as error:
                    # It came between the question and the call, which says so, as of every closed trace.
                    if interruption is None or not interruption.came or "is closed" not in str(error):
                        raise
        trace.close()
    finally:
        sys.settrace(before)
    return [parameter.detach().numpy().tobytes() for parameter in model.parameters()]


@pytest.mark.parametrize(
    ("options", "every_place"),
    [
        ({}, often(11, 3)),
        ({"every": 2, "applied": True}, often(23, 11)),
        ({"stats": ("mean", "histogram"), "histogram_every": 1, "activations": True, "budget": 0.5}, often(29, 13)),
    ],
    ids=["plain", "every", "everything"],
)
def test_closing_from_a_signal_handler_raises_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], every_place: int
) -> None:
    """Neither close nor what it interrupts, even a close, raises, warns or hangs; no hook stays, no step is lost."""
    set_daemons(monkeypatch, tick_seconds=0.005)
    weights: list[bytes] = []
    for place in count(1, every_place):
        torch.manual_seed(0)
        model = mlp()
        path = tmp_path / f"run-{place}"
        trace = tracer.attach(model, path, **options)
        interruption = Interruption(place, trace)
        after = trained(model, trace, interruption)
        if not interruption.came:
            break
        assert after == (weights := weights or after)
        assert hooks_on(model) == 0, place
        rows = tracer.scan(path, attempts="all").collect()
        # Under a budget, as slow as here, only the first is sure to be measured.
        measured = range(0, 2, 2 if "budget" in options else options.get("every", 1))
        assert interruption.ended & {*measured} <= set(rows["step"]), place
        assert set(rows["span"]) <= {1}
        assert not rows.select("step", "param", "attempt").is_duplicated().any()
        assert len(events(path, "closed")) == 1
    assert place > 300


def test_attaching_to_a_model_that_another_thread_trains(tmp_path: Path) -> None:
    """Wherever in ``attach`` a step of the training comes, nothing fails, and all later steps are recorded."""
    for place in count(1, 7):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        left = place

        def step(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_globals.get("__name__") not in ("tracer.recorder", "tracer.record", "tracer.hooks"):
                return None
            left -= event == "line"
            if left == 0:
                sys.settrace(None)
                loss_of(model).backward()  # noqa: B023
                optimizer.step()  # noqa: B023
            return step

        before = sys.gettrace()
        sys.settrace(step)
        try:
            trace = tracer.attach(model, tmp_path / f"run-{place}")
        finally:
            sys.settrace(before)
        for _ in range(2):
            loss_of(model).backward()
            optimizer.step()
        trace.close()
        assert events(tmp_path / f"run-{place}", "failed") == []
        assert steps(tmp_path / f"run-{place}") in ([0, 1], [0, 1, 2], [1, 2])
        if left > 0:
            break
    assert place > 100
