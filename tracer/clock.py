"""When a step ends: a state machine that knows gradients and updates, and no tensor.

A step is one optimizer update. Once an optimizer that holds a traced parameter has updated, the first gradient of a
later backward begins the next step. So a step may hold several backwards and several updates. If the same optimizer
updates again without a gradient between (it calls a closure, or gradients were set by hand), that too is the next step.
An update for which there is no gradient at all is none: nothing of it is told to the clock.
A loop without a torch optimizer ends its steps itself, with ``end_step``; from the first such call on, only these calls
end steps.
"""

import time
from collections.abc import Callable
from enum import Enum

# No backward is running. The id of the running one tells the backward in which an optimizer updated from a later one.
NO_BACKWARD = -1


class Phase(Enum):
    """How far a step is."""

    EMPTY = "no gradient has arrived yet"
    OPEN = "gradients have arrived"
    ENDED = "its update has happened; the next gradient, or the next update, begins another step"


class StepClock:
    """Counts steps, as it is told of gradients and updates.

    Args:
        step: The step to begin with.
        leave: Called when a step is over, while ``step`` is still its number, with whether a gradient begins the next.
            It calls ``next`` once everything of the step has been taken, so that an interruption before loses nothing.

    Attributes:
        step: The step that is under way, or has ended last.
        explicit: Whether the loop ends its steps itself.
        begun: Whether a gradient of this step has arrived.
        backward: The id of the backward of the last gradient; -1 before the first.
        ended: Whether the step's update has happened.
        ended_ns: When the step ended, in ns since 1970; 0 before.
        updated: The ids of the optimizers that have updated in this step.
    """

    def __init__(self, step: int, leave: Callable[[bool], None]) -> None:
        self.step = step
        self.explicit = False
        self.begun = False
        self.backward = NO_BACKWARD
        self.ended = False
        self.ended_ns = 0
        self.updated: set[int] = set()
        self._leave = leave
        # The backward during which the step ended, if any.
        self._ended_in = NO_BACKWARD

    @property
    def phase(self) -> Phase:
        """How far the step is."""
        return Phase.ENDED if self.ended else Phase.OPEN if self.begun else Phase.EMPTY

    def repeats(self, optimizer: int) -> bool:
        """Whether this optimizer has ended the step already."""
        return self.ended and optimizer in self.updated

    def unannounced(self, optimizer: int) -> bool:
        """Whether an update by this optimizer would count, although no gradient has arrived for it."""
        return optimizer in self.updated if self.ended else not self.begun

    def gradient(self, backward: int, skipped: bool = False) -> bool:
        """A gradient arrives, the first of a backward as far as is known. Returns whether it may begin a step.

        Args:
            backward: The id of the backward.
            skipped: The step has ended although no optimizer has updated: a ``GradScaler`` found an infinity.
        """
        if self.ended and self._ended_in != NO_BACKWARD and self._ended_in == backward:
            # The update happened during this backward: its later gradients belong to the same step.
            return False
        if self.ended or skipped:
            self._leave(True)
        self.backward = backward
        return True

    def before_update(self, optimizer: int, backward: int) -> None:
        """An optimizer is about to update. If it has ended the step already, this is the next step's update.

        Not so inside a backward, where most gradients are still to come.
        """
        if backward == NO_BACKWARD and self.repeats(optimizer) and not self.explicit:
            self._leave(False)

    def after_update(self, optimizer: int, backward: int) -> bool:
        """An optimizer has updated. Returns whether that ends the step."""
        self.updated.add(optimizer)
        if not self.explicit:
            self._end(backward)
        return not self.explicit

    def repeat(self, optimizer: int) -> None:
        """Count a step like the one before it, of which nothing is kept: gradients, and an update by this optimizer."""
        self.step += 1
        self.ended_ns = time.time_ns()
        self.updated = {optimizer}

    def end_step(self) -> None:
        """The loop ends the step itself."""
        if self.explicit and self.ended:
            self._leave(False)
        self.explicit = True
        self._end(NO_BACKWARD)

    def restore(self, step: int, *, leave: bool = False) -> None:
        """Go on with this step, as before its first gradient; the one under way is over.

        Args:
            step: The step.
            leave: Whether something is known of the one under way, although no gradient has arrived.
        """
        try:
            if leave or self.phase is not Phase.EMPTY:
                self._leave(False)
        finally:
            # Whether it could be left or not.
            self.next()
            self.step = step
            self.backward = NO_BACKWARD

    def next(self) -> None:
        """Begin the next step."""
        self.step += 1
        self.begun = self.ended = False
        self.ended_ns = 0
        self.updated.clear()

    def _end(self, backward: int) -> None:
        # In this order: a gradient that arrives meanwhile must not take this backward for a later one.
        self._ended_in = backward
        self.ended_ns = time.time_ns()
        self.ended = True
