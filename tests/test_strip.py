"""The strip of all parameters: every cell is the largest magnitude of its steps, and nothing is hidden."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tests.logs import extremes, new_run, publish_next
from tests.viewing import shown, view
from viewer.history import History, Layers
from viewer.live import Live, Snapshot
from viewer.look import View
from viewer.strip import Strip

Pair = tuple[float, float]
FINITE = st.integers(-99, 99).map(float)
PAIRS = (
    st.none() | st.tuples(FINITE, FINITE) | st.sampled_from([(math.nan, math.nan), (-math.inf, 3.0), (0.0, math.inf)])
)


def layers_of(history: History) -> Layers:
    """The layers of a history that has some."""
    layers = history.layers()
    assert layers is not None
    return layers


def drawn(layers: Layers | None, of: str = "grad") -> Strip:
    """A strip that shows these layers."""
    figure = Figure(figsize=(6, 4))
    FigureCanvasAgg(figure)
    strip = Strip(figure, of)
    strip.update(Snapshot("run", "running", 3, layers=layers))
    figure.canvas.draw()
    return strip


def colours(strip: Strip) -> npt.NDArray[Any]:
    """What is seen in each cell: the colour of the strip, or of the alarm over it, as RGB bytes."""
    values, alarms = np.asarray(strip._image.get_array()), np.asarray(strip._alarm.get_array())
    image, alarm = strip._image.to_rgba(values, bytes=True), strip._alarm.to_rgba(alarms, bytes=True)
    return np.where((alarms == 1)[..., None], alarm, image)[..., :3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 70), st.sampled_from("ab"), PAIRS), min_size=1, max_size=40))
def test_a_cell_is_the_largest_magnitude_of_its_steps(rows: list[tuple[int, str, Pair | None]]) -> None:
    """However rows arrive, each cell holds the largest magnitude of finite rows, and knows of one that was not."""
    history = History(params=["b", "a"])
    for step, param, pair in rows:
        low, high = pair or (None, None)
        table = extremes([step], [param], {"grad_min": [low], "grad_max": [high]})
        history.absorb_extremes(pl.DataFrame(pl.from_arrow(table)).lazy())
    layers = layers_of(history)
    assert (layers.params, layers.width) == (["b", "a"], 1)
    assert layers.first_step == min(row[0] for row in rows)
    for (row, column), found in np.ndenumerate(layers.magnitudes["grad"]):
        here = layers.first_step + column, layers.params[row]
        pairs = [pair for step, param, pair in rows if pair is not None and (step, param) == here]
        largest = [max(map(abs, pair)) for pair in pairs if all(map(math.isfinite, pair))]
        assert found == max(largest) if largest else math.isnan(found)
        assert layers.nonfinite["grad"][row, column] == (len(largest) < len(pairs))


def test_long_runs_keep_every_spike_in_bounded_columns() -> None:
    """As steps go by, columns cover more of them, and each still holds the largest magnitude of its steps."""
    history = History(params=["a"])
    steps = 5000
    heights = np.ones(steps)
    heights[4321] = 100.0
    table = extremes(range(steps), ["a"], {"grad_min": [0.0] * steps, "grad_max": heights.tolist()})
    history.absorb_extremes(pl.DataFrame(pl.from_arrow(table)).lazy())
    layers = layers_of(history)
    assert layers.width == 16
    assert layers.magnitudes["grad"].shape == (1, 313)
    assert layers.magnitudes["grad"][0].argmax() == 4321 // 16
    assert layers.magnitudes["grad"].max() == 100.0


def test_many_parameters_have_fewer_columns_and_bounded_memory() -> None:
    """Ten thousand parameters have a million cells at most."""
    history = History(params=[f"layer{number}.weight" for number in range(10_000)])
    table = extremes(range(300), ["layer3.weight", "layer9999.weight"])
    history.absorb_extremes(pl.DataFrame(pl.from_arrow(table)).lazy())
    assert layers_of(history).magnitudes["grad"].size <= 1_000_000


def test_a_parameter_that_came_later_stands_below() -> None:
    """What run.json does not name has its row all the same, behind the others."""
    history = History(params=["z"])
    history.absorb_extremes(pl.DataFrame(pl.from_arrow(extremes([0, 1], ["z", "a"]))).lazy())
    assert layers_of(history).params == ["z", "a"]


def test_what_is_wrong_is_seen_in_its_cell() -> None:
    """A NaN is red, an all-zero gradient black, none at all white; the rest is coloured by its magnitude."""
    magnitudes = np.array([[1.0, 0.0, np.nan, np.nan], [1e-6, 1.0, 1e3, 1.0]])
    bad = np.array([[False, False, False, True], [False, False, False, False]])
    layers = Layers(["a", "b"], 0, 1, {"grad": magnitudes}, {"grad": bad})
    seen = colours(drawn(layers))
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
    strip = drawn(Layers(names, 0, 1, {"grad": magnitudes}, {"grad": bad}))
    image = np.asarray(strip._image.get_array())
    assert image.shape == (100, 2)
    assert np.argwhere(image == 50.0).tolist() == [[7, 1]]
    assert np.argwhere(np.asarray(strip._alarm.get_array()) == 1.0).tolist() == [[9, 0]]
    assert strip._axes.get_yticklabels()[0].get_text() == "block0.*"


@pytest.mark.parametrize("layers", [None, "zero"])
def test_a_strip_without_a_magnitude_is_drawn(layers: str | None) -> None:
    """Before the first row it says so; where all gradients are zero, it is all black."""
    strip = drawn(
        None if layers is None else Layers(["a"], 0, 1, {"grad": np.zeros((1, 2))}, {"grad": np.zeros((1, 2), bool)})
    )
    assert strip._note.get_visible() == (layers is None)
    if layers is not None:
        assert colours(strip).reshape(-1, 3).tolist() == [[0, 0, 0]] * 2


def test_names_are_text() -> None:
    """A parameter may be called anything, and is not taken for mathematics."""
    layers = Layers(["_hidden", "$\\frac{$"], 0, 1, {"grad": np.ones((2, 1))}, {"grad": np.zeros((2, 1), bool)})
    assert [label.get_text() for label in drawn(layers)._axes.get_yticklabels()] == ["_hidden", "$\\frac{$"]


def test_a_run_that_begins_anew_is_shown_anew(tmp_path: Path) -> None:
    """The parameters are those of the run that is there now."""
    live = Live(tmp_path / "run", View.LAYERS)
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
