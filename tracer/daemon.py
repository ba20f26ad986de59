"""The daemon: one thread that takes rows from a bounded queue and publishes them as parts, on the cadence."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from tracer.log import run as run_folder
from tracer.log.parts import MergeTimeoutError, all_parts, merge, publish
from tracer.log.store import Place
from tracer.warn import in_short, warn

# How often the daemon looks into its queue. It is not woken by each row: that would cost the training thread a switch.
_TICK_SECONDS = 0.5
_BEAT_SECONDS = 5.0
# close() and the interpreter's exit wait this long at most, whatever the disk does; the daemon stops trying before.
_JOIN_SECONDS = 5.0
_LAST_TRIES_SECONDS = 4.0
_RETRY_SECONDS = 0.2

_END = object()


def cadence_seconds(age_seconds: float) -> float:
    """How long rows may wait to be published: 1 % of the run's age, at least 1 s and at most 30 s."""
    return min(30.0, max(1.0, 0.01 * age_seconds))


class Daemon:
    """Publishes what is put into it, table by table and in order; starts at once, ends with ``close``.

    Args:
        path: The run's folder.
        rank: The rank whose parts these are.
        encoders: For each table the function that turns a list of items into its rows.
        landed: Gives an item back as it may wait for long, called once an item, in the daemon's thread.
        limit_bytes: How much may wait, in the queue and for a disk that does not take it. What comes then is dropped
            and counted; half of it is published before its time.
        ripe: How many of the first items of a table belong together and may be published, while more are to come.
        lost: Makes the item of ``events`` that says which rows were lost.

    Raises:
        LogError: nothing can be written into the folder, or no thread can be started.
    """

    def __init__(
        self,
        path: Place,
        rank: int,
        encoders: Mapping[str, Callable[[Sequence[Any]], pa.Table]],
        landed: Callable[[Any], Any],
        limit_bytes: int,
        ripe: Callable[[str, Sequence[Any]], int] = lambda _, items: len(items),
        lost: Callable[[str], Any] | None = None,
    ) -> None:
        self._ripe = ripe
        self._lost = lost
        self._path = path
        self._rank = rank
        self._encoders = encoders
        self._landed = landed
        self._limit_bytes = limit_bytes
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._waiting: dict[str, list[Any]] = {table: [] for table in encoders}
        # What was to be published and may have been: a store that did not answer. Only the same again repeats no row.
        self._tried: dict[str, tuple[int, pa.Table]] = {}
        # Each is written by one side alone; their difference is what waits.
        self._put_bytes = 0
        self._gone_bytes = 0
        self._numbers = {
            table: max((part.last + 1 for part in all_parts(path, table) if part.rank == rank), default=0)
            for table in encoders
        }
        self._started = self._beaten = time.monotonic()
        self._give_up = float("inf")
        self._warned = False
        self._summary: dict[str, Any] = {}
        self.rows = dict.fromkeys(encoders, 0)
        self.dropped = dict.fromkeys(encoders, 0)
        self._told = dict.fromkeys(encoders, 0)
        self._thread = threading.Thread(target=self._run, name="gradwatch-daemon", daemon=True)
        try:
            run_folder.beat(path, rank)
            self._thread.start()
        except (OSError, RuntimeError) as error:
            raise run_folder.LogError(f"{path} cannot be written: {in_short(error)}") from error

    def put(self, table: str, item: object, rows: int = 1, size_bytes: int = 300) -> None:
        """Hand over an item that stands for ``rows`` rows; never blocks, never raises, drops it when too much waits."""
        if self._put_bytes - self._gone_bytes + size_bytes <= self._limit_bytes:
            self._put_bytes += size_bytes
            self._queue.put((table, item, rows, size_bytes))
            return
        self.dropped[table] += rows
        self._warn_once(f"rows are dropped: {self._limit_bytes >> 20} MiB wait to be written to {self._path}")

    def close(self, summary: Mapping[str, Any]) -> None:
        """Publish everything, write the closed mark with this summary, merge, and end the thread."""
        self._summary = dict(summary)
        self._give_up = time.monotonic() + _LAST_TRIES_SECONDS
        self._queue.put(_END)
        self._wake.set()
        self._thread.join(_JOIN_SECONDS)
        if self._thread.is_alive():
            warn(f"{self._path} does not take the last rows within {_JOIN_SECONDS:.0f} s; they may be lost")

    def abandon(self) -> None:
        """Forget everything without touching the log: for a forked child, which has no such thread."""
        self._queue = queue.SimpleQueue()
        self._limit_bytes = 0
        self._warned = True

    def _run(self) -> None:
        due = self._started + cadence_seconds(0.0)
        ended = False
        while not ended:
            self._wake.wait(max(0.0, min(_TICK_SECONDS, due - time.monotonic())))
            ended = self._drain()
            self._outside(self._beat)
            now = time.monotonic()
            pressing = self._put_bytes - self._gone_bytes > self._limit_bytes // 2
            if pressing or now >= due:
                self._publish_all(pressing)
                due = now + cadence_seconds(now - self._started)
        while not self._publish_all(everything=True) and time.monotonic() < self._give_up:
            time.sleep(_RETRY_SECONDS)
        for table in self._encoders:
            self.dropped[table] += sum(rows for _, rows, _ in self._waiting[table])
        # The mark says that nothing more will come; a merge moves what is there, and may take longer than there is.
        self._outside(self._mark_closed)
        self._outside(self._merge)

    def _beat(self) -> None:
        if time.monotonic() >= self._beaten + _BEAT_SECONDS:
            run_folder.beat(self._path, self._rank)
            self._beaten = time.monotonic()

    def _drain(self) -> bool:
        """Move what is queued to what waits; whether the sentinel was there."""
        while True:
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return False
            if entry is _END:
                return True
            table, item, rows, size_bytes = entry
            try:
                self._waiting[table].append((self._landed(item), rows, size_bytes))
            except Exception as error:
                self._gone_bytes += size_bytes
                self.dropped[table] += rows
                self._warn_once(f"rows are lost: a device did not give them ({error})")

    def _publish_all(self, everything: bool) -> bool:
        """Publish what waits; whether none of it failed."""
        failed = [table for table in self._encoders if not self._outside(partial(self._publish, table, everything))]
        return not failed

    def _publish(self, table: str, everything: bool) -> None:
        while tried := self._tried.get(table) or self._encode(table, everything):
            self._tried[table] = count, rows = tried
            publish(self._path, table, self._rank, self._numbers[table], rows)
            del self._tried[table]
            self._numbers[table] += 1
            self.rows[table] += rows.num_rows
            self._forget(table, count)

    def _encode(self, table: str, everything: bool) -> tuple[int, pa.Table] | None:
        """The rows to publish now, and of how many items they are; None where there are none."""
        items = [item for item, _, _ in self._waiting[table]]
        count = len(items) if everything else self._ripe(table, items)
        wanted = items[:count]
        if table == "events" and self._lost is not None and self._told != self.dropped:
            wanted.append(self._lost(self._losses()))
        try:
            return (count, self._encoders[table](wanted)) if wanted else None
        except Exception as error:
            # These rows will not encode at the next attempt either.
            self.dropped[table] += sum(rows for _, rows, _ in self._waiting[table][:count])
            self._forget(table, count)
            self._warn_once(f"rows of {table} are lost: they cannot be encoded ({in_short(error)})")
            return None

    def _losses(self) -> str:
        """What was dropped since it was told last."""
        dropped = dict(self.dropped)
        lost = [f"{rows - self._told[table]} rows of {table}" for table, rows in dropped.items()]
        self._told = dropped
        return ", ".join(words for words in lost if not words.startswith("0 "))

    def _forget(self, table: str, count: int) -> None:
        self._gone_bytes += sum(size_bytes for _, _, size_bytes in self._waiting[table][:count])
        del self._waiting[table][:count]

    def _merge(self) -> None:
        # The small tables first: extremes may need all the time there is.
        for table in sorted(self._encoders, key=lambda table: self.rows[table]):
            with contextlib.suppress(MergeTimeoutError):
                merge(self._path, table, self._rank, seconds=self._give_up - time.monotonic())

    def _mark_closed(self) -> None:
        counts = {"rows": self.rows, "rows_dropped": self.dropped, "published": self._numbers}
        run_folder.close_rank(self._path, self._rank, {**self._summary, **counts})

    def _outside(self, action: Callable[[], None]) -> bool:
        """Do something that may fail outside; one warning, then go on: what waits is tried again later."""
        try:
            action()
            return True
        except Exception as error:
            self._warn_once(f"{self._path} cannot be written ({error}); what waits is kept in memory and tried again")
            return False

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warn(message)
