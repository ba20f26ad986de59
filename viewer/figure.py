"""A snapshot as a matplotlib figure: three panels, drawn by plain assignments. No files, no threads, no reductions."""

import math
from collections.abc import Iterable, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tracer.log.run import STATE_WORDS
from viewer.history import Curve, Extremes
from viewer.live import Snapshot

SIZE_INCHES = (10.0, 8.0)

# Okabe and Ito's palette, told apart by readers with every kind of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_VALUE, _GRADIENT = _COLOURS[0], _COLOURS[1]
_INK, _PALE, _ALARM = "#333333", "#dddddd", "#c00000"

_VALIDATION = ("val", "test", "eval")
_EXTREMES = {
    "value_max": ("value max", _VALUE, "-"),
    "value_min": ("value min", _VALUE, "--"),
    "grad_max": ("gradient max", _GRADIENT, "-"),
    "grad_min": ("gradient min", _GRADIENT, "--"),
}
_STATE_MARKS = {"running": "●", "closed": "■", "stopped": "▲"}
# Below 8 decades under the largest number, symlog shows a straight line through zero.
_SYMLOG_DECADES = 8


def belongs(name: str, panel: str) -> bool:
    """Whether a metric is drawn in the panel ``"loss"`` or ``"accuracy"`` of its own accord."""
    lowered = name.lower()
    return "loss" in lowered if panel == "loss" else "acc" in lowered and "loss" not in lowered


class Overview:
    """Loss, accuracy and overall extremes of one run, in a figure that it fills.

    Args:
        figure: An empty figure.
        metrics: Further metrics to draw; those named here go into the accuracy panel, unless they belong elsewhere.
    """

    def __init__(self, figure: Figure, metrics: Sequence[str] = ()) -> None:
        self.figure = figure
        self._asked = tuple(metrics)
        figure.set_layout_engine("constrained")
        self._loss, self._accuracy, self._extremes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 4))
        self._title = figure.suptitle("", x=0.01, ha="left", fontsize=13, color=_INK)
        self._title.set_parse_math(False)
        self._drawn: dict[Axes, list[Artist]] = {}
        for axes, label in ((self._loss, "loss"), (self._accuracy, "accuracy"), (self._extremes, "extremes")):
            _dress(axes, label)
        self._extremes.set_xlabel("step")
        self._extremes.xaxis.set_major_locator(MaxNLocator(integer=True))

    def update(self, snapshot: Snapshot) -> None:
        """Draw a snapshot; a zoomed axis keeps its limits."""
        self._title.set_text(title(snapshot))
        panels: dict[Axes, list[Curve]] = {self._loss: [], self._accuracy: []}
        for curve in snapshot.curves:
            if belongs(curve.name, "loss"):
                panels[self._loss].append(curve)
            elif belongs(curve.name, "accuracy") or curve.name in self._asked:
                panels[self._accuracy].append(curve)
        missing = [name for name in self._asked if name not in {curve.name for curve in snapshot.curves}]
        for axes, curves in panels.items():
            self._renew(axes, _draw_curves(axes, curves))
            _note(axes, "" if curves else "no metric with 'loss' or 'acc' in its name yet: trace.log(loss=…)")
        if missing:
            _note(self._accuracy, f"not logged yet: {', '.join(missing)}")
        if snapshot.extremes is not None:
            self._renew(self._extremes, _draw_extremes(self._extremes, snapshot.extremes))
        _note(self._extremes, "no step recorded yet" if snapshot.extremes is None else "")

    def _renew(self, axes: Axes, artists: list[Artist]) -> None:
        """Replace what was drawn on these axes, so that limits follow the new artists alone."""
        for artist in self._drawn.get(axes, []):
            artist.remove()
        self._drawn[axes] = artists
        axes.relim()
        axes.autoscale_view()
        _legend(axes, [artist for artist in artists if isinstance(artist, Line2D)])


