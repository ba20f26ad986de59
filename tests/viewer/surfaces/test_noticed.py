"""What is wrong with a run, while it is watched: said and marked on every surface as it arises, and kept once over."""

import dataclasses
import io
import math
import shutil
import time
from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.text import Text
from rich.console import Console

import viewer
from tests.figures import canvas, check_contrast, check_texts, entries
from tests.halves import first_of
from tests.logs import close_run, events, extremes, flip_bit, metrics, new_run, publish_next
from tests.viewer.surfaces.test_check import PARAMS, rows, written
from tests.viewing import all_shown, view, viewing
from tests.waiting import wait_until
from tracer.log.place import Place
from tracer.log.ranks import beat, close_rank
from tracer.log.store import Local as Path
from viewer.draw.layers import Layers
from viewer.draw.overview import Overview
from viewer.draw.panels import heading
from viewer.draw.parameter import Parameter
from viewer.options import View, ViewOptions, XAxis
from viewer.read.changes import changes
from viewer.read.monitor import FindingsMonitor
from viewer.read.runs import Runs
from viewer.snapshot import Curve, Finding, Severity, Snapshot
from viewer.surfaces.text import picture
from viewer.words import finding_words, noticed

NOW = 1e9


def finding(kind: str = "dead", first: int = 12, severity: Severity = Severity.WARNING, **others: object) -> Finding:
    """Something wrong with the parameter b.weight since a step."""
    given = {"param": "b.weight", "params": ("b.weight",), "last_step": 30, **others}
    return Finding(kind, f"{kind} title", severity, first_step=first, sentence="", advice="", **given)  # type: ignore[arg-type]


def snapshot(*findings: Finding, name: str = "run", **fields: object) -> Snapshot:
    """A run of which this is known to be wrong."""
    params = ("a.weight", "b.weight")
    return Snapshot(name, "running", 30, params=params, all_params=params, findings=findings, **fields)  # type: ignore[arg-type]


def watched(run: Path, look: ViewOptions) -> Snapshot:
    """A run as it is known once its findings are."""
    runs = Runs([run], look)
    try:
        (found,) = all_shown(runs)
        (found,) = runs.examine() or (found,)
        return found
    finally:
        runs.close()


def titles(snapshots: Sequence[Snapshot] | None) -> list[list[str]]:
    """The kinds of the findings of each run."""
    return [[finding.kind for finding in snapshot.findings] for snapshot in snapshots or ()]


# Findings of live runs.


