"""The viewer in a terminal: on a real pty as over ssh, and into a pipe; and what its charts make of numbers."""

import contextlib
import dataclasses
import io
import itertools
import math
import os
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from tests import terminals
from tests.logs import close_run, extremes, metrics, new_run, publish_next
from tests.terminals import ENTER, HOME, LEAVE, SHOW_CURSOR, Terminal, bare, resize
from tests.viewing import shown, view, viewing
from tests.waiting import wait_until
from tracer.log.ranks import beat
from tracer.log.store import Local as Path
from viewer.options import Scale, View, ViewOptions, XAxis
from viewer.read.live import Live
from viewer.read.runs import Runs
from viewer.snapshot import Curve, Heatmap, Snapshot
from viewer.surfaces.chart import Line, chart, reduced
from viewer.surfaces.terminal import Pace, _redraw
from viewer.surfaces.text import picture

NAN, INF = math.nan, math.inf
EVIL = "[red]x[/red]\x1b[31m"


@contextlib.contextmanager
def on_terminal(
    folder: Path, *arguments: object, size: tuple[int, int] = (80, 24), **environment: str
) -> Iterator[Terminal]:
    """A viewer with --text on a terminal."""
    with terminals.on_terminal(folder, *arguments, "--text", size=size, **environment) as terminal:
        yield terminal


def trained(path: Path, steps: int = 40, closed: bool = True) -> Path:
    """A run whose loss falls from 1, whose accuracy rises to 1, and whose gradient grows."""
    run = new_run(path)
    publish_next(run, "metrics", metrics(range(steps), [1 / (step + 1) for step in range(steps)]))
    publish_next(run, "metrics", metrics(range(steps), [step / (steps - 1) for step in range(steps)], "accuracy"))
    grown = [0.125 * (step + 1) for step in range(steps)]
    publish_next(run, "extremes", extremes(range(steps), values={"grad_max": grown}))
    if closed:
        close_run(run, last_step=steps - 1)
    return run


def row(text: str, name: str) -> list[str]:
    """What stands behind a name in a table, which comes last, and may have a chart at its left."""
    *_, line = [line for line in text.splitlines() if re.search(rf"(^|\s){re.escape(name)} ", line)]
    return line.rpartition(f"{name} ")[2].split()


def drawn(snapshots: list[Snapshot], look: ViewOptions, width: int = 80, height: int = 24) -> list[str]:
    """The lines of a picture, without colours."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(picture(snapshots, look, 0.0, width, height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def snapshot(run: Path, look: ViewOptions | None = None) -> Snapshot:
    """A run as it is now."""
    live = Live(run, look)
    try:
        return shown(live)
    finally:
        live.close()


def test_a_closed_run_is_printed_once_and_its_picture_stays(tmp_path: Path) -> None:
    """A finished run's picture is left in the scrollback, with the log's numbers, and the viewer ends with 0."""
    trained(tmp_path / "run")
    with on_terminal(tmp_path, "run") as terminal:
        assert terminal.end() == 0
    assert ENTER not in terminal.raw
    text = bare(terminal.raw)
    assert "run ■ closed · step 39" in text
    assert row(text, "loss") == ["0.025", "0.025", "1"]
    assert row(text, "accuracy")[-3:] == ["1", "0", "1"]
    assert row(text, "max gradient") == ["5", "0.125", "5"]
    assert row(text, "min value") == ["-1", "-1", "-1"]
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 80


def test_a_running_run_is_redrawn_in_place_until_it_closes(tmp_path: Path) -> None:
    """The picture appears with the run's first rows, follows the next ones, and the last one stays when it closes."""
    run = tmp_path / "run"
    with on_terminal(tmp_path, run) as terminal:
        terminal.wait_for("holds no run yet")
        publish_next(new_run(run), "metrics", metrics(range(5), [8, 7, 6, 5, 4.5]))
        assert row(terminal.wait_for("step 4 "), "loss") == ["4.5", "4.5", "8"]
        assert terminal.read().count(ENTER) == 1
        publish_next(run, "metrics", metrics(range(5, 10), [3, 3, 3, 3, 0.25]))
        assert row(terminal.wait_for("step 9 "), "loss") == ["0.25", "0.25", "8"]
        close_run(run, last_step=9)
        assert terminal.end() == 0
    before, _, after = terminal.raw.partition(LEAVE)
    assert before.count(HOME) > 2
    assert "■ closed · step 9" in bare(after)
    assert row(bare(after), "loss") == ["0.25", "0.25", "8"]


