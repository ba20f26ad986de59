"""Several runs followed at once, as they come and go, and the thread that reads them for a surface."""

import contextlib
import importlib.metadata
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from watchdog.observers import Observer

from tests.disk import Disk
from tests.logs import age_heartbeat, close_run, extremes, flip_bit, histograms, metrics, new_run, publish_next
from tests.viewing import all_shown
from tests.waiting import wait_until
from tracer.log.parts import merge
from tracer.log.ranks import beat
from tracer.log.read import scan
from tracer.log.run import LogError
from tracer.log.store import Local as Path
from viewer.options import View, ViewOptions
from viewer.read.changes import changes
from viewer.read.follow import Progress
from viewer.read.reader import Reader
from viewer.read.runs import Runs
from viewer.snapshot import Snapshot

Opening = Callable[..., Runs]


@pytest.fixture
def opened() -> Iterator[Opening]:
    """Opens runs, which are closed at the end of the test."""
    every: list[Runs] = []

    def open_runs(
        *paths: Path, look: ViewOptions | None = None, only: str = "", poll_seconds: float | None = None
    ) -> Runs:
        every.append(Runs(paths, look, only, poll_seconds))
        return every[-1]

    yield open_runs
    for runs in every:
        runs.close()


def run_with(path: Path, last_step: int) -> Path:
    """A run with extremes of steps from 0 to this one."""
    run = new_run(path)
    publish_next(run, "extremes", extremes(range(last_step + 1)))
    return run


def later(run: Path, than: Path) -> None:
    """Let a run have begun after another."""
    then = (than / "run.json").stat().st_mtime + 10
    os.utime(run / "run.json", (then, then))


def steps(snapshots: Sequence[Snapshot]) -> dict[str, int | None]:
    """The names and the last steps, in order."""
    return {snapshot.name: snapshot.last_step for snapshot in snapshots}


@pytest.mark.skipif(
    int(importlib.metadata.version("watchdog").partition(".")[0]) < 7,
    reason="watchdog before 7 opens some files for each folder that it watches",
)
def test_many_runs_and_parts_need_few_open_files(tmp_path: Path, opened: Opening) -> None:
    """A dozen is enough to follow forty runs, to read a run of forty parts, and to merge it: macOS grants 256."""
    resource = pytest.importorskip("resource")
    for number in range(40):
        run_with(tmp_path / "runs" / f"run-{number:02}", 3)
        publish_next(tmp_path / "runs" / "run-00", "extremes", extremes([number + 4]))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))) + 12, before[1]))
    try:
        runs = opened(tmp_path / "runs")
        shown = all_shown(runs)
        runs.examine()
        assert merge(tmp_path / "runs" / "run-00", "extremes", 0)
        rows = scan(tmp_path / "runs").collect().height
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert [each.problems for each in shown] == [()] * 40
    assert rows == 40 * 4 + 40


def test_following_ends_with_a_run_that_stays_dead(tmp_path: Path) -> None:
    """A killed run never closes, and ends it after a minute; one whose machine has merely slept does not."""
    run, now = run_with(tmp_path / "run", 9), 0
    age_heartbeat(run, 3600)

    class Scripted(Runs):
        def wait(self) -> None:
            nonlocal now
            now += 10
            if now == 30:
                beat(run, 0)
            if now == 40:
                age_heartbeat(run, 3600)

    with contextlib.closing(Scripted([run])) as runs:
        runs.clock = lambda: now
        states = [snapshot.state for (snapshot,), _ in changes(runs)]
    assert (states, now) == (["stopped"] * 3 + ["running"] + ["stopped"] * 8, 110)


def make_unreadable(run: Path, how: str) -> None:
    """Let a run be of a newer format, or broken."""
    file = run / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}) if how == "newer" else '{"format": 1')


def in_step_order(folder: Path, *names: str) -> list[Path]:
    """Runs of these names, each begun after the one before, with as many steps as its place says."""
    runs = [run_with(folder / name, place) for place, name in enumerate(names)]
    for before, after in itertools.pairwise(runs):
        later(after, before)
    return runs