def test_a_figure_does_not_wait_for_findings(tmp_path: Path) -> None:
    """Curves come first, findings after them, and both again where something is new."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(10)))
    runs = Runs([run])
    assert (titles(all_shown(runs)), runs.examine()) == ([[]], None)
    publish_next(run, "extremes", rows(range(10, 20), bad=[15]))
    assert titles(all_shown(runs)) == [[]]
    assert titles(runs.examine()) == [["nonfinite"]]
    assert runs.examine() is None
    publish_next(run, "extremes", rows(range(20, 30), bad=[25]))
    assert titles(all_shown(runs)) == [["nonfinite"]]
    (known,) = runs.examine() or ()
    assert known.findings[0].last_step == 25
    runs.close()


def test_a_resolved_finding_stays_as_history(tmp_path: Path) -> None:
    """A parameter without a gradient that gets one is no finding any more, but was one."""
    run = new_run(tmp_path / "run", PARAMS)
    monitor = FindingsMonitor(run)
    publish_next(run, "extremes", rows(range(30), unused=True))
    monitor.refresh()
    assert [(each.kind, each.resolved, each.last_step) for each in monitor.findings] == [("unused", False, 29)]
    publish_next(run, "extremes", rows(range(30, 60), bad=[50]))
    monitor.refresh()
    assert [(each.kind, each.resolved) for each in monitor.findings] == [("nonfinite", False), ("unused", True)]
    assert finding_words([snapshot(*monitor.findings)], ViewOptions())[1].startswith(
        "[2] warning, steps 0 to 29, resolved: "
    )


def test_figures_of_one_run_share_what_is_known_of_it(tmp_path: Path) -> None:
    """Whoever opens another view has the findings at once; while another reads, nobody waits for it."""
    run = written(tmp_path / "run", bad=[7])
    monitors: dict[tuple[Place, int | None, int | None], FindingsMonitor] = {}
    first, second = (Runs([run], ViewOptions(view), monitors=monitors) for view in (View.OVERVIEW, View.LAYERS))
    all_shown(first)
    monitors[run, None, None] = FindingsMonitor(run)
    with monitors[run, None, None].lock:
        assert first.examine() is None
    assert titles(first.examine()) == [["nonfinite"]]
    assert titles(all_shown(second)) == [["nonfinite"]]
    first.close()
    second.close()


def test_of_ranks_that_were_looked_at_few_are_remembered(tmp_path: Path) -> None:
    """Who goes through the ranks of a large run has the findings of each, and memory has an end."""
    run = new_run(tmp_path / "run", PARAMS)
    monitors: dict[tuple[Place, int | None, int | None], FindingsMonitor] = {}
    for rank in range(9):
        publish_next(run, "extremes", rows(range(30), bad=[7], rank=rank), rank=rank)
        runs = Runs([run], ViewOptions(rank=str(rank)), monitors=monitors)
        all_shown(runs)
        assert titles(runs.examine()) == [["nonfinite"]]
        runs.close()
    assert list(monitors) == [(run, rank, None) for rank in range(5, 9)]


def test_a_run_that_ended_is_read_again_once_it_is_resumed(tmp_path: Path) -> None:
    """What a closed run no longer needs in memory comes back with it."""
    run = written(tmp_path / "run", unused=True)
    runs = Runs([run])
    all_shown(runs)
    assert titles(runs.examine()) == [["unused"]]
    (run / "closed-r00000.json").unlink()
    publish_next(run, "events", events([30], "resumed", attempt=1))
    publish_next(run, "extremes", rows(range(30, 40), bad=[35], attempt=1))
    all_shown(runs)
    assert titles(runs.examine()) == [["nonfinite", "resumed", "unused"]]
    runs.close()


def test_what_an_abandoned_attempt_had_is_over(tmp_path: Path) -> None:
    """A run that ended with a NaN and goes on before it has one from before; what was over by then, was so."""
    run = written(tmp_path / "run", bad=[20])
    monitor = FindingsMonitor(run)
    monitor.refresh()
    assert [each.kind for each in monitor.findings] == ["nonfinite"]
    (run / "closed-r00000.json").unlink()
    publish_next(run, "events", events([10], "resumed", attempt=1))
    publish_next(run, "extremes", rows(range(10, 40), unused=True, attempt=1))
    monitor.refresh()
    nan, resumed = monitor.findings
    assert (nan.kind, nan.restart, resumed.kind) == ("nonfinite", 10, "resumed")
    for kind in ("before", "after"):
        monitor.findings += (finding(kind, last_step=30 if kind == "before" else 35),)
    publish_next(run, "events", events([35], "resumed", attempt=2))
    publish_next(run, "extremes", rows(range(35, 40), attempt=2))
    monitor.refresh()
    assert [(each.kind, each.resolved) for each in monitor.findings] == [
        ("nonfinite", True),
        ("resumed", False),
        ("before", True),
    ]
    assert monitor.findings[1].steps == (10, 35)


def test_a_job_that_loads_its_checkpoint_was_restarted_there(tmp_path: Path) -> None:
    """While that is loaded, it was resumed behind the last step; afterwards that is no history."""
    run = new_run(tmp_path / "run", PARAMS)
    monitor = FindingsMonitor(run)
    publish_next(run, "extremes", rows(range(30)))
    publish_next(run, "events", events([30], "resumed", attempt=1))
    monitor.refresh()
    assert [(each.kind, each.steps) for each in monitor.findings] == [("resumed", (30,))]
    publish_next(run, "events", events([20], "restored", attempt=1))
    publish_next(run, "extremes", rows(range(20, 40), attempt=1))
    monitor.refresh()
    assert [(each.kind, each.steps, each.resolved) for each in monitor.findings] == [("restored", (20,), False)]


def test_findings_are_looked_for_again_where_reading_was_interrupted(tmp_path: Path) -> None:
    """As by who looks at something else at this moment: what was read by then is not forgotten."""
    run = new_run(tmp_path / "run", PARAMS)
    monitor = FindingsMonitor(run)
    publish_next(run, "extremes", rows(range(10)))
    monitor.refresh()
    publish_next(run, "extremes", rows(range(10, 20), bad=[15]))
    with pytest.raises(InterruptedError):
        monitor.refresh(_interrupt)
    assert not monitor.current
    monitor.refresh()
    assert [each.kind for each in monitor.findings] == ["nonfinite"]


def test_a_run_that_has_ended_is_read_once(tmp_path: Path) -> None:
    """Another look at it, or another page, has its findings at once."""
    run = written(tmp_path / "run", bad=[7])
    monitor = FindingsMonitor(run)
    assert monitor.refresh() is not None
    assert monitor.refresh(_interrupt) is None
    assert monitor.current
    publish_next(run, "extremes", rows(range(30, 40)))
    with pytest.raises(InterruptedError):
        monitor.refresh(_interrupt)


def _interrupt(done: int, there: int) -> None:
    raise InterruptedError


def test_a_new_run_has_nothing_of_the_one_before(tmp_path: Path) -> None:
    """Where a run was deleted and another begun in its place, the first figure of that one has no findings of it."""
    run = written(tmp_path / "run", bad=[7])
    runs = Runs([run])
    all_shown(runs)
    assert titles(runs.examine()) == [["nonfinite"]]
    shutil.rmtree(run)
    assert titles(all_shown(runs)) == [["nonfinite"]]
    publish_next(new_run(run, PARAMS), "extremes", rows(range(5)))
    assert titles(all_shown(runs)) == [[]]
    runs.close()


def test_who_wants_none_gets_none(tmp_path: Path) -> None:
    """With ``findings=False`` nothing is read for them, said or marked."""
    run = written(tmp_path / "run", bad=[7])
    assert watched(run, ViewOptions(findings=False)).findings == ()
    said = view(tmp_path, "run", "--text", "--no-findings")[1]
    assert ("NaN or inf from step 7" in said, "error" in said) == (True, False)


def test_thresholds_are_those_that_are_asked_for(tmp_path: Path) -> None:
    """What ``viewer check`` takes as ``--rule``, the viewer takes, too."""
    written(tmp_path / "run", unused=True)
    said = [view(tmp_path, "run", "--text", *more)[1] for more in ((), ("--rule", "unused.rows=31"))]
    assert [("Never a gradient" in each) for each in said] == [True, False]
    code, _, complained = view(tmp_path, "run", "--rule", "unused.row=31")
    assert (code, "unused.rows" in complained) == (2, True)


def test_a_run_that_is_unreadable_for_a_moment_is_examined_later(tmp_path: Path) -> None:
    """Its findings come with the first refresh that can read it again."""
    run = written(tmp_path / "run", bad=[7])
    runs = Runs([run])
    all_shown(runs)
    content = (run / "run.json").read_text()
    (run / "run.json").write_text("{")
    assert runs.examine() is None
    (run / "run.json").write_text(content)
    assert titles(runs.examine()) == [["nonfinite"]]
    runs.close()


def of_two_ranks(path: Path) -> Path:
    """A run whose rank 0 has a parameter without a gradient, and whose rank 1 has a NaN; both were restarted apart."""
    run = written(path, unused=True)
    beat(run, 1)
    publish_next(run, "extremes", rows(range(30), bad=[7], rank=1), rank=1)
    publish_next(run, "events", events([5], "resumed", rank=0))
    publish_next(run, "events", events([6], "restored", rank=1), rank=1)
    return run


def test_findings_are_those_of_the_rank_that_is_shown(tmp_path: Path) -> None:
    """As curves are: in each view, with the numbers that are in all views; how far ranks are apart is of all."""
    run = of_two_ranks(tmp_path / "run")
    for rank, kinds in (
        ("0", ["unused", "resumed"]),
        ("1", ["nonfinite", "restored"]),
        # A parameter that one of them uses is not unused.
        ("merged", ["nonfinite", "resumed", "restored"]),
        ("spread", ["nonfinite", "resumed", "restored"]),
    ):
        for look in (ViewOptions(each, rank=rank, param="fc.weight") for each in View):
            numbered = noticed([watched(run, look)], look)
            assert [(number, each.kind) for number, _, each in numbered] == list(enumerate(kinds, 1))


def test_ranks_that_are_looked_at_in_turns_are_not_mixed_up(tmp_path: Path) -> None:
    """Who shares what is known of a run has that of the rank he looks at, also where another one was read before."""
    run = of_two_ranks(tmp_path / "run")
    monitors: dict[tuple[Place, int | None, int | None], FindingsMonitor] = {}
    for look, known, kinds in (
        (ViewOptions(rank="0"), False, ["unused", "resumed"]),
        (ViewOptions(rank="1"), False, ["nonfinite", "restored"]),
        (ViewOptions(), False, ["nonfinite", "resumed", "restored"]),
        (ViewOptions(View.LAYERS, rank="1"), True, ["nonfinite", "restored"]),
    ):
        runs = Runs([run], look, monitors=monitors)
        assert titles(all_shown(runs)) == [kinds if known else []]
        assert titles(runs.examine()) == ([] if known else [kinds])
        runs.close()
    assert set(monitors) == {(run, 0, None), (run, 1, None), (run, None, None)}


def test_a_rank_keeps_its_history_where_another_begins_again(tmp_path: Path) -> None:
    """A resolved finding stays, unless the rank that is looked at abandons its steps itself."""
    run = of_two_ranks(tmp_path / "run")
    (run / "closed-r00000.json").unlink()
    monitor = FindingsMonitor(run, rank=0)
    monitor.refresh()
    monitor.findings += (finding("gone", last_step=20),)
    publish_next(run, "events", events([10], "restored", rank=1, attempt=1), rank=1)
    publish_next(run, "extremes", rows(range(30, 35)))
    monitor.refresh()
    assert ("gone", True) in [(each.kind, each.resolved) for each in monitor.findings]
    publish_next(run, "events", events([10], "restored", attempt=1))
    monitor.refresh()
    assert "gone" not in [each.kind for each in monitor.findings]


@pytest.mark.parametrize(("rank", "said"), [("0", "Never a gradient"), ("1", "NaN or infinity in the gradient")])
def test_every_surface_says_what_is_wrong_with_the_rank(tmp_path: Path, rank: str, said: str) -> None:
    """The terminal, a file and a notebook's figure."""
    run = of_two_ranks(tmp_path / "run")
    close_rank(run, 1, {"last_step": 29})
    lines = view(tmp_path, "run", "--text", "--rank", rank)[1]
    view(tmp_path, "run", "--save", "a.svg", "--rank", rank)
    titled = viewer.figure(run, rank=int(rank)).texts[0].get_text()
    for words in (lines, (tmp_path / "a.svg").read_text(), titled):
        assert [each in words for each in ("Never a gradient", "NaN or infinity in the gradient")] == [
            each == said for each in ("Never a gradient", "NaN or infinity in the gradient")
        ]


