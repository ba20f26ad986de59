"""What the viewer keeps in memory of a run: reduced to bins of steps, bounded, with every extreme in it.

A bin holds the minimum of minima and the maximum of maxima of its steps, and the first of them with a NaN or an
infinity, so that neither a spike nor a NaN is ever lost, however long the run. As the bins fill, their resolution is
halved.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from tracer.log.schema import STATISTICS
from viewer.grid import Grid
from viewer.look import SPREAD, Look, View, matching
from viewer.snapshot import Curve, Extremes, Heatmap, Histogram

# About two bins for each pixel of a wide figure.
CAPACITY = 2048
# So many cells has the strip of all parameters, in at most so many columns.
_CELLS, _COLUMNS = 1_000_000, 512
_HISTOGRAM_COLUMNS = 256
_SPEED_SECONDS = 60.0


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


# Of every bin the last step, and its time.
_LAST = (pl.col("step").max(), pl.col("time").max())


def _of_extremes(statistics: Iterable[str], keys: tuple[str, ...] = ()) -> Reduction:
    """Minimum of minima, maximum of maxima; what is neither has both, ``<name>_low`` and ``<name>_high``."""
    ends = [name for name in statistics if name.endswith(("_min", "_max"))]
    others = [name for name in statistics if name not in ends]
    kinds = sorted({name.partition("_")[0] for name in ends})
    return Reduction(
        keys,
        prepare=(
            *map(pl.col, ("step", "time", *keys)),
            *(_finite(name).alias(name) for name in ends),
            *(_finite(name).alias(f"{name}_{end}") for name in others for end in ("low", "high")),
            *(_first_nonfinite(*(n for n in ends if n.startswith(of))).alias(f"{of}_nonfinite") for of in kinds),
        ),
        reduce=(
            *_LAST,
            *(_extreme(name) for name in ends),
            *(pl.col(f"{name}_low").min() for name in others),
            *(pl.col(f"{name}_high").max() for name in others),
            *(pl.col(f"{of}_nonfinite").min() for of in kinds),
        ),
    )


def _needed(statistic: str) -> list[str]:
    """The columns that hold a statistic: the largest magnitude is in every log's extremes."""
    of, _, name = statistic.partition("_")
    return [f"{of}_min", f"{of}_max"] if name == "absmax" else [statistic]


_METRICS = Reduction(
    keys=("name",),
    prepare=(
        *map(pl.col, ("name", "step", "time")),
        _finite("value").alias("low"),
        _finite("value").alias("high"),
        _finite("value").alias("total"),
        pl.col("value").is_finite().cast(pl.Int64).alias("count"),
        pl.col("value").alias("newest"),
        pl.lit(1).alias("writers"),
        _first_nonfinite("value").alias("nonfinite"),
    ),
    reduce=(
        *_LAST,
        pl.col("low").min(),
        pl.col("high").max(),
        pl.col("total").sum(),
        pl.col("count").sum(),
        # What several ranks logged at the last step counts as its mean, too.
        pl.col("newest", "writers").filter(pl.col("step") == pl.col("step").max()).sum(),
        pl.col("nonfinite").min(),
    ),
)

