"""One parameter's figure: bands, what else was recorded, and heat maps that hold every count of its histograms."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection, QuadMesh

from tests.figures import NAMES, PHONE, artists, canvas, check_contrast, check_texts, entries, zoom
from tests.halves import first_of
from viewer.draw.parameter import Parameter, _edges, regridded
from viewer.draw.theme import SIZE_INCHES
from viewer.options import Scale, View, ViewOptions, XAxis
from viewer.snapshot import Extremes, Histogram, Snapshot

NOW = 1e9
FOUR = {"value_min": -1.0, "value_max": 2.0, "grad_min": -3.0, "grad_max": 4.0}
APPLIED = {"applied_min": -0.5, "applied_max": 0.5}


def look(**fields: Any) -> ViewOptions:
    """A look at a parameter."""
    return ViewOptions(**{"view": View.PARAM, "param": "fc.weight", **fields})


def extremes(
    steps: Sequence[int], nonfinite: Mapping[str, Sequence[int]] | None = None, /, **columns: float
) -> Extremes:
    """Extremes with the same number at each step, multiplied by the step and one, but for the first step's."""
    numbers = {name: [value * (index + 1) for index in range(len(steps))] for name, value in columns.items()}
    bad = {"value": [], "grad": [], "applied": [], **(nonfinite or {})}
    return Extremes(list(steps), numbers, bad, [NOW + 2 * step for step in steps])


def histogram(step: int, low: float = -1.0, high: float = 1.0, counts: Sequence[int] = (1, 0, 3)) -> Histogram:
    """A histogram of a step."""
    return Histogram(step, NOW + 2 * step, low, high, counts)


def snapshot(
    there: Extremes | None, histograms: Mapping[str, Sequence[Histogram]] | None = None, **fields: Any
) -> Snapshot:
    """A run's moment."""
    given: dict[str, Any] = {"name": "run", "state": "running", "last_step": None if there is None else there.step[-1]}
    return Snapshot(**{**given, "extremes": there, "histograms": histograms or {}, "started": NOW, **fields})


def filled(*snapshots: Snapshot, size: tuple[float, float] = SIZE_INCHES, **fields: Any) -> Parameter:
    """The figure, after these snapshots were put into it one after the other; making the picture costs far more."""
    shown = Parameter(canvas(size), look(**fields))
    for each in snapshots:
        shown.update([each], NOW)
    return shown


def drawn(*snapshots: Snapshot, **fields: Any) -> Parameter:
    """The figure, after a picture was made of each of these snapshots."""
    shown = filled(**fields)
    for each in snapshots:
        update(shown, each)
    return shown


def update(shown: Parameter, each: Snapshot) -> None:
    """Draw a later snapshot."""
    shown.update([each], NOW)
    shown.figure.canvas.draw()


def panels(shown: Parameter) -> dict[str, Axes]:
    """The panels, by name."""
    return {axes.get_ylabel(): axes for axes in shown.figure.axes}


def bands(axes: Axes) -> list[set[float]]:
    """The heights of the edges of each band."""
    found = [artist for artist in axes.collections if isinstance(artist, PolyCollection)]
    return [{float(y) for y in np.asarray(band.get_paths()[0].vertices)[:, 1]} for band in found]


