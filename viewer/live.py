"""The loop's inside: what has been published goes through the followers into the history, and comes out as a snapshot.

Surfaces call it: from their own loop where they only write files, from a reading thread where a window must stay alive.
One thread owns matplotlib; this module never touches it.
"""

import difflib
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from tracer.log.run import (
    LogError,
    Run,
    State,
    began,
    closed_summaries,
    holds_run,
    open_run,
    overall,
    rank_states,
    runs_in,
    stopped,
)
from tracer.log.store import Place
from viewer.follow import Progress, Rows, Waker
from viewer.history import History
from viewer.look import Look, View, matching
from viewer.rule import LIMITS, Limits
from viewer.snapshot import Finding, Snapshot
from viewer.witness import Witness

# Covers file systems that give no events, and notices that a run stopped without closing.
RESCAN_SECONDS = 2.0
# A network disk may show the last rows of a closed run so late: sshfs goes on showing an old listing for 20 s. And so
# long after its machine has slept, a training has told that it lives.
_LATE_SECONDS = 60.0
# Of so many ranks that were looked at before, it is kept what is wrong with them.
_OTHER_RANKS = 3


class Live:
    """One run, followed from before it exists to after it has ended.

    Args:
        path: The run's folder.
        look: What snapshots are to show; nothing else is read.
        name: What it is called; without it, as its folder.
        waker: Woken by what is published; without it, one of its own.

    Attributes:
        folders: Those that have to be watched while the run goes on.
    """

    def __init__(self, path: Place, look: Look | None = None, name: str = "", waker: Waker | None = None) -> None:
        self.path = path
        self.folders = [path, *(path / table for table in ("events", "extremes", "metrics", "histograms"))]
        self._look = look or Look()
        self._name = name
        self._waker = waker or Waker()
        self._run: Run | None = None
        self._begin()

    def _begin(self) -> None:
        # A folder that was deleted gives no events any more, although one of the same name exists.
        self._waker.forget(self.folders)
        self._shown: Snapshot | None = None
        info = self._run.info if self._run is not None else {"params": [], "settings": {}}
        names = [param["name"] for param in info["params"]]
        self._params = tuple(names), tuple(matching(names, self._look.params))
        settings = info["settings"]
        stride = None if settings.get("budget") else max(settings.get(name) or 1 for name in ("every", "fold"))
        self._rows = Rows(self.path, partial(History, self._look, names, stride=stride))

    @property
    def run_id(self) -> str | None:
        """Which run it is; None before it exists."""
        return None if self._run is None else self._run.info["run_id"]

    def refresh(self, progress: Progress | None = None) -> Snapshot | None:
        """Read what is new; the run as it is now, or None where nothing has changed or there is no run yet.

        Raises:
            LogError: the run's format is newer than this viewer's.
        """
        try:
            run = open_run(self.path)
        except LogError as error:
            # It may have been deleted at this moment, and be there again by now.
            if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)) or not holds_run(self.path):
                return self._missed()
            raise
        if self._run is None or run.info.get("run_id") != self._run.info.get("run_id"):
            self._run = run
            self._begin()
        # The state first: rows that are published before a run closes are then read before it shows as closed.
        states = rank_states(self.path)
        now = overall(states)
        # Each watch is a thread of watchdog's, and a folder may hold hundreds of runs that have ended.
        ended = now == "closed" or (now == "stopped" and bool(states))
        (self._waker.forget if ended else self._waker.watch)(self.folders)
        try:
            new = self._rows.read(progress)
        except FileNotFoundError:
            # What was read meanwhile is shown later.
            self._shown = None
            return None
        problems, complete = self._rows.problems, self._rows.complete(now)
        shown = self._shown
        seen = None if shown is None else (shown.state, shown.problems, shown.complete, shown.gone, shown.stopped_ranks)
        if not new and seen == (now, problems, complete, False, tuple(stopped(states))):
            return None
        self._shown = self._snapshot(run, states, problems, complete)
        return self._shown

    def _missed(self) -> Snapshot | None:
        """What was seen of a run whose folder is gone, once."""
        if self._shown is None or self._shown.gone:
            return None
        self._shown = replace(self._shown, state="stopped", gone=True)
        return self._shown

    def troubled(self, error: Exception) -> Snapshot | None:
        """What was seen of a run that cannot be read now, with its trouble, once; it is gone with the next refresh."""
        problems = (" ".join(str(error).split()),)
        if self._shown is not None and self._shown.problems == problems:
            return None
        self._shown = replace(self._shown or Snapshot(self._name, "stopped", None), problems=problems)
        return self._shown

    def _snapshot(self, run: Run, states: Mapping[int, State], problems: tuple[str, ...], complete: bool) -> Snapshot:
        history = self._rows.kept
        there, shown = self._params
        now = overall(states)
        closed = closed_summaries(self.path) if "closed" in states.values() else []
        return Snapshot(
            name=self._name or run.name,
            state=now,
            last_step=history.last_step,
            curves=tuple(history.curves()),
            extremes=history.extremes(),
            layers=history.layers(),
            histograms=history.histograms(),
            problems=problems,
            complete=complete,
            started=datetime.fromisoformat(run.info["started"]).timestamp(),
            last_time=history.last_time,
            steps_per_second=history.steps_per_second(),
            total_steps=run.info["settings"].get("total_steps"),
            dropped=self._rows.dropped(closed),
            ranks=tuple(states),
            stopped_ranks=tuple(stopped(states)),
            params=shown,
            params_there=there,
            statistics=_statistics(run.info["settings"]),
        )

    def wait(self, seconds: float = RESCAN_SECONDS) -> None:
        """Wait until something is published, at most so long."""
        self._waker.wait(seconds)

    def wake(self) -> None:
        """Wake who waits."""
        self._waker.wake()

    def close(self) -> None:
        """Stop watching."""
        self._waker.close()


