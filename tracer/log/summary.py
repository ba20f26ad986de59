"""What a merged part of ``metrics`` says of its rows in its footer: of each metric, the last and the extreme numbers.

So the best loss of a long run is known without its rows. Without polars, since parts are merged in the training's
process, whose forked children its threads would hang.
"""

import functools
import json
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tracer.log import schema

_KEY = b"gradwatch.metrics"
_GROUPS = ["name", "attempt"]
COLUMNS = [*_GROUPS, "step", "time", "value"]
"""The columns that ``of_rows`` needs."""


class Numbers(NamedTuple):
    """What is known of a metric in one attempt, without its rows.

    Attributes:
        step: The last step for which it was logged.
        time: When that was, in microseconds since 1970.
        last: The number logged then.
        low: The lowest finite number of all; NaN where none is finite.
        high: The highest, likewise.
    """

    step: int
    time: int
    last: float
    low: float
    high: float

    def joined(self, other: "Numbers") -> "Numbers":
        """The numbers of both."""
        later = self if self[:2] > other[:2] else other
        return Numbers(*later[:3], _pick(min, self.low, other.low), _pick(max, self.high, other.high))


def _pick(of: Callable[[list[float]], float], one: float, other: float) -> float:
    known = [number for number in (one, other) if not math.isnan(number)]
    return of(known) if known else math.nan


Summary = dict[tuple[str, int], Numbers]
"""The numbers of each metric, by its name and the attempt."""


def of_rows(rows: pa.Table) -> Summary:
    """The summary of some rows of ``metrics``; of those of one step and time, the later one counts as last."""
    rows = rows.select(COLUMNS).cast(pa.schema([schema.SCHEMAS["metrics"].field(name) for name in COLUMNS]))
    value = rows["value"]
    finite = pc.if_else(pc.is_finite(value), value, None)
    # Decoded: dictionaries of batches differ.
    rows = rows.set_column(0, "name", pc.cast(rows["name"], pa.string())).append_column("finite", finite)
    found = (
        rows.sort_by([("step", "ascending"), ("time", "ascending")])
        .group_by(_GROUPS, use_threads=False)
        .aggregate([("step", "last"), ("time", "last"), ("value", "last"), ("finite", "min"), ("finite", "max")])
    )
    found = found.set_column(found.column_names.index("time_last"), "time_last", found["time_last"].cast(pa.int64()))
    names = [*_GROUPS, "step_last", "time_last", "value_last", "finite_min", "finite_max"]
    summary: Summary = {}
    for name, attempt, step, time, last, low, high in zip(*(found[name].to_pylist() for name in names), strict=True):
        summary[name, attempt] = Numbers(step, time, last, *(math.nan if end is None else end for end in (low, high)))
    return summary


def joined(summaries: Iterable[Summary]) -> Summary:
    """The summary of all rows, of which some parts are summarised; later ones count as last where steps are equal."""

    def join(known: Summary, more: Summary) -> Summary:
        return known | {key: known[key].joined(more[key]) if key in known else more[key] for key in more}

    return functools.reduce(join, summaries, {})


def naming(summary: Summary) -> dict[bytes, bytes]:
    """The metadata of a part with these rows."""
    # JSON has no NaN.
    listed = [
        [name, attempt, *numbers[:2], *(repr(number) for number in numbers[2:])]
        for (name, attempt), numbers in summary.items()
    ]
    return {_KEY: json.dumps(listed, separators=(",", ":")).encode()}


def stored(footer: pq.FileMetaData) -> Summary | None:
    """The summary in a part's footer; None where there is none, or it makes no sense."""
    content = (footer.metadata or {}).get(_KEY)
    if content is None:
        return None
    try:
        summary = {
            (str(name), int(attempt)): Numbers(int(step), int(time), float(last), float(low), float(high))
            for name, attempt, step, time, last, low, high in json.loads(content)
        }
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    bounds = schema.BEYOND["attempt"], schema.BEYOND["step"], schema.BEYOND["time"]
    places = ((attempt, numbers.step, numbers.time) for (_, attempt), numbers in summary.items())
    sound = all(0 <= place < beyond for each in places for place, beyond in zip(each, bounds, strict=True))
    return summary if sound else None
