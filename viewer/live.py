"""The loop's inside: what has been published goes through the followers into the history, and comes out as a snapshot.

Surfaces call it: from their own loop where they only write files, from a reading thread where a window must stay alive.
One thread owns matplotlib; this module never touches it.
"""

import threading
from dataclasses import dataclass
from pathlib import Path

from tracer.log.run import Run, State, holds_run, open_run, published_counts, state
from viewer.follow import Follower, Waker
from viewer.history import Curve, Extremes, History, Layers
from viewer.look import View

# Covers file systems that give no events, and notices that a run stopped without closing.
RESCAN_SECONDS = 2.0


@dataclass(frozen=True)
class Snapshot:
    """What a figure shows: a run at one moment. Immutable, so that one thread may draw it while another reads on."""

    name: str
    state: State
    last_step: int | None
    curves: tuple[Curve, ...] = ()
    extremes: Extremes | None = None
    layers: Layers | None = None
    problems: tuple[str, ...] = ()
    # False while a closed run's last rows are still to arrive, as on a network disk with an old listing.
    complete: bool = True


class Live:
    """One run, followed from before it exists to after it has ended.

    Args:
        path: The run's folder.
        view: What snapshots are to show; the layers are read for their own view alone.
    """

    def __init__(self, path: Path, view: View = View.OVERVIEW) -> None:
        self.path = path
        self._view = view
        self._waker = Waker()
        self._run: Run | None = None
        self._begin()

    def _begin(self) -> None:
        # A folder that was deleted gives no events any more, although one of the same name exists.
        self._waker.close()
        self._shown: Snapshot | None = None
        names = [str(param["name"]) for param in self._run.info["params"]] if self._run is not None else []
        self._history = History(params=names if self._view is View.LAYERS else None)
        self._extremes = Follower(self.path, "extremes")
        self._metrics = Follower(self.path, "metrics")

    def refresh(self) -> Snapshot | None:
        """Read what is new; the run as it is now, or None where nothing has changed or there is no run yet.

        Raises:
            LogError: the run's format is newer than this viewer's.
        """
        if not holds_run(self.path):
            return None
        run = open_run(self.path)
        if self._run is None or run.info.get("run_id") != self._run.info.get("run_id"):
            self._run = run
            self._begin()
        # The state first: rows that are published before a run closes are then read before it shows as closed.
        now = state(self.path)
        self._waker.watch([self.path, self.path / "extremes", self.path / "metrics"])
        try:
            new = [
                self._extremes.give(self._history.absorb_extremes),
                self._metrics.give(self._history.absorb_metrics),
            ]
        except FileNotFoundError:
            # A network disk may go on listing a part that was merged away. What was read meanwhile is shown later.
            self._shown = None
            return None
        problems = tuple(
            f"{path.name} {what}" for path, what in (self._extremes.problems | self._metrics.problems).items()
        )
        complete = now != "closed" or (
            self._extremes.complete(published_counts(self.path, "extremes"))
            and self._metrics.complete(published_counts(self.path, "metrics"))
        )
        shown = self._shown
        seen = None if shown is None else (shown.state, shown.problems, shown.complete)
        if not any(new) and seen == (now, problems, complete):
            return None
        self._shown = Snapshot(
            run.name,
            now,
            self._history.last_step,
            tuple(self._history.curves()),
            self._history.extremes(),
            self._history.layers(),
            problems,
            complete,
        )
        return self._shown

    def wait(self, seconds: float = RESCAN_SECONDS) -> None:
        """Wait until something is published, at most so long."""
        self._waker.wait(seconds)

    def wake(self) -> None:
        """Wake who waits."""
        self._waker.wake()

    def close(self) -> None:
        """Stop watching."""
        self._waker.close()


class Reader(threading.Thread):
    """Refreshes a run in a thread of its own, for a surface whose thread has to draw and to answer the user.

    Attributes:
        latest: The newest snapshot; None before the first.
        error: What ended the reading, if anything did.
    """

    def __init__(self, live: Live) -> None:
        super().__init__(name="viewer-reader", daemon=True)
        self._live = live
        self._stop_asked = threading.Event()
        self.latest: Snapshot | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Called by ``start``."""
        try:
            while not self._stop_asked.is_set():
                snapshot = self._live.refresh()
                if snapshot is not None:
                    self.latest = snapshot
                self._live.wait()
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        """End the thread, and wait for its end."""
        self._stop_asked.set()
        self._live.wake()
        self.join()
