"""The file as a surface, which needs no screen: a figure, or its numbers, written once, or again on every change."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tracer.log.system import patiently
from viewer.draw.theme import SIZE_INCHES
from viewer.draw.views import fill
from viewer.options import ViewOptions
from viewer.read.changes import changes
from viewer.read.runs import Runs
from viewer.snapshot import Snapshot

FORMATS = ("png", "svg", "pdf", "csv")
_DPI = 120


class FigureFile:
    """A file with a figure, or with its numbers; each write replaces it whole, so that nobody reads half a picture."""

    def __init__(self, path: Path, options: ViewOptions) -> None:
        self.path = path
        self._figure = Figure(figsize=SIZE_INCHES, dpi=_DPI)
        self._canvas = FigureCanvasAgg(self._figure)
        self._view = fill(self._figure, options)

    def write(self, snapshots: Sequence[Snapshot]) -> None:
        """Draw snapshots into the file.

        Raises:
            OSError: the file cannot be written.
        """
        self._view.update(snapshots, time.time())
        staged = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            kind = self.path.suffix[1:].lower()
            if kind == "csv":
                staged.write_text(self._view.csv(), encoding="utf-8", newline="")
            elif kind == "png":
                # Unlike ``savefig``, this does not draw twice for the layout, which takes a quarter of its time.
                self._canvas.print_png(staged)
            else:
                self._figure.savefig(staged, format=kind)
            patiently(os.replace, staged, self.path)
        except OSError as error:
            # Name the user's file, and not the staged one.
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        finally:
            with contextlib.suppress(OSError):
                staged.unlink(missing_ok=True)


def follow(runs: Runs, file: FigureFile) -> Sequence[Snapshot]:
    """Write the figure on every change until all runs are over; the last snapshots."""
    shown: Sequence[Snapshot] = ()
    for shown, fresh in changes(runs):
        if fresh:
            file.write(shown)
    return shown
