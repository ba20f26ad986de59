"""Reads runs in a thread of its own, for surfaces that must stay alive meanwhile."""

import threading

from viewer.read.runs import Runs
from viewer.snapshot import Snapshot


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
