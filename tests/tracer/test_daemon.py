import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

import tracer
from tests.disk import Disk
from tests.halves import first_of
from tests.logs import events, metrics, new_run
from tests.training import mlp
from tests.waiting import wait_until
from tracer.daemon import Daemon, DaemonSettings, cadence_seconds
from tracer.log import parts
from tracer.log.ranks import closed_summaries, state
from tracer.log.store import Local as Path

_OTHER = """
import os, sys
from tests.tracer.test_daemon import start
from tracer.log.store import Local
daemon = start(Local(sys.argv[1]), cadence=lambda age: 0.0, tick_seconds=0.01)
daemon.put("metrics", 7)
while not daemon.rows["metrics"]:
    pass
print(os.getpid(), flush=True)
os._exit(0)
"""


def encode(items: Sequence[int]) -> pa.Table:
    """Each item is a step; its metric is the number itself."""
    return metrics(list(items), [float(item) for item in items])


def logged(run: Path) -> list[int]:
    """The steps in the log."""
    return tracer.scan(run, "metrics").collect()["step"].to_list()


def start(run: Path, **settings: Any) -> Daemon:
    """A daemon that writes metrics alone, and these of its settings."""
    return Daemon(new_run(run), 0, {"metrics": encode}, lambda item: item, settings=DaemonSettings(**settings))


def threads() -> list[threading.Thread]:
    """Those of daemons."""
    return [thread for thread in threading.enumerate() if thread.name == "gradwatch-daemon"]


class Lagging:
    """A daemon whose device comes to an item with the number 1 only so many seconds after the daemon's ``end``.

    The seconds pass on a clock of its own. Then the device waits until somebody waits for the daemon.
    """

    def __init__(self, run: Path, seconds: float, released: bool = True) -> None:
        self._now, self._seconds, self._waiter = 0.0, seconds, threading.get_ident()
        self.begun, self._ended, self._lagged, self.release = (threading.Event() for _ in range(4))
        self._released = released
        settings = DaemonSettings(clock=self._clock, tick_seconds=0.01, cadence=lambda age_seconds: 0.0)
        self.daemon = Daemon(new_run(run), 0, {"metrics": encode}, self._on_host, settings=settings)

    def _clock(self) -> float:
        if self._released and self._lagged.is_set() and threading.get_ident() == self._waiter:
            self.release.set()
        return self._now

    def _on_host(self, number: int) -> int:
        if number:
            self.begun.set()
            self._ended.wait()
            self._now += self._seconds
            self._lagged.set()
            self.release.wait()
        return number

    def close(self) -> None:
        """Close the daemon while the device lags."""
        self.begun.wait()
        self.daemon.end({})
        self._ended.set()
        self._lagged.wait()
        self.daemon.wait()


def break_merges(disk: Disk, of: str = "metrics") -> None:
    """Let the disk be full for merged parts of a table."""

    def replace(source: Path, target: Path) -> None:
        part = parts.Part.parse(target)
        if part is not None and part.first < part.last and target.parent.name == of:
            raise OSError(28, "No space left on device")
        os.replace(source, target)

    disk.replace = replace


@pytest.mark.parametrize(
    ("age", "cadence"), [(0, 1.0), (60, 1.0), (100, 1.0), (200, 2.0), (2_999, 29.99), (3_000, 30.0), (600_000, 30.0)]
)
def test_the_cadence_is_a_hundredth_of_the_age_within_bounds(age: float, cadence: float) -> None:
    """Rows wait 1 % of the run's age, at least 1 s and at most 30 s."""
    assert cadence_seconds(age) == pytest.approx(cadence)


def test_rows_are_published_while_the_run_goes_on(tmp_path: Path) -> None:
    """What was put appears in the log by itself, in order, without a close."""
    daemon = start(tmp_path / "run")
    for number in range(10):
        daemon.put("metrics", number)
    wait_until(lambda: logged(tmp_path / "run") == list(range(10)))
    daemon.put("metrics", 10)
    wait_until(lambda: logged(tmp_path / "run") == list(range(11)))
    assert state(tmp_path / "run") == "running"
    daemon.close({})


