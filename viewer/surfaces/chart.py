"""Curves in characters. Only numbers come here; rich writes the names from a log, as plain text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import plotext  # type: ignore[import-untyped]
from matplotlib.scale import SymmetricalLogTransform
from matplotlib.ticker import Locator, LogLocator, MaxNLocator, SymmetricalLogLocator
from rich.text import Text

from viewer.draw.axes import linear_threshold, scale_for
from viewer.draw.marks import Flag, drawable
from viewer.draw.theme import theme
from viewer.options import Scale, ViewOptions, XAxis

Numbers = npt.NDArray[np.float64]

# Dots across a character of braille.
_DOTS = 2
# Several lines bear their marks once in this many characters.
_MARK_EVERY = 14


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        x: The places of its bins.
        low: The lowest number of each bin, NaN where there is none.
        high: The highest, likewise.
        colour: As ``#rrggbb``.
        mark: A character that tells lines apart where colours do not.
        smooth: The smoothed line, in front of the then pale area between low and high.
        alarms: The places of NaN and infinities on the x axis.
    """

    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: str
    mark: str
    smooth: Sequence[float] | None = None
    alarms: Sequence[float] = ()


@dataclass(frozen=True)
class _Axis:
    """An axis: from numbers to places between 0 and 1, and the numbers that stand beside it."""

    transform: Callable[[Any], Any]
    ends: tuple[float, float]
    ticks: Sequence[float]
    labels: Sequence[str]

    def places(self, numbers: npt.ArrayLike) -> Numbers:
        """The places of numbers, NaN where there is none; all in the middle where the axis has no length."""
        given = np.array(numbers, dtype=np.float64)
        # A place far outside of the figure would end plotext, and this process with it.
        inside = np.where(np.isfinite(given), given.clip(*self.ends), np.nan)
        low, high = self.transform(np.array(self.ends))
        moved = np.asarray(self.transform(inside))
        return (moved - low) / (high - low) if high > low else np.where(np.isfinite(moved), 0.5, np.nan)


