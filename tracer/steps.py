"""When a step ends, and what is recorded in it.

A step is one optimizer update. Once an optimizer that holds a traced parameter has updated, the first gradient of a
later backward begins the next step; so a step may hold several backwards and several updates. Where the same optimizer
updates again without a gradient between (it calls a closure, or gradients were set by hand), that too is the next step.
A loop without a torch optimizer ends its steps itself, with ``end_step``; from the first such call on, only these calls
end steps.
"""

import threading
import time
import weakref
from collections.abc import Callable

import torch
from torch.optim.optimizer import Optimizer

from tracer.hooks import Hooks, Tap
from tracer.rows import Event, MisfitError, RowBuffer, StepRows, event
from tracer.warn import warn

# No backward is running. The id of the running one tells the backward in which an optimizer updated from a later one.
_NO_BACKWARD = -1


def _running_backward() -> int:
    return torch._C._current_graph_task_id()


class Recorder:
    """Records the extremes of each step in a buffer, and emits a step's rows when the next step begins.

    Args:
        hooks: The hooks that report to this recorder.
        every: Every how many steps to measure.
        first_step: The step to begin with.
        emit: Takes a step's rows.
        emit_event: Takes what happens to the trace.

    Attributes:
        step: The step whose gradients came last.
    """

    def __init__(
        self,
        hooks: Hooks,
        every: int,
        first_step: int,
        emit: Callable[[StepRows], None],
        emit_event: Callable[[Event], None],
    ) -> None:
        self._hooks = hooks
        self._every = every
        self._emit = emit
        self._emit_event = emit_event
        self._buffer = RowBuffer(hooks.parameters)
        self.step = first_step
        self._measuring = first_step % every == 0
        self._stopped = False
        self._explicit = False
        # The step's update has happened; _ended_in is the backward during which it did, if any.
        self._ended = False
        self._ended_in = _NO_BACKWARD
        self._ended_ns = 0
        self._updated_by: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        # The next gradient has to look whether it begins a step.
        self._alert = True
        # Parameters without a gradient have had their values recorded, before the update could change them.
        self._swept = False
        # Tensors that were first seen in this step, after their gradient may have arrived.
        self._joined: set[Tap] = set()
        self._warned = False
        # The engine has a thread for each device, so that two gradients can arrive at once; this is held at the border
        # of two steps alone, where one of them has to finish the old step before the other may record into the new one.
        # Re-entrant, since a signal handler that closes the trace may run in the thread that holds it.
        self._border = threading.RLock()

    def on_gradient(self, tap: Tap, tensor: torch.Tensor) -> None:
        """Record a parameter's value and gradient; called inside backward, after the gradient was accumulated."""
        if self._alert:
            self._at_border(self._first_gradient)
        if not self._measuring or tap.failed:
            return
        try:
            if torch.is_grad_enabled():
                # backward(create_graph=True) runs hooks in grad mode, and a reduction with a graph would keep it alive.
                with torch.no_grad():
                    self._record(tap, tensor, tensor.grad)
            else:
                self._record(tap, tensor, tensor.grad)
        except Exception as error:
            self._give_up(tap, error)

    def before_update(self, optimizer: Optimizer) -> None:
        """Record the values of parameters that got no gradient in this step, before the optimizer may change them."""
        # Inside a backward most gradients are still to come, and what gets none is not updated either.
        if _running_backward() == _NO_BACKWARD:
            self._at_border(lambda: self._before_update(optimizer))

    def after_update(self, optimizer: Optimizer) -> None:
        """The step ends with this update, unless the loop ends its steps itself."""
        if not self._explicit:
            self._updated_by.add(optimizer)
            # In this order: a gradient that arrives meanwhile must not take this backward for a later one.
            self._ended_in = _running_backward()
            self._ended_ns = time.time_ns()
            self._ended = True
            self._alert = True

    def follow_model(self) -> None:
        """Look at the model again, since an optimizer updates that holds none of the tensors that were armed."""
        self._at_border(self._follow_model)

    def end_step(self) -> None:
        """End the step now, on the user's word; the next gradient, or the next call, begins the next one."""
        self._at_border(self._end_step)

    def finish(self) -> None:
        """Emit the last step, if any gradient or update belongs to it."""
        self._at_border(lambda: self._take() if self._ended or self._buffer.recorded else None)

    def _at_border(self, action: Callable[[], None]) -> None:
        """Do what happens between two steps; where it fails, extremes are no longer recorded, and training goes on."""
        step = self.step
        try:
            with self._border:
                action()
        except Exception as error:
            if not self._stopped:
                self._stopped, self._measuring = True, False
                message = f"{type(error).__name__}: {error}"
                self._emit_event(event(step, "failed", message))
                warn(f"extremes are no longer recorded from step {step} on, metrics are ({message})")

    def _first_gradient(self) -> None:
        if not self._alert:
            return
        if self._ended:
            if self._ended_in != _NO_BACKWARD and self._ended_in == _running_backward():
                return
            self._next_step()
        self._alert = False

    def _follow_model(self) -> None:
        if self._ended:
            # No hook could see the gradients that this update is about to use: they are the next step's.
            self._next_step()
        self._refresh()

    def _before_update(self, optimizer: Optimizer) -> None:
        if self._ended and optimizer in self._updated_by:
            # The same optimizer again, and no gradient between: it calls a closure, or gradients were set by hand.
            self._next_step()
        self._sweep()

    def _end_step(self) -> None:
        if self._explicit and self._ended:
            self._next_step()
        self._explicit = True
        self._ended_in = _NO_BACKWARD
        self._ended_ns = time.time_ns()
        self._ended = True
        self._alert = True
        self._sweep()

    def _next_step(self) -> None:
        try:
            self._take()
        finally:
            self.step += 1
            self._ended = False
            self._ended_ns = 0
            self._updated_by.clear()
            self._measuring = not self._stopped and self.step % self._every == 0

    def _take(self) -> None:
        if self._measuring:
            self._sweep()
            self._emit(self._buffer.take(self.step, self._ended_ns or time.time_ns()))
        self._swept = False
        self._joined.clear()

    def _sweep(self) -> None:
        if not self._measuring or self._swept:
            return
        self._swept = True
        # A replaced parameter's hook is silent: where every gradient came, no parameter needs a look.
        if self._buffer.incomplete or self._hooks.waiting:
            self._refresh()
        if not self._buffer.incomplete:
            return
        with torch.no_grad():
            for tap in self._hooks.taps:
                if not self._buffer.present[tap.index] and not tap.failed:
                    try:
                        self._record(tap, tap.tensor, tap.tensor.grad if tap in self._joined else None)
                    except Exception as error:
                        self._give_up(tap, error)

    def _record(self, tap: Tap, value: torch.Tensor, gradient: torch.Tensor | None) -> None:
        try:
            self._buffer.record(tap.index, value, gradient)
        except MisfitError:
            with self._border:
                self._rebuild()
            self._buffer.record(tap.index, value, gradient)

    def _rebuild(self) -> None:
        """A buffer for the parameters as they are now, with what the old one recorded in this step."""
        buffer = RowBuffer(self._hooks.parameters)
        with torch.no_grad():
            buffer.carry(self._buffer)
        self._buffer = buffer

    def _refresh(self) -> None:
        """Follow the model where its parameters have materialised, been replaced or been unfrozen."""
        if not self._hooks.stale():
            return
        known = set(self._buffer.layout.names)
        new = self._hooks.rearm()
        self._rebuild()
        self._joined.update(new)
        for tap in new:
            name = self._hooks.parameters[tap.index].name
            kind = "replaced" if name in known else "joined"
            self._emit_event(event(self.step, kind, f"{tuple(tap.tensor.shape)} {tap.tensor.dtype}", name))

    def _give_up(self, tap: Tap, error: Exception) -> None:
        """Go on without one parameter."""
        tap.failed = True
        name = self._hooks.parameters[tap.index].name
        message = f"{type(error).__name__}: {error}"
        self._emit_event(event(self.step, "failed", message, name))
        if not self._warned:
            self._warned = True
            warn(f"{name} is no longer traced ({message}); any further one is only named in the run's events")
