"""Items -> tables of the log. Runs in the daemon, and waits for copies that are on their way to the host."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# Otherwise pyarrow imports these two with its first array and its first cast: perhaps within the seconds of a close.
import numpy.ma
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import torch

from tracer.items import (
    QUANTITIES,
    UPDATED,
    ActivationRows,
    DiscardedRows,
    Event,
    HistogramRows,
    HostCopy,
    Item,
    Metric,
    Number,
    Rows,
    Scale,
    StepRows,
)
from tracer.log import schema
from tracer.warn import encodable

_NUMPY = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: np.uint16,
}
# The measured numbers of a gradient that change with its scale; counts do not.
_SCALED = {"min", "max", "sum", "norm", "spread", "smallest"}
# The statistics of slices.
_OF_SLICES = {"min", "max", "absmax"}


def on_host(item: Any) -> Any:
    """The same item with its copies on the host, so that pinned memory is free before it is published."""
    if isinstance(item, StepRows):
        updates = tuple(
            update._replace(divisor=_number(update.divisor), skipped=_number(update.skipped)) for update in item.updates
        )
        copies: list[bytes | HostCopy] = [_bytes(copy) for copy in item.copies]
        return item._replace(copies=copies, loss_scale=_scale(item.loss_scale), updates=updates)
    if isinstance(item, HistogramRows | ActivationRows):
        blocks: list[Any] = [(keys, _rows(copy)) for keys, copy in item.blocks]
        item = item._replace(blocks=blocks)
        return item._replace(loss_scale=_scale(item.loss_scale)) if isinstance(item, HistogramRows) else item
    if isinstance(item, Metric):
        return item._replace(value=_number(item.value))
    return item


def _bytes(copy: bytes | HostCopy) -> bytes:
    return copy if isinstance(copy, bytes) else copy.wait().numpy().tobytes()


def _rows(copy: Rows) -> npt.NDArray[np.float64]:
    return copy.wait().numpy().copy() if isinstance(copy, HostCopy) else copy


def _number(value: Number) -> float:
    return value if isinstance(value, float) else float(value.wait().item())


def _scale(scale: Scale) -> float | Mapping[str, Number]:
    return {param: _number(each) for param, each in scale.items()} if isinstance(scale, Mapping) else _number(scale)


def _scale_of(param: str, scale: Scale) -> float:
    """The scale of a parameter's gradient; NaN if it is not known."""
    return _number(scale.get(param, np.nan) if isinstance(scale, Mapping) else scale)


