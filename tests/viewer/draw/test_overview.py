"""The overview: it shows a snapshot's numbers, all of them, whatever the names, and again and again."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D

from tests.figures import (
    NAMES,
    PHONE,
    artists,
    canvas,
    check_contrast,
    check_texts,
    contrast,
    draw,
    entries,
    texts,
    zoom,
)
from tests.halves import first_of
from tracer.log.ranks import State
from tracer.log.text import shortened
from viewer.draw.overview import Overview
from viewer.draw.theme import SIZE_INCHES
from viewer.options import SPREAD, Scale, ViewOptions, XAxis
from viewer.reduce.metrics import smoothed
from viewer.snapshot import Curve, Extremes, Snapshot
from viewer.words import title

LOSS, ACCURACY, EXTREMES = range(3)
NOW = 1e9
STATES: tuple[tuple[State, str], ...] = (
    ("running", "running"),
    ("closed", "closed"),
    ("stopped", "stopped without closing"),
)


def overview(size: tuple[float, float] = SIZE_INCHES, **look: Any) -> Overview:
    """An empty figure, in memory; metrics are not smoothed unless it is asked for."""
    return Overview(canvas(size), ViewOptions(**{"smoothing": 0.0, **look}))


def snapshot(*curves: Curve, extremes: Extremes | None = None, **fields: Any) -> Snapshot:
    """A run's moment with these curves."""
    given: dict[str, Any] = {"name": "run", "state": "running", "last_step": 2} | fields
    return Snapshot(curves=curves, extremes=extremes, **given)


def curve(name: str, values: Sequence[float] = (3.0, 2.0, 1.0), nonfinite: Sequence[int] = ()) -> Curve:
    """A metric with a value at each step."""
    return Curve(name, range(len(values)), values, values, values, nonfinite, seconds(len(values)))


def seconds(count: int) -> list[float]:
    """When steps were made: one every two seconds."""
    return [NOW + 2 * step for step in range(count)]


def four(numbers: Sequence[float | None], value: Sequence[int] = (), grad: Sequence[int] = ()) -> Extremes:
    """Extremes in which the four statistics are multiples of the same numbers."""
    factors = {"value_min": -1, "value_max": 2, "grad_min": -3, "grad_max": 4}
    statistics = {
        name: [None if number is None else factor * number for number in numbers] for name, factor in factors.items()
    }
    return Extremes(range(len(numbers)), statistics, {"value": value, "grad": grad}, seconds(len(numbers)))


def filled(shown: Overview, *snapshots: Snapshot) -> list[Axes]:
    """The panels, after these snapshots were put into them one after the other; making the picture costs far more."""
    for each in snapshots:
        shown.update([each], NOW)
    return shown.figure.axes


def drawn(shown: Overview, *snapshots: Snapshot) -> list[Axes]:
    """The panels, after a picture was made of each of these snapshots."""
    for each in snapshots:
        filled(shown, each)
        shown.figure.canvas.draw()
    return shown.figure.axes


def line(axes: Axes, label: str) -> Line2D:
    """The line whose label begins so."""
    return next(line for line in axes.lines if str(line.get_label()).startswith(label))


def on_one_line(axes: Axes) -> list[str]:
    """What the legend says, each entry on one line."""
    return [entry.replace("\n", " ") for entry in entries(axes)]


def notes(shown: Overview) -> list[str]:
    """The words inside the panels, from top to bottom."""
    return [text.get_text() for axes in shown.figure.axes for text in axes.texts if text.get_visible()]


def test_the_extremes_panel_shows_four_lines_with_the_historys_numbers() -> None:
    """Minima and maxima of values and gradients are four lines, with null drawn as a gap, on a scale for both signs."""
    axes = filled(overview(), snapshot(extremes=four([1.0, None, 1e-5])))[EXTREMES]
    expected = {"value max": 2, "value min": -1, "gradient max": 4, "gradient min": -3}
    assert len(axes.lines) == 4
    for label, factor in expected.items():
        heights = np.asarray(line(axes, label).get_ydata(), dtype=float)
        assert np.array_equal(heights, [factor * 1.0, math.nan, factor * 1e-5], equal_nan=True)
        assert np.array_equal(line(axes, label).get_xdata(), [0, 1, 2])
    assert axes.get_yscale() == "symlog"
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 4


def test_few_further_metrics_have_panels_as_large_as_those_of_loss_and_accuracy() -> None:
    """One or two, above the extremes, each named at its side."""
    panels = filled(overview(), snapshot(curve("lr"), curve("val_loss"), curve("acc"), curve("sys/cpu")))
    assert [axes.get_ylabel() for axes in panels] == ["loss", "accuracy", "lr", "sys/cpu", "extremes"]
    assert [entries(axes) for axes in panels[:4]] == [["val_loss  1"], ["acc  1"], ["lr  1"], ["sys/cpu  1"]]


MANY = [f"sys/{number}" for number in range(9)] + [
    f"{part}/f{number}" for part in ("val", "train") for number in range(5)
]


