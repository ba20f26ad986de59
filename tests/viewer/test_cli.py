"""The command ``viewer`` as users run it: its words, its files and its exit codes, in a process of its own."""

import json
import os
import pkgutil
import re
import shlex
import signal
import subprocess
import sys

import pytest

import viewer
from tests.logs import age_heartbeat, close_run, extremes, flip_bit, metrics, new_run, publish_next
from tests.viewing import view, viewing
from tests.waiting import wait_until
from tracer.log.store import Local as Path

# Several commands, one after the other, each as one argument: a process takes seconds to start.
COMMANDS = """
import shlex, sys
from viewer.cli import main

for command in sys.argv[1:]:
    try:
        main(shlex.split(command))
    except SystemExit as end:
        assert not end.code, command
"""
MODULES = ["viewer", *(module.name for module in pkgutil.walk_packages(viewer.__path__, "viewer."))]


def closed_run(path: Path) -> Path:
    """A run with five steps that has ended."""
    run = new_run(path)
    publish_next(run, "extremes", extremes(range(5)))
    publish_next(run, "metrics", metrics(range(5), range(5)))
    close_run(run, last_step=4)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A closed run."""
    return closed_run(tmp_path / "run")


@pytest.mark.slow
def test_importing_the_viewer_imports_no_torch() -> None:
    """No module of the viewer brings in torch, directly or through the log."""
    code = f"import {', '.join(module for module in MODULES if not module.endswith('__main__'))}"
    ended = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert {"viewer.surfaces.window", "tracer.log.parts", "matplotlib"} <= imported
    assert not [name for name in imported if name.partition(".")[0] in ("torch", "torchvision")]


def test_what_watchdog_logs_stays_off_the_terminal() -> None:
    """An error of watchdog's threads, which cost a wake-up at most, is not printed."""
    code = "import logging, viewer.read.waker; logging.getLogger('watchdog.observers').error('a thread is inactive')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert ended.stderr == b""


def test_a_closed_run_is_saved_once(run: Path, tmp_path: Path) -> None:
    """``--save`` writes the figure of a finished run, says how the run is, and ends."""
    code, said, complained = view(tmp_path, run, "--save", "figure.png")
    assert (code, complained) == (0, "")
    assert "run is closed at step 4: figure.png" in said
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_name_in_a_script_that_the_font_lacks_is_drawn_without_a_word(tmp_path: Path) -> None:
    """Letters that matplotlib cannot draw cost no warning on the terminal."""
    run = closed_run(tmp_path / "実験")
    assert view(tmp_path, run, "--save", "figure.png")[::2] == (0, "")


# Settings of a user that would change a figure, or end it, and one that no matplotlib takes.
SETTINGS = {
    "text.usetex": "True",
    "font.size": "25",
    "font.family": "serif",
    "savefig.facecolor": "red",
    "savefig.dpi": "33",
    "savefig.bbox": "tight",
    "axes.prop_cycle": "cycler('color', ['k'])",
    "lines.linewidth": "7",
    "path.sketch": "5, 5, 5",
    "axes.formatter.limits": "-1, 1",
    "legend.fontsize": "30",
    "date.epoch": "2000-01-01T00:00:00",
    "figure.autolayout": "True",
    "backend": "nonsense",
}


def test_a_users_matplotlibrc_changes_no_figure(run: Path, tmp_path: Path) -> None:
    """With any matplotlibrc, and with a MPLBACKEND that does not exist, each file is the same, byte for byte."""
    looks = {"wall": "--x wall", "overview": "", "layers": "--view layers", "param": "--param weight --dark"}
    commands = [shlex.join([str(run), "--save", f"{name}.png", *look.split()]) for name, look in looks.items()]
    for folder, backend in (("usual", ""), ("odd", "nonsense")):
        (tmp_path / folder).mkdir()
        lines = [f"{name}: {value}\n" for name, value in SETTINGS.items()] if backend else []
        (tmp_path / folder / "matplotlibrc").write_text("".join(lines))
        display, program = {"MPLBACKEND": backend}, ("-c", COMMANDS)
        with viewing(tmp_path / folder, *commands, display=display, program=program) as viewer:
            assert (viewer.wait(), viewer.complained()) == (0, "")
    usual, odd = ([(tmp_path / folder / f"{name}.png").read_bytes() for name in looks] for folder in ("usual", "odd"))
    assert usual == odd
    assert len(set(usual)) == len(looks)


