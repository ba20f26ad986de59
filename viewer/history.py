"""What the viewer keeps in memory of a run: reduced to bins of steps, bounded, with every extreme in it.

A bin holds the minimum of minima and the maximum of maxima of its steps, and the first of them with a NaN or an
infinity, so that neither a spike nor a NaN is ever lost, however long the run. As the bins fill, their resolution is
halved.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from tracer.log.schema import STATISTICS

# About two bins for each pixel of a wide figure.
CAPACITY = 2048
# So many cells has the strip of all parameters, in at most so many columns.
_CELLS, _COLUMNS = 1_000_000, 512


def _finite(column: str) -> pl.Expr:
    # polars' min and max skip NaN but not infinity, and one infinity would hide what is finite in its bin.
    return pl.when(pl.col(column).is_finite()).then(pl.col(column))


def _extreme(column: str) -> pl.Expr:
    return pl.col(column).min() if column.endswith("_min") else pl.col(column).max()


def _first_nonfinite(*columns: str) -> pl.Expr:
    return pl.when(pl.any_horizontal(pl.col(column).is_finite().not_() for column in columns)).then(pl.col("step"))


@dataclass(frozen=True)
class Reduction:
    """How rows become bins: each row is prepared, then a bin's rows, and later bins, are reduced by the same rules."""

    keys: tuple[str, ...]
    prepare: tuple[pl.Expr, ...]
    reduce: tuple[pl.Expr, ...]


OVERALL_EXTREMES = Reduction(
    keys=(),
    prepare=(
        pl.col("step"),
        *(_finite(statistic).alias(statistic) for statistic in STATISTICS),
        _first_nonfinite("value_min", "value_max").alias("value_nonfinite"),
        _first_nonfinite("grad_min", "grad_max").alias("grad_nonfinite"),
    ),
    reduce=(
        pl.col("step").max(),
        *(_extreme(statistic) for statistic in STATISTICS),
        pl.col("value_nonfinite").min(),
        pl.col("grad_nonfinite").min(),
    ),
)


def _magnitude(of: str) -> pl.Expr:
    largest = pl.max_horizontal(pl.col(f"{of}_min").abs(), pl.col(f"{of}_max").abs())
    return pl.when(largest.is_finite()).then(largest).alias(of)


LAYERS = Reduction(
    keys=("param",),
    prepare=(
        pl.col("param"),
        pl.col("step"),
        _magnitude("value"),
        _magnitude("grad"),
        _first_nonfinite("value_min", "value_max").alias("value_nonfinite"),
        _first_nonfinite("grad_min", "grad_max").alias("grad_nonfinite"),
    ),
    reduce=(
        pl.col("step").max(),
        pl.col("value").max(),
        pl.col("grad").max(),
        pl.col("value_nonfinite").min(),
        pl.col("grad_nonfinite").min(),
    ),
)

METRICS = Reduction(
    keys=("name",),
    prepare=(
        pl.col("name"),
        pl.col("step"),
        _finite("value").alias("low"),
        _finite("value").alias("high"),
        _finite("value").alias("total"),
        pl.col("value").is_finite().cast(pl.Int64).alias("count"),
        _first_nonfinite("value").alias("nonfinite"),
    ),
    reduce=(
        pl.col("step").max(),
        pl.col("low").min(),
        pl.col("high").max(),
        pl.col("total").sum(),
        pl.col("count").sum(),
        pl.col("nonfinite").min(),
    ),
)


