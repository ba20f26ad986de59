"""When a step ends, and what is recorded in it.

A step is one optimizer update. Once an optimizer that holds a traced parameter has updated, the first gradient of a
later backward begins the next step; so a step may hold several backwards and several updates. A loop without a torch
optimizer ends its steps itself, with ``end_step``; from the first such call on, only these calls end steps.
"""

import threading
import time
from collections.abc import Callable

import torch

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
        self._explicit = False
        # The step's update has happened; _ended_in is the backward during which it did, if any.
        self._ended = False
        self._ended_in = _NO_BACKWARD
        self._ended_ns = 0
        # The next gradient has to look whether it begins a step.
        self._alert = True
        # Parameters without a gradient have had their values recorded, before the update could change them.
        self._swept = False
        # Indices of tensors that were first seen in this step, after their gradient may have arrived.
        self._joined: set[int] = set()
        self._warned = False
        # The engine has a thread for each device, so that two gradients can arrive at once; this is held at the border
        # of two steps alone, where one of them has to finish the old step before the other may record into the new one.
        self._border = threading.Lock()

    def on_gradient(self, tap: Tap, tensor: torch.Tensor) -> None:
        """Record a parameter's value and gradient; called inside backward, after the gradient was accumulated."""
        try:
            if self._alert:
                self._first_gradient()
            if not self._measuring or tap.failed:
                return
            if torch.is_grad_enabled():
                # backward(create_graph=True) runs hooks in grad mode, and a reduction with a graph would keep it alive.
                with torch.no_grad():
                    self._record(tap.index, tensor, tensor.grad)
            else:
                self._record(tap.index, tensor, tensor.grad)
        except Exception as error:
            self._give_up(tap, error)

    def before_update(self) -> None:
        """Record the values of parameters that got no gradient in this step, before the optimizer may change them."""
        if self._ended or _running_backward() != _NO_BACKWARD:
            # An update before the step's first gradient (LBFGS calls its closure later), or inside its backward.
            return
        self._sweep()

    def after_update(self) -> None:
        """The step ends with this update, unless the loop ends its steps itself."""
        if not self._explicit:
            # In this order: a gradient that arrives meanwhile must not take this backward for a later one.
            self._ended_in = _running_backward()
            self._ended_ns = time.time_ns()
            self._ended = True
            self._alert = True

    def end_step(self) -> None:
        """End the step now, on the user's word; the next gradient, or the next call, begins the next one."""
        with self._border:
            if self._explicit and self._ended:
                self._next_step()
            self._explicit = True
            self._sweep()
            self._ended_in = _NO_BACKWARD
            self._ended_ns = time.time_ns()
            self._ended = True
            self._alert = True

    def finish(self) -> None:
        """Emit the last step, if any gradient or update belongs to it."""
        with self._border:
            if self._ended or self._buffer.recorded:
                self._take()

    def _first_gradient(self) -> None:
        with self._border:
            if not self._alert:
                return
            if self._ended:
                if self._ended_in != _NO_BACKWARD and self._ended_in == _running_backward():
                    return
                self._next_step()
            self._alert = False

    def _next_step(self) -> None:
        self._take()
        self.step += 1
        self._ended_ns = 0
        self._measuring = self.step % self._every == 0
        self._ended = False

    def _take(self) -> None:
        if self._measuring:
            self._sweep()
            try:
                self._emit(self._buffer.take(self.step, self._ended_ns or time.time_ns()))
            except Exception as error:
                warn(f"the rows of step {self.step} are lost: {error}")
        self._swept = False
        self._joined = set()

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
                        gradient = tap.tensor.grad if tap.index in self._joined else None
                        self._record(tap.index, tap.tensor, gradient)
                    except Exception as error:
                        self._give_up(tap, error)

    def _record(self, index: int, value: torch.Tensor, gradient: torch.Tensor | None) -> None:
        try:
            self._buffer.record(index, value, gradient)
        except MisfitError:
            self._rebuild()
            self._buffer.record(index, value, gradient)

    def _rebuild(self) -> None:
        """A buffer for the parameters as they are now, with what the old one recorded in this step."""
        old, self._buffer = self._buffer, RowBuffer(self._hooks.parameters)
        with torch.no_grad():
            self._buffer.carry(old)

    def _refresh(self) -> None:
        """Follow the model where its parameters have materialised, been replaced or been unfrozen."""
        if not self._hooks.stale():
            return
        try:
            new = self._hooks.rearm()
            self._rebuild()
        except Exception as error:
            warn(f"the model's parameters have changed, and cannot be followed: {error}")
            return
        names = {parameter.name for parameter in new}
        self._joined |= {tap.index for tap in self._hooks.taps if self._hooks.parameters[tap.index].name in names}
        for parameter in new:
            tensor = parameter.tensor
            self._emit_event(event(self.step, "joined", f"{tuple(tensor.shape)} {tensor.dtype}", parameter.name))

    def _give_up(self, tap: Tap, error: Exception) -> None:
        """Go on without one parameter."""
        tap.failed = True
        name = self._hooks.parameters[tap.index].name
        message = f"{type(error).__name__}: {error}"
        self._emit_event(event(self.step, "failed", message, name))
        if not self._warned:
            self._warned = True
            warn(f"{name} is no longer traced ({message}); any further one is only named in the run's events")