def test_many_metrics_have_small_panels_in_groups() -> None:
    """Each has its name and its newest number, each group its prefix; a validation is dashed beside its training."""
    shown = overview()
    panels = drawn(shown, snapshot(curve("loss"), *map(curve, MANY), extremes=four([1.0, 2.0])))
    assert [axes.get_ylabel() for axes in panels if axes.get_ylabel()] == ["loss", "extremes", "metrics", "sys"]
    titles = {axes.get_title("left"): axes for axes in panels}
    assert set(titles) == {"", *(f"f{number}" for number in range(5)), *map(str, range(9))}
    assert titles["0"].get_title("right") == "1"
    assert [line.get_linestyle() for line in titles["f0"].lines] == ["-", "--"]
    assert [axes.get_legend() is None for axes in (titles["f0"], *panels[:2])] == [True, False, False]
    check_texts(shown.figure)
    assert len({axes.get_xlim() for axes in panels}) == 1


def test_what_has_no_room_is_counted_and_told_how_to_be_seen() -> None:
    """Thousands of metrics cost no more than a figure's worth of panels, and a filter shows the others."""
    run = snapshot(*(curve(f"m{number:04}") for number in range(3000)))
    shown = overview()
    panels = drawn(shown, run)
    drawn_panels = [axes for axes in panels if axes.lines]
    assert 30 <= len(drawn_panels) <= 100
    assert notes(shown)[-1] == f"… and {3000 - len(drawn_panels):,}\nmore: --metric"
    check_texts(shown.figure)
    chosen = filled(overview(metrics="m2000"), run)
    assert [axes.get_ylabel() for axes in chosen] == ["m2000", "extremes"]


def test_panels_come_as_metrics_do_and_go_with_what_is_switched_off() -> None:
    """A metric that is logged later has its panel then; one that is hidden has none."""
    shown = overview(hide="^b$")
    few, many = [curve(name) for name in "ab"], [curve(name) for name in "abcd"]
    assert [axes.get_ylabel() for axes in filled(shown, snapshot(*few))] == ["a", "extremes"]
    assert [axes.get_title("left") for axes in filled(shown, snapshot(*many))] == ["", "a", "c", "d"]
    assert [axes.get_ylabel() for axes in filled(shown, snapshot(*few))] == ["a", "extremes"]


def test_a_zoom_stays_where_a_new_metric_moves_the_panels() -> None:
    """Of the x axis and of a panel's own, which still has its name; two groups may have panels of one name."""
    shown = overview()
    names = ["loss", "a/0", "a/1", "b/0", "b/1"]
    panels = filled(shown, snapshot(*map(curve, names)))
    assert [axes.get_label() for axes in panels] == ["loss", "extremes", *names[1:]]
    panels[0].set_xlim(0.5, 1.5)
    panels[4].set_ylim(-7, 7)
    panels = filled(shown, snapshot(*map(curve, [*names, "c"])))
    assert {axes.get_xlim() for axes in panels} == {(0.5, 1.5)}
    assert [axes.get_label() for axes in panels if axes.get_ylim() == (-7, 7)] == ["b/0"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "no such metric yet"),
        (("loss", "rate"), "no such metric yet; there are loss, rate"),
        (("$x^$",), "no such metric yet; there are $x^$"),
        ("abcdefg", "no such metric yet; there are a, b, c and 4 more"),
    ],
)
def test_a_metric_that_is_mistyped_is_told_which_there_are(names: Sequence[str], said: str) -> None:
    """It may be logged later, or never: the empty panel names those that are there."""
    shown = overview(metrics="^rat$")
    filled(shown, snapshot(*map(curve, names)))
    assert notes(shown)[0] == said


def test_the_ends_of_a_models_depth_are_lines_of_a_single_run() -> None:
    """With their numbers; several runs have too many lines for that."""
    deep = replace(four([1.0, 2.0]), depth={"first_max": [1e-9, 2e-9], "last_max": [0.5, None]})
    axes = filled(overview(), snapshot(extremes=deep))[EXTREMES]
    assert np.array_equal(np.asarray(line(axes, "gradient, first layer").get_ydata()), [1e-9, 2e-9])
    assert entries(axes)[-2:] == ["gradient, first layer  2e-09", "gradient, last layer"]
    assert len(several(overview(), snapshot(extremes=deep), snapshot())[-1].lines) == 2


def test_the_title_says_what_part_of_a_run_is_shown() -> None:
    """One rank, the spread over ranks, and a filter of parameters stand in the title, whatever the view."""
    run = snapshot(params=("a",), all_params=("a", "b"), ranks=(0, 1))
    for look, words in (
        (ViewOptions(rank="1"), "· rank 1"),
        (ViewOptions(rank="spread"), "· spread over ranks"),
        (ViewOptions(params="^a", rank="0"), "· rank 0 · 1 of 2 parameters"),
    ):
        figure = canvas()
        Overview(figure, look).update([run], NOW)
        assert figure.get_suptitle().replace("\n", " ").endswith(words)