def test_following_yields_runs_with_their_findings(tmp_path: Path) -> None:
    """Files, terminals and notebooks draw what comes from here."""
    runs = Runs([written(tmp_path / "run", bad=[7])])
    assert [titles(snapshots) for snapshots, _ in changes(runs)] == [[["nonfinite"]]]
    runs.close()


# Which of them are said, and how.


def test_findings_are_numbered_the_worst_first() -> None:
    """Present findings come before resolved ones, errors before warnings before notes, then the earliest."""
    late, early = finding("late", 20, Severity.ERROR), finding("early", 3)
    gone, note = finding("gone", 1, Severity.ERROR, resolved=True), finding("note", 0, Severity.NOTE)
    runs = [snapshot(note, gone, name="a"), snapshot(late, early, name="b")]
    assert [(run.name, each.kind) for _, run, each in noticed(runs, ViewOptions())] == [
        ("b", "late"), ("b", "early"), ("a", "note"), ("a", "gone")
    ]  # fmt: skip
    assert finding_words(runs, ViewOptions())[:2] == [
        "[1] error, steps 20 to 30: b: late title",
        "[2] warning, steps 3 to 30: b: early title",
    ]
    alone = finding_words([snapshot(dataclasses.replace(early, last_step=3))], ViewOptions())
    assert alone == ["[1] warning, step 3: early title"]


