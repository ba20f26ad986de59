"""The overview: loss, accuracy and overall extremes of a run, or of several side by side."""

import itertools
from collections.abc import Sequence
from functools import partial

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from viewer.draw.axes import SharedX, set_scale, style_x_axis, x_values
from viewer.draw.curves import Curve as Drawn
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
from viewer.draw.panels import Drawing, Panel, begin
from viewer.draw.theme import Colour, style_of, theme
from viewer.options import Scale, ViewOptions
from viewer.reduce.metrics import ACCURACY, FURTHER, LOSS, panel_names, panel_of, panels
from viewer.snapshot import Curve, Snapshot
from viewer.words import KINDS, shortened

_NOTES = {
    LOSS: "no metric with 'loss' in its name yet: trace.log(loss=…)",
    ACCURACY: "no metric with 'acc' in its name yet: trace.log(accuracy=…)",
    FURTHER: "not logged yet",
}
_NAMED = 3
_LINES = {"max": "-", "min": "--"}


def _not_logged(snapshots: Sequence[Snapshot]) -> str:
    """The note of an empty panel of metrics: it names metrics that were logged, as a name may be mistyped."""
    logged = list(dict.fromkeys(curve.name for snapshot in snapshots for curve in snapshot.curves))
    if not logged:
        return _NOTES["metrics"]
    more = f" and {len(logged) - _NAMED} more" if len(logged) > _NAMED else ""
    return f"not logged yet; there are {', '.join(shortened(name, 20) for name in logged[:_NAMED])}{more}"