def heat(axes: Axes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A heat map's columns' edges, rows' edges, and shares."""
    (mesh,) = [artist for artist in axes.collections if isinstance(artist, QuadMesh)]
    corners = np.asarray(mesh.get_coordinates())
    return corners[0, :, 0], corners[:, 0, 1], np.ma.filled(np.ma.asarray(mesh.get_array()), 0.0)


def test_values_and_gradients_are_bands_with_the_historys_numbers() -> None:
    """Each has a line for its minima, one for its maxima, and a band between them."""
    found = panels(filled(snapshot(extremes([0, 1], **FOUR))))
    assert list(found) == ["value", "gradient"]
    assert bands(found["value"]) == [{-1.0, -2.0, 2.0, 4.0}]
    assert bands(found["gradient"]) == [{-3.0, -6.0, 4.0, 8.0}]
    assert entries(found["value"]) == ["value max  4", "value min  -2"]
    assert entries(found["gradient"]) == ["gradient max  8", "gradient min  -6"]


def test_the_applied_gradient_is_beside_the_gradient() -> None:
    """What the optimizer got shares the gradient's panel, in a colour of its own."""
    panel = panels(filled(snapshot(extremes([0, 1], **FOUR, **APPLIED))))["gradient"]
    assert bands(panel) == [{-3.0, -6.0, 4.0, 8.0}, {-0.5, -1.0, 0.5, 1.0}]
    assert entries(panel)[2:] == ["applied max  1", "applied min  -1"]
    assert len({line.get_color() for line in panel.lines}) == 2


def test_the_legend_has_room_for_the_applied_gradient_beside_histograms() -> None:
    """In a figure of the usual size, four panels above one another still name all four of its lines."""
    of = {kind: [histogram(0)] for kind in ("value", "grad")}
    panel = panels(filled(snapshot(extremes([0, 1], **FOUR, **APPLIED), of)))["gradient"]
    assert len(entries(panel)) == 4
    assert "more" not in "".join(entries(panel))


def test_its_nan_is_marked() -> None:
    """A NaN of value, gradient or applied gradient has its mark in their panel and its step in the legend."""
    there = extremes([0, 1], {"value": [0], "grad": [1], "applied": [0, 1]}, **FOUR, **APPLIED)
    found = panels(filled(snapshot(there)))
    assert entries(found["value"])[0] == "value: NaN or inf from step 0"
    assert entries(found["gradient"])[:2] == [
        "gradient: NaN or inf from step 1",
        "applied: NaN or inf from step 0, last at 1",
    ]
    for axes, heights in ((found["value"], [0.04]), (found["gradient"], [0.04, 0.12])):
        marks = [line for line in axes.lines if "NaN" in str(line.get_label())]
        assert [np.asarray(mark.get_ydata())[0] for mark in marks] == pytest.approx(heights), "from the foot up"


def test_what_else_was_recorded_has_a_panel_each() -> None:
    """A statistic's panel shows it of value and gradient: its highest numbers as a line, all of them as a band."""
    more = {"value_norm_low": 1.0, "value_norm_high": 2.0, "grad_norm_low": -5.0, "grad_norm_high": 7.0}
    there = extremes([0], **FOUR, **more, grad_zeros_low=0.25, grad_zeros_high=0.25)
    found = panels(filled(snapshot(there)))
    assert list(found) == ["value", "gradient", "norm", "zeros"]
    assert entries(found["norm"]) == ["value  2", "gradient  7"]
    assert bands(found["norm"]) == [{1.0, 2.0}, {-5.0, 7.0}]
    assert entries(found["zeros"]) == ["gradient  0.25"]
    assert bands(found["zeros"]) == []


def test_a_log_scale_hides_no_negative_statistic() -> None:
    """Where only the lowest numbers of a statistic are negative, its scale is symlog."""
    there = extremes([0, 1], **FOUR, grad_mean_low=-1.0, grad_mean_high=1.0)
    panel = panels(filled(snapshot(there), scale=Scale.LOG))["mean"]
    assert panel.get_yscale() == "symlog"
    assert panel.get_ylim()[0] <= -2


@pytest.mark.slow
def test_panels_appear_with_what_they_show() -> None:
    """As statistics and histograms come, and go with a run that begins anew, the figure has exactly their panels."""
    plain, more = extremes([0, 1], **FOUR), extremes([0, 1], **FOUR, grad_norm_low=1.0, grad_norm_high=2.0)
    of = {"grad": [histogram(0)]}
    steps: list[tuple[Snapshot, list[str]]] = [
        (snapshot(None), ["value", "gradient"]),
        (snapshot(plain), ["value", "gradient"]),
        (snapshot(plain, of), ["value", "gradient", "gradient\nhistogram"]),
        (snapshot(more, of), ["value", "gradient", "gradient\nhistogram", "norm"]),
        (
            snapshot(more, {**of, "value": [histogram(0)]}),
            ["value", "gradient", "value\nhistogram", "gradient\nhistogram", "norm"],
        ),
        (snapshot(None), ["value", "gradient"]),
    ]
    shown = filled()
    counts = []
    for _ in range(2):
        for each, expected in steps:
            shown.update([each], NOW)
            assert list(panels(shown)) == expected
            counts.append(artists(shown.figure))
            check_texts(shown.figure)
    assert counts == counts[: len(steps)] * 2


def test_before_its_first_row_the_panels_say_so() -> None:
    """The words go with the first row."""
    shown = filled(snapshot(None))
    assert [text.get_text() for axes in shown.figure.axes for text in axes.texts if text.get_visible()] == [
        "no row of this parameter yet"
    ] * 2
    shown.update([snapshot(extremes([0], **FOUR))], NOW)
    assert not [text for axes in shown.figure.axes for text in axes.texts if text.get_visible()]


COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=64)
ENDS = st.floats(-1e12, 1e12) | st.floats(-1, 1) | st.just(0.0)


