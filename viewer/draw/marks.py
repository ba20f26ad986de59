"""What is drawn in panels: lines, bands, NaN and infinities, and where findings began."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.text import Text

from viewer.draw.axes import x_values
from viewer.draw.theme import Colour, colour_of, theme
from viewer.options import ViewOptions, XAxis
from viewer.reduce.metrics import FEW_POINTS
from viewer.snapshot import Finding, Snapshot
from viewer.words import noticed

_LARGEST = 1e306
# Marks what stands in no legend: a curve as logged, behind the smoothed one, and a line at a finding's first step.
RAW, FLAG = "as logged", "finding"
# Flags that would cover each other are one: nearer than such a share of the run.
_FLAG_SHARE, _FLAG_NUMBERS, _FLAG_HEIGHT = 0.04, 3, 0.94
# What happened more often is marked the first time only: so many lines would hide the curves.
_TIMES_MARKED = 10


def draw_line(
    axes: Axes, x: Sequence[float], heights: Sequence[float], label: str, colour: Colour, style: str = "-"
) -> Artist:
    """A line, with a marker for each of a few points, and for those that stand alone between gaps."""
    marked = _marked(heights)
    (line,) = axes.plot(
        x,
        drawable(heights),
        style,
        color=colour,
        label=label,
        linewidth=1.3,
        marker="o" if marked else None,
        markersize=3,
        markevery=marked,
    )
    return line


def draw_band(
    axes: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: Colour
) -> list[Artist]:
    """What lies between two lines, unless they are the same."""
    if np.array_equal(low, high, equal_nan=True):
        return []
    # The edge keeps a spike of a single bin visible, where the band itself is thinner than a pixel.
    return [axes.fill_between(x, drawable(low), drawable(high), color=colour, alpha=0.3, linewidth=0.8)]


def last(heights: Sequence[float]) -> str:
    """The newest number, for the legend; as it was logged, and not smoothed."""
    return f"  {heights[-1]:.4g}" if heights and math.isfinite(heights[-1]) else ""


def numbers_of(heights: Sequence[float | None]) -> list[float]:
    """Heights of which none is None."""
    return [math.nan if height is None else height for height in heights]


def drawable(heights: Sequence[float]) -> npt.NDArray[np.float64]:
    """Numbers near the end of float64 brought a little nearer: with margins, matplotlib's ticks would overflow."""
    numbers = np.asarray(heights, dtype=np.float64)
    return np.where(np.isfinite(numbers), numbers.clip(-_LARGEST, _LARGEST), numbers)


def _marked(heights: Sequence[float]) -> list[int]:
    """The points that get a marker: all of a few, and of many those that no line reaches, since gaps surround them."""
    if len(heights) <= FEW_POINTS:
        return list(range(len(heights)))
    there = [False, *map(math.isfinite, heights), False]
    return [index for index in range(len(heights)) if there[index : index + 3] == [False, True, False]]


@dataclass(frozen=True)
class NonFinite:
    """A curve's steps with a NaN or an infinity; its bins end with the steps ``ends``, and stand at ``x``."""

    steps: Sequence[int]
    ends: Sequence[int]
    x: Sequence[float]
    of: str
    colour: Colour


def draw_nonfinite(axes: Axes, options: ViewOptions, found: NonFinite) -> list[Artist]:
    """Mark the steps with a NaN or an infinity, since no curve can show them, and the first across the panel."""
    if not found.steps:
        return []
    x: Sequence[float] = found.steps
    if options.x is not XAxis.STEP:
        x = [found.x[index] for index in np.searchsorted(found.ends, found.steps)]
    # From the panel's foot up, above one another: several curves may have them at the same step.
    below = sum(line.get_marker() == "X" for line in axes.lines)
    height = 0.04 + 0.08 * (below % 12)
    first, *others = x
    # Of the steps in a bin, only the first one is known.
    least = "" if found.steps[-1] in found.ends else " or later"
    until = f", last at {found.steps[-1]:,}{least}" if others else ""
    return list(
        axes.plot(
            [first, first, *(number for there in others for number in (math.nan, there))],
            [height, 1.0, *(number for _ in others for number in (math.nan, height))],
            ":",
            color=theme(options).alarm,
            linewidth=1.0,
            marker="X",
            markevery=[0, *range(3, 3 + 2 * len(others), 2)],
            markersize=10,
            markerfacecolor=found.colour,
            markeredgecolor=theme(options).alarm,
            transform=axes.get_xaxis_transform(),
            label=f"{found.of}: NaN or inf from step {found.steps[0]:,}{until}",
        )
    )


