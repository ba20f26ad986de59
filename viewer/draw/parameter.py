"""One parameter: its values and gradients as bands over the run, its further statistics, and its histograms."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from viewer.draw.axes import SharedX, linear_threshold, set_scale, style_x_axis, x_values
from viewer.draw.curves import Curve
from viewer.draw.marks import NonFinite, draw_band, draw_findings, draw_line, draw_nonfinite, last, numbers_of
from viewer.draw.panels import Drawing, Panel, begin
from viewer.draw.theme import narrow, theme
from viewer.options import Scale, ViewOptions, XAxis
from viewer.snapshot import Histogram, Snapshot
from viewer.words import KINDS, shortened

_HISTOGRAM_ROWS = 128


class Parameter(Drawing):
    """One parameter: a panel for its values, its gradients, and each further statistic."""

    def __init__(self, figure: Figure, options: ViewOptions, titled: bool = True) -> None:
        super().__init__(figure, options, titled)
        self._begin((), (), narrow(figure))

    def _begin(self, statistics: tuple[str, ...], histograms: tuple[str, ...], one_column: bool) -> None:
        self._has = statistics, histograms, one_column
        begin(self.figure, self._options)
        left = ("value", "gradient", *(f"{KINDS[kind]}\nhistogram" for kind in histograms))
        columns = [left + statistics] if one_column or not statistics else [left, statistics]
        grid = self.figure.add_gridspec(1, len(columns))
        first: Axes | None = None
        self._panels: dict[str, Panel] = {}
        self._bottoms: list[Axes] = []
        for column, names in enumerate(columns):
            stack = grid[0, column].subgridspec(len(names), 1)
            for row, name in enumerate(names):
                axes = self.figure.add_subplot(stack[row, 0], sharex=first)
                first = first or axes
                label = name if name in left else shortened(name)
                note = "no row of this parameter yet"
                self._panels[name] = Panel(axes, self._options, label, note, legend_above=True)
                axes.tick_params(labelbottom=False)
            style_x_axis(axes, self._options)
            self._bottoms.append(axes)
        self._x = SharedX(axes)

    def update(self, snapshots: Sequence[Snapshot], now: float) -> None:
        """Draw the only snapshot; a zoomed axis keeps its limits."""
        (snapshot,) = snapshots
        extremes = snapshot.extremes
        columns = extremes.statistics if extremes is not None else ()
        recorded = [name.removesuffix("_high") for name in columns if name.endswith("_high")]
        statistics = tuple(dict.fromkeys(name.partition("_")[2] for name in recorded))
        has = statistics, tuple(kind for kind in KINDS if kind in snapshot.histograms), narrow(self.figure)
        if has != self._has:
            self._begin(*has)
        self._entitle(snapshots, now, f"{shortened(self._options.param, 60)}  in  ")
        self.curves.clear()
        with self._x.updating():
            for name, kinds in (("value", ("value",)), ("gradient", ("grad", "applied"))):
                self._panels[name].draw(partial(self._draw_bands, kinds, snapshot), empty=extremes is None)
            for statistic in statistics:
                names = [f"{kind}_{statistic}" for kind in KINDS if f"{kind}_{statistic}" in recorded]
                self._panels[statistic].draw(partial(self._draw_statistic, names, snapshot), empty=False)
            for kind, histograms in snapshot.histograms.items():
                make = partial(self._draw_histograms, snapshot, histograms)
                self._panels[f"{KINDS[kind]}\nhistogram"].draw(make, empty=False)
            for name, panel in self._panels.items():
                panel.add(draw_findings(panel.axes, self._options, snapshots, numbered=name == "value"))
        for axes in self._bottoms:
            axes.tick_params(labelbottom=extremes is not None)

    def _draw_bands(self, kinds: Sequence[str], snapshot: Snapshot, axes: Axes) -> list[Artist]:
        extremes = snapshot.extremes
        if extremes is None:
            return []
        kinds = [kind for kind in kinds if f"{kind}_min" in extremes.statistics]
        numbers = [
            number for kind in kinds for end in ("min", "max") for number in extremes.statistics[f"{kind}_{end}"]
        ]
        set_scale(axes, self._options, numbers, Scale.SYMLOG)
        x = x_values(self._options, snapshot, extremes.step, extremes.time)
        artists: list[Artist] = []
        for kind in kinds:
            colour = self._colour(kind)
            low, high = (numbers_of(extremes.statistics[f"{kind}_{end}"]) for end in ("min", "max"))
            for heights, end, style in ((high, "max", "-"), (low, "min", "--")):
                artists.append(draw_line(axes, x, heights, f"{KINDS[kind]} {end}{last(heights)}", colour, style))
                points = x, extremes.step, extremes.time, heights
                name, bad_steps = f"{KINDS[kind]} {end}", extremes.nonfinite[kind]
                self.curves.append(Curve(axes, snapshot.name, name, colour, style, *points, nonfinite=bad_steps))
            artists += draw_band(axes, x, low, high, colour)
            bad = NonFinite(extremes.nonfinite[kind], extremes.step, x, KINDS[kind], colour)
            artists += draw_nonfinite(axes, self._options, bad)
        return artists

    def _colour(self, kind: str) -> str:
        return theme(self._options).palette[list(KINDS).index(kind)]

    def _draw_statistic(self, columns: Sequence[str], snapshot: Snapshot, axes: Axes) -> list[Artist]:
        extremes = snapshot.extremes
        assert extremes is not None, "columns are those of extremes"
        ends = [f"{column}_{end}" for column in columns for end in ("low", "high")]
        numbers = [number for end in ends for number in extremes.statistics[end]]
        set_scale(axes, self._options, numbers, Scale.LINEAR)
        x = x_values(self._options, snapshot, extremes.step, extremes.time)
        artists: list[Artist] = []
        for column in columns:
            kind = column.partition("_")[0]
            low, high = (numbers_of(extremes.statistics[f"{column}_{end}"]) for end in ("low", "high"))
            # Without clipping and unscaling, the applied gradient equals the other: dots let both be seen.
            style = ":" if kind == "applied" else "-"
            artists.append(draw_line(axes, x, high, f"{KINDS[kind]}{last(high)}", self._colour(kind), style))
            points = x, extremes.step, extremes.time, high
            name = f"{KINDS[kind]} {column.partition('_')[2]}"
            self.curves.append(Curve(axes, snapshot.name, name, self._colour(kind), style, *points, low=low))
            artists += draw_band(axes, x, low, high, self._colour(kind))
        return artists

    def _draw_histograms(self, snapshot: Snapshot, histograms: Sequence[Histogram], axes: Axes) -> list[Artist]:
        """A heat map: colours are shares of elements, rows are numbers, columns are times."""
        ends = [end for histogram in histograms for end in _range(histogram)]
        set_scale(axes, self._options, ends, Scale.SYMLOG)
        threshold = linear_threshold([abs(end) for end in ends if end])
        rows = _edges(min(ends), max(ends), self._options.scale is Scale.LINEAR, threshold)
        steps = sorted({histogram.step for histogram in histograms})
        shares = np.zeros((len(rows) - 1, len(steps)))
        times = dict.fromkeys(steps, 0.0)
        for histogram in histograms:
            shares[:, steps.index(histogram.step)] += regridded(histogram, rows)
            times[histogram.step] = histogram.time
        shares /= np.maximum(shares.sum(axis=0), 1)
        x = np.array(x_values(self._options, snapshot, steps, list(times.values())), dtype=float)
        # Each column reaches to the next; the last one is as wide as the one before.
        alone = 1 / 86_400 if self._options.x is XAxis.WALL else 1.0
        columns = np.append(x, x[-1] + (x[-1] - x[-2] if len(x) > 1 else alone))
        shown, norm = np.where(shares > 0, shares, np.nan), LogNorm(shares.max() / 1e3, shares.max(), clip=True)
        return [axes.pcolormesh(columns, rows, shown, cmap="cividis", norm=norm, rasterized=True)]


def _edges(low: float, high: float, linear: bool, threshold: float) -> npt.NDArray[np.float64]:
    """The edges of rows that are equally high on the screen, over the range of the numbers."""
    if linear:
        return np.linspace(low, high, _HISTOGRAM_ROWS + 1)
    places = np.linspace(np.arcsinh(low / threshold), np.arcsinh(high / threshold), _HISTOGRAM_ROWS + 1)
    edges: npt.NDArray[np.float64] = np.sinh(places) * threshold
    # Exact ends, so that no count falls beside the grid.
    edges[0], edges[-1] = low, high
    return edges


def _range(histogram: Histogram) -> tuple[float, float]:
    """The ends of a histogram's bins, as the log's format defines them."""
    low, high = histogram.low, histogram.high
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def regridded(histogram: Histogram, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A histogram's counts in other bins; the elements of a bin are spread evenly over it."""
    low, high = _range(histogram)
    # Edges as parts of the range: a slope over a range of 1e-308 would be infinite.
    own = np.linspace(0.0, 1.0, len(histogram.counts) + 1)
    below = np.concatenate([[0], np.cumsum(histogram.counts)])
    # With a subnormal range, numpy before 2 warns of an overflow, although the result is right.
    with np.errstate(over="ignore"):
        parts = (edges.clip(low, high) - low) / (high - low)
    filled: npt.NDArray[np.float64] = np.diff(np.interp(parts, own, below))
    # Rounding must not make a count negative.
    return np.maximum(filled, 0)
