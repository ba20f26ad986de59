"""The record of the step under way: its buffer, its histograms, and parameters that join, change or fail."""

import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence

import torch
from torch.autograd import Variable
from torch.optim.optimizer import Optimizer

from tracer.amp import deferred
from tracer.batch import CLOSED, Probation
from tracer.clock import StepClock
from tracer.engines import accumulated, keeps_gradient, reduced
from tracer.extremes import local
from tracer.hooks import Hooks, ParamHook
from tracer.items import GRADIENT, VALUE, Scale, Update, event, number
from tracer.kernel import Reducers
from tracer.outbox import Outbox
from tracer.rows import Histograms, MisfitError, RowBuffer
from tracer.settings import Settings
from tracer.warn import in_short, warn

# After so many steps in a row that could not be recorded, no further one is tried.
STEPS_TO_FAIL = 3
_CHANGED = "it was changed after its hooks were called, and before the end of the backward"


class StepRecord:
    """The numbers of the step under way, on the devices of its parameters.

    ``border`` is held while the buffer is replaced.

    Attributes:
        buffer: Holds the extremes, and further statistics.
        histogramming: Whether this step's histograms are recorded.
        histogrammed: How often histograms were due by the last step that has some; -1 before the first.
        updates_measured: Likewise, the change that updates made.
        order: The parameters whose gradients have arrived, in that order, in the first measured step; None after it.
        joined: Tensors that were first seen in this step, after their gradient may have arrived.
        captured: The gradients into which a CUDA graph writes: no hook is called where it is replayed.
    """

    def __init__(self, hooks: Hooks, settings: Settings, clock: StepClock, border: threading.RLock) -> None:
        self._hooks = hooks
        self._settings = settings
        self._clock = clock
        self._border = border
        self._outbox: Outbox
        self.buffer = self._new_buffer()
        self._histograms = Histograms(settings.bins)
        self.histogramming = False
        self.histogrammed = -1
        self._updating = False
        self.updates_measured = -1
        # What the parameters of an optimizer were before its update.
        self._before: dict[ParamHook, torch.Tensor] = {}
        self.order: dict[str, None] | None = {}
        self.joined: set[ParamHook] = set()
        self.captured: dict[ParamHook, weakref.ref[torch.Tensor]] = {}
        self._probation = Probation()
        # On a GPU this has yet to prove itself.
        self._reducers = Reducers(wanted=os.environ.get("TRACER_BATCH") == "1")
        self._warned = False
        # How many steps have been emitted.
        self._emitted = 0

    def arm(self, outbox: Outbox) -> None:
        """Put what is recorded into the outbox; before any hook is set, as another thread may be training."""
        self._outbox = outbox

    def begin(self, measuring: bool) -> None:
        """Begin a step: nothing is recorded of it yet. Decide whether its histograms are."""
        self.buffer.clear()
        times_due = self._clock.step // self._settings.histogram_every
        self.histogramming = measuring and self._settings.measures.histogram and times_due != self.histogrammed
        if self.histogramming:
            self.histogrammed = times_due
        times_due = self._clock.step // self._settings.update_every
        self._updating = measuring and self._settings.update and times_due != self.updates_measured
        if self._updating:
            self.updates_measured = times_due
        self._before.clear()

    def open(self, backward: int, end: Callable[[], None]) -> None:
        """Let the hooks of a backward write, or note, until it ends.

        Args:
            backward: Its id.
            end: To be called as it ends, if something is to be read then.
        """
        batch = self.buffer.batch
        late = self._reads_late and self._probation.begin(backward, self._emitted)
        # Until the order is known, for histograms, and where all is read twice, each gradient is reported.
        open_for_hooks = self.order is None and not self.histogramming and not self._probation.verifying
        batch.open_for, batch.noting = backward if open_for_hooks else CLOSED, late
        if late:
            Variable._execution_engine.queue_callback(end)

    @property
    def _reads_late(self) -> bool:
        """Whether something reads all gradients of a backward at its end."""
        if (error := self._reducers.error()) is not None:
            warn(f"TRACER_BATCH=1 has no effect: a kernel cannot be used ({in_short(error)})")
        return self.buffer.on_host or self._reducers.ready(self.buffer.kinds)

    def close(self) -> None:
        """Have each gradient reported."""
        self.buffer.batch.open_for = CLOSED

    def read(self, ended: bool) -> None:
        """Read what hooks have noted.

        Args:
            ended: Whether the backward has run all of its hooks.
        """
        batch, probation = self.buffer.batch, self._probation
        if not batch.notes:
            return
        verifying = probation.verifying
        if not ended:
            probation.doubt()
        if verifying and not ended:
            batch.notes.clear()
            return
        with torch.no_grad():
            if verifying:
                probation.end(self.buffer.unchanged())
                return
            changed, others = batch.read()
            for direct in others:
                hook = self._hooks.param_hooks[direct.index]
                try:
                    self.record(hook, direct.tensor, accumulated(direct.tensor))
                except Exception as error:
                    self.miss(hook, error)
        for direct in changed if ended else ():
            probation.refuse()
            self.give_up(self._hooks.param_hooks[direct.index], RuntimeError(_CHANGED))

    def arrive(self, hook: ParamHook, value: torch.Tensor, gradient: torch.Tensor | None) -> None:
        """Record a gradient that has just been accumulated, and the parameter's value; under ``torch.no_grad``."""
        self.record(hook, value, gradient)
        if self._probation.verifying and gradient is not None and hook.direct is not None and len(hook.siblings) == 1:
            hook.direct.note()

    def record(self, hook: ParamHook, value: torch.Tensor, gradient: torch.Tensor | None) -> None:
        """Record a parameter's value and its gradient, if it has one; under ``torch.no_grad``."""
        try:
            self.buffer.record(hook.index, value, gradient)
        except MisfitError:
            with self._border:
                self._rebuild()
            self.buffer.record(hook.index, value, gradient)
        if self.histogramming:
            self._histograms.collect(self._hooks.parameters[hook.index].name, value, gradient)

    def record_applied(self, optimizer: Optimizer) -> None:
        """Record the gradients that an optimizer is about to apply."""
        param_hooks = [hook for hook in self._hooks.held(optimizer) if not hook.failed]
        self._attempt(param_hooks, lambda hook: self.buffer.record_applied(hook.index, hook.tensor.grad))
        left_to_it = deferred(optimizer)
        if left_to_it is not None:
            divisor, skipped = left_to_it
            indices = [hook.index for hook in param_hooks]
            self.buffer.note_update(Update(indices, 1.0 if divisor is None else number(divisor), number(skipped)))

    def keep_values(self, optimizer: Optimizer) -> None:
        """Copy the parameters that an optimizer is about to update, in a step whose updates are measured."""
        if not self._updating:
            return
        self._before.clear()

        def keep(hook: ParamHook) -> None:
            value = local(hook.tensor)
            if value.numel():
                self._before[hook] = value.detach().clone()

        self._attempt((hook for hook in self._hooks.held(optimizer) if not hook.failed), keep)

    def record_update(self, optimizer: Optimizer) -> None:
        """Record by how much the parameters have changed since ``keep_values``."""
        before, self._before = self._before, {}

        def record(hook: ParamHook) -> None:
            self.buffer.record_update(hook.index, before[hook], local(hook.tensor).detach())

        self._attempt((hook for hook in before if hook.index >= 0 and not hook.failed), record)

    def complete(self, with_gradients: bool) -> None:
        """Record the values of parameters whose hooks were not called in this step.

        Args:
            with_gradients: Whether to record the gradients of those that joined in this step, or of a CUDA graph, too.
        """
        if not self.buffer.incomplete:
            return

        def record(hook: ParamHook) -> None:
            gradient = accumulated(hook.tensor)
            stays = hook in self.captured and self.captured[hook]() is gradient
            self.record(hook, hook.tensor, gradient if with_gradients and (stays or hook in self.joined) else None)

        silent = (hook for hook in self._hooks.param_hooks if not self.buffer.present[hook.index] and not hook.failed)
        self._attempt(silent, record)

    def add_reduced(self, optimizer: Optimizer) -> None:
        """Record the gradients that an engine has reduced since the hooks of these parameters were called."""
        called = (hook for hook in self._hooks.param_hooks if self.buffer.present[hook.index] == VALUE)
        self._attempt(called, lambda hook: self.record(hook, hook.tensor, reduced(hook.tensor, optimizer)))

    def discard(self, param_hooks: Sequence[ParamHook], scale: Scale) -> None:
        """Hand over what is recorded of these parameters apart from the step, whose gradients they are not."""
        indices = [hook.index for hook in param_hooks]
        self._outbox.put(self.buffer.discard(indices, self._clock.step, time.time_ns(), scale))
        for index in indices:
            self._histograms.forget_gradient(self._hooks.parameters[index].name)

    def emit_rows(self, time_ns: int, scale: Scale) -> None:
        """Emit the step's rows, and the first time the order of its gradients."""
        self._outbox.put(self.buffer.take(self._clock.step, time_ns, scale))
        self._emitted += 1
        if self.order:
            names, self.order = list(self.order), None
            self._outbox.put(event(self._clock.step, "order", json.dumps(names)))
            # An engine may have taken over the parameters since the trace began.
            self.lend()

    def emit_histograms(self, time_ns: int, scale: Scale, histograms: Histograms | None = None) -> None:
        """Emit the step's histograms, or these."""
        rows = (histograms or self._histograms).take(self._clock.step, time_ns, scale)
        if rows.blocks:
            self._outbox.put(rows)

    def snapshot(self, scale: Scale) -> None:
        """Emit histograms of all parameters and gradients as they are now."""
        histograms = Histograms(self._settings.bins)
        self.refresh()
        self._attempt(
            self._hooks.param_hooks,
            lambda hook: histograms.collect(
                self._hooks.parameters[hook.index].name, hook.tensor, accumulated(hook.tensor)
            ),
        )
        self.emit_histograms(time.time_ns(), scale, histograms)

    def refresh(self) -> None:
        """Follow the model where its parameters have materialised, been replaced, added, frozen or unfrozen."""
        if not self._hooks.stale():
            return
        new, changes = self._hooks.rearm()
        names = tuple(parameter.name for parameter in self._hooks.parameters)
        # Other names, another order, or another tensor under a name.
        if names != self.buffer.layout.names or any(change.kind not in ("frozen", "unfrozen") for change in changes):
            self._rebuild()
        self.joined.update(new)
        for change in changes:
            self._outbox.put(event(self._clock.step, change.kind, change.detail, change.name))

    def miss(self, hook: ParamHook, error: Exception) -> None:
        """Go on without one parameter's gradient in this step; what an earlier backward left is only a part of it."""
        if not hook.failed:
            self.buffer.present[hook.index] &= ~GRADIENT
            self.give_up(hook, error)

    def give_up(self, hook: ParamHook, error: Exception) -> None:
        """Go on without one parameter in this step, and for good after several; silently, if the trace was closed."""
        fails, last = hook.fails
        if hook.failed or last == self._emitted:
            return
        hook.fails = fails + 1 if last == self._emitted - 1 else 1, self._emitted
        hook.failed, hook.direct = hook.fails[0] == STEPS_TO_FAIL, None
        if hook.fails[0] > 1:
            return
        name = self._hooks.parameters[hook.index].name
        message = in_short(error)
        self._outbox.put(event(self._clock.step, "failed", message, name))
        if not self._warned:
            self._warned = True
            warn(
                f"step {self._clock.step} lacks numbers of {name}; after {STEPS_TO_FAIL} such steps in a row "
                f"{name} is no longer traced ({message}); the run's events name any further one"
            )

    def _attempt(self, param_hooks: Iterable[ParamHook], action: Callable[[ParamHook], None]) -> None:
        with torch.no_grad():
            for hook in param_hooks:
                try:
                    action(hook)
                except Exception as error:
                    self.give_up(hook, error)

    def _new_buffer(self) -> RowBuffer:
        return RowBuffer(self._hooks.parameters, self._settings.measures, self._settings.quantities)

    def renew(self) -> None:
        """Forget what is recorded of a step that failed."""
        self.joined.clear()
        self.buffer = self._new_buffer()
        self.lend()

    def _rebuild(self) -> None:
        """Make a buffer for the parameters as they are now, and carry over what the old one holds of this step."""
        self.read(ended=False)
        buffer = self._new_buffer()
        with torch.no_grad():
            buffer.carry(self.buffer)
        self.buffer = buffer
        self.lend()

    def lend(self) -> None:
        """Let hooks write into the buffer themselves where extremes are all that is recorded."""
        self._reducers.prepare(self.buffer.kinds)
        for hook in self._hooks.param_hooks:
            elsewhere = hook.failed or keeps_gradient(hook.tensor)
            hook.direct = None if elsewhere else self.buffer.direct(hook.index, hook.tensor, self._reducers)
