"""The wait for a loop's first update: notices a loop that updates its parameters without a torch optimizer."""

import torch

from tracer.clock import NO_BACKWARD

# Accumulation over this many backwards is unlikely. A late warning is better than one to somebody who does it.
_BACKWARDS_WITHOUT_UPDATE = 1000

NO_UPDATE = (
    "several backwards and no update of a torch optimizer: is optimizer.step() called? All of it is recorded as one "
    "step. If your loop updates the parameters itself, call trace.step() after each update"
)


class FirstUpdateWatch:
    """Watches the backwards before the first update.

    Attributes:
        backwards: How many backwards there have been.
    """

    def __init__(self) -> None:
        self.backwards = 0
        self._backward = NO_BACKWARD
        self._writes = 0
        self._watched: torch.Tensor | None = None
        self._version = 0

    def misses(self, tensor: torch.Tensor, backward: int) -> bool:
        """Whether no torch optimizer will update, as far as is known at a gradient of this tensor and backward."""
        if backward != self._backward:
            self._backward = backward
            self.backwards += 1
            # A parameter that is written to between two backwards, time and again, is being updated.
            self._writes += tensor is self._watched and tensor._version != self._version
            self._watched, self._version = tensor, tensor._version
        return self._writes > 1 or self.backwards >= _BACKWARDS_WITHOUT_UPDATE