@dataclass
class Bins:
    """Rows reduced to at most ``capacity`` bins of consecutive steps, for each value of the keys.

    Attributes:
        width: How many steps a bin covers.
        frame: A row a bin and key: ``bin``, the keys, ``step`` (the last one in the bin) and what the reduction makes.
    """

    reduction: Reduction
    capacity: int = CAPACITY
    width: int = 1
    frame: pl.DataFrame | None = None
    _steps: tuple[int, int] | None = field(default=None, repr=False)

    def absorb(self, rows: pl.LazyFrame) -> None:
        """Reduce rows into the bins, in any order of steps; where this raises, nothing has changed."""
        first, last = (
            rows.select(pl.col("step").min().alias("first"), pl.col("step").max().alias("last")).collect().row(0)
        )
        if first is None:
            return
        known = self._steps or (first, last)
        steps = min(first, known[0]), max(last, known[1])
        width = self.width
        while steps[1] // width - steps[0] // width >= self.capacity:
            width *= 2
        by = ("bin", *self.reduction.keys)
        new = (
            rows.select(*self.reduction.prepare)
            .with_columns(pl.col("step").floordiv(width).alias("bin"))
            .group_by(by)
            .agg(*self.reduction.reduce)
            .collect(engine="streaming")
            # Dictionaries of different parts need not agree.
            .with_columns(pl.col(key).cast(pl.String) for key in self.reduction.keys)
        )
        if self.frame is not None:
            old = self.frame.with_columns(pl.col("bin").floordiv(width // self.width))
            new = pl.concat([old, new]).group_by(by).agg(*self.reduction.reduce)
        self.frame, self.width, self._steps = new.sort(by), width, steps


@dataclass(frozen=True)
class Curve:
    """A metric over the run: for each bin its last step, the mean, lowest and highest finite value.

    ``nonfinite`` holds, of each bin that has a NaN or an infinity, the first such step.
    """

    name: str
    step: Sequence[int]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    nonfinite: Sequence[int]


@dataclass(frozen=True)
class Extremes:
    """The overall extremes over the run: for each bin its last step and the four numbers, null where there is none.

    ``nonfinite`` holds, for ``"value"`` and ``"grad"``, of each bin that has a NaN or an infinity the first such step.
    """

    step: Sequence[int]
    statistics: Mapping[str, Sequence[float | None]]
    nonfinite: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Layers:
    """The largest magnitudes of every parameter over the run.

    Attributes:
        params: The parameters, in model order: the rows.
        first_step: The step with which the first column begins.
        width: How many steps a column covers.
        magnitudes: For ``"value"`` and ``"grad"`` float64 of shape (parameters, columns): NaN where there is none.
        nonfinite: Likewise, bool: whether there was a NaN or an infinity.
    """

    params: Sequence[str]
    first_step: int
    width: int
    magnitudes: Mapping[str, npt.NDArray[np.float64]]
    nonfinite: Mapping[str, npt.NDArray[np.bool_]]


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """An exponential moving average without the bias of its beginning, as TensorBoard draws it.

    What is not finite stands in its place and is not averaged, and a constant is left as it is; the formula is that of
    ``classicSmoothing`` in TensorBoard's ``line_chart_v2/data_transformer.ts``.

    Args:
        values: The numbers, in order.
        weight: How much of the average each number inherits: 0 for none, less than 1.
    """
    if len(set(values)) <= 1:
        return list(values)
    average, counted = 0.0, 0
    found = []
    for value in values:
        if not math.isfinite(value):
            found.append(value)
            continue
        average = average * weight + (1 - weight) * value
        counted += 1
        found.append(average / (1 - weight**counted))
    return found


class History:
    """A run's metrics and overall extremes, bounded in memory.

    Args:
        capacity: How many bins each curve has.
        params: The parameters in model order, where ``layers`` will be asked for.
    """

    def __init__(self, capacity: int = CAPACITY, params: Sequence[str] | None = None) -> None:
        self._extremes = Bins(OVERALL_EXTREMES, capacity)
        self._metrics = Bins(METRICS, capacity)
        self._params = params or ()
        columns = max(16, min(_COLUMNS, _CELLS // max(1, len(self._params))))
        self._layers = None if params is None else Bins(LAYERS, columns)

    def absorb_extremes(self, rows: pl.LazyFrame) -> None:
        """Take in rows of the table ``extremes``."""
        if self._layers is not None:
            self._layers.absorb(rows)
        self._extremes.absorb(rows)

    def absorb_metrics(self, rows: pl.LazyFrame) -> None:
        """Take in rows of the table ``metrics``."""
        self._metrics.absorb(rows)

    @property
    def last_step(self) -> int | None:
        """The last step of any row; None before the first row."""
        frames = [bins.frame for bins in (self._extremes, self._metrics) if bins.frame is not None]
        return max((int(frame["step"].max()) for frame in frames), default=None)  # type: ignore[arg-type]

    def curves(self) -> list[Curve]:
        """Every metric, by name."""
        frame = self._metrics.frame
        if frame is None:
            return []
        return [_curve(str(name), bins) for (name,), bins in sorted(frame.group_by("name", maintain_order=True))]

    def extremes(self) -> Extremes | None:
        """The overall extremes; None before their first row."""
        frame = self._extremes.frame
        if frame is None:
            return None
        return Extremes(
            frame["step"].to_list(),
            {statistic: frame[statistic].to_list() for statistic in STATISTICS},
            {of: frame[f"{of}_nonfinite"].drop_nulls().to_list() for of in ("value", "grad")},
        )

    def layers(self) -> Layers | None:
        """Every parameter's magnitudes; None before the first row, or where they were not asked for."""
        if self._layers is None or self._layers.frame is None:
            return None
        frame, width = self._layers.frame, self._layers.width
        # Those that came later stand behind those that run.json names.
        params = list(dict.fromkeys([*self._params, *frame["param"].unique(maintain_order=True)]))
        index_of = {name: index for index, name in enumerate(params)}
        columns = (frame["bin"] - frame["bin"].min()).to_numpy()
        rows = np.array([index_of[name] for name in frame["param"]])
        shape = len(params), int(columns.max()) + 1
        magnitudes, nonfinite = {}, {}
        for of in ("value", "grad"):
            magnitudes[of] = np.full(shape, np.nan)
            magnitudes[of][rows, columns] = frame[of].cast(pl.Float64).fill_null(float("nan")).to_numpy()
            nonfinite[of] = np.zeros(shape, dtype=np.bool_)
            nonfinite[of][rows, columns] = frame[f"{of}_nonfinite"].is_not_null().to_numpy()
        return Layers(params, int(frame["bin"][0]) * width, width, magnitudes, nonfinite)


def _curve(name: str, bins: pl.DataFrame) -> Curve:
    mean = bins.select(pl.when(pl.col("count") > 0).then(pl.col("total") / pl.col("count")).fill_null(float("nan")))
    return Curve(
        name,
        bins["step"].to_list(),
        mean.to_series().to_list(),
        bins["low"].fill_null(float("nan")).to_list(),
        bins["high"].fill_null(float("nan")).to_list(),
        bins["nonfinite"].drop_nulls().to_list(),
    )
