"""Reads runs in a thread of its own, for a surface whose thread has to draw and to answer the user."""

import threading
from collections.abc import Sequence

from viewer.read.changes import changes
from viewer.read.runs import Runs
from viewer.snapshot import Snapshot


class Reader(threading.Thread):
    """Follows runs in a thread of its own.

    Attributes:
        runs: What it reads.
        latest: The newest snapshots; none before the first.
        read: How many of the bytes that there are have been read, while a long run is opened.
        error: What ended the reading, if anything did.
    """

    def __init__(self, runs: Runs) -> None:
        super().__init__(name="viewer-reader", daemon=True)
        self.runs = runs
        self.latest: Sequence[Snapshot] = ()
        self.read: tuple[int, int] = (0, 0)
        self.error: Exception | None = None

    def run(self) -> None:
        """Called by ``start``."""
        try:
            for snapshots, _ in changes(self.runs, self._progress, endless=True):
                self.latest = snapshots
        except Exception as error:
            self.error = error
        finally:
            self.runs.close()

    def _progress(self, done: int, there: int) -> None:
        self.read = done, there

    def stop(self) -> None:
        """End the thread, and wait for its end."""
        self.runs.stop()
        self.join()
