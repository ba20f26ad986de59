"""The recorder: follows a training from step to step, decides what is measured, and emits each step when it is over."""

import contextlib
import json
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TypeVarTuple

import torch
from torch.optim.optimizer import Optimizer

from tracer.amp import LossScales
from tracer.batch import CLOSED
from tracer.between import NO_UPDATE, Discards
from tracer.budget import Budget
from tracer.clock import NO_BACKWARD, Phase, StepClock
from tracer.engines import accumulated
from tracer.hooks import Hooks, ParamHook, running_backward
from tracer.items import Metric, Number, Scale, event
from tracer.outbox import Outbox
from tracer.pending import PendingMetrics
from tracer.rates import LearningRates
from tracer.record import STEPS_TO_FAIL, StepRecord
from tracer.settings import Settings
from tracer.untrained import STEPS, Untrained, in_words
from tracer.updates import has_effect, has_gradient, not_compiled, writes_to
from tracer.warn import in_short, warn

_CAPTURED = (
    "tracing pauses while a CUDA graph is captured, and no hook is called where it is replayed: if the optimizer "
    "updates outside of the graph, steps are counted, and values recorded, with the gradients that stay where they are"
)
UNREGISTERED = (
    "{optimizer} trains parameters that are not recorded: {others}. Keep layers in an nn.ModuleList or nn.ModuleDict, "
    "or trace a module that holds them all"
)
_Args = TypeVarTuple("_Args")


