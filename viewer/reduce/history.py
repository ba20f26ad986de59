"""The run as a figure needs it: reduced to bins of steps, bounded in memory, with every extreme.

A bin holds the minimum of minima, the maximum of maxima, and its first step with a NaN or an infinity. So no spike and
no NaN is lost, however long the run is. As the bins fill, the resolution of steps is halved.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from tracer.log.schema import RATIO, STATISTICS
from viewer.options import OF_OUTPUTS, SPREAD, View, ViewOptions, matching
from viewer.reduce.bins import CAPACITY, HISTOGRAMS, METRICS, Bins, mean, of_extremes, seconds_of
from viewer.reduce.depth import DEPTH, Depth
from viewer.reduce.heatmap import Magnitudes
from viewer.reduce.modules import trained
from viewer.snapshot import Curve, Extremes, Heatmap, Histogram
from viewer.words import MODEL

# The heat map of all parameters has at most so many cells, in at most so many columns.
_CELLS, _COLUMNS = 1_000_000, 512
_HISTOGRAM_COLUMNS = 256
_SPEED_SECONDS = 60.0
# The name of a statistic that is made of recorded ones.
BITS = "bits"


_OUTPUTS = "activations"


def _needed(statistic: str) -> list[str]:
    """Give the columns that hold a statistic: every log's extremes give the largest magnitude."""
    if statistic in OF_OUTPUTS:
        return ["min", "max"] if statistic == "absmax" else [statistic]
    of, _, name = statistic.partition("_")
    if name == BITS:
        return [f"{of}_min", f"{of}_max", f"{of}_smallest"]
    return [f"{of}_min", f"{of}_max"] if name == "absmax" else [statistic]