@pytest.mark.parametrize("cost_seconds", [0.01, 0.2, 1.0])
def test_redraws_cost_a_small_share_of_a_core(cost_seconds: float) -> None:
    """Where news come without an end, redraws take less than 3 % of 233 s, whatever one costs; a few come at once."""
    now = spent = 30.0
    pace = Pace(lambda: now, lambda: spent)
    pace.rest_seconds()
    redraws: list[float] = []
    while now < 30 + 233:
        now += cost_seconds
        spent += cost_seconds
        redraws.append(now)
        now += pace.rest_seconds()
    assert spent - 30 < 0.03 * 233
    assert redraws[1] - redraws[0] < 60 + cost_seconds
    assert len(redraws) * cost_seconds > 0.01 * 233
    assert cost_seconds > 0.2 or redraws[2] < 30 + 1.2


def test_ctrl_c_ends_it_quietly(tmp_path: Path) -> None:
    """Ctrl-C gives the terminal back as it was, with the last picture and without a word, and the code is 130."""
    run = trained(tmp_path / "run", closed=False)
    with on_terminal(tmp_path, run) as terminal:
        terminal.wait_for("step 39")
        os.write(terminal.keyboard, b"\x03")
        assert terminal.end() == 130
    after = terminal.raw.partition(LEAVE)[2]
    assert SHOW_CURSOR in terminal.raw
    assert "● running · step 39" in bare(after)
    assert "Traceback" not in terminal.raw
    assert "viewer:" not in after


def test_ctrl_c_while_it_draws_leaves_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Ctrl-C comes before the first picture is whole, it stays on the terminal."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rich.live.Live.update", interrupt)
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    runs = Runs([trained(tmp_path / "run", closed=False)])
    with contextlib.closing(runs), pytest.raises(KeyboardInterrupt):
        _redraw(runs, console)
    assert isinstance(console.file, io.StringIO)
    assert "step 39" in console.file.getvalue()


@pytest.mark.slow
def test_the_picture_takes_the_room_of_a_larger_terminal(tmp_path: Path) -> None:
    """Where the window is drawn larger, so is the picture, without anything new in the log."""
    run = trained(tmp_path / "run", closed=False)
    with on_terminal(tmp_path, run, size=(60, 20)) as terminal:
        first = terminal.wait_for("step 39")
        assert max(map(len, first.splitlines())) <= 60
        resize(terminal.keyboard, 130, 40)
        # The run must stay alive: that it has stopped would be news, too.
        wait_until(lambda: not beat(run, 0) and len(terminal.frame().splitlines()) == 40)  # type: ignore[func-returns-value]
        assert max(map(len, terminal.frame().splitlines())) > 100