def test_a_folder_stands_for_the_runs_in_it_in_the_order_of_their_beginning(opened: Opening, tmp_path: Path) -> None:
    """Each run in the folder is shown by its name; what else is in the folder is not."""
    in_step_order(tmp_path, "b", "a", "c")
    (tmp_path / "figures").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    runs = opened(tmp_path)
    assert list(steps(all_shown(runs)).items()) == [("b", 0), ("a", 1), ("c", 2)]
    assert runs.names == ("b", "a", "c")
    assert runs.refresh() is None


def test_runs_that_are_named_stand_in_the_order_of_their_naming(opened: Opening, tmp_path: Path) -> None:
    """Runs and folders of runs may be named together; a run named twice is shown once."""
    in_step_order(tmp_path / "runs", "a", "b")
    single = run_with(tmp_path / "single", 7)
    runs = opened(single, tmp_path / "runs", tmp_path / "runs" / "b")
    assert list(steps(all_shown(runs)).items()) == [("single", 7), ("a", 0), ("b", 1)]


def test_runs_appear_and_disappear(opened: Opening, tmp_path: Path) -> None:
    """A run that begins in the folder is shown beside the others, and one that is deleted is not any more."""
    (first,) = in_step_order(tmp_path, "first")
    runs = opened(tmp_path)
    assert steps(all_shown(runs)) == {"first": 0}
    second = run_with(tmp_path / "second", 5)
    later(second, first)
    assert steps(all_shown(runs)) == {"first": 0, "second": 5}
    assert runs.refresh() is None
    publish_next(first, "extremes", extremes([1]))
    assert steps(all_shown(runs)) == {"first": 1, "second": 5}
    shutil.rmtree(first)
    assert steps(all_shown(runs)) == {"second": 5}
    assert runs.names == ("second",)
    assert runs.refresh() is None


def test_a_run_that_comes_late_does_not_change_the_order_of_the_others_twice(opened: Opening, tmp_path: Path) -> None:
    """Runs keep their order, by which they have their colours, from the first time that all are shown."""
    first, second = tmp_path / "first", run_with(tmp_path / "second", 0)
    runs = opened(first, second)
    assert list(steps(all_shown(runs))) == ["second"]
    run_with(first, 3)
    assert list(steps(all_shown(runs))) == ["first", "second"]
    publish_next(second, "extremes", extremes([1]))
    assert list(steps(all_shown(runs))) == ["first", "second"]


def test_only_runs_whose_name_matches_are_shown(opened: Opening, tmp_path: Path) -> None:
    """The expression is found in the folder's own name, not in its parents', and counts for named runs, too."""
    in_step_order(tmp_path / "resnet", "lr-0.1", "lr-0.01", "resnet18")
    runs = opened(tmp_path / "resnet", only="resnet|0.01$")
    assert list(steps(all_shown(runs))) == ["lr-0.01", "resnet18"]
    assert runs.names == ("lr-0.01", "resnet18")
    none = opened(tmp_path / "resnet" / "lr-0.1", only="resnet")
    assert none.refresh() is None
    assert none.names == ()
    run_with(tmp_path / "resnet" / "new-resnet", 9)
    assert "new-resnet" in steps(all_shown(runs))


def test_runs_of_the_same_name_are_told_apart_by_their_paths(opened: Opening, tmp_path: Path) -> None:
    """Folders of one name in different parents have their paths as names, and others keep theirs."""
    for place, name in enumerate(("x/run", "y/run", "y/other")):
        run_with(tmp_path / name, place)
    runs = opened(tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "y" / "other")
    assert steps(all_shown(runs)) == {str(tmp_path / "x" / "run"): 0, str(tmp_path / "y" / "run"): 1, "other": 2}


def test_a_link_to_a_run_has_the_name_of_the_run(opened: Opening, tmp_path: Path) -> None:
    """Also after it was made to lead to another one."""
    a, b = in_step_order(tmp_path / "runs", "a", "b")
    link = tmp_path / "latest"
    link.symlink_to(a)
    runs = opened(link)
    assert steps(all_shown(runs)) == {"a": 0}
    link.unlink()
    link.symlink_to(b)
    assert steps(all_shown(runs)) == {"b": 1}
    assert steps(all_shown(opened(b / ".." / "a"))) == {"a": 0}