@settings(max_examples=200, deadline=None)
@given(COUNTS, ENDS, ENDS, ENDS, ENDS, st.booleans())
@example([187], 0.0, -11773531819.0, 0.0, 0.0, False)
@example([2], 0.0, 1.1125369292536007e-308, 0.0, 0.0, False)
@example([0], 0.0, 2.225073858507e-311, 1.0, 0.0, False)
def test_a_histogram_keeps_every_count_in_other_bins(
    counts: list[int], a: float, b: float, c: float, d: float, linear: bool
) -> None:
    """However its range and that of the heat map differ, the sum stays; no bin has less than nothing."""
    one = histogram(0, min(a, b), max(a, b), counts)
    reach = (one.low, one.high) if one.low < one.high else (one.low - 0.5, one.high + 0.5)
    rows = _edges(min(reach[0], c, d), max(reach[1], c, d), linear, 1e-6)
    found = regridded(one, rows)
    assert found.sum() == pytest.approx(sum(counts), rel=1e-9)
    assert (found >= 0).all()


def test_a_histogram_is_spread_over_where_its_bins_lie() -> None:
    """Each count goes into the rows that its bin covers, in proportion."""
    found = regridded(histogram(0, 0.0, 4.0, [8, 0, 4, 2]), np.array([-1.0, 0.0, 0.5, 1.0, 3.0, 3.5, 4.0, 9.0]))
    assert found.tolist() == [0.0, 4.0, 4.0, 4.0, 1.0, 1.0, 0.0]
    constant = regridded(histogram(0, 2.0, 2.0, [0, 6]), np.array([0.0, 2.0, 2.25, 2.5]))
    assert constant.tolist() == [0.0, 3.0, 3.0]


HISTOGRAMS = {
    "one": [histogram(3)],
    "constant": [histogram(0, 2.0, 2.0, [0, 5]), histogram(9, 2.0, 2.0, [5, 0])],
    "all zero": [histogram(0, 0.0, 0.0, [4])],
    "far apart": [histogram(0, -1e-10, 1e-10, [1, 2]), histogram(5, -1.0, 1e10, [7, 0, 1])],
    "large": [histogram(0, -1e300, 1e300, [1, 2])],
    "positive": [histogram(0, 1.0, 2.0), histogram(1, 3.0, 4.0)],
    "two ranks": [histogram(0), histogram(0, -3.0, 0.0, [2, 2]), histogram(4)],
}


@pytest.mark.parametrize("x", first_of(XAxis))
@pytest.mark.parametrize("scale", first_of(Scale))
@pytest.mark.parametrize("name", HISTOGRAMS)
def test_a_heat_map_shows_the_share_of_elements(name: str, scale: Scale, x: XAxis) -> None:
    """Whatever the histograms and axes, each column sums to 1, begins at its step, and all rows are in the panel."""
    histograms = HISTOGRAMS[name]
    shown = filled(snapshot(extremes([0, 9], **FOUR), {"grad": histograms}), scale=scale, x=x)
    columns, rows, shares = heat(panel := panels(shown)["gradient\nhistogram"])
    steps = sorted({each.step for each in histograms})
    at = {XAxis.STEP: 1.0, XAxis.WALL: 2 / 86_400, XAxis.RELATIVE: 2.0}[x]
    begin = NOW / 86_400 if x is XAxis.WALL else 0.0
    assert columns[:-1] == pytest.approx([begin + at * step for step in steps], rel=1e-12)
    assert columns[-1] > columns[-2]
    assert shares.shape == (len(rows) - 1, len(steps))
    assert shares.sum(axis=0) == pytest.approx(np.ones(len(steps)))
    assert (np.diff(rows) > 0).all()
    assert panel.get_ylim()[0] <= rows[0] < rows[-1] <= panel.get_ylim()[1]
    if x is not XAxis.STEP:
        assert panel.get_xlim()[1] - panel.get_xlim()[0] < 40 * at