class Encoder:
    """Turns items into tables of the log, for one rank.

    Args:
        rank: The rank.
        fold: How many steps a row of the extremes covers: those whose number, divided by it, is the same.
    """

    def __init__(self, rank: int, fold: int = 1) -> None:
        self._rank = rank
        self._fold = fold

    def complete_prefix(self, table: str, items: Sequence[Any]) -> int:
        """How many of these items may become rows now: a folded row waits for its last step."""
        if table != "extremes" or self._fold == 1 or not items:
            return len(items)
        newest = items[-1]
        if newest.step % self._fold == self._fold - 1:
            return len(items)
        return sum(self._row(rows) != self._row(newest) for rows in items)

    def _row(self, rows: StepRows) -> tuple[int, int]:
        """The row of a step; a step that is repeated in another attempt is in another row."""
        return rows.attempt, rows.step // self._fold

    def by_table(self, tables: Iterable[str]) -> dict[str, Callable[[Sequence[Any]], pa.Table]]:
        """The method that makes the rows of each of these tables."""
        return {table: getattr(self, table) for table in tables}

    def extremes(self, steps: Sequence[StepRows]) -> pa.Table:
        """The rows of these steps: one a parameter or slice and step, or several folded steps."""
        runs: list[list[StepRows]] = []
        # One a step: see how the recorder emits it.
        for rows in {(rows.attempt, rows.step): rows for rows in steps}.values():
            if not runs or runs[-1][0].layout is not rows.layout:
                runs.append([])
            runs[-1].append(rows)
        return pa.concat_tables([self._of_one_layout(run) for run in runs]).unify_dictionaries()

    def _of_one_layout(self, steps: list[StepRows]) -> pa.Table:
        layout = steps[0].layout
        count = len(layout.names)
        present = np.frombuffer(b"".join(rows.present for rows in steps), dtype=np.uint8).reshape(len(steps), count)
        starts = np.flatnonzero(np.diff([self._row(rows) for rows in steps], prepend=[(-1, -1)], axis=0).any(axis=1))
        # Of a slice is known when its parameter was recorded.
        rows = layout.params
        spans = np.add.reduceat((present != 0).astype(np.int32), starts, axis=0)[:, rows]
        keep = spans != 0
        measured, spreads = _numbers(steps)
        columns = {}
        for at, quantity in enumerate(layout.quantities):
            recorded = present & QUANTITIES[quantity] != 0
            numbers = dict(zip(layout.measures.measured, np.moveaxis(measured[:, :, at], -1, 0), strict=True))
            known = np.ones((len(steps), len(rows)), dtype=bool)
            if quantity in ("grad", "applied"):
                divisor = _divisors(steps, quantity, recorded)[:, rows]
                known = ~np.isnan(divisor)
                # A scaler that found an infinity in every step has halved its scale to 0.
                with np.errstate(all="ignore"):
                    numbers |= {
                        name: numbers[name] / np.where(known, divisor, 1.0) for name in _SCALED.intersection(numbers)
                    }
            for statistic, values in layout.measures.derive(numbers, layout.elements[rows]).items():
                # NaN and infinity are what they are at any scale.
                folded, told = _folded(statistic, values, recorded[:, rows] & (known | ~np.isfinite(values)), starts)
                if statistic not in _OF_SLICES:
                    told[:, count:] = False
                columns[f"{quantity}_{statistic}"] = pa.array(folded[keep], mask=~told[keep])
        if "update" in layout.quantities:
            folded, told = _folded("ratio", *_ratios(present[:, rows], measured, spreads), starts)
            columns[schema.RATIO] = pa.array(folded[keep], mask=~told[keep])
        names = pa.DictionaryArray.from_arrays(
            pa.array(np.tile(np.arange(len(rows), dtype=np.int32), len(starts))[keep.ravel()]),
            pa.array(layout.rows, type=pa.string()),
        )
        ends = [steps[end - 1] for end in (*starts[1:], len(steps))]
        key = self._key(ends, keep.sum(axis=1))
        extremes = schema.extremes_schema(columns)
        return pa.table([*key, names, spans[keep], *(columns[name] for name in extremes.names[6:])], schema=extremes)

    def discarded(self, backwards: Sequence[DiscardedRows]) -> pa.Table:
        """The rows of these backwards, one a parameter, of those in which anything was not finite."""
        # One by one, since a step may have several.
        kept = [Encoder(self._rank).extremes([rows]) for rows in backwards if not _finite(rows)]
        return pa.concat_tables(kept).unify_dictionaries() if kept else schema.SCHEMAS["discarded"].empty_table()

    def histograms(self, items: Sequence[HistogramRows]) -> pa.Table:
        """The rows of these histograms: one a parameter, quantity and step."""
        rows = [
            (item, param, of, *_histogram(numbers, scale))
            for item in items
            for keys, copy in item.blocks
            for (param, of), numbers in zip(keys, _rows(copy).tolist(), strict=True)
            if not np.isnan(scale := _scale_of(param, item.loss_scale) if of == "grad" else 1.0)
        ]
        return self._table("histograms", rows)

    def activations(self, items: Sequence[ActivationRows]) -> pa.Table:
        """The rows of these activations: one a module, mode and step."""
        rows = [
            (item, module, training, *_of_outputs(count, units, numbers))
            for item in items
            for keys, copy in item.blocks
            for (module, training, count, units), numbers in zip(keys, _rows(copy).tolist(), strict=True)
        ]
        return self._table("activations", rows)

    def metrics(self, metrics: Sequence[Metric]) -> pa.Table:
        """The rows of these metrics."""
        return self._table("metrics", [(metric, encodable(metric.name), _number(metric.value)) for metric in metrics])

    def events(self, events: Sequence[Event]) -> pa.Table:
        """The rows of these events."""
        return self._table("events", [(event, event.kind, event.param, event.detail) for event in events])

    def _table(self, table: str, rows: list[tuple[Any, ...]]) -> pa.Table:
        """A table of rows: each an item, which knows its step and time, and the values of the table's own columns."""
        table_schema = schema.SCHEMAS[table]
        items, *columns = zip(*rows, strict=True)
        key = self._key(items)
        return pa.table([*key, *map(pa.array, columns, table_schema.types[len(key) :])], schema=table_schema)

    def _key(
        self, items: Sequence[Item], repeats: npt.NDArray[np.int64] | int = 1
    ) -> tuple[npt.NDArray[np.int64], pa.Array, npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The columns that every table begins with."""
        step = np.repeat(np.array([item.step for item in items], dtype=np.int64), repeats)
        microseconds = np.repeat(np.array([item.time_ns for item in items], dtype=np.int64) // 1000, repeats)
        attempt = np.repeat(np.array([item.attempt for item in items], dtype=np.int32), repeats)
        times = pa.array(microseconds).cast(pa.timestamp("us", tz="UTC"))
        return step, times, np.full_like(attempt, self._rank), attempt


def _finite(rows: StepRows) -> bool:
    """Whether all that is recorded is finite."""
    present = np.frombuffer(rows.present, dtype=np.uint8)
    recorded = np.stack([present & QUANTITIES[quantity] != 0 for quantity in rows.layout.quantities], axis=1)
    # What is in a slice is in the extremes of its parameter.
    return bool(np.isfinite(_numbers([rows])[0][0, : len(present)][recorded]).all())


def _folded(
    statistic: str,
    values: npt.NDArray[np.float64],
    recorded: npt.NDArray[np.bool_],
    starts: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """A statistic of each row, and where it is known: the least minimum, the mean of means, else the largest.

    ``values`` has shape (steps, rows), ``recorded`` says where it holds one, and each of ``starts`` is the index
    of a row's first step.
    """
    if len(starts) == len(values):
        return values, recorded
    known = np.logical_or.reduceat(recorded, starts, axis=0)
    # A NaN stays NaN in each reduction, and a result that is not known is not kept.
    with np.errstate(all="ignore"):
        if statistic == "mean":
            counts = np.add.reduceat(recorded.astype(np.int64), starts, axis=0)
            return np.add.reduceat(np.where(recorded, values, 0.0), starts, axis=0) / counts, known
        if statistic in ("min", "smallest"):
            return np.minimum.reduceat(np.where(recorded, values, np.inf), starts, axis=0), known
        return np.maximum.reduceat(np.where(recorded, values, -np.inf), starts, axis=0), known


def _ratios(
    present: npt.NDArray[np.uint8], measured: npt.NDArray[np.float64], spreads: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The standard deviation of each update over that of the value before, and where there is one.

    There is none where all elements of a value are alike, or all have moved alike: deviations say nothing then.
    """
    # The two spreads are those of as many elements. Of elements that are alike, rounding may leave a spread.
    value, change = np.moveaxis(spreads, -1, 0)
    extremes = measured[:, :, [0, -1], :2]
    alike, moved_alike = np.moveaxis(extremes[..., 0] == extremes[..., 1], -1, 0)
    unmoved = moved_alike & (extremes[:, :, 1, 0] == 0)
    known = (present & UPDATED != 0) & (value != 0) & ~alike & (unmoved | ~moved_alike)
    with np.errstate(all="ignore"):
        return np.where(unmoved, 0.0, change / np.where(known, value, 1.0)), known


def _divisors(steps: list[StepRows], quantity: str, recorded: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The scale of each gradient, NaN if it is not known. In ``recorded``, takes back updates that a scaler skipped."""
    divisors = np.ones(recorded.shape)
    for at, rows in enumerate(steps):
        if quantity == "grad":
            if isinstance(rows.loss_scale, Mapping):
                divisors[at] = [_scale_of(name, rows.loss_scale) for name in rows.layout.names]
            else:
                divisors[at] = _number(rows.loss_scale)
            continue
        for update in rows.updates:
            divisors[at, update.indices] = _number(update.divisor)
            if _number(update.skipped):
                recorded[at, update.indices] = False
    return divisors


def _histogram(numbers: list[float], loss_scale: float) -> tuple[float, float, list[int] | None]:
    low, high, *counts = numbers
    # The scale may be 0, as above.
    with np.errstate(all="ignore"):
        extremes = np.array([low, high]) / loss_scale
    return extremes[0], extremes[1], None if np.isnan(counts[0]) else [int(count) for count in counts]


def _of_outputs(count: int, units: int, numbers: list[float]) -> tuple[float | None, ...]:
    """The statistics of a module's outputs: so many numbers, of so many units."""
    low, high, mean, spread, nonzero, saturated, active = numbers
    return (
        *(low, high, mean, spread / np.sqrt(count), (count - nonzero) / count),
        None if np.isnan(saturated) else saturated / count,
        (units - active) / units if units else None,
    )


def _numbers(steps: list[StepRows]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """All measured numbers, as float64 of shape (steps, rows, quantities, measured); and (…, 2), the spreads."""
    layout = steps[0].layout
    shape = len(layout.rows), len(layout.quantities), len(layout.measures.measured)
    beyond = shape[1] * shape[2]
    numbers = np.zeros((len(steps), shape[0], beyond + 2))
    for device, groups in enumerate(layout.groups):
        joined = b"".join(_bytes(rows.copies[device]) for rows in steps)
        blocks = np.frombuffer(joined, dtype=np.uint8).reshape(len(steps), -1)
        for group in groups:
            raw = np.ascontiguousarray(blocks[:, group.offset_bytes : group.offset_bytes + group.size_bytes])
            values = raw.view(_NUMPY[group.dtype])
            if group.dtype is torch.bfloat16:
                # numpy has no bfloat16, which is the upper half of a float32.
                values = (values.astype(np.uint32) << 16).view(np.float32)
            values = values.reshape(len(steps), len(group.indices), len(group.columns))
            numbers[:, group.indices[:, None], group.columns] = values
    return numbers[..., :beyond].reshape(len(steps), *shape), numbers[..., beyond:]
