"""A snapshot as a matplotlib figure: three panels, drawn by plain assignments. No files, no threads, no reductions."""

import math
import re
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from tracer.log.run import STATE_WORDS
from viewer.history import Curve, Extremes, smoothed
from viewer.live import Snapshot

SIZE_INCHES = (10.0, 8.0)

# Okabe and Ito's palette, told apart by readers with every kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_VALUE, _GRADIENT = _COLOURS[0], _COLOURS[1]
# With these, so many more curves can be told apart.
_STYLES = ("-", ":", "-.")
INK, _PALE, _ALARM = "#333333", "#dddddd", "#c00000"

# A word of its own, as in "val_loss" and "loss/test", but not in "value_loss" and "latest_loss".
_VALIDATION = re.compile(r"(?<![A-Za-z])(?i:val|valid|validation|test|eval)(?![a-z])")
_EXTREMES = {
    "value_max": ("value max", _VALUE, "-"),
    "value_min": ("value min", _VALUE, "--"),
    "grad_max": ("gradient max", _GRADIENT, "-"),
    "grad_min": ("gradient min", _GRADIENT, "--"),
}
_STATE_MARKS = {"running": "●", "closed": "■", "stopped": "▲"}
# Below 8 decades under the largest number, symlog shows a straight line through zero.
_SYMLOG_DECADES = 8
_LARGEST = 1e306
# Marks a curve as logged, which stands in no legend, behind the smoothed one, which does.
_RAW = "as logged"
# Up to so many points, each gets a marker, and none is smoothed.
_FEW_POINTS = 30
# More entries beside a panel, or longer names, would press the panel itself together, or leave the figure.
_LEGEND_ENTRIES = 9
_NAME_LENGTH = 28


def panel(name: str) -> str | None:
    """The panel to which a metric belongs by its name: ``"loss"``, ``"accuracy"``, or none."""
    lowered = name.lower()
    return "loss" if "loss" in lowered else "accuracy" if "acc" in lowered else None


class Overview:
    """Loss, accuracy and overall extremes of one run, in a figure that it fills.

    Args:
        figure: An empty figure.
        metrics: Further metrics to draw; those named here go into the accuracy panel, unless they belong elsewhere.
        smoothing: As in ``smoothed``; what was logged stands behind it, faint.
    """

    def __init__(self, figure: Figure, metrics: Sequence[str] = (), smoothing: float = 0.0) -> None:
        self.figure = figure
        self._smoothing = smoothing
        self._asked = tuple(dict.fromkeys(metrics))
        figure.set_layout_engine("constrained")
        self._loss, self._accuracy, self._extremes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 4))
        self._title = figure.suptitle("", x=0.01, ha="left", fontsize=12, color=INK)
        self._title.set_parse_math(False)
        self._notes = {
            self._loss: _dress(self._loss, "loss", "no metric with 'loss' in its name yet: trace.log(loss=…)"),
            self._accuracy: _dress(
                self._accuracy, "accuracy", "no metric with 'acc' in its name yet: trace.log(accuracy=…)"
            ),
            self._extremes: _dress(self._extremes, "extremes", "no step recorded yet"),
        }
        self._drawn: dict[Axes, list[Artist]] = {axes: [] for axes in self._notes}
        figure.align_ylabels()
        self._extremes.set_xlabel("step", color=INK)
        self._extremes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))

    def update(self, snapshot: Snapshot) -> None:
        """Draw a snapshot; a zoomed axis keeps its limits."""
        self._title.set_text(title(snapshot))
        logged = {curve.name for curve in snapshot.curves}
        for axes, name in ((self._loss, "loss"), (self._accuracy, "accuracy")):
            curves = [curve for curve in snapshot.curves if self._panel(curve.name) == name]
            missing = [asked for asked in self._asked if asked not in logged and self._panel(asked) == name]
            self._clear(axes, empty=not curves)
            self._drawn[axes] = _draw_curves(axes, curves, self._smoothing) + _draw_missing(axes, missing)
        self._clear(self._extremes, empty=snapshot.extremes is None)
        if snapshot.extremes is not None:
            self._drawn[self._extremes] = _draw_extremes(self._extremes, snapshot.extremes)
        for axes, artists in self._drawn.items():
            _legend(axes, [artist for artist in artists if isinstance(artist, Line2D) and artist.get_gid() != _RAW])
        self._extremes.tick_params(labelbottom=snapshot.last_step is not None)

    def _panel(self, name: str) -> str | None:
        return panel(name) or ("accuracy" if name in self._asked else None)

    def _clear(self, axes: Axes, *, empty: bool) -> None:
        """Remove what was drawn, so that limits follow what comes next alone, and say so where nothing comes."""
        while self._drawn[axes]:
            self._drawn[axes].pop().remove()
        axes.relim()
        axes.tick_params(left=not empty, labelleft=not empty)
        self._notes[axes].set_visible(empty)