class Recorder:
    """Records the statistics of each step, and emits a step's rows when the next step begins.

    ``scales`` are those of the loop's ``GradScaler``s. ``budget``, if there is one, sets the stride.

    Attributes:
        measured: How many steps have been recorded.
        rates: The learning rates.
    """

    rates: LearningRates

    def __init__(
        self, hooks: Hooks, settings: Settings, first_step: int, scales: LossScales, budget: Budget | None
    ) -> None:
        self._hooks = hooks
        self._settings = settings
        self._scales = scales
        # None while no scaler is known: then gradients need not be looked at one by one.
        self._loss_scale = scales or None
        self._scaler_told = settings.scaler
        self._budget = budget
        self._stride = settings.every if budget is None else budget.stride
        self._outbox: Outbox
        self._clock = StepClock(first_step, self._leave)
        # Autograd has a thread for each device, so two gradients can arrive at once. The lock is held at the border of
        # two steps alone: one gradient ends the old step there before another may record into the new one. It is
        # re-entrant, since a signal handler that closes the trace may run in the thread that holds it.
        self._border = threading.RLock()
        self._step_record = StepRecord(hooks, settings, self._clock, self._border)
        self._record = self._step_record.arrive
        self.measured = 0
        self._stopped = False
        # The last step whose extremes were lost, and how many were in a row.
        self._lost: int | None = None
        self._lost_in_a_row = 0
        # The step of which everything has been emitted; Ctrl-C may come before the next one begins.
        self._taken: int | None = None
        # Optimizers that have updated.
        self._known: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        # The backward whose first gradient has been looked at: whether it begins a step, say.
        self._looked = CLOSED
        # Parameters without a gradient have had their values recorded, before the update could change them.
        self._swept = False
        self._discards = Discards(hooks, self._clock, self._step_record)
        self._watch = self._discards.watch
        self._pending: PendingMetrics
        self._paused = False
        # The id of the optimizer whose last unannounced update had no effect.
        self._ineffective: int | None = None
        self._untrained = Untrained()
        # How often its tensors had been written to before an update that may come to nothing.
        self._writes: int | None = None
        self._end_of_backward = self._read_notes
        self._choose_what_to_measure()
        if budget is not None:
            # With the gradients' hooks, this is all that a training's thread does in here step by step.
            self.before_update = budget.billed(self.before_update)  # type: ignore[method-assign]
            self.after_update = budget.billed(self.after_update)  # type: ignore[method-assign]
            self.end_step = budget.billed(self.end_step)  # type: ignore[method-assign]
            self._end_of_backward = budget.billed(self._read_notes)

    @property
    def step(self) -> int:
        """The step whose gradients came last, and were not discarded."""
        clock = self._clock
        if clock.ended:
            return clock.step + 1 if self._hooks.noted else clock.step
        return self._discards.step_before if self._discards.unused else clock.step

    def log(self, time_ns: int, values: Mapping[str, Number | None], metrics: Mapping[str, object]) -> None:
        """Hand over metrics of the iteration under way, once their step is known.

        Args:
            time_ns: When they were logged, in ns since 1970.
            values: Their numbers.
            metrics: The metrics themselves.
        """
        clock, pending = self._clock, self._pending
        unknown = pending or (self._discards.unused and not clock.ended)
        if not unknown and not (clock.ended and not self._hooks.noted and pending.awaits(metrics.values())):
            self._outbox.log(self.step, time_ns, values)
            return
        with self._border:
            if not pending.add(time_ns, values):
                pending.settle(self.step)

    @property
    def next_step(self) -> int:
        """How many steps have ended; a training forward that runs now belongs to this step."""
        return self._clock.step + 1 if self._clock.ended or self._skipped() else self._clock.step

    def arm(self, outbox: Outbox) -> None:
        """Set the hooks: from now on they report to this recorder, which puts what it records into the outbox."""
        self._outbox = outbox
        self._pending = PendingMetrics(outbox)
        self.rates = LearningRates(outbox)
        self._step_record.arm(outbox)
        self._hooks.arm(self, None if self._budget is None else self._budget.billed)
        self._step_record.lend()

    def measures(self, step: int) -> bool:
        """Whether a step is measured: this one, or after its end the next one."""
        return not self._stopped and step % self._stride == 0

    @property
    def _idle(self) -> bool:
        """Whether neither this step is measured, nor its gradients reported."""
        return not (self._measuring or self._hooks.reporting)

    def on_gradient(self, hook: ParamHook, tensor: torch.Tensor) -> None:
        """Record a parameter's value and gradient; called inside backward, after the gradient was accumulated."""
        try:
            if self._looked != running_backward():
                if self._pauses():
                    if tensor.grad is not None:
                        self._step_record.captured[hook] = weakref.ref(tensor.grad)
                    return
                self._at_border(self._first_gradient, hook)
            # A signal handler that closes the trace may take it away.
            order = self._step_record.order
            if order is not None and self._measuring and not hook.failed:
                order[self._hooks.parameters[hook.index].name] = None
            if not self._measuring or hook.failed:
                return
            if torch.is_grad_enabled():
                # backward(create_graph=True) runs hooks in grad mode, and a reduction with a graph would keep it alive.
                with torch.no_grad():
                    self._record(hook, tensor, accumulated(tensor))
            else:
                self._record(hook, tensor, accumulated(tensor))
        except Exception as error:
            self._step_record.miss(hook, error)

    def before_update(self, optimizer: Optimizer, closure: bool) -> None:
        """Record the values of parameters that got no gradient in this step, before the optimizer may change them."""
        self._writes = None
        with contextlib.suppress(Exception):
            self._writes = writes_to(optimizer) if closure or not has_gradient(optimizer) else None
        # Gradients may have been set by hand: only now can be said whether this update is another step.
        unannounced = not self._hooks.noted and self._clock.unannounced(id(optimizer))
        if unannounced and not closure and self._lacks_effect(optimizer):
            return
        if (closure or unannounced or not self._idle) and not self._pauses():
            self._at_border(self._before_update, optimizer, closure)

    def _lacks_effect(self, optimizer: Optimizer) -> bool:
        """Whether an unannounced update changes nothing. It is then no update: no step ends with it."""
        try:
            self._ineffective = None if has_effect(optimizer) else id(optimizer)
        except Exception as error:
            self._stop(self._clock.step, error)
        return self._ineffective == id(optimizer)

    def after_update(self, optimizer: Optimizer, closure: bool) -> None:
        """The step ends with this update, unless the loop ends its steps itself."""
        try:
            # The loop has taken the gradients back, or they are another optimizer's.
            if self._writes is not None and not has_gradient(optimizer) and writes_to(optimizer) == self._writes:
                return
            if self._idle and self._ends_another(optimizer):
                return
        except Exception as error:
            self._stop(self._clock.step, error)
        if not self._pauses():
            self._at_border(self._after_update, optimizer, closure)

    def _ends_another(self, optimizer: Optimizer) -> bool:
        """Count a step at once, if it is like the one before, and nothing is recorded of it or of the next.

        The number would be the same without this. It is here for speed: in an idle step all code runs with cold caches,
        which makes it five times as slow as it looks.
        """
        clock = self._clock
        if (
            not (clock.ended and self._hooks.noted and id(optimizer) in clock.updated)
            or clock.explicit
            or self._pending
            or self.measures(clock.step + 2)
            or running_backward() != NO_BACKWARD
            or not self._hooks.holds(optimizer)
        ):
            return False
        self._hooks.noted.clear()
        if self._budget is not None:
            self._budget.end_step(measured=False)
        clock.repeat(id(optimizer))
        self._pending.note_update()
        self.rates.look(optimizer, clock.step)
        return True

    def end_step(self) -> None:
        """End the step now, as the user says; the next gradient, or the next call, begins the next one."""
        self._at_border(self._end_step)

    def snapshot(self) -> None:
        """Emit the histograms of values and gradients as they are now."""
        self._at_border(self._snapshot)

    def restore(self, step: int) -> None:
        """Go on with any step; emit first what was recorded of the one under way."""
        self._at_border(self._restore, step)

    def finish(self) -> None:
        """Emit the last step, if any gradient or update belongs to it, and record no more."""
        self._at_border(self._finish)
        self._discards.forget()
        self._stopped, self._measuring = True, False
        self._step_record.close()

    def _at_border(self, action: Callable[[*_Args], None], *args: *_Args) -> None:
        """Do what happens between two steps; if it fails, training goes on."""
        step = self._clock.step
        try:
            with self._border:
                self._step_record.read(ended=False)
                if self._hooks.noted:
                    self._hooks.noted.clear()
                    self._first_gradient(None)
                action(*args)
        except Exception as error:
            self._stop(step, error)

    def _stop(self, step: int, error: Exception) -> None:
        """Record no more extremes of this step; none of any later one, after several that failed."""
        if self._stopped or self._clock.step == step:
            self._measuring = False
            self._step_record.close()
        if self._stopped or self._lost == step:
            return
        lost = [step]
        if self._clock.step != step:
            # The next one has begun already.
            self._swept = False
            try:
                self._step_record.renew()
            except Exception:
                # It is lost, too: deep in a recursion, say, nothing can be done now.
                self._measuring = False
                self._step_record.close()
                lost.append(self._clock.step)
        warned, self._lost = self._lost is not None, step
        self._lost_in_a_row += 1
        message = in_short(error)
        for each in lost:
            self._outbox.put(event(each, "failed", message))
        if self._lost_in_a_row == STEPS_TO_FAIL:
            self._stopped, self._measuring = True, False
            self._step_record.close()
        if not warned:
            warn(
                f"the extremes of step {step} are lost ({message}); "
                f"after {STEPS_TO_FAIL} such steps in a row they are no longer recorded, metrics are"
            )

    def _first_gradient(self, hook: ParamHook | None) -> None:
        """Begin the next step, if this gradient belongs to it: the first one of a backward, as far as is known.

        Without a hook, gradients were only noted, and any gradient since the last update will do: backward ids, the
        watch between two backwards and a ``GradScaler`` are then not needed.
        """
        backward = running_backward()
        if self._looked == backward and hook is not None:
            return
        skipped = not self._clock.ended and self._skipped()
        if skipped:
            self._watch.waiting = False
        if not self._clock.gradient(backward, skipped):
            self._looked = backward
            return
        if self._chosen != self._clock.step:
            # Ctrl-C interrupted the end of the step before.
            self._choose_what_to_measure()
        discards = self._discards
        if discards.thrown_away_unseen() if hook is None else discards.look(hook, self._measuring, self._scale):
            self._pending.settle(discards.step_before)
        self._discards.begin()
        if self._watch.waiting and not self._clock.explicit and self._watch.misses:
            self._say_unended()
        if not self._clock.begun or (self._loss_scale is not None and self._loss_scale.updated):
            self._scales.begin(new_step=not self._clock.begun)
            self._loss_scale = self._scales or None
            self._clock.begun = True
            if self._measuring:
                self._step_record.refresh()
        self._looked = backward
        if self._measuring:
            self._step_record.open(backward, self._end_of_backward)
        else:
            self._step_record.close()

    @not_compiled
    def _read_notes(self) -> None:
        """The engine has run all hooks of a backward."""
        step = self._clock.step
        try:
            with self._border:
                self._step_record.read(ended=True)
        except Exception as error:
            self._stop(step, error)

    def _pauses(self) -> bool:
        """Whether a CUDA graph is being captured; our work in it could not be replayed."""
        try:
            if not torch.cuda.is_initialized() or not torch.cuda.is_current_stream_capturing():
                return False
        except Exception as error:
            # The device may have failed.
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
                # The gradients that this update is about to use, and that no hook could see, are the next step's.
                self._leave(by_gradient=False)
            self._step_record.refresh()
        self._watch.waiting = self._watch.by_hand = False
        self._discards.calling = closure
        # Inside a backward most gradients are still to come, and a parameter without one is not updated.
        if running_backward() == NO_BACKWARD:
            # An engine may update its groups of parameters one by one.
            if not late and not (self._clock.repeats(id(optimizer)) and self._hooks.driven(optimizer)):
                self._clock.before_update(id(optimizer), NO_BACKWARD)
            if self._measuring and not self._clock.ended and self._hooks.driven(optimizer):
                self._step_record.add_reduced(optimizer)
            self._sweep()
        if self._settings.applied and not closure and self._measuring:
            self._step_record.record_applied(optimizer)
        if self._settings.update and self._measuring and not late:
            self._step_record.keep_values(optimizer)
        if optimizer not in self._known:
            self._known.add(optimizer)
            if others := self._hooks.unregistered(optimizer):
                warn(UNREGISTERED.format(optimizer=type(optimizer).__name__, others=others))
        if self._scales.adopt(optimizer):
            self._loss_scale = self._scales

    def _after_update(self, optimizer: Optimizer, closure: bool) -> None:
        if self._clock.unannounced(id(optimizer)) and (
            self._lacks_effect(optimizer) if closure else self._ineffective == id(optimizer)
        ):
            return
        if self._idle and not closure:
            # An idle step comes here after the update, and not before it as well: one call is cheaper than two.
            self._before_update(optimizer, closure, late=True)
        if not self._hooks.holds(optimizer):
            self._discards.updated_by_another(self._measuring)
            return
        self._discards.calling = False
        if closure and self._settings.applied and self._measuring:
            # The closure made gradients inside the update; those that it used last are still there.
            self._step_record.record_applied(optimizer)
        if self._settings.update and self._measuring:
            self._step_record.record_update(optimizer)
        self._scales.after_update(optimizer)
        backward = running_backward()
        if not self._clock.explicit:
            self._beware()
        if self._clock.after_update(id(optimizer), backward):
            self._prepare_next(backward)
        self._ended_by_update()
        self.rates.look(optimizer, self._clock.step)

    def _ended_by_update(self) -> None:
        self._discards.begin()
        self._pending.note_update()
        self._pending.settle(self._clock.step)

    def _end_step(self) -> None:
        self._beware()
        self._clock.end_step()
        self._scales.by_hand = True
        self._watch.waiting = False
        self._prepare_next(NO_BACKWARD)
        self._sweep()
        self._ended_by_update()

    def _beware(self) -> None:
        """Have the next gradient looked at. Comes before the step ends, since Ctrl-C may come right after."""
        self._looked = CLOSED
        self._step_record.close()

    def _prepare_next(self, backward: int) -> None:
        """The step has ended, in the backward with this id: decide whether the next one's gradients are reported."""
        if self._budget is not None:
            # Not earlier: until now the old stride decided whether this step's gradients are reported.
            self._stride = self._budget.stride
        measured = self.measures(self._clock.step + 1)
        self._hooks.report(measured or backward != NO_BACKWARD or self._loss_scale is not None)
        if measured and not self._measuring:
            # Adopt parameters that joined in an unmeasured step now, or their old gradient would count for the next.
            self._step_record.refresh()

    def _restore(self, step: int) -> None:
        self.rates.restore()
        self._discard_unused()
        self._pending.settle(self.step)
        self._discards.begin()
        if self._taken == self._clock.step:
            self._step_record.renew()
            self._swept = False
        try:
            self._clock.restore(step, leave=self._swept)
        finally:
            self._taken = None
            self._step_record.histogrammed = self._step_record.updates_measured = -1
            self._choose_what_to_measure()
            # As before the first step.
            self._beware()
            self._hooks.report(True)

    def _finish(self) -> None:
        if self._watch.waiting and self._watch.backwards > 1 and not self._skipped():
            self._say_unended()
        self._discard_unused()
        self._pending.settle(self.step)
        self.rates.flush()
        if self._clock.phase is not Phase.EMPTY:
            self._take()

    def _discard_unused(self) -> None:
        """No update will come: gradients that none will use are no step's, and without any there is no step."""
        known = self._clock.phase is Phase.OPEN and not (self._clock.explicit or self._watch.by_hand or self._skipped())
        if known and self._measuring and self._discards.look_at_the_end(self._scale):
            self._count_discarded(self.step, time.time_ns())
            self._taken = self._clock.step

    def _leave(self, by_gradient: bool) -> None:
        """The step is over; the next one begins."""
        if by_gradient:
            # A parameter that has joined since may have a gradient already, which is the next step's.
            self._sweep(follow=False)
        step = self._clock.step + 1 if self._pending.announced else self._clock.step
        try:
            self._take()
        finally:
            self._pending.settle(step)
            if self._budget is not None:
                self._settle(self._budget)
            self._clock.next()
            self._choose_what_to_measure()

    def _settle(self, budget: Budget) -> None:
        bill = budget.end_step(self._measuring)
        if bill is None:
            return
        self._outbox.put(Metric(self._clock.step, self._clock.ended_ns or time.time_ns(), "tracer_cost", bill.share))
        if bill.change is not None:
            self._outbox.put(event(self._clock.step, "stride", bill.change))

    def _choose_what_to_measure(self) -> None:
        self._measuring = self.measures(self._clock.step)
        if self._lost_in_a_row and self._measuring:
            self._step_record.renew()
        self._step_record.begin(self._measuring)
        # Set last: if Ctrl-C comes before, the choice is made again.
        self._chosen = self._clock.step

    def _take(self) -> None:
        """Emit everything that was recorded of the step."""
        if self._taken == self._clock.step:
            return
        time_ns = self._clock.ended_ns or time.time_ns()
        try:
            if self._measuring:
                self.measured += 1
                self._sweep()
                if self.measured <= STEPS:
                    self._look_for_untrained()
                self._step_record.emit_rows(time_ns, self._scale)
                self._lost_in_a_row = 0
        finally:
            # Not earlier: a signal handler that closes the trace in the middle of this emits the rows itself. What is
            # emitted twice is written once, and what comes after the close is not.
            self._taken = self._clock.step
        if self._loss_scale is not None and self._clock.begun:
            metrics = self._loss_scale.metrics()
            if metrics and not self._scaler_told:
                self._scaler_told = True
                self._outbox.put(event(self._clock.step, "adopted", "scaler"))
            for name, value in metrics.items():
                self._outbox.put(Metric(self._clock.step, time_ns, name, value))
        self._count_discarded(self._clock.step, time_ns)
        if self._step_record.histogramming:
            self._step_record.emit_histograms(time_ns, self._scale)
        self._swept = False
        self._step_record.joined.clear()

    def _look_for_untrained(self) -> None:
        """Say once, after some steps, which parameters are meant to train and do not."""
        self._untrained.note(self._hooks, self._step_record.buffer)
        if self.measured < STEPS or self._clock.explicit:
            return
        found = self._untrained.found(self._hooks, self._known)
        for kind, names in found.items():
            self._outbox.put(event(self._clock.step, kind, json.dumps(names), names[0] if len(names) == 1 else None))
        if found:
            warn(in_words(found))

    def _count_discarded(self, step: int, time_ns: int) -> None:
        count = self._discards.metric(step, time_ns)
        if count is not None:
            self._outbox.put(count)

    @property
    def _scale(self) -> Scale:
        return 1.0 if self._loss_scale is None else self._loss_scale.scale

    def _sweep(self, follow: bool = True) -> None:
        """Record the values of parameters whose hooks were not called, once a step."""
        if not self._measuring or self._swept:
            return
        self._swept = True
        # A replaced parameter's hook is silent; its gradient may have come before the first that a hook saw.
        if follow and (self._step_record.buffer.incomplete or not self._clock.begun):
            self._step_record.refresh()
        # Under a scaler it is not known whether a gradient that no hook saw has been unscaled by now.
        self._step_record.complete(with_gradients=self._loss_scale is None)

    def _snapshot(self) -> None:
        scale = self._loss_scale
        scaled = scale is not None and not self._clock.ended and not scale.unscaled
        self._step_record.snapshot(scale.scale if scale is not None and scaled else 1.0)

    def _say_unended(self) -> None:
        self._watch.waiting, self._watch.by_hand = False, True
        warn(NO_UPDATE)
        self._outbox.put(event(self._clock.step, "unended", "several backwards and no update of a torch optimizer"))
