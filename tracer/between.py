"""What happens between two backwards of one step: an update by hand, or that the gradients are thrown away."""

import contextlib
from collections import deque
from collections.abc import Sequence

import torch

from tracer.clock import Phase, StepClock
from tracer.engines import keeps_gradient
from tracer.extremes import dense, local
from tracer.hooks import Hooks, ParamHook
from tracer.items import GRADIENT, HostCopy, Metric, Scale
from tracer.record import StepRecord

# Accumulation over this many backwards is unlikely. A late warning is better than one to somebody who does it.
_BACKWARDS_WITHOUT_UPDATE = 1000
# Copies from a device arrive a few backwards later.
_COPIES = 8

NO_UPDATE = (
    "several backwards and no update of a torch optimizer: is optimizer.step() called? All of it is recorded as one "
    "step. If your loop updates the parameters itself, call trace.step() after each update"
)


class BackwardWatch:
    """Watches the parameter whose gradient came first in the last backward.

    Attributes:
        waiting: Whether a torch optimizer has yet to update a traced parameter for the first time.
        by_hand: Whether the loop updates itself, as far as is known.
        backwards: How many backwards there have been meanwhile.
        changed: Whether the parameter was changed between the last two backwards, though no step ended.
        fresh: Whether the parameter was the first in both, and has another gradient than it had.
    """

    def __init__(self) -> None:
        self.waiting = True
        self.by_hand = False
        self.backwards = 0
        self.changed = self.fresh = False
        self._writes = self._moves = 0
        self._watched: torch.Tensor | None = None
        self._version = 0
        self._gradient_version = 0
        self._extremes: deque[HostCopy] = deque(maxlen=_COPIES)

    def look(self, tensor: torch.Tensor) -> None:
        """See what has changed since the last backward, at the first gradient of the next one, and watch its tensor."""
        self.changed, same = self.written, tensor is self._watched
        if self.waiting:
            self.backwards += 1
            self._writes += self.changed and same
            self._see_extremes(tensor)
        # A gradient that is added to another one is a write to that one. The gradient itself is not kept, whose memory
        # the next backward may need, nor a weak reference, with which torch could not swap it.
        version = 0 if tensor.grad is None else tensor.grad._version
        self.fresh = same and version <= self._gradient_version
        self._watched, self._version, self._gradient_version = tensor, tensor._version, version

    @property
    def written(self) -> bool:
        """Whether the watched parameter has been written to since its gradient came."""
        return self._watched is not None and self._watched._version != self._version

    @property
    def misses(self) -> bool:
        """Whether no torch optimizer will update, as far as is known.

        A parameter that is changed between two backwards, time and again, is being updated.
        """
        return max(self._writes, self._moves) > 1 or self.backwards >= _BACKWARDS_WITHOUT_UPDATE

    def forget(self) -> None:
        """Watch no parameter, so that none is kept."""
        self._watched = None
        self._extremes.clear()

    def _see_extremes(self, tensor: torch.Tensor) -> None:
        """A write through ``.data`` leaves the version of a parameter as it is, and yet moves its extremes."""
        if tensor is not self._watched:
            self._extremes.clear()
        # A tensor that is empty, or that cannot be copied, tells nothing.
        with torch.no_grad(), contextlib.suppress(Exception):
            self._extremes.append(HostCopy(list(torch.aminmax(dense(local(tensor))))))
            # From another device copies arrive later, so that a change is seen a few backwards late.
            while len(self._extremes) > 1 and self._extremes[1].arrived:
                moved = not _equal(self._extremes.popleft(), self._extremes[0])
                self._moves += moved
                self.changed |= moved


def _equal(before: HostCopy, now: HostCopy) -> bool:
    return torch.equal(before.wait().nan_to_num(), now.wait().nan_to_num())