@pytest.mark.parametrize(
    ("look", "kinds"),
    [
        (ViewOptions(), ["of a", "of b", "of both", "of none"]),
        (ViewOptions(params="a"), ["of a", "of both", "of none"]),
        (ViewOptions(View.PARAM, param="b.weight"), ["of b", "of both"]),
        (ViewOptions(View.LAYERS), ["of a", "of b", "of both", "of none"]),
    ],
)
def test_a_choice_of_parameters_is_one_of_findings(look: ViewOptions, kinds: list[str]) -> None:
    """What concerns no parameter that is shown is not said; what concerns the run is, but beside a parameter."""
    a, b = ("a.weight",), ("b.weight",)
    found = (finding("of a", params=a), finding("of b", params=b), finding("of both", params=(*a, *b)))
    run = dataclasses.replace(snapshot(*found, finding("of none", param=None, params=())))
    if look.params:
        run = dataclasses.replace(run, params=a)
    assert sorted(each.kind for *_, each in noticed([run], look)) == kinds


def test_numbers_are_those_of_the_command(tmp_path: Path) -> None:
    """What a figure marks as 2 is number 2 in what ``viewer check`` says, in every view."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(30), bad=[7], unused=True))
    flip_bit(publish_next(run, "extremes", rows(range(30, 40))).path)
    found = watched(run, ViewOptions())
    assert [(number, each.kind) for number, _, each in noticed([found], ViewOptions())] == [
        (1, "nonfinite"), (2, "unused"), (3, "damaged")
    ]  # fmt: skip
    headings = [line.partition(",")[0] for line in view(tmp_path, "check", "run")[1].splitlines() if line[:1] == "["]
    assert headings == ["[1] error nonfinite", "[2] warning unused", "[3] warning damaged"]
    (one,) = noticed([found], ViewOptions(View.PARAM, param="fc.weight"))
    assert (one[0], one[2].kind) == (2, "unused")


def test_a_figure_has_room_for_some_and_says_where_the_others_are() -> None:
    """Above a figure stand four lines at most of findings."""
    found = [finding(f"kind{number}", number) for number in range(5)]
    lines = heading(ViewOptions(), [snapshot(*found)], NOW).splitlines()
    assert lines[-1] == "… and 2 more: see `viewer check`"
    assert len(lines) == 5
    assert len(heading(ViewOptions(), [snapshot(*found[:4])], NOW).splitlines()) == 5


def test_a_low_terminal_says_the_worst() -> None:
    """It is never only told how many there are."""
    console = Console(width=80, height=12, record=True, file=io.StringIO())
    console.print(picture([snapshot(*(finding(f"kind{number}") for number in range(3)))], ViewOptions(), NOW, 80, 12))
    said = console.export_text().splitlines()[1:3]
    assert said == ["[1] warning, steps 12 to 30: kind0 title", "… and 2 more: see `viewer check`"]


# Marks.


def flag_texts(axes: Axes) -> list[Text]:
    """The flags: texts in a box."""
    return [text for text in axes.texts if text.get_bbox_patch() is not None]


def flags(axes: Axes) -> dict[str, tuple[float, float]]:
    """What is written on flags, and where."""
    return {text.get_text(): text.get_position() for text in flag_texts(axes)}


def lines(axes: Axes) -> list[float]:
    """Where a finding's line stands."""
    return [np.asarray(line.get_xdata())[0] for line in axes.lines if line.get_gid() == "finding"]


