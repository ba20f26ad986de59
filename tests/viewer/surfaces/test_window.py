"""The window, on a real X server without a screen: it shows rows as they arrive, answers, and ends cleanly."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping

import pytest
from PIL import Image, ImageGrab, features

from tests.logs import close_run, extremes, metrics, new_run, publish_next
from tests.viewing import Viewing, viewing
from tests.waiting import wait_until
from tracer.log.store import Local as Path

pytest.importorskip("tkinter", reason="needs tkinter")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("Xvfb") is None, reason="needs Xvfb"),
    pytest.mark.skipif(not features.check("xcb"), reason="needs a Pillow that takes screenshots"),
]

# The viewer, whose window is closed as by its title bar when an empty line comes in; another line is a key.
TOLD_BY_LINES = """
import sys, threading
from matplotlib import pyplot
from viewer.cli import main

def listen():
    for line in sys.stdin:
        manager = pyplot.get_current_fig_manager()
        window, key = manager.window, line.strip()
        if key:
            widget = manager.canvas.get_tk_widget()
            window.after(0, lambda: (widget.focus_force(), widget.event_generate(f"<KeyPress-{key}>")))
        else:
            window.after(0, lambda: window.tk.eval(window.protocol("WM_DELETE_WINDOW")))

threading.Thread(target=listen, daemon=True).start()
main()
"""


@pytest.fixture(scope="module")
def display() -> Iterator[Mapping[str, str]]:
    """The environment of a process that has a display, with nothing on it."""
    read, write = os.pipe()
    with (
        os.fdopen(read) as number,
        subprocess.Popen(
            ["Xvfb", "-noreset", "-displayfd", str(write), "-screen", "0", "1200x1000x24"],
            pass_fds=[write],
            stderr=subprocess.DEVNULL,
        ) as server,
    ):
        os.close(write)
        yield {"DISPLAY": f":{number.readline().strip()}", "MPLBACKEND": "TkAgg"}
        server.terminate()


def screen(display: Mapping[str, str]) -> Image.Image:
    """What is to be seen now."""
    return ImageGrab.grab(xdisplay=display["DISPLAY"])


def colours(picture: Image.Image) -> set[tuple[int, ...]]:
    """The colours that occur in a picture."""
    return {colour for _, colour in picture.getcolors(1 << 24) or [] if isinstance(colour, tuple)}


BLUE, ORANGE = (0, 114, 178), (213, 94, 0)
# Of the layers' legend.
ALARM = (224, 0, 0)


def wait_for_colour(viewer: Viewing, display: Mapping[str, str], colour: tuple[int, ...]) -> None:
    """Wait until a colour is to be seen; the viewer must not end meanwhile."""
    wait_until(lambda: viewer.process.poll() is not None or colour in colours(screen(display)))
    assert viewer.process.poll() is None, viewer.complained()


def tell(viewer: Viewing, line: str) -> None:
    """Let a viewer that listens press a key, or be closed."""
    assert viewer.process.stdin is not None
    viewer.process.stdin.write(f"{line}\n".encode())
    viewer.process.stdin.flush()


@pytest.mark.smoke
def test_the_window_shows_rows_as_they_arrive(tmp_path: Path, display: Mapping[str, str]) -> None:
    """The window opens before the run exists, then shows its loss, then its gradients, and goes on after its end."""
    run = tmp_path / "run"
    with viewing(tmp_path, run, display=display) as viewer:
        viewer.wait_for("holds no run yet")
        wait_until(lambda: len(colours(screen(display))) > 10)
        assert not {BLUE, ORANGE} & colours(screen(display))
        publish_next(new_run(run), "metrics", metrics(range(9), range(9)))
        wait_for_colour(viewer, display, BLUE)
        assert ORANGE not in colours(screen(display))
        publish_next(run, "extremes", extremes(range(9)))
        wait_for_colour(viewer, display, ORANGE)
        before = screen(display)
        close_run(run)
        wait_until(lambda: screen(display) != before)
        assert viewer.process.poll() is None
        assert viewer.complained() == ""


def test_closing_the_window_ends_the_viewer(tmp_path: Path, display: Mapping[str, str]) -> None:
    """Closing the window ends the process at once, with code 0 and without a word."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes(range(5)))
    with viewing(tmp_path, run, display=display, program=("-c", TOLD_BY_LINES)) as viewer:
        wait_for_colour(viewer, display, ORANGE)
        tell(viewer, "")
        assert viewer.wait() == 0, viewer.complained()
        assert viewer.complained() == ""
        assert "run is running" in viewer.said()


