"""How every surface reads runs: once, or on each change. Both read curves first and look for findings then."""

import contextlib
import difflib
import time
from collections.abc import Iterator, Sequence

from tracer.log.ranks import settle
from tracer.log.run import LogError, open_run, runs_in
from viewer.options import View, ViewOptions
from viewer.read.follow import Progress
from viewer.read.runs import Runs
from viewer.snapshot import Snapshot
from viewer.words import no_rows, title


def once(runs: Runs, progress: Progress | None = None) -> Sequence[Snapshot]:
    """The runs as they are now; they are closed afterwards.

    Args:
        runs: The runs.
        progress: Called while a long run is opened.

    Raises:
        LogError: a run does not exist or cannot be read, or a name in the options does not exist.
    """
    with contextlib.closing(runs):
        for path in runs.paths:
            if not runs_in(path):
                open_run(path)
        if not runs.listed():
            raise LogError("none of the runs has a name that --runs matches")
        settle(runs.listed().values())
        while (snapshots := runs.refresh(progress)) is None:
            runs.wait()
        check_names(runs.options, snapshots)
        return runs.examine() or snapshots


def changes(
    runs: Runs, progress: Progress | None = None, *, endless: bool = False
) -> Iterator[tuple[Sequence[Snapshot], bool]]:
    """The runs as they are now, at least at each rescan, and whether there is anything new to be drawn.

    It ends with ``runs.stop()``, and once all runs are over.

    Args:
        runs: The runs.
        progress: Called while a long run is opened.
        endless: Go on when all runs are over, since the user may ask for another view; and show the first snapshots at
            once, without their findings.

    Raises:
        LogError: the only run cannot be read.
    """

    def stopping(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total)
        if runs.stopping.is_set():
            raise _StoppedError

    with contextlib.suppress(_StoppedError):
        yield from _changes(runs, stopping, endless)


class _StoppedError(Exception):
    """``stop`` was called while a long run was being opened."""


def _changes(runs: Runs, progress: Progress, endless: bool) -> Iterator[tuple[Sequence[Snapshot], bool]]:
    shown: Sequence[Snapshot] = ()
    heading = ""
    while not runs.stopping.is_set():
        # Asked before reading, so that a run that begins in between is not missed.
        awaited = endless or runs.awaited
        before = shown, heading
        shown = runs.refresh(progress) or shown
        if endless and shown and not before[0]:
            yield shown, True
        shown = runs.examine(progress) or shown
        # The title tells the age of the last row, too.
        heading = title(shown, time.time(), runs.options) if shown else ""
        yield shown, bool(shown) and (shown is not before[0] or heading != before[1])
        if not awaited and runs.all_over:
            return
        runs.wait()


def check_names(options: ViewOptions, snapshots: Sequence[Snapshot]) -> None:
    """Refuse names that a finished figure could only answer with an empty panel.

    Raises:
        LogError: no rank, statistic or parameter has such a name; the message lists names that exist.
    """
    ranks = sorted({rank for snapshot in snapshots for rank in snapshot.ranks})
    if ranks and options.only_rank is not None and options.only_rank not in ranks:
        raise LogError(f"there is no rank {options.rank}: there are {', '.join(map(str, ranks))}")
    first = snapshots[0]
    layers, params = first.layers, first.all_params
    drawn = layers is not None and ((layers.magnitudes >= 0).any() or layers.nonfinite.any())
    modules = options.view is View.ACTIVATIONS
    if modules and layers is None and first.last_step is not None:
        raise LogError(f"{first.name}: {no_rows([first], options)}")
    by_row = options.view is View.LAYERS or (modules and layers is not None)
    if by_row and options.statistic not in first.statistics and not drawn:
        raise LogError(f"{first.name} has no {options.statistic!r}: recorded were {', '.join(first.statistics)}")
    if options.view is View.PARAM and first.extremes is None:
        raise no_row_of(options.param, first.name, params)
    if options.params and not any(snapshot.params for snapshot in snapshots):
        raise nothing_matches(options.params, params)


def no_row_of(param: str, name: str, params: Sequence[str]) -> LogError:
    """The error of a parameter that a run does not have."""
    near = difflib.get_close_matches(param, params, n=3, cutoff=0.4) or params[:3]
    return LogError(f"{name} has no row of a parameter {param!r}: try {', '.join(near)}")


def nothing_matches(pattern: str, params: Sequence[str]) -> LogError:
    """The error of a regular expression that no parameter's name matches."""
    return LogError(f"no parameter's name matches {pattern!r}: there are {', '.join(params[:3])}, …")