@pytest.mark.parametrize(
    ("name", "style"),
    [
        *(("val_loss", "--"), ("loss/test", "--"), ("VAL_LOSS", "--"), ("evalLoss", "--")),
        *(("loss", "-"), ("value_loss", "-"), ("latest_loss", "-")),
    ],
)
def test_validation_is_dashed(name: str, style: str) -> None:
    """A metric whose name has a word for validation is dashed, and only such a one."""
    axes = filled(overview(), snapshot(curve(name)))[LOSS]
    assert line(axes, name).get_linestyle() == style


@pytest.mark.parametrize("name", first_of(NAMES))
def test_any_name_is_drawn_as_it_is(name: str) -> None:
    """Underscores, broken mathematics, markup and other alphabets in a metric's or run's name are mere letters."""
    shown = overview()
    panels = drawn(shown, snapshot(curve(name, nonfinite=[1]), name=name))
    words = shortened(name)
    assert [f"{words}: NaN/inf at step 1", f"{words}  1"] in [on_one_line(axes) for axes in panels]
    heading = shown.figure.get_suptitle()
    assert heading.startswith(f"{words}  ● running")


def test_many_long_names_leave_room_for_the_panels() -> None:
    """However many curves, runs and long names, a panel keeps most of the figure, and what is left out is told."""
    curves = [curve(f"{index:02}/{'long/' * 40}loss") for index in range(40)]
    shown = overview()
    axes = drawn(shown, snapshot(*curves, curve("loss", nonfinite=[7]), name="run" * 100))[LOSS]
    assert axes.get_position().width > 0.5
    assert axes.get_position().height > 0.15
    assert entries(axes)[0] == "loss: NaN/inf from step 7"
    runs = [snapshot(curve("loss"), name=f"{number}" * 40) for number in range(40)]
    axes = several(shown, *runs)[LOSS]
    assert axes.get_position().width > 0.5
    assert len(axes.lines) == 40
    assert entries(axes)[-1].startswith("… and 3")


@pytest.mark.parametrize(("state", "words"), STATES)
def test_the_title_names_run_status_and_last_step(state: State, words: str) -> None:
    """The title says which run, how it is, how far it came, and what of it could not be read."""
    shown = overview()
    filled(shown, snapshot(name="resnet18", state=state, last_step=12_345, problems=("part a is damaged",)))
    said = shown.figure.get_suptitle()
    assert said.startswith("resnet18 ")
    assert all(part in said for part in (f" {words} ", "step 12,345", "\nleft out: part a is damaged"))
    assert said.splitlines()[0] == title([snapshot(name="resnet18", state=state, last_step=12_345)], NOW)
    assert "no step yet" in title([snapshot(last_step=None)], NOW)


def test_an_empty_panel_says_what_fills_it() -> None:
    """Before the first row each panel names what it waits for; with rows the words are gone."""
    shown = overview()
    filled(shown, snapshot(last_step=None))
    loss, accuracy, extremes = notes(shown)
    assert "trace.log(loss=…)" in loss
    assert "trace.log(accuracy=…)" in accuracy
    assert "no step" in extremes
    filled(shown, snapshot(curve("loss"), curve("accuracy"), extremes=four([1.0])))
    assert notes(shown) == []


def test_the_first_nonfinite_step_is_marked_and_named() -> None:
    """A NaN or an infinity has a mark at its first step and a line in the legend that names the step."""
    snapshots = snapshot(
        curve("loss", [1.0, math.nan], nonfinite=[1234]), extremes=four([1.0, None], value=[5], grad=[6])
    )
    loss, _, extremes = filled(overview(), snapshots)
    for axes, label, step in (
        (loss, "loss: NaN/inf from step 1,234", 1234),
        (extremes, "value: NaN/inf from step 5", 5),
        (extremes, "gradient: NaN/inf from step 6", 6),
    ):
        assert label in entries(axes)
        assert np.asarray(line(axes, label).get_xdata())[0] == step
        assert axes.get_xlim()[0] < step < axes.get_xlim()[1]
    assert "loss" in entries(loss), "the last finite number is not the current one"


def test_a_run_of_nonfinite_steps_is_one_bar_with_a_cross_at_its_start() -> None:
    """Each bar reaches to the next number; two curves that end in NaN leave the x axis and each other free."""
    bad = [*range(100, 120), 500, *range(900, 1000)]
    numbers = [None if step in bad else 1.0 for step in range(1000)]
    shown = overview()
    (_, _, extremes) = filled(shown, snapshot(extremes=four(numbers, grad=bad, value=bad[-100:])))
    bars = line(extremes, "gradient: NaN/inf from step 100")
    assert np.asarray(bars.get_xdata()).reshape(-1, 3)[:, :2].tolist() == [[100, 120], [500, 501], [900, 999]]
    assert bars.get_markevery() == [0, 3, 6]
    assert extremes.get_xlim()[1] > 999
    heights = [np.asarray(each.get_ydata())[0] for each in (line(extremes, "value: NaN/inf from step 900"), bars)]
    # In points, a cross reaches half of its size to each side of its middle, and its edge a point further.
    middles = [float(height) * extremes.get_window_extent().height * 72 / shown.figure.dpi for height in heights]
    reach = bars.get_markersize() / 2 + 1
    assert middles[0] > reach
    assert middles[1] - middles[0] > 2 * reach - 1


