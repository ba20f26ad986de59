"""One run: its rows as they are published, its state, and whether anything has changed.

Whoever keeps something of a run follows it with this: the history of a figure, and the evidence of the rules.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from tracer.log import store
from tracer.log.run import Run, State, open_run, overall, rank_states, stopped
from tracer.log.store import Place
from viewer.read.follow import Kept, Progress, Rows
from viewer.read.waker import Waker

Used = TypeVar("Used")


@dataclass(frozen=True)
class News(Generic[Kept]):
    """A run after something has changed.

    Attributes:
        run: Which run it is.
        states: Of each rank that writes.
        state: Of all of them.
        stopped_ranks: Those that stopped without closing.
        problems: What could not be read.
        complete: False while a closed run's last rows are still to arrive.
        rows: What has been read of it.
    """

    run: Run
    states: Mapping[int, State]
    state: State
    stopped_ranks: tuple[int, ...]
    problems: tuple[str, ...]
    complete: bool
    rows: Rows[Kept]

    @property
    def kept(self) -> Kept:
        """What is kept of the run's rows."""
        return self.rows.kept


class PartGoneError(Exception):
    """A part was merged away while it was read."""


class FollowedRun(Generic[Kept]):
    """A run that is followed, once it exists; after a deleted run, another may be in the same folder.

    Args:
        path: The run's folder.
        make: Makes what keeps the run's rows.
        tables: Those whose rows it takes.
        rank: Only this rank's rows; None for those of all.
        waker: Watches the folders while the run goes on.

    Attributes:
        folders: Those that have to be watched while the run goes on.
    """

    def __init__(
        self,
        path: Place,
        make: Callable[[Run], Kept],
        tables: Sequence[str],
        rank: int | None = None,
        waker: Waker | None = None,
    ) -> None:
        self.path = path
        self._tables = tables
        self.folders = [path, *(path / table for table in tables)]
        self._rows: Rows[Kept] | None = None
        self._make = make
        self._rank = rank
        self._waker = waker
        self._run: Run | None = None
        # What was told last.
        self._told: object = None
        self._states: Mapping[int, State] = {}
        # How a run that has ended was left.
        self._left: object = None

    @property
    def run_id(self) -> str | None:
        """Which run it is; None before it exists."""
        return None if self._run is None else str(self._run.info["run_id"])

    def refresh(self, use: Callable[[News[Kept]], Used], progress: Progress | None = None) -> Used | None:
        """Read what is new, and give it to ``use``; what that makes of it, or None where nothing has changed.

        Where ``use`` raises, it gets the same again with the next refresh.

        Raises:
            LogError: there is no run, or it cannot be read.
            PartGoneError: a part was merged away, as a network disk's listing can hide: it is there next time.
        """
        run = open_run(self.path)
        if run.info["run_id"] != self.run_id:
            self._begin(run)
        # The state first: rows that are published before a run closes are then read before it shows as closed.
        states = self._states = rank_states(self.path)
        state, stopped_ranks = overall(states), tuple(stopped(states))
        self.watch(over=state == "closed" or (state == "stopped" and bool(states)))
        if self._rows is None:
            if self._left is not None and self._left == (states, self._inner_names()):
                return None
            self._rows = Rows(self.path, partial(self._make, run), self._rank)
        # Where this is interrupted, what was read is told next time.
        told, self._told = self._told, None
        try:
            new = self._rows.read(progress)
        except FileNotFoundError as error:
            raise PartGoneError from error
        known = state, stopped_ranks, self._rows.problems, self._rows.complete(state)
        used = use(News(run, states, *known, self._rows)) if new or told != known else None
        self._told = known
        return used

    def _begin(self, run: Run) -> None:
        self._run = run
        self._rows = self._told = self._left = None
        if self._waker is not None:
            # A folder that was deleted gives no events any more, although one of the same name exists.
            self._waker.forget(self.folders)

    def watch(self, over: bool = False) -> None:
        """Watch the folders of a run that goes on, or is yet to come, and no longer those of one that has ended.

        Each watch is a thread of watchdog's, and a folder may hold hundreds of runs that have ended.
        """
        if self._waker is not None:
            (self._waker.forget if over else self._waker.watch)(self.folders)

    def repeat(self) -> None:
        """Tell everything again at the next refresh, whether it has changed or not."""
        self._told = None

    def leave(self) -> None:
        """Keep nothing of a run that has ended. One that is resumed is read again."""
        self._rows = self._told = None
        self._left = self._states, self._inner_names()

    def _inner_names(self) -> list[set[str]]:
        return [store.inner_names(self.path, table) for table in self._tables]