@pytest.mark.parametrize("dark", first_of([False, True]))
def test_curves_are_marked_where_a_finding_began(tmp_path: Path, dark: bool) -> None:
    """A line crosses every panel at its first step, with its number in the highest, and stands in no legend."""
    found = watched(written(tmp_path / "run", bad=[7]), ViewOptions(dark=dark))
    shown = Overview(canvas(), ViewOptions(dark=dark))
    for _ in range(2):
        shown.update([found], NOW)
    shown.figure.canvas.draw()
    assert [lines(axes) for axes in shown.figure.axes] == [[7]] * 3
    assert [flags(axes) for axes in shown.figure.axes] == [{"1": (7, 0.94)}, {}, {}]
    assert not [entry for axes in shown.figure.axes for entry in entries(axes) if "child" in entry]
    check_texts(shown.figure)
    check_contrast(shown.figure)
    shown.update([dataclasses.replace(found, findings=())], NOW)
    assert [lines(axes) for axes in shown.figure.axes] == [[]] * 3


@pytest.mark.parametrize("x", [XAxis.WALL, XAxis.RELATIVE])
def test_marks_stand_where_time_has_their_step(tmp_path: Path, x: XAxis) -> None:
    """On an axis of time, a finding began when its first step was made."""
    look = ViewOptions(x=x)
    found = watched(written(tmp_path / "run", bad=[7]), look)
    shown = Overview(canvas(), look)
    shown.update([found], NOW)
    assert found.extremes is not None
    seconds = found.extremes.time[7]
    (place,) = lines(shown.figure.axes[0])
    assert place == pytest.approx(seconds / 86_400 if x is XAxis.WALL else seconds - found.started)
    shown.update([snapshot(finding())], NOW)
    assert lines(shown.figure.axes[0]) == []