def test_close_publishes_everything_merges_and_says_so(tmp_path: Path) -> None:
    """After close all rows are in one part, the closed mark counts them, and the thread is gone."""
    daemon = start(tmp_path / "run")
    daemon.put("metrics", 0)
    wait_until(lambda: logged(tmp_path / "run") == [0])
    for number in range(1, 100):
        daemon.put("metrics", number)
    daemon.close({"last_step": 99})
    assert logged(tmp_path / "run") == list(range(100))
    (part,) = parts.list_parts(tmp_path / "run", "metrics")
    assert (part.first, part.last) == (0, 1)
    (summary,) = closed_summaries(tmp_path / "run")
    assert (summary["last_step"], summary["rows"], summary["rows_dropped"]) == (99, {"metrics": 100}, {"metrics": 0})
    assert state(tmp_path / "run") == "closed"
    assert not threads()


def test_close_has_all_its_time_after_a_device_that_lags(tmp_path: Path) -> None:
    """Rows that a device gives 30 s after the end are written and merged: the limits are the disk's alone."""
    lagging = Lagging(tmp_path / "run", seconds=30.0)
    lagging.daemon.put("metrics", 0)
    wait_until(lambda: logged(tmp_path / "run") == [0])
    lagging.daemon.put("metrics", 1)
    lagging.close()
    assert logged(tmp_path / "run") == [0, 1]
    assert len(parts.list_parts(tmp_path / "run", "metrics")) == 1
    assert state(tmp_path / "run") == "closed"


def test_close_does_not_wait_for_ever_for_a_device(tmp_path: Path) -> None:
    """A device that hangs, as with ranks that wait for each other, is waited for a minute, which a warning says."""
    lagging = Lagging(tmp_path / "run", seconds=66.0, released=False)
    lagging.daemon.put("metrics", 1)
    with pytest.warns(tracer.TracerWarning, match="a device has not given the last rows of .* within 60 s"):
        lagging.close()
    lagging.release.set()
    wait_until(lambda: not threads())


def test_what_exceeds_the_limit_is_dropped_and_counted(tmp_path: Path) -> None:
    """A flood keeps the oldest, never blocks, warns once, and the closed mark says how many rows were lost."""
    with pytest.warns(tracer.TracerWarning, match="rows are dropped: 1 MiB wait") as caught:
        daemon = start(tmp_path / "run", limit_bytes=1 << 20)
        for number in range(30):
            daemon.put("metrics", number, rows=3, size_bytes=100_000)
        daemon.close({})
    assert len(caught) == 1
    (summary,) = closed_summaries(tmp_path / "run")
    assert summary["rows_dropped"] == {"metrics": 60}
    assert logged(tmp_path / "run") == list(range(10))


def test_half_the_limit_is_published_before_its_time(tmp_path: Path) -> None:
    """However long the cadence has become, a burst does not wait until rows have to be dropped."""
    daemon = start(tmp_path / "run", limit_bytes=1 << 20, cadence=lambda age_seconds: 3_600.0)
    daemon.put("metrics", 0, size_bytes=300_000)
    daemon.put("metrics", 1, size_bytes=300_000)
    wait_until(lambda: logged(tmp_path / "run") == [0, 1])
    daemon.close({})


def test_a_copy_that_never_lands_costs_its_rows_alone(tmp_path: Path) -> None:
    """A device that fails loses what it did not give, and the daemon goes on."""

    def on_host(item: int) -> int:
        if item == 1:
            raise RuntimeError("device lost")
        return item

    with pytest.warns(tracer.TracerWarning, match="device lost"):
        daemon = Daemon(new_run(tmp_path / "run"), 0, {"metrics": encode}, on_host)
        for number in range(3):
            daemon.put("metrics", number)
        daemon.close({})
    assert logged(tmp_path / "run") == [0, 2]
    (summary,) = closed_summaries(tmp_path / "run")
    assert summary["rows_dropped"] == {"metrics": 1}


