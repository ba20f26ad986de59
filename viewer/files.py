"""The surface that needs no screen: the figure as a file, once, or again on every change."""

import os
import time
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from viewer.figure import SIZE_INCHES
from viewer.live import Live, Snapshot
from viewer.look import Look
from viewer.views import fill

FORMATS = ("png", "svg", "pdf")
_DPI = 120
# sshfs, for one, goes on showing an old listing for 20 s.
_LATE_SECONDS = 60.0


class FigureFile:
    """A file that shows a run; each write replaces it whole, so that nobody reads half a picture."""

    def __init__(self, path: Path, look: Look) -> None:
        self.path = path
        self._figure = Figure(figsize=SIZE_INCHES, dpi=_DPI)
        FigureCanvasAgg(self._figure)
        self._view = fill(self._figure, look)

    def write(self, snapshot: Snapshot) -> None:
        """Draw a snapshot into the file.

        Raises:
            OSError: the file cannot be written.
        """
        self._view.update(snapshot)
        staged = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self._figure.savefig(staged, format=self.path.suffix[1:].lower())
            os.replace(staged, self.path)
        finally:
            staged.unlink(missing_ok=True)


def follow(live: Live, file: FigureFile) -> Snapshot:
    """Write the figure on every change, until the run is closed and its last rows have arrived; the last snapshot."""
    give_up: float | None = None
    shown: Snapshot | None = None
    while True:
        snapshot = live.refresh()
        if snapshot is not None:
            file.write(snapshot)
            shown = snapshot
        if shown is not None and shown.state == "closed":
            give_up = give_up or time.monotonic() + _LATE_SECONDS
            if shown.complete or time.monotonic() > give_up:
                return shown
        live.wait()
