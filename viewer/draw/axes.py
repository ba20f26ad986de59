"""Axes: what x is, which scale y has, and the x axis that panels share."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from statistics import median_high, median_low
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.ticker import FuncFormatter, MaxNLocator, SymmetricalLogLocator

from viewer.draw.theme import theme
from viewer.options import Scale, ViewOptions, XAxis
from viewer.snapshot import Snapshot

# Below 8 decades under the largest number, symlog shows a straight line through zero, unless half of them are there.
_SYMLOG_DECADES, _SYMLOG_SHARE = 8, 1e-2
# The linear part is at least such a share of the decades; and so far from the usual ones a number has exploded.
_LINEAR_SHARE, _EXPLODED = 8, 1e6
# With the margins of an axis of hundreds of decades, numbers beyond this would overflow.
_FAR = 1e200
_DECADES_AN_INCH = 7
# From twice a unit on, time since the beginning is in it.
_UNITS = ((86_400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def style_x_axis(axes: Axes, options: ViewOptions) -> None:
    """Label the x axis by what it is."""
    place: Literal["left", "center"] = "center"
    if options.x is XAxis.WALL:
        zone = datetime.now().astimezone().tzinfo
        locator = AutoDateLocator(tz=zone)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=zone))
        # To its right, the day is named.
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
    """Where on the x axis bins stand: by their last steps, or by their last times."""
    if options.x is XAxis.WALL:
        # matplotlib counts days.
        return [seconds / 86_400 for seconds in times]
    if options.x is XAxis.RELATIVE:
        return [seconds - snapshot.started for seconds in times]
    return steps


def set_scale(axes: Axes, options: ViewOptions, numbers: Sequence[float | None], auto: Scale) -> None:
    """Scale the y axis; instead of a log scale, which would hide them, zeros and negative numbers get a symlog one."""
    there = [number for number in numbers if number is not None and math.isfinite(number)]
    scale = chosen(options, there, auto)
    if scale is Scale.LOG and (not there or min(there) <= 0):
        scale = Scale.SYMLOG
    if scale is Scale.SYMLOG:
        sizes = [abs(number) for number in there if number]
        threshold = linear_threshold(sizes)
        # Over many decades the linear part is so high that its own ticks have room.
        height = (math.log10(max(sizes, default=threshold)) - math.log10(threshold)) / _LINEAR_SHARE
        axes.set_yscale("symlog", linthresh=threshold, linscale=max(1.0, height))
        locator = axes.yaxis.get_major_locator()
        assert isinstance(locator, SymmetricalLogLocator), "it comes with the scale"
        locator.set_params(numticks=max(3, int(_DECADES_AN_INCH * inches_of(axes)[1])))
    else:
        axes.set_yscale(scale.value)


def chosen(options: ViewOptions, numbers: Sequence[float], auto: Scale) -> Scale:
    """The scale that is asked for, or the one that shows most: a linear one not where it would hide all but a few."""
    if options.scale is not Scale.AUTO:
        return options.scale
    exploded = bool(numbers) and max(map(abs, numbers)) / _EXPLODED > median_high(map(abs, numbers))
    return Scale.LOG if auto is Scale.LINEAR and exploded else auto


def linear_threshold(numbers: Sequence[float]) -> float:
    """Where symlog turns linear: under the smallest number, a power of ten, but not too far below the usual ones."""
    if not numbers:
        return 1e-6
    # The floor is under every float32; symlog overflows where its threshold is hardly more than 0.
    # Beside what has exploded, what was usual before is to be seen, too.
    below = max(numbers) * 10.0**-_SYMLOG_DECADES
    if max(numbers) < _FAR:
        below = min(below, median_low(numbers) * _SYMLOG_SHARE)
    smallest = max(min(numbers), below, 1e-40)
    return float(10.0 ** math.floor(math.log10(smallest)))


def inches_of(axes: Axes) -> tuple[float, float]:
    """About how wide a panel is without its labels, and how high."""
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
        """While panels are drawn anew."""
        # Autoscaling cannot tell: a toolbar's zoom stops that of one panel, and its home button that of all but one.
        follows = self._followed in (None, self._axes.get_xlim())
        for axes in self._axes.get_shared_x_axes().get_siblings(self._axes):
            axes.set_autoscalex_on(follows)
        yield
        if follows:
            self._followed = self._axes.get_xlim()