@pytest.mark.slow
@pytest.mark.parametrize(("surface", "place"), [("--save a.png", "matplotlibrc"), ("--text", "user/matplotlibrc")])
def test_a_matplotlibrc_that_cannot_be_read_ends_nothing(run: Path, tmp_path: Path, surface: str, place: str) -> None:
    """One that is not UTF-8, in the current folder or elsewhere, is passed over."""
    (tmp_path / "user").mkdir()
    (tmp_path / place).write_bytes(b"font.size: \xff\n")
    with viewing(tmp_path, run, *surface.split(), display={"MATPLOTLIBRC": str(tmp_path / "user")}) as viewer:
        assert (viewer.wait(), viewer.complained()) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["nonsense", "module://nothing", "tkagg", "webagg", "nbagg"])
def test_a_broken_backend_ends_nothing(run: Path, tmp_path: Path, backend: str) -> None:
    """A backend that does not exist, or needs a display that is not there, leads to the page, and is no matter else."""
    display = {"MPLBACKEND": backend}
    with viewing(tmp_path, run, display=display) as viewer:
        viewer.wait_for("Ctrl-C ends the page at")
    commands = [shlex.join(map(str, each)) for each in (("check", run), ("diff", run, run), (run, "--text"))]
    with viewing(tmp_path, *commands, display=display, program=("-c", COMMANDS)) as viewer:
        assert (viewer.wait(), viewer.complained()) == (0, "")


@pytest.mark.slow
def test_the_terminal_needs_no_backend(run: Path) -> None:
    """``--text`` imports neither pyplot nor anything that draws pixels."""
    code = "import sys; from viewer.cli import main\ntry: main(sys.argv[1:])\nfinally: print(*sys.modules, sep='\\n')"
    ended = subprocess.run([sys.executable, "-c", code, run, "--text"], capture_output=True, text=True, check=True)
    modules = ended.stdout.splitlines()
    assert "matplotlib.ticker" in modules
    assert not [name for name in modules if name.startswith(("matplotlib.pyplot", "matplotlib.backends.backend_"))]


def test_the_newest_run_is_the_default(tmp_path: Path) -> None:
    """Without a run named, the newest under runs/ is opened."""
    for age, name in ((200, "old"), (100, "new"), (300, "older")):
        then = closed_run(tmp_path / "runs" / name).stat().st_mtime - age
        os.utime(tmp_path / "runs" / name / "run.json", (then, then))
    code, said, _ = view(tmp_path, "--save", "figure.png")
    assert code == 0
    assert "viewer: new is closed" in said


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("--save figure.png", 1, "no run under runs/ yet"),
        ("nowhere --save figure.png", 1, "nowhere holds no run"),
        ("newer --save figure.png", 1, "upgrade"),
        ("newer", 1, "upgrade"),
        ("run --save figure.jpg", 2, ".png, .svg, .pdf, .csv"),
        ("run --save figure", 2, ".png, .svg, .pdf, .csv"),
        ("run --save nowhere/figure.png", 2, "no folder nowhere"),
        ("run --follow", 2, "--follow needs --save"),
        ("run other --save figure.png", 1, "other holds no run"),
        ("run --runs other --save figure.png", 1, "--runs matches"),
        ("run --runs ( --save figure.png", 2, "no regular expression"),
        ("run --params ( --save figure.png", 2, "no regular expression"),
        ("run --params bias --save figure.png", 1, "no parameter's name matches 'bias': there are weight"),
        ("run --param wieght --save figure.png", 1, "no row of a parameter 'wieght': try weight"),
        ("run --rank 5 --save figure.png", 1, "no rank 5: there are 0"),
        (
            "run --view layers --statistic grad_norm --save figure.png",
            1,
            "has no 'grad_norm': recorded were grad_absmax",
        ),
        ("run newer --view layers --save figure.png", 2, "--view layers shows one run, and 2 are given"),
        ("run --save /proc/figure.png", 1, "/proc/figure.png: No such file or directory"),
        ("run --view param --save figure.png", 2, "--view param needs --param"),
        ("run --view sideways --save figure.png", 2, "sideways"),
        ("run --statistic norm --save figure.png", 2, "no statistic 'norm'"),
        ("run --rank second --save figure.png", 2, "no rank 'second'"),
        ("run --smoothing 1 --save figure.png", 2, "smoothing 1.0"),
        ("run --x sideways --save figure.png", 2, "sideways"),
        ("run --scale cubic --save figure.png", 2, "cubic"),
        ("run --poll 0 --save figure.png", 2, "--poll"),
        ("run --poll inf --save figure.png", 2, "--poll"),
        ("run --web --save figure.png", 2, "give one of them"),
        ("run --web --text", 2, "give one of them"),
    ],
)
def test_what_cannot_be_done_is_one_error(run: Path, tmp_path: Path, arguments: str, code: int, words: str) -> None:
    """A wrong run ends with code 1 and one line, a wrong command line with code 2; neither leaves a file or a trace."""
    info = json.loads((new_run(tmp_path / "newer") / "run.json").read_text())
    (tmp_path / "newer" / "run.json").write_text(json.dumps(info | {"format": 99}))
    found, _, complained = view(tmp_path, *arguments.split())
    assert (found, words in complained) == (code, True), complained
    assert "Traceback" not in complained
    assert code == 2 or len(complained.splitlines()) == 1
    assert not list(tmp_path.glob("*figure*"))


