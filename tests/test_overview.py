"""The overview: it shows a snapshot's numbers, all of them, whatever the names, and again and again."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from tracer.log.run import State
from viewer.history import Curve, Extremes, smoothed
from viewer.live import Snapshot
from viewer.look import Look
from viewer.marks import SIZE_INCHES
from viewer.overview import Overview
from viewer.status import title

LOSS, ACCURACY, EXTREMES = range(3)
NOW = 1e9
STATES: tuple[tuple[State, str], ...] = (
    ("running", "running"),
    ("closed", "closed"),
    ("stopped", "stopped without closing"),
)


def overview(*metrics: str, size: tuple[float, float] = SIZE_INCHES, **look: Any) -> Overview:
    """An empty figure, in memory; metrics are not smoothed unless it is asked for."""
    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    return Overview(figure, Look(metrics=metrics, **{"smoothing": 0.0, **look}))


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


def drawn(shown: Overview, *snapshots: Snapshot) -> list[Axes]:
    """The panels, after these snapshots were drawn one after the other."""
    for each in snapshots:
        shown.update([each], NOW)
        shown.figure.canvas.draw()
    return shown.figure.axes


def line(axes: Axes, label: str) -> Line2D:
    """The line whose label begins so."""
    return next(line for line in axes.lines if str(line.get_label()).startswith(label))


def labels(axes: Axes) -> list[str]:
    """What the legend says."""
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def notes(shown: Overview) -> list[str]:
    """The words inside the panels, from top to bottom."""
    return [text.get_text() for axes in shown.figure.axes for text in axes.texts if text.get_visible()]


def test_the_extremes_panel_shows_four_lines_with_the_historys_numbers() -> None:
    """Minima and maxima of values and gradients are four lines, with null drawn as a gap, on a scale for both signs."""
    axes = drawn(overview(), snapshot(extremes=four([1.0, None, 1e-5])))[EXTREMES]
    expected = {"value max": 2, "value min": -1, "gradient max": 4, "gradient min": -3}
    assert len(axes.lines) == 4
    for label, factor in expected.items():
        heights = np.asarray(line(axes, label).get_ydata(), dtype=float)
        assert np.array_equal(heights, [factor * 1.0, math.nan, factor * 1e-5], equal_nan=True)
        assert np.array_equal(line(axes, label).get_xdata(), [0, 1, 2])
    assert axes.get_yscale() == "symlog"
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 4


@pytest.mark.parametrize(
    ("name", "panel"),
    [
        ("loss", LOSS),
        ("val_loss", LOSS),
        ("Train/Loss", LOSS),
        ("accuracy", ACCURACY),
        ("val_acc", ACCURACY),
        ("lr", None),
    ],
)
def test_a_metric_goes_to_the_panel_of_its_name(name: str, panel: int | None) -> None:
    """Names that hold loss or acc choose the panel; other metrics are not drawn unless asked for."""
    shown = drawn(overview(), snapshot(curve(name)))
    holders = [index for index, axes in enumerate(shown) if any(label.startswith(name) for label in labels(axes))]
    assert holders == ([] if panel is None else [panel])


def test_a_metric_that_is_asked_for_is_drawn_and_awaited() -> None:
    """What ``--metric`` names is drawn beside the accuracy; until it is logged, the panel says that it is not."""
    shown = overview("lr", "other_loss")
    panels = drawn(shown, snapshot(curve("accuracy")))
    assert "lr: not logged yet" in labels(panels[ACCURACY])
    assert labels(panels[LOSS]) == ["other_loss: not logged yet"]
    drawn(shown, snapshot(curve("accuracy"), curve("lr", [0.5])))
    assert labels(panels[ACCURACY]) == ["accuracy  1", "lr  0.5"]


@pytest.mark.parametrize(
    ("name", "style"),
    [
        *(("val_loss", "--"), ("loss/test", "--"), ("VAL_LOSS", "--"), ("evalLoss", "--")),
        *(("loss", "-"), ("value_loss", "-"), ("latest_loss", "-")),
    ],
)
def test_validation_is_dashed(name: str, style: str) -> None:
    """A metric whose name has a word for validation is dashed, and only such a one."""
    axes = drawn(overview(), snapshot(curve(name)))[LOSS]
    assert line(axes, name).get_linestyle() == style


@pytest.mark.parametrize(
    "name", ["_hidden_loss", r"$\frac{$ loss", "<script>loss</script>", "λ-loss é ✓", "$loss$", "a\nloss\tb", "", "\\"]
)
def test_any_name_is_drawn_as_it_is(name: str) -> None:
    """Underscores, broken mathematics, markup and other alphabets in a metric's or run's name are mere letters."""
    shown = overview(name)
    panels = drawn(shown, snapshot(curve(name, nonfinite=[1]), name=name))
    words = " ".join(name.split())
    assert [f"{words}: NaN or inf from step 1", f"{words}  1"] in [labels(axes) for axes in panels]
    heading = shown.figure.get_suptitle()
    assert heading.startswith(f"{words}  ● running")


def test_many_long_names_leave_room_for_the_panels() -> None:
    """However many curves and long names, a panel keeps most of the figure, and the legend says what it leaves out."""
    curves = [curve(f"{index:02}/{'long/' * 40}loss") for index in range(40)]
    curves[39] = curve("last_loss", nonfinite=[7])
    axes = drawn(overview(), snapshot(*curves, name="run" * 100))[LOSS]
    assert axes.get_position().width > 0.5
    assert axes.get_position().height > 0.2
    assert len(axes.lines) == 41
    assert labels(axes)[0] == "last_loss: NaN or inf from step 7"
    assert labels(axes)[-1] == "… and 33 more"


@pytest.mark.parametrize(("state", "words"), STATES)
def test_the_title_names_run_status_and_last_step(state: State, words: str) -> None:
    """The title says which run, how it is, how far it came, and what of it could not be read."""
    shown = overview()
    drawn(shown, snapshot(name="resnet18", state=state, last_step=12_345, problems=("part a is damaged",)))
    said = shown.figure.get_suptitle()
    assert said.startswith("resnet18 ")
    assert all(part in said for part in (f" {words} ", "step 12,345", "\nleft out: part a is damaged"))
    assert said.splitlines()[0] == title([snapshot(name="resnet18", state=state, last_step=12_345)], NOW)
    assert "no step yet" in title([snapshot(last_step=None)], NOW)


def test_an_empty_panel_says_what_fills_it() -> None:
    """Before the first row each panel names what it waits for; with rows the words are gone."""
    shown = overview()
    drawn(shown, snapshot(last_step=None))
    loss, accuracy, extremes = notes(shown)
    assert "trace.log(loss=…)" in loss
    assert "trace.log(accuracy=…)" in accuracy
    assert "no step" in extremes
    drawn(shown, snapshot(curve("loss"), curve("accuracy"), extremes=four([1.0])))
    assert notes(shown) == []


def test_the_first_nonfinite_step_is_marked_and_named() -> None:
    """A NaN or an infinity has a mark at its first step and a line in the legend that names the step."""
    snapshots = snapshot(
        curve("loss", [1.0, math.nan], nonfinite=[1234]), extremes=four([1.0, None], value=[5], grad=[6])
    )
    loss, _, extremes = drawn(overview(), snapshots)
    for axes, label, step in (
        (loss, "loss: NaN or inf from step 1,234", 1234),
        (extremes, "value: NaN or inf from step 5", 5),
        (extremes, "gradient: NaN or inf from step 6", 6),
    ):
        assert label in labels(axes)
        assert np.array_equal(line(axes, label).get_xdata(), [step, step])
        assert axes.get_xlim()[0] < step < axes.get_xlim()[1]
    assert "loss" in labels(loss), "the last finite number is not the current one"


def test_every_bin_with_a_nonfinite_number_is_marked() -> None:
    """A NaN long after a first infinity has its mark, and the legend names the last."""
    (_, _, extremes) = drawn(overview(), snapshot(extremes=four([1.0] * 40, grad=[0, 17, 30])))
    marks = line(extremes, "gradient: NaN or inf from step 0, last at 30")
    every = marks.get_markevery()
    assert isinstance(every, list)
    assert [np.asarray(marks.get_xdata())[index] for index in every] == [0, 17, 30]


def test_a_spike_within_a_bin_is_inside_the_panel() -> None:
    """The band of lowest and highest values decides the limits, not the mean alone."""
    spiky = Curve("loss", [0, 1, 2], [1.0, 1.0, 1.0], [1.0, -500.0, 1.0], [1.0, 700.0, 1.0], ())
    axes = drawn(overview(), snapshot(spiky), snapshot(spiky))[LOSS]
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
    assert "loss  -1.7e+308" in labels(loss)
    assert loss.get_ylim()[1] > 1e305


def test_an_axis_follows_new_steps_until_it_is_zoomed() -> None:
    """Limits grow and shrink with the data; those that the user has set stay, and the other axis goes on."""
    shown = overview()
    panels = drawn(shown, snapshot(curve("loss", [1.0] * 10)), snapshot(curve("loss", [1.0, 50.0] * 50)))
    assert panels[LOSS].get_ylim()[1] > 50
    assert panels[EXTREMES].get_xlim()[1] > 99
    drawn(shown, snapshot(curve("loss", [1.0, 2.0])))
    assert panels[LOSS].get_ylim()[1] < 5

    panels[LOSS].set_xlim(20, 30)
    drawn(shown, snapshot(curve("loss", [1.0, 90.0] * 200), extremes=four([1.0, 2.0] * 200)))
    assert [axes.get_xlim() for axes in panels] == [(20, 30)] * 3
    assert panels[LOSS].get_ylim()[1] > 90
    panels[EXTREMES].set_ylim(-3, 3)
    drawn(shown, snapshot(extremes=four([1e6])))
    assert panels[EXTREMES].get_ylim() == (-3, 3)


def test_nothing_accumulates_over_many_updates() -> None:
    """After hundreds of updates the figure holds exactly as many artists as after the first."""
    shown = overview("lr")
    spiky = Curve("loss", [0, 1], [1.0, 1.0], [0.0, 1.0], [2.0, 1.0], [1])
    full = snapshot(spiky, curve("acc"), extremes=four([1.0, 2.0], value=[0], grad=[1]))
    empty = snapshot(last_step=None)
    counts = []
    for number in range(200):
        shown.update([empty if number % 2 else full], NOW)
        counts.append(sum(len(parent.get_children()) for parent in [shown.figure, *shown.figure.axes]))
    assert counts == counts[:2] * 100


def test_a_new_run_in_the_same_folder_leaves_nothing_of_the_old_one() -> None:
    """When a snapshot has fewer curves than the one before, what is gone from the run is gone from the figure."""
    shown = overview()
    full = snapshot(curve("loss"), curve("acc"), extremes=four([1.0]))
    panels = drawn(shown, full, snapshot(last_step=None, name="next"))
    assert [len(axes.lines) for axes in panels] == [0, 0, 0]
    assert [labels(axes) for axes in panels] == [[], [], []]
    assert len(notes(shown)) == 3


def test_no_text_is_cut_off_or_overlaps() -> None:
    """Title, legends, labels and notes lie inside the figure, and apart from each other."""
    shown = overview("lr")
    curves = [curve(name, [10.0] * 1000, nonfinite=[999]) for name in ("loss", "val_loss")]
    long: dict[str, Any] = {"name": "n" * 200, "state": "stopped", "last_step": 10**9, "problems": ("damaged",) * 10}
    drawn(shown, snapshot(*curves, extremes=four([1.0], [999]), **long))
    texts = [
        text
        for text in shown.figure.findobj(Text)
        if isinstance(text, Text) and text.get_visible() and text.get_text() and not _is_tick(text, shown)
    ]
    assert len(texts) > 10
    boxes = [text.get_window_extent() for text in texts]
    frame = shown.figure.bbox
    for text, box in zip(texts, boxes, strict=True):
        assert frame.x0 <= box.x0 <= box.x1 <= frame.x1, text
        assert frame.y0 <= box.y0 <= box.y1 <= frame.y1, text
    for (one, first), (other, second) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        assert not first.overlaps(second), (one, other)


def _is_tick(text: Text, shown: Overview) -> bool:
    return any(
        text in axis.get_ticklabels(which="both") or text is axis.offsetText
        for axes in shown.figure.axes
        for axis in (axes.xaxis, axes.yaxis)
    )


def test_a_smoothed_curve_has_what_was_logged_behind_it() -> None:
    """A long metric is drawn faint as logged, and smoothed over it; the legend says it once, with its last value."""
    values = [float(step % 2) for step in range(100)]
    panels = drawn(overview(smoothing=0.6), snapshot(curve("loss", values), extremes=four(values)))
    raw, over = panels[LOSS].lines
    assert np.asarray(raw.get_ydata()).tolist() == values
    assert np.asarray(over.get_ydata()).tolist() == smoothed(values, 0.6)
    assert raw.get_alpha() is not None
    assert raw.get_color() == over.get_color()
    assert labels(panels[LOSS]) == ["loss  1"]
    assert np.asarray(line(panels[EXTREMES], "value max").get_ydata()).tolist() == [2 * value for value in values]


def test_a_curve_of_few_points_is_not_smoothed() -> None:
    """What is logged once an epoch is drawn as it is, with a marker at each point."""
    panels = drawn(overview(smoothing=0.9), snapshot(curve("val_loss", [3.0, 1.0, 2.0])))
    assert [np.asarray(each.get_ydata()).tolist() for each in panels[LOSS].lines] == [[3.0, 1.0, 2.0]]
