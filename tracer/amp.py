"""What a ``GradScaler`` does to gradients: by what it multiplied them, and whether it skips an update.

Reads the scaler and never changes it: torch offers no hook for it, and to wrap its methods would break its pickling.
"""

import sys

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim.optimizer import Optimizer

from tracer.rows import Number, number


class LossScale:
    """A ``GradScaler``, as one step after the other sees it.

    Attributes:
        scale: By what the step's gradients were multiplied: 1.0 where the scaler scales nothing.
    """

    def __init__(self, scaler: GradScaler) -> None:
        self._scaler = scaler
        # One entry an optimizer. ``GradScaler.update`` replaces the whole dictionary, and so marks the end of a step;
        # the old one, kept here, still holds what was found in that step.
        self._states = scaler._per_optimizer_states
        self.scale: Number = 1.0

    @property
    def updated(self) -> bool:
        """Whether the scaler has been updated since the step began."""
        return self._scaler._per_optimizer_states is not self._states

    @property
    def unscaled(self) -> bool:
        """Whether gradients have been looked at, and so divided, in this step."""
        return self.updated or any(state["found_inf_per_device"] for state in self._states.values())

    def begin_step(self) -> None:
        """Note the scale of the gradients that begin to arrive."""
        self._states = self._scaler._per_optimizer_states
        scale = self._scaler._scale if self._scaler.is_enabled() else None
        # Read now, since the scaler's update changes it in place.
        self.scale = 1.0 if scale is None else number(scale)

    def skipped(self) -> Number | None:
        """How many optimizers' updates it skipped in the step; None where no gradient was looked at."""
        found = [inf for state in self._states.values() for inf in state["found_inf_per_device"].values()]
        return number(torch.stack([inf.reshape(()).to(found[0].device) for inf in found]).amax()) if found else None


def deferred(optimizer: Optimizer) -> tuple[torch.Tensor | None, torch.Tensor] | None:
    """What a scaler leaves to an optimizer that does its own unscaling: the divisor, if any, and whether to skip."""
    found_inf = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else (getattr(optimizer, "grad_scale", None), found_inf)


def driven_by_scaler() -> bool:
    """Whether the update that is running was called by a ``GradScaler`` that scales.

    Looks at the call stack, since an optimizer is not told who calls it: for once an optimizer, not for each step.
    """
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_code is GradScaler.step.__code__:
            return bool(frame.f_locals["self"].is_enabled())
    return False
