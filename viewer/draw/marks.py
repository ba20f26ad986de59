"""The marks in panels: lines, bands, NaN and infinities, and the beginnings of findings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text

from viewer.draw.axes import inches_of, x_values
from viewer.draw.theme import Colour, Style, colour_of, theme
from viewer.options import ViewOptions, XAxis
from viewer.reduce.metrics import FEW_POINTS
from viewer.snapshot import Finding, Snapshot
from viewer.words import noticed

_LARGEST = 1e306
# Lines in no legend: a curve as logged, behind the smoothed one, and the line at a finding's first step.
RAW, FLAG = "as logged", "finding"
# Flags nearer than this share of the run would cover each other: they become one.
_FLAG_SHARE, _FLAG_NUMBERS, _FLAG_HEIGHT = 0.04, 3, 0.94
# Bars of NaN lie so far above the panel's foot, and one another. Crosses nearer than this share would be a heap.
_LOWEST_POINTS, _BAR_POINTS, _CROSS_SHARE = 7, 9, 0.03
# A finding that happened more often is marked at its first time only: more lines would hide the curves.
_TIMES_MARKED = 10


def draw_line(
    axes: Axes, x: Sequence[float], heights: Sequence[float], label: str, colour: Colour, style: Style = "-"
) -> Artist:
    """A line; a few points, and points alone between gaps, get markers."""
    marked = _marked(heights)
    # What `plot` does beside costs as much as the line itself, and there may be a hundred lines.
    line = Line2D(
        x,
        drawable(heights),
        linestyle=style,
        color=colour,
        label=label,
        linewidth=1.3,
        marker="o" if marked else None,
        markersize=3,
        markevery=marked,
    )
    return axes.add_line(line)


def draw_band(
    axes: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: Colour
) -> list[Artist]:
    """The area between two lines, unless they are the same."""
    if np.array_equal(low, high, equal_nan=True):
        return []
    # The edge keeps a spike of a single bin visible where the band is thinner than a pixel.
    return [axes.fill_between(x, drawable(low), drawable(high), color=colour, alpha=0.3, linewidth=0.8)]


def last(heights: Sequence[float]) -> str:
    """The newest number, for the legend."""
    return f"  {heights[-1]:.4g}" if heights and math.isfinite(heights[-1]) else ""


def numbers_of(heights: Sequence[float | None]) -> list[float]:
    """Heights with NaN for None."""
    return [math.nan if height is None else height for height in heights]


def drawable(heights: Sequence[float]) -> npt.NDArray[np.float64]:
    """The numbers, those near the ends of float64 made smaller: with margins, matplotlib's ticks would overflow."""
    numbers = np.asarray(heights, dtype=np.float64)
    return np.where(np.isfinite(numbers), numbers.clip(-_LARGEST, _LARGEST), numbers)


def _marked(heights: Sequence[float]) -> list[int]:
    """The points that get a marker: all of a few, and of many those between gaps, which no line reaches."""
    if len(heights) <= FEW_POINTS:
        return list(range(len(heights)))
    drawn = [False, *map(math.isfinite, heights), False]
    return [index for index in range(len(heights)) if drawn[index : index + 3] == [False, True, False]]


@dataclass(frozen=True)
class NonFinite:
    """A curve's steps with a NaN or an infinity; its bins end with the steps ``ends``, and stand at ``x``."""

    steps: Sequence[int]
    ends: Sequence[int]
    x: Sequence[float]
    name: str
    colour: Colour


def draw_nonfinite(axes: Axes, options: ViewOptions, curve: NonFinite) -> list[Artist]:
    """Mark the steps with a NaN or an infinity, which no curve can show: each run of them is a bar.

    A bar reaches to the next number, and has a cross at its beginning, unless it would cover another one. A line goes
    across the panel at the first.
    """
    if not curve.steps:
        return []
    bins = np.searchsorted(curve.ends, curve.steps).clip(max=len(curve.ends) - 1)
    begins = np.flatnonzero(np.diff(bins, prepend=-2) > 1)
    starts = np.asarray(curve.steps if options.x is XAxis.STEP else np.asarray(curve.x)[bins], dtype=float)[begins]
    past = np.append(bins[begins[1:] - 1], bins[-1]) + 1
    stops = np.asarray(curve.x, dtype=float)[past.clip(max=len(curve.x) - 1)]
    apart = _CROSS_SHARE * (curve.x[-1] - curve.x[0])
    crossed = [0]
    for place in range(1, len(starts)):
        if starts[place] - starts[crossed[-1]] >= apart:
            crossed.append(place)
    # Bars lie above one another, from the panel's foot up: several curves may have them at the same step.
    below = sum(line.get_marker() == "X" for line in axes.lines)
    height = (_LOWEST_POINTS + _BAR_POINTS * (below % 12)) / 72 / inches_of(axes)[1]
    alarm = theme(options).alarm
    bars = axes.plot(
        np.column_stack([starts, stops, np.full(len(starts), np.nan)]).ravel(),
        np.full(3 * len(starts), height),
        "-",
        color=curve.colour,
        linewidth=3.0,
        solid_capstyle="projecting",
        marker="X",
        markevery=[3 * place for place in crossed],
        markersize=7,
        markeredgecolor=alarm,
        transform=axes.get_xaxis_transform(),
        zorder=3,
        label=f"{curve.name}: NaN/inf {_when(curve)}",
    )
    across = axes.vlines(
        starts[:1], 0.0, 1.0, transform=axes.get_xaxis_transform(), color=alarm, linestyle=":", linewidth=1.0
    )
    return [*bars, across]


