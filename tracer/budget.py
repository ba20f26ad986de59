"""The budget: how often to measure, so that tracing takes no more than a given share of the time.

One step in each ``stride`` is measured. The stride follows from the median costs of the last few measured steps, of
unmeasured ones, and of the training itself. A step that the machine interrupts does not move a median. Only time in the
training's own threads counts: not the daemon's, and not the reductions that wait in a GPU's stream.
"""

import time
from collections import deque
from collections.abc import Callable
from statistics import median, median_low
from typing import NamedTuple, ParamSpec

clock = time.perf_counter

# The first guess: rare enough to be safe, often enough to have six samples within a hundred steps.
_FIRST_STRIDE = 16
# Rows this far apart are still a curve. If even these cost too much, the unmeasured steps are the cause.
_LAST_STRIDE = 1024
# The stride rises until tracing is expected to use this part of the budget, since a median hides the dearest steps. It
# falls if that leaves the lower part, so that it does not swing with each sample.
_UP, _DOWN = 0.8, 0.65
_MEASURED, _UNMEASURED = 9, 25

_P = ParamSpec("_P")


class Bill(NamedTuple):
    """The tracer's share of the time since the last bill, from 0 to 1, and the change of the stride, in words."""

    share: float
    change: str | None


class Budget:
    """Watches what a trace costs, and says how often to measure.

    Args:
        share: The share of the time that tracing may take, between 0 and 1.
        every: Strides are multiples of this, by powers of two.

    Attributes:
        stride: One of so many steps is measured.
    """

    def __init__(self, share: float, every: int) -> None:
        self._share = share
        self._every = every
        self.stride = every * _FIRST_STRIDE
        # Seconds of the tracer's own work: in this step, in measured steps, and in unmeasured ones.
        self._spent = 0.0
        self._measured: deque[float] = deque(maxlen=_MEASURED)
        self._unmeasured: deque[float] = deque(maxlen=_UNMEASURED)
        # Seconds of the training, likewise.
        self._training: deque[float] = deque(maxlen=_UNMEASURED)
        # When this step began, and the billed call that is running, if there is one.
        self._step_began = clock()
        self._call_began: float | None = None
        # Seconds and work of the steps since the last bill.
        self._seconds = self._work = 0.0
        self._warm = False

    def billed(self, call: Callable[_P, None]) -> Callable[_P, None]:
        """The same call, whose time counts as the tracer's; it must not make another such call."""

        def timed(*args: _P.args, **kwargs: _P.kwargs) -> None:
            self._call_began = began = clock()
            call(*args, **kwargs)
            # Time before the end of a step was counted there. Another thread may be in such a call, too.
            self._spent += clock() - max(began, self._step_began)
            self._call_began = None

        return timed

    def end_step(self, measured: bool) -> Bill | None:
        """A step has ended.

        Returns:
            A bill after each measured step but the first, which is slower than any other.
        """
        now = clock()
        spent, began = self._spent, self._call_began
        if began is not None:
            spent += now - max(began, self._step_began)
        seconds = now - self._step_began
        self._spent, self._step_began = 0.0, now
        if measured and not self._warm:
            self._warm = True
            return None
        self._seconds += seconds
        self._work += spent
        self._training.append(seconds - spent)
        (self._measured if measured else self._unmeasured).append(spent)
        if not measured:
            return None
        share = self._work / self._seconds if self._seconds > 0 else 0.0
        self._seconds = self._work = 0.0
        was, self.stride = self.stride, self._next_stride()
        if self.stride == was:
            return Bill(share, None)
        expected = self._expected(self.stride)
        return Bill(share, f"every {was} -> every {self.stride}: {expected:.2%} of the time expected")

    def _expected(self, stride: int) -> float:
        """The share of the time that tracing takes with a stride."""
        work = median_low(self._measured) + (stride - 1) * (median(self._unmeasured) if self._unmeasured else 0.0)
        seconds = stride * median(self._training) + work
        return work / seconds if seconds > 0 else 0.0

    def _next_stride(self) -> int:
        """Rise at once if the budget is exceeded; fall by half if even that keeps it."""
        stride, last = self.stride, self._every * _LAST_STRIDE
        if self._expected(stride) > self._share:
            while stride < last and self._expected(stride) > _UP * self._share:
                stride *= 2
        elif stride > self._every and len(self._measured) > 1 and self._expected(stride // 2) <= _DOWN * self._share:
            stride //= 2
        return stride