def test_many_nonfinite_steps_are_no_heap_of_crosses() -> None:
    """Where every other step of a thousand is NaN, each has its bar, and only some of them, apart, have a cross."""
    bad = list(range(0, 1000, 2))
    (_, _, extremes) = filled(overview(), snapshot(extremes=four([1.0] * 1000, grad=bad)))
    bars = line(extremes, "gradient: NaN/inf from step 0")
    assert np.asarray(bars.get_xdata())[::3].tolist() == bad
    every = bars.get_markevery()
    assert isinstance(every, list)
    assert np.diff(np.asarray(bars.get_xdata())[every]).min() >= 30


@pytest.mark.parametrize(
    ("nonfinite", "words"),
    [
        ([0], "at step 0"),
        ([30], "at step 30"),
        ([39], "from step 39"),
        ([20, 39], "from step 20"),
        ([20, 21, 30], "from step 20 to 30"),
    ],
)
def test_a_legend_says_when_numbers_were_not_finite(nonfinite: list[int], words: str) -> None:
    """What lasts to the newest step has a beginning; what is over has an end, too."""
    (_, _, extremes) = filled(overview(), snapshot(extremes=four([1.0] * 40, grad=nonfinite)))
    assert f"gradient: NaN/inf {words}" in entries(extremes)


def test_a_legend_names_no_step_as_the_last_that_may_not_be() -> None:
    """Where a bin covers several steps, only the first of its NaNs is known, and its last number is not its mean."""
    wide = Curve("loss", [9, 19, 29], [1.0, 2.0, 2.0], [1.0, 2.0, 2.0], [1.0, 2.0, 2.0], [4, 12], newest=7.5)
    found = on_one_line(filled(overview(), snapshot(wide))[LOSS])
    assert found == ["loss: NaN/inf from step 4 to 12 or later", "loss  7.5"]


@pytest.mark.parametrize("name", ["m" * 28, "a/long/name of it all/" * 4 + "loss"])
def test_a_legend_takes_less_than_a_third_of_the_width(name: str) -> None:
    """Whatever the names of curves and runs, and however large the steps; the words go on in a further line."""
    step = 123_456_789
    long = Curve(name + "/loss", [step, 2 * step, 3 * step], [1.0] * 3, [1.0] * 3, [1.0] * 3, [step, 2 * step])
    shown = overview()
    for panel in several(shown, *(snapshot(long, name=f"{name}{run}", last_step=3 * step) for run in range(2)))[:1]:
        legend = panel.get_legend()
        assert legend is not None
        draw(shown.figure)
        assert legend.get_window_extent().width < shown.figure.bbox.width / 3
        assert "NaN/inf from" in " ".join(entries(panel)[0].split())
    check_texts(shown.figure)


def test_a_spike_within_a_bin_is_inside_the_panel() -> None:
    """The band of lowest and highest values decides the limits, not the mean alone."""
    spiky = Curve("loss", [0, 1, 2], [1.0, 1.0, 1.0], [1.0, -500.0, 1.0], [1.0, 700.0, 1.0], ())
    axes = filled(overview(), snapshot(spiky), snapshot(spiky))[LOSS]
    assert axes.get_ylim()[0] < -500
    assert axes.get_ylim()[1] > 700
    (band,) = [artist for artist in axes.collections if isinstance(artist, PolyCollection)]
    heights = {height for path in band.get_paths() for height in np.asarray(path.vertices)[:, 1]}
    assert {-500.0, 700.0} <= heights


def test_a_lonely_point_between_gaps_is_visible() -> None:
    """A finite number among NaN, to which no line leads, is drawn as a point."""
    values = [math.nan] * 100
    values[50] = 1.0
    shown = overview()
    axes = drawn(shown, snapshot(curve("loss", values)))[LOSS]
    centre = axes.transData.transform((50, 1.0)).astype(int)
    pixels = np.asarray(shown.figure.canvas.buffer_rgba())[::-1, :, :3]  # type: ignore[attr-defined]
    assert tuple(pixels[centre[1], centre[0]]) == tuple(int(255 * part) for part in mpl.colors.to_rgb("#0072B2"))


@pytest.mark.parametrize("largest", [0.0, 5e-324, 1e-310, 1e-6, 1.0, 1e38, 1e300])
def test_numbers_of_any_size_are_drawn(largest: float) -> None:
    """From zero to far beyond what training survives, every number lies inside its panel."""
    values = [largest, -largest, 0.0]
    loss, _, extremes = drawn(overview(), snapshot(curve("loss", values), extremes=four(values)))
    for axes, height in ((loss, largest), (extremes, 4 * largest)):
        assert axes.get_ylim()[0] <= -height <= height <= axes.get_ylim()[1]


def test_the_largest_floats_are_drawn_at_the_edge() -> None:
    """A loss that is about to overflow float64 is drawn, and named with its value, where matplotlib would give up."""
    values = [1.0, 1.7e308, -1.7e308]
    loss, _, _ = drawn(overview(), snapshot(curve("loss", values), extremes=four([0.1, 4e307])))
    assert "loss  -1.7e+308" in entries(loss)
    assert loss.get_ylim()[1] > 1e305