def test_a_merge_that_fails_keeps_neither_rows_nor_other_tables_from_being_complete(tmp_path: Path, disk: Disk) -> None:
    """The run is closed, parts that cannot be merged are complete as they are, and each table is merged by itself."""
    run = tmp_path / "run"
    break_merges(disk, "metrics")
    with pytest.warns(tracer.TracerWarning, match="No space left on device"):
        encoders = {"metrics": encode, "events": lambda items: events(list(items))}
        daemon = Daemon(new_run(run), 0, encoders, lambda item: item)
        for number in range(2):
            daemon.put("metrics", number)
            daemon.put("events", number)
            wait_until(lambda: logged(run) == list(range(number + 1)))  # noqa: B023
        daemon.close({})
    assert logged(run) == [0, 1]
    assert [(part.first, part.last) for part in parts.all_parts(run, "metrics")] == [(0, 0), (1, 1)]
    assert [(part.first, part.last) for part in parts.all_parts(run, "events")] == [(0, 1)]
    assert state(run) == "closed"


def test_a_part_that_is_damaged_while_it_is_merged_is_no_trouble_of_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where bytes change between a merge's look at them and their reading, parts stay as they are, without a word."""
    monkeypatch.setattr("tracer.log.parts.damage", lambda part: None)
    run = tmp_path / "run"
    daemon = start(run, gathered_parts=2)
    daemon.put("metrics", 0)
    wait_until(lambda: logged(run) == [0])
    parts.list_parts(run, "metrics")[0].file().write_bytes(b"damaged")
    daemon.put("metrics", 1)
    wait_until(lambda: len(parts.all_parts(run, "metrics")) == 2)
    daemon.close({})
    assert len(parts.all_parts(run, "metrics")) == 2
    assert state(run) == "closed"


def test_a_merge_that_takes_long_is_not_taken_for_lost_rows(tmp_path: Path, disk: Disk) -> None:
    """Once the closed mark is written, close says nothing of what it does not wait for."""
    run = tmp_path / "run"
    goes_on = threading.Event()
    daemon = start(run, wait_seconds=0.5)
    daemon.put("metrics", 0)
    wait_until(lambda: logged(run) == [0])

    def replace(source: Path, target: Path) -> None:
        if (part := parts.Part.parse(target)) is not None and part.first < part.last:
            goes_on.wait(60)
        os.replace(source, target)

    disk.replace = replace
    daemon.put("metrics", 1)
    daemon.close({})
    (thread,) = threads()
    assert state(run) == "closed"
    goes_on.set()
    thread.join()
    assert logged(run) == [0, 1]
    assert len(parts.all_parts(run, "metrics")) == 1


def test_a_full_disk_costs_a_warning_and_no_row_once_there_is_space(tmp_path: Path, disk: Disk) -> None:
    """Rows wait while nothing can be written, and are published as soon as something can."""
    full = threading.Event()
    full.set()
    failed = threading.Event()

    def replace_or_fail(source: Path, target: Path) -> None:
        if full.is_set():
            failed.set()
            raise OSError(28, "No space left on device")
        os.replace(source, target)

    with pytest.warns(tracer.TracerWarning, match="No space left on device") as caught:
        daemon = start(tmp_path / "run")
        disk.replace = replace_or_fail
        daemon.put("metrics", 0)
        assert failed.wait(60)
        daemon.put("metrics", 1)
        full.clear()
        wait_until(lambda: logged(tmp_path / "run") == [0, 1])
        daemon.close({})
    assert len(caught) == 1
    assert list((tmp_path / "run" / "staging").iterdir()) == []


@pytest.mark.parametrize(("folder", "kept"), first_of([("staging", [0, 1]), ("metrics", [1])]))
def test_a_folder_in_the_runs_that_is_deleted_is_made_again(tmp_path: Path, folder: str, kept: list[int]) -> None:
    """While the run itself is there, what came after the deletion is written, with one warning."""
    run = tmp_path / "run"
    daemon = start(run)
    daemon.put("metrics", 0)
    wait_until(lambda: logged(run) == [0])
    with pytest.warns(tracer.TracerWarning, match="No such file or directory") as caught:
        shutil.rmtree(run / folder)
        daemon.put("metrics", 1)
        wait_until(lambda: logged(run) == kept)
        shutil.rmtree(run / "staging")
        daemon.close({})
    assert len(caught) == 1
    (summary,) = closed_summaries(run)
    assert (summary["rows"], summary["rows_dropped"]) == ({"metrics": 2}, {"metrics": 0})