def test_runs_of_the_same_name_below_the_current_folder_have_short_names(
    opened: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their paths are as a user would write them there, which are not as long."""
    for place, name in enumerate(("x/run", "y/run")):
        run_with(tmp_path / name, place)
    monkeypatch.chdir(tmp_path)
    assert steps(all_shown(opened(tmp_path / "x" / "run", tmp_path / "y"))) == {"x/run": 0, "y/run": 1}


def test_a_run_gets_its_path_as_name_once_another_of_its_name_comes(opened: Opening, tmp_path: Path) -> None:
    """Names stay unique while runs come, and none of them loses its rows."""
    run_with(tmp_path / "x" / "run", 3)
    runs = opened(tmp_path / "x", tmp_path / "y")
    assert steps(all_shown(runs)) == {"run": 3}
    run_with(tmp_path / "y" / "run", 4)
    assert steps(all_shown(runs)) == {str(tmp_path / "x" / "run"): 3, str(tmp_path / "y" / "run"): 4}


def test_a_run_that_does_not_exist_yet_is_waited_for(opened: Opening, tmp_path: Path) -> None:
    """A path that is named may become a run, or a folder of runs, later; until then there is nothing to show."""
    run, folder = tmp_path / "run", tmp_path / "folder"
    runs = opened(run, folder)
    assert runs.refresh() is None
    assert runs.awaited
    run_with(run, 2)
    assert steps(all_shown(runs)) == {"run": 2}
    assert runs.awaited
    folder.mkdir()
    assert runs.refresh() is None
    run_with(folder / "inner", 4)
    assert steps(all_shown(runs)) == {"run": 2, "inner": 4}
    assert not runs.awaited


def test_a_folder_may_turn_out_to_be_a_run(opened: Opening, tmp_path: Path) -> None:
    """A folder that held runs, and then holds one itself, is that run."""
    run_with(tmp_path / "runs" / "inner", 1)
    runs = opened(tmp_path / "runs")
    assert steps(all_shown(runs)) == {"inner": 1}
    run_with(tmp_path / "runs", 8)
    assert steps(all_shown(runs)) == {"runs": 8}


@pytest.mark.parametrize("how", ["newer", "broken"])
def test_an_unreadable_run_among_others_is_shown_with_its_problem(opened: Opening, tmp_path: Path, how: str) -> None:
    """The others are shown as if it were not there; once it can be read, it is shown like them."""
    good, bad = in_step_order(tmp_path, "good", "bad")
    whole = (bad / "run.json").read_text()
    make_unreadable(bad, how)
    later(bad, good)
    runs = opened(tmp_path)
    shown = all_shown(runs)
    assert steps(shown) == {"good": 0, "bad": None}
    assert shown[0].problems == ()
    (problem,) = shown[1].problems
    assert ("upgrade" if how == "newer" else "cannot be read") in problem
    assert runs.refresh() is None
    publish_next(good, "extremes", extremes([4]))
    assert steps(all_shown(runs)) == {"good": 4, "bad": None}
    (bad / "run.json").write_text(whole)
    later(bad, good)
    assert steps(all_shown(runs)) == {"good": 4, "bad": 1}


def test_a_run_whose_folder_the_system_does_not_list_is_shown_with_its_problem(opened: Opening, tmp_path: Path) -> None:
    """What the system refuses of one run does not end the watching of the others."""
    good, bad = in_step_order(tmp_path, "good", "bad")
    shutil.rmtree(bad / "extremes")
    (bad / "extremes").write_text("")
    runs = opened(tmp_path)
    shown = all_shown(runs)
    assert steps(shown) == {"good": 0, "bad": None}
    assert "extremes" in shown[1].problems[0]
    publish_next(good, "extremes", extremes([4]))
    assert steps(all_shown(runs)) == {"good": 4, "bad": None}


@pytest.mark.parametrize("names", [("good",), ("good", "other")])
def test_what_was_seen_stays_while_a_disk_is_away(opened: Opening, tmp_path: Path, names: tuple[str, ...]) -> None:
    """A run that cannot be read for a moment is shown as it was, with its trouble, and goes on when it can be again."""
    good = in_step_order(tmp_path, *names)[0]
    runs = opened(tmp_path)
    before = all_shown(runs)
    (good / "extremes").rename(tmp_path / "away")
    (good / "extremes").write_text("")
    (troubled, *_) = all_shown(runs)
    assert (troubled.last_step, troubled.extremes) == (before[0].last_step, before[0].extremes)
    assert "extremes" in troubled.problems[0]
    assert runs.refresh() is None
    (good / "extremes").unlink()
    (tmp_path / "away").rename(good / "extremes")
    assert all_shown(runs) == before
    publish_next(good, "extremes", extremes([4]))
    assert steps(all_shown(runs))["good"] == 4


@pytest.mark.parametrize("setting", ["every", "fold"])
def test_layers_have_no_gaps_between_steps_that_have_no_row(opened: Opening, tmp_path: Path, setting: str) -> None:
    """Where a row comes every ten steps, each column of the strip covers ten, and none of them is empty."""
    run = new_run(tmp_path / "run", settings={setting: 10})
    publish_next(run, "extremes", extremes(range(0 if setting == "every" else 9, 1000, 10)))
    (snapshot,) = all_shown(opened(run, look=ViewOptions(View.LAYERS)))
    assert snapshot.layers is not None
    assert (snapshot.layers.first_step, snapshot.layers.width) == (0, 10)
    assert snapshot.layers.magnitudes.tolist() == [[2.0] * 100]


@pytest.mark.parametrize("how", ["newer", "broken"])
def test_an_unreadable_run_alone_is_an_error(opened: Opening, tmp_path: Path, how: str) -> None:
    """Where there is nothing else to show, the error says why."""
    make_unreadable(new_run(tmp_path / "run"), how)
    for path in (tmp_path / "run", tmp_path):
        with pytest.raises(LogError, match="run"):
            opened(path).refresh()


def test_a_damaged_part_of_one_run_is_a_problem_of_that_run(opened: Opening, tmp_path: Path) -> None:
    """Of two runs, the one with a damaged part names it, and both show what they have."""
    _, second = in_step_order(tmp_path, "first", "second")
    flip_bit(publish_next(second, "extremes", extremes([9])).path)
    shown = all_shown(opened(tmp_path))
    assert steps(shown) == {"first": 0, "second": 1}
    assert [len(snapshot.problems) for snapshot in shown] == [0, 1]


@pytest.mark.parametrize(
    "look", [ViewOptions(View.LAYERS), ViewOptions(View.PARAM, param="weight")], ids=lambda look: str(look.view)
)
def test_a_view_of_one_run_shows_the_newest(opened: Opening, tmp_path: Path, look: ViewOptions) -> None:
    """Of several, the run begun last is shown, and a newer one takes its place; all of them have names."""
    first, _ = in_step_order(tmp_path, "z", "a")
    runs = opened(tmp_path, look=look)
    (snapshot,) = all_shown(runs)
    assert (snapshot.name, snapshot.last_step) == ("a", 1)
    assert (snapshot.layers is None, snapshot.extremes is None) == (
        look.view is not View.LAYERS,
        look.view is View.LAYERS,
    )
    assert runs.names == ("z", "a")
    publish_next(first, "extremes", extremes([50]))
    assert runs.refresh() is None
    new = run_with(tmp_path / "m", 6)
    later(new, tmp_path / "a")
    assert steps(all_shown(runs)) == {"m": 6}
    shutil.rmtree(new)
    assert steps(all_shown(runs)) == {"a": 1}


@pytest.mark.parametrize("view", [View.OVERVIEW, View.LAYERS])
def test_a_look_picks_one_run(opened: Opening, tmp_path: Path, view: View) -> None:
    """With ``run``, that one alone is shown, while all have names; one that is not there shows nothing."""
    in_step_order(tmp_path, "a", "b", "c")
    runs = opened(tmp_path, look=ViewOptions(view, run="b"))
    assert steps(all_shown(runs)) == {"b": 1}
    assert runs.names == ("a", "b", "c")
    nowhere = opened(tmp_path, look=ViewOptions(view, run="nowhere"))
    assert nowhere.refresh() is None
    run_with(tmp_path / "nowhere", 4)
    assert steps(all_shown(nowhere)) == {"nowhere": 4}


def test_a_run_that_was_deleted_and_made_anew_shows_nothing_of_the_old_one(opened: Opening, tmp_path: Path) -> None:
    """Whether the folder's absence was seen or not, the new run is read from its beginning."""
    other, run = in_step_order(tmp_path, "other", "run")
    runs = opened(tmp_path)
    publish_next(run, "metrics", metrics([70], [1.0]))
    assert steps(all_shown(runs)) == {"other": 0, "run": 70}
    shutil.rmtree(run)
    run_with(run, 3)
    later(run, other)
    assert steps(all_shown(runs)) == {"other": 0, "run": 3}
    shutil.rmtree(run)
    assert steps(all_shown(runs)) == {"other": 0}
    run_with(run, 2)
    later(run, other)
    shown = all_shown(runs)
    assert steps(shown) == {"other": 0, "run": 2}
    assert shown[1].curves == ()


def woken_by(runs: Runs, action: Callable[[], object]) -> None:
    """The action, and nothing that came before, ends an endless waiting."""
    runs.rescan_seconds = 0.0
    runs.wait()
    runs.rescan_seconds = 3600.0
    waiter = threading.Thread(target=runs.wait)
    waiter.start()
    try:
        action()
        wait_until(lambda: not waiter.is_alive())
    finally:
        runs.stop()
        waiter.join()


def test_new_runs_and_new_rows_wake_the_viewer(opened: Opening, tmp_path: Path) -> None:
    """A run that begins in a watched folder ends the waiting, and so do rows of any run that is shown."""
    in_step_order(tmp_path, "a", "b")
    runs = opened(tmp_path)
    runs.refresh()
    woken_by(runs, lambda: new_run(tmp_path / "c"))
    runs.refresh()
    for name in ("a", "b", "c"):
        woken_by(runs, lambda name=name: publish_next(tmp_path / name, "extremes", extremes([9])))  # type: ignore[misc]


def test_a_folder_of_runs_that_was_deleted_and_made_anew_wakes_the_viewer(opened: Opening, tmp_path: Path) -> None:
    """Events come from the new folder, too."""
    run_with(tmp_path / "runs" / "a", 0)
    runs = opened(tmp_path / "runs")
    runs.refresh()
    shutil.rmtree(tmp_path / "runs")
    runs.refresh()
    (tmp_path / "runs").mkdir()
    runs.refresh()
    woken_by(runs, lambda: new_run(tmp_path / "runs" / "b"))


def test_runs_that_are_not_shown_cost_no_thread(opened: Opening, tmp_path: Path) -> None:
    """Neither runs that have ended, nor those that are gone, nor those that another took the place of are watched."""
    before = threading.active_count()
    for number in range(20):
        close_run(run_with(tmp_path / f"closed-{number}", 0))
    runs = opened(tmp_path)
    assert len(all_shown(runs)) == 20
    idle = threading.active_count()
    # One for the folder, and watchdog's own.
    assert idle <= before + 4
    going = run_with(tmp_path / "going", 0)
    runs.refresh()
    assert threading.active_count() > idle
    shutil.rmtree(going)
    runs.refresh()
    assert threading.active_count() == idle
    layers = opened(tmp_path, look=ViewOptions(View.LAYERS))
    first, second = run_with(tmp_path / "first", 0), tmp_path / "second"
    later(first, tmp_path / "closed-0")
    layers.refresh()
    one = threading.active_count()
    run_with(second, 0)
    later(second, first)
    assert steps(all_shown(layers)) == {"second": 0}
    assert threading.active_count() == one


def test_polling_asks_for_no_events(opened: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``poll_seconds`` watchdog is not begun, and each waiting lasts so long."""
    monkeypatch.setattr(Observer, "__init__", lambda _: pytest.fail("events were asked for"))
    threads = threading.active_count()
    runs = opened(tmp_path, poll_seconds=0.3)
    assert runs.rescan_seconds == 0.3
    assert runs.refresh() is None
    run_with(tmp_path / "a", 1)
    before = time.monotonic()
    runs.wait()
    assert time.monotonic() - before > 0.25
    assert steps(all_shown(runs)) == {"a": 1}
    assert threading.active_count() == threads


@pytest.mark.parametrize("refusing", ["__init__", "schedule"])
def test_a_full_inotify_table_costs_events_alone(
    opened: Opening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    """Where the system refuses to watch, runs are found by listing."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(Observer, refusing, refuse)
    runs = opened(tmp_path)
    runs.rescan_seconds = 0.01
    assert runs.refresh() is None
    run_with(tmp_path / "a", 1)
    runs.wait()
    assert steps(all_shown(runs)) == {"a": 1}
    publish_next(tmp_path / "a", "extremes", extremes([2]))
    runs.wait()
    assert steps(all_shown(runs)) == {"a": 2}


def test_two_viewers_at_once_see_the_same(opened: Opening, tmp_path: Path) -> None:
    """Viewers share nothing: each sees every row, whatever the other has read, and one's end does not end the other."""
    in_step_order(tmp_path, "a", "b")
    one, other = opened(tmp_path), opened(tmp_path)
    assert all_shown(one) == all_shown(other)
    publish_next(tmp_path / "a", "extremes", extremes([5]))
    assert steps(all_shown(one)) == {"a": 5, "b": 1}
    one.close()
    assert steps(all_shown(other)) == {"a": 5, "b": 1}


def test_closing_ends_all_threads(opened: Opening, tmp_path: Path) -> None:
    """After ``close`` no thread of watchdog's is left, however many folders were watched; it may be called again."""
    in_step_order(tmp_path, "a", "b", "c")
    threads = set(threading.enumerate())
    runs = opened(tmp_path)
    runs.refresh()
    assert set(threading.enumerate()) - threads
    runs.close()
    assert not {thread for thread in threading.enumerate() if thread.is_alive()} - threads
    runs.close()


@pytest.fixture
def read(opened: Opening) -> Iterator[Callable[..., Reader]]:
    """Starts reading threads, which are stopped at the end of the test."""
    every: list[Reader] = []

    def start(*paths: Path, **given: ViewOptions) -> Reader:
        every.append(Reader(opened(*paths, **given)))
        every[-1].start()
        return every[-1]

    yield start
    for reader in every:
        reader.stop()


Reading = Callable[..., Reader]


def test_a_reader_shows_what_comes_and_ends_when_asked(read: Reading, tmp_path: Path) -> None:
    """The reading thread keeps the newest snapshots, wakes by itself, and is gone after ``stop``."""
    run = new_run(tmp_path / "run")
    reader = read(run)
    wait_until(lambda: bool(reader.latest))
    publish_next(run, "extremes", extremes([3]))
    wait_until(lambda: steps(reader.latest) == {"run": 3})
    reader.stop()
    reader.stop()
    assert not reader.is_alive()
    assert reader.error is None


@pytest.mark.slow
def test_a_reader_finds_runs_that_begin(read: Reading, tmp_path: Path) -> None:
    """A folder that is empty at first is read on as runs begin in it."""
    reader = read(tmp_path)
    for place, name in enumerate(("a", "b")):
        run_with(tmp_path / name, place)
        wait_until(lambda place=place, name=name: steps(reader.latest).get(name) == place)  # type: ignore[misc]
    assert reader.error is None


def test_a_reader_keeps_the_error_that_ended_it(read: Reading, tmp_path: Path) -> None:
    """A run of a newer format ends the reading, and the surface can say why; no thread is left."""
    run = new_run(tmp_path / "run")
    make_unreadable(run, "newer")
    reader = read(run)
    reader.join()
    assert isinstance(reader.error, LogError)
    assert "upgrade" in str(reader.error)
    assert reader.latest == ()


class Told(Runs):
    """Runs that say so each time when they have told their reader how far it is."""

    def __init__(self, path: Path, told: Callable[[], None], options: ViewOptions | None = None) -> None:
        super().__init__([path], options)
        self._tell = told

    def refresh(self, progress: Progress | None = None) -> tuple[Snapshot, ...] | None:
        """Read what is new."""
        assert progress is not None

        def tell(done: int, total: int) -> None:
            progress(done, total)
            self._tell()

        return super().refresh(tell)


@pytest.mark.usefixtures("small_batches")
def test_a_reader_tells_how_much_of_a_long_log_is_read(tmp_path: Path) -> None:
    """While a long run is opened, the bytes read grow up to those that there are."""
    run = new_run(tmp_path / "run")
    sizes = [publish_next(run, "extremes", extremes([step])).file().stat().st_size for step in range(5)]
    told: list[tuple[int, int]] = []
    # It is read once more for its findings, which is told, too.
    reader = Reader(Told(run, lambda: told.append(reader.read), ViewOptions(findings=False)))
    reader.start()
    wait_until(lambda: bool(reader.latest))
    reader.stop()
    assert told == [(sum(sizes[: place + 1]), sum(sizes)) for place in range(5)]


@pytest.mark.usefixtures("small_batches")
def test_a_reader_that_is_opening_a_long_run_ends_between_two_batches(tmp_path: Path) -> None:
    """``stop`` does not wait for a long log to be read to its end, and stopping is no error."""
    run = new_run(tmp_path / "run")
    for step in range(50):
        publish_next(run, "extremes", extremes([step]))
    batches = 0
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        nonlocal batches
        batches += 1
        begun.set()
        go_on.wait(60)

    reader = Reader(Told(run, slow))
    reader.start()
    assert begun.wait(60)
    reader.runs.stopping.set()
    go_on.set()
    reader.stop()
    assert batches == 1
    assert reader.error is None
    assert reader.latest == ()


@pytest.mark.parametrize(
    "look",
    [ViewOptions(), ViewOptions(View.LAYERS), ViewOptions(View.PARAM, param="weight")],
    ids=lambda look: str(look.view),
)
def test_all_views_follow_a_run_to_its_end(read: Reading, tmp_path: Path, look: ViewOptions) -> None:
    """In each view, rows that come are shown, and the end of the run."""
    run = new_run(tmp_path / "run")
    reader = read(tmp_path, look=look)
    for step in range(3):
        publish_next(run, "extremes", extremes([step]))
        publish_next(run, "histograms", histograms([step]))
        wait_until(lambda step=step: steps(reader.latest).get("run") == step)  # type: ignore[misc]
    close_run(run)
    wait_until(lambda: reader.latest[0].state == "closed")
    assert reader.error is None


def test_a_run_that_is_done_is_not_opened_again_until_it_goes_on(tmp_path: Path, disk: Disk) -> None:
    """Of hundreds of closed runs no file is opened, and no folder listed; one that is resumed is followed as before."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes([0]))
    close_run(run)
    opened: list[object] = []

    def noted(file: object, *arguments: int) -> int:
        opened.append(file)
        return os.open(os.fspath(file), *arguments)  # type: ignore[call-overload]

    def noted_listing(folder: Path) -> contextlib.AbstractContextManager[Iterator[os.DirEntry[str]]]:
        opened.append(folder)
        return os.scandir(folder)

    with contextlib.closing(Runs([tmp_path], poll_seconds=1)) as runs:
        for _ in range(2):
            runs.refresh()
            runs.examine()
        disk.open, disk.scandir = noted, noted_listing
        assert (runs.refresh(), runs.examine(), opened) == (None, None, [tmp_path])
        (run / "closed-r00000.json").unlink()
        publish_next(run, "extremes", extremes([1]))
        beat(run, 0)
        (snapshot,) = all_shown(runs)
        assert (snapshot.state, snapshot.last_step) == ("running", 1)
