"""The strip of all parameters: every cell is the largest magnitude of its steps, and nothing is hidden."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from tests.figures import NAMES, PHONE, artists, canvas, check_contrast, check_texts, contrast, pixels, zoom
from tests.halves import first_of
from tests.logs import extremes, new_run, publish_next
from tests.viewing import shown, view
from tracer.log.store import Local as Path
from viewer.draw.layers import Layers
from viewer.draw.theme import SIZE_INCHES
from viewer.options import View, ViewOptions, XAxis, matching
from viewer.read.live import Live
from viewer.reduce.history import History
from viewer.snapshot import Heatmap, Snapshot

NOW = 1e9
RED = (224, 0, 0)
LAYERS = ViewOptions(view=View.LAYERS)
Pair = tuple[float, float]
FINITE = st.integers(-99, 99).map(float)
PAIRS = (
    st.none() | st.tuples(FINITE, FINITE) | st.sampled_from([(math.nan, math.nan), (-math.inf, 3.0), (0.0, math.inf)])
)


def layers_of(history: History) -> Heatmap:
    """The layers of a history that has some."""
    layers = history.layers()
    assert layers is not None
    return layers


def filled(*layers: Heatmap | None, look: ViewOptions = LAYERS, size: tuple[float, float] = SIZE_INCHES) -> Layers:
    """A strip into which these layers were put, one after the other; making the picture costs far more."""
    strip = Layers(canvas(size), look)
    for each in layers:
        fill(strip, each)
    return strip


def fill(strip: Layers, layers: Heatmap | None) -> None:
    """Put other layers into it."""
    strip.update([Snapshot("run", "running", 3, layers=layers)], NOW)


def drawn(layers: Heatmap | None, **how: Any) -> Layers:
    """A strip with the picture of these layers made."""
    strip = filled(layers, **how)
    strip.figure.canvas.draw()
    return strip


def uniform(params: Sequence[str], columns: int = 4, width: int = 1, first_step: int = 0) -> Heatmap:
    """A heat map in which every magnitude is 1."""
    shape = len(params), columns
    return Heatmap(params, first_step, width, np.ones(shape), np.zeros(shape, dtype=np.bool_))


def axes_of(strip: Layers) -> Axes:
    """Where the strip is drawn; the colour bar has axes of its own."""
    return strip.figure.axes[0]


def image(strip: Layers) -> AxesImage:
    """The magnitudes."""
    return axes_of(strip).images[0]


def alarm(strip: Layers) -> AxesImage:
    """What lies over the magnitudes where something is not finite."""
    return axes_of(strip).images[1]


def rows(strip: Layers) -> int:
    """How many there are."""
    return len(np.asarray(image(strip).get_array()))


def notes(strip: Layers) -> list[str]:
    """What is written into the strip."""
    return [text.get_text() for text in axes_of(strip).texts if text.get_visible()]


def labels(strip: Layers) -> dict[int, str]:
    """What is written beside the rows, as it is read."""
    ticks = zip(axes_of(strip).get_yticks(), axes_of(strip).get_yticklabels(), strict=True)
    return {int(tick): label.get_text().replace(r"\$", "$") for tick, label in ticks if label.get_text()}


def colours(strip: Layers) -> npt.NDArray[Any]:
    """What is seen in each cell: the colour of the strip, or of the alarm over it, as RGB bytes."""
    values, alarms = (np.asarray(layer.get_array()) for layer in (image(strip), alarm(strip)))
    below, above = image(strip).to_rgba(values, bytes=True), alarm(strip).to_rgba(alarms, bytes=True)
    return np.where((alarms == 1)[..., None], above, below)[..., :3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 70), st.sampled_from("ab"), PAIRS), min_size=1, max_size=40))
def test_a_cell_is_the_largest_magnitude_of_its_steps(rows: list[tuple[int, str, Pair | None]]) -> None:
    """However rows arrive, each cell holds the largest magnitude of finite rows, and knows of one that was not."""
    history = History(LAYERS, params=["b", "a"])
    for step, param, pair in rows:
        low, high = pair or (None, None)
        table = extremes([step], [param], {"grad_min": [low], "grad_max": [high]})
        history.absorb("extremes", pl.DataFrame(pl.from_arrow(table)).lazy())
    layers = layers_of(history)
    assert (layers.params, layers.width) == (["b", "a"], 1)
    assert layers.first_step == min(row[0] for row in rows)
    for (row, column), found in np.ndenumerate(layers.magnitudes):
        here = layers.first_step + column, layers.params[row]
        pairs = [pair for step, param, pair in rows if pair is not None and (step, param) == here]
        largest = [max(map(abs, pair)) for pair in pairs if all(map(math.isfinite, pair))]
        assert found == max(largest) if largest else math.isnan(found)
        assert layers.nonfinite[row, column] == (len(largest) < len(pairs))


def test_where_rows_have_no_known_distance_the_last_one_is_shown_until_the_next() -> None:
    """With a budget, steps that were not measured look like the one before them; what is null there stays so."""
    history = History(LAYERS, params=["a", "b"], stride=None)
    for step, numbers in ((0, [1.0, None]), (4, [2.0, 3.0]), (5, [math.nan, 4.0]), (7, [5.0, 6.0])):
        table = extremes([step], ["a", "b"], {"grad_min": numbers, "grad_max": numbers})
        history.absorb("extremes", pl.DataFrame(pl.from_arrow(table)).lazy())
    layers = layers_of(history)
    nan = math.nan
    np.testing.assert_array_equal(layers.magnitudes, [[1, 1, 1, 1, 2, nan, nan, 5], [nan, nan, nan, nan, 3, 4, 4, 6]])
    np.testing.assert_array_equal(layers.nonfinite[0], [False] * 5 + [True] * 2 + [False])


def test_long_runs_keep_every_spike_in_bounded_columns() -> None:
    """As steps go by, columns cover more of them, and each still holds the largest magnitude of its steps."""
    history = History(LAYERS, params=["a"])
    steps = 5000
    heights = np.ones(steps)
    heights[4321] = 100.0
    table = extremes(range(steps), ["a"], {"grad_min": [0.0] * steps, "grad_max": heights.tolist()})
    history.absorb("extremes", pl.DataFrame(pl.from_arrow(table)).lazy())
    layers = layers_of(history)
    assert layers.width == 16
    assert layers.magnitudes.shape == (1, 313)
    assert layers.magnitudes[0].argmax() == 4321 // 16
    assert layers.magnitudes.max() == 100.0


def test_many_parameters_have_fewer_columns_and_bounded_memory() -> None:
    """Ten thousand parameters have a million cells at most."""
    history = History(LAYERS, params=[f"layer{number}.weight" for number in range(10_000)])
    table = extremes(range(300), ["layer3.weight", "layer9999.weight"])
    history.absorb("extremes", pl.DataFrame(pl.from_arrow(table)).lazy())
    assert layers_of(history).magnitudes.size <= 1_000_000


def test_a_parameter_that_came_later_stands_below() -> None:
    """What run.json does not name has its row all the same, behind the others."""
    history = History(LAYERS, params=["z"])
    history.absorb("extremes", pl.DataFrame(pl.from_arrow(extremes([0, 1], ["z", "a"]))).lazy())
    assert layers_of(history).params == ["z", "a"]


def test_what_is_wrong_is_seen_in_its_cell() -> None:
    """A NaN is red, an all-zero gradient black, none at all white; the rest is coloured by its magnitude."""
    magnitudes = np.array([[1.0, 0.0, np.nan, np.nan], [1e-6, 1.0, 1e3, 1.0]])
    bad = np.array([[False, False, False, True], [False, False, False, False]])
    layers = Heatmap(["a", "b"], 0, 1, magnitudes, bad)
    seen = colours(filled(layers))
    assert seen[0, 1].tolist() == [0, 0, 0]
    assert seen[0, 2].tolist() == [255, 255, 255]
    assert seen[0, 3].tolist() == [224, 0, 0]
    assert seen[0, 0].tolist() == seen[1, 1].tolist()
    assert len({tuple(cell) for cell in seen[1, :3].tolist()}) == 3


def test_too_many_parameters_are_grouped_by_module_and_none_is_hidden() -> None:
    """With more parameters than rows, a row is a module, which shows the largest magnitude and any alarm in it."""
    names = [f"block{block}.{part}.weight" for block in range(100) for part in ("a", "b", "c", "d")]
    magnitudes, bad = np.ones((400, 2)), np.zeros((400, 2), dtype=np.bool_)
    magnitudes[names.index("block7.c.weight"), 1] = 50.0
    bad[names.index("block9.d.weight"), 0] = True
    strip = filled(Heatmap(names, 0, 1, magnitudes, bad))
    shown = np.asarray(image(strip).get_array())
    assert shown.shape == (100, 2)
    assert np.argwhere(shown == 50.0).tolist() == [[7, 1]]
    assert np.argwhere(np.asarray(alarm(strip).get_array()) == 1.0).tolist() == [[9, 0]]
    assert labels(strip)[0] == "block0.*"


@pytest.mark.parametrize("layers", [None, "zero"])
def test_a_strip_without_a_magnitude_is_drawn(layers: str | None) -> None:
    """Before the first row it says so; where all gradients are zero, it is all black."""
    strip = drawn(None if layers is None else Heatmap(["a"], 0, 1, np.zeros((1, 2)), np.zeros((1, 2), bool)))
    assert notes(strip) == ["no step recorded yet"] * (layers is None)
    if layers is not None:
        assert colours(strip).reshape(-1, 3).tolist() == [[0, 0, 0]] * 2


def test_names_are_text() -> None:
    """A parameter may be called anything, and is not taken for mathematics."""
    layers = Heatmap(["_hidden", "$\\frac{$"], 0, 1, np.ones((2, 1)), np.zeros((2, 1), bool))
    assert labels(filled(layers)) == {0: "_hidden", 1: "$\\frac{$"}


def test_a_run_that_begins_anew_is_shown_anew(tmp_path: Path) -> None:
    """The parameters are those of the run that is there now."""
    live = Live(tmp_path / "run", LAYERS)
    publish_next(new_run(tmp_path / "run", ["a"]), "extremes", extremes([0], ["a"]))
    layers = shown(live).layers
    assert layers is not None
    assert layers.params == ["a"]
    live.close()


def test_the_overview_reads_no_layers(tmp_path: Path) -> None:
    """Nobody pays for a view that is not shown."""
    publish_next(new_run(tmp_path / "run", ["a"]), "extremes", extremes([0], ["a"]))
    live = Live(tmp_path / "run")
    assert shown(live).layers is None
    live.close()


def test_the_command_writes_the_layers_into_a_file(tmp_path: Path) -> None:
    """`viewer RUN --view layers --save FILE` writes another picture than the overview."""
    publish_next(new_run(tmp_path / "run", ["a", "b"]), "extremes", extremes(range(20), ["a", "b"]))
    for name in ("overview", "layers"):
        code, said, complained = view(tmp_path, "run", "--view", name, "--save", f"{name}.png")
        assert (code, complained) == (0, "")
        assert f"{name}.png" in said
    assert (tmp_path / "layers.png").read_bytes() != (tmp_path / "overview.png").read_bytes()


@pytest.mark.parametrize("dark", [False, True])
def test_everything_of_a_strip_is_readable_on_its_ground(dark: bool) -> None:
    """Every text and tick, minor ones of the colour bar too, has contrast; a zero is told from what is not recorded."""
    magnitudes = np.array([[1e-6, 1.0, 0.0, np.nan]])
    look = dataclasses.replace(LAYERS, dark=dark)
    strip = filled(Heatmap(["a"], 0, 1, magnitudes, np.zeros((1, 4), bool)), look=look)
    check_contrast(strip.figure)
    _, bar = strip.figure.axes
    assert len(bar.yaxis.get_minor_ticks()) > 10
    zero, missing = colours(strip)[0, 2:].tolist()
    assert contrast(np.divide(zero, 255), np.divide(missing, 255)) > 1.5


def test_a_strip_grows_with_the_run_until_it_is_zoomed() -> None:
    """Its limits follow new steps and parameters; those of the zoom tool stay on both axes, until its home button."""
    few, more = uniform(["a", "b"], 10), uniform(["a", "b", "c"], 20, width=2, first_step=4)
    strip = filled(few)
    assert (axes_of(strip).get_xlim(), axes_of(strip).get_ylim()) == ((-0.5, 9.5), (1.5, -0.5))
    toolbar = zoom(axes_of(strip), (2, 5), (0.3, -0.2))
    limits = axes_of(strip).get_xlim(), axes_of(strip).get_ylim()
    assert limits[0] == pytest.approx((2, 5), abs=0.1)
    fill(strip, more)
    assert (axes_of(strip).get_xlim(), axes_of(strip).get_ylim()) == limits
    toolbar.home()
    fill(strip, more)
    assert (axes_of(strip).get_xlim(), axes_of(strip).get_ylim()) == ((3.5, 43.5), (2.5, -0.5))


@pytest.mark.slow
def test_a_zoomed_strip_names_every_row() -> None:
    """Of many rows only some have room for a name; those that are left when zoomed have all of them."""
    strip = filled(uniform([f"p{number}" for number in range(300)]))
    some = labels(strip)
    assert 30 < len(some) < 100
    assert all(name == f"p{row}" for row, name in some.items())
    zoom(axes_of(strip), (0, 3), (117.4, 111.6))
    strip.figure.canvas.draw()
    assert [name for row, name in labels(strip).items() if 112 <= row <= 117] == [f"p{n}" for n in range(112, 118)]


def test_a_click_on_a_row_leads_to_its_parameter() -> None:
    """The look that follows shows the parameter, and is otherwise the same."""
    look = dataclasses.replace(LAYERS, params="weight", dark=True)
    strip = filled(uniform(["a.weight", "b.weight"]), look=look)
    found = strip.picked(axes_of(strip), 1.4)
    assert found == dataclasses.replace(look, view=View.PARAM, param="b.weight")


@pytest.mark.parametrize("y", [None, -0.6, 1.6, 1e9])
def test_a_click_beside_the_rows_leads_nowhere(y: float | None) -> None:
    """Nor does one on the colour bar, or on nothing."""
    strip = filled(uniform(["a", "b"]))
    assert strip.picked(axes_of(strip), y) is None
    assert strip.picked(strip.figure.axes[1], 1.0) is None
    assert strip.picked(None, 1.0) is None
    assert filled(None).picked(axes_of(strip), 0.0) is None


def test_a_click_on_a_module_leads_to_exactly_its_parameters() -> None:
    """The look that follows has a pattern that finds the parameters of the module, and no other."""
    names = [f"block{block}.{part}+ {rest}" for block in range(200) for part in "ab" for rest in ("w", "b")]
    names += ["xblock1.a", "block1", "block1_a"]
    strip = filled(uniform(names))
    axes = axes_of(strip)
    said = [axes.format_coord(0, row) for row in range(rows(strip))]
    (row,) = [row for row, words in enumerate(said) if words.startswith("block1.*  ")]
    found = strip.picked(axes, row)
    assert found is not None
    assert found.view is View.LAYERS
    assert matching(names, found.params) == [name for name in names if name.startswith("block1.")]
    assert rows(filled(uniform(matching(names, found.params)))) == 4


@pytest.mark.slow
def test_too_many_modules_share_rows_and_none_is_hidden() -> None:
    """Where there are more modules than rows, neighbours share one: every magnitude and alarm is still in a pixel."""
    names = [f"{number}.weight" for number in range(1000)]
    for odd in (1, 333, 998):
        layers = uniform(names)
        layers.nonfinite[odd, 2] = True
        strip = filled(layers)
        seen = np.argwhere((pixels(strip.figure) == RED).all(axis=2))
        legend = strip.figure.legends[0].get_window_extent()
        inside = [y for y, _ in seen if strip.figure.bbox.height - y > legend.y1]
        assert inside
        (row,) = np.unique(np.argwhere(np.asarray(alarm(strip).get_array()) == 1.0)[:, 0])
        found = strip.picked(axes_of(strip), float(row))
        assert found is not None
        assert names[odd] in (members := matching(names, found.params))
        assert 1 < len(members) < 10


@pytest.mark.slow
def test_a_phone_hides_no_column() -> None:
    """Where the strip has fewer pixels than columns, a NaN in a single one is still red, whichever it is."""
    for column in range(255, 261):
        layers = uniform(["encoder.layers.0.self_attention.weight"] * 2, 512)
        layers.nonfinite[0, column] = True
        strip = drawn(layers, size=PHONE)
        box = axes_of(strip).get_window_extent()
        seen = np.argwhere((pixels(strip.figure) == RED).all(axis=2))
        assert any(box.x0 < x < box.x1 and y < strip.figure.bbox.height - box.y0 for y, x in seen), column
        assert axes_of(strip).get_xlim()[1] >= 511


@pytest.mark.parametrize("size", [SIZE_INCHES, PHONE])
@pytest.mark.parametrize("name", first_of(NAMES))
def test_a_strip_has_room_for_any_name(name: str, size: tuple[float, float]) -> None:
    """Whatever parameters and run are called, nothing is cut off or on one another."""
    look = dataclasses.replace(LAYERS, statistic="applied_nonfinite")
    figure = canvas(size)
    strip = Layers(figure, look)
    strip.update([Snapshot(name, "running", 3, layers=uniform([f"{name}.{n}" for n in range(100)]))], NOW)
    check_texts(figure)


@pytest.mark.parametrize("magnitudes", [[5e-324, 0.0], [1.7e308, 0.0], [5e-324, 1.7e308], [1.0, 1.0], [1e-310, 1e-305]])
def test_magnitudes_of_any_size_are_drawn(magnitudes: list[float]) -> None:
    """From the smallest number to the largest, each has a colour, and only a zero, or nearly one, is black."""
    seen = colours(drawn(Heatmap(["a"], 0, 1, np.array([magnitudes]), np.zeros((1, 2), bool))))[0].tolist()
    for magnitude, colour in zip(magnitudes, seen, strict=True):
        assert colour != [255, 255, 255]
        assert (colour == [0, 0, 0]) == (magnitude < 1e-200)


def test_the_toolbar_names_what_is_under_the_mouse() -> None:
    """A cell has its parameter, step and magnitude said, however many steps it covers; what is beside it, nothing."""
    magnitudes = np.array([[1.0, np.nan, 3.0], [0.0, 2.0, 3.0]])
    bad = np.array([[False, False, False], [False, False, True]])
    strip = filled(Heatmap(["a.$x$", "b"], 100, 10, magnitudes, bad))
    said = {place: axes_of(strip).format_coord(*place) for place in ((104, 0.2), (115, 0), (104, 1), (129, 1.3))}
    assert list(said.values()) == [
        "a.$x$  step 104  1",
        "a.$x$  step 115  not recorded",
        "b  step 104  0",
        "b  step 129  NaN or infinity",
    ]
    for place in ((99, 0), (130, 0), (104, -1), (104, 2)):
        assert axes_of(strip).format_coord(*place) == ""
    assert not any(image.mouseover for image in axes_of(strip).images)


def moments(times: Sequence[float], bad: Sequence[int] = ()) -> Heatmap:
    """A heat map of one parameter, whose columns of ten steps end at these times; one of them is NaN."""
    count = len(times)
    alarms = np.array([[column in bad for column in range(count)]])
    return Heatmap(["a"], 100, 10, np.arange(1.0, count + 1)[None, :], alarms, [NOW + time for time in times])


@pytest.mark.parametrize("x", [XAxis.WALL, XAxis.RELATIVE])
def test_the_x_axis_of_a_strip_can_be_times(x: XAxis) -> None:
    """Each column reaches from the time of the one before to its own, however long, and is named by its steps."""
    strip = Layers(canvas(), dataclasses.replace(LAYERS, x=x))
    layers = moments([10, 20, 80, 90], bad=[3])
    strip.update([Snapshot("run", "running", 139, layers=layers, started=NOW)], NOW)
    axes = axes_of(strip)
    day, begin = (86_400, NOW / 86_400) if x is XAxis.WALL else (1, 0.0)
    assert axes.get_xlabel() == {XAxis.WALL: "time", XAxis.RELATIVE: "time since the run began"}[x]
    assert axes.get_xlim() == pytest.approx((begin, begin + 90 / day), rel=1e-12)
    numbers = np.asarray(image(strip).get_array())[0]
    shares = [np.mean(numbers == number) for number in (1, 2, 3, 4)]
    assert shares == pytest.approx([1 / 9, 1 / 9, 6 / 9, 1 / 9], abs=0.01)
    assert np.flatnonzero(np.asarray(alarm(strip).get_array())[0] == 1).min() == pytest.approx(
        len(numbers) * 8 / 9, abs=1
    )
    said = [axes.format_coord(begin + second / day, 0) for second in (5, 50, 85)]
    assert said == ["a  step 100  1", "a  step 120  3", "a  step 130  NaN or infinity"]
    check_texts(strip.figure)


@pytest.mark.parametrize("times", [[5], [5, 5, 5], [1, 2, 2, 3], [9, 3, 8], list(range(3000))])
def test_no_column_is_lost_among_times(times: list[float]) -> None:
    """A NaN is seen, and every magnitude has a cell, where columns have no width, or are more than pixels."""
    for bad in {0, len(times) // 2, len(times) - 1}:
        strip = Layers(canvas((3, 2)), dataclasses.replace(LAYERS, x=XAxis.RELATIVE))
        strip.update([Snapshot("run", "running", 139, layers=moments(times, bad=[bad]), started=NOW)], NOW)
        assert (np.asarray(alarm(strip).get_array()) == 1).any()
        assert np.nanmax(np.asarray(image(strip).get_array())) == len(times)


def test_a_history_knows_the_times_of_its_columns() -> None:
    """Each column has the time of its last row; an empty one that of the column before."""
    history = History(LAYERS, params=["a"])
    table = pl.DataFrame(pl.from_arrow(extremes([0, 1, 4], ["a"])))
    history.absorb("extremes", table.lazy())
    times = (table["time"].dt.epoch("us") / 1e6).to_list()
    assert layers_of(history).time == [times[0], times[1], times[1], times[1], times[2]]


@pytest.mark.slow
def test_nothing_accumulates_in_a_strip() -> None:
    """After many updates the figure holds as much as after the first."""
    strip = filled(uniform(["a"]))
    counts = set()
    for number in range(30):
        fill(strip, uniform([f"p{n}" for n in range(number + 1)], number + 1) if number % 3 else None)
        counts.add(artists(strip.figure))
    assert len(counts) == 1


def test_a_strip_without_a_matching_parameter_says_so() -> None:
    """Where the filter finds none, the panel says that it is the filter's doing."""
    strip = filled(None, look=dataclasses.replace(LAYERS, params="nothing"))
    (note,) = notes(strip)
    assert "with such a parameter" in note
