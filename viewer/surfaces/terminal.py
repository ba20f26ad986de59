"""The terminal as a surface: a picture in characters, redrawn in place; in a pipe, a line for each news."""

import time
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
from rich.console import Console
from rich.live import Live

from tracer.log.text import plain
from viewer.options import View, ViewOptions
from viewer.read.changes import changes
from viewer.read.runs import Runs
from viewer.reduce.metrics import only_chosen
from viewer.snapshot import Finding, Snapshot
from viewer.surfaces.text import ends, newest, picture
from viewer.words import KINDS, RATIO_WORDS, noticed, notices, parameters_in, words

_GATHER_SECONDS = 0.2
# What redrawing may take of a core, beside this much at the beginning, where a run that has just begun has news each
# second; and how long a redraw is put off at most.
_SHARE, _FIRST_SECONDS, _LONGEST_REST_SECONDS = 0.02, 0.5, 60.0
# A run may have thousands of metrics; a line has room for so many.
_NAMED = 20


def show(runs: Runs) -> Sequence[Snapshot]:
    """Show runs until all have ended; the last snapshots.

    Raises:
        LogError: the run cannot be read.
        KeyboardInterrupt: the user ended it with Ctrl-C.
    """
    console = Console()
    return _redraw(runs, console) if console.is_terminal and not console.is_dumb_terminal else _print_lines(runs)


class Pace:
    """Keeps what a terminal costs to a small share of a core, however much a redraw costs, and however often news come.

    Args:
        clock: Gives the time in seconds.
        spent: Gives the seconds that this process has computed.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, spent: Callable[[], float] = time.process_time
    ) -> None:
        self._clock, self._spent = clock, spent
        self._since: tuple[float, float] | None = None

    def rest_seconds(self) -> float:
        """How long to rest after a redraw; what opening a run has cost, before the first one, is not counted."""
        now, spent = self._clock(), self._spent()
        if self._since is None:
            self._since = now, spent
        owed = (spent - self._since[1] - _FIRST_SECONDS) / _SHARE - (now - self._since[0])
        return min(max(_GATHER_SECONDS, owed), _LONGEST_REST_SECONDS)


def _over(snapshots: Sequence[Snapshot]) -> bool:
    return all(snapshot.state == "closed" and snapshot.complete for snapshot in snapshots)


def _redraw(runs: Runs, console: Console) -> Sequence[Snapshot]:
    """Take the whole terminal as long as anything may change, and leave the last picture on it."""
    live = Live(console=console, screen=True, auto_refresh=False)
    pace = Pace()
    shown: Sequence[Snapshot] = ()
    drawn: object = None
    try:
        # ``shown`` is set before it is drawn, so that Ctrl-C leaves it on the terminal.
        for shown, fresh in changes(runs):
            if not shown:
                continue
            size = console.size
            if not _over(shown) and not live.is_started:
                live.start()
            if live.is_started and (fresh or size != drawn):
                live.update(picture(shown, runs.options, time.time(), *size), refresh=True)
            drawn = size
            if not _over(shown):
                # Ranks that publish at the same time are drawn together.
                _rest(pace.rest_seconds(), console)
    finally:
        live.stop()
        if shown:
            # Two lines are for the prompt.
            console.print(picture(shown, runs.options, time.time(), console.width, console.height - 2))
    return shown


def _rest(seconds: float, console: Console) -> None:
    """Rest so long, or until the terminal has another size."""
    size, until = console.size, time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and console.size == size:
        time.sleep(min(left, _GATHER_SECONDS))


def _print_lines(runs: Runs) -> Sequence[Snapshot]:
    """Print a line for each run with news."""
    shown: Sequence[Snapshot] = ()
    said: set[object] = set()
    pace, console = Pace(), Console()
    for snapshots, _ in changes(runs):
        known = set(map(id, shown))
        fresh = [snapshot for snapshot in snapshots if id(snapshot) not in known]
        lines = [_news(snapshot, runs.options) for snapshot in only_chosen(fresh, runs.options)]
        news: dict[object, str] = {line: line for line in notices(snapshots)}
        news |= {_told(run, finding): _finding(run, finding) for _, run, finding in noticed(snapshots, runs.options)}
        lines += [line for key, line in news.items() if key not in said]
        said.update(news)
        for line in lines:
            print(plain(line), flush=True)
        shown = snapshots
        if not _over(shown):
            _rest(pace.rest_seconds(), console)
    return shown


def _told(snapshot: Snapshot, finding: Finding) -> object:
    """The parts of a finding that stay while it goes on; its bins of steps grow, and other parameters join it."""
    return (
        snapshot.name,
        finding.kind,
        finding.severity,
        finding.numbers.get("metric"),
        finding.resolved,
        finding.restart,
    )


def _finding(snapshot: Snapshot, finding: Finding) -> str:
    end = " is resolved" if finding.resolved else ""
    if finding.restart is not None:
        end = f" before the restart at step {finding.restart:,}"
    return f"{snapshot.name} {finding.severity} at step {finding.first_step:,}: {finding.title}{end}"


def _news(snapshot: Snapshot, options: ViewOptions) -> str:
    """The news of a run: its state and step, and the newest numbers."""
    news = [f"{snapshot.name} {words(snapshot, time.time())}"]
    news += [f"{curve.name} {newest(curve)}" for curve in snapshot.curves[:_NAMED]]
    more = len(snapshot.curves) - _NAMED
    news += [f"{more:,} more metrics (--metric REGEX)"] if more > 0 else []
    alarmed = (curve for curve in snapshot.curves if curve.nonfinite)
    bad = [(curve.name, min(curve.nonfinite)) for curve in islice(alarmed, _NAMED)]
    for kind, word in KINDS.items():
        both = ends(snapshot, kind)
        news += [f"{curve.name} {newest(curve)}" for curve in both]
        bad += [(word, min(curve.nonfinite)) for curve in both[:1] if curve.nonfinite]
    ratio = snapshot.extremes.ratio if snapshot.extremes is not None else None
    if ratio is not None and ratio.step:
        news.append(f"{RATIO_WORDS} {newest(ratio)}")
    news += [f"{name} NaN or inf from step {step:,}" for name, step in bad]
    layers = snapshot.layers
    if layers is not None and np.isfinite(layers.magnitudes).any():
        row = int(np.nanargmax(layers.magnitudes)) // layers.magnitudes.shape[1]
        news.append(f"largest {np.nanmax(layers.magnitudes):.4g} in {layers.params[row]}")
        spoilt = [layers.params[row] for row in np.flatnonzero(layers.nonfinite.any(axis=1)).tolist()]
        of_modules = options.view is View.ACTIVATIONS
        what = "modules" if of_modules else "parameters"
        count = len(spoilt) if of_modules else parameters_in(spoilt, layers.params)
        news += [f"NaN or inf in {count} {what}, {spoilt[0]} the first"] if spoilt else []
    return " · ".join(news)
