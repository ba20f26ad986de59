"""A run followed from before it exists to after it has ended, in this process."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.logs import age_heartbeat, close_run, extremes, flip_bit, metrics, new_run, publish_next
from tests.viewing import shown
from tests.waiting import wait_until
from tracer.log.parts import list_parts, merge
from tracer.log.run import HEARTBEAT_STALE_SECONDS, LogError
from viewer.live import Live, Reader, Snapshot


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


def test_a_run_is_shown_from_before_it_exists_until_it_is_closed(live: Live) -> None:
    """Each change of the run makes one snapshot with all that is known by then; without a change there is none."""
    assert live.refresh() is None
    run = new_run(live.path)
    assert shown(live) == Snapshot("run", "running", None)
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
    assert live.refresh() is None
    new_run(live.path)
    assert shown(live) == Snapshot("run", "running", None)
    publish_next(live.path, "metrics", metrics([0], [0.5], "new_loss"))
    snapshot = shown(live)
    assert (snapshot.last_step, [curve.name for curve in snapshot.curves]) == (0, ["new_loss"])


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


@pytest.mark.parametrize("refusing", ["viewer.follow.Observer", "watchdog.observers.api.BaseObserver.schedule"])
def test_without_events_the_rescan_finds_new_rows(live: Live, monkeypatch: pytest.MonkeyPatch, refusing: str) -> None:
    """Where the system refuses to watch folders, waiting lasts its time, and the next listing has the rows."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "inotify instance limit reached")

    monkeypatch.setattr(refusing, refuse)
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


def test_a_part_that_is_listed_but_gone_is_waited_for(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing older than its files, as on a network disk, ends nothing; what was read meanwhile is shown later."""
    run = new_run(live.path)
    shown(live)
    publish_next(run, "extremes", extremes([7]))
    gone = publish_next(run, "metrics", metrics([8], [1.0]))
    gone.path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("tracer.log.parts.list_parts", lambda run, table: list_parts(run, table) or [gone])
        assert live.refresh() is None
    assert shown(live).last_step == 7


def test_a_reader_shows_what_comes_and_ends_when_asked(live: Live) -> None:
    """The reading thread keeps the newest snapshot, wakes by itself, and is gone after ``stop``."""
    run = new_run(live.path)
    reader = Reader(live)
    reader.start()
    try:
        wait_until(lambda: reader.latest is not None)
        publish_next(run, "extremes", extremes([3]))
        wait_until(lambda: reader.latest is not None and reader.latest.last_step == 3)
    finally:
        reader.stop()
    assert not reader.is_alive()
    assert reader.error is None


def test_a_reader_keeps_the_error_that_ended_it(live: Live) -> None:
    """A run of a newer format ends the reading, and the surface can say why."""
    run = new_run(live.path)
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"format": 99}))
    reader = Reader(live)
    reader.start()
    reader.join()
    assert isinstance(reader.error, LogError)
    assert "upgrade" in str(reader.error)
