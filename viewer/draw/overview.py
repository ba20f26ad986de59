"""The overview: loss, accuracy and overall extremes of a run, or of several side by side."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from operator import attrgetter

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tracer.log.text import shortened
from viewer.draw.axes import SharedX, set_scale, style_x_axis, x_values
from viewer.draw.curves import Curve as DrawnCurve
from viewer.draw.grid import Grid, room
from viewer.draw.marks import (
    RAW,
    NonFinite,
    draw_band,
    draw_findings,
    draw_line,
    draw_nonfinite,
    drawable,
    last,
    numbers_of,
)
from viewer.draw.panels import Cell, Drawing, Panel, begin, style_axes
from viewer.draw.theme import ENDS, Colour, Style, run_colour, style_of, theme
from viewer.options import Scale, ViewOptions
from viewer.reduce.depth import DEPTH
from viewer.reduce.metrics import ACCURACY, FURTHER, LOSS, MetricPanel, panels
from viewer.snapshot import Curve, Extremes, Snapshot
from viewer.words import KINDS, NO_STEP, missing

_NOTES = {
    LOSS: "no metric with a word for loss in its name yet: trace.log(loss=…), or --loss REGEX",
    ACCURACY: "no metric with a word for accuracy in its name yet: trace.log(accuracy=…), or --accuracy REGEX",
}
# Where curves leave room: a loss falls, an accuracy rises.
_CORNERS = defaultdict(lambda: "upper right", {ACCURACY: "lower right"})
_NAMED = 3
# So few further metrics have panels as large as those of loss and accuracy. Of more, each has a small one.
_LARGE = 2
# The heights of large panels: of loss and accuracy, of further metrics, and of extremes.
_METRICS, _FURTHER, _EXTREMES = 3, 1.5, 4


def _none_chosen(snapshots: Sequence[Snapshot]) -> str:
    """The note where no metric is drawn: it names metrics that were logged, as a name may be mistyped."""
    logged = list(dict.fromkeys(curve.name for snapshot in snapshots for curve in snapshot.curves))
    if not logged:
        return "no such metric yet"
    more = f" and {len(logged) - _NAMED} more" if len(logged) > _NAMED else ""
    return f"no such metric yet; there are {', '.join(shortened(name, 20) for name in logged[:_NAMED])}{more}"


class Overview(Drawing):
    """Loss, accuracy, further metrics and overall extremes.

    One run has a colour for each curve, and one panel for all extremes. Several runs have a colour each, a panel for
    values and one for gradients.
    """

    def __init__(self, figure: Figure, options: ViewOptions | None = None, titled: bool = True) -> None:
        super().__init__(figure, options, titled)
        self._several = False
        self._begin(*panels((), self._options))

    def _begin(self, main: Sequence[MetricPanel], further: Sequence[MetricPanel]) -> None:
        self._shown = _titles(main, further)
        begin(self.figure, self._options)
        extremes = {"values": ("value",), "gradients": ("grad",)} if self._several else {"extremes": ("value", "grad")}
        small = len(further) > _LARGE
        names = [panel.title for panel in (main if small else [*main, *further])]
        names = names if names or further else [FURTHER]
        self._grid: Grid | None = None
        if small:
            left_out = max(0, len(further) - room(self.figure))
            further = further[: -left_out - 1] if left_out else further
            groups = [list(group) for _, group in itertools.groupby(further, attrgetter("group"))]
            counts = list(map(len, groups))
            # What is left out is said in the place of a panel.
            counts[-1] += bool(left_out)
            self._grid = Grid(self.figure, len(names), counts, len(extremes))
            rows = self._grid.large
            for axes, group in zip(self._grid.firsts, groups, strict=True):
                axes.set_ylabel(shortened(group[0].group, 12))
        else:
            flat = len(further) if main else 0
            heights = [_METRICS] * (len(names) - flat) + [_FURTHER] * flat + [_EXTREMES] * len(extremes)
            rows = list(self.figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
        self._metrics = [
            Panel(axes, self._options, shortened(name, 20), _NOTES.get(name, ""), legend_inside=_CORNERS[name] * small)
            for name, axes in zip(names, rows, strict=False)
        ]
        self._extremes = {
            kinds: Panel(axes, self._options, name, legend_inside="center left" * small)
            for (name, kinds), axes in zip(extremes.items(), rows[len(names) :], strict=True)
        }
        if self._grid is None:
            self.figure.align_ylabels()
        else:
            cells = zip(further, self._grid.small, strict=False)
            self._metrics += [Cell(axes, self._options, panel.name, panel.title) for panel, axes in cells]
            if left_out:
                axes = self._grid.small[-1]
                style_axes(axes, self._options, "").set(text=f"… and {left_out + 1:,}\nmore: --metric", fontsize=7)
                axes.set_axis_off()
        self._bottom = rows[-1]
        style_x_axis(self._bottom, self._options)
        if self._grid is not None and rows[0] is not self._bottom:
            # As many ticks as the narrowest of these panels has room for.
            style_x_axis(rows[0], self._options)
            rows[0].set_xlabel("")
        self._x = SharedX(self._bottom)

    def update(self, snapshots: Sequence[Snapshot], now: float) -> None:
        """Draw snapshots; a zoomed axis keeps its limits.

        Args:
            snapshots: One of each run, at least one.
            now: Seconds since 1970, for the ages in the title.
        """
        main, further = panels(snapshots, self._options)
        if len(further) > _LARGE:
            main = [panel for panel in main if not panel.empty]
        zoomed: Sequence[str] = ()
        if self._several != (len(snapshots) > 1) or self._shown != _titles(main, further):
            self._several = len(snapshots) > 1
            zoomed = self.zoomed
            self._begin(main, further)
        self._entitle(snapshots, now)
        if self._grid is not None:
            self._grid.fit(self.figure.get_suptitle().count("\n") + 1 if self._titled else 0)
        of_panels = [panel.curves for panel in (*main, *further)]
        self.curves.clear()
        with self._x.updating():
            if not of_panels:
                self._metrics[0].note(_none_chosen(snapshots))
            for panel, curves in zip(self._metrics, of_panels or [((),) * len(snapshots)], strict=False):
                panel.draw(partial(self._draw_metrics, snapshots, curves), empty=not any(curves))
            for kinds, panel in self._extremes.items():
                empty = all(snapshot.extremes is None for snapshot in snapshots)
                panel.note(missing(snapshots, NO_STEP))
                panel.draw(partial(self._draw_extremes, kinds, snapshots), empty=empty)
            for index, panel in enumerate((*self._metrics, *self._extremes.values())):
                panel.add(draw_findings(panel.axes, self._options, snapshots, numbered=index == 0))
        self._bottom.tick_params(labelbottom=any(snapshot.last_step is not None for snapshot in snapshots))
        # What was zoomed stays so where other panels have come.
        self.zoom(zoomed)

    def _colour(self, run: int, runs: int, curve: int) -> Colour:
        """A colour for each curve of one run, or for each of several runs, however many these are."""
        palette = theme(self._options).palette
        return palette[curve % len(palette)] if runs == 1 else run_colour(self._options, run, runs)

    def _draw_metrics(
        self, snapshots: Sequence[Snapshot], curves: Sequence[Sequence[Curve]], axes: Axes
    ) -> list[Artist]:
        set_scale(axes, self._options, [low for curve in itertools.chain(*curves) for low in curve.low], Scale.LINEAR)
        palette = theme(self._options).palette
        artists: list[Artist] = []
        for run, (snapshot, its_curves) in enumerate(zip(snapshots, curves, strict=True)):
            for index, curve in enumerate(its_curves):
                style = style_of(curve.name, index if self._several else index // len(palette))
                artists += self._draw_curve(axes, snapshot, curve, self._colour(run, len(snapshots), index), style)
        return artists

    def _draw_curve(self, axes: Axes, snapshot: Snapshot, curve: Curve, colour: Colour, style: Style) -> list[Artist]:
        x = x_values(self._options, snapshot, curve.step, curve.time)
        label = self._label(snapshot, shortened(curve.name))
        artists: list[Artist] = []
        if curve.smooth is not None:
            artists += axes.plot(x, drawable(curve.mean), color=colour, alpha=0.35, linewidth=0.8, gid=RAW)
        heights = curve.mean if curve.smooth is None else curve.smooth
        artists.append(draw_line(axes, x, heights, label + last([curve.last]), colour, style))
        artists += draw_band(axes, x, curve.low, curve.high, colour)
        numbers = curve.mean, curve.smooth, curve.low, curve.high, curve.nonfinite
        self.curves.append(
            DrawnCurve(axes, snapshot.name, curve.name, colour, style, x, curve.step, curve.time, *numbers)
        )
        bad = NonFinite(curve.nonfinite, curve.step, x, label, colour)
        return artists + draw_nonfinite(axes, self._options, bad)

    def _label(self, snapshot: Snapshot, name: str) -> str:
        return f"{shortened(snapshot.name, 20)} {name}".strip() if self._several else name

    def _draw_extremes(self, kinds: Sequence[str], snapshots: Sequence[Snapshot], axes: Axes) -> list[Artist]:
        recorded = [(run, snapshot, snapshot.extremes) for run, snapshot in enumerate(snapshots) if snapshot.extremes]
        names = [f"{kind}_{end}" for kind in kinds for end in ENDS]
        numbers = [number for _, _, extremes in recorded for name in names for number in extremes.statistics[name]]
        if not self._several:
            numbers += [number for _, _, extremes in recorded for sizes in extremes.depth.values() for number in sizes]
        set_scale(axes, self._options, numbers, Scale.SYMLOG)
        artists: list[Artist] = []
        for run, snapshot, extremes in recorded:
            x = x_values(self._options, snapshot, extremes.step, extremes.time)
            for index, kind in enumerate(kinds):
                colour = self._colour(run, len(snapshots), index)
                label = self._label(snapshot, "" if self._several else KINDS[kind])
                for end, style in ENDS.items():
                    heights = numbers_of(extremes.statistics[f"{kind}_{end}"])
                    artists.append(draw_line(axes, x, heights, f"{label} {end}{last(heights)}", colour, style))
                    points = x, extremes.step, extremes.time, heights
                    bad_steps = extremes.nonfinite[kind]
                    name = f"{KINDS[kind]} {end}"
                    self.curves.append(
                        DrawnCurve(axes, snapshot.name, name, colour, style, *points, nonfinite=bad_steps)
                    )
                    if extremes.inner is not None:
                        artists += draw_band(axes, x, heights, numbers_of(extremes.inner[f"{kind}_{end}"]), colour)
                bad = NonFinite(extremes.nonfinite[kind], extremes.step, x, label, colour)
                artists += draw_nonfinite(axes, self._options, bad)
            if not self._several:
                artists += self._draw_depth(axes, snapshot.name, x, extremes)
        return artists

    def _draw_depth(self, axes: Axes, run: str, x: Sequence[float], extremes: Extremes) -> list[Artist]:
        """The largest gradients of the first and of the last layer: where they part, gradients die on their way."""
        artists: list[Artist] = []
        for index, (name, layer) in enumerate(DEPTH.items(), 2):
            heights, colour = numbers_of(extremes.depth.get(name, ())), self._colour(0, 1, index)
            if any(map(math.isfinite, heights)):
                artists.append(draw_line(axes, x, heights, f"gradient, {layer}{last(heights)}", colour, ":"))
                points = x, extremes.step, extremes.time, heights
                self.curves.append(DrawnCurve(axes, run, f"gradient, {layer}", colour, ":", *points))
        return artists


def _titles(main: Sequence[MetricPanel], further: Sequence[MetricPanel]) -> list[str]:
    """What decides about the layout."""
    return [panel.title for panel in (*main, *further)]
