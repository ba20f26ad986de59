"""The follower: whatever happens to a log's parts meanwhile, each row is given once, and only what is new is read."""

import contextlib
import itertools
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.halves import first_of
from tests.logs import flip_bit, metrics, new_run, publish_next
from tracer.log.parts import all_parts, list_parts, merge
from tracer.log.store import Local as Path
from viewer.read.follow import Follower

RANKS = (0, 1)
Rows = list[tuple[int, float]]


class Log:
    """A growing table of metrics in which every row has a value of its own."""

    def __init__(self, folder: Path) -> None:
        self.path = new_run(folder / "run")
        self.published: Rows = []
        self._values = itertools.count()

    def publish(self, rank: int, rows: int = 1) -> None:
        """One more part."""
        values = [float(next(self._values)) for _ in range(rows)]
        publish_next(self.path, "metrics", metrics(range(rows), values, rank=rank), rank)
        self.published += [(rank, value) for value in values]

    def merge(self, rank: int) -> None:
        """The rank's parts become one."""
        merge(self.path, "metrics", rank)

    def merge_and_die(self, rank: int) -> None:
        """The merging process dies before it has deleted what it merged."""
        before = {part.file(): part.file().read_bytes() for part in all_parts(self.path, "metrics")}
        self.merge(rank)
        for path, content in before.items():
            path.write_bytes(content)

    def last_part(self, rank: int) -> Path:
        """The newest part of a rank."""
        return [Path(part.file()) for part in list_parts(self.path, "metrics") if part.rank == rank][-1]


class Seen:
    """Collects what a follower gives; in each call, before the batch ``at`` is read, ``between`` happens to the log."""

    def __init__(self, log: Log, batch_bytes: int = Follower.batch_bytes) -> None:
        self.rows: Rows = []
        self.follower = Follower(log.path, "metrics")
        self.follower.batch_bytes = batch_bytes

    def read(self, between: Callable[[], None] = lambda: None, at: int = 0) -> bool:
        """One call of ``give``."""
        pending = [*[lambda: None] * at, between]

        def take(frame: pl.LazyFrame) -> None:
            if pending:
                pending.pop(0)()
            self.rows += frame.select("rank", "value").collect().rows()

        return self.follower.give(take)


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """A log without a row."""
    return Log(tmp_path)


ACTIONS: dict[str, Callable[[Log, Seen, int], object]] = {
    "publish": lambda log, seen, rank: log.publish(rank),
    "publish three rows": lambda log, seen, rank: log.publish(rank, 3),
    "merge": lambda log, seen, rank: log.merge(rank),
    "merge and die": lambda log, seen, rank: log.merge_and_die(rank),
    "give": lambda log, seen, rank: seen.read(),
    "publish between listing and reading": lambda log, seen, rank: seen.read(lambda: log.publish(rank)),
    "merge between listing and reading": lambda log, seen, rank: seen.read(lambda: log.merge(rank)),
    "merge between two batches": lambda log, seen, rank: seen.read(lambda: log.merge(rank), at=1),
    "publish between two batches": lambda log, seen, rank: seen.read(lambda: log.publish(rank), at=1),
    "fail at the first batch": lambda log, seen, rank: failing(seen, at=0),
    "fail at the second batch": lambda log, seen, rank: failing(seen, at=1),
}
# One part in each batch, about two, and all in one.
BATCHES = (1, 3000, 32_000_000)


def failing(seen: Seen, at: int) -> None:
    """One call of ``give`` in which taking a batch fails, if there are so many."""

    def fail() -> None:
        raise RuntimeError("no memory")

    with contextlib.suppress(RuntimeError):
        seen.read(fail, at)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(ACTIONS)), st.sampled_from(RANKS)), max_size=14),
    st.sampled_from(BATCHES),
)
def test_each_row_is_given_once_and_in_order_however_the_log_changes_meanwhile(
    actions: list[tuple[str, int]], batch: int
) -> None:
    """Publishing, merging, dying, failing and reading in any order give each rank's rows once, in publishing order."""
    with tempfile.TemporaryDirectory() as folder:
        log = Log(Path(folder))
        seen = Seen(log, batch)
        for action, rank in actions:
            ACTIONS[action](log, seen, rank)
        seen.read()
        for rank in RANKS:
            assert [row for row in seen.rows if row[0] == rank] == [row for row in log.published if row[0] == rank]
        assert not seen.follower.problems


@pytest.mark.parametrize("batch", first_of(BATCHES))
def test_each_row_is_given_once_while_another_thread_publishes_and_merges(log: Log, batch: int) -> None:
    """A reader at full speed beside a writer at full speed sees every row once, and nothing as damaged."""
    seen = Seen(log, batch)

    def write() -> None:
        for number in range(120):
            rank = RANKS[number % 2]
            log.publish(rank)
            if number % 7 == 0:
                log.merge(rank)

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        seen.read()
    writer.join()
    seen.read()
    assert Counter(seen.rows) == Counter(log.published)
    assert not seen.follower.problems


def test_rows_are_given_again_where_taking_them_failed(log: Log) -> None:
    """An error of the taker is raised to the caller, and the next call gives the same rows."""
    log.publish(0, 2)
    seen = Seen(log)

    def fail() -> None:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        seen.read(fail)
    assert seen.read()
    assert seen.rows == log.published


