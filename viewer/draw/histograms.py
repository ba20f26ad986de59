"""The histograms of a parameter over the run: a heat map, or a ridge of mountains."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import PowerNorm
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from viewer.draw.axes import linear_threshold, set_scale, x_values
from viewer.draw.theme import theme
from viewer.options import Scale, ViewOptions, XAxis
from viewer.snapshot import Histogram, Snapshot

# The rows of a heat map on a linear axis, and the mountains of a ridge.
_ROWS, _MOUNTAINS = 256, 40
# A usual mountain is as high as so many others are behind it, or a quarter of all where there are few.
_OVERLAP = 6
# The height of a constant's only bin, in parts of the constant, or of where symlog is linear.
_THIN = 1 / 32
_COLOURS = "cividis"
# The peaks of so many columns are within the colours. A mountain may be twice as high as these.
_MOST, _HIGHEST = 0.9, 2.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """The histogram of all elements at one step.

    Attributes:
        step: The step.
        time: When it was made, in seconds since 1970.
        edges: The ends of bins, float64 of shape (bins + 1,); of a constant the number itself, twice.
        shares: The share of elements in each bin, float64 of shape (bins,): they sum to 1, or to 0 without an element.
    """

    step: int
    time: float
    edges: Floats
    shares: Floats

    @property
    def constant(self) -> bool:
        """Whether all elements are the same number."""
        return bool(self.edges[0] == self.edges[-1])

    def quantile(self, share: float) -> float:
        """The number below which so many elements lie; those of a bin are spread evenly over it."""
        below = np.concatenate([[0], np.cumsum(self.shares)])
        return float(np.interp(share, below, self.edges)) if below[-1] else np.nan


def columns_of(histograms: Sequence[Histogram]) -> list[Column]:
    """A column for each step: the histograms of several ranks are one, in as many bins over the range of all."""
    of_steps: dict[int, list[Histogram]] = {}
    for histogram in histograms:
        of_steps.setdefault(histogram.step, []).append(histogram)
    columns = []
    for step, together in sorted(of_steps.items()):
        low, high = min(one.low for one in together), max(one.high for one in together)
        edges = np.linspace(low, high, max(len(one.counts) for one in together) + 1 if low < high else 2)
        parts = [spread(np.linspace(one.low, one.high, len(one.counts) + 1), one.counts, edges) for one in together]
        counts = np.sum(parts, axis=0)
        columns.append(Column(step, max(one.time for one in together), edges, counts / max(counts.sum(), 1)))
    return columns


def spread(edges: Floats, numbers: Sequence[float] | Floats, others: Floats) -> Floats:
    """The numbers of bins, such as counts, in other bins: each is spread evenly over its bin.

    Args:
        edges: The ends of the bins.
        numbers: What is in them.
        others: The ends of the other bins, over at least the same range.
    """
    low, high = edges[0], edges[-1]
    if low == high:
        # All elements are this number: they are in the bin that holds it.
        place = np.clip(np.searchsorted(others, low, side="right") - 1, 0, len(others) - 2)
        alone = np.zeros(len(others) - 1)
        alone[place] = np.sum(numbers)
        return alone
    # Edges as parts of the range: a slope over a range of 1e-308 would be infinite.
    below = np.concatenate([[0], np.cumsum(numbers)])
    # With a subnormal range, numpy before 2 warns of an overflow, although the result is right.
    with np.errstate(over="ignore"):
        parts = (others.clip(low, high) - low) / (high - low)
    filled: Floats = np.diff(np.interp(parts, np.linspace(0.0, 1.0, len(below)), below))
    # Rounding must not make a count negative.
    return np.maximum(filled, 0)


def _in_rows(columns: Sequence[Column], linear: bool) -> list[Column]:
    """Columns as they are drawn.

    On a linear axis all have the same rows, so that their shares can be compared. On another axis such rows would hide
    the shape of what is small: each column keeps its own bins. Either way a share is that of a range of numbers, and
    not of what the axis makes of it: a bell is brightest at its mode.
    """
    ends = [float(end) for column in columns for end in (column.edges[0], column.edges[-1])]
    low, high = (min(ends), max(ends)) if min(ends) < max(ends) else (ends[0] - 0.5, ends[0] + 0.5)
    if linear:
        rows = np.linspace(low, high, _ROWS + 1)
        return [Column(one.step, one.time, rows, spread(one.edges, one.shares, rows)) for one in columns]
    thin = linear_threshold([abs(end) for end in ends if end]) * _THIN
    return [_thickened(one, thin) if one.constant else one for one in columns]


def _thickened(column: Column, least: float) -> Column:
    """A constant as a bin that is high enough to be seen."""
    half = max(abs(float(column.edges[0])) * _THIN, least)
    return Column(column.step, column.time, column.edges + np.array([-half, half]), column.shares.sum(keepdims=True))


def _peak(columns: Sequence[Column], rows: Sequence[Column]) -> float:
    """The largest share of most columns: the few that are narrower, as at first, would leave the others dark."""
    wide = [row for column, row in zip(columns, rows, strict=True) if not column.constant and row.shares.any()]
    return float(np.quantile([row.shares.max() for row in wide], _MOST)) if wide else 1.0


class ColourKey:
    """What the colours of a heat map of histograms mean, beside it."""

    def __init__(self, axes: Axes, options: ViewOptions) -> None:
        ink = theme(options).ink
        # The root tells tails from nothing, where all shares are small beside that of zeros.
        self.norm = PowerNorm(0.5, 0.0, 1.0, clip=True)
        figure = axes.get_figure(root=True)
        assert figure is not None, "the axes are in a figure"
        self.bar: Colorbar = figure.colorbar(
            ScalarMappable(self.norm, _COLOURS), ax=axes, extend="max", pad=0.01, aspect=30, ticks=MaxNLocator(3)
        )
        self.bar.set_label("share of elements", color=ink, fontsize=8)
        self.bar.ax.tick_params(which="both", colors=ink, labelsize=7)
        self.bar.outline.set_edgecolor(ink)


def draw_map(
    options: ViewOptions, snapshot: Snapshot, histograms: Sequence[Histogram], key: ColourKey, axes: Axes
) -> list[Artist]:
    """A heat map: columns are steps, rows are numbers, colours the share of elements; lines are quantiles."""
    columns = columns_of(histograms)
    set_scale(axes, options, [float(end) for one in columns for end in one.edges[[0, -1]]], Scale.LINEAR)
    rows = _in_rows(columns, axes.get_yscale() == "linear")
    key.norm.vmax = _peak(columns, rows)
    x = _x(options, snapshot, columns)
    # Each column reaches to the next; the last one is as wide as the one before.
    alone = 1 / 86_400 if options.x is XAxis.WALL else 1.0
    ends = np.append(x, x[-1] + (x[-1] - x[-2] if len(x) > 1 else alone))
    places = np.column_stack([ends[:-1], ends[1:]]).ravel()
    edges, shares = _mesh(columns, rows)
    mesh = axes.pcolormesh(
        np.tile(places, (len(edges), 1)), edges, shares, cmap=_COLOURS, norm=key.norm, rasterized=True
    )
    return [mesh, *_draw_lines(axes, options, columns, ends)]


def _mesh(columns: Sequence[Column], rows: Sequence[Column]) -> tuple[Floats, Floats]:
    """The heights and shares of a mesh: a column of cells for each column, and between two one without width.

    A mesh knows one edge between neighbours, while the bins of these may end at different heights.
    """
    bins = max(len(row.shares) for row in rows)
    edges, shares = np.empty((bins + 1, 2 * len(rows))), np.full((bins, 2 * len(rows) - 1), np.nan)
    for place, (column, row) in enumerate(zip(columns, rows, strict=True)):
        edges[:, 2 * place : 2 * place + 2] = row.edges[-1]
        edges[: len(row.edges), 2 * place : 2 * place + 2] = row.edges[:, None]
        # Beyond the extremes there is nothing, not even a share of 0.
        inside = (row.edges[1:] > column.edges[0]) & (row.edges[:-1] < column.edges[-1])
        shares[: len(row.shares), 2 * place] = np.where(inside | (row.shares > 0), row.shares, np.nan)
    return edges, shares


def _draw_lines(axes: Axes, options: ViewOptions, columns: Sequence[Column], ends: Floats) -> list[Artist]:
    """Quantiles over the columns, at each as long as it is; the extremes are where the colours end."""
    lines = [("95 %", "--", 0.95), ("median", "-", 0.5), ("5 %", ":", 0.05)]
    colours = theme(options)
    artists: list[Artist] = []
    for name, style, share in lines:
        heights = [one.quantile(share) for one in columns]
        artists += axes.plot(
            ends,
            [*heights, heights[-1]],
            style,
            drawstyle="steps-post",
            color=colours.ink,
            linewidth=0.8,
            label=name,
            path_effects=[withStroke(linewidth=1.6, foreground=colours.ground)],
        )
    return artists


def draw_ridge(options: ViewOptions, snapshot: Snapshot, histograms: Sequence[Histogram], axes: Axes) -> list[Artist]:
    """Mountains, the newest in front: along x are numbers, and each stands at its step, or time, of the y axis."""
    columns = columns_of(histograms)
    set_scale(axes, options, [float(end) for one in columns for end in one.edges[[0, -1]]], Scale.LINEAR, along="x")
    rows = _in_rows(columns, axes.get_xscale() == "linear")
    top = _peak(columns, rows)
    shown = np.unique(np.linspace(0, len(columns) - 1, min(_MOUNTAINS, len(columns))).round().astype(int))
    feet = _x(options, snapshot, columns)
    apart = (feet[-1] - feet[0]) / (len(shown) - 1) if len(shown) > 1 and feet[-1] > feet[0] else 1.0
    height = apart * min(_OVERLAP, max(1, len(shown) // 4))
    colours = matplotlib.colormaps[_COLOURS](np.linspace(0.1, 0.9, len(shown)))
    artists: list[Artist] = []
    for order, (place, colour) in enumerate(zip(shown, colours, strict=True)):
        row, foot = rows[place], feet[place]
        inside = np.flatnonzero(row.shares)
        if not len(inside):
            continue
        first, last = inside[0], inside[-1]
        middles = (row.edges[first : last + 1] + row.edges[first + 1 : last + 2]) / 2
        x = np.concatenate([[row.edges[first]], middles, [row.edges[last + 1]]])
        up = np.concatenate([[0.0], (row.shares[first : last + 1] / top).clip(max=_HIGHEST), [0.0]]) * height
        artists.append(
            axes.fill_between(
                x,
                foot,
                foot - up,
                facecolor=colour,
                edgecolor=theme(options).ink,
                linewidth=0.5,
                zorder=2 + order / 100,
            )
        )
    return artists


def _x(options: ViewOptions, snapshot: Snapshot, columns: Sequence[Column]) -> Floats:
    steps, times = [one.step for one in columns], [one.time for one in columns]
    return np.array(x_values(options, snapshot, steps, times), dtype=float)
