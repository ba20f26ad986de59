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

from tests.figures import NAMES, PHONE, artists, canvas, check_contrast, check_texts, entries, pixels, zoom
from tests.halves import first_of
from viewer.draw.histograms import columns_of, spread
from viewer.draw.parameter import Parameter
from viewer.draw.theme import SIZE_INCHES
from viewer.options import Histograms, Scale, View, ViewOptions, XAxis
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


def bands(axes: Axes) -> list[set[float]]:
    """The heights of the edges of each band."""
    found = [artist for artist in axes.collections if isinstance(artist, PolyCollection)]
    return [{float(y) for y in np.asarray(band.get_paths()[0].vertices)[:, 1]} for band in found]


def panels(shown: Parameter) -> dict[str, Axes]:
    """The panels, by name, without the colour keys."""
    return {axes.get_ylabel(): axes for axes in shown.figure.axes if axes.get_label() != "<colorbar>"}


def heat(axes: Axes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A heat map's columns' edges; and, of each column, the edges of its rows and their shares."""
    (mesh,) = [artist for artist in axes.collections if isinstance(artist, QuadMesh)]
    corners = np.asarray(mesh.get_coordinates())
    shares: np.ndarray[Any, Any] = np.asarray(np.ma.masked_invalid(np.ma.asarray(mesh.get_array())).filled(0.0))
    return np.append(corners[0, ::2, 0], corners[0, -1, 0]), corners[:, ::2, 1].T, shares[:, ::2].T


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
    assert entries(found["value"])[0] == "value: NaN/inf at step 0"
    assert entries(found["gradient"])[:2] == [
        "gradient: NaN/inf from step 1",
        "applied: NaN/inf from step 0",
    ]
    for axes, count in ((found["value"], 1), (found["gradient"], 2)):
        marks = [line for line in axes.lines if "NaN" in str(line.get_label())]
        heights = [float(np.asarray(mark.get_ydata())[0]) for mark in marks]
        assert len(set(heights)) == count
        assert heights == sorted(heights), "from the foot up"


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
@given(COUNTS, ENDS, ENDS, ENDS, ENDS)
@example([187], 0.0, -11773531819.0, 0.0, 0.0)
@example([2], 0.0, 1.1125369292536007e-308, 0.0, 0.0)
@example([0], 0.0, 2.225073858507e-311, 1.0, 0.0)
@example([4, 5], 0.5, 0.5, 0.0, 1.0)
def test_a_histogram_keeps_every_count_in_other_bins(counts: list[int], a: float, b: float, c: float, d: float) -> None:
    """However its range and that of the heat map differ, the sum stays; no bin has less than nothing."""
    low, high = min(a, b), max(a, b)
    ends = min(low, c, d), max(high, c, d)
    rows = np.linspace(*(ends if ends[0] < ends[1] else (low - 0.5, low + 0.5)), 129)
    found = spread(np.linspace(low, high, len(counts) + 1), counts, rows)
    assert found.sum() == pytest.approx(sum(counts), rel=1e-9)
    assert (found >= 0).all()


def test_a_histogram_is_spread_over_where_its_bins_lie() -> None:
    """Each count goes into the rows that its bin covers, in proportion; a constant into the row that holds it."""
    rows = np.array([-1.0, 0.0, 0.5, 1.0, 3.0, 3.5, 4.0, 9.0])
    assert spread(np.linspace(0.0, 4.0, 5), [8, 0, 4, 2], rows).tolist() == [0.0, 4.0, 4.0, 4.0, 1.0, 1.0, 0.0]
    assert spread(np.array([2.0] * 3), [0, 6], np.array([0.0, 2.0, 2.25, 2.5])).tolist() == [0.0, 6.0, 0.0]


def test_ranks_histograms_are_one_and_quantiles_lie_where_the_elements_do() -> None:
    """Of two ranks, the shares are those of all elements in bins over both ranges, and so are the quantiles."""
    (column,) = columns_of([histogram(3, 0.0, 4.0, [4, 0, 0, 4]), histogram(3, 4.0, 8.0, [0, 4, 0, 4])])
    assert column.edges.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert column.shares.tolist() == [0.25, 0.25, 0.25, 0.25]
    assert [column.quantile(share) for share in (0.0, 0.125, 0.5, 1.0)] == [0.0, 1.0, 4.0, 8.0]


BELL = np.random.default_rng(0).normal(0.3, 0.1, 200_000)
# A tail far away, which a symlog axis would give most of its height to the other side of.
SKEWED = np.concatenate([BELL, [-5.0, 5.0], np.zeros(100)])


@pytest.mark.parametrize("numbers", [BELL, SKEWED], ids=["bell", "skewed"])
@pytest.mark.parametrize("scale", first_of([Scale.AUTO, Scale.SYMLOG]))
def test_the_brightest_row_is_at_the_mode(scale: Scale, numbers: np.ndarray[Any, Any]) -> None:
    """In the picture of a known distribution, on any axis, the brightest pixels of a column are at its mode."""
    counts, edges = np.histogram(numbers, 64)
    of = [histogram(step, float(edges[0]), float(edges[-1]), counts.tolist()) for step in (0, 10, 20)]
    shown = filled(snapshot(extremes([0, 20], **FOUR), {"grad": of}), scale=scale)
    axes = panels(shown)["gradient\nhistogram"]
    for line in axes.lines:
        # The median lies over the mode.
        line.set_visible(False)
    picture = pixels(shown.figure).astype(int)
    across, up = axes.transData.transform((15, 0.3)).round().astype(int)
    below, above = axes.get_window_extent().y0, axes.get_window_extent().y1
    heights = np.arange(int(below) + 2, int(above) - 2)
    column = picture[len(picture) - 1 - heights, across].sum(axis=1)
    # The ground, beyond the extremes, is no colour of the map.
    seen = column < 3 * 255
    mode = counts.argmax()
    low, high = axes.transData.transform([(0, edges[mode - 1]), (0, edges[mode + 2])])[:, 1]
    brightest = heights[seen][column[seen] == column[seen].max()]
    assert abs(up - brightest.mean()) < (above - below) / 10
    assert low - 2 <= brightest.min() <= brightest.max() <= high + 2


def test_a_colour_key_says_what_the_colours_are() -> None:
    """Each heat map has one, up to the largest share; a constant, all of which is in one row, leaves others bright."""
    of = {"value": [histogram(0, 1.0, 1.0, [8]), histogram(1, 0.0, 4.0, [8, 0, 0, 24])], "grad": [histogram(0)]}
    shown = filled(snapshot(extremes([0, 1], **FOUR), of))
    keys = [axes for axes in shown.figure.axes if axes.get_label() == "<colorbar>"]
    assert [key.get_ylabel() for key in keys] == ["share of elements"] * 2
    (mesh,) = [each for each in panels(shown)["value\nhistogram"].collections if isinstance(each, QuadMesh)]
    rows = 256
    assert mesh.norm.vmin == 0
    assert mesh.norm.vmax == keys[0].get_ylim()[1] == pytest.approx(0.75 / (rows / 4))


@pytest.mark.parametrize("x", first_of(XAxis))
def test_a_ridge_has_a_mountain_at_each_step_the_newest_in_front(x: XAxis) -> None:
    """Each stands at its step or time, is highest at its mode, and hides those behind it; the x axis has numbers."""
    counts = [[1, 9, 1, 1], [1, 1, 9, 1], [1, 1, 1, 9]]
    of = [histogram(10 * place, 0.0, 4.0, each) for place, each in enumerate(counts)]
    shown = filled(snapshot(extremes([0, 20], **FOUR), {"grad": of}), histograms="ridge", x=x)
    axes = panels(shown)["gradient\nhistogram"]
    mountains = [each for each in axes.collections if isinstance(each, PolyCollection)]
    at = {XAxis.STEP: 1.0, XAxis.WALL: 2 / 86_400, XAxis.RELATIVE: 2.0}[x]
    begin = NOW / 86_400 if x is XAxis.WALL else 0.0
    for place, mountain in enumerate(mountains):
        points = np.asarray(mountain.get_paths()[0].vertices)
        top = points[points[:, 1].argmin()]
        assert points[:, 1].max() == pytest.approx(begin + at * 10 * place, rel=1e-12)
        assert place + 1 <= top[0] <= place + 2
    assert [each.get_zorder() for each in mountains] == sorted(each.get_zorder() for each in mountains)
    assert len({each.get_zorder() for each in mountains}) == 3
    low, high = axes.get_ylim()
    assert low > begin + at * 20 > high, "the newest is nearest"
    assert axes.get_xlim()[0] <= 0 < 4 <= axes.get_xlim()[1]
    assert panels(shown)["gradient"].get_xlim() == panels(shown)["value"].get_xlim() != axes.get_xlim()


def test_a_ridges_zoom_outlives_new_rows() -> None:
    """A part that the zoom tool has chosen stays until its home button; the panels of steps follow all the same."""

    def moment(count: int) -> Snapshot:
        return snapshot(extremes(range(count), **FOUR), {"grad": [histogram(step) for step in range(0, count, 10)]})

    shown = filled(moment(50), histograms="ridge")
    axes = panels(shown)["gradient\nhistogram"]
    toolbar = zoom(axes, (0.0, 0.5), (30, 10))
    limits = axes.get_xlim(), axes.get_ylim()
    assert limits[0] == pytest.approx((0.0, 0.5), abs=0.05)
    shown.update([moment(500)], NOW)
    assert (axes.get_xlim(), axes.get_ylim()) == limits
    assert panels(shown)["gradient"].get_xlim()[1] >= 499
    toolbar.home()
    wide = dataclasses.replace(moment(500), histograms={"grad": [histogram(step, -9.0, 9.0) for step in (0, 490)]})
    shown.update([wide], NOW)
    assert axes.get_xlim()[0] <= -9 < 9 <= axes.get_xlim()[1]
    assert axes.get_ylim()[0] >= 490


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
    assert len(rows) == len(shares) == len(steps)
    assert shares.sum(axis=1) == pytest.approx(np.ones(len(steps)))
    assert (np.diff(rows) >= 0).all()
    assert panel.get_ylim()[0] <= rows.min() < rows.max() <= panel.get_ylim()[1]
    if x is not XAxis.STEP:
        assert panel.get_xlim()[1] - panel.get_xlim()[0] < 40 * at


@pytest.mark.slow
@pytest.mark.parametrize("kind", Histograms)
@pytest.mark.parametrize("scale", [Scale.LINEAR, Scale.SYMLOG])
def test_a_picture_is_made_of_any_histograms(scale: Scale, kind: Histograms) -> None:
    """Whatever their range, and that of those before them; and its texts have room."""
    of = extremes([0, 9], **FOUR)
    moments = [snapshot(of, {"grad": each}) for each in HISTOGRAMS.values()]
    check_texts(drawn(*moments, scale=scale, histograms=kind).figure)


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
        assert {axes.get_xlim() for axes in panels(shown).values()} == {limits[0]}
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
