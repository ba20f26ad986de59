"""A run followed from before it exists to after it has ended, in this process."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime

import pytest
from watchdog.observers import Observer

from tests.disk import Disk
from tests.logs import (
    age_heartbeat,
    close_run,
    events,
    extremes,
    flip_bit,
    histograms,
    metrics,
    new_run,
    publish_next,
)
from tests.viewing import shown
from tests.waiting import wait_until
from tracer.log.parts import all_parts, merge
from tracer.log.ranks import HEARTBEAT_STALE_SECONDS, beat, close_rank
from tracer.log.read import rows_dropped
from tracer.log.run import open_run
from tracer.log.store import Local as Path
from viewer.options import View, ViewOptions
from viewer.read.live import Live
from viewer.read.monitor import FindingsMonitor
from viewer.snapshot import Snapshot
from viewer.words import notices


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    """Follows the run ``run``, which does not exist yet."""
    live = Live(tmp_path / "run")
    yield live
    live.close()


def woken_by(live: Live, action: Callable[[], object]) -> None:
    """The action ends an endless waiting."""
    waiter = threading.Thread(target=live.wait, args=(3600,))
    waiter.start()
    try:
        action()
        wait_until(lambda: not waiter.is_alive())
    finally:
        live.wake()
        waiter.join()


def without_a_row(run: Path) -> Snapshot:
    """A running run of which nothing is known but what run.json says."""
    started = datetime.fromisoformat(open_run(run).info["started"]).timestamp()
    return Snapshot(
        "run",
        "running",
        None,
        started=started,
        ranks=(0,),
        params=("weight",),
        all_params=("weight",),
        statistics=("grad_absmax", "value_absmax"),
    )


def test_the_layers_are_offered_what_was_recorded(live: Live) -> None:
    """A snapshot names the statistics that attach was asked for, of applied gradients, too, where they are recorded."""
    settings = {"stats": ["min", "max", "norm", "absmax"], "applied": True, "update": True}
    new_run(live.path, settings=settings)
    assert shown(live).statistics == (
        "grad_absmax", "grad_norm", "value_absmax", "value_norm", "applied_absmax", "applied_norm",
        "update_absmax", "update_norm", "update_ratio",
    )  # fmt: skip


def test_a_run_is_shown_from_before_it_exists_until_it_is_closed(live: Live) -> None:
    """Each change of the run makes one snapshot with all that is known by then; without a change there is none."""
    assert live.refresh() is None
    run = new_run(live.path)
    assert shown(live) == without_a_row(run)
    assert live.refresh() is None
    publish_next(run, "extremes", extremes([0, 1]))
    publish_next(run, "metrics", metrics([1], [0.5]))
    snapshot = shown(live)
    assert (snapshot.last_step, [curve.name for curve in snapshot.curves]) == (1, ["loss"])
    assert snapshot.extremes is not None
    assert list(snapshot.extremes.step) == [0, 1]
    assert live.refresh() is None
    merge(run, "extremes", 0)
    close_run(run)
    assert shown(live).state == "closed"
    assert live.refresh() is None


def test_a_run_that_stops_without_closing_is_shown_as_stopped(live: Live) -> None:
    """When the heartbeat grows old the state changes, although no row arrives."""
    run = new_run(live.path)
    assert shown(live).state == "running"
    age_heartbeat(run, HEARTBEAT_STALE_SECONDS + 1)
    assert shown(live).state == "stopped"
    assert live.refresh() is None


def test_a_run_that_replaces_another_starts_a_new_history(live: Live) -> None:
    """A folder that was deleted and holds another run shows nothing of the first one, even before its first row."""
    publish_next(new_run(live.path), "metrics", metrics([5], [0.5], "old_loss"))
    assert shown(live).last_step == 5
    shutil.rmtree(live.path)
    gone = shown(live)
    assert (gone.gone, gone.state, gone.last_step) == (True, "stopped", 5)
    assert notices([gone]) == ["the run's folder is gone: waiting for it"]
    assert live.refresh() is None
    run = new_run(live.path)
    assert shown(live) == without_a_row(run)
    publish_next(live.path, "metrics", metrics([0], [0.5], "new_loss"))
    snapshot = shown(live)
    assert (snapshot.last_step, [curve.name for curve in snapshot.curves]) == (0, ["new_loss"])


def test_a_run_that_is_gone_for_a_while_goes_on(live: Live, tmp_path: Path) -> None:
    """A folder that comes back, as of a disk that is mounted again, is shown as before, with what came meanwhile."""
    publish_next(new_run(live.path), "metrics", metrics([5], [0.5]))
    before = shown(live)
    Path(live.path).rename(tmp_path / "away")
    assert shown(live).gone
    (tmp_path / "away").rename(live.path)
    assert shown(live) == before
    publish_next(live.path, "metrics", metrics([6], [0.5]))
    assert shown(live).last_step == 6


def test_a_wake_up_ends_one_waiting_only(live: Live) -> None:
    """A waiting that begins after the wake-up was heard lasts until the next one."""
    live.wake()
    live.wait(3600)
    waiter = threading.Thread(target=live.wait, args=(3600,))
    waiter.start()
    waiter.join(0.1)
    assert waiter.is_alive()
    live.wake()
    waiter.join()


def test_publishing_and_closing_wake_the_viewer(live: Live) -> None:
    """Rows, metrics and the closed mark end the waiting at once, without the rescan."""
    run = new_run(live.path)
    live.refresh()
    live.wait(0)
    woken_by(live, lambda: publish_next(run, "extremes", extremes([0])))
    live.wait(0)
    woken_by(live, lambda: publish_next(run, "metrics", metrics([0], [1.0])))
    live.wait(0)
    woken_by(live, lambda: close_run(run))


def test_a_run_that_replaces_another_wakes_the_viewer(live: Live) -> None:
    """Events come from the new folder, too, after the watched one was deleted."""
    new_run(live.path)
    live.refresh()
    shutil.rmtree(live.path)
    live.refresh()
    run = new_run(live.path)
    live.refresh()
    live.wait(0)
    woken_by(live, lambda: publish_next(run, "extremes", extremes([0])))


@pytest.mark.parametrize("refusing", ["__init__", "schedule"])
def test_without_events_the_rescan_finds_new_rows(live: Live, monkeypatch: pytest.MonkeyPatch, refusing: str) -> None:
    """Where the system refuses to watch folders, waiting lasts its time, and the next listing has the rows."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "inotify instance limit reached")

    monkeypatch.setattr(Observer, refusing, refuse)
    run = new_run(live.path)
    shown(live)
    publish_next(run, "extremes", extremes([0]))
    live.wait(0.01)
    assert shown(live).last_step == 0


