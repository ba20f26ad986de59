"""The size of updates against values, from the log to each surface: measured steps joined, and nothing lost."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from rich.console import Console

from tests.figures import PHONE, canvas, check_texts, entries
from tests.logs import close_run, extremes, new_run, publish_next, statistics
from tests.viewing import shown, view
from tracer.log.store import Local as Path
from viewer.draw.parameter import Parameter
from viewer.draw.theme import SIZE_INCHES
from viewer.options import Scale, View, ViewOptions
from viewer.read.live import Live
from viewer.snapshot import Snapshot
from viewer.surfaces.cursor import Cursor
from viewer.surfaces.text import picture

LOOK = ViewOptions(View.PARAM, param="a")
STEPS = range(40)
Ratios = Sequence[float | None]


def logged(path: Path, ratios: Ratios, every: int = 10, **settings: Any) -> Path:
    """A run of 40 steps, in one of so many of which these ratios of one parameter were measured; none of the other."""
    path = new_run(path, ["a", "b"], settings={"every": 1, "update": True, "update_every": every, **settings})
    column = [ratios[step // every] if name == "a" and step % every == 0 else None for step in STEPS for name in "ab"]
    publish_next(path, "extremes", statistics(STEPS, ["a", "b"], {"update_ratio": column}))
    close_run(path, STEPS[-1])
    return path


def snapshot(path: Path, look: ViewOptions = LOOK) -> Snapshot:
    """The run as it is now."""
    live = Live(path, look)
    try:
        return shown(live)
    finally:
        live.close()


def figure(run: Snapshot, look: ViewOptions = LOOK, size: tuple[float, float] = SIZE_INCHES) -> Parameter:
    """The parameter's figure, drawn."""
    drawing = Parameter(canvas(size), look)
    drawing.update([run], 0.0)
    drawing.figure.canvas.draw()
    return drawing


def panel(drawing: Parameter) -> Axes:
    """The panel of the ratio."""
    return drawing.panels["update / value"]


def line(axes: Axes, label: str) -> Line2D:
    """The line with this beginning of its label."""
    (found,) = [each for each in axes.lines if str(each.get_label()).startswith(label)]
    return found


def text(run: Snapshot, look: ViewOptions = LOOK) -> str:
    """The view in characters."""
    console = Console(file=io.StringIO(), width=120, height=30, color_system=None, force_terminal=False)
    console.print(picture([run], look, 0.0, 120, 30))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_measured_steps_are_joined_beside_the_rule_of_thumb(tmp_path: Path) -> None:
    """One line without a gap through the steps that were measured, on a log scale, with 1e-3 in sight and named."""
    drawing = figure(snapshot(logged(tmp_path / "run", [1e-2, 2e-2, 3e-2, 4e-2])))
    axes = panel(drawing)
    assert axes.get_yscale() == "log"
    data = line(axes, "update / value").get_xydata()
    np.testing.assert_allclose(np.asarray(data), [[0, 1e-2], [10, 2e-2], [20, 3e-2], [30, 4e-2]])
    assert entries(axes) == ["update / value  0.04", "rule of thumb: 0.001"]
    assert axes.get_ylim()[0] < 1e-3 == np.asarray(line(axes, "rule").get_ydata())[0]
    assert list(drawing.panels) == ["value", "gradient", "update / value"]


def test_the_pointer_gives_its_number(tmp_path: Path) -> None:
    """Of the nearest measured step, which is named; the rule of thumb is no curve."""
    drawing = figure(snapshot(logged(tmp_path / "run", [1e-2, 2e-2, 3e-2, 4e-2])))
    axes = panel(drawing)
    across, up = drawing.figure.transFigure.inverted().transform(axes.transData.transform((18.0, 3e-3)))
    reading = Cursor().point(drawing.drawn(), across, 1 - up)
    assert reading is not None
    assert reading["title"].startswith("step 20")  # type: ignore[attr-defined]
    (own,) = reading["rows"][: reading["own"]]  # type: ignore[index]
    assert (own["name"], own["words"]) == ("update / value", "0.03")
    rows = [each for each in drawing.csv().splitlines() if "update / value" in each]
    assert [each.split(",")[2] for each in rows] == ["0", "10", "20", "30"]


@pytest.mark.parametrize("scale", [Scale.AUTO, Scale.LOG, Scale.LINEAR])
def test_no_change_at_all_is_marked(scale: Scale, tmp_path: Path) -> None:
    """A ratio of 0, which has no logarithm, is a point of the line with a mark that the legend explains."""
    run = snapshot(logged(tmp_path / "run", [0.0, 1e-5, 0.0, 1e-3]))
    axes = panel(figure(run, ViewOptions(View.PARAM, param="a", scale=scale)))
    marks = line(axes, "no change")
    assert np.asarray(marks.get_xydata()).tolist() == [[0.0, 0.0], [20.0, 0.0]]
    assert "no change at step 0 and later" in entries(axes)
    low, high = axes.get_ylim()
    assert low < 0 < 1e-3 < high
    assert np.isfinite(np.asarray(line(axes, "update / value").get_ydata())).all()


