"""Axes: the kind of x axis, the scale of the y axis, and the x axis that panels share."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from statistics import median_high, median_low
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.ticker import (
    FuncFormatter,
    LogFormatterSciNotation,
    LogLocator,
    MaxNLocator,
    SymmetricalLogLocator,
)

from viewer.draw.theme import theme
from viewer.options import Scale, ViewOptions, XAxis
from viewer.snapshot import Snapshot

# Symlog turns linear 8 decades below the largest number, or lower where half of the numbers are smaller than that.
_SYMLOG_DECADES, _SYMLOG_SHARE = 8, 1e-2
# The linear part is as high as this many of the decades together.
_LINEAR_SHARE = 8
# A number has exploded that is this many times the median.
_EXPLODED = 1e6
# Larger numbers would overflow with the margins of an axis of hundreds of decades.
_FAR = 1e200
_DECADES_AN_INCH = 7
_MARGIN, _MANY_DECADES = 0.05, 1e-30
# An axis with fewer decades has ticks between them.
_FEW_TICKS = 3
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Units of the time since the run began; each is used from twice its length on.
_UNITS = ((86_400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def style_x_axis(axes: Axes, options: ViewOptions) -> None:
    """Set the ticks and the label of the x axis."""
    set_ticks(axes.xaxis, options)
    labels = {XAxis.STEP: "step", XAxis.WALL: "time", XAxis.RELATIVE: "time since the run began"}
    # The day stands to the right of times.
    place: Literal["left", "center"] = "left" if options.x is XAxis.WALL else "center"
    axes.set_xlabel(labels[options.x], color=theme(options).ink, loc=place)


def set_ticks(axis: Axis, options: ViewOptions) -> None:
    """Set the ticks of an axis along which a run goes on."""
    if options.x is XAxis.WALL:
        zone = datetime.now().astimezone().tzinfo
        locator = AutoDateLocator(tz=zone)
        axis.set_major_locator(locator)
        axis.set_major_formatter(ConciseDateFormatter(locator, tz=zone))
    elif options.x is XAxis.RELATIVE:
        axis.set_major_locator(_Elapsed("auto", steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda x, _: elapsed(float(x), axis.get_view_interval())))
    else:
        axis.set_major_locator(_Steps("auto", integer=True, steps=[1, 2, 5, 10]))


class _Steps(MaxNLocator):
    """Ticks at round steps, none before the first one: a mountain may reach there."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        return [tick for tick in super().tick_values(vmin, vmax) if tick >= 0]


class _Elapsed(MaxNLocator):
    """Ticks at round numbers of seconds, minutes, hours or days."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        length, _ = _unit((vmin, vmax))
        return [length * tick for tick in super().tick_values(vmin / length, vmax / length)]


def _unit(limits: Iterable[float]) -> tuple[float, str]:
    longest = max(map(abs, limits))
    return next((unit for unit in _UNITS if longest >= 2 * unit[0]), _UNITS[-1])


def elapsed(seconds: float, limits: Iterable[float]) -> str:
    """A time in the unit that suits the ends of its axis."""
    length, name = _unit(limits)
    return f"{seconds / length:.9g} {name}"


def x_values(options: ViewOptions, snapshot: Snapshot, steps: Sequence[int], times: Sequence[float]) -> Sequence[float]:
    """The places of bins on the x axis: their last steps, or their last times."""
    if options.x is XAxis.WALL:
        # matplotlib counts days, from a day that users can set.
        begin = float(date2num(_EPOCH))
        return [begin + seconds / 86_400 for seconds in times]
    if options.x is XAxis.RELATIVE:
        return [seconds - snapshot.started for seconds in times]
    return steps


def set_scale(
    axes: Axes, options: ViewOptions, numbers: Sequence[float | None], auto: Scale, along: Literal["x", "y"] = "y"
) -> None:
    """Scale the y axis, or the x axis, for these numbers."""
    finite = [number for number in numbers if number is not None and math.isfinite(number)]
    scale = scale_for(options, finite, auto)
    axis, set_its_scale = {"x": (axes.xaxis, axes.set_xscale), "y": (axes.yaxis, axes.set_yscale)}[along]
    far = scale is Scale.LOG and max(finite, default=0) > _FAR and min(finite) < max(finite) * _MANY_DECADES
    # The margins of an axis of hundreds of decades would overflow.
    axes.set(**{f"{along}margin": 0.0 if far else _MARGIN})
    if scale is not Scale.SYMLOG:
        set_its_scale(scale.value)
        if scale is Scale.LOG:
            axis.set_major_locator(_Decades())
            axis.set_minor_locator(_Decades(subs=range(2, 10)))
            # Of a decade and a bit, numbers between are named, too: one alone is no scale.
            axis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(1.3, 0.4)))
        return
    sizes = [abs(number) for number in finite if number]
    threshold = linear_threshold(sizes)
    # Over many decades the linear part is so high that its own ticks have room.
    height = (math.log10(max(sizes, default=threshold)) - math.log10(threshold)) / _LINEAR_SHARE
    set_its_scale("symlog", linthresh=threshold, linscale=max(1.0, height))
    ticks = max(3, int(_DECADES_AN_INCH * inches_of(axes)[along == "y"]))
    axis.set_major_locator(_SymlogTicks(threshold, ticks))
    axis.set_major_formatter(_SymlogLabels(linthresh=threshold))


class _Decades(LogLocator):
    """The ticks of a log scale, which matplotlib seeks beyond the end of float64, too."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        with np.errstate(over="ignore"):
            ticks = np.asarray(super().tick_values(vmin, vmax))
        return list(ticks[np.isfinite(ticks)])


