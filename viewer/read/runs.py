"""The runs that a user watches, as they come and go, with their findings."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import polars as pl

from tracer.log.place import Place
from tracer.log.run import LogError, NewerFormatError, began, holds_run, newest_run, runs_or_itself
from tracer.log.store import at, from_here
from viewer.options import View, ViewOptions, matching
from viewer.read.follow import Progress
from viewer.read.live import Live
from viewer.read.monitor import FindingsMonitor
from viewer.read.waker import RESCAN_SECONDS, Waker
from viewer.rules.findings import LIMITS
from viewer.rules.rule import Limits
from viewer.snapshot import Finding, Snapshot

# Findings are kept of this many ranks that were looked at before.
_OTHER_RANKS = 3
_FAILURES = (LogError, OSError, pl.exceptions.PolarsError)

# A run by its name and its folder: both may change while its neighbours come and go.
_Key = tuple[str, Place]


def named(runs: Sequence[str], command: str) -> list[Place]:
    """The folders that are named on a command line, or the newest run under runs/.

    Raises:
        LogError: no run is named, and runs/ has none.
    """
    if runs:
        return [at(run) for run in runs]
    newest = newest_run(at("runs"))
    if newest is None:
        raise LogError(f"there is no run under runs/ yet: name the run's folder, as in `{command} runs/resnet18`")
    return [newest]


class Runs:
    """The runs that a user watches, as they come and go.

    Args:
        paths: Folders of runs, existing or not. A folder that holds runs stands for all of them.
        options: How they are shown. Only the overview shows several runs: other views show the one begun last.
        only: A regular expression: only runs whose folder's name matches.
        poll_seconds: Look this often instead of waiting for events of the file system.
        monitors: The runs' findings, by folder, and by rank and attempt (None: all ranks, the latest); several ``Runs``
            may share them.
        limits: The thresholds of findings.

    Attributes:
        places: The folders of all runs, shown or not, by name.
        stopping: Set when the following of these runs is to end.
        rescan_seconds: How long ``wait`` lasts at most.
        late_seconds: How long a run must have ended to be over, where it is not closed and fully read.
        clock: The time in seconds, by which that is measured.
    """

    # sshfs can show a closed run's last rows this late. A training whose machine slept needs as long for a heartbeat.
    late_seconds = 60.0

    def __init__(
        self,
        paths: Sequence[Place],
        options: ViewOptions | None = None,
        only: str = "",
        poll_seconds: float | None = None,
        monitors: dict[tuple[Place, int | None, int | None], FindingsMonitor] | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        self.paths = tuple(paths)
        self.options = options or ViewOptions()
        self._only = only
        # Findings of other losses and accuracies are nobody else's.
        self._monitors = {} if monitors is None or any(self.options.named) else monitors
        self._limits = limits
        self._waker = Waker(events=poll_seconds is None)
        self._lives: dict[_Key, Live] = {}
        self._shown: dict[_Key, Snapshot] = {}
        # Runs with news since their findings were looked for.
        self._unexamined: set[_Key] = set()
        # Since when runs have ended, as far as this machine can tell.
        self._ended: dict[_Key, float] = {}
        # When the folders were last written of runs that are done: a folder may hold hundreds. A run that goes on again
        # loses its closed mark.
        self._quiet: dict[_Key, float] = {}
        self.places: dict[str, Place] = {}
        # Names of runs whose folders have the same name, as seen from where the process was at first.
        self._longer_names: dict[Place, str] = {}
        self.stopping = threading.Event()
        self.rescan_seconds = poll_seconds or RESCAN_SECONDS
        self.clock: Callable[[], float] = time.monotonic

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all runs, shown or not."""
        return tuple(self.places)

    def refresh(self, progress: Progress | None = None) -> tuple[Snapshot, ...] | None:
        """Read what is new of every run.

        Returns:
            All runs as they are now, or None where nothing has changed.

        Raises:
            LogError: the only run has a newer format, or never could be read. Of several, it is shown with its problem.
            OSError: likewise.
        """
        try:
            self.places = self.listed()
        except OSError:
            # A disk or a store that was readable may come back; until then each of its runs shows the problem.
            if not self.places:
                raise
        keys = self._chosen()
        changed = self._lives.keys() != set(keys)
        self._follow(keys)
        for key in keys:
            changed |= self._read(key, progress)
        self._waker.watch(path for path in self.paths if path.on_disk and not holds_run(path))
        # In the order of the runs: whichever came first, each keeps its colour.
        self._shown = {key: self._shown[key] for key in keys if key in self._shown}
        return tuple(self._shown.values()) if changed and self._shown else None

    def listed(self) -> dict[str, Place]:
        """The folders of runs, and those that may become one, by name, in the order of their beginning."""
        # The objects of before: they are found faster by themselves than by all that is like them.
        known = {path: path for path in self.places.values()}
        folders: dict[Place, None] = {}
        for path in self.paths:
            folders |= {known.get(run, run): None for run in runs_or_itself(path)}
        names = {path: _name(path) for path in folders}
        chosen = set(matching(list(names.values()), self._only))
        names = {path: name for path, name in names.items() if name in chosen}
        counts = Counter(names.values())
        longer = self._longer_names
        return {
            name if counts[name] == 1 else longer.setdefault(path, from_here(path)): path
            for path, name in names.items()
        }

    def _chosen(self) -> list[_Key]:
        """The runs that are shown."""
        keys = [key for key in self.places.items() if self.options.run in ("", key[0])]
        if self.options.view is not View.OVERVIEW and len(keys) > 1:
            keys = sorted(keys, key=lambda key: began(key[1]))[-1:]
        return keys

    def _follow(self, keys: Sequence[_Key]) -> None:
        """Follow these runs and no others."""
        places = set(self.places.values())
        # A copy made at once: other threads change the dictionary.
        for monitored in list(self._monitors):
            if monitored[0] not in places:
                self._monitors.pop(monitored, None)
        for key in self._lives.keys() - set(keys):
            self._waker.forget(self._lives[key].folders)
        self._lives = {key: self._lives.get(key) or Live(key[1], self.options, key[0], self._waker) for key in keys}
        self._shown = {key: self._shown[key] for key in keys if key in self._shown}
        self._quiet = {key: written for key, written in self._quiet.items() if key in self._lives}

    def _read(self, key: _Key, progress: Progress | None) -> bool:
        """Read what is new of a run; whether anything is."""
        written = _written(key[1])
        if written is not None and self._quiet.get(key) == written:
            return False
        live, readable = self._lives[key], True
        try:
            snapshot = live.refresh(progress)
        except _FAILURES as error:
            # A disk that was readable may come back.
            if len(self.places) == 1 and (isinstance(error, NewerFormatError) or key not in self._shown):
                raise
            snapshot, readable = live.troubled(error), False
        if snapshot is not None:
            self._shown[key] = replace(snapshot, findings=self._known(key))
            self._unexamined.add(key)
        # While our own disk fails, silence says nothing.
        if readable and key in self._shown and self._shown[key].ended:
            self._ended.setdefault(key, self.clock())
        else:
            self._ended.pop(key, None)
        self._quiet.pop(key, None)
        if snapshot is None and written is not None and self._is_done(key):
            self._quiet[key] = written
        return snapshot is not None

    def _is_done(self, key: _Key) -> bool:
        """Whether a run is closed and fully read, with its findings, and nothing is wrong with its files."""
        shown = self._shown.get(key)
        if shown is None or shown.problems or shown.gone or (self.options.findings and key in self._unexamined):
            return False
        return shown.state == "closed" and shown.complete

    def examine(self, progress: Progress | None = None) -> tuple[Snapshot, ...] | None:
        """Look for findings in the news of ``refresh``. It comes second, so that no figure waits for findings.

        Returns:
            All runs with their findings, or None where no finding has changed.
        """
        changed = False
        for key in self._unexamined & self._shown.keys() if self.options.findings else ():
            monitor = self._monitor(key[1])
            # Another thread that holds the lock reads the same: its findings are known next time.
            if monitor.lock.acquire(blocking=False):
                try:
                    monitor.refresh(progress)
                except _FAILURES:
                    # The snapshot says what is wrong.
                    continue
                finally:
                    monitor.lock.release()
                if monitor.current:
                    self._unexamined.discard(key)
            if self._known(key) != self._shown[key].findings:
                self._shown[key] = replace(self._shown[key], findings=self._known(key))
                changed = True
        return tuple(self._shown.values()) if changed else None

    def _monitor(self, path: Place) -> FindingsMonitor:
        """The monitor of a run, for the rank and the attempt that are shown."""
        rank, attempt = shown = self._monitored
        monitor = FindingsMonitor(path, self._limits, rank, attempt=attempt, named=self.options.named)
        monitor = self._monitors.setdefault((path, *shown), monitor)
        others = [key for key in list(self._monitors) if key[0] == path and key[1:] not in ((None, None), shown)]
        for key in others[:-_OTHER_RANKS]:
            self._monitors.pop(key, None)
        return monitor

    @property
    def _monitored(self) -> tuple[int | None, int | None]:
        return self.options.only_rank, self.options.last_attempt

    def _known(self, key: _Key) -> tuple[Finding, ...]:
        monitor = self._monitors.get((key[1], *self._monitored)) if self.options.findings else None
        return () if monitor is None or monitor.run_id != self._lives[key].run_id else monitor.findings

    @property
    def over(self) -> set[str]:
        """The names of the runs that are over: closed and fully read, findings included, or ended for a minute.

        A killed run never closes. A run whose machine slept soon lives again.
        """
        late = self.clock() - self.late_seconds
        unexamined = self._unexamined if self.options.findings else set()
        return {
            snapshot.name
            for key, snapshot in self._shown.items()
            if (snapshot.state == "closed" and snapshot.complete and key not in unexamined)
            or self._ended.get(key, math.inf) < late
        }

    @property
    def all_over(self) -> bool:
        """Whether there are runs, and each is over."""
        return bool(self._lives) and {name for name, _ in self._lives} <= self.over

    @property
    def awaited(self) -> bool:
        """Whether a run that was asked for has not begun, as far as is known."""
        try:
            return not all(map(holds_run, self.listed().values()))
        except OSError:
            return True

    def wait(self) -> None:
        """Wait until something is published, at most until the next rescan."""
        self._waker.wait(self.rescan_seconds)

    def wake(self) -> None:
        """End the ``wait`` of another thread."""
        self._waker.wake()

    def stop(self) -> None:
        """End the following of these runs; any thread may call it."""
        self.stopping.set()
        self.wake()

    def close(self) -> None:
        """Stop watching."""
        self._waker.close()


def _name(path: Place) -> str:
    """The name of a folder itself, where the path is a link to it."""
    plain = path.on_disk is not None and path.name not in ("", "..") and not path.on_disk.is_symlink()
    return path.name if plain else path.resolve().name


def _written(path: Place) -> float | None:
    """When a file in a run's folder was last made or removed; None where that cannot be known cheaply."""
    try:
        return path.modified() if path.on_disk else None
    except OSError:
        return None