def _with_bits(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Add dynamic ranges, the powers of two from the smallest magnitude that is not 0 to the largest, where recorded.

    A smallest magnitude of 0 says that there is none: it becomes null.
    """
    columns = []
    for name in rows.collect_schema().names():
        of, _, statistic = name.partition("_")
        if statistic == "smallest":
            largest = pl.max_horizontal(pl.col(f"{of}_min", f"{of}_max").abs())
            smallest = pl.when(pl.col(name) > 0).then(pl.col(name))
            # Their quotient may overflow. What is not finite stays what it is.
            bits = pl.when(largest.is_finite()).then(largest.log(2) - smallest.log(2)).otherwise(largest)
            columns += [smallest, bits.alias(f"{of}_{BITS}")]
    return rows.with_columns(columns)


class History:
    """Keeps of a run's rows what a view shows.

    Args:
        options: The view, and the ranks and parameters that it shows.
        params: The parameters in model order.
        capacity: How many bins each curve has.
        stride: How many steps lie between rows; None where that changes.
        update_every: One of so many steps has what its update changed.
        weights: The trained weights in model order.

    Attributes:
        tables: The tables whose rows it takes.
    """

    def __init__(
        self,
        options: ViewOptions | None = None,
        params: Sequence[str] = (),
        capacity: int = CAPACITY,
        stride: int | None = 1,
        update_every: int = 1,
        weights: Sequence[str] = (),
    ) -> None:
        self._options = options or ViewOptions()
        self._params = matching(list(params), self._options.params)
        self._depth = Depth(matching(list(weights), self._options.params))
        self._statistics = list(STATISTICS)
        # The last step and time of all rows, those that are not shown included.
        self._newest = -1, -math.inf
        columns = max(16, min(_COLUMNS, _CELLS // max(1, len(self._params))))
        self._bins: dict[str, Bins | Magnitudes]
        if self._options.view is View.LAYERS:
            statistic = self._options.statistic
            shown = [statistic] if statistic.endswith(f"_{BITS}") else _needed(statistic)
            width = max(stride or 1, update_every if statistic.startswith("update") else 1)
            self._bins = {"extremes": Magnitudes(shown, self._params, columns, width, stride is None)}
        elif self._options.view is View.ACTIVATIONS:
            shown = _needed(self._options.statistic)
            outputs = Magnitudes(shown, (), columns, stride or 1, stride is None)
            # How far a run is, and how fast, is known by its extremes: not every run has activations.
            self._bins = {_OUTPUTS: outputs, "extremes": Bins(of_extremes([]), capacity)}
        elif self._options.view is View.PARAM:
            self._bins = {
                "extremes": Bins(of_extremes(self._statistics), capacity),
                "histograms": Bins(HISTOGRAMS, _HISTOGRAM_COLUMNS),
            }
        else:
            keys = ("rank",) if self._options.rank == SPREAD else ()
            self._bins = {
                "extremes": Bins(of_extremes([*STATISTICS, *DEPTH], keys), capacity),
                "metrics": Bins(METRICS, capacity),
            }
        self.tables = (*self._bins, *(["events"] if "metrics" in self._bins else []))
        self._recorded: frozenset[str] = frozenset()

    def absorb(self, table: str, rows: pl.LazyFrame) -> None:
        """Take in rows of one of the tables."""
        if self._options.only_rank is not None:
            rows = rows.filter(pl.col("rank") == self._options.only_rank)
        if table == "events":
            self._note_order(rows)
            return
        bins = self._bins[table]
        if self._options.view is View.PARAM or self._options.params:
            # The run's progress does not depend on which parameters are shown.
            step, time = rows.select(pl.col("step").max(), pl.col("time").max()).collect().row(0)
            if step is not None:
                self._newest = max(self._newest[0], step), max(self._newest[1], time.timestamp())
        if table == _OUTPUTS:
            rows = self._of_modules(rows)
        elif self._options.view is View.PARAM:
            rows = rows.filter(pl.col("param") == self._options.param)
        elif table == "extremes" and self._options.params and self._options.view is not View.ACTIVATIONS:
            names = rows.select(pl.col("param").unique().cast(pl.String)).collect()["param"].to_list()
            rows = rows.filter(pl.col("param").is_in(matching(names, self._options.params)))
        if table == "extremes":
            rows = self._with_statistics(rows)
            if self._options.view is View.OVERVIEW:
                rows = rows.with_columns(self._depth.columns())
        bins.absorb(rows)

    def _of_modules(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Give the rows of the modules that are shown, as if they were parameters; and learn what was recorded."""
        has = rows.select(pl.col(OF_OUTPUTS[1:]).is_not_null().any()).collect().row(0, named=True)
        self._recorded |= {name for name, holds in has.items() if holds}
        rows = trained(rows).with_columns(pl.col("module").cast(pl.String).replace("", MODEL).alias("param"))
        names = rows.select(pl.col("param").unique(maintain_order=True)).collect()["param"].to_list()
        shown = matching(names, self._options.params)
        bins = self._bins[_OUTPUTS]
        assert isinstance(bins, Magnitudes)
        bins.know(shown)
        return rows.filter(pl.col("param").is_in(shown))

    @property
    def recorded(self) -> tuple[str, ...]:
        """What is known of modules' outputs, so far; nothing in other views."""
        extremes = {"absmax"} if self._recorded else set()
        return tuple(name for name in OF_OUTPUTS if name in self._recorded | extremes)

    def _note_order(self, events: pl.LazyFrame) -> None:
        """Learn in which order gradients arrive; what was kept of other layers as the first and the last goes."""
        bins = self._bins["extremes"]
        if self._depth.note(events) and isinstance(bins, Bins) and bins.frame is not None:
            bins.frame = bins.frame.with_columns(pl.lit(None, pl.Float64).alias(name) for name in DEPTH)

    def _with_statistics(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Add the columns that are needed and missing: parts of one table may differ in their statistics."""
        if self._options.view is View.PARAM:
            rows = _with_bits(rows)
        columns = rows.collect_schema().names()
        needed = self._statistics
        if self._options.view is View.LAYERS:
            needed = _needed(self._options.statistic)
        elif self._options.view is View.PARAM:
            recorded = (name for name in columns if name.startswith(("value_", "grad_", "applied_")) or name == RATIO)
            further = [name for name in recorded if name not in needed]
            bins = self._bins["extremes"]
            if further and isinstance(bins, Bins):
                self._statistics = needed = needed + further
                bins.reduction = of_extremes(sorted(needed))
        rows = rows.with_columns(pl.lit(None, pl.Float64).alias(name) for name in needed if name not in columns)
        of_bits = self._options.view is View.LAYERS and self._options.statistic.endswith(f"_{BITS}")
        return _with_bits(rows) if of_bits else rows

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
        """Give the speed over the last minute, or over the last two bins if they took longer; None where unknown."""
        steps, seconds = self._bins["extremes"].ends()
        if len(steps) < 2:
            return None
        ages = seconds[-1] - seconds
        # Times from before a clock was set back say nothing about the speed.
        beyond = np.flatnonzero((ages < 0) | (ages > _SPEED_SECONDS))
        begin = min(int(beyond[-1]) + 1 if len(beyond) else 0, len(steps) - 2)
        elapsed = seconds[-1] - seconds[begin]
        return float((steps[-1] - steps[begin]) / elapsed) if elapsed > 0 else None

    def curves(self) -> list[Curve]:
        """Give every metric, sorted by name."""
        bins = self._bins.get("metrics")
        if not isinstance(bins, Bins) or bins.frame is None or bins.newest is None:
            return []
        newest = bins.newest.select("name", mean(*map(pl.col, ("newest", "small_newest", "writers"))).alias("mean"))
        return _curves(bins.frame.sort("name", "bin"), dict(newest.iter_rows()))

    def _frame(self, table: str) -> pl.DataFrame | None:
        bins = self._bins.get(table)
        return bins.frame if isinstance(bins, Bins) else None

    def extremes(self) -> Extremes | None:
        """Give the extremes of all parameters, or of the one that is shown; None before the first row."""
        frame = self._frame("extremes")
        if frame is None:
            return None
        inner = None
        if "rank" in frame.columns:
            least = [pl.col(name).max() if name.endswith("_min") else pl.col(name).min() for name in STATISTICS]
            by_bin = frame.group_by("bin").agg(*least).sort("bin")
            inner = {name: by_bin[name].to_list() for name in STATISTICS}
            frame = frame.group_by("bin").agg(*of_extremes([*STATISTICS, *DEPTH]).reduce).sort("bin")
        numbers = [
            name
            for name in frame.columns
            if frame.schema[name] == pl.Float64 and name not in DEPTH and not name.startswith(RATIO)
        ]
        return Extremes(
            frame["step"].to_list(),
            {name: frame[name].to_list() for name in numbers},
            {
                of: frame[f"{of}_nonfinite"].drop_nulls().to_list()
                for of in ("value", "grad", "applied")
                if f"{of}_nonfinite" in frame.columns
            },
            seconds_of(frame),
            inner,
            {name: frame[name].to_list() for name in DEPTH if name in frame.columns},
            _ratio(frame) if f"{RATIO}_high" in frame.columns else None,
        )

    def histograms(self) -> dict[str, list[Histogram]]:
        """Give the shown parameter's histograms for "value" and "grad", by step; each rank has its own."""
        frame = self._frame("histograms")
        histograms: dict[str, list[Histogram]] = {}
        if frame is not None:
            rows = frame.filter(pl.col("counts").is_not_null())
            for of, step, low, high, counts, time in zip(
                *(rows[name].to_list() for name in ("of", "step", "low", "high", "counts")),
                seconds_of(rows),
                strict=True,
            ):
                histograms.setdefault(of, []).append(Histogram(step, time, low, high, counts))
        return histograms

    def layers(self) -> Heatmap | None:
        """Give every parameter's, or every module's, magnitudes; None before the first row, and in other views."""
        bins = self._bins.get(_OUTPUTS, self._bins["extremes"])
        return bins.heatmap() if isinstance(bins, Magnitudes) else None


def _ratio(bins: pl.DataFrame) -> Curve:
    """The curve of bins in which a ratio was measured: those between have none, and nothing is wrong with them."""
    bad = pl.col("update_nonfinite")
    bins = bins.filter(pl.col(f"{RATIO}_high").is_not_null() | bad.is_not_null())
    low, high = (bins[f"{RATIO}_{end}"].fill_null(math.nan).to_list() for end in ("low", "high"))
    bad_steps = bins["update_nonfinite"].drop_nulls().to_list()
    return Curve(RATIO, bins["step"].to_list(), high, low, high, bad_steps, seconds_of(bins))


def _curves(bins: pl.DataFrame, newest: Mapping[str, float]) -> list[Curve]:
    """Cut bins, sorted by name, into curves. There may be thousands, so whole columns are converted at once."""
    nan = float("nan")
    logged = pl.when(pl.col("count") > 0).then(mean(*map(pl.col, ("total", "small_total", "count")))).fill_null(nan)
    nonfinite = bins["nonfinite"].to_list()
    columns = [
        bins["step"].to_list(),
        bins.select(logged).to_series().to_list(),
        bins["low"].fill_null(nan).to_list(),
        bins["high"].fill_null(nan).to_list(),
        seconds_of(bins),
    ]
    curves, begin = [], 0
    for name, count in bins.group_by("name", maintain_order=True).len().iter_rows():
        end = begin + count
        step, means, low, high, time = (column[begin:end] for column in columns)
        bad_steps = [step for step in nonfinite[begin:end] if step is not None]
        curves.append(Curve(name, step, means, low, high, bad_steps, time, newest[name]))
        begin = end
    return curves
