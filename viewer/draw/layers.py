"""All parameters, or the outputs of all modules, at a glance: a heat map of these × steps, its colours magnitudes."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tracer.log.schema import slices_among
from tracer.log.text import shortened
from viewer.draw.axes import SharedX, style_x_axis, x_values
from viewer.draw.curves import Curve
from viewer.draw.marks import Mark, draw_flag, flags
from viewer.draw.panels import Drawing, begin, style_axes
from viewer.draw.theme import narrow, theme
from viewer.options import View, ViewOptions, XAxis
from viewer.snapshot import Heatmap, Snapshot
from viewer.words import largest, no_rows, noticed, row_with

# More rows would be thinner than a pixel or two, and one might not be drawn at all.
_ROWS = 300
# The heat map takes at least this share of the figure's width.
_SHARE = 0.55
_LABELS_AN_INCH = 9
_ZERO, _ALARM = "#000000", "#e00000"
# Beyond these magnitudes, far from those of any training, a colour bar fails.
_SMALLEST, _LARGEST = 1e-200, 1e200


class Layers(Drawing):
    """The largest magnitude of a statistic of each parameter, or of each module's outputs, over the run."""

    _by_row = True

    def __init__(self, figure: Figure, options: ViewOptions, titled: bool = True) -> None:
        super().__init__(figure, options, titled)
        # The parameters in each row, or "module.*" for all of a module.
        self._rows: list[list[str]] = []
        self._magnitudes, self._alarms = np.zeros((0, 1)), np.zeros((0, 1), dtype=np.bool_)
        # The first step of each column, and where columns begin and end on the x axis.
        self._steps, self._edges = range(0), np.zeros(1)
        self._flags: list[Text] = []
        begin(figure, options)
        self._axes = figure.subplots()
        self._note = style_axes(self._axes, options, "", no_rows((), options))
        self._note.set_zorder(5)
        self._axes.grid(visible=False)
        self._axes.tick_params(labelsize=7)
        style_x_axis(self._axes, options)
        labels = max(1, int(_LABELS_AN_INCH * figure.get_figheight()))
        self._axes.yaxis.set_major_locator(MaxNLocator(labels, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        self._axes.yaxis.set_major_formatter(FuncFormatter(lambda row, _: self._label(float(row))))
        self._axes.format_coord = self._under  # type: ignore[method-assign]
        scale = matplotlib.colormaps["cividis"].with_extremes(under=_ZERO, bad=theme(options).blank)
        self._image, self._alarm = (
            self._axes.imshow([[np.nan]], aspect="auto", interpolation="nearest", cmap=cmap)
            for cmap in (scale, ListedColormap([_ALARM]))
        )
        for image in (self._image, self._alarm):
            image.set_mouseover(False)
        self._x = SharedX(self._axes)
        self._explain()

    def _explain(self) -> None:
        """Put the colour bar beside the heat map, and the legend below."""
        colours = theme(self._options)
        bar = self.figure.colorbar(self._image, ax=self._axes, extend="min", pad=0.01)
        bar.set_label(f"largest {largest(self._options)}", color=colours.ink, parse_math=False)
        bar.ax.tick_params(which="both", colors=colours.ink)
        bar.outline.set_edgecolor(colours.ink)
        self.figure.legend(
            handles=[
                Patch(facecolor=_ALARM, label="NaN or infinity"),
                Patch(facecolor=_ZERO, edgecolor=colours.faint, label="zero"),
                Patch(facecolor=colours.blank, edgecolor=colours.faint, label="not recorded"),
            ],
            loc="outside lower right",
            ncols=3,
            frameon=False,
            fontsize=7 if narrow(self.figure) else 8,
            labelcolor=colours.ink,
        )

    def _label(self, row: float) -> str:
        if not row.is_integer() or not 0 <= row < len(self._rows):
            return ""
        # matplotlib reads tick labels between unescaped dollars as mathematics.
        return shortened(self._name(int(row)), 14 if narrow(self.figure) else 28).replace("$", r"\$")

    def _name(self, row: int) -> str:
        names = self._rows[row]
        return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"

    def _under(self, x: float, y: float) -> str:
        """The parameter, step and magnitude under the mouse, for the toolbar."""
        row, column = round(y), int(np.searchsorted(self._edges, x, side="right")) - 1
        if not (0 <= row < len(self._rows) and 0 <= column < self._magnitudes.shape[1]):
            return ""
        magnitude = self._magnitudes[row, column]
        words = "not recorded" if np.isnan(magnitude) else f"{magnitude:.4g}"
        if self._alarms[row, column]:
            words = "NaN or infinity"
        step = round(x) if self._options.x is XAxis.STEP else self._steps[column]
        return f"{shortened(self._name(row), 60)}  step {step:,}  {words}"

    def update(self, snapshots: Sequence[Snapshot], now: float) -> None:
        """Draw the only snapshot; a zoomed axis keeps its limits."""
        self._entitle(snapshots, now)
        with self._x.updating():
            self._draw(snapshots)

    def _draw(self, snapshots: Sequence[Snapshot]) -> None:
        layers = snapshots[0].layers
        self.curves.clear()
        self._note.set_visible(layers is None)
        self._note.set_text(no_rows(snapshots, self._options))
        self._image.set_visible(layers is not None)
        self._alarm.set_visible(layers is not None and bool(layers.nonfinite.any()))
        while self._flags:
            self._flags.pop().remove()
        if layers is None:
            return
        pixels = max(1, int(self.figure.get_figwidth() * self.figure.dpi * _SHARE))
        together = -(-layers.magnitudes.shape[1] // pixels)
        self._rows, magnitudes, alarms = grouped(layers, together)
        self._magnitudes, self._alarms = magnitudes, alarms
        width = together * layers.width
        self._steps = range(layers.first_step, layers.first_step + width * magnitudes.shape[1], width)
        self._edges = column_edges(self._options, snapshots[0], layers, together)
        if self._options.x is not XAxis.STEP:
            magnitudes, alarms = in_cells(self._edges, magnitudes, alarms, pixels)
        extent = (self._edges[0], self._edges[-1], len(self._rows) - 0.5, -0.5)
        positive = magnitudes[magnitudes > 0]
        low, high = (float(positive.min()), float(positive.max())) if positive.size else (0.1, 1.0)
        # The scale covers a decade at least, so that it can be read.
        high = min(max(high, 10 * _SMALLEST), _LARGEST)
        low = max(min(low, high / 10), _SMALLEST)
        # A zero has no logarithm: a number below the scale stands for it, which has a colour of its own.
        self._image.set_data(np.where(magnitudes == 0, low / 10, magnitudes))
        self._image.set_norm(LogNorm(low, high))
        self._alarm.set_data(np.where(alarms, 1.0, np.nan))
        for image in (self._image, self._alarm):
            image.set_extent(extent)
        self._flag(snapshots)
        self._note_curves(snapshots[0], layers, together)

    def _note_curves(self, snapshot: Snapshot, layers: Heatmap, columns: int) -> None:
        """Keep each row as a curve; a column stands at its middle."""
        count, width = self._magnitudes.shape[1], columns * layers.width
        begins = layers.first_step + width * np.arange(count)
        ends = np.minimum(begins + width - 1, max(snapshot.last_step or 0, layers.first_step))
        time = [
            max(layers.time[begin : begin + columns], default=np.nan) for begin in range(0, count * columns, columns)
        ]
        middles = ((self._edges[:-1] + self._edges[1:]) / 2).tolist()
        colour = theme(self._options).ink
        for row, (magnitudes, alarms) in enumerate(zip(self._magnitudes, self._alarms, strict=True)):
            points = middles, ends.tolist(), time, magnitudes.tolist()
            bad_steps = ends[alarms].tolist()
            curve = Curve(self._axes, snapshot.name, self._name(row), colour, "-", *points, nonfinite=bad_steps)
            self.curves.append(curve)

    def _flag(self, snapshots: Sequence[Snapshot]) -> None:
        """Mark each finding at its first step, in the row of its first parameter, or of its module."""
        marks: dict[int, list[Mark]] = {}
        for number, _, finding in noticed(snapshots, self._options):
            row = row_of(self._rows, row_with(finding, self._options))
            if row is not None and finding.restart is None:
                marks.setdefault(row, []).append(Mark(number, finding, self._place(finding.first_step)))
        left, right, *_ = self._image.get_extent()
        for row, of_row in marks.items():
            for flag in flags(self._options, of_row, right - left):
                # No flag is cut off at the ends of the heat map.
                side: Literal["left", "right"] = "left" if flag.x < (left + right) / 2 else "right"
                self._flags.append(draw_flag(self._axes, self._options, flag, row, side))

    def _place(self, step: int) -> float:
        """The place of a step on the x axis; a time is known of the end of its column."""
        if self._options.x is XAxis.STEP:
            return step
        return float(self._edges[np.searchsorted(self._steps, step, side="right")])

    def picked(self, axes: Axes | None, y: float | None) -> ViewOptions | None:
        """The options that a click on a row leads to: its parameter, or the parameters of its modules."""
        if axes is not self._axes or y is None or not 0 <= round(y) < len(self._rows):
            return None
        names = self._rows[round(y)]
        if len(names) == 1 and not names[0].endswith(".*"):
            if self._options.view is View.ACTIVATIONS:
                return None
            return dataclasses.replace(self._options, view=View.PARAM, param=names[0])
        patterns = [f"^{re.escape(name[:-1])}" if name.endswith(".*") else f"^{re.escape(name)}$" for name in names]
        return dataclasses.replace(self._options, params="|".join(patterns))


def grouped(
    layers: Heatmap, columns: int = 1, limit: int = _ROWS
) -> tuple[list[list[str]], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Rows, magnitudes and alarms; too many parameters share rows by module, and by neighbours.

    Args:
        layers: The parameters.
        columns: How many columns become one.
        limit: How many rows there may be.
    """
    groups, group_of = _groups(tuple(layers.params), limit)
    together = -(-len(groups) // limit)
    rows = group_of // together
    cells = np.ix_(rows, np.arange(layers.magnitudes.shape[1]) // columns)
    magnitudes = np.full([int(places.max()) + 1 for places in cells], np.nan)
    alarms = np.zeros(magnitudes.shape, dtype=np.bool_)
    np.fmax.at(magnitudes, cells, layers.magnitudes)
    np.logical_or.at(alarms, cells, layers.nonfinite)
    return [list(groups[start : start + together]) for start in range(0, len(groups), together)], magnitudes, alarms


def column_edges(
    options: ViewOptions, snapshot: Snapshot, layers: Heatmap, together: int = 1
) -> npt.NDArray[np.float64]:
    """Where columns, each of ``together`` bins, begin and end on the x axis: at steps, or at the times of last rows."""
    count = -(-len(layers.magnitudes[0]) // together)
    if options.x is XAxis.STEP:
        return layers.first_step - 0.5 + np.arange(count + 1.0) * together * layers.width
    last = np.minimum(np.arange(1, count + 1) * together, len(layers.time)) - 1
    # A clock that was set back moves no column before another one.
    seconds = np.maximum.accumulate(np.asarray(layers.time)[last])
    # The first column is as wide as the second: nobody knows when it began.
    first = seconds[1] - seconds[0] if count > 1 and seconds[1] > seconds[0] else 1.0
    times = [seconds[0] - first, *seconds.tolist()]
    return np.array(x_values(options, snapshot, range(len(times)), times))


def cells_of(edges: npt.NDArray[np.float64], count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first of ``count`` cells of equal width that each column is in, and the one behind its last: one at least."""
    places = (edges - edges[0]) / (edges[-1] - edges[0]) * count
    begins = np.minimum(places[:-1].astype(np.int64), count - 1)
    return begins, np.maximum(np.ceil(places[1:]).astype(np.int64), begins + 1)


def in_cells(
    edges: npt.NDArray[np.float64], magnitudes: npt.NDArray[np.float64], alarms: npt.NDArray[np.bool_], count: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Magnitudes and alarms, of shape (rows, columns), in ``count`` cells of equal width: no column is lost."""
    shape = len(magnitudes), count
    cells, alarmed = np.full(shape, np.nan), np.zeros(shape, dtype=np.bool_)
    for column, place in enumerate(map(slice, *(ends.tolist() for ends in cells_of(edges, count)))):
        there = cells[:, place]
        np.fmax(there, magnitudes[:, column, None], out=there)
        alarmed[:, place] |= alarms[:, column, None]
    return cells, alarmed


def row_of(rows: Sequence[Sequence[str]], param: str | None) -> int | None:
    """The row of ``grouped`` in which a parameter is."""
    if param is None:
        return None
    # A slice may have a row, or share that of its parameter.
    for wanted in (param, param.rpartition("[")[0]):
        for row, names in enumerate(rows):
            if any(wanted == name or (name.endswith(".*") and wanted.startswith(name[:-1])) for name in names):
                return row
    return None


# The names of ten thousand parameters would take most of a redraw's time.
@functools.lru_cache(maxsize=8)
def _groups(params: tuple[str, ...], limit: int) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """The parameters, or their modules where they are too many; and the place of each parameter among these."""
    names: Sequence[str] = params
    if len(params) > limit:
        # What is in a slice is in its parameter.
        slices = slices_among(params)
        names = params = tuple(slices.get(name, name) for name in params)
    depth = max(name.count(".") for name in names)
    while len(set(names)) > limit and depth > 0:
        names = [re.sub(rf"^((?:[^.]*\.){{{depth}}}).*", r"\1*", name, flags=re.DOTALL) for name in params]
        depth -= 1
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return tuple(places), np.array([places[name] for name in names])