@pytest.mark.parametrize("arguments", [("--view", "layers"), pytest.param(("--param", EVIL), marks=pytest.mark.slow)])
def test_names_are_text(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Neither rich's markup nor an escape code in a name is obeyed: brackets are shown, control characters left out."""
    run = new_run(tmp_path / "run\x1b[31m", ["b", EVIL])
    publish_next(run, "extremes", extremes(range(5), ["b", EVIL]))
    publish_next(run, "metrics", metrics(range(5), range(5), EVIL))
    close_run(run, last_step=4)
    with on_terminal(tmp_path, tmp_path, *arguments) as terminal:
        assert terminal.end() == 0
    assert "[red]x[/red][31m" in bare(terminal.raw)
    assert "run[31m ■ closed" in bare(terminal.raw)
    assert "\x1b[31m" not in terminal.raw
    said = view(tmp_path, tmp_path, "--text")[1]
    assert "[red]x[/red][31m 4 " in said
    assert "\x1b" not in said


def broken(path: Path) -> Path:
    """A run whose loss is NaN from step 7 on, and whose gradient is infinite at step 8, and there again."""
    run = new_run(path)
    publish_next(run, "metrics", metrics(range(10), [1.0] * 7 + [NAN] * 3))
    publish_next(run, "extremes", extremes(range(10), values={"grad_max": [3.0] * 8 + [INF, 2.0]}))
    close_run(run, last_step=9)
    return run


@pytest.mark.slow
def test_nan_is_named_with_its_step(tmp_path: Path) -> None:
    """A NaN stands in the table with its first step, in red, beside what was finite, and is marked in the chart."""
    run = broken(tmp_path / "run")
    with on_terminal(tmp_path, run) as terminal:
        assert terminal.end() == 0
    text = bare(terminal.raw)
    assert row(text, "loss") == ["NaN/inf", "1", "1", "step", "7"]
    assert row(text, "max gradient") == ["2", "2", "3", "step", "8"]
    assert re.search(r"\x1b\[1;31m *step 7", terminal.raw)
    assert "!" in text


@pytest.mark.slow
def test_without_colours_nothing_is_lost(tmp_path: Path) -> None:
    """With NO_COLOR there is no colour code at all, and the marks say what colours said."""
    run = broken(tmp_path / "run")
    with on_terminal(tmp_path, run, NO_COLOR="1") as terminal:
        assert terminal.end() == 0
    assert not re.findall(r"\x1b\[[0-9;]*(?:3[0-9]|4[0-9]|9[0-7])[;m]", terminal.raw)
    assert "!" in bare(terminal.raw)
    assert "step 7" in bare(terminal.raw)


@pytest.mark.slow
def test_a_terminal_without_unicode_gets_question_marks(tmp_path: Path) -> None:
    """Where the locale has no dots and blocks, the numbers are there all the same."""
    run = trained(tmp_path / "run")
    with on_terminal(tmp_path, run, PYTHONIOENCODING="ascii") as terminal:
        assert terminal.end() == 0
    assert row(bare(terminal.raw), "loss") == ["0.025", "0.025", "1"]
    assert "run ? closed" in bare(terminal.raw)


@pytest.mark.slow
def test_a_dumb_terminal_gets_lines(tmp_path: Path) -> None:
    """Where the terminal cannot be redrawn, it gets what a pipe gets."""
    run = trained(tmp_path / "run")
    with on_terminal(tmp_path, run, TERM="dumb") as terminal:
        assert terminal.end() == 0
    assert "\x1b" not in terminal.raw
    assert "loss 0.025 " in terminal.raw


def test_a_run_that_cannot_be_read_gives_the_terminal_back(tmp_path: Path) -> None:
    """When the run turns out to be of a newer format, one line says so, and the code is 1."""
    run = trained(tmp_path / "run", closed=False)
    with on_terminal(tmp_path, run) as terminal:
        terminal.wait_for("step 39")
        (run / "new.json").write_text('{"format": 99}')
        (run / "new.json").rename(run / "run.json")
        publish_next(run, "metrics", metrics([40], [1.0]))
        assert terminal.end() == 1
    after = terminal.raw.partition(LEAVE)[2]
    assert "viewer: " in after
    assert "upgrade" in after
    assert "Traceback" not in terminal.raw


def test_a_pipe_gets_a_line_for_each_news_and_its_end(tmp_path: Path) -> None:
    """Into a pipe go plain lines: state, step and the newest numbers, one for what is new; they end with the run."""
    run = new_run(tmp_path / "run")
    with viewing(tmp_path, run, "--text") as viewer:
        publish_next(run, "metrics", metrics(range(5), [8, 7, 6, 5, 4.5]))
        viewer.wait_for("loss 4.5")
        publish_next(run, "extremes", extremes(range(10), values={"grad_max": [1.0] * 9 + [NAN]}))
        viewer.wait_for("step 9")
        close_run(run, last_step=9)
        assert viewer.wait() == 0
        assert viewer.complained() == ""
        said = viewer.said()
    assert "\x1b" not in said
    lines = said.splitlines()[1:]
    assert all(line.startswith("run ") for line in lines)
    assert lines == sorted(set(lines), key=lines.index)
    assert "closed · step 9" in lines[-1]
    assert "loss 4.5 · min value -1 · max value 1 · min gradient -2 · max gradient NaN/inf · " in lines[-1]
    assert "gradient NaN or inf from step 9" in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_several_runs_have_a_line_each(tmp_path: Path, columns: int) -> None:
    """Of several runs each has a letter, and a row with its state, steps and numbers, as many as find room."""
    trained(tmp_path / "runs" / "first", steps=40)
    trained(tmp_path / "runs" / "second", steps=80)
    with on_terminal(tmp_path, "runs", size=(columns, 30)) as terminal:
        assert terminal.end() == 0
    text = bare(terminal.raw)
    assert "2 runs ■ 2 closed" in text
    rows = [[cell for cell in row(text, name) if not re.match(r"\d+[-:]\d+", cell)] for name in ("a first", "b second")]
    found = 3 if columns == 40 else 6
    assert rows[0][:found] == ["closed", "40", "0.025", "0.025", "1", "1"][:found]
    assert rows[1][:found] == ["closed", "80", "0.0125", "0.0125", "1", "1"][:found]
    assert max(map(len, text.splitlines())) <= columns
    said = view(tmp_path, "runs", "--text")[1].splitlines()
    assert [line.split()[0] for line in said[1:]] == ["first", "second"]


def test_a_line_has_room_for_a_few_of_thousands_of_metrics(tmp_path: Path) -> None:
    """Its length does not grow with the number of metrics, whose rest is counted, with or without a NaN."""
    run = new_run(tmp_path / "run")
    rows = [metrics(range(2), [1.0, float("nan")], name=f"m{number:03d}") for number in range(999)]
    publish_next(run, "metrics", pa.concat_tables(rows))
    close_run(run)
    said = view(tmp_path, run, "--text")[1].splitlines()[1]
    assert "m019 NaN/inf · 979 more metrics (--metric REGEX) · m000 NaN or inf from step 1" in said
    assert "m020" not in said


@pytest.mark.slow
def test_a_run_without_news_has_no_line(tmp_path: Path) -> None:
    """What is new of one run is told of this run alone."""
    trained(tmp_path / "runs" / "first", steps=40)
    second = trained(tmp_path / "runs" / "second", steps=80, closed=False)
    with viewing(tmp_path, "runs", "--text") as viewer:
        viewer.wait_for("second ● running · step 79")
        publish_next(second, "metrics", metrics([80], [9.0]))
        viewer.wait_for("loss 9 ")
        close_run(second, last_step=80)
        assert viewer.wait() == 0
        assert [line.split()[0] for line in viewer.said().splitlines()[1:]] == ["first", "second", "second", "second"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("run --text --param weigh", 1, "has no row of a parameter 'weigh': try weight"),
        ("run --text --params nothing", 1, "no parameter's name matches 'nothing'"),
        ("run --text --save a.png", 2, "--text and --save"),
    ],
)
def test_what_cannot_be_shown_is_an_error(tmp_path: Path, arguments: str, code: int, words: str) -> None:
    """A name that a finished run has not, or options that exclude each other, are one line and an exit code."""
    trained(tmp_path / "run")
    ended, _, complained = view(tmp_path, *arguments.split())
    assert ended == code
    assert words in complained


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (140, 45)])
@pytest.mark.parametrize(
    "look", [ViewOptions(), ViewOptions(View.LAYERS), ViewOptions(View.PARAM, param="b.weight")], ids=lambda it: it.view
)
def test_a_picture_fits_its_terminal(tmp_path: Path, look: ViewOptions, size: tuple[int, int]) -> None:
    """Whatever is shown, in whatever size, no line is too long, no number cut, and there are not too many lines."""
    run = new_run(
        tmp_path / ("long " * 30), names := ["b.weight", "実" * 40, *(f"c.{index}.weight" for index in range(90))]
    )
    rows = {"grad_max": [NAN if step == 9 else 1e-30 for step in range(10) for _ in names]}
    publish_next(run, "extremes", extremes(range(10), names, rows))
    for index in range(30):
        name = f"loss of {'abc'[index % 3] * (index + 1)}"
        publish_next(run, "metrics", metrics(range(10), [-1.234e-300 * step for step in range(10)], name))
    width, height = size
    lines = drawn([snapshot(run, look)], look, width, height)
    assert len(lines) <= height
    assert not [line for line in lines[1:] if re.search(r"[\d.e-]…", line)]
    console = Console(width=1000)
    assert max(console.measure(line).maximum for line in map(console.render_str, lines)) <= width