def test_a_damaged_part_is_named_and_the_rest_is_shown(live: Live) -> None:
    """A part with a flipped bit is named in the snapshot, once; the rows around it are shown."""
    run = new_run(live.path)
    publish_next(run, "extremes", extremes([0]))
    damaged = publish_next(run, "extremes", extremes([1]))
    flip_bit(damaged.path)
    publish_next(run, "extremes", extremes([2]))
    snapshot = shown(live)
    assert snapshot.extremes is not None
    assert list(snapshot.extremes.step) == [0, 2]
    (problem,) = snapshot.problems
    assert problem.startswith(damaged.path.name)
    assert live.refresh() is None
    publish_next(run, "extremes", extremes([3]))
    assert shown(live).problems == snapshot.problems


def test_a_part_that_is_listed_but_gone_is_waited_for(live: Live, disk: Disk) -> None:
    """A listing older than its files, as on a network disk, ends nothing; what was read meanwhile is shown later."""
    run = new_run(live.path)
    shown(live)
    publish_next(run, "extremes", extremes([7]))
    gone = publish_next(run, "metrics", metrics([8], [1.0]))
    old_listing = list(os.scandir(run / "metrics"))
    gone.file().unlink()

    def scandir(folder: Path) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
        return nullcontext(iter(old_listing)) if folder == run / "metrics" else os.scandir(folder)

    disk.scandir = scandir
    assert live.refresh() is None
    disk.scandir = os.scandir
    assert shown(live).last_step == 7