def title(snapshot: Snapshot) -> str:
    """The figure's title: run, state, last step, and what could not be read."""
    step = "no step yet" if snapshot.last_step is None else f"step {snapshot.last_step:,}"
    bad = f"  ·  {len(snapshot.problems)} damaged part(s) left out" if snapshot.problems else ""
    return f"{snapshot.name}  {_STATE_MARKS[snapshot.state]} {STATE_WORDS[snapshot.state]}  ·  {step}{bad}"


def _dress(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, color=_INK)
    axes.grid(True, color=_PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    text = axes.text(0.5, 0.5, "", transform=axes.transAxes, ha="center", va="center", color="#777777", gid="note")
    text.set_parse_math(False)


def _note(axes: Axes, words: str) -> None:
    for text in axes.texts:
        if text.get_gid() == "note":
            text.set_text(words)


def _legend(axes: Axes, lines: Iterable[Line2D]) -> None:
    # Handles and labels are passed explicitly: matplotlib leaves out labels that begin with an underscore.
    handles = list(lines)
    if not handles:
        return
    legend = axes.legend(
        handles, [str(line.get_label()) for line in handles], loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
        text.set_fontsize(9)


def _draw_curves(axes: Axes, curves: Sequence[Curve]) -> list[Artist]:
    artists: list[Artist] = []
    for index, curve in enumerate(curves):
        colour = _COLOURS[index % len(_COLOURS)]
        validation = any(word in curve.name.lower() for word in _VALIDATION)
        style = "--" if validation else "-"
        marker = "o" if len(curve.step) <= 30 else None
        label = f"{curve.name}  {_last(curve.mean):.4g}"
        artists += axes.plot(
            curve.step, curve.mean, style, color=colour, label=label, linewidth=1.5, marker=marker, markersize=3
        )
        if list(curve.low) != list(curve.high):
            artists.append(axes.fill_between(curve.step, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0))
        artists += _draw_nonfinite(axes, curve.first_nonfinite, curve.name, colour)
    return artists


def _draw_extremes(axes: Axes, extremes: Extremes) -> list[Artist]:
    artists: list[Artist] = []
    numbers = [abs(number) for numbers in extremes.statistics.values() for number in numbers if number]
    axes.set_yscale("symlog", linthresh=_linear_threshold(numbers))
    marker = "o" if len(extremes.step) <= 30 else None
    for statistic, (label, colour, style) in _EXTREMES.items():
        heights = [math.nan if number is None else number for number in extremes.statistics[statistic]]
        label = f"{label}  {_last(heights):.3g}"
        artists += axes.plot(
            extremes.step, heights, style, color=colour, label=label, linewidth=1.2, marker=marker, markersize=3
        )
    artists += _draw_nonfinite(axes, extremes.first_nonfinite["value"], "value", _VALUE)
    artists += _draw_nonfinite(axes, extremes.first_nonfinite["grad"], "gradient", _GRADIENT)
    return artists


def _draw_nonfinite(axes: Axes, step: int | None, of: str, colour: str) -> list[Artist]:
    """Mark the first step with a NaN or an infinity on the axis, where no curve can be drawn."""
    if step is None:
        return []
    return list(
        axes.plot(
            [step],
            [0.0],
            linestyle="none",
            marker="X",
            markersize=11,
            markerfacecolor=_ALARM,
            markeredgecolor=colour,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            label=f"{of}: NaN or inf from step {step:,}",
        )
    )


def _last(numbers: Sequence[float]) -> float:
    finite = [number for number in numbers if math.isfinite(number)]
    return finite[-1] if finite else math.nan


def _linear_threshold(numbers: Sequence[float]) -> float:
    """Where symlog turns linear: under the smallest number, a power of ten, at most some decades below the largest."""
    if not numbers:
        return 1e-6
    smallest = max(min(numbers), max(numbers) * 10.0**-_SYMLOG_DECADES)
    return float(10.0 ** math.floor(math.log10(smallest)))
