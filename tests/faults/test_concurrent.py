"""Readers are exact under concurrency: in any interleaving of the single calls that merges make to the system."""

import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import tracer
from tests.halves import smoke_of
from tests.logs import metrics, new_run, publish_next
from tests.torture import often
from tracer.log import store
from tracer.log.parts import all_parts, damage, list_parts, merge, missing_numbers
from tracer.log.store import Local as Path
from viewer.read.follow import Follower

pytestmark = pytest.mark.slow

RANKS = (0, 1)
_WATCHED = ("scandir", "open", "write", "fsync", "fstat", "replace", "unlink", "close")
SECONDS = 60.0


class DiedError(BaseException):
    """A process is no more."""


class Merger:
    """A process that merges, and stands still before each of its calls to the system until it is told to go on."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.done = self.dead = False
        self.error: BaseException | None = None
        self._work = work
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, name="merger", daemon=True)
        self.thread.start()
        assert self._stands.acquire(timeout=SECONDS)

    def _run(self) -> None:
        try:
            self.pause()
            self._work()
        except DiedError:
            pass
        except BaseException as error:
            self.error = error
        self.done = True
        self._stands.release()

    def pause(self) -> None:
        """Called in its own thread before a call to the system."""
        if not self.dead:
            self._stands.release()
            self._go.acquire()
        if self.dead:
            raise DiedError

    def step(self) -> None:
        """Let it make one call, and stand still before the next."""
        if not self.done:
            self._go.release()
            assert self._stands.acquire(timeout=SECONDS)

    def die(self) -> None:
        """It makes no further call, not even to tidy up."""
        self.dead = True
        self.step()
        self.thread.join()

    def finish(self) -> None:
        """Let it come to its end."""
        while not self.done:
            self.step()
        self.thread.join()


class SteppedOs:
    """Stands for the module ``os`` in the seam."""

    def __init__(self) -> None:
        self.mergers: list[Merger] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        current = threading.current_thread()
        mine = [merger for merger in self.mergers if merger.thread is current]
        if name not in _WATCHED or not mine:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            mine[0].pause()
            return real(*arguments, **options)

        return call


class Interleaving(RuleBasedStateMachine):
    """Ranks publish, several processes merge call by call or die, and two kinds of reader read."""

    def __init__(self, figures: Callable[..., None]) -> None:
        super().__init__()
        self.figures = figures
        self.figures(interleavings=1)
        self.folder = Path(tempfile.mkdtemp())
        self.run = new_run(self.folder / "run")
        self.system = SteppedOs()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(store, "os", self.system)
        self.values = itertools.count()
        self.published: dict[int, list[float]] = {rank: [] for rank in RANKS}
        self.given: dict[int, list[float]] = {rank: [] for rank in RANKS}
        self.follower = Follower(self.run, "metrics")
        self.numbers = dict.fromkeys(RANKS, 0)

    def teardown(self) -> None:
        """All come to their end, and then there is one part a rank that holds everything."""
        try:
            for merger in self.system.mergers:
                merger.finish()
            assert [merger.error for merger in self.system.mergers if merger.error] == []
            self.scan_is_exact()
            self.follow()
            assert self.given == self.published
            for rank in RANKS:
                merge(self.run, "metrics", rank)
            self.scan_is_exact()
            assert len(all_parts(self.run, "metrics")) == sum(map(bool, self.numbers.values()))
            self.follow()
            assert self.given == self.published
        finally:
            for merger in self.system.mergers:
                merger.die()
            self.patch.undo()
            shutil.rmtree(self.folder)

    @property
    def busy(self) -> list[Merger]:
        """Who has not come to an end."""
        return [merger for merger in self.system.mergers if not merger.done]

    @rule(rank=st.sampled_from(RANKS), rows=st.integers(0, 3))
    def publish(self, rank: int, rows: int) -> None:
        """One more part."""
        values = [float(next(self.values)) for _ in range(rows)]
        publish_next(self.run, "metrics", metrics(range(rows), values, rank=rank), rank)
        self.published[rank] += values
        self.numbers[rank] += 1

    @precondition(lambda self: len(self.busy) < 3)
    @rule(rank=st.sampled_from(RANKS))
    def begin_to_merge(self, rank: int) -> None:
        """As ``tracer merge`` and the rank's end do."""
        self.system.mergers.append(Merger(lambda: merge(self.run, "metrics", rank)))

    @precondition(lambda self: len(self.busy) < 3)
    @rule(rank=st.sampled_from(RANKS), back=st.integers(0, 4), count=st.integers(2, 4))
    def begin_to_gather(self, rank: int, back: int, count: int) -> None:
        """As the daemon does while the run goes on: some neighbours alone."""
        last = self.numbers[rank] - 1 - back
        self.system.mergers.append(Merger(lambda: merge(self.run, "metrics", rank, numbers=(last - count + 1, last))))

    @precondition(lambda self: self.busy)
    @rule(which=st.integers(0, 2), calls=st.integers(1, 12))
    def go_on(self, which: int, calls: int) -> None:
        """One of those who merge makes some calls."""
        merger = self.busy[which % len(self.busy)]
        for _ in range(calls):
            merger.step()

    @precondition(lambda self: self.busy)
    @rule(which=st.integers(0, 2))
    def die(self, which: int) -> None:
        """One of those who merge is killed where it stands."""
        self.busy[which % len(self.busy)].die()

    @rule()
    def follow(self) -> None:
        """The viewer takes what is new."""

        def take(frame: pl.LazyFrame) -> None:
            for rank, value in frame.select("rank", "value").collect().rows():
                self.given[rank].append(value)

        self.follower.give(take)
        self.figures(reads=1, reads_that_missed_or_repeated_a_row=self.given != self.published)
        assert not self.follower.problems
        assert self.given == self.published

    @invariant()
    def scan_is_exact(self) -> None:
        """A scan sees each row once, in its order, and no part is damaged or missing."""
        rows = tracer.scan(self.run, "metrics").collect()
        found = {rank: rows.filter(pl.col("rank") == rank)["value"].to_list() for rank in RANKS}
        self.figures(reads=1, reads_that_missed_or_repeated_a_row=found != self.published)
        assert found == self.published
        parts = list_parts(self.run, "metrics")
        assert [damage(part) for part in parts] == [None] * len(parts)
        assert missing_numbers(parts, self.numbers) == []


