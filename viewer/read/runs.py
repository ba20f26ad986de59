"""The runs that a user watches, as they come and go, with their findings."""

import difflib
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from tracer.log.place import Place
from tracer.log.run import LogError, began, holds_run, open_run, runs_in
from viewer.options import View, ViewOptions, matching
from viewer.read.follow import Progress
from viewer.read.live import Live
from viewer.read.monitor import FindingsMonitor
from viewer.read.waker import RESCAN_SECONDS, Waker
from viewer.rules.findings import LIMITS
from viewer.rules.rule import Limits
from viewer.snapshot import Finding, Snapshot

# Of so many ranks that were looked at before, it is kept what is wrong with them.
_OTHER_RANKS = 3


class Runs:
    """The runs that a user watches, as they come and go.

    Args:
        paths: Runs' folders, existing or not, and folders of runs, of which all are meant.
        options: What is to be seen of them. Only the overview shows several: other views show the one begun last.
        only: A regular expression: only those runs in whose folder's name it is found.
        poll_seconds: Look so often instead of waiting for events of the file system.
        monitors: Those who know runs' findings, by folder and rank (None: all), where several share them.
        limits: The thresholds of findings.

    Attributes:
        names: All that there are, whether they are shown or not.
        stopping: Set where what follows these runs is to end.
    """

    def __init__(
        self,
        paths: Sequence[Place],
        options: ViewOptions | None = None,
        only: str = "",
        poll_seconds: float | None = None,
        monitors: dict[tuple[Place, int | None], FindingsMonitor] | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        self.paths = tuple(paths)
        self.options = options or ViewOptions()
        self._only = only
        self._poll_seconds = poll_seconds
        self._monitors = {} if monitors is None else monitors
        self._limits = limits
        self._waker = Waker(events=poll_seconds is None)
        self._lives: dict[tuple[str, Place], Live] = {}
        self._shown: dict[tuple[str, Place], Snapshot] = {}
        # Those of which something is new since their findings were looked for.
        self._unexamined: set[tuple[str, Place]] = set()
        self._found: list[tuple[str, Place]] = []
        self.names: tuple[str, ...] = ()
        self.stopping = threading.Event()

    def refresh(self, progress: Progress | None = None) -> tuple[Snapshot, ...] | None:
        """Read what is new of every run; all of them as they are now, or None where nothing has changed.

        Raises:
            LogError: the only run cannot be read. Of several, such a one is shown with its problem.
            OSError: likewise, from the start.
        """
        try:
            found = self._found = self.found()
        except OSError:
            # A disk or a store that was there may come back; until then, each of its runs tells what is wrong.
            if not self._found:
                raise
            found = self._found
        self.names = tuple(name for name, _ in found)
        there = {path for _, path in found}
        # Copied at once: other threads share them.
        for each in list(self._monitors):
            if each[0] not in there:
                self._monitors.pop(each, None)
        wanted = [key for key in found if self.options.run in ("", key[0])]
        if self.options.view is not View.OVERVIEW and len(wanted) > 1:
            wanted = sorted(wanted, key=lambda key: began(key[1]))[-1:]
        changed = self._lives.keys() != set(wanted)
        for key in self._lives.keys() - set(wanted):
            self._waker.forget(self._lives[key].folders)
        self._lives = {key: self._lives.get(key) or Live(key[1], self.options, key[0], self._waker) for key in wanted}
        self._shown = {key: self._shown[key] for key in wanted if key in self._shown}
        for key, live in self._lives.items():
            try:
                snapshot = live.refresh(progress)
            except (LogError, OSError, pl.exceptions.PolarsError) as error:
                # A disk that was there may come back.
                if len(found) == 1 and (isinstance(error, LogError) or key not in self._shown):
                    raise
                snapshot = live.troubled(error)
            if snapshot is not None:
                self._shown[key] = replace(snapshot, findings=self._known(key))
                self._unexamined.add(key)
                changed = True
        self._waker.watch(path for path in self.paths if isinstance(path, Path) and not holds_run(path))
        # In the order of the runs, so that each keeps its colour, whichever was there first.
        self._shown = {key: self._shown[key] for key in wanted if key in self._shown}
        return tuple(self._shown.values()) if changed and self._shown else None

    def examine(self, progress: Progress | None = None) -> tuple[Snapshot, ...] | None:
        """Look for findings in what ``refresh`` found to be new; the runs with them, or None where none has changed.

        It comes after: a figure need not wait for them.
        """
        changed = False
        for key in self._unexamined & self._shown.keys() if self.options.findings else ():
            monitor = self._monitor(key[1])
            # Who holds it reads the same, which is there next time.
            if monitor.lock.acquire(blocking=False):
                try:
                    monitor.refresh(progress)
                except (LogError, OSError, pl.exceptions.PolarsError):
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
        """Who knows a run's findings, as it is looked at."""
        rank = self.options.only_rank
        monitor = self._monitors.setdefault((path, rank), FindingsMonitor(path, self._limits, rank))
        others = [key for key in list(self._monitors) if key[0] == path and key[1] not in (None, rank)]
        for key in others[:-_OTHER_RANKS]:
            self._monitors.pop(key, None)
        return monitor

    def _known(self, key: tuple[str, Place]) -> tuple[Finding, ...]:
        monitor = self._monitors.get((key[1], self.options.only_rank)) if self.options.findings else None
        return () if monitor is None or monitor.run_id != self._lives[key].run_id else monitor.findings

    @property
    def awaited(self) -> bool:
        """Whether a run that was asked for has not begun, as far as is known."""
        try:
            return any(not holds_run(path) for _, path in self.found())
        except OSError:
            return True

    def found(self) -> list[tuple[str, Place]]:
        """Names and folders of the runs there are, and of what may become one, in the order of their beginning."""
        found: dict[Place, None] = {}
        for path in self.paths:
            found |= dict.fromkeys(([] if holds_run(path) else runs_in(path)) or [path])
        named = {path: path.resolve().name for path in found}
        chosen = set(matching(list(named.values()), self._only))
        named = {path: name for path, name in named.items() if name in chosen}
        names = Counter(named.values())
        return [(name if names[name] == 1 else str(path), path) for path, name in named.items()]

    def wait(self) -> None:
        """Wait until something is published, at most so long as a rescan waits."""
        self._waker.wait(self._poll_seconds or RESCAN_SECONDS)

    def stop(self) -> None:
        """End what follows these runs."""
        self.stopping.set()
        self._waker.wake()

    def close(self) -> None:
        """Stop watching."""
        self._waker.close()


def check_there(runs: Runs) -> None:
    """For who does not wait: see that there are runs to be read.

    Raises:
        LogError: one does not exist, or none has a name that was asked for.
    """
    for path in runs.paths:
        if not runs_in(path):
            open_run(path)
    if not runs.found():
        raise LogError("none of the runs has a name that --runs matches")


def check_names(options: ViewOptions, snapshots: Sequence[Snapshot]) -> None:
    """A name that a finished figure could only answer with an empty panel is an error.

    Raises:
        LogError: no rank, statistic or parameter has such a name; the words say which there are.
    """
    ranks_there = sorted({rank for snapshot in snapshots for rank in snapshot.ranks})
    if ranks_there and options.only_rank is not None and options.only_rank not in ranks_there:
        raise LogError(f"there is no rank {options.rank}: there are {', '.join(map(str, ranks_there))}")
    layers, statistics = snapshots[0].layers, snapshots[0].statistics
    drawn = layers is not None and ((layers.magnitudes >= 0).any() or layers.nonfinite.any())
    if options.view is View.LAYERS and options.statistic not in statistics and not drawn:
        raise LogError(f"{snapshots[0].name} has no {options.statistic!r}: recorded were {', '.join(statistics)}")
    there = snapshots[0].params_there
    if options.view is View.PARAM and snapshots[0].extremes is None:
        near = difflib.get_close_matches(options.param, there, n=3, cutoff=0.4) or there[:3]
        raise LogError(f"{snapshots[0].name} has no row of a parameter {options.param!r}: try {', '.join(near)}")
    if options.params and not any(snapshot.params for snapshot in snapshots):
        raise LogError(f"no parameter's name matches {options.params!r}: there are {', '.join(there[:3])}, …")
