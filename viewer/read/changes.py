"""The loop of surfaces that follow runs to their end."""

import time
from collections.abc import Iterator

from viewer.read.follow import Progress
from viewer.read.runs import Runs
from viewer.snapshot import Snapshot

# A network disk may show the last rows of a closed run so late: sshfs goes on showing an old listing for 20 s. And so
# long after its machine has slept, a training has told that it lives.
_LATE_SECONDS = 60.0


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