@pytest.mark.slow
@pytest.mark.parametrize("scale", [Scale.LINEAR, Scale.SYMLOG])
def test_a_picture_is_made_of_any_histograms(scale: Scale) -> None:
    """Whatever their range, and that of those before them; and its texts have room."""
    of = extremes([0, 9], **FOUR)
    check_texts(drawn(*(snapshot(of, {"grad": each}) for each in HISTOGRAMS.values()), scale=scale).figure)


def test_a_heat_map_of_nothing_is_drawn() -> None:
    """Histograms without a single element, as of a parameter whose gradient is all NaN, leave their panel blank."""
    shown = drawn(snapshot(extremes([0], **FOUR), {"grad": [histogram(0, counts=[0, 0])]}))
    _, _, shares = heat(panels(shown)["gradient\nhistogram"])
    assert not shares.any()


@pytest.mark.slow
def test_a_zoom_outlives_new_rows() -> None:
    """Limits that the zoom tool has set in one panel stay, for all of them along x, until its home button."""

    def moment(count: int) -> Snapshot:
        there = extremes(range(count), **FOUR, grad_norm_low=1.0, grad_norm_high=2.0)
        return snapshot(there, {"grad": [histogram(step) for step in range(0, count, 10)]})

    for name in ("value", "gradient", "gradient\nhistogram", "norm"):
        shown = filled(moment(50), scale=Scale.LINEAR)
        panel = panels(shown)[name]
        low, high = panel.get_ylim()
        toolbar = zoom(panel, (10, 20), (low + (high - low) / 4, high - (high - low) / 4))
        limits = panel.get_xlim(), panel.get_ylim()
        assert limits[0] == pytest.approx((10, 20), abs=0.5)
        shown.update([moment(60)], NOW)
        update(shown, moment(500))
        assert (panel.get_xlim(), panel.get_ylim()) == limits, name
        assert {axes.get_xlim() for axes in shown.figure.axes} == {limits[0]}
        toolbar.home()
        shown.update([moment(500)], NOW)
        assert panel.get_xlim()[1] >= 499


@pytest.mark.parametrize("size", [SIZE_INCHES, PHONE])
@pytest.mark.parametrize("name", first_of(NAMES))
def test_there_is_room_for_any_name(name: str, size: tuple[float, float]) -> None:
    """Whatever parameter, run and statistic are called, nothing is cut off or on one another."""
    there = extremes(
        [0, 1], {"grad": [0]}, **FOUR, **APPLIED, **{f"grad_{name[:8]}_{end}": 1.0 for end in ("low", "high")}
    )
    check_texts(filled(snapshot(there, name=name), size=size, param=name).figure)


def test_on_a_phone_all_panels_are_in_one_column() -> None:
    """They are side by side again when the figure is wide; legends are above their panels."""
    there = extremes([0, 1], **FOUR, grad_norm_low=1.0, grad_norm_high=2.0)
    shown = drawn(snapshot(there), size=PHONE)
    assert len({axes.get_position().x0 for axes in shown.figure.axes}) == 1
    for axes in shown.figure.axes:
        legend = axes.get_legend()
        assert legend is not None
        assert legend.get_window_extent().y0 >= axes.get_window_extent().y1 - 1
    shown.figure.set_size_inches(*SIZE_INCHES)
    update(shown, snapshot(there))
    assert len({round(axes.get_position().x0, 1) for axes in shown.figure.axes}) == 2


@pytest.mark.parametrize("dark", [False, True])
def test_everything_is_readable_on_its_ground(dark: bool) -> None:
    """Every text, tick and spine has contrast to the ground, before the first row and after it."""
    there = extremes([0, 1], {"grad": [1]}, **FOUR, **APPLIED, grad_norm_low=1.0, grad_norm_high=2.0)
    for each in (snapshot(None), snapshot(there, {"grad": [histogram(0)]})):
        check_contrast(filled(each, dark=dark).figure)


def test_gaps_and_the_title() -> None:
    """A parameter without a gradient has an empty panel on its scale, and the title names it and its run."""
    nothing = dataclasses.replace(extremes([0, 1], **FOUR), statistics={name: [None, None] for name in FOUR})
    shown = filled(snapshot(nothing, name="mine"))
    assert all(math.isnan(float(y)) for line in panels(shown)["gradient"].lines for y in np.asarray(line.get_ydata()))
    assert shown.figure.get_suptitle().startswith("fc.weight  in  mine  ")