def texts(file: Path) -> list[str]:
    """What is written in an SVG."""
    return re.findall(r"<!-- (.*?) -->", file.read_text(encoding="utf-8"))


def test_several_runs_are_saved_side_by_side(run: Path, tmp_path: Path) -> None:
    """Runs and folders of runs may be named together, and ``--runs`` picks some of them by their names."""
    for name in ("lr-0.1", "lr-0.01", "other"):
        closed_run(tmp_path / "runs" / name)
    code, said, complained = view(tmp_path, run, "runs", "--runs", "^run$|^lr", "--save", "figure.svg")
    assert (code, complained) == (0, "")
    assert sorted(line.split()[1] for line in said.splitlines()) == ["lr-0.01", "lr-0.1", "run"]
    assert "3 runs ■ 3 closed" in [" ".join(text.split()) for text in texts(tmp_path / "figure.svg")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--param weight", "weight in run ■ closed"),
        ("--view layers --statistic value_absmax --params weight", "value_absmax"),
        ("--x relative --scale log --rank 0", "time since the run began"),
    ],
)
def test_what_is_asked_for_is_what_is_shown(run: Path, tmp_path: Path, arguments: str, words: str) -> None:
    """Options choose the view, the parameters, the statistic, the rank and the axes."""
    code, _, complained = view(tmp_path, run, *arguments.split(), "--save", "figure.svg")
    assert (code, complained) == (0, "")
    assert words in " ".join(" ".join(texts(tmp_path / "figure.svg")).split())


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--poll", "0.2"]], ids=["events", "polling"])
def test_following_begins_before_the_run_and_ends_with_it(tmp_path: Path, options: list[str]) -> None:
    """``--save --follow`` waits for the run, draws each change, and ends once the run is closed, not when it stops."""
    run, file = tmp_path / "run", tmp_path / "figure.png"
    pictures: set[bytes] = set()

    def wait_for_a_picture() -> None:
        wait_until(lambda: file.exists() and file.read_bytes() not in pictures)
        pictures.add(file.read_bytes())

    # That it had stopped for a while stays as history, which who comes later does not see.
    with viewing(tmp_path, run, "--save", file, "--follow", "--no-findings", *options) as viewer:
        viewer.wait_for("holds no run yet: waiting for it")
        new_run(run)
        wait_for_a_picture()
        for step in range(2):
            publish_next(run, "extremes", extremes([step], values={"grad_max": [10.0**step]}))
            wait_for_a_picture()
        age_heartbeat(run, 60)
        wait_for_a_picture()
        publish_next(run, "metrics", metrics([3], [0.5]))
        close_run(run)
        assert viewer.wait() == 0, viewer.complained()
        assert "run is closed at step 3" in viewer.said()
    assert view(tmp_path, run, "--save", tmp_path / "once.png", "--no-findings")[0] == 0
    assert file.read_bytes() == (tmp_path / "once.png").read_bytes()
    assert file.read_bytes() not in pictures


def test_without_a_display_it_serves_a_page(run: Path, tmp_path: Path) -> None:
    """Where no window can be shown, the figure is in a page, and the viewer says so."""
    with viewing(tmp_path, run) as viewer:
        viewer.wait_for("no window can be opened here")
        viewer.wait_for("http://127.0.0.1:")


def test_ctrl_c_ends_it_quietly(tmp_path: Path) -> None:
    """Ctrl-C ends the following with code 130, without a traceback, and leaves the figure but no half of one."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes([0]))
    folder = tmp_path / "figures"
    folder.mkdir()
    with viewing(tmp_path, run, "--save", folder / "figure.png", "--follow") as viewer:
        wait_until((folder / "figure.png").exists)
        viewer.process.send_signal(signal.SIGINT)
        assert viewer.wait() == 130
        assert viewer.complained().strip() == ""
    assert [path.name for path in folder.iterdir()] == ["figure.png"]


def test_a_damaged_part_does_not_end_it(run: Path, tmp_path: Path) -> None:
    """A run with a damaged part is drawn without it."""
    flip_bit(publish_next(run, "extremes", extremes([9])).path)
    code, said, complained = view(tmp_path, run, "--save", "figure.png")
    assert (code, complained) == (0, "")
    assert "at step 4" in said
