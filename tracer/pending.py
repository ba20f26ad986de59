"""Metrics whose step is not known yet when they are logged."""

import contextlib
from collections.abc import Iterable, Mapping

import torch

from tracer.items import Number
from tracer.outbox import Outbox

# So many calls may wait: a loop that never updates again must not fill the memory.
_LIMIT = 1000


def sequence_nr() -> int:
    """How many nodes of graphs this thread has made."""
    return torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]


class PendingMetrics:
    """Metrics that belong either to the step that has ended last or to the next one.

    Two things leave that open. A loss that was made since the last update waits for its backward, which may never come.
    And after an update of another model's optimizer it is not known whether the last gradients will be used.

    Attributes:
        announced: Whether the backward of such a loss has begun.
    """

    def __init__(self, outbox: Outbox) -> None:
        self.announced = False
        self._outbox = outbox
        self._logged: list[tuple[int, Mapping[str, Number | None]]] = []
        self._nodes_before = 0

    def __bool__(self) -> bool:
        return bool(self._logged)

    def note_update(self) -> None:
        """A loss that is made from now on is not the last update's."""
        self._nodes_before = sequence_nr()

    def awaits(self, metrics: Iterable[object]) -> bool:
        """Whether one of these is a loss that was made since the last update. Its backward will then be noticed."""
        # A tensor of which this cannot be asked waits for nothing.
        with contextlib.suppress(Exception):
            for metric in metrics:
                if not isinstance(metric, torch.Tensor) or metric.grad_fn is None:
                    continue
                # A node of the graph knows how many were made before it.
                if metric.grad_fn._sequence_nr() >= self._nodes_before:
                    metric.register_hook(self._announce)
                    return True
        return False

    def _announce(self, gradient: torch.Tensor) -> None:
        if self._logged:
            self.announced = True

    def add(self, time_ns: int, metrics: Mapping[str, Number | None]) -> bool:
        """Keep metrics until their step is known. Returns whether there is room for more."""
        self._logged.append((time_ns, metrics))
        return len(self._logged) < _LIMIT

    def settle(self, step: int) -> None:
        """Hand the metrics over: their step is known now."""
        logged, self._logged, self.announced = self._logged, [], False
        for time_ns, metrics in logged:
            self._outbox.log(step, time_ns, metrics)