def test_findings_of_about_the_same_step_have_one_flag() -> None:
    """Flags that would cover each other are one, with the numbers of the first, in the colour of the worst."""
    near = [finding("a", 12), finding("b", 12), finding("c", 12), finding("d", 12), finding("e", 28, Severity.ERROR)]
    shown = Overview(canvas(), ViewOptions())
    shown.update([snapshot(*near)], NOW)
    assert flags(shown.figure.axes[0]) == {"2,3,4,…": (12, 0.94), "1": (28, 0.94)}
    assert sorted(lines(shown.figure.axes[0])) == [12, 28]


@pytest.mark.parametrize(("times", "marked"), first_of([(3, [3, 6, 9]), (10, [*range(3, 31, 3)]), (11, [3])]))
def test_each_restart_is_marked_unless_there_are_many(tmp_path: Path, times: int, marked: list[int]) -> None:
    """A line at each of ten crosses curves, also one parameter's; of more, the first says for all how often."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(100)))
    for each in range(1, times + 1):
        publish_next(run, "events", events([3 * each], "resumed"))
    for look, shown in (
        (ViewOptions(), Overview(canvas(), ViewOptions())),
        (ViewOptions(View.PARAM, param="fc.weight"), Parameter(canvas(), ViewOptions(View.PARAM, param="fc.weight"))),
    ):
        shown.update([watched(run, look)], NOW)
        shown.figure.canvas.draw()
        assert [sorted(lines(axes)) for axes in shown.figure.axes] == [marked] * len(shown.figure.axes)
        assert set(flags(shown.figure.axes[0])) == {"1"}
        check_texts(shown.figure)
    (said,) = finding_words([watched(run, ViewOptions())], ViewOptions())
    assert said == f"[1] note, steps 3 to {3 * times}: Resumed"


def test_restarts_that_are_near_each_other_have_one_flag() -> None:
    """Their number stands on it once."""
    shown = Overview(canvas(), ViewOptions())
    shown.update([snapshot(finding("a", 12, steps=(12, 12, 13)), finding("b", 13))], NOW)
    texts = [text.get_text() for text in shown.figure.axes[0].texts if text.get_bbox_patch() is not None]
    assert texts == ["1,2"]


def test_a_parameter_is_marked_with_its_own(tmp_path: Path) -> None:
    """In the view of one parameter, what it has no part in is not marked."""
    run = written(tmp_path / "run", unused=True)
    for param, places in (("fc.weight", [0]), ("conv.weight", [])):
        look = ViewOptions(View.PARAM, param=param)
        shown = Parameter(canvas(), look)
        shown.update([watched(run, look)], NOW)
        assert [lines(axes) for axes in shown.figure.axes] == [places] * 2


def test_the_strip_is_marked_in_the_row_of_the_parameter(tmp_path: Path) -> None:
    """A flag stands at the first step, in its parameter's row, or in that of its module."""
    look = ViewOptions(View.LAYERS)
    found = watched(written(tmp_path / "run", bad=[7], unused=True), look)
    strip = Layers(canvas(), look)
    for _ in range(2):
        strip.update([found], NOW)
    # The gradient of conv.weight is NaN, fc.weight has none.
    assert flags(strip.figure.axes[0]) == {"1": (7, 0), "2": (0, 1)}
    strip.figure.canvas.draw()
    (begin,) = [text for text in strip.figure.axes[0].texts if text.get_text() == "2"]
    assert begin.get_window_extent().x0 >= strip.figure.axes[0].get_window_extent().x0
    check_texts(strip.figure)
    strip.update([snapshot()], NOW)
    assert flags(strip.figure.axes[0]) == {}
    names = [f"block{number // 40}.weight{number}" for number in range(400)]
    many = new_run(tmp_path / "many", names)
    values = {end: [math.nan if name == names[300] else 1.0 for name in names] for end in ("grad_min", "grad_max")}
    publish_next(many, "extremes", extremes([5], names, values))
    strip.update([watched(many, look)], NOW)
    assert (5, 7) in flags(strip.figure.axes[0]).values()