def test_ctrl_c_closes_the_window(tmp_path: Path, display: Mapping[str, str]) -> None:
    """Ctrl-C ends the viewer with code 130, without a traceback, even while it draws row after row."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes(range(5)))
    with viewing(tmp_path, run, display=display) as viewer:
        wait_for_colour(viewer, display, ORANGE)
        publish_next(run, "extremes", extremes(range(5, 10)))
        viewer.process.send_signal(signal.SIGINT)
        assert viewer.wait() == 130
        assert viewer.complained().strip() == ""


def test_a_run_that_cannot_be_read_closes_the_window(tmp_path: Path, display: Mapping[str, str]) -> None:
    """When the folder turns out to hold a newer format, the window closes and the one line of error says so."""
    run = tmp_path / "run"
    with viewing(tmp_path, run, display=display) as viewer:
        viewer.wait_for("holds no run yet")
        run.mkdir()
        (run / "new.json").write_text('{"format": 99}')
        (run / "new.json").rename(run / "run.json")
        assert viewer.wait() == 1
        assert "upgrade" in viewer.complained()
        assert len(viewer.complained().splitlines()) == 1


@pytest.mark.parametrize("view", ["overview", "layers", "param"])
def test_a_window_is_neither_blank_nor_frozen(tmp_path: Path, display: Mapping[str, str], view: str) -> None:
    """In every view, each publish of rows changes the picture, which is never of one colour."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes(range(5)))
    arguments = ["--view", view, *(["--param", "weight"] if view == "param" else [])]
    with viewing(tmp_path, run, *arguments, display=display) as viewer:
        wait_until(lambda: len(colours(screen(display))) > 10 or viewer.process.poll() is not None)
        wait_for_stillness(display)
        for number in range(1, 4):
            before = screen(display)
            count = 5 * 10**number
            grown = [float(step + 1) * 10**number for step in range(count)]
            publish_next(run, "extremes", extremes(range(count, 2 * count), values={"grad_max": grown}))
            wait_for_change(viewer, display, before)
            assert viewer.process.poll() is None, viewer.complained()
            assert len(colours(screen(display))) > 10
            wait_for_stillness(display)
        assert viewer.complained() == ""


def wait_for_change(viewer: Viewing, display: Mapping[str, str], before: Image.Image) -> None:
    """Wait until another picture is to be seen."""
    wait_until(lambda: screen(display) != before or viewer.process.poll() is not None)


def wait_for_stillness(display: Mapping[str, str]) -> None:
    """Wait until the picture stays as it is for some ticks of the window."""
    seen, times = screen(display), 0

    def still() -> bool:
        nonlocal seen, times
        before, seen = seen, screen(display)
        times = times + 1 if seen == before else 0
        return times >= 15

    wait_until(still)


def test_keys_switch_the_view(tmp_path: Path, display: Mapping[str, str]) -> None:
    """Pressed in the window, 2 shows the layers, 3 a parameter, 1 the overview again; then it closes cleanly."""
    run = new_run(tmp_path / "run")
    publish_next(run, "metrics", metrics(range(9), range(9)))
    publish_next(run, "extremes", extremes(range(9)))
    with viewing(tmp_path, run, display=display, program=("-c", TOLD_BY_LINES)) as viewer:
        wait_for_colour(viewer, display, ORANGE)
        assert ALARM not in colours(screen(display))
        tell(viewer, "2")
        wait_for_colour(viewer, display, ALARM)
        assert ORANGE not in colours(screen(display))
        tell(viewer, "3")
        wait_for_colour(viewer, display, ORANGE)
        assert ALARM not in colours(screen(display))
        assert BLUE in colours(screen(display))
        tell(viewer, "1")
        tell(viewer, "")
        assert viewer.wait() == 0, viewer.complained()
        assert viewer.complained() == ""


def test_a_run_that_cannot_be_read_closes_the_layers_too(tmp_path: Path, display: Mapping[str, str]) -> None:
    """Whatever is shown, an error ends it with one line."""
    run = tmp_path / "run"
    with viewing(tmp_path, run, "--view", "layers", "--dark", display=display) as viewer:
        viewer.wait_for("holds no run yet")
        wait_until(lambda: len(colours(screen(display))) > 10)
        run.mkdir()
        (run / "new.json").write_text('{"format": 99}')
        (run / "new.json").rename(run / "run.json")
        assert viewer.wait() == 1
        assert len(viewer.complained().splitlines()) == 1