def test_readers_are_exact_in_any_interleaving(figures: Callable[..., None]) -> None:
    """However merges, deaths and publishing fall between each other's calls, no reader misses or repeats a row."""
    run_state_machine_as_test(
        lambda: Interleaving(figures),  # type: ignore[arg-type]
        settings=settings(
            max_examples=often(20, 2_000),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("calls", smoke_of(range(0, often(60, 60), often(4, 1))))
def test_two_merges_with_different_borders_repeat_no_row(tmp_path: Path, calls: int) -> None:
    """A merge of the first parts and one of the last, at once, leave rows that are read and merged once."""
    run = new_run(tmp_path / "run")
    for number in range(6):
        publish_next(run, "metrics", metrics([number], [float(number)]))
    system = SteppedOs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "os", system)
        for borders in ((0, 3), (2, 5)):
            system.mergers.append(Merger(lambda borders=borders: merge(run, "metrics", 0, numbers=borders)))  # type: ignore[misc]
        for _ in range(calls):
            system.mergers[0].step()
        system.mergers[1].finish()
        system.mergers[0].finish()
        assert [merger.error for merger in system.mergers] == [None, None]
    assert tracer.scan(run, "metrics").collect()["value"].to_list() == list(map(float, range(6)))
    merge(run, "metrics", 0)
    assert tracer.scan(run, "metrics").collect()["value"].to_list() == list(map(float, range(6)))
    assert len(all_parts(run, "metrics")) == 1
