"""The curves of a figure as numbers: which is near a point on the screen, and what a table of them holds."""

import math

import numpy as np
import pytest

from tests.figures import canvas
from viewer.draw.curves import Curve, Place, at, table


@pytest.fixture
def curves() -> list[Curve]:
    """A rising and a constant curve in one panel, the latter with a gap, and one in another panel."""
    upper, lower = canvas().subplots(2, 1)
    for axes in (upper, lower):
        axes.set(xlim=(0, 10), ylim=(0, 10))
    steps = range(11)
    times = [float(step) for step in steps]
    gap = [math.nan if step in (4, 5) else 2.0 for step in steps]
    return [
        Curve(upper, "a", "rising", "red", "-", steps, steps, times, [float(step) for step in steps]),
        Curve(upper, "a", "constant", "blue", "-", steps, steps, times, gap, nonfinite=[4, 5]),
        Curve(lower, "b", "below", "green", "-", steps, steps, times, [5.0] * 11, low=[4.0] * 11, high=[6.0] * 11),
    ]


@pytest.mark.parametrize(
    ("x", "y", "name"), [(8, 8, "rising"), (8.4, 2.1, "constant"), (7.5, 7.5, "rising"), (2, 2.4, None)]
)
def test_a_curve_is_found_where_it_was_drawn(curves: list[Curve], x: float, y: float, name: str | None) -> None:
    """Between its points too, to the pixel."""
    upper = curves[0].axes
    across, up = upper.transData.transform((x, y))
    found = at(curves, Place.of(upper), across, up, within=5)
    assert (found and found.name) == name


def test_the_distance_is_that_of_the_line(curves: list[Curve]) -> None:
    """As computed from the two ends of the line on the screen."""
    pixels = curves[0].axes.transData.transform([(0, 0), (10, 10), (5, 2)])
    (begin, end, point) = pixels
    way = (end - begin) / np.linalg.norm(end - begin)
    expected = abs(way[0] * (point - begin)[1] - way[1] * (point - begin)[0])
    # Only some points around the place are looked at, the nearest of which is among them here.
    assert curves[0].distance(point[0], point[1], curves[0].axes.transData) == pytest.approx(expected)


def test_a_curve_with_a_gap_is_not_near_in_it(curves: list[Curve]) -> None:
    """Where there is no number, no line is drawn from one side to the other."""
    upper = curves[0].axes
    across, up = upper.transData.transform((4.5, 2.0))
    assert at(curves, Place.of(upper), across, up, within=5) is None


@pytest.mark.parametrize("scale", ["linear", "log", "symlog"])
def test_the_place_of_a_panel_is_as_it_was_drawn(curves: list[Curve], scale: str) -> None:
    """Another thread may change and draw the panel meanwhile: pixels are those of the picture before."""
    upper = curves[0].axes
    upper.set(yscale=scale, ylim=(1, 1000))
    points = [(2.5, 1.0), (7.0, 40.0), (0.0, 1000.0)]
    pixels, box = upper.transData.transform(points), upper.bbox.extents
    place = Place.of(upper)
    upper.set(xlim=(-50, 400), yscale="linear", ylim=(-3, 2), position=(0.4, 0.4, 0.1, 0.2))
    assert not np.allclose(upper.transData.transform(points), pixels)
    assert place.to_pixels.transform(points) == pytest.approx(pixels)
    assert [place.at(*pixel) for pixel in pixels] == [pytest.approx(point) for point in points]
    assert (place.box, place.ends) == (tuple(box), (0, 10))
    assert place.contains(*pixels[1])
    assert not place.contains(box[0] - 1, pixels[1][1])


def test_a_table_has_what_is_recorded_of_each_point(curves: list[Curve]) -> None:
    """In the part of the x axis that is asked for: its ends, and what was NaN there."""
    rows = table(curves, (5.5, 4))
    assert rows.drop("time").rows() == [
        ("a", "rising", 4, 4.0, 4.0, 4.0, 4.0, None),
        ("a", "rising", 5, 5.0, 5.0, 5.0, 5.0, None),
        *(("a", "constant", step, *[pytest.approx(math.nan, nan_ok=True)] * 4, step) for step in (4, 5)),
        *(("b", "below", step, 5.0, 5.0, 4.0, 6.0, None) for step in (4, 5)),
    ]
    assert rows["time"].dt.epoch("s").to_list() == [4, 5] * 3
    assert table([]).columns == rows.columns
