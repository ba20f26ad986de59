"""One run, from before it exists to after it has ended: what has been published comes out as a snapshot."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from tracer.log.run import (
    LogError,
    Run,
    State,
    closed_summaries,
    holds_run,
    open_run,
    overall,
    rank_states,
    stopped,
)
from tracer.log.store import Place
from viewer.options import ViewOptions, matching
from viewer.read.follow import Progress, Rows, Waker
from viewer.reduce.history import History
from viewer.snapshot import Snapshot

# Covers file systems that give no events, and notices that a run stopped without closing.
RESCAN_SECONDS = 2.0


class Live:
    """One run, followed from before it exists to after it has ended.

    Args:
        path: The run's folder.
        options: What snapshots are to show; nothing else is read.
        name: What it is called; without it, as its folder.
        waker: Woken by what is published; without it, one of its own.

    Attributes:
        folders: Those that have to be watched while the run goes on.
    """

    def __init__(
        self, path: Place, options: ViewOptions | None = None, name: str = "", waker: Waker | None = None
    ) -> None:
        self.path = path
        self.folders = [path, *(path / table for table in ("events", "extremes", "metrics", "histograms"))]
        self._options = options or ViewOptions()
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
        self._params = tuple(names), tuple(matching(names, self._options.params))
        settings = info["settings"]
        stride = None if settings.get("budget") else max(settings.get(name) or 1 for name in ("every", "fold"))
        self._rows = Rows(self.path, partial(History, self._options, names, stride=stride))

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
