"""A figure that a user looks at: it follows the runs, his keys and his clicks, and never fails in a callback."""

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from matplotlib.backend_bases import KeyEvent, MouseButton
from matplotlib.figure import Figure

from tests.figures import canvas, click, pixels, zoom
from tests.logs import close_run, extremes, metrics, new_run, publish_next
from tests.waiting import wait_until
from tracer.log.run import LogError
from tracer.log.store import Local as Path
from viewer.draw.theme import LIGHT
from viewer.options import Histograms, Scale, View, ViewOptions, XAxis
from viewer.read.reader import Reader
from viewer.read.runs import Runs
from viewer.surfaces.screen import Screen

PARAMS = ("conv.weight", "conv.bias", "fc.weight")
Open = Callable[..., Screen]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the run is, or will be."""
    return tmp_path / "run"


@pytest.fixture
def opened() -> list[Runs]:
    """What was opened to be read."""
    return []


@pytest.fixture
def watch(path: Path, opened: list[Runs]) -> Iterator[Open]:
    """Opens a screen on the run's folder."""
    screens: list[Screen] = []

    def open_runs(look: ViewOptions) -> Runs:
        opened.append(Runs([path], look, poll_seconds=0.05))
        return opened[-1]

    def open_screen(look: ViewOptions | None = None, titled: bool = True) -> Screen:
        screens.append(Screen(canvas(), open_runs, look or ViewOptions(), titled))
        return screens[-1]

    yield open_screen
    for each in screens:
        each.close()


def a_run(path: Path) -> Path:
    """A run with two steps of three parameters, and a loss."""
    new_run(path, PARAMS)
    publish_next(path, "metrics", metrics(range(2), [2.0, 1.0]))
    publish_next(path, "extremes", extremes(range(2), PARAMS))
    return path


def settle(shown: Screen, last_step: int = 1) -> None:
    """Tick until the run's rows are shown."""

    def there() -> bool:
        shown.tick()
        return bool(shown.snapshots) and shown.snapshots[0].last_step == last_step

    wait_until(there)


def press(figure: Figure, key: str) -> None:
    """Press a key over the figure."""
    KeyEvent("key_press_event", figure.canvas, key)._process()  # type: ignore[attr-defined]


def readers() -> list[Reader]:
    """The threads that read."""
    return [thread for thread in threading.enumerate() if isinstance(thread, Reader)]


def test_a_tick_says_when_there_is_something_new(path: Path, watch: Open) -> None:
    """It says so once for each change of the run, and otherwise not, however often it is asked."""
    shown = watch()

    def quiet() -> bool:
        return not any(shown.tick() for _ in range(20))

    wait_until(shown.tick)
    assert quiet()
    a_run(path)
    assert shown.fresh
    settle(shown)
    # Its parts and what is found in them come one after the other, as fast as the machine reads.
    wait_until(quiet)
    assert not shown.fresh
    before = pixels(shown.figure)
    publish_next(path, "metrics", metrics([2], [9.0]))
    wait_until(lambda: shown.fresh)
    wait_until(lambda: shown.tick() and shown.snapshots[0].last_step == 2)
    assert (pixels(shown.figure) != before).any()
    wait_until(quiet)
    close_run(path, 2)
    wait_until(lambda: shown.tick() and "closed" in shown.said())


def test_before_the_run_exists_it_says_that_it_waits(path: Path, watch: Open) -> None:
    """The words stand where the title will be, and look like it."""
    shown = watch()
    assert shown.tick()
    assert shown.figure.get_suptitle() == shown.said() == "no run yet: waiting for it"
    places = [(text.get_position()[0], text.get_ha(), text.get_color(), text.get_fontsize()) for text in titles(shown)]
    a_run(path)
    settle(shown)
    assert shown.figure.get_suptitle().startswith("run  ● running")
    assert [(t.get_position()[0], t.get_ha(), t.get_color(), t.get_fontsize()) for t in titles(shown)] == places
    assert places == [(0.01, "left", LIGHT.ink, 11.0)]