def _when(curve: NonFinite) -> str:
    """The steps that are not finite, in few words."""
    first, last = curve.steps[0], curve.steps[-1]
    # Of the steps in a bin, only the first one is known.
    known = last in curve.ends
    if last > curve.ends[-2:][0] or (first == last and not known):
        return f"from step {first:,}"
    return f"at step {first:,}" if first == last else f"from step {first:,} to {last:,}{'' if known else ' or later'}"


class Mark(NamedTuple):
    """The number of a finding, the finding, and the place on the x axis where it began, or happened."""

    number: int
    finding: Finding
    x: float


@dataclass(frozen=True)
class Flag:
    """The numbers of findings at about the same place, and the colour of the worst of them."""

    x: float
    numbers: str
    colour: str


def flags(options: ViewOptions, marks: Sequence[Mark], length: float) -> list[Flag]:
    """The flags of these marks, over an x axis of this length; those that would cover each other are one."""
    groups: list[list[Mark]] = []
    for mark in sorted(marks, key=attrgetter("x")):
        if groups and mark.x - groups[-1][0].x <= _FLAG_SHARE * length:
            groups[-1].append(mark)
        else:
            groups.append([mark])
    return [_flag(options, sorted(group, key=attrgetter("number"))) for group in groups]


def _flag(options: ViewOptions, marks: Sequence[Mark]) -> Flag:
    numbers = list(dict.fromkeys(str(mark.number) for mark in marks))
    words = ",".join([*numbers[:_FLAG_NUMBERS], *(["…"] if len(numbers) > _FLAG_NUMBERS else [])])
    return Flag(marks[0].x, words, colour_of(options, marks[0].finding))


def draw_flag(
    axes: Axes, options: ViewOptions, flag: Flag, y: float, side: Literal["left", "center", "right"] = "center"
) -> Text:
    """A flag at a height, this side of it at its place; it takes no part in the layout."""
    box = {"boxstyle": "round,pad=0.25", "facecolor": flag.colour, "edgecolor": "none"}
    colour = theme(options).ground
    text = axes.text(flag.x, y, flag.numbers, ha=side, va="center", fontsize=7, color=colour, bbox=box, zorder=6)
    text.set_clip_on(True)
    text.set_in_layout(False)
    return text


def _marks(options: ViewOptions, snapshots: Sequence[Snapshot]) -> list[Mark]:
    """A mark for each beginning of a finding that concerns the view, or for each time that it happened."""
    return [
        Mark(number, finding, x)
        for number, snapshot, finding in noticed(snapshots, options)
        # The steps of an attempt that was given up are others than those drawn here.
        if finding.restart is None
        for step in (finding.steps if 0 < len(finding.steps) <= _TIMES_MARKED else (finding.first_step,))
        if (x := _place(options, snapshot, step)) is not None
    ]


def flags_of(options: ViewOptions, snapshots: Sequence[Snapshot]) -> list[Flag]:
    """The flags over curves."""
    steps = ((snapshot, step) for snapshot in snapshots for step in (0, snapshot.last_step or 0))
    ends = [x for snapshot, step in steps if (x := _place(options, snapshot, step)) is not None]
    return flags(options, _marks(options, snapshots), max(ends, default=0) - min(ends, default=0))


def draw_findings(axes: Axes, options: ViewOptions, snapshots: Sequence[Snapshot], numbered: bool) -> list[Artist]:
    """A line across the panel where each finding began or happened; with its number on it if ``numbered``."""
    artists: list[Artist] = []
    # Reversed, so that the worst, which come first, are drawn in front.
    for x, finding in {mark.x: mark.finding for mark in reversed(_marks(options, snapshots))}.items():
        line = axes.axvline(x, color=colour_of(options, finding), linewidth=0.9, linestyle=(0, (1, 2)), zorder=1.5)
        line.set_gid(FLAG)
        artists.append(line)
    for flag in flags_of(options, snapshots) if numbered else ():
        text = draw_flag(axes, options, flag, _FLAG_HEIGHT)
        text.set_transform(axes.get_xaxis_transform())
        artists.append(text)
    return artists


def _place(options: ViewOptions, snapshot: Snapshot, step: float) -> float | None:
    """The place of a run's step on the x axis; None where it is unknown."""
    if options.x is XAxis.STEP:
        return step
    curve = snapshot.extremes or next(iter(snapshot.curves), None)
    if curve is None:
        return None
    index = min(int(np.searchsorted(curve.step, step)), len(curve.step) - 1)
    return x_values(options, snapshot, curve.step, curve.time)[index]