def test_a_snapshot_says_what_is_known_of_the_run(live: Live) -> None:
    """A snapshot has times, speed, ranks, parameters, how long the run will be, and what was dropped, as is known."""
    run = new_run(live.path, ["a.weight", "a.bias"], settings={"total_steps": 50})
    publish_next(run, "extremes", extremes(range(5), ["a.weight", "a.bias"]))
    publish_next(run, "metrics", metrics([9], [1.0]))
    beat(run, 3)
    snapshot = shown(live)
    began = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert abs(snapshot.started - time.time()) < 600
    assert (snapshot.last_step, snapshot.last_time, snapshot.steps_per_second) == (9, began + 9, 1.0)
    assert (snapshot.total_steps, snapshot.ranks, snapshot.dropped) == (50, (0, 3), 0)
    assert snapshot.params == snapshot.all_params == ("a.weight", "a.bias")
    close_rank(run, 0, {"last_step": 9, "rows_dropped": {"extremes": 5, "metrics": 1}})
    publish_next(run, "metrics", metrics([9], [1.0]), rank=3)
    assert (shown(live).dropped, rows_dropped(run)) == (6, 6)
    close_rank(run, 3, {"last_step": 9, "rows_dropped": {"extremes": 30}})
    closed = shown(live)
    assert (closed.state, closed.dropped) == ("closed", 36)


def test_what_was_dropped_before_a_run_was_resumed_counts_too(live: Live) -> None:
    """A loss counts once: as it is told, or as the mark counts those since the last resume; as in ``tracer info``."""
    run = new_run(live.path)
    publish_next(run, "events", events([3], "dropped", detail='{"extremes": 5, "metrics": 2}'))
    assert (shown(live).dropped, rows_dropped(run)) == (7, 7)
    publish_next(run, "events", events([3], "resumed", attempt=1))
    publish_next(run, "events", events([9], "dropped", detail='{"extremes": 30}', attempt=1))
    close_rank(run, 0, {"last_step": 9, "rows_dropped": {"extremes": 31}})
    evidence = FindingsMonitor(run).refresh()
    assert evidence is not None
    assert (shown(live).dropped, evidence.dropped, rows_dropped(run)) == (38, 38, 38)


def test_what_was_dropped_before_a_checkpoint_was_restored_counts_once(live: Live) -> None:
    """The process is the same, so that its mark has counted that, too."""
    run = new_run(live.path)
    publish_next(run, "events", events([3], "dropped", detail='{"extremes": 5}'))
    publish_next(run, "events", events([2], "restored", attempt=1))
    publish_next(run, "events", events([4], "dropped", detail='{"extremes": 2}', attempt=1))
    assert (shown(live).dropped, rows_dropped(run)) == (7, 7)
    close_rank(run, 0, {"last_step": 9, "rows_dropped": {"extremes": 7}})
    assert (shown(live).dropped, rows_dropped(run)) == (7, 7)


def test_a_run_of_an_older_tracer_has_no_length(live: Live) -> None:
    """Where run.json says nothing of it, how many steps there will be is unknown, and nothing dropped is nothing."""
    run = new_run(live.path)
    close_rank(run, 0, {"last_step": 0})
    snapshot = shown(live)
    assert (snapshot.total_steps, snapshot.dropped, snapshot.complete) == (None, 0, True)


def look_at(path: Path, look: ViewOptions) -> Snapshot:
    """A run's snapshot for a look."""
    live = Live(path, look)
    try:
        return shown(live)
    finally:
        live.close()


def test_only_matching_parameters_are_shown_of_those_there(tmp_path: Path) -> None:
    """The parameters that the expression picks stand beside all that there are, in model order."""
    run = new_run(tmp_path / "run", ["z.bias", "a.weight", "a.bias"])
    publish_next(run, "extremes", extremes([0], ["z.bias", "a.weight", "a.bias"]))
    snapshot = look_at(run, ViewOptions(View.LAYERS, params="bias"))
    assert (snapshot.params, snapshot.all_params) == (("z.bias", "a.bias"), ("z.bias", "a.weight", "a.bias"))
    assert snapshot.layers is not None
    assert list(snapshot.layers.params) == ["z.bias", "a.bias"]
    assert snapshot.extremes is None