def test_the_folders_of_a_run_that_was_deleted_are_not_made_again(tmp_path: Path) -> None:
    """Where run.json is gone as well, as on a disk that was unmounted, nothing is made in its place."""
    run = tmp_path / "run"
    with (
        pytest.warns(tracer.TracerWarning, match="No such file or directory"),
        pytest.warns(tracer.TracerWarning, match="did not take them in time"),
    ):
        daemon = start(run, last_tries_seconds=1.0)
        shutil.rmtree(run)
        run.mkdir()
        daemon.put("metrics", 0)
        daemon.close({})
    assert not [path for path in run.iterdir() if path.is_dir()]


def test_a_run_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    """Where a run was deleted and another process has begun one in its place, that one's log stays as it is."""
    run, new = tmp_path / "run", tmp_path / "new"
    other = subprocess.run([sys.executable, "-c", _OTHER, str(new)], check=True, capture_output=True)
    daemon = start(run, last_tries_seconds=0.2)
    daemon.put("metrics", 0)
    wait_until(lambda: logged(run) == [0])
    run.rename(tmp_path / "old")
    new.rename(run)
    names = sorted(run.rglob("*"))
    with (
        pytest.warns(tracer.TracerWarning, match=f"is being written by .* {other.stdout.decode().strip()}'"),
        pytest.warns(tracer.TracerWarning, match="rows of metrics are lost"),
    ):
        daemon.put("metrics", 1)
        daemon.close({})
    assert sorted(run.rglob("*")) == names
    assert logged(run) == [7]


def test_a_disk_that_stays_full_counts_what_was_lost(tmp_path: Path, disk: Disk) -> None:
    """close() gives up on rows that no disk takes, ends the thread, and counts them where it still can."""

    def replace(source: Path, target: Path) -> None:
        if target.parent.name == "metrics":
            raise OSError(28, "No space left on device")
        os.replace(source, target)

    with (
        pytest.warns(tracer.TracerWarning, match="rows of metrics are lost: .* did not take them in time"),
        pytest.warns(tracer.TracerWarning, match="cannot be written"),
    ):
        daemon = start(tmp_path / "run", last_tries_seconds=0.5)
        disk.replace = replace
        daemon.put("metrics", 0, rows=4)
        daemon.close({})
    (summary,) = closed_summaries(tmp_path / "run")
    assert summary["rows_dropped"] == {"metrics": 4}
    assert not threads()


def test_rows_that_cannot_be_encoded_are_dropped_and_the_rest_goes_on(tmp_path: Path) -> None:
    """One bad batch does not block those after it."""

    def fussy(items: Sequence[int]) -> pa.Table:
        if -1 in items:
            raise ValueError("not a step")
        return encode(items)

    with pytest.warns(tracer.TracerWarning, match="not a step"):
        daemon = Daemon(new_run(tmp_path / "run"), 0, {"metrics": fussy}, lambda item: item)
        daemon.put("metrics", -1)
        wait_until(lambda: daemon.dropped["metrics"] == 1)
        daemon.put("metrics", 5)
        daemon.close({})
    assert logged(tmp_path / "run") == [5]


def test_a_row_that_cannot_be_encoded_takes_no_other_with_it(tmp_path: Path) -> None:
    """Of a batch only the bad rows are lost, and they are counted."""

    def fussy(items: Sequence[int]) -> pa.Table:
        if min(items) < 0:
            raise ValueError("not a step")
        return encode(items)

    with pytest.warns(tracer.TracerWarning, match="rows of metrics are lost: they cannot be encoded"):
        daemon = Daemon(new_run(tmp_path / "run"), 0, {"metrics": fussy}, lambda item: item)
        for step in (0, -1, 1, -2, 2):
            daemon.put("metrics", step)
        daemon.close({})
    assert logged(tmp_path / "run") == [0, 1, 2]
    assert daemon.dropped == {"metrics": 2}