def test_an_axis_follows_new_steps_until_it_is_zoomed() -> None:
    """Limits grow and shrink with the data; those that the user has set stay, and the other axis goes on."""
    shown = overview()
    panels = filled(shown, snapshot(curve("loss", [1.0] * 10)), snapshot(curve("loss", [1.0, 50.0] * 50)))
    assert panels[LOSS].get_ylim()[1] > 50
    assert panels[EXTREMES].get_xlim()[1] > 99
    filled(shown, snapshot(curve("loss", [1.0, 2.0])))
    assert panels[LOSS].get_ylim()[1] < 5

    panels[LOSS].set_xlim(20, 30)
    filled(shown, snapshot(curve("loss", [1.0, 90.0] * 200), extremes=four([1.0, 2.0] * 200)))
    assert [axes.get_xlim() for axes in panels] == [(20, 30)] * 3
    assert panels[LOSS].get_ylim()[1] > 90
    panels[EXTREMES].set_ylim(-3, 3)
    filled(shown, snapshot(extremes=four([1e6])))
    assert panels[EXTREMES].get_ylim() == (-3, 3)


@pytest.mark.slow
def test_nothing_accumulates_over_many_updates() -> None:
    """After many updates the figure holds exactly as many artists as after the first."""
    shown = overview()
    spiky = Curve("loss", [0, 1], [1.0, 1.0], [0.0, 1.0], [2.0, 1.0], [1])
    full = snapshot(spiky, curve("acc"), extremes=four([1.0, 2.0], value=[0], grad=[1]))
    empty = snapshot(last_step=None)
    counts = []
    for number in range(60):
        shown.update([empty if number % 2 else full], NOW)
        counts.append(artists(shown.figure))
    assert counts == counts[:2] * 30


def test_a_new_run_in_the_same_folder_leaves_nothing_of_the_old_one() -> None:
    """When a snapshot has fewer curves than the one before, what is gone from the run is gone from the figure."""
    shown = overview()
    full = snapshot(curve("loss"), curve("acc"), extremes=four([1.0]))
    panels = filled(shown, full, snapshot(last_step=None, name="next"))
    assert [len(axes.lines) for axes in panels] == [0, 0, 0]
    assert [entries(axes) for axes in panels] == [[], [], []]
    assert len(notes(shown)) == 3


def test_no_text_is_cut_off_or_overlaps() -> None:
    """Title, legends, labels, ticks and notes lie inside the figure, and apart from each other."""
    shown = overview()
    curves = [curve(name, [10.0] * 1000, nonfinite=[999]) for name in ("loss", "val_loss")]
    long: dict[str, Any] = {"name": "n" * 200, "state": "stopped", "last_step": 10**9, "problems": ("damaged",) * 10}
    drawn(shown, snapshot(*curves, extremes=four([1.0], [999]), **long))
    assert len(list(texts(shown.figure))) > 25
    check_texts(shown.figure)


def test_a_smoothed_curve_has_what_was_logged_behind_it() -> None:
    """A long metric is drawn faint as logged, and smoothed over it; the legend says it once, with its last value."""
    values = [float(step % 2) for step in range(100)]
    panels = filled(overview(smoothing=0.6), snapshot(curve("loss", values), extremes=four(values)))
    raw, over = panels[LOSS].lines
    assert np.asarray(raw.get_ydata()).tolist() == values
    assert np.asarray(over.get_ydata()).tolist() == smoothed(values, 0.6)
    assert raw.get_alpha() is not None
    assert raw.get_color() == over.get_color()
    assert entries(panels[LOSS]) == ["loss  1"]
    assert np.asarray(line(panels[EXTREMES], "value max").get_ydata()).tolist() == [2 * value for value in values]


def test_a_curve_of_few_points_is_not_smoothed() -> None:
    """What is logged once an epoch is drawn as it is, with a marker at each point."""
    panels = filled(overview(smoothing=0.9), snapshot(curve("val_loss", [3.0, 1.0, 2.0])))
    assert [np.asarray(each.get_ydata()).tolist() for each in panels[LOSS].lines] == [[3.0, 1.0, 2.0]]


def several(shown: Overview, *snapshots: Snapshot) -> list[Axes]:
    """The panels, after several runs were put into them together."""
    shown.update(snapshots, NOW)
    return shown.figure.axes


def marks(axes: Axes, label: str) -> list[float]:
    """Where a curve's NaN is marked."""
    found = line(axes, label)
    every = found.get_markevery()
    assert isinstance(every, list)
    return [float(np.asarray(found.get_xdata())[index]) for index in every]


def positions(x: XAxis, steps: Sequence[int]) -> list[float]:
    """Where steps stand on an x axis, in a run that began ten seconds before its first step."""
    of = {
        XAxis.STEP: lambda step: step,
        XAxis.WALL: lambda step: (NOW + 2 * step) / 86_400,
        XAxis.RELATIVE: lambda step: 2 * step + 10,
    }
    return [of[x](step) for step in steps]