@dataclass(frozen=True)
class Flag:
    """The numbers of findings whose marks are at about the same step, and how the worst of them looks."""

    x: float
    numbers: str
    colour: str


def flags(options: ViewOptions, found: Sequence[tuple[int, Finding, float]], length: float) -> list[Flag]:
    """Where to put the numbers of findings that begin at these places: those that would cover each other in one.

    Args:
        options: How they are shown.
        found: Their numbers, the findings, and where they began.
        length: From where to where the x axis goes.
    """
    groups: list[list[tuple[int, Finding, float]]] = []
    for each in sorted(found, key=lambda each: each[2]):
        if groups and each[2] - groups[-1][0][2] <= _FLAG_SHARE * length:
            groups[-1].append(each)
        else:
            groups.append([each])
    made = []
    for group in groups:
        group.sort(key=lambda each: each[0])
        numbers = list(dict.fromkeys(str(number) for number, _, _ in group))
        words = ",".join([*numbers[:_FLAG_NUMBERS], *(["…"] if len(numbers) > _FLAG_NUMBERS else [])])
        made.append(Flag(group[0][2], words, colour_of(options, group[0][1])))
    return made


def draw_flag(
    axes: Axes, options: ViewOptions, found: Flag, y: float, side: Literal["left", "center", "right"] = "center"
) -> Text:
    """A flag at a height, with this side of it at its place; in a panel it does not take part in the layout."""
    box = {"boxstyle": "round,pad=0.25", "facecolor": found.colour, "edgecolor": "none"}
    colour = theme(options).ground
    text = axes.text(found.x, y, found.numbers, ha=side, va="center", fontsize=7, color=colour, bbox=box, zorder=6)
    text.set_clip_on(True)
    text.set_in_layout(False)
    return text


def _begun(options: ViewOptions, snapshots: Sequence[Snapshot]) -> list[tuple[int, Finding, float]]:
    """The number of each finding that is noticed, and where on the x axis it began, or happened each time."""
    found = noticed(snapshots, options)
    steps = [(number, snapshot, each, step) for number, snapshot, each in found for step in _marked_steps(each)]
    places = [(number, each, _place(options, snapshot, step)) for number, snapshot, each, step in steps]
    return [(number, each, x) for number, each, x in places if x is not None]


def _marked_steps(finding: Finding) -> Sequence[int]:
    return finding.steps if 0 < len(finding.steps) <= _TIMES_MARKED else (finding.first_step,)


def flags_of(options: ViewOptions, snapshots: Sequence[Snapshot]) -> list[Flag]:
    """The flags over curves."""
    steps = ((snapshot, step) for snapshot in snapshots for step in (0, snapshot.last_step or 0))
    ends = [x for snapshot, step in steps if (x := _place(options, snapshot, step)) is not None]
    return flags(options, _begun(options, snapshots), max(ends, default=0) - min(ends, default=0))


def draw_findings(axes: Axes, options: ViewOptions, snapshots: Sequence[Snapshot], numbered: bool) -> list[Artist]:
    """A line across the panel where each finding began or happened, and on it, if it is asked for, its number."""
    artists: list[Artist] = []
    # The worst comes first, and is to be in front.
    for x, finding in {x: finding for _, finding, x in reversed(_begun(options, snapshots))}.items():
        line = axes.axvline(x, color=colour_of(options, finding), linewidth=0.9, linestyle=(0, (1, 2)), zorder=1.5)
        line.set_gid(FLAG)
        artists.append(line)
    for each in flags_of(options, snapshots) if numbered else ():
        text = draw_flag(axes, options, each, _FLAG_HEIGHT)
        text.set_transform(axes.get_xaxis_transform())
        artists.append(text)
    return artists


def _place(options: ViewOptions, snapshot: Snapshot, step: float) -> float | None:
    """Where on the x axis a step of a run stands; None where none is known."""
    if options.x is XAxis.STEP:
        return step
    curve = snapshot.extremes or next(iter(snapshot.curves), None)
    if curve is None:
        return None
    index = min(int(np.searchsorted(curve.step, step)), len(curve.step) - 1)
    return x_values(options, snapshot, curve.step, curve.time)[index]
