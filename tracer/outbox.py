"""The way from a trace to its daemon."""

from collections.abc import Mapping

from tracer.daemon import Daemon
from tracer.items import (
    ActivationRows,
    DiscardedRows,
    Event,
    HistogramRows,
    Item,
    Metric,
    Number,
    StepRows,
    event,
    rows_and_bytes,
)
from tracer.warn import warn

_TABLES: Mapping[type[Item], str] = {
    StepRows: "extremes",
    DiscardedRows: "discarded",
    HistogramRows: "histograms",
    ActivationRows: "activations",
    Metric: "metrics",
    Event: "events",
}


class Outbox:
    """Hands every row, metric and event to the daemon, with the number of the attempt in which it was made.

    Metrics of the user's that are called as the run's ``own`` ones get another name.
    """

    def __init__(self, daemon: Daemon, attempt: int, first_step: int, own: frozenset[str]) -> None:
        self._daemon = daemon
        self._attempt = attempt
        self._first_step = first_step
        # The last step of this attempt of which something was handed over.
        self._last_step = -1
        self._said_unknown = self._said_own = False
        self._own = own

    def put(self, item: Item) -> None:
        """Hand over an item; never blocks, never raises."""
        table = _TABLES[type(item)]
        if table != "events":
            self._last_step = max(self._last_step, item.step)
        if isinstance(item, Metric):
            # A scaler may be found later than at attach.
            self._own |= {item.name}
        # Most runs have one attempt, 0, and items are made with that number.
        stamped = item._replace(attempt=self._attempt) if self._attempt else item
        self._daemon.put(table, stamped, *rows_and_bytes(item))

    def end(self, step: int, reason: str) -> None:
        """Hand over the last event, and have the daemon end; of several calls the first counts."""
        closed = event(step, "closed", reason)._replace(attempt=self._attempt)
        self._daemon.end({"last_step": step, "reason": reason}, closed)

    def log(self, step: int, time_ns: int, metrics: Mapping[str, Number | None]) -> None:
        """Hand over metrics, if any, of the step to which the loop has come; those without a number are left out."""
        # A loop calls this at each step, so it makes no more calls than it must.
        if step > self._last_step:
            self._last_step = step
        for name, value in metrics.items():
            if value is None:
                self._say_unknown(name)
                continue
            called = name if name not in self._own else self._not_own(name)
            self._daemon.put("metrics", Metric(step, time_ns, called, value, self._attempt))

    def _not_own(self, name: str) -> str:
        other = f"{name}_logged"
        if not self._said_own:
            self._said_own = True
            warn(f"{name} is logged as {other}, since this run has a metric {name} of the tracer's own")
        return other

    def _say_unknown(self, name: str) -> None:
        if not self._said_unknown:
            self._said_unknown = True
            warn(f"{name} is not logged: each rank holds a part of this DTensor, so log {name}.full_tensor()")

    def begins(self, step: int) -> bool:
        """Whether a later attempt begins with this step, as an event has said, and nothing of it is there yet."""
        return self._attempt > 0 and self._last_step < 0 and self._first_step == step

    def restore(self, step: int, ended: int) -> None:
        """Go on with this step, where so many had ended: in another attempt, if this one has been through the step.

        That does not depend on recorded rows: some of several ranks may have recorded nothing.
        """
        went_back = step < ended and self._first_step < ended
        if went_back or step <= self._last_step:
            self._attempt, self._last_step, self._first_step = self._attempt + 1, -1, step
        self._first_step = min(self._first_step, step)