def test_only_what_is_new_is_read(log: Log) -> None:
    """Parts that were given are not opened again: they may even be gone."""
    log.publish(0)
    seen = Seen(log)
    seen.read()
    log.last_part(0).write_bytes(b"no longer Parquet")
    log.publish(0)
    assert seen.read()
    assert not seen.read()
    assert seen.rows == log.published
    assert not seen.follower.problems


@pytest.mark.parametrize("known", [{0, 1}, {2, 3}, {0, 2, 4}, {1}, set(range(5))], ids=str)
def test_of_a_merged_part_only_the_unseen_numbers_are_given(log: Log, tmp_path: Path, known: set[int]) -> None:
    """A merged part gives the rows of those of its numbers that were not given before, wherever they stand in it."""
    for number in range(5):
        log.publish(0, rows=number + 1)
    # As on a network disk that lists some parts late, and not in their order.
    late = [part.path for part in all_parts(log.path, "metrics") if part.first not in known]
    for path in late:
        shutil.move(path, tmp_path)
    seen = Seen(log)
    seen.read()
    assert len(seen.rows) == sum(number + 1 for number in known)
    for path in late:
        shutil.move(tmp_path / path.name, path)
    log.merge(0)
    seen.read()
    assert sorted(seen.rows) == log.published


def test_a_damaged_part_is_named_once_and_the_rest_goes_on(log: Log) -> None:
    """A flipped bit costs one part's rows, which ``problems`` names; earlier and later parts are given."""
    seen = Seen(log)
    log.publish(0)
    log.publish(0)
    damaged = log.last_part(0)
    flip_bit(damaged)
    log.publish(0)
    for _ in range(3):
        seen.read()
    log.publish(0)
    seen.read()
    assert [value for _, value in seen.rows] == [0.0, 2.0, 3.0]
    assert list(seen.follower.problems) == [damaged]
    assert "CRC-32" in seen.follower.problems[damaged]


def test_a_missing_table_gives_nothing(tmp_path: Path) -> None:
    """Before the run exists, and in an empty one, there is nothing to give."""
    follower = Follower(tmp_path / "nowhere", "extremes")
    assert not follower.give(lambda frame: pytest.fail("nothing was published"))
    assert not Follower(new_run(tmp_path / "run"), "extremes").give(lambda frame: pytest.fail("nothing was published"))


@pytest.mark.parametrize("batch", BATCHES)
def test_progress_is_told_after_each_batch(log: Log, batch: int) -> None:
    """Who waits for a long log hears how many bytes were read, until it is all that there are to be read."""
    for _ in range(6):
        log.publish(0)
    sizes = [part.file().stat().st_size for part in list_parts(log.path, "metrics")]
    told: list[tuple[int, int]] = []
    follower = Follower(log.path, "metrics")
    follower.batch_bytes = batch
    follower.give(lambda frame: None, lambda *bytes_read: told.append(bytes_read))
    assert told[-1] == (sum(sizes), sum(sizes))
    if batch == 1:
        assert told == [(sum(sizes[: place + 1]), sum(sizes)) for place in range(6)]
    told.clear()
    log.publish(0)
    follower.give(lambda frame: None, lambda *bytes_read: told.append(bytes_read))
    assert told == [(log.last_part(0).stat().st_size,) * 2]


def test_a_batch_has_many_parts_at_once(log: Log) -> None:
    """Small parts are read together, and not one by one."""
    for rank in RANKS:
        log.publish(rank)
        log.publish(rank)
    frames: list[int] = []
    Follower(log.path, "metrics").give(lambda frame: frames.append(len(frame.collect())))
    assert frames == [4]


def test_what_was_given_before_parts_were_gone_counts_as_new(log: Log) -> None:
    """Where a later batch's parts are gone, and nothing else replaced them, the call still says that rows came."""
    log.publish(0)
    log.publish(0)
    seen = Seen(log, batch_bytes=1)
    gone = log.last_part(0)
    assert seen.read(gone.unlink, at=1)
    assert seen.rows == log.published[:1]
    assert not seen.read()


def test_a_part_whose_size_cannot_be_told_is_named(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file handle that a network disk has lost costs the rows of one part, which is read once it can be."""
    log.publish(0)
    log.publish(0)
    lost, stat = log.last_part(0), Path.stat

    def refuse(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path == lost:
            raise OSError(116, "Stale file handle")
        return stat(path, follow_symlinks=follow_symlinks)

    seen = Seen(log)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", refuse)
        assert seen.read()
    assert seen.rows == log.published[:1]
    assert list(seen.follower.problems) == [lost]
    assert "Stale file handle" in seen.follower.problems[lost]
    assert seen.read()
    assert seen.rows == log.published
    assert not seen.follower.problems


def test_a_merged_part_is_read_in_one_batch_with_what_is_new_of_it(log: Log) -> None:
    """A large merged part, of which most was given, gives the rest once, however small batches are."""
    seen = Seen(log, batch_bytes=1)
    for _ in range(5):
        log.publish(0)
        seen.read()
    log.publish(0, 3)
    log.merge(0)
    assert seen.read()
    assert not seen.read()
    assert seen.rows == log.published
