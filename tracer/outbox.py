"""The way from a trace to its daemon."""

from collections.abc import Mapping

from tracer.daemon import Daemon
from tracer.items import ActivationRows, Event, HistogramRows, Item, Metric, Number, StepRows, rows_and_bytes

_TABLES: Mapping[type[Item], str] = {
    StepRows: "extremes",
    HistogramRows: "histograms",
    ActivationRows: "activations",
    Metric: "metrics",
    Event: "events",
}


class Outbox:
    """Hands every row, metric and event to the daemon, with the number of the attempt in which it was made.

    Args:
        daemon: The daemon.
        attempt: The attempt with which this process begins.
        first_step: Its first step.
    """

    def __init__(self, daemon: Daemon, attempt: int, first_step: int) -> None:
        self._daemon = daemon
        self._attempt = attempt
        self._first_step = first_step
        # The last step to which this attempt has come, as far as something was handed over or logged.
        self._last_step = -1

    def put(self, item: Item) -> None:
        """Hand over an item; never blocks, never raises."""
        table = _TABLES[type(item)]
        if table != "events":
            self._last_step = max(self._last_step, item.step)
        # Most runs have one attempt, and items are made with its number.
        stamped = item._replace(attempt=self._attempt) if self._attempt else item
        self._daemon.put(table, stamped, *rows_and_bytes(item))

    def log(self, step: int, time_ns: int, metrics: Mapping[str, Number]) -> None:
        """Hand over metrics, if any, of the step to which the loop has come. A loop does so at each step."""
        if step > self._last_step:
            self._last_step = step
        for name, value in metrics.items():
            self._daemon.put("metrics", Metric(step, time_ns, name, value, self._attempt))

    def restore(self, step: int, ended: int) -> None:
        """Go on with this step: in another attempt, if it is one of those that this attempt has been through.

        It does not depend on what has been recorded of them: of several ranks, some may have recorded nothing.

        Args:
            step: The step.
            ended: How many steps had ended.
        """
        went_back = step < ended and self._first_step < ended
        if went_back or step <= self._last_step:
            self._attempt, self._last_step, self._first_step = self._attempt + 1, -1, step
        self._first_step = min(self._first_step, step)
