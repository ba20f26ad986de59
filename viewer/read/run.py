"""One run that is followed: its rows as they are published, its state, and whether anything has changed.

The history of a figure and the evidence of the rules are both made from it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from tracer.log.place import Place
from tracer.log.ranks import State, overall, rank_states, stopped
from tracer.log.run import Run, open_run
from viewer.read.follow import Kept, Progress, Rows
from viewer.read.waker import Waker

Used = TypeVar("Used")


@dataclass(frozen=True)
class News(Generic[Kept]):
    """A run after something has changed.

    Attributes:
        run: The run.
        states: The state of each rank that writes.
        state: The state of the whole run.
        stopped_ranks: The ranks that stopped without closing.
        problems: Sentences that say what could not be read.
        complete: False while a closed run's last rows are still to arrive.
        rows: The rows that have been read.
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
        """The keeper of the run's rows."""
        return self.rows.kept


class PartGoneError(Exception):
    """A part was merged away while it was read."""


class FollowedRun(Generic[Kept]):
    """A run that is followed, once it exists; after a deleted run, another may be in the same folder.

    Args:
        path: The run's folder.
        make: Makes the keeper of the run's rows.
        tables: The tables whose rows it takes.
        rank: Only this rank's rows; None for those of all.
        waker: Watches the folders while the run goes on.
        attempt: The attempt that is seen as the latest one; None for the latest.

    Attributes:
        folders: The folders to watch while the run goes on.
    """

    def __init__(
        self,
        path: Place,
        make: Callable[[Run], Kept],
        tables: Sequence[str],
        rank: int | None = None,
        waker: Waker | None = None,
        attempt: int | None = None,
    ) -> None:
        self.path = path
        self._attempt = attempt
        self._tables = tables
        self.folders = [path, *(path / table for table in tables)]
        self._rows: Rows[Kept] | None = None
        self._make = make
        self._rank = rank
        self._waker = waker
        self._run: Run | None = None
        self._told: object = None
        self._states: Mapping[int, State] = {}
        # The states and files of a run that has ended, when its rows were let go.
        self._left: object = None

    @property
    def run_id(self) -> str | None:
        """The run's id; None before it exists."""
        return None if self._run is None else str(self._run.info["run_id"])

    def refresh(self, use: Callable[[News[Kept]], Used], progress: Progress | None = None) -> Used | None:
        """Read what is new, give it to ``use``, and return its result; None where nothing has changed.

        If ``use`` raises, it gets the same again at the next refresh.

        Raises:
            LogError: there is no run, or it cannot be read.
            PartGoneError: a part was merged away, and a network disk still lists it; the next refresh finds its rows.
        """
        run = open_run(self.path)
        if run.info["run_id"] != self.run_id:
            self._begin(run)
        # The state is read first: then the rows that were published before a run closed are read before it shows so.
        states = self._states = rank_states(self.path)
        state, stopped_ranks = overall(states), tuple(stopped(states))
        self.watch(over=state == "closed" or (state == "stopped" and bool(states)))
        if self._rows is None:
            if self._left is not None and self._left == (states, self._inner_names()):
                return None
            self._rows = Rows(self.path, partial(self._make, run), self._rank, self._attempt)
        # If this is interrupted, the next refresh tells what was read.
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
            # The watch of a deleted folder gives no events for a new folder of its name.
            self._waker.forget(self.folders)

    def watch(self, over: bool = False) -> None:
        """Watch the folders while the run goes on, or is yet to come; forget them once it is over.

        Each watch is a thread of watchdog's, and a folder may hold hundreds of runs that have ended.
        """
        if self._waker is not None:
            (self._waker.forget if over else self._waker.watch)(self.folders)

    def repeat(self) -> None:
        """Tell everything at the next refresh, even if nothing has changed."""
        self._told = None

    def leave(self) -> None:
        """Let go of the rows of a run that has ended; if it is resumed, it is read again."""
        self._rows = self._told = None
        self._left = self._states, self._inner_names()

    def _inner_names(self) -> list[set[str]]:
        return [self.path.names(table) for table in self._tables]