def title(snapshot: Snapshot) -> str:
    """The figure's title: run, state, last step, and what could not be read."""
    step = "no step yet" if snapshot.last_step is None else f"step {snapshot.last_step:,}"
    step += "" if snapshot.complete else " · the last rows are still to arrive"
    bad = f" · {len(snapshot.problems)} damaged part(s) left out" if snapshot.problems else ""
    return f"{shortened(snapshot.name)}  {_STATE_MARKS[snapshot.state]} {STATE_WORDS[snapshot.state]} · {step}{bad}"


def _dress(axes: Axes, label: str, note: str) -> Text:
    """Style empty axes; the text that they show while they are empty."""
    axes.set_ylabel(label, color=INK)
    axes.grid(True, color=_PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(INK)
    return axes.text(0.5, 0.5, note, transform=axes.transAxes, ha="center", va="center", color="#777777")


def _legend(axes: Axes, lines: Sequence[Line2D]) -> None:
    previous = axes.get_legend()
    if previous is not None:
        previous.remove()
    if not lines:
        return
    # What is not finite comes first: it must not be among what finds no room.
    handles = sorted(lines, key=lambda line: line.get_marker() != "X")
    if len(handles) > _LEGEND_ENTRIES:
        rest = len(handles) - _LEGEND_ENTRIES + 1
        handles[_LEGEND_ENTRIES - 1 :] = [Line2D([], [], linestyle="none", label=f"… and {rest} more")]
    # Handles and labels are passed explicitly: matplotlib leaves out labels that begin with an underscore.
    legend = axes.legend(
        handles, [str(line.get_label()) for line in handles], loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
        text.set_fontsize(9)
        text.set_color(INK)


def _draw_curves(axes: Axes, curves: Sequence[Curve], smoothing: float) -> list[Artist]:
    artists: list[Artist] = []
    for index, curve in enumerate(curves):
        colour = _COLOURS[index % len(_COLOURS)]
        style = "--" if _VALIDATION.search(curve.name) else _STYLES[index // len(_COLOURS) % len(_STYLES)]
        name = shortened(curve.name)
        heights = curve.mean
        if smoothing and len(heights) > _FEW_POINTS:
            artists += axes.plot(curve.step, _drawable(heights), color=colour, alpha=0.35, linewidth=0.8, gid=_RAW)
            heights = smoothed(heights, smoothing)
        artists.append(_draw_line(axes, curve.step, heights, name + _last(curve.mean), colour, style))
        if list(curve.low) != list(curve.high):
            # The edge keeps a spike of a single bin visible, where the band itself is thinner than a pixel.
            artists.append(
                axes.fill_between(
                    curve.step,
                    _drawable(curve.low),
                    _drawable(curve.high),
                    color=colour,
                    alpha=0.3,
                    linewidth=0.8,
                )
            )
        artists += _draw_nonfinite(axes, curve.nonfinite, name, colour, index)
    return artists


def _draw_extremes(axes: Axes, extremes: Extremes) -> list[Artist]:
    artists: list[Artist] = []
    numbers = [abs(number) for numbers in extremes.statistics.values() for number in numbers if number]
    axes.set_yscale("symlog", linthresh=_linear_threshold(numbers))
    for statistic, (label, colour, style) in _EXTREMES.items():
        heights = [math.nan if number is None else number for number in extremes.statistics[statistic]]
        artists.append(_draw_line(axes, extremes.step, heights, label + _last(heights), colour, style))
    artists += _draw_nonfinite(axes, extremes.nonfinite["value"], "value", _VALUE, 0)
    artists += _draw_nonfinite(axes, extremes.nonfinite["grad"], "gradient", _GRADIENT, 1)
    return artists


def _draw_line(
    axes: Axes, steps: Sequence[int], heights: Sequence[float], label: str, colour: str, style: str
) -> Artist:
    marked = _marked(heights)
    (line,) = axes.plot(
        steps,
        _drawable(heights),
        style,
        color=colour,
        label=label,
        linewidth=1.3,
        marker="o" if marked else None,
        markersize=3,
        markevery=marked,
    )
    return line


def _last(heights: Sequence[float]) -> str:
    """The newest number, for the legend; as it was logged, and not smoothed."""
    return f"  {heights[-1]:.4g}" if math.isfinite(heights[-1]) else ""


def _drawable(heights: Sequence[float]) -> list[float]:
    """Numbers near the end of float64 brought a little nearer: with margins, matplotlib's ticks would overflow."""
    return [max(-_LARGEST, min(_LARGEST, height)) if math.isfinite(height) else height for height in heights]


def _marked(heights: Sequence[float]) -> list[int]:
    """The points that get a marker: all of a few, and of many those that no line reaches, since gaps surround them."""
    if len(heights) <= _FEW_POINTS:
        return list(range(len(heights)))
    there = [False, *map(math.isfinite, heights), False]
    return [index for index in range(len(heights)) if there[index : index + 3] == [False, True, False]]


def _draw_nonfinite(axes: Axes, steps: Sequence[int], of: str, colour: str, place: int) -> list[Artist]:
    """Mark the steps with a NaN or an infinity, since no curve can show them, and the first across the panel."""
    if not steps:
        return []
    # Above one another, where several curves have them at the same step.
    height = 0.04 + 0.08 * (place % 12)
    first, *others = steps
    last = f", last at {steps[-1]:,}" if others else ""
    return list(
        axes.plot(
            [first, first, *(number for step in others for number in (math.nan, step))],
            [height, 1.0, *(number for _ in others for number in (math.nan, height))],
            ":",
            color=_ALARM,
            linewidth=1.0,
            marker="X",
            markevery=[0, *range(3, 3 + 2 * len(others), 2)],
            markersize=10,
            markerfacecolor=colour,
            markeredgecolor=_ALARM,
            transform=axes.get_xaxis_transform(),
            label=f"{of}: NaN or inf from step {first:,}{last}",
        )
    )


def _draw_missing(axes: Axes, names: Sequence[str]) -> list[Artist]:
    """Name asked-for metrics in the legend before their first row."""
    return [
        line
        for name in names
        for line in axes.plot([], [], linestyle="none", label=f"{shortened(name)}: not logged yet")
    ]


def shortened(name: str) -> str:
    """A name on one line, its middle left out where it is too long."""
    line = " ".join(name.split())
    half = _NAME_LENGTH // 2
    return line if len(line) <= _NAME_LENGTH else f"{line[: half - 1]}…{line[-half:]}"


def _linear_threshold(numbers: Sequence[float]) -> float:
    """Where symlog turns linear: under the smallest number, a power of ten, at most some decades below the largest."""
    if not numbers:
        return 1e-6
    # The floor is under every float32; symlog overflows where its threshold is hardly more than 0.
    smallest = max(min(numbers), max(numbers) * 10.0**-_SYMLOG_DECADES, 1e-40)
    return float(10.0 ** math.floor(math.log10(smallest)))
