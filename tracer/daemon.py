"""The daemon: one thread that takes rows from a bounded queue and publishes them as parts, on the cadence."""

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from tracer.log import ranks, system
from tracer.log import run as run_folder
from tracer.log.parts import MergeTimeoutError, all_parts, merge, publish
from tracer.log.place import Place
from tracer.log.text import failure
from tracer.warn import in_short, warn

_END = object()

# Those whose threads have begun and have not been waited for.
_running: "weakref.WeakSet[Daemon]" = weakref.WeakSet()
# A forked child has no such thread.
system.in_forked_children(_running.clear)


def cadence_seconds(age_seconds: float) -> float:
    """How long rows may wait to be published: 1 % of the run's age, at least 1 s and at most 30 s."""
    return min(30.0, max(1.0, 0.01 * age_seconds))


@dataclass(frozen=True, kw_only=True)
class DaemonSettings:
    """How a daemon spends its time, and how much may wait for it.

    Attributes:
        limit_bytes: How much may wait, in the queue and for a disk that does not take it. What comes then is dropped
            and counted; half of it is published before its time.
        tick_seconds: How often the queue is emptied. A wake-up for each row would cost the training thread a switch.
        cadence: How many seconds rows may wait to be published, given the run's age in seconds.
        beat_seconds: How often the heartbeat is renewed.
        last_tries_seconds: How long the daemon goes on trying after ``end``.
        retry_seconds: The pause between two of these tries.
        wait_seconds: How long ``wait`` waits after ``end``, whatever the disk does.
        device_seconds: For how long both times stand still at most, while the daemon waits for a device.
        gathered_parts: How many fresh parts are merged while the run goes on: a week makes twenty thousand, which
            every listing would go over.
        gathering_seconds: How long such a merge may take.
        lonely_seconds: After how long a rank is missed that has not begun the run.
        clock: The time in seconds.
    """

    limit_bytes: int = 64 << 20
    tick_seconds: float = 0.5
    cadence: Callable[[float], float] = cadence_seconds
    beat_seconds: float = 5.0
    last_tries_seconds: float = 4.0
    retry_seconds: float = 0.2
    wait_seconds: float = 5.0
    device_seconds: float = 60.0
    gathered_parts: int = 100
    gathering_seconds: float = 2.0
    lonely_seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic


SETTINGS = DaemonSettings()
"""Those of a daemon that is given none."""


def end_all() -> None:
    """At the interpreter's exit: end every daemon, then wait for all of them together, no longer than for one."""
    daemons = list(_running)
    for daemon in daemons:
        daemon.end({})
    for daemon in daemons:
        daemon.wait()


