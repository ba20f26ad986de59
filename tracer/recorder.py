"""What is recorded of a step: its buffer, what no hook saw, histograms, and parameters that fail."""

import json
import threading
import time
import weakref
from collections.abc import Callable

import torch
from torch.optim.optimizer import Optimizer

from tracer.amp import LossScale, deferred, driven_by_scaler
from tracer.budget import Budget
from tracer.clock import NO_BACKWARD, Phase, StepClock
from tracer.hooks import Hooks, ParamHook
from tracer.items import Metric, Number, Update, event, number
from tracer.outbox import Outbox
from tracer.rows import Histograms, MisfitError, RowBuffer
from tracer.settings import Settings
from tracer.warn import in_short, warn

# So many backwards without an update are taken for a loop that updates by other means. Rather a late word than one to
# somebody who accumulates gradients for long.
_BACKWARDS_WITHOUT_UPDATE = 1000


def running_backward() -> int:
    """The id of the backward that runs in this thread, or -1."""
    return torch._C._current_graph_task_id()


class Recorder:
    """Records the statistics of each step in a buffer, and emits a step's rows when the next step begins.

    Args:
        hooks: The hooks that report to this recorder.
        settings: What to record.
        first_step: The step to begin with.
        loss_scale: The ``GradScaler`` of the loop, if it has one.
        budget: What says how often to measure, instead of the settings.

    Attributes:
        measured: How many steps have been recorded.
    """

    def __init__(
        self,
        hooks: Hooks,
        settings: Settings,
        first_step: int,
        loss_scale: LossScale | None,
        budget: Budget | None,
    ) -> None:
        self._hooks = hooks
        self._settings = settings
        self._loss_scale = loss_scale
        self._budget = budget
        self._stride = settings.every if budget is None else budget.stride
        self._outbox: Outbox
        self._buffer = self._new_buffer()
        self._histograms = Histograms(settings.bins)
        self._histogrammed = -1
        self._clock = StepClock(first_step, self._leave)
        self.measured = 0
        self._stopped = False
        # The step for which it was decided what to measure.
        self._chosen = first_step
        # The step of which everything has been emitted; Ctrl-C may have come before the next one began.
        self._taken: int | None = None
        # Whether a GradScaler that was not given may drive an optimizer, and those that have been asked.
        self._look_for_scaler = loss_scale is None
        self._asked: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        # The next gradient has to look whether it begins a step.
        self._alert = True
        # Parameters without a gradient have had their values recorded, before the update could change them.
        self._swept = False
        # Tensors that were first seen in this step, after their gradient may have arrived.
        self._joined: set[ParamHook] = set()
        self._unended: _Unended | None = _Unended()
        # The parameters whose gradients arrived in the first measured step, in that order; None once it was emitted.
        self._order: dict[str, None] | None = {}
        self._paused = False
        self._warned = False
        # The engine has a thread for each device, so that two gradients can arrive at once; this is held at the border
        # of two steps alone, where one of them has to finish the old step before the other may record into the new one.
        # Re-entrant, since a signal handler that closes the trace may run in the thread that holds it.
        self._border = threading.RLock()
        self._choose_what_to_measure()
        if budget is not None:
            # All that a training's thread does in here, step by step, but for the gradients' hooks.
            self.before_update = budget.billed(self.before_update)  # type: ignore[method-assign]
            self.after_update = budget.billed(self.after_update)  # type: ignore[method-assign]
            self.end_step = budget.billed(self.end_step)  # type: ignore[method-assign]

    @property
    def step(self) -> int:
        """The step whose gradients came last."""
        clock = self._clock
        return clock.step + 1 if clock.ended and self._hooks.noted else clock.step

    @property
    def next_step(self) -> int:
        """How many steps have ended; the one to which a training forward belongs that runs now."""
        return self._clock.step + 1 if self._clock.ended or self._skipped() else self._clock.step

    def arm(self, outbox: Outbox) -> None:
        """Set the hooks: from now on they report to this recorder, which puts what it records into the outbox."""
        self._outbox = outbox
        self._hooks.arm(self, None if self._budget is None else self._budget.billed)
        self._lend()

    def measures(self, step: int) -> bool:
        """Whether a step is measured: this one, or after its end the next one."""
        return not self._stopped and step % self._stride == 0

    @property
    def _idle(self) -> bool:
        """Whether neither this step is measured, nor its gradients reported."""
        return not (self._measuring or self._hooks.reporting)

    def on_gradient(self, hook: ParamHook, tensor: torch.Tensor) -> None:
        """Record a parameter's value and gradient; called inside backward, after the gradient was accumulated."""
        if self._alert or (self._loss_scale is not None and self._clock.backward != running_backward()):
            if self._pauses():
                return
            self._at_border(lambda: self._first_gradient(hook))
            if self._order is not None and self._measuring and not hook.failed:
                self._order[self._hooks.parameters[hook.index].name] = None
        if not self._measuring or hook.failed:
            return
        try:
            if torch.is_grad_enabled():
                # backward(create_graph=True) runs hooks in grad mode, and a reduction with a graph would keep it alive.
                with torch.no_grad():
                    self._record(hook, tensor, tensor.grad)
            else:
                self._record(hook, tensor, tensor.grad)
        except Exception as error:
            self._give_up(hook, error)

    def before_update(self, optimizer: Optimizer, closure: bool) -> None:
        """Record the values of parameters that got no gradient in this step, before the optimizer may change them."""
        # Gradients were set by hand, perhaps: whether this update is another step can be said now, and not after it.
        again = not self._hooks.noted and self._clock.repeats(id(optimizer))
        if (closure or again or not self._idle) and not self._pauses():
            self._at_border(lambda: self._before_update(optimizer, closure))

    def after_update(self, optimizer: Optimizer, closure: bool) -> None:
        """The step ends with this update, unless the loop ends its steps itself."""
        try:
            if self._idle and self._ends_another(optimizer):
                return
        except Exception as error:
            self._stop(self._clock.step, error)
        if not self._pauses():
            self._at_border(lambda: self._after_update(optimizer, closure))

    def _ends_another(self, optimizer: Optimizer) -> bool:
        """Count a step at once, if nothing is recorded of it or of the next, and it is like the one before.

        As any other way gives the same number, this is here for its speed alone: whatever an idle step does is done
        with cold caches, which makes it five times as slow as it looks.
        """
        clock = self._clock
        if (
            not (clock.ended and self._hooks.noted and id(optimizer) in clock.updated)
            or clock.explicit
            or self.measures(clock.step + 2)
            or running_backward() != NO_BACKWARD
            or not self._hooks.holds(optimizer)
        ):
            return False
        self._hooks.noted.clear()
        if self._budget is not None:
            self._budget.end_step(measured=False)
        clock.repeat(id(optimizer))
        return True

    def end_step(self) -> None:
        """End the step now, on the user's word; the next gradient, or the next call, begins the next one."""
        self._at_border(self._end_step)

    def snapshot(self) -> None:
        """Emit the histograms of values and gradients as they are now."""
        self._at_border(self._snapshot)

    def restore(self, step: int) -> None:
        """Go on with this step, whichever it was; what was recorded of the one under way is emitted."""
        self._at_border(lambda: self._restore(step))

    def finish(self) -> None:
        """Emit the last step, if any gradient or update belongs to it."""
        self._at_border(self._finish)

    def _at_border(self, action: Callable[[], None]) -> None:
        """Do what happens between two steps; where it fails, training goes on."""
        step = self._clock.step
        try:
            with self._border:
                if self._hooks.noted:
                    self._hooks.noted.clear()
                    self._first_gradient(None)
                action()
        except Exception as error:
            self._stop(step, error)

    def _stop(self, step: int, error: Exception) -> None:
        """Record extremes no longer."""
        if not self._stopped:
            self._stopped, self._measuring, self._buffer.open = True, False, False
            message = in_short(error)
            self._outbox.put(event(step, "failed", message))
            warn(f"extremes are no longer recorded from step {step} on, metrics are ({message})")

    def _first_gradient(self, hook: ParamHook | None) -> None:
        """Begin the next step, if it is that of this gradient: the first one, as far as it is known, of a backward.

        Where gradients are only noted, it is some gradient since the last update, which is as good: of what they are
        reported for, the backward's id, the watch for the first update and a ``GradScaler``, nothing is needed there.
        """
        backward = running_backward()
        if not self._alert and self._clock.backward == backward:
            return
        skipped = not self._clock.ended and self._skipped()
        if skipped:
            self._unended = None
        if not self._clock.gradient(backward, skipped):
            return
        if self._chosen != self._clock.step:
            # Ctrl-C came where the step before was left.
            self._choose_what_to_measure()
        if hook is not None and self._unended is not None and not self._unended.saw(hook.tensor):
            self._unended = None
            self._say_unended()
        # Once the order is known, too, a hook may write by itself.
        self._alert = self._unended is not None or self._order is not None
        if not self._clock.begun or (self._loss_scale is not None and self._loss_scale.updated):
            self._begin()
        # With a loss scale each backward has to be looked at, for histograms each tensor.
        self._buffer.open = self._measuring and not self._alert and self._loss_scale is None and not self._histogramming

    def _begin(self) -> None:
        if self._loss_scale is not None:
            self._loss_scale.begin(new_step=not self._clock.begun)
        self._clock.begun = True
        if self._measuring:
            self._refresh()

    def _pauses(self) -> bool:
        """Whether what is called now becomes part of a CUDA graph, as which nothing of the tracer could be replayed."""
        try:
            if not torch.cuda.is_initialized() or not torch.cuda.is_current_stream_capturing():
                return False
        except Exception as error:
            # The device has failed, perhaps.
            self._stop(self._clock.step, error)
            return False
        if not self._paused:
            self._paused = True
            self._outbox.put(event(self._clock.step, "paused", "a CUDA graph is captured"))
            warn(_CAPTURED)
        return True

    def _skipped(self) -> bool:
        """Whether the step has ended though no optimizer has updated: the scaler found an infinity."""
        clock = self._clock
        return self._loss_scale is not None and clock.begun and not clock.explicit and self._loss_scale.skipped

    def _before_update(self, optimizer: Optimizer, closure: bool, late: bool = False) -> None:
        if self._loss_scale is not None:
            self._loss_scale.before_update(optimizer)
        if not self._hooks.holds(optimizer):
            if not self._hooks.misses(optimizer):
                return
            if self._clock.ended:
                # No hook could see the gradients that this update is about to use: they are the next step's.
                self._leave(by_gradient=False)
            self._refresh()
        self._unended = None
        # Inside a backward most gradients are still to come, and what gets none is not updated either.
        if running_backward() == NO_BACKWARD:
            if not late:
                self._clock.before_update(id(optimizer), NO_BACKWARD)
            self._sweep()
        if self._settings.applied and not closure:
            self._record_applied(optimizer)
        if self._look_for_scaler and optimizer not in self._asked:
            self._asked.add(optimizer)
            if driven_by_scaler():
                self._look_for_scaler = False
                warn(_SCALED)

    def _after_update(self, optimizer: Optimizer, closure: bool) -> None:
        if self._idle and not closure:
            # Put off until now, since nothing was to be recorded: to come here once is cheaper than twice.
            self._before_update(optimizer, closure, late=True)
        if not self._hooks.holds(optimizer):
            return
        if closure and self._settings.applied:
            # Its gradients came inside the update, and are still those that it used last.
            self._record_applied(optimizer)
        if self._loss_scale is not None:
            self._loss_scale.after_update(optimizer)
        backward = running_backward()
        if not self._clock.explicit:
            self._beware()
        if self._clock.after_update(id(optimizer), backward):
            self._ended(backward)

    def _record_applied(self, optimizer: Optimizer) -> None:
        if not self._measuring:
            return
        param_hooks = [hook for hook in self._hooks.held(optimizer) if not hook.failed]
        with torch.no_grad():
            for hook in param_hooks:
                try:
                    self._buffer.record_applied(hook.index, hook.tensor.grad)
                except Exception as error:
                    self._give_up(hook, error)
            left_to_it = deferred(optimizer)
            if left_to_it is not None:
                divisor, skipped = left_to_it
                indices = [hook.index for hook in param_hooks]
                self._buffer.note_update(Update(indices, 1.0 if divisor is None else number(divisor), number(skipped)))

    def _end_step(self) -> None:
        self._beware()
        self._clock.end_step()
        self._unended = None
        self._ended(NO_BACKWARD)
        self._sweep()

    def _beware(self) -> None:
        """Before the step ends, since Ctrl-C may come right after: the next gradient has to be looked at."""
        self._alert = True
        self._buffer.open = False

    def _ended(self, backward: int) -> None:
        """The step has ended, in the backward with this id."""
        if self._budget is not None:
            # Not before: whether gradients are reported in this step was decided by the stride until now.
            self._stride = self._budget.stride
        measured = self.measures(self._clock.step + 1)
        self._hooks.report(measured or backward != NO_BACKWARD or self._loss_scale is not None)
        if measured and not self._measuring:
            # What came into the model in a step that is not measured: its gradient there is not the next step's.
            self._refresh()

    def _restore(self, step: int) -> None:
        try:
            self._clock.restore(step, leave=self._swept)
        finally:
            self._taken = None
            self._histogrammed = -1
            self._choose_what_to_measure()
            # As before the first step: the next gradient has to be looked at, and begins this one.
            self._alert, self._buffer.open = True, False
            self._hooks.report(each=True)

    def _finish(self) -> None:
        if self._unended is not None and self._unended.backwards > 1 and not self._skipped():
            self._say_unended()
        if self._clock.phase is not Phase.EMPTY:
            self._take()

    def _leave(self, by_gradient: bool) -> None:
        """The step is over; the next one begins."""
        if by_gradient:
            # What has come into the model meanwhile may have a gradient already, which is the next step's.
            self._sweep(follow=False)
        try:
            self._take()
        finally:
            if self._budget is not None:
                self._settle(self._budget)
            self._clock.next()
            self._choose_what_to_measure()

    def _settle(self, budget: Budget) -> None:
        bill = budget.end_step(self._measuring)
        if bill is None:
            return
        self._outbox.put(Metric(self._clock.step, self._clock.ended_ns or time.time_ns(), "tracer_cost", bill.share))
        if bill.stride != bill.was:
            what = f"every {bill.was} -> every {bill.stride}: {bill.expected:.2%} of the time expected"
            self._outbox.put(event(self._clock.step, "stride", what))

    def _choose_what_to_measure(self) -> None:
        step = self._clock.step
        self._measuring = self.measures(step)
        number_due = step // self._settings.histogram_every
        self._histogramming = self._measuring and self._settings.measures.histogram and number_due != self._histogrammed
        if self._histogramming:
            self._histogrammed = number_due
        # Last, as Ctrl-C may come before.
        self._chosen = step

    def _take(self) -> None:
        if self._taken == self._clock.step:
            return
        self._taken = self._clock.step
        time_ns = self._clock.ended_ns or time.time_ns()
        scale = 1.0 if self._loss_scale is None else self._loss_scale.scale
        if self._loss_scale is not None and self._clock.begun:
            for name, value in self._loss_scale.metrics().items():
                self._outbox.put(Metric(self._clock.step, time_ns, name, value))
        if self._measuring:
            self.measured += 1
            self._sweep()
            self._outbox.put(self._buffer.take(self._clock.step, time_ns, scale))
            if self._order:
                names, self._order = list(self._order), None
                self._outbox.put(event(self._clock.step, "order", json.dumps(names)))
        if self._histogramming:
            self._emit_histograms(self._histograms, time_ns, scale)
        self._swept = False
        self._joined.clear()

    def _sweep(self, follow: bool = True) -> None:
        if not self._measuring or self._swept:
            return
        self._swept = True
        # A replaced parameter's hook is silent; its gradient may have come before the first that a hook saw.
        if follow and (self._buffer.incomplete or not self._clock.begun):
            self._refresh()
        if not self._buffer.incomplete:
            return
        with torch.no_grad():
            for hook in self._hooks.param_hooks:
                if not self._buffer.present[hook.index] and not hook.failed:
                    # Under a scaler it is not known whether that gradient has been unscaled by now.
                    known = hook in self._joined and self._loss_scale is None
                    try:
                        self._record(hook, hook.tensor, hook.tensor.grad if known else None)
                    except Exception as error:
                        self._give_up(hook, error)

    def _snapshot(self) -> None:
        histograms = Histograms(self._settings.bins)
        scaled = self._loss_scale is not None and not self._clock.ended and not self._loss_scale.unscaled
        self._refresh()
        with torch.no_grad():
            for hook in self._hooks.param_hooks:
                try:
                    histograms.collect(self._hooks.parameters[hook.index].name, hook.tensor, hook.tensor.grad)
                except Exception as error:
                    self._give_up(hook, error)
        scale = self._loss_scale.scale if self._loss_scale is not None and scaled else 1.0
        self._emit_histograms(histograms, time.time_ns(), scale)

    def _emit_histograms(self, histograms: Histograms, time_ns: int, scale: Number) -> None:
        rows = histograms.take(self._clock.step, time_ns, scale)
        if rows.blocks:
            self._outbox.put(rows)

    def _record(self, hook: ParamHook, value: torch.Tensor, gradient: torch.Tensor | None) -> None:
        try:
            self._buffer.record(hook.index, value, gradient)
        except MisfitError:
            with self._border:
                self._rebuild()
            self._buffer.record(hook.index, value, gradient)
        if self._histogramming:
            self._histograms.collect(self._hooks.parameters[hook.index].name, value, gradient)

    def _new_buffer(self) -> RowBuffer:
        return RowBuffer(self._hooks.parameters, self._settings.measures, self._settings.quantities)

    def _rebuild(self) -> None:
        """A buffer for the parameters as they are now, with what the old one recorded in this step."""
        buffer = self._new_buffer()
        with torch.no_grad():
            buffer.carry(self._buffer)
        self._buffer = buffer
        self._lend()

    def _lend(self) -> None:
        """Let hooks write into the buffer where that is all there is to do."""
        for hook in self._hooks.param_hooks:
            hook.direct = None if hook.failed else self._buffer.direct(hook.index)

    def _say_unended(self) -> None:
        warn(_UNENDED)
        self._outbox.put(event(self._clock.step, "unended", "several backwards and no update of a torch optimizer"))

    def _refresh(self) -> None:
        """Follow the model where its parameters have materialised, been replaced, added, frozen or unfrozen."""
        if not self._hooks.stale():
            return
        new, changes = self._hooks.rearm()
        names = tuple(parameter.name for parameter in self._hooks.parameters)
        # Other names, another order, or another tensor under a name.
        if names != self._buffer.layout.names or any(change.kind not in ("frozen", "unfrozen") for change in changes):
            self._rebuild()
        self._joined.update(new)
        for change in changes:
            self._outbox.put(event(self._clock.step, change.kind, change.detail, change.name))

    def _give_up(self, hook: ParamHook, error: Exception) -> None:
        """Go on without one parameter."""
        hook.failed, hook.direct = True, None
        name = self._hooks.parameters[hook.index].name
        message = in_short(error)
        self._outbox.put(event(self._clock.step, "failed", message, name))
        if not self._warned:
            self._warned = True
            warn(f"{name} is no longer traced ({message}); any further one is only named in the run's events")