def test_a_number_at_an_end_of_the_strip_can_be_read(tmp_path: Path) -> None:
    """What is wrong from the start, or with the last step, is marked inside of the strip."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(2000), bad=[1999], unused=True))
    strip = Layers(canvas(), ViewOptions(View.LAYERS))
    strip.update([watched(run, ViewOptions(View.LAYERS))], NOW)
    assert flags(strip.figure.axes[0]) == {"1": (1999, 0), "2": (0, 1)}
    strip.figure.draw_without_rendering()
    inside = strip.figure.axes[0].get_window_extent()
    for flag in flag_texts(strip.figure.axes[0]):
        assert inside.x0 <= flag.get_window_extent().x0
        assert flag.get_window_extent().x1 <= inside.x1


# Surfaces without a figure.


def text(run: Path, look: ViewOptions, height: int = 40) -> str:
    """What a terminal shows."""
    console = Console(width=100, height=height, record=True, file=io.StringIO())
    console.print(picture([watched(run, look)], look, time.time(), 100, height))
    return console.export_text()


def test_a_terminal_says_and_marks_them(tmp_path: Path) -> None:
    """Below the title stand the findings, and in charts and rows the number where each began."""
    run = written(tmp_path / "run", bad=[7])
    overview = text(run, ViewOptions())
    assert "[1] error, step 7: NaN or infinity in the gradient of fc.weight" in overview
    assert any(" 1 " in line for line in overview.splitlines()[2:12])
    layers = text(run, ViewOptions(View.LAYERS))
    assert "[1] error" in layers
    (row,) = [line for line in layers.splitlines() if line.startswith("fc.weight")]
    assert "█1!" in row


def numbers_in_chart(first: int, last: int, *found: Finding) -> list[str]:
    """What a terminal marks in the chart of a loss that was logged from one step to another."""
    steps = range(first, last + 1)
    ones = [1.0] * len(steps)
    loss = Curve("loss", steps, ones, ones, ones, (), [float(step) for step in steps])
    console = Console(width=100, height=40, record=True, file=io.StringIO())
    console.print(picture([snapshot(*found, curves=(loss,))], ViewOptions(), NOW, 100, 40))
    lines = console.export_text().splitlines()
    (top,) = (place for place, line in enumerate(lines) if line.startswith("loss"))
    return lines[top + 2][:48].strip(" │").split()


def test_a_chart_marks_what_lies_in_it_by_its_own_number() -> None:
    """A loss may be logged once, or long after a finding began; and in one character a tenth has no room."""
    many = [finding(f"kind{number}", 10 * number) for number in range(12)]
    assert numbers_in_chart(0, 200, *many) == [*"123456789"]
    assert numbers_in_chart(5_000, 5_009, finding("early", 0), finding("there", 5_005), finding("late", 9_000)) == ["2"]
    assert numbers_in_chart(700, 700, finding("early", 0)) == []
    # plotext would end this process.
    assert numbers_in_chart(10**9, 10**9 + 1, finding("early", 0)) == []


def test_a_row_is_not_marked_beyond_its_ends(tmp_path: Path) -> None:
    """A rank that came later, or was gone sooner, has no place for what began elsewhere at other steps."""
    run = written(tmp_path / "run", unused=True)
    publish_next(run, "extremes", extremes(range(10, 20), PARAMS, rank=1), rank=1)
    look = ViewOptions(View.LAYERS, rank="1")
    found = watched(run, look)
    for first, marked in ((0, False), (15, True), (25, False)):
        one = dataclasses.replace(found, findings=(finding(first=first, param=PARAMS[0], params=PARAMS),))
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(picture([one], look, NOW, 100, 40))
        (row,) = [line for line in console.export_text().splitlines() if line.startswith(PARAMS[0])]
        assert ("1" in row) == marked


@pytest.mark.slow
def test_a_pipe_is_told_each_once(tmp_path: Path) -> None:
    """As it arises a line says what, and another one that it is resolved, however long it goes on."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(30), unused=True))
    with viewing(tmp_path, "run", "--text") as viewer:
        viewer.wait_for("run warning at step 0: Never a gradient: fc.weight")
        publish_next(run, "extremes", rows(range(30, 40), unused=True))
        viewer.wait_for("step 39")
        publish_next(run, "extremes", rows(range(40, 50), bad=[45]))
        viewer.wait_for("run error at step 45: NaN or infinity in the gradient of fc.weight")
        viewer.wait_for("run warning at step 0: Never a gradient: fc.weight is resolved")
        close_run(run, 49)
        assert viewer.wait() == 0
        said = viewer.said().splitlines()
    assert [sum(word in line for line in said) for word in ("Never a gradient", "is resolved", "error")] == [2, 1, 1]


