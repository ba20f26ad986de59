"""Full, read-only, vanished and slow disks: training goes on, what waits is bounded, and what is lost is counted."""

import contextlib
import ctypes
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tests.disk import Disk
from tests.faults.injection import impatient
from tests.faults.test_failing_calls import assert_sound
from tests.torture import often
from tests.training import daemon_of, events, loss_of, metric, mlp, recorded, steps
from tests.waiting import wait_until
from tracer.log import read
from tracer.log.ranks import closed_summaries, state
from tracer.log.store import Local as Path

Figures = Callable[..., None]
_LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(autouse=True, params=range(often(1, 10)))
def round_(request: pytest.FixtureRequest) -> int:
    """Every test so often: where a disk breaks, threads meet in another order each time."""
    number: int = request.param
    return number


@pytest.fixture
def disk(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk that answers at once until a test breaks it, and daemons that publish at once."""
    impatient(monkeypatch)
    return disk


class Loop:
    """A training that a test drives on step by step; what it logs is the step's number."""

    def __init__(self, path: Path) -> None:
        self.model: nn.Module = mlp()
        self.trace = tracer.attach(self.model, path)
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.steps = 0

    def train(self, count: int = 10) -> None:
        """So many steps."""
        for _ in range(count):
            self._optimizer.zero_grad()
            loss_of(self.model).backward()
            self._optimizer.step()
            self.trace.log(number=self.steps)
            self.steps += 1


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A disk of its own in a folder, in memory; skips the test where that cannot be had."""
    folder.mkdir(exist_ok=True)
    if _LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options.encode()) != 0:
        pytest.skip(f"no disk can be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        # Lazily: what is still open there goes with the last who has it.
        assert _LIBC.umount2(os.fsencode(folder), 2) == 0


def remount(folder: Path, read_only: bool) -> None:
    """Make a mounted disk read-only, or writable again."""
    flags = 32 | (1 if read_only else 0)
    assert _LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, None) == 0, os.strerror(ctypes.get_errno())


def fill(file: Path) -> None:
    """Write into a file until its disk has no free byte."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


def numbers(path: Path) -> list[float]:
    """What was logged, in order."""
    return [number for _, number in metric(path, "number")]


def rows_lost(loop: Loop, path: Path) -> int:
    """How many of the rows of a training its log lacks."""
    return 5 * loop.steps - len(recorded(path)) - len(numbers(path))


def assert_complete(loop: Loop, path: Path, figures: Figures) -> None:
    """Each step is in the log, once; nothing was lost, and the run is closed."""
    figures(disks_broken=1, rows_written=5 * loop.steps, rows_lost_beyond_the_promise=rows_lost(loop, path))
    assert steps(path) == list(range(loop.steps))
    assert len(recorded(path)) == 4 * loop.steps
    assert numbers(path) == list(range(loop.steps))
    (summary,) = closed_summaries(path)
    assert set(summary["rows_dropped"].values()) == {0}
    assert_sound(path)


def test_a_full_disk_costs_no_row_once_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    """On a real disk without a free byte: one warning, no file that is not whole, and all rows when it has space."""
    impatient(monkeypatch)
    with mounted(tmp_path / "disk", "size=1m"):
        run = tmp_path / "disk" / "run"
        loop = Loop(run)
        loop.train()
        wait_until(lambda: numbers(run) == list(range(10)))
        ballast = tmp_path / "disk" / "ballast"
        with pytest.warns(tracer.TracerWarning, match="No space left on device") as caught:
            fill(ballast)
            loop.train()
            wait_until(lambda: bool(caught))
            loop.train(200)
            assert_sound(run)
            assert numbers(run) == list(range(10))
            ballast.unlink()
            wait_until(lambda: numbers(run) == list(range(loop.steps)))
            loop.train()
            loop.trace.close()
        assert len(caught) == 1
        assert_complete(loop, run, figures)
        assert list((run / "staging").iterdir()) == []


def test_a_disk_that_becomes_read_only_costs_no_row_once_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    """As the system makes a real disk after an error: one warning, and writing goes on once it is repaired."""
    impatient(monkeypatch)
    with mounted(tmp_path / "disk", "size=4m"):
        run = tmp_path / "disk" / "run"
        loop = Loop(run)
        loop.train()
        wait_until(lambda: numbers(run) == list(range(10)))
        with pytest.warns(tracer.TracerWarning, match="Read-only file system") as caught:
            remount(tmp_path / "disk", read_only=True)
            loop.train()
            wait_until(lambda: bool(caught))
            remount(tmp_path / "disk", read_only=False)
            loop.train()
            loop.trace.close()
        assert len(caught) == 1
        assert_complete(loop, run, figures)


def test_a_disk_that_is_unmounted_costs_no_row_once_it_is_back(tmp_path: Path, disk: Disk, figures: Figures) -> None:
    """Without it nothing is written in its place; when it is mounted again, writing goes on."""
    run, away = tmp_path / "disk" / "run", tmp_path / "away"
    (tmp_path / "disk").mkdir()
    loop = Loop(run)
    loop.train()
    wait_until(lambda: numbers(run) == list(range(10)))
    with pytest.warns(tracer.TracerWarning, match="No such file or directory") as caught:
        (tmp_path / "disk").rename(away)
        (tmp_path / "disk").mkdir()
        loop.train()
        wait_until(lambda: bool(caught))
        assert list((tmp_path / "disk").iterdir()) == []
        (tmp_path / "disk").rmdir()
        away.rename(tmp_path / "disk")
        wait_until(lambda: numbers(run) == list(range(20)))
        loop.train()
        loop.trace.close()
    assert len(caught) == 1
    assert_complete(loop, run, figures)


def test_a_folder_that_is_deleted_is_not_made_again(tmp_path: Path, disk: Disk, figures: Figures) -> None:
    """Who deletes the folder of a run that goes on has it deleted: the training ends as ever, with two warnings."""
    run = tmp_path / "run"
    loop = Loop(run)
    loop.train()
    with (
        pytest.warns(tracer.TracerWarning, match="are lost: .* did not take them in time"),
        pytest.warns(tracer.TracerWarning, match="No such file or directory") as caught,
    ):
        while run.exists():
            # What the daemon writes meanwhile may be in its way.
            shutil.rmtree(run, ignore_errors=True)
        loop.train()
        wait_until(lambda: bool(caught))
        loop.trace.close()
    figures(disks_broken=1)
    assert not run.exists()


@pytest.mark.parametrize("call", ["fsync", "write", "open"])
def test_a_disk_that_hangs_stops_no_step(
    call: str, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    """While a call hangs, steps complete; what waits stays under its limit, and the newest are dropped and counted."""
    impatient(monkeypatch, limit_bytes=100_000)
    run = tmp_path / "run"
    hung, answers, real = threading.Event(), threading.Event(), getattr(os, call)

    def hang(*args: Any) -> Any:
        hung.set()
        answers.wait(60)
        return real(*args)

    with pytest.warns(tracer.TracerWarning, match="rows are dropped: 0 MiB wait") as caught:
        loop = Loop(run)
        setattr(disk, call, hang)
        loop.train()
        assert hung.wait(60)
        loop.train(300)
        assert daemon_of(loop.trace).waiting_bytes <= 100_000
        lost = dict(daemon_of(loop.trace).dropped)
        assert lost["extremes"] > 0
        answers.set()
        wait_until(lambda: len(numbers(run)) == loop.steps - lost["metrics"])
        loop.train()
        loop.trace.close()
    assert len(caught) == 1
    (summary,) = closed_summaries(run)
    dropped = sum(summary["rows_dropped"].values())
    figures(
        disks_broken=1,
        rows_written=5 * loop.steps - dropped,
        rows_dropped_and_counted=dropped,
        rows_lost_beyond_the_promise=rows_lost(loop, run) - dropped,
    )
    assert summary["rows_dropped"] == lost
    kept = steps(run)
    # The last one of those before was still under way, and came when the disk answered again.
    assert kept == [*range(309 - lost["extremes"] // 4), *range(309, loop.steps)]
    assert loop.steps - len(numbers(run)) == lost["metrics"]
    told = [detail for _, _, detail in events(run, "dropped")]
    assert list(map(read.rows_lost, told)) == [{table: rows for table, rows in lost.items() if rows}]
    assert state(run) == "closed"


def test_a_file_that_comes_out_short_is_never_published(tmp_path: Path, disk: Disk, figures: Figures) -> None:
    """Some network disks take what they have no space for: what is shorter than what was written is written again."""
    run = tmp_path / "run"
    cut: list[int] = []

    def write(descriptor: int, data: bytes) -> int:
        if len(cut) < 3:
            cut.append(os.write(descriptor, data[: len(data) // 2]))
            return len(data)
        return os.write(descriptor, data)

    with pytest.warns(tracer.TracerWarning, match="was not written completely"):
        loop = Loop(run)
        disk.write = write
        loop.train()
        wait_until(lambda: len(cut) == 3)
        loop.train()
        loop.trace.close()
    assert_complete(loop, run, figures)


def test_a_slow_disk_loses_nothing(tmp_path: Path, disk: Disk, figures: Figures) -> None:
    """While one fsync takes as long as a hundred steps, these wait in memory, and are all written in the end."""
    run = tmp_path / "run"
    loop = Loop(run)
    trained = threading.Event()

    def fsync(descriptor: int) -> None:
        trained.wait(60)
        os.fsync(descriptor)

    disk.fsync = fsync
    loop.train(100)
    assert not (run / "extremes").exists() or not list((run / "extremes").iterdir())
    trained.set()
    loop.train()
    loop.trace.close()
    assert_complete(loop, run, figures)