@pytest.mark.parametrize("x", list(XAxis))
def test_lines_bands_and_marks_stand_at_their_steps_or_times(x: XAxis) -> None:
    """Each x axis has a curve's points, its band and its NaN at the same places, and the legend says the step."""
    spiky = Curve("loss", [4, 9, 14], [1.0] * 3, [0.0] * 3, [2.0] * 3, [7], [NOW + 2 * step for step in (4, 9, 14)])
    extremes = Extremes([4, 9, 14], four([1.0, None, 1.0]).statistics, {"value": [], "grad": [9]}, spiky.time)
    loss, _, panel = filled(overview(x=x), snapshot(spiky, extremes=extremes, started=NOW - 10))
    expected = positions(x, [4, 9, 14])
    assert np.asarray(line(loss, "loss  1").get_xdata()).tolist() == expected
    assert np.asarray(line(panel, "value max").get_xdata()).tolist() == expected
    (band,) = [artist for artist in loss.collections if isinstance(artist, PolyCollection)]
    assert {float(place) for place in np.asarray(band.get_paths()[0].vertices)[:, 0]} == set(expected)
    # Within a bin only its end has a time.
    assert marks(loss, "loss: NaN/inf from step 7") == positions(x, [7 if x is XAxis.STEP else 9])
    assert marks(panel, "gradient: NaN/inf at step 9") == positions(x, [9])
    low, high = loss.get_xlim()
    assert low < expected[0] < expected[-1] < high


@pytest.mark.parametrize(
    ("seconds_long", "expected"),
    first_of([(0.5, "0.4 s"), (50, "40 s"), (600, "10 min"), (6000, "100 min"), (36_000, "10 h"), (1e6, "10 days")]),
)
def test_time_since_the_beginning_has_round_ticks(seconds_long: float, expected: str) -> None:
    """They are in the unit that fits the run."""
    ends = Curve("loss", [0, 1], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [], [NOW, NOW + seconds_long])
    shown = overview(x=XAxis.RELATIVE)
    filled(shown, snapshot(ends, started=NOW))
    ticks = [label.get_text() for label in shown.figure.axes[-1].get_xticklabels()]
    assert expected in ticks
    assert all(len(tick) < 10 for tick in ticks)
    check_texts(shown.figure)


@pytest.fixture(params=["UTC", "Asia/Kolkata", "America/St_Johns", "Pacific/Kiritimati"])
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    """The time zone of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


def test_the_time_of_day_is_the_machines(zone: str) -> None:
    """Ticks are at round times of the user's own clock."""
    begin = datetime(2026, 1, 1, 12, 0, tzinfo=ZoneInfo(zone)).timestamp()
    hours = Curve("loss", [0, 1], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [], [begin, begin + 8 * 3600])
    shown = overview(x=XAxis.WALL)
    filled(shown, snapshot(hours))
    bottom = shown.figure.axes[-1]
    assert [label.get_text() for label in bottom.get_xticklabels()][:3] == ["12:00", "13:00", "14:00"]
    assert bottom.get_xticks()[0] == pytest.approx(begin / 86_400)


SCALES = [
    (Scale.AUTO, [1.0, 2.0], "linear"),
    (Scale.AUTO, [-1.0, 1e9], "linear"),
    (Scale.LINEAR, [1.0, 1e9], "linear"),
    (Scale.SYMLOG, [1.0, 2.0], "symlog"),
    (Scale.LOG, [1.0, 1e9], "log"),
    (Scale.LOG, [1.0, 0.0], "symlog"),
    (Scale.LOG, [1.0, -1e-9], "symlog"),
    (Scale.LOG, [math.nan, math.nan], "symlog"),
    (Scale.LOG, [math.nan, 5.0], "log"),
    (Scale.LOG, [], "symlog"),
]


@pytest.mark.parametrize(("scale", "values", "expected"), first_of(SCALES))
def test_a_scale_hides_no_number(scale: Scale, values: list[float], expected: str) -> None:
    """A log scale gives way to symlog where there is a zero or a negative number; all numbers are inside the panel."""
    loss, *_ = drawn(overview(scale=scale), snapshot(*([curve("loss", values)] if values else [])))
    assert loss.get_yscale() == expected
    low, high = loss.get_ylim()
    assert all(low <= value <= high for value in values if math.isfinite(value))
    heights = [loss.transData.transform((0, value))[1] for value in values]
    assert len({round(height) for height in heights if math.isfinite(height)}) == sum(map(math.isfinite, values))


@pytest.mark.parametrize("scale", list(Scale))
def test_extremes_are_seen_on_every_scale(scale: Scale) -> None:
    """Their minima are negative: auto and log are symlog."""
    panel = filled(overview(scale=scale), snapshot(extremes=four([1.0, 1e-5])))[EXTREMES]
    assert panel.get_yscale() == ("linear" if scale is Scale.LINEAR else "symlog")
    assert panel.get_ylim()[0] < -3 < 4 < panel.get_ylim()[1]