@pytest.mark.slow
def test_a_pipe_is_not_told_again_as_bins_grow(tmp_path: Path) -> None:
    """Of a longer run the first step of a finding is known less exactly, and other parameters may join the first."""
    run = new_run(tmp_path / "run", PARAMS)

    def publish(begin: int, end: int) -> None:
        high = [0.0 if param == "fc.weight" and step > 100 else 0.1 for step in range(begin, end) for param in PARAMS]
        gradients = {"grad_min": [-number for number in high], "grad_max": high}
        publish_next(run, "extremes", extremes(range(begin, end), PARAMS, gradients))

    publish(0, 300)
    with viewing(tmp_path, "run", "--text") as viewer:
        viewer.wait_for("run error at step 101: Dead: fc.weight")
        publish(300, 3000)
        close_run(run, 2999)
        assert viewer.wait() == 0
        assert (viewer.said().count("Dead"), "closed" in viewer.said()) == (1, True)


@pytest.mark.slow
def test_a_file_is_drawn_again_for_a_finding_alone(tmp_path: Path) -> None:
    """What is found after the curves were drawn comes into the picture, with the title in it."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(10)))
    publish_next(run, "metrics", metrics(range(10), range(10)))
    with viewing(tmp_path, "run", "--save", "a.svg", "--follow") as viewer:
        wait_until((tmp_path / "a.svg").exists)
        publish_next(run, "extremes", rows(range(10, 20), bad=[15]))
        close_run(run, 19)
        assert viewer.wait() == 0
    marked = (tmp_path / "a.svg").read_text()
    assert "[1] error, step 15: NaN" in marked
