"""The loop with which every surface follows runs: read, look for findings, show, wait."""

import contextlib
import time
from collections.abc import Iterator, Sequence

from viewer.read.follow import Progress
from viewer.read.runs import Runs
from viewer.snapshot import Snapshot
from viewer.words import title

# A network disk may show the last rows of a closed run so late: sshfs goes on showing an old listing for 20 s. And so
# long after its machine has slept, a training has told that it lives.
_LATE_SECONDS = 60.0


def changes(
    runs: Runs, progress: Progress | None = None, *, endless: bool = False
) -> Iterator[tuple[Sequence[Snapshot], bool]]:
    """The runs as they are now, at least at each rescan, and whether there is anything new to be drawn.

    It ends with ``runs.stop()``, and once all runs are closed and their last rows have arrived. One that was killed
    never closes: it counts as closed once it has been silent for a while. Who only slept goes on.

    Args:
        runs: The runs.
        progress: Called while a long run is opened.
        endless: For a user who may ask for something else: go on when all have ended, and show the first snapshots
            at once, without their findings.

    Raises:
        LogError: the only run cannot be read.
    """

    def stopping(done: int, there: int) -> None:
        if progress is not None:
            progress(done, there)
        if runs.stopping.is_set():
            raise _StoppedError

    with contextlib.suppress(_StoppedError):
        yield from _changes(runs, stopping, endless)


class _StoppedError(Exception):
    """Following was to end while a long run was being opened."""


def _changes(runs: Runs, progress: Progress, endless: bool) -> Iterator[tuple[Sequence[Snapshot], bool]]:
    give_up: float | None = None
    shown: Sequence[Snapshot] = ()
    said = ""
    while not runs.stopping.is_set():
        # Asked before reading: a run that begins in between is not missed.
        awaited = endless or runs.awaited
        was, told = shown, said
        shown = runs.refresh(progress) or shown
        if endless and shown and not was:
            yield shown, True
        shown = runs.examine(progress) or shown
        # The title speaks of the time since the last row, too.
        said = title(shown, time.time(), runs.options) if shown else ""
        yield shown, bool(shown) and (shown is not was or said != told)
        if awaited or not shown or not all(snapshot.ended for snapshot in shown):
            give_up = None
        else:
            give_up = give_up or time.monotonic() + _LATE_SECONDS
            closed = all(snapshot.state == "closed" and snapshot.complete for snapshot in shown)
            if closed or time.monotonic() > give_up:
                return
        runs.wait()
