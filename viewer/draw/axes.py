"""Axes: the kind of x axis, the scale of the y axis, and the x axis that panels share."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from statistics import median_high, median_low
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.ticker import FuncFormatter, MaxNLocator, SymmetricalLogLocator

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
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Units of the time since the run began; each is used from twice its length on.
_UNITS = ((86_400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def style_x_axis(axes: Axes, options: ViewOptions) -> None:
    """Set the ticks and the label of the x axis."""
    place: Literal["left", "center"] = "center"
    if options.x is XAxis.WALL:
        zone = datetime.now().astimezone().tzinfo
        locator = AutoDateLocator(tz=zone)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=zone))
        # The day stands to the right.
        label, place = "time", "left"
    elif options.x is XAxis.RELATIVE:
        axes.xaxis.set_major_locator(_Elapsed("auto", steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _elapsed(float(x), axes.get_xlim())))
        label = "time since the run began"
    else:
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
        label = "step"
    axes.set_xlabel(label, color=theme(options).ink, loc=place)


class _Elapsed(MaxNLocator):
    """Ticks at round numbers of seconds, minutes, hours or days."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        length, _ = _unit((vmin, vmax))
        return [length * tick for tick in super().tick_values(vmin / length, vmax / length)]


def _unit(limits: tuple[float, float]) -> tuple[float, str]:
    longest = max(map(abs, limits))
    return next((unit for unit in _UNITS if longest >= 2 * unit[0]), _UNITS[-1])


def _elapsed(seconds: float, limits: tuple[float, float]) -> str:
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


def set_scale(axes: Axes, options: ViewOptions, numbers: Sequence[float | None], auto: Scale) -> None:
    """Scale the y axis for these numbers."""
    finite = [number for number in numbers if number is not None and math.isfinite(number)]
    scale = scale_for(options, finite, auto)
    if scale is not Scale.SYMLOG:
        axes.set_yscale(scale.value)
        return
    sizes = [abs(number) for number in finite if number]
    threshold = linear_threshold(sizes)
    # Over many decades the linear part is so high that its own ticks have room.
    height = (math.log10(max(sizes, default=threshold)) - math.log10(threshold)) / _LINEAR_SHARE
    axes.set_yscale("symlog", linthresh=threshold, linscale=max(1.0, height))
    locator = axes.yaxis.get_major_locator()
    assert isinstance(locator, SymmetricalLogLocator), "it comes with the scale"
    locator.set_params(numticks=max(3, int(_DECADES_AN_INCH * inches_of(axes)[1])))


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