def titles(shown: Screen) -> list:  # type: ignore[type-arg]
    """The title, if it has one."""
    return [text for text in shown.figure.texts if text.get_text()]


def test_while_a_long_run_is_opened_it_says_how_far_it_is(watch: Open) -> None:
    """In megabytes, of those that there are."""
    shown = watch()
    (reader,) = readers()
    reader.read = (20_000_000, 1_234_000_000)
    assert shown.said() == "reading: 20 of 1,234 MB"
    assert shown.tick()
    assert shown.figure.get_suptitle() == shown.said()


def test_an_untitled_screen_has_no_title(path: Path, watch: Open) -> None:
    """Where a surface says by itself how the runs are, the figure does not."""
    shown = watch(titled=False)
    shown.tick()
    assert not titles(shown)
    a_run(path)
    settle(shown)
    assert not titles(shown)
    assert shown.said().startswith("run  ● running")


def test_the_age_of_the_last_row_goes_on_without_rows(path: Path, watch: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """When time goes by and nothing comes, the title says so."""
    now = [1_767_225_601.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    a_run(path)
    shown = watch()
    settle(shown)
    assert "last row just now" in shown.figure.get_suptitle()
    assert not shown.tick()
    now[0] += 300
    assert shown.tick()
    assert "last row 5 min ago" in shown.figure.get_suptitle()
    assert not shown.tick()


def test_keys_choose_the_view(path: Path, watch: Open) -> None:
    """2 shows the layers, 3 the first parameter, 4 the activations, 1 the overview again, each with its rows."""
    a_run(path)
    shown = watch()
    settle(shown)
    seen = [pixels(shown.figure)]
    for key, view in (("2", View.LAYERS), ("3", View.PARAM), ("4", View.ACTIVATIONS), ("1", View.OVERVIEW)):
        press(shown.figure, key)
        assert shown.options.view is view
        settle(shown)
        seen.append(pixels(shown.figure))
    assert shown.options.param == "conv.weight"
    assert [(one != other).any() for one, other in itertools.pairwise(seen)] == [True] * 4
    assert (seen[0] != seen[4]).mean() < 0.01


def test_the_key_x_goes_round_the_x_axes(path: Path, watch: Open, opened: list[Runs]) -> None:
    """Step, time of day, time since the beginning, and step again; nothing is read again."""
    a_run(path)
    shown = watch()
    settle(shown)
    labels = []
    for _ in range(4):
        labels.append(shown.figure.axes[-1].get_xlabel())
        press(shown.figure, "x")
        assert shown.tick()
        assert shown.figure.axes[0].lines
    assert labels == ["step", "time", "time since the run began", "step"]
    assert len(opened) == 1


def test_the_key_m_turns_the_map_of_histograms_into_mountains_and_back(path: Path, watch: Open) -> None:
    """It changes how a parameter is shown, and nothing else."""
    a_run(path)
    shown = watch()
    settle(shown)
    before = shown.options
    for expected in ("ridge", "map"):
        press(shown.figure, "m")
        assert shown.options == dataclasses.replace(before, histograms=Histograms(expected))


def test_other_keys_do_nothing(path: Path, watch: Open) -> None:
    """Nor does a key that the toolkit cannot name, or 3 while no parameter is known."""
    shown = watch()
    look = shown.options
    for key in ("5", "a", "", "3", "ctrl+1"):
        press(shown.figure, key)
    KeyEvent("key_press_event", shown.figure.canvas, None)._process()  # type: ignore[attr-defined]
    assert shown.options == look
    a_run(path)
    settle(shown)
    press(shown.figure, "3")
    assert shown.options.param == "conv.weight"


def test_a_click_on_a_row_of_the_layers_opens_it(path: Path, watch: Open) -> None:
    """The figure then shows that parameter's bands."""
    a_run(path)
    shown = watch(ViewOptions(view=View.LAYERS))
    settle(shown)
    click(shown.figure.axes[0], 0, 2)
    assert (shown.options.view, shown.options.param) == (View.PARAM, "fc.weight")
    settle(shown)
    assert shown.figure.get_suptitle().startswith("fc.weight  in  run")
    assert [axes.get_ylabel() for axes in shown.figure.axes] == ["value", "gradient"]
    assert all(axes.collections for axes in shown.figure.axes)


@pytest.mark.slow
def test_a_click_elsewhere_does_nothing(path: Path, watch: Open) -> None:
    """Not on the colour bar, beside the axes, with another button, in another view, nor while the figure is zoomed."""
    a_run(path)
    shown = watch(ViewOptions(view=View.LAYERS))
    click(shown.figure.axes[0], 0, 0)
    settle(shown)
    look = shown.options
    strip, bar = shown.figure.axes
    click(bar, 0.5, sum(bar.get_ylim()) / 2)
    click(strip, 0, -5)
    click(strip, 0, 1, MouseButton.RIGHT)
    toolbar = zoom(strip, (-0.4, 0.4), (0.4, -0.4))
    click(strip, 0, 0)
    assert shown.options == look
    toolbar.zoom()
    settle(shown)
    press(shown.figure, "1")
    settle(shown)
    look = shown.options
    click(shown.figure.axes[0], 1, 1)
    assert shown.options == look


def test_x_keeps_to_the_toolbar_while_it_zooms(path: Path, watch: Open) -> None:
    """There it restricts the zoom to the x axis, so it does not change the axis."""
    a_run(path)
    shown = watch()
    settle(shown)
    toolbar = zoom(shown.figure.axes[0], (0, 1), (1, 2))
    seen = []
    for _ in range(2):
        press(shown.figure, "x")
        seen.append(shown.options.x)
        toolbar.zoom()
    assert seen == [XAxis.STEP, XAxis.WALL]


def test_only_what_has_to_be_is_read_again(path: Path, watch: Open, opened: list[Runs]) -> None:
    """Other axes, colours and smoothing draw what is known; another view, filter or run is read."""
    a_run(path)
    shown = watch()
    settle(shown)
    known = shown.snapshots
    for look in (
        ViewOptions(dark=True),
        ViewOptions(smoothing=0.1, x=XAxis.WALL),
        ViewOptions(metrics="lr", statistic="value_absmax"),
    ):
        shown.look_at(look)
        assert shown.tick()
        assert shown.snapshots is known
    assert len(opened) == 1
    for count, look in enumerate(
        (ViewOptions(params="fc"), ViewOptions(view=View.LAYERS), ViewOptions(run="run"), ViewOptions(loss="a")), 2
    ):
        shown.look_at(look)
        assert len(opened) == count
        assert len(readers()) == 1
        settle(shown)


@pytest.mark.slow
def test_looking_quickly_at_many_things_leaves_one_reader(path: Path, watch: Open) -> None:
    """However fast keys come, one thread reads, and the last look is what is shown."""
    a_run(path)
    shown = watch()
    settle(shown)
    for number in range(40):
        press(shown.figure, "1223"[number % 4])
        if number % 7 == 0:
            shown.tick()
        assert len(readers()) == 1
    press(shown.figure, "2")
    settle(shown)
    assert shown.options.view is View.LAYERS
    assert np.asarray(shown.figure.axes[0].images[0].get_array()).shape == (3, 2)
    shown.close()
    assert not readers()


def test_an_error_of_the_reader_is_raised_where_it_is_handled(path: Path, watch: Open) -> None:
    """Not in a callback, but by the next tick."""
    shown = watch()
    (reader,) = readers()
    path.mkdir()
    (path / "new.json").write_text('{"format": 99}')
    (path / "new.json").rename(path / "run.json")
    reader.join(30)
    press(shown.figure, "x")
    with pytest.raises(LogError, match="upgrade"):
        shown.tick()


def test_what_cannot_be_opened_is_raised_by_the_next_tick(tmp_path: Path) -> None:
    """A key that leads to what fails does not raise into the toolkit."""
    looks: list[ViewOptions] = []

    def open_runs(look: ViewOptions) -> Runs:
        looks.append(look)
        if len(looks) > 1:
            raise OSError("inotify limit reached")
        return Runs([tmp_path / "run"], look, poll_seconds=0.05)

    shown = Screen(canvas(), open_runs, ViewOptions())
    press(shown.figure, "2")
    with pytest.raises(OSError, match="inotify limit"):
        shown.tick()
    shown.close()
    assert not readers()


def test_a_closed_screen_is_quiet(path: Path, watch: Open, opened: list[Runs]) -> None:
    """Its thread has ended; keys, clicks and ticks that still come do nothing, and it may be closed again."""
    a_run(path)
    shown = watch(ViewOptions(view=View.LAYERS))
    settle(shown)
    shown.close()
    assert not readers()
    press(shown.figure, "1")
    click(shown.figure.axes[0], 0, 0)
    assert not shown.tick()
    shown.close()
    assert len(opened) == 1
    assert not readers()


def test_a_redraw_fits_another_size(path: Path, watch: Open) -> None:
    """After the figure has another size, the same rows are drawn for it."""
    a_run(path)
    shown = watch()
    settle(shown)
    shown.figure.set_size_inches(3.6, 6.4)
    shown.redraw()
    shown.figure.canvas.draw()
    axes = shown.figure.axes[0]
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_window_extent().y0 >= axes.get_window_extent().y1 - 1


def limits(shown: Screen) -> dict[str, tuple[tuple[float, float], tuple[float, float]]]:
    """The ends of each panel's axes."""
    return {name: (axes.get_xlim(), axes.get_ylim()) for name, axes in shown.drawing.panels.items()}


def test_a_zoom_is_among_the_options_and_stays_in_other_views(path: Path, watch: Open) -> None:
    """While rows arrive, options change, and the view has the same x axis; y axes keep theirs by the panel's name."""
    a_run(path)
    shown = watch()
    settle(shown)
    whole = limits(shown)
    loss = shown.figure.axes[0]
    zoom(loss, (0.25, 0.75), (1.25, 1.75))
    zoomed = limits(shown)["loss"]
    assert zoomed != whole["loss"]
    shown.tick()
    kept = shown.options.zoom
    assert [part.rpartition(":")[0] for part in kept] == ["", "loss"]
    publish_next(path, "extremes", extremes([2], PARAMS))
    settle(shown, 2)
    assert limits(shown)["loss"] == zoomed
    for change in (
        {"dark": True},
        {"view": View.PARAM, "param": "conv.bias"},
        {"view": View.LAYERS},
        {"view": View.OVERVIEW},
    ):
        shown.look_at(dataclasses.replace(shown.options, **change))
        settle(shown, 2)
        assert shown.options.zoom == kept
        (x, y) = next(iter(limits(shown).values()))
        assert x == pytest.approx(zoomed[0], abs=1e-5)
    assert y == pytest.approx(zoomed[1], abs=1e-5)
    shown.look_at(dataclasses.replace(shown.options, x=XAxis.RELATIVE))
    settle(shown, 2)
    assert [part.rpartition(":")[0] for part in shown.options.zoom] == ["loss"]
    toolbar = shown.figure.canvas.toolbar
    assert toolbar is not None
    toolbar.home()
    shown.tick()
    assert shown.options.zoom == ()


@pytest.mark.parametrize("asked", ["1e299,-1e299", "1e-300,2e-300"])
@pytest.mark.parametrize("view", View)
@pytest.mark.parametrize("x", [XAxis.STEP, XAxis.WALL])
def test_any_zoom_can_be_drawn(path: Path, watch: Open, asked: str, view: View, x: XAxis) -> None:
    """However far away, and whatever panel it is for; where there is none, it waits for its panel."""
    a_run(path)
    panels = "loss:1e299,-1e299", "accuracy:-5,-4", "value:1e-300,2e-300", "rows:7,9", "no:where:1,2"
    shown = watch(ViewOptions(view, param="conv.bias", x=x, scale=Scale.LOG, zoom=(asked, *panels)))
    settle(shown)
    shown.figure.canvas.draw()
    shown.tick()
    assert "no:where:1,2" in shown.options.zoom
    assert all(np.isfinite(ends).all() for panel in limits(shown).values() for ends in panel)