def _statistics(settings: Mapping[str, Any]) -> tuple[str, ...]:
    recorded = [name for name in settings.get("stats") or () if name not in ("min", "max", "absmax")]
    kinds = ("grad", "value", "applied") if settings.get("applied") else ("grad", "value")
    return tuple(f"{kind}_{name}" for kind in kinds for name in ("absmax", *recorded))


class Runs:
    """The runs that a user watches, as they come and go.

    Args:
        paths: Runs' folders, existing or not, and folders of runs, of which all are meant.
        look: What is to be seen of them. Only the overview shows several: other views show the one begun last.
        only: A regular expression: only those runs in whose folder's name it is found.
        poll_seconds: Look so often instead of waiting for events of the file system.
        witnesses: Those who know runs' findings, by folder and rank (None: all), where several share them.
        limits: The thresholds of findings.

    Attributes:
        names: All that there are, whether they are shown or not.
    """

    def __init__(
        self,
        paths: Sequence[Place],
        look: Look | None = None,
        only: str = "",
        poll_seconds: float | None = None,
        witnesses: dict[tuple[Place, int | None], Witness] | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        self.paths = tuple(paths)
        self.look = look or Look()
        self._only = only
        self._poll_seconds = poll_seconds
        self._witnesses = {} if witnesses is None else witnesses
        self._limits = limits
        self._waker = Waker(events=poll_seconds is None)
        self._lives: dict[tuple[str, Place], Live] = {}
        self._shown: dict[tuple[str, Place], Snapshot] = {}
        # Those of which something is new since their findings were looked for.
        self._unexamined: set[tuple[str, Place]] = set()
        self._found: list[tuple[str, Place]] = []
        self.names: tuple[str, ...] = ()

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
        for each in list(self._witnesses):
            if each[0] not in there:
                self._witnesses.pop(each, None)
        wanted = [key for key in found if self.look.run in ("", key[0])]
        if self.look.view is not View.OVERVIEW and len(wanted) > 1:
            wanted = sorted(wanted, key=lambda key: began(key[1]))[-1:]
        changed = self._lives.keys() != set(wanted)
        for key in self._lives.keys() - set(wanted):
            self._waker.forget(self._lives[key].folders)
        self._lives = {key: self._lives.get(key) or Live(key[1], self.look, key[0], self._waker) for key in wanted}
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
        for key in self._unexamined & self._shown.keys() if self.look.findings else ():
            witness = self._witness(key[1])
            # Who holds it reads the same, which is there next time.
            if witness.lock.acquire(blocking=False):
                try:
                    witness.refresh(progress)
                except (LogError, OSError, pl.exceptions.PolarsError):
                    # The snapshot says what is wrong.
                    continue
                finally:
                    witness.lock.release()
                if witness.current:
                    self._unexamined.discard(key)
            if self._known(key) != self._shown[key].findings:
                self._shown[key] = replace(self._shown[key], findings=self._known(key))
                changed = True
        return tuple(self._shown.values()) if changed else None

    def _witness(self, path: Place) -> Witness:
        """Who knows a run's findings, as it is looked at."""
        rank = self.look.only_rank
        witness = self._witnesses.setdefault((path, rank), Witness(path, self._limits, rank))
        others = [key for key in list(self._witnesses) if key[0] == path and key[1] not in (None, rank)]
        for key in others[:-_OTHER_RANKS]:
            self._witnesses.pop(key, None)
        return witness

    def _known(self, key: tuple[str, Place]) -> tuple[Finding, ...]:
        witness = self._witnesses.get((key[1], self.look.only_rank)) if self.look.findings else None
        return () if witness is None or witness.run_id != self._lives[key].run_id else witness.findings

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

    def wake(self) -> None:
        """Wake who waits."""
        self._waker.wake()

    def close(self) -> None:
        """Stop watching."""
        self._waker.close()


def until_closed(runs: Runs, progress: Progress | None = None) -> Iterator[tuple[Snapshot, ...]]:
    """The runs as they are now, at least at each rescan, until all are closed and their last rows have arrived.

    One that was killed never closes: it counts as closed once it has been silent for a while. Who only slept goes on.
    """
    give_up: float | None = None
    shown: tuple[Snapshot, ...] = ()
    while True:
        # Asked before reading: a run that begins in between is not missed.
        awaited = runs.awaited
        shown = runs.refresh(progress) or shown
        shown = runs.examine(progress) or shown
        yield shown
        if awaited or not shown or not all(snapshot.ended for snapshot in shown):
            give_up = None
        else:
            give_up = give_up or time.monotonic() + _LATE_SECONDS
            closed = all(snapshot.state == "closed" and snapshot.complete for snapshot in shown)
            if closed or time.monotonic() > give_up:
                return
        runs.wait()


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


def check_names(look: Look, snapshots: Sequence[Snapshot]) -> None:
    """A name that a finished figure could only answer with an empty panel is an error.

    Raises:
        LogError: no rank, statistic or parameter has such a name; the words say which there are.
    """
    ranks_there = sorted({rank for snapshot in snapshots for rank in snapshot.ranks})
    if ranks_there and look.only_rank is not None and look.only_rank not in ranks_there:
        raise LogError(f"there is no rank {look.rank}: there are {', '.join(map(str, ranks_there))}")
    layers, statistics = snapshots[0].layers, snapshots[0].statistics
    drawn = layers is not None and ((layers.magnitudes >= 0).any() or layers.nonfinite.any())
    if look.view is View.LAYERS and look.statistic not in statistics and not drawn:
        raise LogError(f"{snapshots[0].name} has no {look.statistic!r}: recorded were {', '.join(statistics)}")
    there = snapshots[0].params_there
    if look.view is View.PARAM and snapshots[0].extremes is None:
        near = difflib.get_close_matches(look.param, there, n=3, cutoff=0.4) or there[:3]
        raise LogError(f"{snapshots[0].name} has no row of a parameter {look.param!r}: try {', '.join(near)}")
    if look.params and not any(snapshot.params for snapshot in snapshots):
        raise LogError(f"no parameter's name matches {look.params!r}: there are {', '.join(there[:3])}, …")


class Reader(threading.Thread):
    """Refreshes runs in a thread of its own, for a surface whose thread has to draw and to answer the user.

    Attributes:
        runs: What it reads.
        latest: The newest snapshots; none before the first.
        read: How many of the bytes that there are have been read, while a long run is opened.
        error: What ended the reading, if anything did.
    """

    def __init__(self, runs: Runs) -> None:
        super().__init__(name="viewer-reader", daemon=True)
        self.runs = runs
        self._stop_asked = threading.Event()
        self.latest: tuple[Snapshot, ...] = ()
        self.read: tuple[int, int] = (0, 0)
        self.error: Exception | None = None

    def run(self) -> None:
        """Called by ``start``."""
        try:
            while not self._stop_asked.is_set():
                snapshots = self.runs.refresh(self._progress) or self.latest
                # The first picture does not wait for findings; later ones come with them.
                self.latest = self.latest or snapshots
                self.latest = self.runs.examine(self._progress) or snapshots
                self.runs.wait()
        except _StoppedError:
            pass
        except Exception as error:
            self.error = error
        finally:
            self.runs.close()

    def _progress(self, done: int, there: int) -> None:
        self.read = done, there
        if self._stop_asked.is_set():
            raise _StoppedError

    def stop(self) -> None:
        """End the thread, and wait for its end."""
        self._stop_asked.set()
        self.runs.wake()
        self.join()


class _StoppedError(Exception):
    """Reading was to end while a long run was being opened."""