class Daemon:
    """Publishes what is put into it, table by table and in order; starts at once, ends with ``close``.

    Args:
        path: The run's folder.
        rank: The rank whose parts these are.
        encoders: For each table the function that turns a list of items into its rows.
        on_host: Gives an item back as it may wait for long, called once an item, in the daemon's thread.
        complete_prefix: How many of the first items of a table may be published while more are to come: those to which
            later ones cannot add.
        lost: Makes the item of ``events`` that says how many rows of which tables were lost, given the newest item.
        settings: Its times and limits; ``SETTINGS`` where none are given.

    Attributes:
        rows: How many rows of each table have been published.
        dropped: How many have been lost.
        published: How many parts of each table have been published, in this process and before.

    Raises:
        LogError: nothing can be written into the folder, or no thread can be started.
    """

    def __init__(
        self,
        path: Place,
        rank: int,
        encoders: Mapping[str, Callable[[Sequence[Any]], pa.Table]],
        on_host: Callable[[Any], Any],
        complete_prefix: Callable[[str, Sequence[Any]], int] = lambda _, items: len(items),
        lost: Callable[[Mapping[str, int], Any], Any] | None = None,
        settings: DaemonSettings | None = None,
    ) -> None:
        self._settings = settings or SETTINGS
        self._complete_prefix = complete_prefix
        self._lost = lost
        self._path = path
        self._rank = rank
        # Events last, since they say what was lost of the others.
        self._encoders = dict(sorted(encoders.items(), key=lambda item: item[0] == "events"))
        self._on_host = on_host
        self._limit_bytes = self._settings.limit_bytes
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # Neither this nor the lock below is a ``threading.Event``: a signal handler that closes the trace in the middle
        # of a close would wait for ever for the lock inside of it.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._newest: Any = None
        self._waiting: dict[str, list[Any]] = {table: [] for table in encoders}
        # What was to be published and may have been: a store that did not answer. Only the same again repeats no row.
        self._tried: dict[str, tuple[int, pa.Table]] = {}
        # Each is written by one side alone; their difference is what waits.
        self._put_bytes = 0
        self._gone_bytes = 0
        self._started = self._beaten = self._settings.clock()
        self._end_asked = float("inf")
        # For how many seconds after ``end`` a device was waited for, and since when it is; one object for both threads.
        self._lag: tuple[float, float | None] = (0.0, None)
        self._warned: set[str] = set()
        self._summary: dict[str, Any] = {}
        self._marked = False
        self.rows = dict.fromkeys(encoders, 0)
        self.dropped = dict.fromkeys(encoders, 0)
        self._told = dict.fromkeys(encoders, 0)
        # Not the thread is waited for: where Ctrl-C interrupts that, Python before 3.13 takes the thread for ended.
        self._over = False
        self._until_over = threading.Lock()
        self._until_over.acquire()
        self._thread = threading.Thread(target=self._run, name="gradwatch-daemon", daemon=True)
        try:
            self.published = {
                table: max((part.last + 1 for part in all_parts(path, table) if part.rank == rank), default=0)
                for table in encoders
            }
            ranks.beat(path, rank)
            self._owner = ranks.owner(path, rank)
            self._thread.start()
        except (OSError, RuntimeError) as error:
            raise run_folder.LogError(f"{path} cannot be written: {in_short(error)}") from None
        _running.add(self)

    def put(self, table: str, item: object, rows: int = 1, size_bytes: int = 300) -> None:
        """Hand over an item that stands for ``rows`` rows; never blocks, never raises, drops it when too much waits."""
        if self._put_bytes - self._gone_bytes + size_bytes <= self._limit_bytes:
            self._put_bytes += size_bytes
            self._queue.put((table, item, rows, size_bytes))
            return
        self.dropped[table] += rows
        self._warn_once("full", f"rows are dropped: {self._limit_bytes >> 20} MiB wait to be written to {self._path}")

    def close(self, summary: Mapping[str, Any]) -> None:
        """Call ``end``, then ``wait``."""
        self.end(summary)
        self.wait()

    def end(self, summary: Mapping[str, Any], last: object = None) -> None:
        """Have everything published, the closed mark written with this summary, the parts merged, and the thread ended.

        Returns at once; of several calls the first counts.

        Args:
            summary: What the closed mark tells.
            last: The last item of ``events``, if there is one.
        """
        self._summary = self._summary or dict(summary)
        self._end_asked = min(self._end_asked, self._settings.clock())
        # In one piece, since another call may come in between.
        self._queue.put((_END, last, 0, 0))
        self._wake.put(None)

    def wait(self) -> None:
        """Wait until it has ended, but not for longer than 5 s after ``end``, and as long as a device lags behind."""
        wait_seconds = self._settings.wait_seconds
        # Several may wait, one in the middle of another. The device may have lagged behind during a wait.
        while not self._over and (left := self._left(wait_seconds)) > 0:
            if self._until_over.acquire(timeout=left):
                self._until_over.release()
        _running.discard(self)
        if self._over:
            self._thread.join(wait_seconds)
        elif self._lag[1] is not None:
            device_seconds = self._settings.device_seconds
            warn(f"a device has not given the last rows of {self._path} within {device_seconds:.0f} s; they are lost")
        elif not self._marked:
            warn(f"{self._path} does not take the last rows within {wait_seconds:.0f} s; they may be lost")

    @property
    def waiting_bytes(self) -> int:
        """How much waits, in the queue and to be published."""
        return self._put_bytes - self._gone_bytes

    def abandon(self) -> None:
        """Forget everything without touching the log: for a forked child, which has no such thread."""
        self._queue = queue.SimpleQueue()
        self._limit_bytes = 0
        self._warned.add("full")

    def _run(self) -> None:
        settings = self._settings
        due = self._started + settings.cadence(0.0)
        ended = False
        while not ended:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=max(0.0, min(settings.tick_seconds, due - settings.clock())))
            ended = self._drain()
            self._outside(self._beat)
            now = settings.clock()
            pressing = self.waiting_bytes > self._limit_bytes // 2
            if pressing or now >= due:
                self._publish_all(pressing)
                due = now + settings.cadence(now - self._started)
                if now >= self._started + settings.lonely_seconds:
                    self._outside(self._look_for_run)
        self._insist(lambda: self._publish_all(everything=True))
        for table in self._encoders:
            if table == "events":
                # They can be written, perhaps, where another table cannot.
                self._outside(partial(self._publish, table, True))
            self._drop(table, len(self._waiting[table]), "late", f"{self._path} did not take them in time")
        # The mark says that nothing more will come; a merge moves what is there, and may take longer than there is.
        self._insist(lambda: self._outside(self._mark_closed))
        self._outside(self._look_for_run)
        # The small tables first: extremes may need all the time there is.
        for table in sorted(self._encoders, key=lambda table: self.rows[table]):
            self._outside(partial(self._merge, table))
        self._over = True
        self._until_over.release()

    def _insist(self, action: Callable[[], bool]) -> None:
        """Do something until it says that it went well, or the time for last tries is over."""
        while not action() and self._last_tries_left > 0:
            time.sleep(self._settings.retry_seconds)

    @property
    def _last_tries_left(self) -> float:
        """For how many seconds something may still be tried; without end before ``end``."""
        return self._left(self._settings.last_tries_seconds)

    def _left(self, seconds: float) -> float:
        """How many of so many seconds after ``end`` are left. While a device is waited for they stand still.

        A training that runs ahead of its device may close the trace many seconds before its last rows exist.
        """
        lag_seconds = min(self._lag_seconds, self._settings.device_seconds)
        return self._end_asked + seconds + lag_seconds - self._settings.clock()

    @property
    def _lag_seconds(self) -> float:
        """For how many seconds after ``end`` a device has been waited for."""
        before, since = self._lag
        return before if since is None else before + max(0.0, self._settings.clock() - max(since, self._end_asked))

    def _copied(self, item: Any) -> Any:
        """An item on the host, once its device has come to it."""
        self._lag = self._lag_seconds, self._settings.clock()
        try:
            return self._on_host(item)
        finally:
            self._lag = self._lag_seconds, None

    def _beat(self) -> None:
        if self._settings.clock() >= self._beaten + self._settings.beat_seconds:
            self._see_that_it_is_ours()
            ranks.beat(self._path, self._rank)
            self._beaten = self._settings.clock()

    def _see_that_it_is_ours(self) -> None:
        """Raise ``OSError`` if another process writes as this rank by now.

        Another run has taken the place of a deleted one, or this process was suspended and taken for dead.
        """
        # At a URI no folder is moved, and to ask takes its time.
        owner = ranks.owner(self._path, self._rank) if self._path.on_disk else ""
        if owner and owner != self._owner:
            raise OSError(f"it is being written by {owner.splitlines()[0]!r} (host, pid)")

    def _look_for_run(self) -> None:
        """Warn if no reader finds what this rank writes: an environment that is left over may make a process a rank."""
        recorded = any(rows for table, rows in self.rows.items() if table != "events")
        if self._rank and recorded and not run_folder.holds_run(self._path):
            self._warn_once(
                "alone",
                f"rank {self._rank} writes into {self._path}, where rank 0 has written no run.json: no reader finds "
                "that; if this process is alone, unset RANK and WORLD_SIZE",
            )

    def _drain(self) -> bool:
        """Move what is queued to what waits; whether the sentinel was there."""
        while True:
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return False
            table, item, rows, size_bytes = entry
            if table is _END:
                if item is not None:
                    self._waiting["events"].append((item, 1, 0))
                return True
            try:
                self._newest = self._copied(item)
                self._waiting[table].append((self._newest, rows, size_bytes))
            except Exception as error:
                self._gone_bytes += size_bytes
                self.dropped[table] += rows
                self._warn_once("device", f"rows are lost: a device did not give them ({in_short(error)})")

    def _publish_all(self, everything: bool) -> bool:
        """Publish what waits; whether none of it failed."""
        # Events also first: a kill must not leave rows of an attempt whose beginning no event tells.
        tables = [*self._encoders.keys() & {"events"}, *self._encoders]
        failed = [table for table in tables if not self._outside(partial(self._publish, table, everything))]
        return not failed

    def _publish(self, table: str, everything: bool) -> None:
        while tried := self._tried.get(table) or self._encode(table, everything):
            self._tried[table] = count, rows = tried
            self._see_that_it_is_ours()
            publish(self._path, table, self._rank, self.published[table], rows)
            del self._tried[table]
            self.published[table] += 1
            self.rows[table] += rows.num_rows
            self._forget(table, count)
            self._gather(table)

    def _gather(self, table: str) -> None:
        """Merge the newest parts of a table once there are enough; what fails is left to the merge at the end."""
        end, count = self.published[table], self._settings.gathered_parts
        if end % count == 0:
            with contextlib.suppress(OSError):
                self._merge(table, self._settings.gathering_seconds, (end - count, end - 1))

    def _encode(self, table: str, everything: bool) -> tuple[int, pa.Table] | None:
        """The rows to publish now, and of how many items they are; None where there are none."""
        items = [item for item, _, _ in self._waiting[table]]
        count = len(items) if everything else self._complete_prefix(table, items)
        wanted = items[:count]
        dropped = dict(self.dropped)
        if table == "events" and self._lost is not None and self._newest is not None and self._told != dropped:
            lost = {table: rows - self._told[table] for table, rows in dropped.items()}
            wanted.append(self._lost({table: rows for table, rows in lost.items() if rows}, self._newest))
        try:
            encoded = self._encoders[table](wanted) if wanted else None
        except MemoryError:
            # It may pass: the rows are kept, as where a disk does not take them.
            raise
        except Exception as error:
            # They will not encode at the next attempt either.
            self._drop_failing(table, count, error)
            return self._encode(table, everything) if count else None
        if table == "events":
            self._told = dropped
        return None if encoded is None else (count, encoded)

    def _drop_failing(self, table: str, count: int, error: Exception) -> None:
        """Drop those of a table's first items that cannot be encoded alone; all of them, if each can."""
        good, failing = [], []
        for entry in self._waiting[table][:count]:
            try:
                self._encoders[table]([entry[0]])
                good.append(entry)
            except Exception:
                failing.append(entry)
        if not failing:
            good, failing = [], good
        self._waiting[table][:count] = [*failing, *good]
        self._drop(table, len(failing), "encode", f"they cannot be encoded ({in_short(error)})")

    def _drop(self, table: str, count: int, trouble: str, why: str) -> None:
        """Count the first of a table's waiting items as lost."""
        if count:
            self.dropped[table] += sum(rows for _, rows, _ in self._waiting[table][:count])
            self._forget(table, count)
            self._warn_once(trouble, f"rows of {table} are lost: {why}")

    def _forget(self, table: str, count: int) -> None:
        self._gone_bytes += sum(size_bytes for _, _, size_bytes in self._waiting[table][:count])
        del self._waiting[table][:count]

    def _merge(self, table: str, seconds: float = float("inf"), numbers: tuple[int, int] | None = None) -> None:
        """Merge a table's parts, if there is time; those that cannot be decoded stay as they are."""
        seconds = min(seconds, self._last_tries_left)
        self._see_that_it_is_ours()
        with contextlib.suppress(MergeTimeoutError, pa.ArrowException):
            merge(self._path, table, self._rank, seconds=seconds, numbers=numbers)

    def _mark_closed(self) -> None:
        self._see_that_it_is_ours()
        counts = {"rows": self.rows, "rows_dropped": self.dropped, "published": self.published}
        ranks.close_rank(self._path, self._rank, {**self._summary, **counts})
        self._marked = True

    def _outside(self, action: Callable[[], None]) -> bool:
        """Do something that may fail outside; one warning, then go on: what waits is tried again later."""
        try:
            action()
            return True
        except Exception as error:
            if isinstance(error, FileNotFoundError):
                with contextlib.suppress(OSError):
                    run_folder.remake_folders(self._path, self._encoders)
            message = f"{self._path} cannot be written ({failure(error)}); what waits is kept in memory and tried again"
            self._warn_once("write", message)
            return False

    def _warn_once(self, trouble: str, message: str) -> None:
        if trouble not in self._warned:
            self._warned.add(trouble)
            warn(message)