@pytest.mark.parametrize("numbers", [[1.0], [0.0] * 5, [5e-324, 1e308], [-1e308, 1e308], [NAN, NAN], [NAN, 1.0, NAN]])
@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("x", XAxis)
def test_every_number_can_be_drawn(tmp_path: Path, numbers: list[float], scale: Scale, x: XAxis) -> None:
    """No number, and no absence of one, breaks a chart or makes a library warn, on any scale and x axis."""
    steps = range(len(numbers))
    bad = [step for step in steps if math.isnan(numbers[step])]
    curve = Curve("loss", steps, numbers, numbers, numbers, bad, [1.7e9 + step for step in steps])
    found = Snapshot("run", "running", len(numbers) - 1, (curve,), started=1.7e9)
    lines = drawn([found], ViewOptions(scale=scale, x=x))
    assert any("!" in line for line in lines) == bool(bad)


ANY = st.floats() | st.sampled_from([NAN, INF, -INF, 1.7e308, -1.7e308, 5e-324, 1e306, 0.0, 1.0])
# The times and steps that a log can hold, in the units of the axes.
UNITS = {XAxis.STEP: 1, XAxis.RELATIVE: 1e6, XAxis.WALL: 86_400e6}
STEPS = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 1000)
POINTS = st.lists(st.tuples(STEPS, ANY, ANY, ANY, st.booleans()), min_size=1, max_size=12)


