"""The viewer inside Python: figures for papers, and what ``show`` says outside of a notebook."""

import contextlib
import html
import math
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import matplotlib
import polars as pl
import pytest
from IPython.core.pylabtools import print_figure
from matplotlib import dates, pyplot
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

import viewer
from tests.logs import close_run, extremes, metrics, new_run, publish_next
from tests.waiting import wait_until
from tracer.log.run import LogError
from tracer.log.store import Local as Path
from tracer.log.store import at
from viewer.draw.theme import DARK, own_settings
from viewer.read.runs import Runs
from viewer.surfaces import notebook


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A closed run with a loss, another metric and two parameters."""
    run = new_run(tmp_path / "run", params=["conv.weight", "fc.bias"])
    publish_next(run, "extremes", extremes(range(5), params=["conv.weight", "fc.bias"]))
    publish_next(run, "metrics", metrics(range(5), range(5)))
    publish_next(run, "metrics", metrics(range(5), [0.1] * 5, "lr"))
    close_run(run, 4)
    return run


def labels(figure: Figure) -> list[str]:
    """The names of the panels."""
    return [axes.get_ylabel() for axes in figure.axes]


def drawn(axes: Axes) -> dict[str, list[float]]:
    """Curves by the first word of their legend."""
    return {str(line.get_label()).split()[0]: list(map(float, line.get_ydata())) for line in axes.lines}  # type: ignore[arg-type]


def test_a_figure_of_a_run_belongs_to_who_asked_for_it(run: Path, tmp_path: Path) -> None:
    """It is drawn, can be saved in a paper's format, and pyplot knows nothing of it."""
    figure = viewer.figure(str(run))
    assert isinstance(figure.canvas, FigureCanvasAgg)
    assert not pyplot.get_fignums()
    assert drawn(figure.axes[0])["loss"] == [0, 1, 2, 3, 4]
    figure.savefig(tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF-")


def test_a_figure_shows_what_is_asked_for(run: Path) -> None:
    """Every view has its panels; a parameter's name alone asks for its view; other fields of a look go with it."""
    panels = ["loss", "accuracy", "lr", "extremes"]
    assert labels(viewer.figure(run)) == labels(viewer.figure(run, "overview")) == panels
    ticks = [tick.get_text() for tick in viewer.figure(run, view="layers").axes[0].get_yticklabels()]
    assert [name for name in ticks if name] == ["conv.weight", "fc.bias"]
    assert labels(viewer.figure(run, "param", param="fc.bias")) == ["value", "gradient"]
    assert labels(viewer.figure(run, param="fc.bias", rank=0)) == ["value", "gradient"]
    figure = viewer.figure(run, metrics="lr", dark=True, x="relative", scale="linear")
    assert drawn(figure.axes[0])["lr"] == [0.1] * 5
    assert figure.axes[-1].get_xlabel() == "time since the run began"
    assert figure.axes[-1].get_yscale() == "linear"
    assert to_hex(figure.get_facecolor()) == DARK.ground


def test_a_figure_shows_several_runs(run: Path, tmp_path: Path) -> None:
    """Several folders, or a folder of runs, are side by side."""
    other = new_run(tmp_path / "other")
    publish_next(other, "metrics", metrics(range(3), [7, 8, 9]))
    for figure in (viewer.figure([run, str(other)]), viewer.figure(tmp_path)):
        assert drawn(figure.axes[0]) == {"run": [0, 1, 2, 3, 4], "other": [7, 8, 9]}


def test_a_notebook_shows_a_figure_as_a_picture(run: Path, tmp_path: Path) -> None:
    """A figure that is the last value of a cell is seen, although pyplot does not know it."""
    picture = tmp_path / "picture.png"
    picture.write_bytes(viewer.figure(run)._repr_png_())  # type: ignore[attr-defined]
    with Image.open(picture) as image:
        assert image.size == (1000, 800)


def test_a_users_style_changes_no_figure_and_is_kept(run: Path, tmp_path: Path) -> None:
    """A style sheet and settings are those of the user's own figures alone: ours is the same, byte for byte."""
    viewer.figure(run).savefig(tmp_path / "usual.png")
    usual_inline = print_figure(viewer.figure(run))
    odd: Any = {"text.usetex": True, "font.size": 25, "savefig.facecolor": "red", "savefig.dpi": 33, "figure.dpi": 50}
    odd["savefig.pad_inches"] = 2
    with matplotlib.rc_context():
        pyplot.style.use("dark_background")
        matplotlib.rcParams.update(odd)
        before = matplotlib.rcParams.copy()
        figure = viewer.figure(run)
        figure.canvas.draw()
        figure.savefig(tmp_path / "odd.png")
        assert print_figure(viewer.figure(run)) == usual_inline
        assert matplotlib.rcParams.copy() == before
    assert (tmp_path / "odd.png").read_bytes() == (tmp_path / "usual.png").read_bytes()


def test_times_do_not_depend_on_the_day_from_which_a_user_counts(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where dates are counted from another day than 1970's first, the x axis shows the same days."""
    monkeypatch.setattr(dates, "_epoch", "2000-01-01T00:00:00")
    figure = viewer.figure(run, x="wall")
    figure.canvas.draw()
    assert dates.num2date(figure.axes[-1].dataLim.x0).year == 2026


def test_what_a_cell_sets_while_a_picture_is_drawn_stays() -> None:
    """The settings of the user are given back after an error, too, but for those that were changed meanwhile."""
    with matplotlib.rc_context({"font.size": 25, "lines.linewidth": 7}):
        with contextlib.suppress(ZeroDivisionError), own_settings(), own_settings():
            assert matplotlib.rcParams["font.size"] == matplotlib.rcParamsDefault["font.size"]
            matplotlib.rcParams["font.size"] = 13
            raise ZeroDivisionError
        assert (matplotlib.rcParams["font.size"], matplotlib.rcParams["lines.linewidth"]) == (13, 7)


@pytest.mark.parametrize(
    ("look", "error", "words"),
    [
        ({"colour": "red"}, TypeError, "no 'colour': there are view, params, param, statistic"),
        ({"view": "histogram"}, ValueError, "no view 'histogram': give overview, layers, param"),
        ({"x": "epoch"}, ValueError, "no x 'epoch': give step, wall, relative"),
        ({"scale": 2}, ValueError, "no scale 2: give auto, linear, log, symlog"),
        ({"view": "param"}, ValueError, "needs param"),
        ({"params": "("}, ValueError, "no regular expression"),
        ({"rank": "first"}, ValueError, "no rank 'first'"),
        ({"smoothing": 1.5}, ValueError, "smoothing 1.5"),
        ({"smoothing": "much"}, TypeError, "smoothing='much' is no float"),
        ({"dark": 1}, TypeError, "dark=1 is no bool"),
        ({"param": 1}, TypeError, "param=1 is no str"),
        ({"metrics": ["lr"]}, TypeError, "metrics=.'lr'. is no str"),
        ({"hide": "("}, ValueError, "no regular expression"),
    ],
)
@pytest.mark.parametrize("ask", [viewer.figure, viewer.show])
def test_a_look_that_cannot_be_is_an_error_that_says_what_there_is(
    run: Path, ask: Any, look: dict[str, Any], error: type[Exception], words: str
) -> None:
    """A field that does not exist, of a wrong type or with a wrong value is named at once, in either function."""
    with pytest.raises(error, match=words):
        ask(run, **look)


def test_what_is_not_there_is_an_error_of_the_log(run: Path, tmp_path: Path) -> None:
    """A run, a parameter or parameters that do not exist are said to be missing, in the sentence of the command."""
    with pytest.raises(LogError, match="nowhere holds no run"):
        viewer.figure([run, tmp_path / "nowhere"])
    with pytest.raises(LogError, match=r"no row of a parameter 'conv.weigth': try conv\.weight"):
        viewer.figure(run, param="conv.weigth")
    with pytest.raises(LogError, match=r"no parameter's name matches 'layer': there are conv\.weight, fc\.bias"):
        viewer.figure(run, params="layer")
    with pytest.raises(ValueError, match="no run is named"):
        viewer.figure([])


def test_findings_are_a_frame_and_a_text(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several runs, each has its findings or a word that there are none; one that cannot be read has its reason."""
    ill = new_run(tmp_path / "<ill>")
    publish_next(ill, "metrics", metrics(range(3), [1.0, math.nan, math.nan]))
    close_run(ill, 2)
    (new_run(tmp_path / "torn") / "run.json").write_text("{")
    checked = viewer.check([run, ill, tmp_path / "torn"])
    found = checked.frame.filter(pl.col("severity") == "error")
    assert found.select("run", "first_step", "last_step").rows() == [(str(ill), 1, 2)]
    (finding,) = [each for each in checked.runs[1].findings if each.severity == "error"]
    assert found.select("kind", "sentence", "advice").rows() == [(finding.kind, finding.sentence, finding.advice)]
    lines = repr(checked).splitlines()
    assert lines[0] == f"{run}: closed at step 4; nothing found"
    assert f"  error at step 1: {finding.sentence}" in lines
    assert lines[-1].startswith(f"{tmp_path / 'torn' / 'run.json'} cannot be read")
    assert "&lt;ill&gt;: closed at step 2" in checked._repr_html_()
    assert "<ill>" not in checked._repr_html_()
    assert html.escape(finding.advice) in checked._repr_html_()
    assert viewer.check(run).frame.columns == checked.frame.columns
    monkeypatch.chdir(tmp_path)
    assert [each.name for each in viewer.check("<ill>").runs] == ["<ill>"]
    assert capsys.readouterr() == ("", "")
    with pytest.raises(LogError, match="holds no run"):
        viewer.check(tmp_path / "none")
    with pytest.raises(ValueError, match="no run is named"):
        viewer.check([])


def test_runs_of_one_name_keep_their_names_where_the_process_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened under a relative path is read on, and is not taken for another run."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        publish_next(new_run(tmp_path / name / "run"), "metrics", metrics([0], [1.0]))
    runs = Runs([at("a/run"), at("b/run")])
    runs.refresh()
    names = runs.names
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert runs.refresh() is None
    publish_next(Path(tmp_path / "a" / "run"), "metrics", metrics([1], [1.0]))
    snapshots = runs.refresh()
    runs.close()
    assert snapshots is not None
    assert [(snapshot.name, snapshot.last_step) for snapshot in snapshots] == [("a/run", 1), ("b/run", 0)]
    assert runs.names == names == ("a/run", "b/run")


def test_showing_outside_of_a_notebook_says_what_to_do_instead(run: Path) -> None:
    """In a script, ``show`` names the function and the command that can be used there."""
    with pytest.raises(RuntimeError, match=r"viewer\.figure, or the command `viewer`"):
        viewer.show(run)


class Shown:
    """A picture that follows a run, in a notebook that keeps what it is told.

    Attributes:
        pictures: All that were shown.
        at_end_of_cell: What the notebook calls then.
    """

    def __init__(self, run: Path) -> None:
        self.pictures: list[bytes] = []
        self.at_end_of_cell: list[Any] = []
        handle: Any = SimpleNamespace(update=lambda image, **_: self.pictures.append(image.data))
        events: Any = SimpleNamespace(
            register=lambda _, call: self.at_end_of_cell.append(call),
            unregister=lambda _, call: self.at_end_of_cell.remove(call),
        )
        self.showing = notebook.Showing(Runs([run]), handle, events)


def live_run(folder: Path) -> Path:
    """A run of three steps that goes on."""
    live = new_run(folder / "live")
    publish_next(live, "metrics", metrics(range(3), range(3)))
    return live


def end(run: Path) -> None:
    """Let it end three steps later."""
    publish_next(run, "metrics", metrics(range(3, 6), range(3, 6)))
    close_run(run, 5)


def truth(run: Path) -> bytes:
    """The picture of a run as it is now."""
    picture: bytes = viewer.figure(run)._repr_png_()  # type: ignore[attr-defined]
    return picture


def test_a_cell_ends_with_the_last_picture_of_a_run_that_has_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it would have rested, a saved notebook shows a run that closed; one that goes on keeps no cell."""
    monkeypatch.setattr(notebook, "_LEAST_SECONDS", 600.0)
    shown = Shown(live := live_run(tmp_path))
    wait_until(lambda: bool(shown.pictures))
    (at_end,) = shown.at_end_of_cell
    at_end(None)
    assert (len(shown.pictures), shown.at_end_of_cell) == (1, [at_end])
    end(live)
    at_end(None)
    assert shown.pictures[1:] == [truth(live)]
    assert shown.at_end_of_cell == []


def test_stop_shows_the_rows_of_that_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that came while the picture rested are in the last one."""
    monkeypatch.setattr(notebook, "_LEAST_SECONDS", 600.0)
    shown = Shown(live := live_run(tmp_path))
    wait_until(lambda: bool(shown.pictures))
    end(live)
    shown.showing.stop()
    assert shown.pictures[1:] == [truth(live)]


def test_a_picture_takes_three_hundredths_of_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each but the first, its thread rests for 97/3 of the time that it computed, and not for much longer."""
    live = live_run(tmp_path)
    rests: list[tuple[float, float]] = []

    class Rest(threading.Event):
        """No rest at all: more rows come at once."""

        woke = 0.0

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            rests.append((time.thread_time() - self.woke, timeout))
            publish_next(live, "metrics", metrics([2 + len(rests)], [1.0]))
            self.woke = time.thread_time()
            return False

    monkeypatch.setattr(notebook, "threading", SimpleNamespace(Event=Rest, Thread=threading.Thread))
    shown = Shown(live)
    wait_until(lambda: len(rests) > 3)
    shown.showing.stop()
    assert len(shown.pictures) >= 4
    for computed, rested in rests[1:]:
        assert computed * 97 / 3 <= rested <= max(computed * 50, 1.0)


def test_the_package_is_light_until_a_name_is_used() -> None:
    """Importing the viewer imports nothing heavy; its functions bring neither torch nor pyplot."""
    script = """
import sys, viewer
light = {"matplotlib", "polars", "pyarrow", "numpy"} & set(sys.modules)
viewer.show, viewer.figure, viewer.check
print(sorted(light | {"torch", "matplotlib.pyplot"} & set(sys.modules)), "matplotlib" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[] True"
    assert viewer.__all__ == ["check", "figure", "show"]
    assert set(viewer.__all__) <= set(dir(viewer))
    with pytest.raises(AttributeError, match="no attribute 'watch'"):
        viewer.watch  # noqa: B018
