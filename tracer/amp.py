"""The scale of a ``GradScaler``, and the updates that it skips.

The scaler is read and never changed: torch offers no hook for it, and wrapped methods would break its pickling.
"""

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim.optimizer import Optimizer

from tracer.items import Number, number

SCALER_NOT_GIVEN = (
    "a GradScaler drives this optimizer, so gradients are recorded as they are, multiplied by its scale: "
    "give the scaler to attach(model, scaler=scaler) to have them divided"
)


class LossScale:
    """The loss scale of a ``GradScaler``, followed from step to step.

    Args:
        scaler: The scaler, which may drive optimizers of other models as well.
        ours: Whether an optimizer holds a traced parameter.

    Attributes:
        scale: The factor of the step's gradients: 1.0 if the scaler scales nothing.
    """

    def __init__(self, scaler: GradScaler, ours: Callable[[Optimizer], bool]) -> None:
        self._scaler = scaler
        self._ours = ours
        # The scaler knows only the ids of optimizers.
        self._optimizers: weakref.WeakValueDictionary[int, Optimizer] = weakref.WeakValueDictionary()
        # In this step: the optimizers that have updated, whether those that unscale gradients themselves found an
        # infinity, and whether an update was skipped before that of another model made the scaler forget it.
        self._updated: set[int] = set()
        self._found_inf: list[torch.Tensor] = []
        self._skip_seen = False
        self.begin(new_step=True)

    @property
    def updated(self) -> bool:
        """Whether the scaler has been updated since the step began, or since ``begin`` was called in it."""
        return self._scaler._per_optimizer_states is not self._states

    def begin(self, new_step: bool) -> None:
        """Note the scale of the gradients that begin to arrive: in a new step, or after another model updated it."""
        self._skip_seen = not new_step and self.skipped
        if new_step:
            self._updated.clear()
            self._found_inf.clear()
        # One entry an optimizer. ``GradScaler.update`` replaces the whole dictionary; the old one, kept here, still
        # holds the entries of the step. Those of earlier steps are in it already.
        self._states = self._scaler._per_optimizer_states
        self._earlier = set(self._states)
        self._is_ours: dict[int, bool] = {}
        scale = self._scaler._scale
        # Read now, since ``GradScaler.update`` changes it in place.
        self.scale: Number = 1.0 if scale is None else number(scale)

    def before_update(self, optimizer: Optimizer) -> None:
        """Remember an optimizer, and, if it is ours and unscales gradients itself, whether it has found an infinity."""
        self._optimizers[id(optimizer)] = optimizer
        left_to_it = deferred(optimizer)
        if self._ours(optimizer) and left_to_it is not None:
            self._found_inf.append(left_to_it[1])

    def after_update(self, optimizer: Optimizer) -> None:
        """An optimizer of ours has updated."""
        self._updated.add(id(optimizer))

    @property
    def skipped(self) -> bool:
        """Whether the scaler has skipped an update of ours in this step."""
        # Skipped are optimizers that were to update and have not: the scaler's own count mixes all optimizers.
        done = {key for key, state in self._looked().items() if self.updated or state["stage"] is OptState.STEPPED}
        return self._skip_seen or not done <= self._updated

    @property
    def unscaled(self) -> bool:
        """Whether our gradients have been divided by the scale in this step."""
        return bool(self._looked())

    def metrics(self) -> dict[str, Number]:
        """The metrics of the step that ends: the scale, and, if there was an update, whether it was skipped."""
        if self.skipped:
            return {"amp_scale": self.scale, "skipped": 1.0}
        if not self._updated:
            return {"amp_scale": self.scale}
        infinities = [inf.reshape(()).to(self._found_inf[0].device) for inf in self._found_inf]
        skipped = number(torch.stack(infinities).amax() > 0) if infinities else 0.0
        return {"amp_scale": self.scale, "skipped": skipped}

    def _looked(self) -> dict[int, dict[str, Any]]:
        """The scaler's entries, by id, of our optimizers whose gradients it has looked at in this step."""
        states = {key: state for key, state in self._states.items() if key not in self._earlier}
        return {key: state for key, state in states.items() if state["found_inf_per_device"] and self._holds_ours(key)}

    def _holds_ours(self, key: int) -> bool:
        if key not in self._is_ours:
            if key not in self._optimizers:
                # An optimizer that the scaler has always skipped has never called a hook.
                for candidate in gc.get_objects():
                    if issubclass(type(candidate), Optimizer):
                        self._optimizers[id(candidate)] = candidate
            optimizer = self._optimizers.get(key)
            # An optimizer that is gone by now, at the end of a training, is taken for ours.
            self._is_ours[key] = optimizer is None or self._ours(optimizer)
        return self._is_ours[key]


def deferred(optimizer: Optimizer) -> tuple[torch.Tensor | None, torch.Tensor] | None:
    """The work that a scaler leaves to an optimizer that unscales itself: the divisor, if any, and whether to skip."""
    found_inf = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else (getattr(optimizer, "grad_scale", None), found_inf)


def driven_by_scaler() -> bool:
    """Whether a ``GradScaler`` that scales has called the running update.

    Looks at the call stack, since an optimizer does not know its caller. So it is asked once an optimizer, and not in
    each step.
    """
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_code is GradScaler.step.__code__:
            return bool(frame.f_locals["self"].is_enabled())
    return False
