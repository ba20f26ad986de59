"""The curves of a figure as numbers: what stands at a place, which curve is near, and all of them as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.axes import Axes
from matplotlib.transforms import Transform

from viewer.draw.theme import Colour, Style

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Curve:
    """A curve as it was drawn.

    Attributes:
        axes: Where it was drawn.
        run: Its run's name.
        name: What it shows, as a metric's whole name.
        colour: As matplotlib takes it.
        style: Its line style, likewise.
        x: The places of its points on the x axis.
        step: Of each point the last step.
        time: Of each point the last time, in seconds since 1970.
        value: Of each point the number as it was recorded, or the mean of those of a bin; NaN where there is none.
        smooth: The numbers that were drawn instead, smoothed; None where they are ``value``.
        low: Of each point the lowest number; None where it is ``value``.
        high: Of each point the highest number, likewise.
        nonfinite: The steps with a NaN or an infinity, as far as they are known: of each point the first.
    """

    axes: Axes
    run: str
    name: str
    colour: Colour
    style: Style
    x: Sequence[float]
    step: Sequence[int]
    time: Sequence[float]
    value: Sequence[float]
    smooth: Sequence[float] | None = None
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    nonfinite: Sequence[int] = ()
    places: Floats = field(init=False, repr=False)
    bad: dict[int, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "places", np.asarray(self.x, dtype=np.float64))
        points = np.searchsorted(self.step, self.nonfinite)
        object.__setattr__(self, "bad", dict(zip(points.tolist(), self.nonfinite, strict=True)))

    def nearest(self, x: float) -> int:
        """The point that is nearest to a place on the x axis."""
        return int(np.abs(self.places - x).argmin())

    def distance(self, x: float, y: float, to_pixels: Transform) -> float:
        """How many pixels away from a point on the screen the line is, a few points before and after it."""
        place = to_pixels.inverted().transform((x, y))[0]
        near = slice(max(0, self.nearest(place) - 6), self.nearest(place) + 7)
        drawn = self.value if self.smooth is None else self.smooth
        line = to_pixels.transform(np.column_stack([self.places[near], np.asarray(drawn, float)[near]]))
        # Each point is a line to itself, so that one between two gaps counts.
        begin, end = np.concatenate([line, line[:-1]]), np.concatenate([line, line[1:]])
        there = np.isfinite(begin).all(axis=1) & np.isfinite(end).all(axis=1)
        begin, way = begin[there], (end - begin)[there]
        along = ((np.array([x, y]) - begin) * way).sum(axis=1) / np.maximum((way**2).sum(axis=1), 1e-12)
        return float(np.hypot(*(begin + along.clip(0, 1)[:, None] * way - (x, y)).T).min(initial=np.inf))


@dataclass(frozen=True, eq=False)
class Place:
    """Where a panel was drawn.

    Attributes:
        axes: The panel, only to tell which curves are in it.
        box: Its left, lower, right and upper end, in pixels of the figure.
        ends: The lower and the upper end of its x axis.
        to_pixels: The way from its axes to pixels, which changes no more.
    """

    axes: Axes
    box: tuple[float, float, float, float]
    ends: tuple[float, float]
    to_pixels: Transform

    @classmethod
    def of(cls, axes: Axes) -> "Place":
        """Where a panel is now."""
        low, high = sorted(axes.get_xlim())
        left, lower, right, upper = map(float, axes.bbox.extents)
        to_pixels = axes.transData.frozen()
        assert isinstance(to_pixels, Transform), "a frozen transform is one"
        return cls(axes, (left, lower, right, upper), (low, high), to_pixels)

    def contains(self, x: float, y: float) -> bool:
        """Whether a point on the screen is in it."""
        left, lower, right, upper = self.box
        return left <= x <= right and lower <= y <= upper

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place on its axes of a point on the screen."""
        across, up = self.to_pixels.inverted().transform((x, y)).tolist()
        return across, up

    def own(self, curves: Sequence[Curve]) -> list[Curve]:
        """Those of these curves that are in it, and have points."""
        return [curve for curve in curves if curve.axes is self.axes and len(curve.places)]


@dataclass(frozen=True, eq=False)
class Drawn:
    """A figure as it was drawn: it changes no more, so that another thread than the one that draws may look at it.

    Attributes:
        size: Its width and height in pixels.
        pixel_ratio: How many pixels are one of the page's.
        panels: Where the panels are, by their names.
        curves: The curves, from the top.
        by_row: Whether the curves are the rows of a heat map.
    """

    size: tuple[float, float]
    pixel_ratio: float
    panels: Mapping[str, Place]
    curves: Sequence[Curve]
    by_row: bool

    def curves_at(self, place: Place, y: float) -> Sequence[Curve]:
        """The curves that the pointer shows at a height of a panel's axes: those in the panel first."""
        if self.by_row:
            return self.curves[round(y) : round(y) + 1] if round(y) >= 0 else []
        return sorted(self.curves, key=lambda curve: curve.axes is not place.axes)


def at(curves: Sequence[Curve], place: Place, x: float, y: float, within: float) -> Curve | None:
    """The curve in a panel that is nearest to a point on the screen, if it is within so many pixels."""
    near = [(curve.distance(x, y, place.to_pixels), curve) for curve in place.own(curves)]
    distance, curve = min(near, key=lambda pair: pair[0], default=(np.inf, None))
    return curve if distance <= within else None


def table(curves: Sequence[Curve], part: tuple[float, float] | None = None) -> pl.DataFrame:
    """All points of curves, or those in a part of the x axis: a row each.

    Args:
        curves: The curves.
        part: The two ends of the part.

    Returns:
        The columns ``run``, ``curve``, ``step``, ``time`` (UTC), ``value``, ``smoothed``, ``lowest``, ``highest`` and
        ``nonfinite``: the first step of the point with a NaN or an infinity, null where there is none.
    """
    rows = pl.concat([pl.DataFrame(schema=_COLUMNS), *(_rows(curve, part) for curve in curves)])
    microseconds = (pl.col("time").fill_nan(None) * 1e6).round().cast(pl.Int64)
    return rows.with_columns(microseconds.cast(pl.Datetime("us", "UTC")).alias("time"))


def csv(curves: Sequence[Curve], part: tuple[float, float] | None = None) -> str:
    """The ``table`` in characters."""
    return table(curves, part).write_csv(datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ")


_COLUMNS = {
    "run": pl.String,
    "curve": pl.String,
    "step": pl.Int64,
    "time": pl.Float64,
    **dict.fromkeys(("value", "smoothed", "lowest", "highest"), pl.Float64),
    "nonfinite": pl.Int64,
}


def _rows(curve: Curve, part: tuple[float, float] | None) -> pl.DataFrame:
    count = len(curve.places)
    value = np.asarray(curve.value, dtype=np.float64)
    others = (value if numbers is None else numbers for numbers in (curve.smooth, curve.low, curve.high))
    columns = [
        *([word] * count for word in (curve.run, curve.name)),
        np.asarray(curve.step, dtype=np.int64),
        *(np.asarray(numbers, dtype=np.float64) for numbers in (curve.time, value, *others)),
        [curve.bad.get(point) for point in range(count)],
    ]
    rows = pl.DataFrame(dict(zip(_COLUMNS, columns, strict=True)), _COLUMNS)
    low, high = sorted(part) if part else (-np.inf, np.inf)
    return rows.filter((curve.places >= low) & (curve.places <= high))