def test_a_parameter_is_shown_with_its_histograms(tmp_path: Path) -> None:
    """The view of a parameter reads extremes and histograms, as they are published."""
    live = Live(new_run(tmp_path / "run"), ViewOptions(View.PARAM, param="weight"))
    try:
        publish_next(live.path, "extremes", extremes([0, 1]))
        publish_next(live.path, "metrics", metrics([5], [1.0]))
        first = shown(live)
        assert (first.last_step, dict(first.histograms), first.curves) == (1, {}, ())
        publish_next(live.path, "histograms", histograms([1]))
        (histogram,) = shown(live).histograms["grad"]
        assert (histogram.step, histogram.low, histogram.high, histogram.counts) == (1, -2.0, 2.0, [1, 0, 3])
    finally:
        live.close()


def test_a_run_without_a_folder_of_histograms_shows_the_parameter(tmp_path: Path) -> None:
    """A run that was not asked for histograms has no folder of them: the rest is shown, and it can be complete."""
    run = new_run(tmp_path / "run")
    (run / "histograms").rmdir()
    publish_next(run, "extremes", extremes([0]))
    close_rank(run, 0, {"last_step": 0, "published": {"extremes": 1, "metrics": 7}})
    snapshot = look_at(run, ViewOptions(View.PARAM, param="weight"))
    assert (snapshot.state, snapshot.complete, dict(snapshot.histograms)) == ("closed", True, {})


def test_a_folder_of_histograms_that_comes_later_wakes_the_viewer(tmp_path: Path) -> None:
    """A run resumed with histograms is followed there, too."""
    run = new_run(tmp_path / "run")
    (run / "histograms").rmdir()
    live = Live(run, ViewOptions(View.PARAM, param="weight"))
    try:
        shown(live)
        (run / "histograms").mkdir()
        live.refresh()
        live.wait(0)
        woken_by(live, lambda: publish_next(run, "histograms", histograms([4])))
        assert shown(live).last_step == 4
    finally:
        live.close()


@pytest.mark.parametrize("end", [close_run, lambda run: age_heartbeat(run, 60)], ids=["closed", "stopped"])
def test_a_run_that_has_ended_costs_no_thread_and_may_go_on(live: Live, end: Callable[[Path], None]) -> None:
    """Nothing is watched of a run that is over; one that is resumed is, again."""
    before = threading.active_count()
    run = new_run(live.path)
    live.refresh()
    watched = threading.active_count()
    assert watched > before
    end(run)
    live.refresh()
    # One thread reads the events of all folders.
    assert threading.active_count() <= before + 2
    (run / "closed-r00000.json").unlink(missing_ok=True)
    beat(run, 0)
    assert shown(live).state == "running"
    live.wait(0)
    woken_by(live, lambda: publish_next(run, "extremes", extremes([0])))


def test_a_run_that_was_begun_but_not_yet_written_is_watched(live: Live) -> None:
    """Between run.json and the first heartbeat, events are waited for."""
    run = new_run(live.path)
    (run / "heartbeat-r00000").unlink()
    live.refresh()
    live.wait(0)
    woken_by(live, lambda: beat(run, 0))


def test_a_run_that_is_deleted_while_it_is_opened_is_waited_for(live: Live, disk: Disk) -> None:
    """A folder that vanishes between two looks at it is no error."""
    run = new_run(live.path)

    def deleted_before(path: Path, *flags: int) -> int:
        shutil.rmtree(run, ignore_errors=True)
        return os.open(path, *flags)

    disk.open = deleted_before
    assert live.refresh() is None
    disk.open = os.open
    assert not run.exists()
    new_run(live.path)
    assert shown(live).state == "running"


def drawn(snapshot: Snapshot) -> list[int]:
    """The steps of the extremes that a snapshot shows."""
    return [] if snapshot.extremes is None else list(snapshot.extremes.step)