def test_nan_is_marked_and_a_gap(tmp_path: Path) -> None:
    """Where a measured ratio is not finite, the line is broken, and the legend names the step."""
    axes = panel(figure(snapshot(logged(tmp_path / "run", [1e-3, 2e-3, math.nan, math.inf]))))
    np.testing.assert_array_equal(np.asarray(axes.lines[0].get_ydata()), [1e-3, 2e-3, math.nan, math.nan])
    assert "update / value: NaN/inf from step 20" in entries(axes)


def test_bins_keep_the_smallest_and_the_largest_ratio(tmp_path: Path) -> None:
    """Of a long run, a bin is a band between both, and one 0 in it is marked."""
    steps = range(0, 60_000, 10)
    run = new_run(tmp_path / "run", ["a"], settings={"every": 10, "update": True, "update_every": 10})
    ratios = [0.0 if step == 30_000 else 0.5 if step == 40_000 else 1e-3 for step in steps]
    publish_next(run, "extremes", statistics(steps, ["a"], {"update_ratio": ratios}))
    axes = panel(figure(snapshot(run)))
    assert np.asarray(axes.lines[0].get_ydata()).max() == 0.5
    (band,) = [each for each in axes.collections if isinstance(each, PolyCollection)]
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert (heights.min(), heights.max()) == (0.0, 0.5)
    (place,) = np.asarray(line(axes, "no change").get_xdata())
    assert abs(place - 30_000) <= 60


@pytest.mark.parametrize("size", [SIZE_INCHES, PHONE])
def test_a_parameter_without_a_ratio_says_why(size: tuple[float, float], tmp_path: Path) -> None:
    """Of a frozen one, or one of one element, the panel is there, and no line that looks like death."""
    look = ViewOptions(View.PARAM, param="b")
    run = snapshot(logged(tmp_path / "run", [1e-3] * 4), look)
    drawing = figure(run, look, size)
    axes = panel(drawing)
    assert not axes.lines
    (note,) = [each.get_text() for each in axes.texts if each.get_visible()]
    assert "no update of it was measured" in note.replace("\n", " ")
    check_texts(drawing.figure)
    assert "no update of it was measured" in text(run, look)


def test_an_older_log_has_no_such_panel(tmp_path: Path) -> None:
    """Nor one whose run does not measure updates; once a part has the column, the panel is there."""
    run = new_run(tmp_path / "run", ["a"])
    publish_next(run, "extremes", extremes(range(10), ["a"]))
    live = Live(run, LOOK)
    drawing = figure(shown(live))
    assert list(drawing.panels) == ["value", "gradient"]
    publish_next(run, "extremes", statistics([10], ["a"], {"update_ratio": [1e-3]}))
    drawing.update([shown(live)], 0.0)
    assert list(drawing.panels) == ["value", "gradient", "update / value"]
    assert np.asarray(panel(drawing).lines[0].get_xydata()).tolist() == [[10.0, 1e-3]]
    live.close()


def test_ranks_are_a_band(tmp_path: Path) -> None:
    """From the smallest ratio of any to the largest."""
    run = new_run(tmp_path / "run", ["a"], settings={"every": 1, "update": True, "update_every": 1})
    for rank in (0, 1):
        columns = {"update_ratio": [1e-3 * (1 + rank)] * 3}
        publish_next(run, "extremes", statistics(range(3), ["a"], columns, rank), rank)
    found = snapshot(run).extremes
    assert found is not None
    assert found.ratio is not None
    assert (list(found.ratio.low), list(found.ratio.high)) == ([1e-3] * 3, [2e-3] * 3)


def test_the_terminal_shows_the_same(tmp_path: Path) -> None:
    """A chart with the newest number and the rule of thumb; in a pipe the number."""
    run = logged(tmp_path / "run", [0.0, 1e-5, 2e-4, 0.0321])
    said = text(snapshot(run))
    assert "update / value" in said
    assert "0.0321" in said
    assert "rule of thumb" in said
    code, out, errors = view(tmp_path, run, "--text", "--param", "a")
    assert (code, errors) == (0, "")
    assert "update / value 0.0321" in out


@pytest.mark.parametrize("settings", [{}, {"budget": 0.01}], ids=str)
def test_the_layers_show_it_without_empty_columns(settings: dict[str, Any], tmp_path: Path) -> None:
    """A column is as wide as updates are apart, so that none of a run whose updates are measured looks unmeasured."""
    look = ViewOptions(View.LAYERS, statistic="update_ratio")
    run = snapshot(logged(tmp_path / "run", [1e-3, 0.0, math.nan, 4e-3], **settings), look)
    assert run.statistics[-1] == "update_ratio"
    layers = run.layers
    assert layers is not None
    assert layers.width == 10
    np.testing.assert_array_equal(layers.magnitudes, [[1e-3, 0.0, math.nan, 4e-3], [math.nan] * 4])
    np.testing.assert_array_equal(layers.nonfinite, [[False, False, True, False], [False] * 4])
    assert "update_ratio" in text(run, look)