@given(
    st.lists(POINTS, min_size=1, max_size=2),
    st.sampled_from(Scale),
    st.sampled_from(XAxis),
    st.integers(1, 80),
    st.integers(1, 12),
)
@example([[(step, 1.0, 1.7e308, INF if step % 2 else 1.0, False) for step in range(99)]], Scale.AUTO, XAxis.STEP, 20, 9)
@example([[(0, 1.0, 1e7, 0.0, False), (1, 1.0, 1.0, -1.0, False)]], Scale.LOG, XAxis.STEP, 20, 9)
@example([[(0, 1.0, NAN, 1.0, False), (1, NAN, 2.0, 1.0, False)]], Scale.AUTO, XAxis.STEP, 20, 9)
@example([[(-(1 << 63), 1.0, 1.0, 1.0, True), (1 << 62, 1.0, 1.0, 1.0, True)]], Scale.LOG, XAxis.WALL, 20, 9)
@example([[(0, 0.0, 1.7e308, 1.0, False)]], Scale.LOG, XAxis.STEP, 1, 1)
def test_a_chart_survives_any_numbers(
    runs: list[list[tuple[int, float, float, float, bool]]], scale: Scale, x: XAxis, width: int, height: int
) -> None:
    """Whatever a log holds, the chart library ends neither this process nor the picture, and nothing warns."""
    lines = []
    for points in runs:
        places = [step / UNITS[x] if x is not XAxis.STEP else step for step, *_ in points]
        _, lows, highs, smooth, bad = zip(*points, strict=True)
        alarms = list(itertools.compress(places, bad))
        lines.append(Line(places, lows, highs, "#ff0000", "o", None if bad[0] else smooth, alarms))
    text = chart(lines, ViewOptions(scale=scale, x=x), Scale.LINEAR, width, height)
    assert max(map(len, text.plain.splitlines())) <= width


