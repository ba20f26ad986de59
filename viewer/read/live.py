"""Snapshots of one run, from before it exists to after it has ended."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from tracer.log.place import Place
from tracer.log.ranks import closed_summaries
from tracer.log.run import LogError, NoRunError, Run, holds_run
from tracer.log.runs import flat
from tracer.log.schema import RATIO, slices_among
from tracer.log.text import failure
from viewer.options import View, ViewOptions, matching
from viewer.read.follow import Progress
from viewer.read.run import FollowedRun, News, PartGoneError
from viewer.read.waker import RESCAN_SECONDS, Waker
from viewer.reduce.depth import trained_weights
from viewer.reduce.history import History
from viewer.snapshot import Snapshot

_TABLES = ("events", "extremes", "metrics", "histograms", "activations")


class Live:
    """One run as a figure shows it, followed from before it exists to after it has ended.

    Args:
        path: The run's folder.
        options: What the snapshots show; nothing else is read.
        name: The run's name in figures; by default its folder's name.
        waker: Woken by what is published; by default one of its own.

    Attributes:
        folders: The folders to watch while the run goes on.
    """

    def __init__(
        self, path: Place, options: ViewOptions | None = None, name: str = "", waker: Waker | None = None
    ) -> None:
        self.path = path
        self._options = options or ViewOptions()
        self._name = name
        self._waker = waker or Waker()
        self._followed = FollowedRun(
            path, self._history, _TABLES, waker=self._waker, attempt=self._options.last_attempt
        )
        self.folders = self._followed.folders
        self._params: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
        self._shown: Snapshot | None = None
        self._shown_id = ""

    def _history(self, run: Run) -> History:
        if run.info["run_id"] != self._shown_id:
            self._shown, self._shown_id = None, run.info["run_id"]
        names = run.names
        self._params = tuple(names), tuple(matching(names, self._options.params))
        settings = run.info["settings"]
        stride = None if settings.get("budget") else max(settings.get(name) or 1 for name in ("every", "fold"))
        return History(
            self._options,
            names,
            stride=stride,
            update_every=settings.get("update_every") or 1,
            weights=trained_weights(run.info["params"]),
        )

    @property
    def run_id(self) -> str | None:
        """The run's id; None before it exists."""
        return self._followed.run_id

    def refresh(self, progress: Progress | None = None) -> Snapshot | None:
        """Read what is new, and give the run as it is now; None where nothing has changed, or there is no run yet.

        Raises:
            LogError: the run's format is newer than this viewer's.
        """
        try:
            snapshot = self._followed.refresh(self._snapshot, progress)
        except PartGoneError:
            return None
        except LogError as error:
            # The run may have been deleted a moment ago, and another one may stand there by now.
            if isinstance(error, NoRunError) or not holds_run(self.path):
                return self._missed()
            raise
        self._shown = snapshot or self._shown
        return snapshot

    def _missed(self) -> Snapshot | None:
        """Give the last snapshot of a run whose folder is gone, once."""
        if self._shown is None or self._shown.gone:
            return None
        self._followed.repeat()
        self._shown = replace(self._shown, state="stopped", gone=True)
        return self._shown

    def troubled(self, error: Exception) -> Snapshot | None:
        """Give the last snapshot of a run that cannot be read now, with the problem, once."""
        problems = (failure(error),)
        if self._shown is not None and self._shown.problems == problems:
            return None
        self._followed.repeat()
        self._shown = replace(self._shown or Snapshot(self._name, "stopped", None), problems=problems)
        return self._shown

    def _snapshot(self, news: News[History]) -> Snapshot:
        history = news.kept
        all_params, shown = self._params
        by_modules = self._options.view is View.ACTIVATIONS
        if by_modules:
            # There the pattern is one of modules.
            shown = all_params
        closed = closed_summaries(self.path) if "closed" in news.states.values() else []
        return Snapshot(
            name=self._name or news.run.name,
            state=news.state,
            last_step=history.last_step,
            curves=tuple(history.curves()),
            extremes=history.extremes(),
            layers=history.layers(),
            histograms=history.histograms(),
            problems=news.problems,
            complete=news.complete,
            started=datetime.fromisoformat(news.run.info["started"]).timestamp(),
            last_time=history.last_time,
            steps_per_second=history.steps_per_second(),
            total_steps=news.run.info["settings"].get("total_steps"),
            dropped=news.rows.dropped(closed),
            ranks=tuple(news.states),
            stopped_ranks=news.stopped_ranks,
            params=shown,
            all_params=all_params,
            statistics=history.recorded if by_modules else _statistics(news.run.info["settings"]),
            dtype=self._dtype(news.run),
            config=flat(news.run.config),
        )

    def _dtype(self, run: Run) -> str:
        """The dtype of the parameter that is shown, or whose slice is."""
        of = slices_among(self._params[0]).get(self._options.param, self._options.param)
        return next((str(param.get("dtype", "")) for param in run.info["params"] if param["name"] == of), "")

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
    # The dynamic range is made of it.
    recorded += ["bits"] * ("smallest" in recorded)
    kinds = ("grad", "value", *(name for name in ("applied", "update") if settings.get(name)))
    columns = [f"{kind}_{name}" for kind in kinds for name in ("absmax", *recorded)]
    return *columns, *([RATIO] if settings.get("update") else [])