def test_a_batch_that_cannot_be_encoded_together_is_lost_once(tmp_path: Path) -> None:
    """Rows of which each is good alone, and that do not go together, are counted as lost; the daemon ends."""

    def unsociable(items: Sequence[int]) -> pa.Table:
        if len(items) > 1:
            raise ValueError("too many")
        return encode(items)

    with pytest.warns(tracer.TracerWarning, match="too many"):
        daemon = Daemon(new_run(tmp_path / "run"), 0, {"metrics": unsociable}, lambda item: item)
        for step in (0, 1):
            daemon.put("metrics", step)
        daemon.close({})
    assert daemon.dropped == {"metrics": 2}


def test_lack_of_memory_costs_no_row(tmp_path: Path) -> None:
    """Rows that cannot be encoded for lack of memory are kept, and are in the log once there is enough."""
    shortages = [MemoryError(), pa.ArrowMemoryError(), MemoryError()]

    def short_of_memory(items: Sequence[int]) -> pa.Table:
        if shortages:
            raise shortages.pop()
        return encode(items)

    with pytest.warns(tracer.TracerWarning, match="what waits is kept in memory and tried again"):
        daemon = Daemon(new_run(tmp_path / "run"), 0, {"metrics": short_of_memory}, lambda item: item)
        for step in range(3):
            daemon.put("metrics", step)
        daemon.close({})
    assert logged(tmp_path / "run") == [0, 1, 2]
    assert (daemon.dropped, shortages) == ({"metrics": 0}, [])


def test_events_are_published_first(tmp_path: Path, disk: Disk) -> None:
    """What says where an attempt begins is in the log before its rows, in each round."""
    order: list[str] = []
    encoders = {"metrics": encode, "events": lambda items: events(list(items))}
    daemon = Daemon(new_run(tmp_path / "run"), 0, encoders, lambda item: item)

    def replace(source: Path, target: Path) -> None:
        order.append(target.parent.name)
        os.replace(source, target)

    disk.replace = replace
    daemon.put("metrics", 0)
    daemon.put("events", 0)
    daemon.close({})
    assert order[:2] == ["events", "metrics"]


def test_the_heartbeat_is_renewed_without_rows(tmp_path: Path) -> None:
    """A rank that has nothing to write is seen to be alive, every five seconds."""
    now = 0.0
    daemon = start(tmp_path / "run", tick_seconds=0.001, clock=lambda: now)
    heartbeat = tmp_path / "run" / "heartbeat-r00000"
    os.utime(heartbeat, (0, 0))
    now = 4.9
    daemon.put("metrics", 0)
    wait_until(lambda: logged(tmp_path / "run") == [0])
    assert heartbeat.stat().st_mtime == 0
    now = 5.0
    wait_until(lambda: heartbeat.stat().st_mtime > 0)
    daemon.close({})


def test_a_killed_process_leaves_a_log_complete_up_to_the_cadence(tmp_path: Path) -> None:
    """After SIGKILL every part reads, steps have no gap and no repeat, and at most one cadence of them is missing."""
    script = f"""
import time, torch, tracer
from tests.training import loss_of, mlp
model = mlp()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with tracer.attach(model, {str(tmp_path / "run")!r}) as trace:
    while True:
        optimizer.zero_grad(); loss_of(model).backward(); optimizer.step(); trace.log(wall=time.time())
        time.sleep(0.002)
"""
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(list(run.glob("extremes/*"))) >= 4)
    finally:
        killed = time.time()
        process.send_signal(signal.SIGKILL)
        process.wait()
    rows = pl.scan_parquet(run / "extremes").collect()
    steps = rows["step"].unique().sort().to_list()
    assert steps == list(range(len(steps)))
    assert rows.height == 4 * len(steps)
    last = tracer.scan(run, "metrics").collect()["value"].max()
    assert isinstance(last, float)
    # One cadence of a second, the half second in which the daemon looks, and what a busy machine adds.
    assert killed - last < 1.5 + 3.0
    os.utime(run / "heartbeat-r00000", (0, 0))
    assert state(run) == "stopped"
    with tracer.attach(mlp(), run, resume=True):
        pass
    assert state(run) == "closed"