def test_where_numbers_add_up_beyond_float64_there_is_a_picture(tmp_path: Path) -> None:
    """Two ranks that log 1.7e308 at a step, smoothed beside usual numbers, have a curve in a log of any length."""
    run = new_run(tmp_path / "run")
    for rank in range(2):
        publish_next(run, "metrics", metrics(range(900), [1.7e308, 1.0, 2.0] * 300, rank=rank), rank=rank)
    assert row("\n".join(drawn([snapshot(run)], ViewOptions())), "loss") == ["2", "1", "1.7e+308"]


@pytest.mark.parametrize("size", [(1, 1), (7, 50), (200, 2), (65_535, 65_535)])
@pytest.mark.parametrize("view", [View.OVERVIEW, View.LAYERS])
def test_no_size_and_no_magnitude_is_too_large_or_small(view: View, size: tuple[int, int]) -> None:
    """A picture of a log with the ends of float64 in it is drawn in a terminal of any size."""
    magnitudes = np.array([[5e-324, 1.0, 1.7976931348623157e308]])
    curve = Curve("loss", [0, 1], [0.0, 1.7e308], [-1.7e308] * 2, [1.7e308] * 2, [])
    layers = Heatmap(["a"], 0, 1, magnitudes, np.isnan(magnitudes))
    assert drawn([Snapshot("run", "running", 2, (curve,), layers=layers)], ViewOptions(view), *size)


def test_no_spike_is_lost_between_columns() -> None:
    """Reduced to columns, points keep the lowest and the highest number of each, as numpy finds them."""
    generator = np.random.default_rng(0)
    low = generator.normal(size=5000)
    low[1234] = -1e9
    high = low + generator.random(5000)
    x = np.linspace(0, 1, 5000)
    place, lows, highs, joined = reduced(x, low, high, 60)
    column = np.minimum((x * 60).astype(int), 59)
    assert lows.tolist() == [low[column == each].min() for each in range(60)]
    assert highs.tolist() == [high[column == each].max() for each in range(60)]
    assert (place * 60 - 0.5).round(9).tolist() == list(range(60))
    assert joined.all()


def test_a_line_is_broken_where_there_is_no_number() -> None:
    """No line is drawn across a NaN, but one is drawn across columns in which no step was logged."""
    low = np.array([1.0, NAN, 2.0, 3.0])
    place, lows, _, joined = reduced(np.array([0.0, 0.2, 0.5, 0.99]), low, low, 10)
    assert lows.tolist() == [1, 2, 3]
    assert place.tolist() == [0.05, 0.55, 0.95]
    assert joined.tolist() == [True, False, True]


def test_a_gap_in_a_chart_is_empty() -> None:
    """Between the numbers before and after many NaNs, there is nothing in the chart."""
    numbers = [1.0] * 40 + [NAN] * 20 + [1.0] * 40
    text = chart([Line(range(100), numbers, numbers, "#ff0000", "o")], ViewOptions(), Scale.LINEAR, 52, 10).plain
    assert re.search(r"[⠁-⣿]{18,} {8,11}[⠁-⣿]{18,}o", text)


def test_a_metric_that_is_asked_for_has_a_chart_of_its_own(tmp_path: Path) -> None:
    """As in the figure, a metric that is neither a loss nor an accuracy is not on the accuracy's scale."""
    run = new_run(tmp_path / "run")
    publish_next(run, "metrics", metrics(range(9), [0.5] * 9, "accuracy"))
    publish_next(run, "metrics", metrics(range(9), [1e-4] * 9, "lr"))
    for asked, headers in (("", ["accuracy", "lr"]), ("lr", ["lr"]), ("^acc", ["accuracy"])):
        look = ViewOptions(metrics=asked)
        assert drawn([snapshot(run, look)], look)[1].split() == headers