def test_a_run_that_was_restored_shows_nothing_of_what_it_abandoned(live: Live) -> None:
    """From the event on, abandoned steps are gone, whether or not they are reached again; a late row of theirs, too."""
    run = new_run(live.path)
    publish_next(run, "extremes", extremes(range(5)))
    publish_next(run, "metrics", metrics([4], [0.5]))
    assert drawn(shown(live)) == [0, 1, 2, 3, 4]
    publish_next(run, "events", events([2], "restored", attempt=1))
    snapshot = shown(live)
    assert (drawn(snapshot), snapshot.last_step, snapshot.curves) == ([0, 1], 1, ())
    publish_next(run, "extremes", extremes([5]))
    assert drawn(shown(live)) == [0, 1]
    publish_next(run, "extremes", extremes([2], attempt=1))
    assert drawn(shown(live)) == [0, 1, 2]
    assert live.refresh() is None


@pytest.mark.usefixtures("small_batches")
def test_without_its_event_a_new_attempt_begins_with_its_first_row(live: Live) -> None:
    """Where the events are damaged, rows of a later attempt take the place of earlier ones, which are read before."""
    run = new_run(live.path)
    publish_next(run, "extremes", extremes(range(5)))
    shown(live)
    flip_bit(publish_next(run, "events", events([2], "restored", attempt=1)).path)
    publish_next(run, "extremes", extremes([3], attempt=1))
    assert drawn(shown(live)) == [0, 1, 2, 3]
    publish_next(run, "extremes", extremes([4], attempt=1))
    assert drawn(shown(live)) == [0, 1, 2, 3, 4]


def test_a_run_that_was_resumed_is_not_read_again(live: Live) -> None:
    """Where a later attempt begins after all that is shown, what has been read is kept."""
    run = new_run(live.path)
    publish_next(run, "events", events([3], "resumed", attempt=1))
    for attempt in (1, 2, 3):
        publish_next(run, "events", events([3 * attempt], "resumed", attempt=attempt))
        publish_next(run, "extremes", extremes(range(3 * attempt, 3 * attempt + 3), attempt=attempt))
        snapshot = shown(live)
        assert drawn(snapshot) == list(range(3, 3 * attempt + 3))
        assert not snapshot.problems
        # A second reading would find nothing but damage.
        for part in all_parts(run, "extremes"):
            part.file().write_bytes(b"read already")


def test_an_event_alone_wakes_the_viewer(live: Live) -> None:
    """A restore is shown before the first row that follows it."""
    run = new_run(live.path)
    live.refresh()
    live.wait(0)
    woken_by(live, lambda: publish_next(run, "events", events([0], "restored", attempt=1)))


def test_deleting_and_recreating_at_full_speed_ends_nothing(live: Live) -> None:
    """Beside a process that deletes the run and begins it anew all the time, refreshing raises nothing."""

    def write() -> None:
        for number in range(25):
            run = new_run(live.path, run_id=str(number))
            publish_next(run, "extremes", extremes([number]))
            publish_next(run, "metrics", metrics([number], [1.0]))
            close_run(run)
            if number < 24:
                shutil.rmtree(run)

    writer = threading.Thread(target=write)
    writer.start()
    seen: list[Snapshot | None] = []
    while writer.is_alive():
        seen.append(live.refresh())
    writer.join()
    seen.append(live.refresh())
    last = [each for each in seen if each is not None][-1]
    assert (last.state, last.last_step) == ("closed", 24)
    assert last.extremes is not None
    assert list(last.extremes.step) == [24]


def test_a_snapshot_does_not_change_while_the_run_goes_on(live: Live) -> None:
    """What was shown before new rows came is as it was, whatever was read since."""
    run = new_run(live.path)
    publish_next(run, "extremes", extremes([0]))
    for look in (ViewOptions(), ViewOptions(View.LAYERS), ViewOptions(View.PARAM, param="weight")):
        other = Live(run, look)
        try:
            before = shown(other)
            kept = repr(before)
            publish_next(run, "extremes", extremes([7], values={"grad_max": [99.0]}))
            shown(other)
            assert repr(before) == kept
        finally:
            other.close()
