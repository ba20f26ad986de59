"""Reads runs in a thread of its own, for a surface whose thread has to draw and to answer the user."""

import contextlib
import threading
from collections.abc import Sequence

from viewer.read.changes import changes
from viewer.read.runs import Runs
from viewer.snapshot import Snapshot


class Reader(threading.Thread):
    """Follows runs in a thread of its own.

    Attributes:
        runs: The runs that it reads.
        latest: The newest snapshots; none before the first.
        read: How many bytes have been read, and how many there are, while a long run is opened.
        error: The exception that ended the reading, if any.
    """

    def __init__(self, runs: Runs) -> None:
        super().__init__(name="viewer-reader", daemon=True)
        self.runs = runs
        self.latest: Sequence[Snapshot] = ()
        self.read: tuple[int, int] = (0, 0)
        self.error: Exception | None = None

    def run(self) -> None:
        """Called by ``start``."""
        with contextlib.closing(self.runs):
            try:
                for snapshots, _ in changes(self.runs, self._progress, endless=True):
                    self.latest = snapshots
            except Exception as error:
                self.error = error

    def _progress(self, done: int, total: int) -> None:
        self.read = done, total

    def stop(self) -> None:
        """End the thread, and wait for its end."""
        self.runs.stop()
        self.join()