def chart(
    lines: Sequence[Line], options: ViewOptions, auto: Scale, width: int, height: int, flags: Sequence[Flag] = ()
) -> Text:
    """A chart of lines; each column of dots shows the extremes of all bins in it.

    Args:
        lines: At least one, of at least one bin.
        options: The scale of the y axis, the kind of x axis, and the colours.
        auto: The scale where the options leave it open.
        width: In characters.
        height: In characters.
        flags: Marked below the upper edge, those of one digit that lie between the ends of the lines.
    """
    numbers = [number for line in lines for number in (*line.low, *line.high) if math.isfinite(number)]
    y_axis = _y_axis(drawable(numbers).tolist(), scale_for(options, numbers, auto), max(2, height // 3))
    x_axis = _x_axis([x for line in lines for x in (*line.x, *line.alarms)], options.x, max(2, width // 10))
    plotext.terminal.limit(False, False)
    figure = plotext.figure.clear()
    figure.theme("colorless").plot_size(width, height)
    figure.axes(False, side="upper", axis="x").axes(False, side="right", axis="y")
    for name, axis in (("x", x_axis), ("y", y_axis)):
        figure.ruler(name).lim(0, 1).ticks(axis.places(axis.ticks).tolist(), list(axis.labels))
    for line in lines:
        x = x_axis.places(line.x)
        low, high = (y_axis.places(drawable(numbers)) for numbers in (line.low, line.high))
        _draw(figure, x, low, high, width, _pixel(line.colour, "dim" if line.smooth is not None else None))
    for index, line in enumerate(lines):
        x, front = x_axis.places(line.x), y_axis.places(drawable(line.smooth if line.smooth is not None else line.high))
        if line.smooth is not None:
            _draw(figure, x, front, front, width, _pixel(line.colour))
        places = _marked(x, front, width, index, len(lines))
        _stamp(figure, x[places], front[places], line.mark, _pixel(line.colour, "bold"))
    alarms = x_axis.places([x for line in lines for x in line.alarms])
    _stamp(figure, alarms, np.ones(len(alarms)), "!", _pixel(theme(options).alarm, "bold"))
    for flag in flags:
        number = flag.numbers.partition(",")[0]
        if len(number) == 1 and x_axis.ends[0] <= flag.x <= x_axis.ends[1]:
            place = x_axis.places([flag.x])
            _stamp(figure, place, np.array([1 - 1.5 / height]), number, _pixel(flag.colour, "bold"))
    return Text.from_ansi(figure.build().string().rstrip("\n"), no_wrap=True, overflow="crop")


def _pixel(colour: str, style: str | None = None) -> Any:
    return plotext.pixel(foreground=tuple(bytes.fromhex(colour[1:])), style=style)


def _draw(figure: Any, x: Numbers, low: Numbers, high: Numbers, width: int, pixel: Any) -> None:
    """Draw the area between two lines, broken where a bin has no number."""
    columns, lows, highs, joined = reduced(x, low, high, _DOTS * width)
    signal = figure.signal(
        np.repeat(columns, 2).tolist(),
        np.column_stack([lows, highs]).ravel().tolist(),
        marker=plotext.marker("braille", pixel=pixel),
    ).lines(True)
    for index in np.flatnonzero(~joined).tolist():
        signal.line(2 * index, False)
    figure.draw(signal)


def _stamp(figure: Any, x: Numbers, y: Numbers, mark: str, pixel: Any) -> None:
    figure.draw(figure.signal(x.tolist(), y.tolist(), marker=plotext.marker(mark, pixel=pixel)))


def reduced(
    x: Numbers, low: Numbers, high: Numbers, columns: int
) -> tuple[Numbers, Numbers, Numbers, npt.NDArray[np.bool_]]:
    """The lowest low and the highest high in each of ``columns`` columns of equal width.

    Returns:
        Of each column with a number its place between 0 and 1, the two numbers, and whether a line joins it to the
        column before: not across a bin without a number.
    """
    # A damaged log may lack one of the two, or have them the wrong way round.
    low, high = np.fmin(low, high), np.fmax(low, high)
    column = np.clip(x * columns, 0, columns - 1).astype(np.int64)
    lows, highs, gaps = np.full(columns, np.nan), np.full(columns, np.nan), np.zeros(columns, dtype=np.int64)
    np.fmin.at(lows, column, low)
    np.fmax.at(highs, column, high)
    np.maximum.at(gaps, column, np.cumsum(~np.isfinite(low)))
    filled = np.flatnonzero(np.isfinite(lows))
    joined = np.diff(np.maximum.accumulate(gaps)[filled], prepend=0) == 0
    return (filled + 0.5) / columns, lows[filled], highs[filled], joined


def _marked(x: Numbers, y: Numbers, width: int, index: int, lines: int) -> npt.NDArray[np.int64]:
    """The points that bear a line's mark: its last one, and some others where there are several lines."""
    drawn = np.flatnonzero(np.isfinite(y))
    if lines == 1 or not len(drawn):
        return drawn[-1:]
    every = max(2, width // _MARK_EVERY)
    wanted = (np.arange(every) + (index + 1) / (lines + 1)) / every
    near = np.searchsorted(x[drawn], wanted)
    places: npt.NDArray[np.int64] = drawn[np.unique(np.append(near[near < len(drawn)], len(drawn) - 1))]
    return places


def _y_axis(numbers: Sequence[float], scale: Scale, count: int) -> _Axis:
    if not numbers:
        return _Axis(np.array, (0.0, 1.0), [], [])
    ends = min(numbers), max(numbers)
    transform: Callable[[Any], Any] = np.asarray
    locator: Locator = MaxNLocator(nbins=count, steps=[1, 2, 5, 10])
    if scale is Scale.SYMLOG:
        threshold = linear_threshold([abs(number) for number in numbers if number])
        transform = SymmetricalLogTransform(10, threshold, 1).transform
        locator = SymmetricalLogLocator(base=10, linthresh=threshold)
        locator.set_params(numticks=count)
    elif scale is Scale.LOG:
        transform = np.log10
        locator = LogLocator(numticks=count)
        if len(_within(locator, ends)) < 3:
            locator = LogLocator(subs=(1, 2, 5), numticks=count)
    ticks = _within(locator, ends)
    return _Axis(transform, ends, ticks, _labels(ticks))


def _within(locator: Locator, ends: tuple[float, float]) -> list[float]:
    """The locator's numbers between the ends, or the ends where there are too few to tell the scale."""
    # Near the end of float64, the locator tries a decade too many.
    with np.errstate(over="ignore"):
        tried = locator.tick_values(*ends) if ends[0] < ends[1] else []
    ticks = [float(tick) for tick in tried if ends[0] <= tick <= ends[1]]
    return ticks if len(ticks) > 1 else sorted(set(ends))


def _labels(ticks: Sequence[float]) -> list[str]:
    """Numbers as short as they can be and still differ."""
    for digits in range(3, 18):
        labels = [f"{tick + 0.0:.{digits}g}" for tick in ticks]
        if len(set(labels)) == len(ticks):
            break
    return labels


def _x_axis(numbers: Sequence[float], kind: XAxis, count: int) -> _Axis:
    ends = float(min(numbers)), float(max(numbers))
    if kind is XAxis.WALL:
        ticks = np.linspace(*ends, min(count, 3)).tolist()
        form = "%H:%M:%S" if ends[1] - ends[0] < 1 else "%m-%d %H:%M"
        return _Axis(np.asarray, ends, ticks, [moment(day, form) for day in ticks])
    ticks = _within(MaxNLocator(nbins=count, integer=kind is XAxis.STEP, steps=[1, 2, 5, 10]), ends)
    if kind is XAxis.RELATIVE:
        long = ends[1] - ends[0] >= 60
        labels = [str(timedelta(seconds=round(seconds))) if long else f"{seconds:g} s" for seconds in ticks]
        return _Axis(np.asarray, ends, ticks, labels)
    return _Axis(np.asarray, ends, ticks, [f"{step:,.0f}" for step in ticks])


def moment(day: float, form: str) -> str:
    """A day since 1970 as a date or time."""
    try:
        return datetime.fromtimestamp(day * 86_400).strftime(form)
    except (OSError, OverflowError, ValueError):
        # No clock tells years like these, but a damaged log may.
        return f"day {day:.3g}"