_UNENDED = (
    "several backwards and no update of a torch optimizer: is optimizer.step() called? All of it is recorded as one "
    "step. If your loop updates the parameters itself, call trace.step() after each update"
)
_CAPTURED = (
    "tracing pauses while a CUDA graph is captured, and no hook is called where it is replayed: if the optimizer "
    "updates outside of the graph, steps are counted and values recorded, but no gradients"
)
_SCALED = (
    "a GradScaler drives this optimizer, so gradients are recorded as they are, multiplied by its scale: "
    "give the scaler to attach(model, scaler=scaler) to have them divided"
)


class _Unended:
    """Watches a loop until its first update, and knows when it updates without a torch optimizer."""

    def __init__(self) -> None:
        self.backwards = 0
        self._backward = NO_BACKWARD
        self._written = 0
        self._watched: torch.Tensor | None = None
        self._version = 0

    def saw(self, tensor: torch.Tensor) -> bool:
        """Whether the loop may still come to an update, now that a parameter's gradient has arrived."""
        if running_backward() != self._backward:
            self._backward = running_backward()
            self.backwards += 1
            # A parameter that is written to between two backwards, time and again, is being updated.
            self._written += tensor is self._watched and tensor._version != self._version
            self._watched, self._version = tensor, tensor._version
        return self._written < 2 and self.backwards < _BACKWARDS_WITHOUT_UPDATE