# Of each bin the newest histogram, whole: what lies between is in the extremes.
_HISTOGRAMS = Reduction(
    keys=("of", "rank"),
    prepare=tuple(map(pl.col, ("of", "rank", "step", "time", "low", "high", "counts"))),
    reduce=(
        *_LAST,
        *(pl.col(column).sort_by("step").last() for column in ("low", "high", "counts")),
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
            .with_columns(pl.col(pl.Categorical).cast(pl.String))
        )
        if self.frame is not None:
            old = self.frame.with_columns(pl.col("bin").floordiv(width // self.width))
            new = pl.concat([old, new], how="diagonal").group_by(by).agg(*self.reduction.reduce)
        self.frame, self.width, self._steps = new.sort(by), width, steps

    def ends(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Of each bin the last step and its time in seconds since 1970."""
        if self.frame is None:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        frame = self.frame.group_by("bin").agg(*_LAST).sort("bin")
        return frame["step"].to_numpy(), np.array(_seconds(frame))


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
    """What a look needs of a run, bounded in memory.

    Args:
        look: What of the run, and of which ranks and parameters.
        params: The parameters in model order.
        capacity: How many bins each curve has.
        stride: How many steps lie between rows; None if that changes.

    Attributes:
        tables: The tables that it takes rows of.
    """

    def __init__(
        self, look: Look | None = None, params: Sequence[str] = (), capacity: int = CAPACITY, stride: int | None = 1
    ) -> None:
        self._look = look or Look()
        self._params = matching(list(params), self._look.params)
        self._statistics = set(STATISTICS)
        # The last step and time of rows that may not be shown.
        self._newest = -1, -math.inf
        columns = max(16, min(_COLUMNS, _CELLS // max(1, len(self._params))))
        self._bins: dict[str, Bins | Grid]
        if self._look.view is View.LAYERS:
            self._bins = {
                "extremes": Grid(_needed(self._look.statistic), self._params, columns, stride or 1, stride is None)
            }
        elif self._look.view is View.PARAM:
            self._bins = {
                "extremes": Bins(_of_extremes(self._statistics), capacity),
                "histograms": Bins(_HISTOGRAMS, _HISTOGRAM_COLUMNS),
            }
        else:
            keys = ("rank",) if self._look.rank == SPREAD else ()
            self._bins = {
                "extremes": Bins(_of_extremes(STATISTICS, keys), capacity),
                "metrics": Bins(_METRICS, capacity),
            }
        self.tables = tuple(self._bins)

    def absorb(self, table: str, rows: pl.LazyFrame) -> None:
        """Take in rows of one of the tables."""
        bins = self._bins[table]
        if self._look.only_rank is not None:
            rows = rows.filter(pl.col("rank") == self._look.only_rank)
        if self._look.view is View.PARAM or self._look.params:
            # How far the run is does not depend on what of it is shown.
            step, time = rows.select(pl.col("step").max(), pl.col("time").max()).collect().row(0)
            if step is not None:
                self._newest = max(self._newest[0], step), max(self._newest[1], time.timestamp())
        if self._look.view is View.PARAM:
            rows = rows.filter(pl.col("param") == self._look.param)
        elif table == "extremes" and self._look.params:
            names = rows.select(pl.col("param").unique().cast(pl.String)).collect()["param"].to_list()
            rows = rows.filter(pl.col("param").is_in(matching(names, self._look.params)))
        if table == "extremes":
            rows = self._with_statistics(rows)
        bins.absorb(rows)

    def _with_statistics(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Rows with every column that is needed: parts of one table may differ in their statistics."""
        columns = rows.collect_schema().names()
        needed = self._statistics
        if self._look.view is View.LAYERS:
            needed = set(_needed(self._look.statistic))
        elif self._look.view is View.PARAM:
            found = {name for name in columns if name.startswith(("value_", "grad_", "applied_"))}
            bins = self._bins["extremes"]
            if found - needed and isinstance(bins, Bins):
                self._statistics = needed = needed | found
                bins.reduction = _of_extremes(sorted(needed))
        return rows.with_columns(pl.lit(None, pl.Float64).alias(name) for name in needed - set(columns))

    @property
    def last_step(self) -> int | None:
        """The last step of any row; None before the first row."""
        steps = [int(max(steps)) for steps, _ in self._ends()]
        return max([*steps, self._newest[0]]) if steps or self._newest[0] >= 0 else None

    @property
    def last_time(self) -> float | None:
        """When the newest row was made, in seconds since 1970; None before the first row."""
        seconds = [float(max(seconds)) for _, seconds in self._ends()]
        return max([*seconds, self._newest[1]]) if seconds or self._newest[0] >= 0 else None

    def _ends(self) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
        return [ends for bins in self._bins.values() if len((ends := bins.ends())[0])]

    def steps_per_second(self) -> float | None:
        """The speed over the last minute, or over the last two bins where these take longer; None where unknown."""
        steps, seconds = self._bins["extremes"].ends()
        if len(steps) < 2:
            return None
        ages = seconds[-1] - seconds
        # Before a clock was set back, times say nothing about the speed.
        beyond = np.flatnonzero((ages < 0) | (ages > _SPEED_SECONDS))
        begin = min(int(beyond[-1]) + 1 if len(beyond) else 0, len(steps) - 2)
        elapsed = seconds[-1] - seconds[begin]
        return float((steps[-1] - steps[begin]) / elapsed) if elapsed > 0 else None

    def curves(self) -> list[Curve]:
        """Every metric, by name."""
        frame = self._frame("metrics")
        if frame is None:
            return []
        return [_curve(str(name), bins) for (name,), bins in sorted(frame.group_by("name", maintain_order=True))]

    def _frame(self, table: str) -> pl.DataFrame | None:
        bins = self._bins.get(table)
        return bins.frame if isinstance(bins, Bins) else None

    def extremes(self) -> Extremes | None:
        """The extremes of all parameters, or of the one that is shown; None before their first row."""
        frame = self._frame("extremes")
        if frame is None:
            return None
        inner = None
        if "rank" in frame.columns:
            least = [pl.col(name).max() if name.endswith("_min") else pl.col(name).min() for name in STATISTICS]
            by_bin = frame.group_by("bin").agg(*least).sort("bin")
            inner = {name: by_bin[name].to_list() for name in STATISTICS}
            frame = frame.group_by("bin").agg(*_of_extremes(STATISTICS).reduce).sort("bin")
        numbers = [name for name in frame.columns if frame.schema[name] == pl.Float64]
        return Extremes(
            frame["step"].to_list(),
            {name: frame[name].to_list() for name in numbers},
            {
                of: frame[f"{of}_nonfinite"].drop_nulls().to_list()
                for of in ("value", "grad", "applied")
                if f"{of}_nonfinite" in frame.columns
            },
            _seconds(frame),
            inner,
        )

    def histograms(self) -> dict[str, list[Histogram]]:
        """The shown parameter's, for "value" and "grad", by step; several of one step are of several ranks."""
        frame = self._frame("histograms")
        found: dict[str, list[Histogram]] = {}
        if frame is not None:
            rows = frame.filter(pl.col("counts").is_not_null())
            for of, step, low, high, counts, time in zip(
                *(rows[name].to_list() for name in ("of", "step", "low", "high", "counts")), _seconds(rows), strict=True
            ):
                found.setdefault(of, []).append(Histogram(step, time, low, high, counts))
        return found

    def layers(self) -> Heatmap | None:
        """Every parameter's magnitudes; None before the first row, or where they were not asked for."""
        grid = self._bins["extremes"]
        return grid.layers() if isinstance(grid, Grid) else None


def _seconds(frame: pl.DataFrame) -> list[float]:
    return (frame["time"].dt.epoch("us") / 1e6).to_list()


def _curve(name: str, bins: pl.DataFrame) -> Curve:
    mean = bins.select(pl.when(pl.col("count") > 0).then(pl.col("total") / pl.col("count")).fill_null(float("nan")))
    return Curve(
        name,
        bins["step"].to_list(),
        mean.to_series().to_list(),
        bins["low"].fill_null(float("nan")).to_list(),
        bins["high"].fill_null(float("nan")).to_list(),
        bins["nonfinite"].drop_nulls().to_list(),
        _seconds(bins),
        bins["newest"][-1] / bins["writers"][-1],
    )