class Overview(Drawing):
    """Loss, accuracy and overall extremes; metrics that were asked for have a panel of their own.

    One run has a colour for each curve, and one panel for all extremes. Several runs have a colour each, a panel for
    values and one for gradients.
    """

    def __init__(self, figure: Figure, options: ViewOptions | None = None, titled: bool = True) -> None:
        super().__init__(figure, options, titled)
        self._begin(several=False)

    def _begin(self, several: bool) -> None:
        self._several = several
        begin(self.figure, self._options)
        extremes = {"values": ("value",), "gradients": ("grad",)} if several else {"extremes": ("value", "grad")}
        names = panel_names(self._options)
        heights = [3] * len(names) + [4] * len(extremes)
        rows = self.figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        self._metrics = {
            name: Panel(axes, self._options, name, _NOTES[name]) for name, axes in zip(names, rows, strict=False)
        }
        self._extremes = {
            kinds: Panel(axes, self._options, name)
            for (name, kinds), axes in zip(extremes.items(), rows[len(names) :], strict=True)
        }
        self.figure.align_ylabels()
        self._bottom = rows[-1]
        style_x_axis(self._bottom, self._options)
        self._x = SharedX(self._bottom)

    def update(self, snapshots: Sequence[Snapshot], now: float) -> None:
        """Draw snapshots; a zoomed axis keeps its limits.

        Args:
            snapshots: One of each run, at least one.
            now: Seconds since 1970, for the ages in the title.
        """
        if self._several != (len(snapshots) > 1):
            self._begin(several=len(snapshots) > 1)
        self._entitle(snapshots, now)
        metrics = [panels(snapshot, self._options) for snapshot in snapshots]
        self.curves.clear()
        with self._x.updating():
            for name, panel in self._metrics.items():
                curves = [shown[name] for shown in metrics]
                if name == FURTHER:
                    panel.note(_not_logged(snapshots))
                panel.draw(partial(self._draw_metrics, name, snapshots, curves), empty=not any(curves))
            for kinds, panel in self._extremes.items():
                empty = all(snapshot.extremes is None for snapshot in snapshots)
                panel.draw(partial(self._draw_extremes, kinds, snapshots), empty=empty)
            for index, panel in enumerate((*self._metrics.values(), *self._extremes.values())):
                panel.add(draw_findings(panel.axes, self._options, snapshots, numbered=index == 0))
        self._bottom.tick_params(labelbottom=any(snapshot.last_step is not None for snapshot in snapshots))

    def _colour(self, run: int, runs: int, curve: int) -> Colour:
        """A colour for each curve of one run, or for each of several runs, however many these are."""
        palette = theme(self._options).palette
        if runs == 1:
            return palette[curve % len(palette)]
        if runs <= len(palette):
            return palette[run]
        low, high = theme(self._options).rainbow
        return matplotlib.colormaps["turbo"](low + (high - low) * run / (runs - 1))

    def _draw_metrics(
        self, name: str, snapshots: Sequence[Snapshot], curves: Sequence[Sequence[Curve]], axes: Axes
    ) -> list[Artist]:
        set_scale(axes, self._options, [low for curve in itertools.chain(*curves) for low in curve.low], Scale.LINEAR)
        palette = theme(self._options).palette
        artists: list[Artist] = []
        for run, (snapshot, its_curves) in enumerate(zip(snapshots, curves, strict=True)):
            for index, curve in enumerate(its_curves):
                style = style_of(curve.name, index if self._several else index // len(palette))
                artists += self._draw_curve(axes, snapshot, curve, self._colour(run, len(snapshots), index), style)
        logged = {curve.name for snapshot in snapshots for curve in snapshot.curves}
        for asked in dict.fromkeys(self._options.metrics):
            if asked not in logged and panel_of(asked, self._options.metrics) == name:
                artists += axes.plot([], [], linestyle="none", label=f"{shortened(asked)}: not logged yet")
        return artists

    def _draw_curve(self, axes: Axes, snapshot: Snapshot, curve: Curve, colour: Colour, style: str) -> list[Artist]:
        x = x_values(self._options, snapshot, curve.step, curve.time)
        label = self._label(snapshot, shortened(curve.name))
        artists: list[Artist] = []
        if curve.smooth is not None:
            artists += axes.plot(x, drawable(curve.mean), color=colour, alpha=0.35, linewidth=0.8, gid=RAW)
        heights = curve.mean if curve.smooth is None else curve.smooth
        artists.append(draw_line(axes, x, heights, label + last([curve.last]), colour, style))
        artists += draw_band(axes, x, curve.low, curve.high, colour)
        numbers = curve.mean, curve.smooth, curve.low, curve.high, curve.nonfinite
        self.curves.append(Drawn(axes, snapshot.name, curve.name, colour, style, x, curve.step, curve.time, *numbers))
        bad = NonFinite(curve.nonfinite, curve.step, x, label, colour)
        return artists + draw_nonfinite(axes, self._options, bad)

    def _label(self, snapshot: Snapshot, name: str) -> str:
        return f"{shortened(snapshot.name, 20)} {name}".strip() if self._several else name

    def _draw_extremes(self, kinds: Sequence[str], snapshots: Sequence[Snapshot], axes: Axes) -> list[Artist]:
        recorded = [(run, snapshot, snapshot.extremes) for run, snapshot in enumerate(snapshots) if snapshot.extremes]
        names = [f"{kind}_{end}" for kind in kinds for end in _LINES]
        numbers = [number for _, _, extremes in recorded for name in names for number in extremes.statistics[name]]
        set_scale(axes, self._options, numbers, Scale.SYMLOG)
        artists: list[Artist] = []
        for run, snapshot, extremes in recorded:
            x = x_values(self._options, snapshot, extremes.step, extremes.time)
            for index, kind in enumerate(kinds):
                colour = self._colour(run, len(snapshots), index)
                label = self._label(snapshot, "" if self._several else KINDS[kind])
                for end, style in _LINES.items():
                    heights = numbers_of(extremes.statistics[f"{kind}_{end}"])
                    artists.append(draw_line(axes, x, heights, f"{label} {end}{last(heights)}", colour, style))
                    points = x, extremes.step, extremes.time, heights
                    bad_steps = extremes.nonfinite[kind]
                    name = f"{KINDS[kind]} {end}"
                    self.curves.append(Drawn(axes, snapshot.name, name, colour, style, *points, nonfinite=bad_steps))
                    if extremes.inner is not None:
                        artists += draw_band(axes, x, heights, numbers_of(extremes.inner[f"{kind}_{end}"]), colour)
                bad = NonFinite(extremes.nonfinite[kind], extremes.step, x, label, colour)
                artists += draw_nonfinite(axes, self._options, bad)
        return artists