class Discards:
    """Tells which backwards of a step no update uses, and takes what they gave out of the step's record.

    Args:
        hooks: The hooks on the model.
        clock: The steps.
        record: What is recorded of the step under way.

    Attributes:
        watch: What happens between two backwards.
        unused: Whether the gradients that came last are not used, as far as is known: another model's optimizer has
            updated since, or they are gone.
        calling: Whether an optimizer is calling for gradients, in whose update those of a trial may be thrown away.
    """

    def __init__(self, hooks: Hooks, clock: StepClock, record: StepRecord) -> None:
        self._hooks = hooks
        self._clock = clock
        self._record = record
        self.watch = BackwardWatch()
        self.unused = False
        self.calling = False
        self._count = 0
        # In a step that is not measured, a parameter and the gradient that it had when another model was updated.
        self._witness: tuple[torch.Tensor, torch.Tensor | None] | None = None

    @property
    def step_before(self) -> int:
        """The step that has ended last; before the first update, the one under way."""
        return self._clock.step if self.watch.waiting else max(0, self._clock.step - 1)

    def look(self, hook: ParamHook, measuring: bool, scale: Scale) -> bool:
        """A backward begins with the gradient of a hook: whether those before it, in this step, were thrown away."""
        self.watch.look(hook.tensor)
        goes_on = self._clock.begun and not (self._clock.explicit or self.watch.by_hand)
        if not (goes_on and measuring) or self.watch.changed or self.calling:
            return False
        return self._discard(self._gone(hook), scale)

    def look_at_the_end(self, scale: Scale) -> bool:
        """No backward will come: whether there is no step under way, since all its gradients were thrown away."""
        recorded = self._recorded()
        gone = recorded if self.unused else [] if self.watch.written else self._gone(None)
        self.unused = self._discard(gone, scale) and len(gone) == len(recorded)
        return self.unused

    def updated_by_another(self, measuring: bool) -> None:
        """An optimizer has updated that holds no traced parameter.

        So a generator is updated, whose backward went through a discriminator that is traced.
        """
        known = self._clock.phase is Phase.OPEN and not (self._clock.explicit or self.watch.waiting)
        self.unused = known and not self.watch.by_hand
        if self.unused and not measuring:
            tensors = [hook.tensor for hook in self._hooks.param_hooks if hook.tensor.grad is not None]
            smallest = min(tensors, key=torch.Tensor.numel, default=None)
            self._witness = None if smallest is None else (smallest, smallest.grad)

    def thrown_away_unseen(self) -> bool:
        """Whether the gradients of a step that is not measured were thrown away since another model was updated."""
        witness = self._witness
        # As in ``look``: what an optimizer's closure throws away is of the update that called it.
        known = self.unused and not self.calling
        return known and witness is not None and witness[0].grad is not witness[1]

    def begin(self) -> None:
        """Another backward has come, or the update: what is known of the gradients before it no longer counts."""
        self.unused = False
        self._witness = None

    def forget(self) -> None:
        """Keep no tensor of the model."""
        self.watch.forget()
        self._witness = None

    def metric(self, step: int, time_ns: int) -> Metric | None:
        """How many backwards of a step were discarded, if any; counts anew from now on."""
        count, self._count = self._count, 0
        return Metric(step, time_ns, "discarded", float(count)) if count else None

    def _discard(self, gone: Sequence[ParamHook], scale: Scale) -> bool:
        if gone:
            self._count += 1
            self._record.discard(gone, scale)
        return bool(gone)

    def _recorded(self) -> list[ParamHook]:
        present = self._record.buffer.present
        recorded = [hook for hook in self._hooks.param_hooks if present[hook.index] & GRADIENT]
        # What an engine keeps of a gradient does not show in ``.grad``, which it frees.
        return [hook for hook in recorded if not keeps_gradient(hook.tensor)]

    def _gone(self, arriving: ParamHook | None) -> list[ParamHook]:
        """The hooks of recorded gradients that were thrown away, to None or to zero in place.

        Args:
            arriving: The hook whose next gradient has just been accumulated; the others' are still to come.
        """
        recorded = self._recorded()
        others = [hook for hook in recorded if hook is not arriving]
        gone = [hook for hook in others if hook.tensor.grad is None] or self._zeroed(others)
        alone = len(self._hooks.param_hooks) == 1 and self.watch.fresh
        if arriving is not None and len(others) < len(recorded) and (gone or alone):
            gone.append(arriving)
        return gone

    def _zeroed(self, recorded: Sequence[ParamHook]) -> list[ParamHook]:
        """Those whose gradients are zero now and were not. On a device that cannot be known without a sync."""

        def was_zero(hook: ParamHook) -> bool:
            return self._record.buffer.extremes(hook.index, 1) == (0.0, 0.0)

        plain = sorted((hook for hook in recorded if _is_plain(hook.tensor.grad)), key=lambda hook: hook.tensor.numel())
        smallest = next((hook for hook in plain if not was_zero(hook)), None)
        if smallest is None or not _is_zero(smallest):
            return []
        return [hook for hook in plain if not was_zero(hook) and _is_zero(hook)]


def _is_plain(gradient: torch.Tensor | None) -> bool:
    return type(gradient) is torch.Tensor and gradient.is_cpu and gradient.layout is torch.strided


def _is_zero(hook: ParamHook) -> bool:
    gradient = hook.tensor.grad
    return gradient is not None and not gradient.any()