class _SymlogTicks(SymmetricalLogLocator):
    """Decades; where there are few of them, also numbers between them, so that the scale can be read.

    Args:
        threshold: The magnitude below which the scale is linear.
        count: About how many there may be.
    """

    def __init__(self, threshold: float, count: int) -> None:
        super().__init__(base=10, linthresh=threshold)
        self.set_params(numticks=count)
        between = SymmetricalLogLocator(base=10, linthresh=threshold, subs=(1, 2, 5))
        between.set_params(numticks=count)
        self._finer = between, MaxNLocator("auto", steps=[1, 2, 5, 10])

    def set_axis(self, axis: Any) -> None:
        """Take the axis."""
        super().set_axis(axis)
        for locator in self._finer:
            locator.set_axis(axis)

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        low, high = sorted((vmin, vmax))
        ticks = super().tick_values(vmin, vmax)
        for locator in self._finer:
            if sum(low <= tick <= high for tick in ticks) >= _FEW_TICKS:
                break
            ticks = locator.tick_values(vmin, vmax)
        return ticks


class _SymlogLabels(LogFormatterSciNotation):
    """Powers of ten; plain numbers where others are among them."""

    def set_locs(self, locs: Any = None) -> None:
        """Take the ticks."""
        super().set_locs(locs)
        sizes = [abs(tick) for tick in locs if tick]
        self._plain = any(not math.isclose(size, 10.0 ** round(math.log10(size)), rel_tol=1e-6) for size in sizes)

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label of a tick."""
        return f"{x:.9g}" if self._plain else super().__call__(x, pos)


def scale_for(options: ViewOptions, numbers: Sequence[float], auto: Scale) -> Scale:
    """The scale that is asked for, or the one that shows most of the numbers.

    A log scale would hide zeros and negative numbers: they get a symlog one. A linear scale would hide all numbers but
    the exploded ones: they get a log scale.
    """
    scale = auto if options.scale is Scale.AUTO else options.scale
    if options.scale is Scale.AUTO and auto is Scale.LINEAR and numbers:
        sizes = list(map(abs, numbers))
        scale = Scale.LOG if max(sizes) / _EXPLODED > median_high(sizes) else auto
    return Scale.SYMLOG if scale is Scale.LOG and min(numbers, default=0) <= 0 else scale


def linear_threshold(sizes: Sequence[float]) -> float:
    """The magnitude below which symlog is linear: a power of ten under the smallest one, within bounds."""
    if not sizes:
        return 1e-6
    lowest = max(sizes) * 10.0**-_SYMLOG_DECADES
    # Beside what has exploded, the usual numbers are to be seen, too.
    if max(sizes) < _FAR:
        lowest = min(lowest, median_low(sizes) * _SYMLOG_SHARE)
    # The floor is under every float32. Symlog overflows with a threshold near either end of float64.
    smallest = min(max(min(sizes), lowest, 1e-40), 1e300)
    return float(10.0 ** math.floor(math.log10(smallest)))


def inches_of(axes: Axes) -> tuple[float, float]:
    """The width and height of a panel, about, without its labels."""
    figure, place = axes.get_figure(root=True), axes.get_subplotspec()
    assert figure is not None, "the axes are in a figure"
    assert place is not None, "they are in its grid"
    share, (wide, high) = place.get_position(figure), figure.get_size_inches()
    return float(share.width * wide), float(share.height * high)


class SharedX:
    """The x axis that panels share: it follows new steps, unless the user has zoomed it."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._followed: tuple[float, float] | None = None

    @contextmanager
    def updating(self) -> Iterator[None]:
        """The time in which panels are drawn anew."""
        # Autoscaling cannot tell a zoom: the toolbar's zoom stops it in one panel, its home button in all but one.
        follows = self._followed in (None, self._axes.get_xlim())
        for axes in self._axes.get_shared_x_axes().get_siblings(self._axes):
            axes.set_autoscalex_on(follows)
        yield
        if follows:
            self._followed = self._axes.get_xlim()

    @property
    def zoomed(self) -> tuple[float, float] | None:
        """The part that the user has zoomed to; None where all of it is shown."""
        shown = self._axes.get_xlim()
        return None if self._followed in (None, shown) else shown

    def zoom(self, low: float, high: float) -> None:
        """Show this part, until the user wants another."""
        self._axes.set_xlim(low, high)