@pytest.mark.parametrize("scale", first_of(Scale))
def test_a_zoom_outlives_the_scale_being_set_again(scale: Scale) -> None:
    """Limits that the zoom tool has set stay on both axes through updates, until its home button; then they follow."""
    shown = overview(scale=scale)
    loss, accuracy, extremes = filled(shown, snapshot(curve("loss", [1.0, 5.0] * 20), extremes=four([1.0] * 40)))
    toolbar = zoom(loss, (10, 20), (2.0, 4.0))
    x, y = loss.get_xlim(), loss.get_ylim()
    assert y == pytest.approx((2, 4), rel=0.1)
    for count in (40, 400):
        drawn(shown, snapshot(curve("loss", [1.0, 900.0] * count), extremes=four([50.0] * count)))
    assert (loss.get_xlim(), loss.get_ylim()) == (x, y)
    assert [axes.get_xlim() for axes in (accuracy, extremes)] == [x, x]
    assert extremes.get_ylim()[1] >= 200
    toolbar.home()
    filled(shown, snapshot(curve("loss", [1.0, 900.0] * 400)))
    assert loss.get_xlim()[1] > 799
    assert loss.get_ylim()[1] > 900


def runs(count: int, **fields: Any) -> list[Snapshot]:
    """So many runs with a loss, a validation loss and extremes."""
    return [
        snapshot(
            curve("loss", [float(index + 1)] * 50),
            curve("val_loss"),
            extremes=four([float(index + 1)] * 50),
            **{"name": f"run{index}"} | fields,
        )
        for index in range(count)
    ]


def test_several_runs_have_a_colour_each_and_panels_of_their_own() -> None:
    """Values and gradients are apart; each run has one colour in all panels, a style for each curve, and its name."""
    shown = overview()
    panels = several(shown, *runs(3))
    assert [axes.get_ylabel() for axes in panels] == ["loss", "accuracy", "values", "gradients"]
    for index in range(3):
        of = [each for axes in panels for each in axes.lines if str(each.get_label()).startswith(f"run{index} ")]
        assert len(of) == 6
        assert {each.get_color() for each in of} == {of[0].get_color()}
    assert len({line(panels[LOSS], f"run{index}").get_color() for index in range(3)}) == 3
    assert entries(panels[LOSS])[:2] == ["run0 loss  1", "run0 val_loss  1"]
    assert entries(panels[2])[:2] == ["run0 max  2", "run0 min  -1"]
    assert entries(panels[3])[:2] == ["run0 max  4", "run0 min  -3"]
    assert [line(panels[LOSS], f"run0 {name}").get_linestyle() for name in ("loss", "val_loss")] == ["-", "--"]
    assert np.asarray(line(panels[3], "run2 min").get_ydata()).tolist() == [-9.0] * 50
    assert shown.figure.get_suptitle().startswith("3 runs ")


@pytest.mark.parametrize("dark", first_of([False, True]))
@pytest.mark.parametrize("count", first_of([7, 2, 6, 30]))
def test_however_many_runs_each_has_its_own_colour_and_panels_keep_their_room(count: int, dark: bool) -> None:
    """No two runs have the same colour, all are drawn, and their legends leave the panels and the texts in peace."""
    shown = overview(dark=dark)
    panels = several(shown, *runs(count, name="a-run-with-a-long-name-of-its-own"))
    draw(shown.figure)
    colours = [tuple(mpl.colors.to_rgb(each.get_color())) for each in panels[2].lines[::2]]
    assert len(set(colours)) == len(colours) == count
    ground = shown.figure.get_facecolor()
    assert all(contrast(colour, ground) > 1.2 for colour in colours)
    assert all(axes.get_position().height > 0.1 and axes.get_position().width > 0.5 for axes in panels)
    assert "more" in entries(panels[LOSS])[-1] or count == 2
    check_texts(shown.figure)


def test_the_nan_of_each_run_is_marked() -> None:
    """Each has its mark, in its run's colour, at its own height, and comes first in the legend under its name."""
    first = snapshot(curve("loss", nonfinite=[1]), extremes=four([1.0] * 3, grad=[1]), name="one")
    second = snapshot(curve("loss", nonfinite=[1]), extremes=four([1.0] * 3, grad=[2], value=[0]), name="two")
    loss, _, values, gradients = several(overview(), first, second)
    assert entries(loss)[:2] == ["one loss: NaN/inf at step 1", "two loss: NaN/inf at step 1"]
    assert entries(gradients)[:2] == ["one: NaN/inf at step 1", "two: NaN/inf from step 2"]
    assert [label for label in entries(values) if "NaN" in label] == ["two: NaN/inf at step 0"]
    one, two = (line(loss, f"{name} loss: NaN") for name in ("one", "two"))
    assert np.asarray(one.get_ydata())[0] != np.asarray(two.get_ydata())[0]
    assert one.get_markerfacecolor() == line(loss, "one loss  ").get_color()
    assert two.get_markerfacecolor() == line(loss, "two loss  ").get_color()


def test_the_only_nan_is_marked_at_the_foot_of_its_panel() -> None:
    """However many runs have none, so that the marks hide nothing of theirs."""
    others = [snapshot(curve("loss"), extremes=four([1.0] * 3), name=name) for name in "abcd"]
    last = snapshot(curve("loss", nonfinite=[1]), extremes=four([1.0] * 3, value=[1], grad=[1]), name="e")
    loss, _, values, gradients = several(overview(), *others, last)
    for axes in (loss, values, gradients):
        (mark,) = (each for each in axes.lines if "NaN" in str(each.get_label()))
        assert np.asarray(mark.get_ydata())[0] < 0.1


