"""One parameter: its values and gradients as bands, the size of its updates, further statistics, and histograms."""

import math
from collections.abc import Sequence
from functools import partial

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tracer.log.text import shortened
from viewer.draw.axes import SharedX, set_scale, set_ticks, style_x_axis, x_values
from viewer.draw.curves import Curve
from viewer.draw.histograms import ColourKey, draw_map, draw_ridge
from viewer.draw.marks import NonFinite, draw_band, draw_findings, draw_line, draw_nonfinite, last, numbers_of
from viewer.draw.panels import Drawing, Panel, begin
from viewer.draw.theme import ENDS, Style, narrow, theme
from viewer.dtypes import RANGES
from viewer.options import Histograms, Scale, ViewOptions
from viewer.snapshot import Curve as Reduced
from viewer.snapshot import Snapshot
from viewer.words import KINDS, NO_RATIO, RATIO_WORDS, USUAL_RATIO, USUAL_WORDS, missing

# The line of what a dtype holds is drawn where it is so near that curves still have room, in bits.
_NEAR_BITS = 16
# A ridge is as high as so many other panels.
_RIDGE_HEIGHT = 2
_NO_ROW = "no row of this parameter yet"


class Parameter(Drawing):
    """One parameter: a panel for its values, its gradients, its updates where measured, and each further statistic."""

    def __init__(self, figure: Figure, options: ViewOptions, titled: bool = True) -> None:
        super().__init__(figure, options, titled)
        self._begin((), (), False, narrow(figure))

    def _begin(self, statistics: tuple[str, ...], histograms: tuple[str, ...], ratio: bool, one_column: bool) -> None:
        self._has = statistics, histograms, ratio, one_column
        begin(self.figure, self._options)
        of_histograms = tuple(f"{KINDS[kind]}\nhistogram" for kind in histograms)
        ridges = of_histograms if self._options.histograms is Histograms.RIDGE else ()
        updates = (RATIO_WORDS,) if ratio else ()
        left = ("value", "gradient", *of_histograms)
        columns = [left, updates + statistics]
        if one_column or not statistics:
            columns = [("value", "gradient", *updates, *of_histograms, *statistics)]
        grid = self.figure.add_gridspec(1, len(columns))
        first: Axes | None = None
        self._panels: dict[str, Panel] = {}
        self._keys: dict[str, ColourKey] = {}
        self._bottoms: list[Axes] = []
        for column, names in enumerate(columns):
            heights = [_RIDGE_HEIGHT if name in ridges else 1 for name in names]
            stack = grid[0, column].subgridspec(len(names), 1, height_ratios=heights)
            for row, name in enumerate(names):
                axes = self.figure.add_subplot(stack[row, 0], sharex=None if name in ridges else first)
                first = first or axes
                label = name if name in left else shortened(name)
                note = NO_RATIO if name == RATIO_WORDS else _NO_ROW
                self._panels[name] = Panel(axes, self._options, label, note, legend_above=True)
                if name in ridges:
                    # Numbers are along x, and steps come towards the reader.
                    set_ticks(axes.yaxis, self._options)
                    axes.invert_yaxis()
                    continue
                axes.tick_params(labelbottom=False)
                lowest = axes
                if name in of_histograms:
                    self._keys[name] = ColourKey(axes, self._options)
            style_x_axis(lowest, self._options)
            self._bottoms.append(lowest)
        self._x = SharedX(lowest)

    def update(self, snapshots: Sequence[Snapshot], now: float) -> None:
        """Draw the only snapshot; a zoomed axis keeps its limits."""
        (snapshot,) = snapshots
        extremes = snapshot.extremes
        columns = extremes.statistics if extremes is not None else {}
        # Slices have few of the statistics that their parameter has.
        known = (name for name, numbers in columns.items() if any(number is not None for number in numbers))
        recorded = [name.removesuffix("_high") for name in known if name.endswith("_high")]
        statistics = tuple(dict.fromkeys(name.partition("_")[2] for name in recorded))
        ratio = None if extremes is None else extremes.ratio
        histograms = tuple(kind for kind in KINDS if kind in snapshot.histograms)
        has = statistics, histograms, ratio is not None, narrow(self.figure)
        if has != self._has:
            self._begin(*has)
        self._entitle(snapshots, now, f"{shortened(self._options.param, 60)}  in  ")
        self.curves.clear()
        with self._x.updating():
            for name, kinds in (("value", ("value",)), ("gradient", ("grad", "applied"))):
                self._panels[name].note(missing(snapshots, _NO_ROW))
                self._panels[name].draw(partial(self._draw_bands, kinds, snapshot), empty=extremes is None)
            if ratio is not None:
                self._panels[RATIO_WORDS].draw(partial(self._draw_ratio, ratio, snapshot), empty=not ratio.step)
            for statistic in statistics:
                names = [f"{kind}_{statistic}" for kind in KINDS if f"{kind}_{statistic}" in recorded]
                self._panels[statistic].draw(partial(self._draw_statistic, names, snapshot), empty=False)
            for kind, of_kind in snapshot.histograms.items():
                name = f"{KINDS[kind]}\nhistogram"
                if name in self._keys:
                    make = partial(draw_map, self._options, snapshot, of_kind, self._keys[name])
                else:
                    make = partial(draw_ridge, self._options, snapshot, of_kind)
                self._panels[name].draw(make, empty=False)
            for name, panel in self._panels.items():
                if self._options.histograms is Histograms.MAP or not name.endswith("\nhistogram"):
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
            numbers_at = {end: numbers_of(extremes.statistics[f"{kind}_{end}"]) for end in ENDS}
            for end, style in ENDS.items():
                heights = numbers_at[end]
                artists.append(draw_line(axes, x, heights, f"{KINDS[kind]} {end}{last(heights)}", colour, style))
                points = x, extremes.step, extremes.time, heights
                name, bad_steps = f"{KINDS[kind]} {end}", extremes.nonfinite[kind]
                self.curves.append(Curve(axes, snapshot.name, name, colour, style, *points, nonfinite=bad_steps))
            artists += draw_band(axes, x, numbers_at["min"], numbers_at["max"], colour)
            bad = NonFinite(extremes.nonfinite[kind], extremes.step, x, KINDS[kind], colour)
            artists += draw_nonfinite(axes, self._options, bad)
        return artists

    def _draw_ratio(self, ratio: Reduced, snapshot: Snapshot, axes: Axes) -> list[Artist]:
        if not ratio.step:
            return []
        colours = theme(self._options)
        colour = colours.palette[len(KINDS)]
        set_scale(axes, self._options, [*ratio.low, *ratio.high, USUAL_RATIO], Scale.LOG)
        x = x_values(self._options, snapshot, ratio.step, ratio.time)
        artists = [draw_line(axes, x, ratio.high, f"{RATIO_WORDS}{last(ratio.high)}", colour)]
        artists += draw_band(axes, x, ratio.low, ratio.high, colour)
        usual = f"{USUAL_WORDS}: {USUAL_RATIO:g}"
        artists.append(axes.axhline(USUAL_RATIO, color=colours.ink, linestyle="--", linewidth=1, label=usual))
        still = [place for place, low in enumerate(ratio.low) if low == 0]
        if still:
            label = f"no change at step {ratio.step[still[0]]:,}{' and later' if len(still) > 1 else ''}"
            places = [x[place] for place in still]
            artists += axes.plot(places, [0.0] * len(still), "v", color=colours.caution, markersize=5, label=label)
        artists += draw_nonfinite(axes, self._options, NonFinite(ratio.nonfinite, ratio.step, x, RATIO_WORDS, colour))
        points = x, ratio.step, ratio.time, ratio.high
        curve = Curve(axes, snapshot.name, RATIO_WORDS, colour, "-", *points, low=ratio.low, nonfinite=ratio.nonfinite)
        self.curves.append(curve)
        return artists

    def _colour(self, kind: str) -> str:
        return theme(self._options).palette[list(KINDS).index(kind)]

    def _draw_statistic(self, columns: Sequence[str], snapshot: Snapshot, axes: Axes) -> list[Artist]:
        extremes = snapshot.extremes
        assert extremes is not None, "columns are those of extremes"
        ends = [f"{column}_{end}" for column in columns for end in ("low", "high")]
        numbers = [number for end in ends for number in extremes.statistics[end]]
        statistic = columns[0].partition("_")[2]
        set_scale(axes, self._options, numbers, Scale.LOG if statistic == "smallest" else Scale.LINEAR)
        x = x_values(self._options, snapshot, extremes.step, extremes.time)
        artists: list[Artist] = []
        for column in columns:
            kind = column.partition("_")[0]
            low, high = (numbers_of(extremes.statistics[f"{column}_{end}"]) for end in ("low", "high"))
            # Without clipping and unscaling, the applied gradient equals the other: dots let both be seen.
            style: Style = ":" if kind == "applied" else "-"
            artists.append(draw_line(axes, x, high, f"{KINDS[kind]}{last(high)}", self._colour(kind), style))
            points = x, extremes.step, extremes.time, high
            name = f"{KINDS[kind]} {column.partition('_')[2]}"
            self.curves.append(Curve(axes, snapshot.name, name, self._colour(kind), style, *points, low=low))
            artists += draw_band(axes, x, low, high, self._colour(kind))
        known = [number for number in numbers if number is not None]
        return artists + self._draw_limits(snapshot.dtype, statistic, known, x, axes) if known else artists

    def _draw_limits(
        self, dtype: str, statistic: str, numbers: Sequence[float], x: Sequence[float], axes: Axes
    ) -> list[Artist]:
        """Lines of what a parameter's dtype holds, named in the legend also where they are far away."""
        held = RANGES.get(dtype)
        if held is None or statistic not in ("smallest", "bits"):
            return []
        artists = []
        limits: list[tuple[str, float, Style]] = [(dtype, held.bits, "--")]
        if statistic == "smallest":
            limits = [("full precision", held.normal, "--"), (f"{dtype}'s least", held.smallest, ":")]
        for words, limit, style in limits:
            ends = [limit, min(numbers), max(numbers)]
            in_bits, low, high = map(math.log2, ends) if statistic == "smallest" else ends
            near = low - _NEAR_BITS < in_bits < high + _NEAR_BITS
            heights = [limit if near else math.nan] * len(x)
            label = f"{words}  {limit:.3g}"
            artists.append(draw_line(axes, x, heights, label, theme(self._options).faint, style))
        return artists
