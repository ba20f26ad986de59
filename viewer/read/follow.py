"""Following a run's folder: the listing is the truth, and each published row is given out once."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import polars as pl

from tracer.log.parts import Part, known_problem, rows_by_number, with_listing
from tracer.log.place import Place
from tracer.log.ranks import State, published_counts
from tracer.log.read import Attempts, all_dropped, dropped_as_told, scan_parts
from tracer.log.text import reason

# Called while a long run is read, with the bytes that were read and those there are.
Progress = Callable[[int, int], None]

# Raised by polars where it cannot decode a file; the second where it did not expect what it found.
_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def _batches(parts: list[Part], sizes: Mapping[str, int], batch_bytes: int) -> Iterator[list[Part]]:
    """The parts in pieces of some size: more rows at once would take more memory, and show no progress."""
    batch: list[Part] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += sizes[part.path.name]
        if size >= batch_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


Ranges = list[tuple[int, int]]


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """These ranges of numbers in order, those that touch made one."""
    joined: Ranges = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return joined


def _without(first: int, last: int, known: Ranges) -> Ranges:
    """The ranges of numbers from first to last that are in none of the known ranges, which are joined."""
    left: Ranges = []
    for start, end in known:
        if first < start and first <= last:
            left.append((first, min(last, start - 1)))
        first = max(first, end + 1)
    return [*left, (first, last)] if first <= last else left


class Follower:
    """Gives out each row of one table of a run once, in publishing order, however its parts are merged meanwhile.

    Args:
        run: The run's folder.
        table: The table's name.
        rank: Only the parts of this rank; None for those of all.

    Attributes:
        problems: What is wrong with damaged parts, by path; their rows are not given out.
        batch_bytes: How large parts that are read at once are together, if there is more than one.
    """

    batch_bytes = 32_000_000

    def __init__(self, run: Place, table: str, rank: int | None = None) -> None:
        self._run = run
        self._table = table
        self._rank = rank
        # The publish numbers that were given out, by rank.
        self._seen: dict[int, Ranges] = {}
        self._given: set[Place] = set()
        self._listed: set[str] | None = None
        self.problems: dict[Place, str] = {}

    def give(self, take: Callable[[pl.LazyFrame], None], progress: Progress | None = None) -> bool:
        """Give the rows that are new to ``take``, if there are any; some parts at a time where they are large.

        Args:
            take: Reads the frame and keeps what it needs of it; where it raises, the same rows are given again.
            progress: Told, after some parts each, how many bytes were read, and how many there are to be read.

        Returns:
            Whether there were any.
        """
        # A day's run has thousands of parts, and mostly none is new: their names tell that sooner than the parts do.
        listed = self._run.names(self._table)
        if listed == self._listed and not self.problems:
            return False
        before = dict(self._seen)
        with_listing(self._run, self._table, lambda parts: self._give(parts, take, progress))
        self._listed = listed
        return self._seen != before

    def _give(
        self,
        listed: list[Part],
        take: Callable[[pl.LazyFrame], None],
        progress: Progress | None,
    ) -> None:
        # Looked at anew each time: what could not be read may be readable now.
        self.problems = {}
        self._given.intersection_update(part.path for part in listed)
        new = [part for part in listed if part.path not in self._given and self._rank in (None, part.rank)]
        folder = self._run / self._table
        sizes = folder.sizes_bytes(part.path.name for part in new)
        done = 0
        for parts in _batches(new, sizes, self.batch_bytes):
            with self._run.brief_copies():
                folder.fetch(part.path.name for part in parts)
                self._take_in(parts, take)
            self._given.update(part.path for part in parts if part.path not in self.problems)
            done += sum(sizes[part.path.name] for part in parts)
            if progress is not None:
                progress(done, sum(sizes.values()))

    def _take_in(self, parts: list[Part], take: Callable[[pl.LazyFrame], None]) -> None:
        """Give what is new in these parts; a part that alone cannot be read is named, and costs its own rows."""
        try:
            frame, seen = self._unseen(parts)
            if frame is not None:
                take(frame)
            self._seen = seen
        except _UNREADABLE as error:
            if len(parts) == 1:
                self.problems[parts[0].path] = f"cannot be decoded: {reason(error)}"
                return
            for part in parts:
                self._take_in([part], take)

    def look(self, use: Callable[[pl.LazyFrame], pl.DataFrame]) -> pl.DataFrame:
        """Give all rows that can be read now to ``use``, those that were given out before, too, and return its result.

        Raises:
            FileNotFoundError: a part was merged away, as a network disk's listing can hide.
        """

        def among(listed: list[Part]) -> pl.DataFrame:
            own = [part for part in listed if self._rank in (None, part.rank)]
            with self._run.brief_copies():
                (self._run / self._table).fetch(part.path.name for part in own)
                return use(scan_parts([part for part in own if known_problem(part) is None], self._table))

        return with_listing(self._run, self._table, among)

    def complete(self, published: Mapping[int, int]) -> bool:
        """Whether everything up to these publish numbers of each rank was given out, or is damaged."""
        damaged = [part for path in self.problems if (part := Part.parse(path)) is not None]
        for rank, count in published.items():
            if self._rank not in (None, rank):
                continue
            lost = [(part.first, part.last) for part in damaged if part.rank == rank]
            if _without(0, count - 1, _joined([*self._seen.get(rank, []), *lost])):
                return False
        return True

    def _unseen(self, parts: list[Part]) -> tuple[pl.LazyFrame | None, dict[int, Ranges]]:
        """The rows of these parts that were not given out, and what will have been, once they are."""
        whole: list[Part] = []
        frames: list[pl.LazyFrame] = []
        seen = dict(self._seen)
        for part in parts:
            problem = known_problem(part)
            if problem is not None:
                self.problems[part.path] = problem
                continue
            known = seen.get(part.rank, [])
            new = _without(part.first, part.last, known)
            if not new:
                continue
            seen[part.rank] = _joined([*known, *new])
            if new == [(part.first, part.last)]:
                whole.append(part)
                continue
            if whole:
                frames.append(scan_parts(whole, self._table))
                whole = []
            frames.extend(self._pieces(part, new))
        if whole:
            frames.append(scan_parts(whole, self._table))
        return pl.concat(frames, how="diagonal") if frames else None, seen

    def _pieces(self, part: Part, new: Ranges) -> list[pl.LazyFrame]:
        """The rows of those publish numbers of a merged part that have not been given out."""
        frame = scan_parts([part], self._table)
        ends = [0, *itertools.accumulate(rows_by_number(part))]
        places = [(ends[first - part.first], ends[last - part.first + 1]) for first, last in new]
        return [frame.slice(start, end - start) for start, end in places]


class Keeper(Protocol):
    """Who takes in rows and keeps something of them: the names of the tables, and what takes their rows."""

    tables: tuple[str, ...]

    def absorb(self, table: str, rows: pl.LazyFrame) -> None:
        """Take in rows of one of the tables."""


Kept = TypeVar("Kept", bound=Keeper)


class Rows(Generic[Kept]):
    """The rows of a run that count, each given once to who keeps something of them: those of its latest attempt.

    Args:
        run: The run's folder.
        begin: Makes who keeps. Called again where rows that were given out count no longer: it begins anew then.
        rank: Only this rank's rows; None for those of all.
        attempt: The attempt that is seen as the latest one; None for the latest.

    Attributes:
        kept: Who keeps now.
    """

    def __init__(
        self, run: Place, begin: Callable[[], Kept], rank: int | None = None, attempt: int | None = None
    ) -> None:
        self._run = run
        self._make = begin
        self._rank = rank
        self._begin(Attempts(last=attempt))

    def _begin(self, attempts: Attempts) -> None:
        self.kept = self._make()
        self._attempts = attempts
        self._told: Counter[tuple[int, int, str]] = Counter()
        # Events first, which say what of the rest counts.
        tables = dict.fromkeys(("events", *self.kept.tables))
        self._followers = {table: Follower(self._run, table, self._rank) for table in tables}

    def read(self, progress: Progress | None = None) -> bool:
        """Give what is new; whether there was anything.

        Raises:
            FileNotFoundError: a part was merged away, as a network disk's listing can hide: it is there next time.
        """
        new = [follower.give(partial(self._take, table), progress) for table, follower in self._followers.items()]
        if self._attempts.overtaken:
            # The run was restored at an earlier step: what of the later ones is kept cannot be taken out.
            self._begin(Attempts(self._attempts.begins, self._attempts.last))
            return self.read(progress)
        return any(new)

    def _take(self, table: str, rows: pl.LazyFrame) -> None:
        if table == "events":
            self._attempts.note(rows)
            rows = self._attempts.counting(rows)
        else:
            rows = self._attempts.latest(rows)
        if table in self.kept.tables:
            self.kept.absorb(table, rows)
        # Last, as where one of these fails all of them get the same rows again.
        if table == "events":
            self._told.update(dropped_as_told(rows))

    def look(self, table: str, where: pl.Expr) -> pl.DataFrame:
        """The rows of one of the tables that count, and of which this holds: also those that were given before.

        Raises:
            FileNotFoundError: as ``read``.
        """
        found = self._followers[table].look(lambda rows: rows.filter(where).collect())
        return Attempts(self._attempts.begins, self._attempts.last).latest(found.lazy()).collect()

    def dropped(self, summaries: Iterable[Mapping[str, Any]]) -> int:
        """How many rows of the run could not be written, as far as is known.

        Args:
            summaries: The closed marks of its ranks.
        """
        return all_dropped(self._told, summaries)

    @property
    def begins(self) -> pl.DataFrame:
        """Where each attempt but the first begins: ``rank``, ``attempt``, ``step``."""
        return self._attempts.begins

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences that say what could not be read."""
        problems = (follower.problems.items() for follower in self._followers.values())
        return tuple(f"{path.name} {what}" for path, what in itertools.chain.from_iterable(problems))

    def complete(self, state: State) -> bool:
        """Whether all rows that are known of were given out; False while a closed run's last rows arrive."""
        return state != "closed" or all(
            follower.complete(published_counts(self._run, table)) for table, follower in self._followers.items()
        )