@pytest.mark.slow
def test_runs_come_and_go() -> None:
    """From one run to two and back, the figure is as if there had never been more; runs without rows are no trouble."""
    shown = overview()
    (only,), pair = runs(1), runs(2)
    empty = snapshot(name="empty", last_step=None)
    counts, seen = [], []
    for _ in range(3):
        for snapshots in ([only], pair, [*pair, empty], [empty, empty], [only]):
            panels = several(shown, *snapshots)
            counts.append(artists(shown.figure))
            seen.append([entries(axes) for axes in panels])
            assert len(panels) == (3 if len(snapshots) == 1 else 4)
    assert counts == counts[:5] * 3
    assert seen == seen[:5] * 3
    assert seen[0] == seen[4]
    assert len(notes(shown)) == 1
    several(shown, empty, empty)
    assert len(notes(shown)) == 4


def test_a_run_that_goes_takes_its_scale_with_it() -> None:
    """Limits follow the runs that are left."""
    shown = overview()
    small, large = runs(1)[0], snapshot(curve("loss", [1e6] * 50), extremes=four([1e6] * 50))
    assert several(shown, small, small, large)[2].get_ylim()[1] > 1e6
    panels = several(shown, small, small)
    assert panels[LOSS].get_ylim()[1] < 10
    assert panels[2].get_ylim()[1] < 100


def test_the_spread_over_ranks_is_a_band() -> None:
    """Between the most and the least extreme rank lies a band, of every statistic; ranks that agree have none."""
    outer = four([1.0, 1.0])
    inner = {name: [0.5 * float(number or 0) for number in numbers] for name, numbers in outer.statistics.items()}
    apart = Extremes(outer.step, outer.statistics, outer.nonfinite, outer.time, inner)
    panel = filled(overview(rank=SPREAD), snapshot(extremes=apart))[EXTREMES]
    bands = [artist for artist in panel.collections if isinstance(artist, PolyCollection)]
    heights = [{float(y) for y in np.asarray(band.get_paths()[0].vertices)[:, 1]} for band in bands]
    assert heights == [{2.0, 1.0}, {-1.0, -0.5}, {4.0, 2.0}, {-3.0, -1.5}]
    same = Extremes(outer.step, outer.statistics, outer.nonfinite, outer.time, outer.statistics)
    assert not filled(overview(rank=SPREAD), snapshot(extremes=same))[EXTREMES].collections


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("count", first_of([3, 0, 1]))
@pytest.mark.parametrize("scale", [Scale.AUTO, Scale.LOG])
def test_everything_is_readable_on_its_ground(dark: bool, count: int, scale: Scale) -> None:
    """Every text, tick and spine has contrast to the ground, in both themes, minor ticks of a log scale too."""
    shown = overview(dark=dark, scale=scale)
    several(shown, *(runs(count) or [snapshot(last_step=None)]))
    check_contrast(shown.figure)
    if count == 3 and scale is Scale.LOG:
        assert len(shown.figure.axes[LOSS].yaxis.get_minor_ticks()) > 5


@pytest.mark.parametrize("x", first_of(XAxis))
@pytest.mark.parametrize("count", [1, 3])
def test_a_phone_has_room_for_everything(count: int, x: XAxis) -> None:
    """In a narrow figure legends are above their panels, and nothing is cut off or on one another."""
    long: dict[str, Any] = {
        "name": "a-run-with-a-long-name-of-its-own",
        "problems": ("part x is damaged",),
        "dropped": 9,
    }
    bad = [
        snapshot(curve("loss", nonfinite=[1]), curve("a/long/validation/loss/of/mine", nonfinite=[1, 2]),
                 extremes=four([1.0] * 3, [1], [1, 2]), started=NOW, **long)
        for _ in range(count)
    ]  # fmt: skip
    shown = overview(size=PHONE, x=x)
    panels = several(shown, *bad)
    draw(shown.figure)
    for axes in panels:
        legend = axes.get_legend()
        assert legend is None or legend.get_window_extent().y0 >= axes.get_window_extent().y1 - 1
        assert axes.get_position().width > 0.6
        assert axes.get_position().height > 0.05
    check_texts(shown.figure)


@pytest.mark.parametrize("size", [SIZE_INCHES, PHONE])
@pytest.mark.parametrize("name", first_of(NAMES))
def test_there_is_room_for_any_name(name: str, size: tuple[float, float]) -> None:
    """Whatever runs and metrics are called, nothing is cut off or on one another."""
    shown = overview(size=size)
    run = snapshot(curve(f"{name} loss", nonfinite=[1]), curve(f"{name} 1"), curve(f"{name} 2"), name=name)
    several(shown, run, snapshot(curve("acc"), name=f"{name}2"))
    check_texts(shown.figure)
    several(shown, run)
    check_texts(shown.figure)