def test_a_chart_stands_where_its_numbers_are() -> None:
    """A rising line begins at the lower left and ends at the upper right, beside the numbers of its axes."""
    steps = range(100)
    line = Line(steps, steps, steps, "#ff0000", "o")
    *rows, x_axis, x_labels = chart([line], ViewOptions(), Scale.LINEAR, 60, 20).plain.splitlines()
    assert rows[0].endswith("o")
    assert [row.index(next(dot for dot in row if "⠀" < dot <= "⣿")) for row in rows[1:]] == sorted(
        (row.index(next(dot for dot in row if "⠀" < dot <= "⣿")) for row in rows[1:]), reverse=True
    )
    labels = [float(row.partition("┤")[0]) for row in rows if "┤" in row]
    assert labels == [80, 60, 40, 20, 0]
    assert x_axis.count("┬") == len(x_labels.split())
    assert x_labels.split()[:2] == ["0", "20"]


def test_layers_show_magnitudes_by_height_and_mark() -> None:
    """A parameter's blocks are as high as its magnitude on a log scale; zero is 0, and NaN is !."""
    sizes = np.array([[1e-7, 1e-7], [1e-3, 1e-3], [1.0, 1.0], [0.0, 0.0], [1.0, NAN], [NAN, NAN]])
    alarms = np.zeros((6, 2), dtype=np.bool_)
    alarms[4, 1] = True
    layers = Heatmap(["a.x", "a.y", "a.z", "a.zero", "a.nan", "a.not"], 0, 5, sizes, alarms)
    lines = drawn([Snapshot("run", "running", 9, layers=layers)], ViewOptions(View.LAYERS))
    blocks = {line.split()[0]: line.split()[1:] for line in lines}
    assert [set(blocks[name][0]) for name in ("x", "y", "z", "zero", "nan")] == [{"▁"}, {"▅"}, {"█"}, {"0"}, {"█", "!"}]
    assert [blocks[name][-1] for name in ("x", "y", "z", "zero", "nan", "not")] == [
        "1e-07", "0.001", "1", "0", "NaN/inf", "–",
    ]  # fmt: skip
    assert lines[1].split() == ["a", "step", "0", "9", "newest"]


def test_layers_stand_at_their_times_where_these_are_asked_for() -> None:
    """A column is as wide as its time was long, and the line above names the first and the last time."""
    sizes = np.array([[1e-6, 1e-6, 1.0]])
    layers = Heatmap(["a"], 0, 5, sizes, np.zeros((1, 3), dtype=np.bool_), [1e9 + 60, 1e9 + 120, 1e9 + 600])
    run = Snapshot("run", "running", 14, layers=layers, started=1e9)
    lines = drawn([run], ViewOptions(View.LAYERS, x=XAxis.RELATIVE))
    blocks = lines[2].split()[1]
    assert blocks.count("█") == pytest.approx(len(blocks) * 480 / 600, abs=2)
    assert lines[1].split() == ["0", "s", "10", "min", "newest"]
    falling, good = np.linspace(2, 1, 500)[None, :], np.zeros((1, 500), dtype=np.bool_)
    many = Heatmap(["a"], 0, 1, falling, good, [1e9 + second for second in range(500)])
    lines = drawn([dataclasses.replace(run, layers=many)], ViewOptions(View.LAYERS, x=XAxis.RELATIVE))
    assert lines[2].split()[-1] == "1", "the newest number, and not the largest at about its time"


@pytest.mark.parametrize(
    "names", [[f"block.{i}.{j}.w" for i in range(10) for j in range(9)], [f"w{i}" for i in range(90)]]
)
def test_no_alarm_is_lost_among_more_parameters_than_lines(names: list[str]) -> None:
    """Parameters that find no line of their own share one, by module where they have any, and so do their alarms."""
    sizes, alarms = np.full((90, 700), 1e-3), np.zeros((90, 700), dtype=np.bool_)
    alarms[41, 333] = True
    sizes[77, 500] = 5e4
    layers = Heatmap(names, 0, 1, sizes, alarms)
    lines = drawn([Snapshot("run", "running", 699, layers=layers)], ViewOptions(View.LAYERS))
    assert len(lines) <= 24
    assert sum("!" in line for line in lines[2:-1]) == 1
    assert sum("█" in line for line in lines[2:-1]) == 1
    assert "5e+04" in lines[-1]
