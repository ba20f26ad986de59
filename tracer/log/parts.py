"""Parts, the immutable Parquet files of a log: their names, how they are published, listed, merged and verified."""

import contextlib
import functools
import re
import time
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tracer.log import footer, schema, system
from tracer.log import summary as summaries
from tracer.log.place import Place, Staged
from tracer.log.text import plain, reason

Used = TypeVar("Used")

_NAME = re.compile(r"r(\d{5,})-(\d{9,})-(\d{9,})-([0-9a-f]{8})\.parquet")
_LISTINGS = 5
# Large enough for small footers and fast scans; as many rows are in memory while parts are merged.
_ROW_GROUP_ROWS = 1 << 18


class BadPartWarning(UserWarning):
    """A part of a log is damaged; its rows are left out."""


@dataclass(frozen=True, order=True)
class Part:
    """One published file: the rows that ``rank`` published under the numbers ``first`` to ``last``."""

    rank: int
    first: int
    last: int
    crc32: int
    path: Place

    @classmethod
    def parse(cls, path: Place) -> "Part | None":
        """The part that a file's name describes; None if it is not the name of a part."""
        match = _NAME.fullmatch(path.name)
        if match is None:
            return None
        rank, first, last = (int(group) for group in match.groups()[:3])
        believed = first <= last and rank < schema.BEYOND["rank"]
        return cls(rank, first, last, int(match[4], 16), path) if believed else None

    def file(self) -> Path:
        """A file on this machine with the part's bytes: its own, or a copy.

        Raises:
            FileNotFoundError: the part is gone.
        """
        return self.path.local_file()

    @property
    def table(self) -> str:
        """The name of the table whose rows it holds."""
        # Both separators: a disk of Windows has the one, a URI the other.
        return re.split(r"[/\\]", str(self.path))[-2]

    def inside(self, other: "Part") -> bool:
        """Whether another part of the same rank holds all rows of this one.

        Two versions of a library may merge the same rows into different bytes: of two such parts, one is inside the
        other.
        """
        within = self.rank == other.rank and other.first <= self.first and self.last <= other.last
        return within and ((other.first, other.last) != (self.first, self.last) or self.crc32 > other.crc32)

    def repeats(self, before: "Part | None") -> int:
        """How many of this part's first publish numbers are also in the part that is read before it.

        Parts overlap if two processes merge a run at once and divide it differently.
        """
        return 0 if before is None or before.rank != self.rank else max(0, before.last + 1 - self.first)


def part_name(rank: int, first: int, last: int, crc32: int) -> str:
    """The file name of a part."""
    return f"r{rank:05d}-{first:09d}-{last:09d}-{crc32:08x}.parquet"


def all_parts(run: Place, table: str) -> list[Part]:
    """Every published part of a table, by rank and number, including those that a merged part has replaced."""
    # Listing a folder takes time. During a merge it can miss the merged part, which is new, and the replaced parts,
    # which are deleted by then. A listing is complete if nothing has gone since the one before.
    earlier = run.names(table)
    while not earlier <= (names := run.names(table)):
        earlier = names
    return sorted(part for name in names if (part := Part.parse(run / table / name)) is not None)


def list_parts(run: Place, table: str) -> list[Part]:
    """The parts to read, by rank and number: the published ones, without those that lie inside an undamaged one.

    Raises:
        FileNotFoundError: a part is gone; it may have been merged since it was listed.
    """
    listed: list[Part] = []
    for part in sorted(all_parts(run, table), key=lambda part: (part.rank, part.first, -part.last, part.crc32)):
        if not (listed and part.inside(listed[-1]) and known_problem(listed[-1]) is None):
            listed.append(part)
    return listed


def with_listing(run: Place, table: str, use: Callable[[list[Part]], Used]) -> Used:
    """Call ``use`` with the parts to read, and return its result; list them again if one is gone by then.

    Raises:
        FileNotFoundError: a part is listed again and again, but is missing.
    """
    for _ in range(_LISTINGS - 1):
        # A part that was merged away after the listing: the next listing shows the part that replaced it.
        with contextlib.suppress(FileNotFoundError):
            return use(list_parts(run, table))
    return use(list_parts(run, table))


def publish(run: Place, table: str, rank: int, number: int, rows: pa.Table) -> Part:
    """Publish rows as the part ``number`` of a table: all of them are in the log, or none if this raises.

    Raises:
        OSError: the file could not be written, or did not end complete.
    """

    def write(staged: Staged) -> None:
        # In one piece: each callback of pyarrow would wait for the training's thread.
        encoded = pa.BufferOutputStream()
        pq.write_table(rows, encoded, **schema.write_options(rows.schema))
        staged.write(encoded.getvalue())

    return _publish(run, table, rank, number, number, write)


def _publish(run: Place, table: str, rank: int, first: int, last: int, write: Callable[[Staged], None]) -> Part:
    # The name is unique: a user may run `tracer merge` while the rank itself merges, on this machine or another.
    with run.stage(f"{table}-{uuid.uuid4().hex}-{part_name(rank, first, last, 0)}") as staged:
        write(staged)
        name = f"{table}/{part_name(rank, first, last, staged.crc32)}"
        staged.publish(name)
        return Part(rank, first, last, staged.crc32, run / name)


def file_crc32(path: Path) -> int:
    """The CRC-32 of a file's bytes."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def known_problem(part: Part) -> str | None:
    """Say what is wrong with a part; None if its bytes are those that were published.

    Reads the whole file, but only once a process unless it changes.

    Raises:
        FileNotFoundError: the part is gone; it may have been merged since it was listed.
    """
    try:
        stat = part.file().stat()
        return _damage_of_file(part, stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError:
        raise
    except OSError as error:
        return f"cannot be read: {reason(error)}"


@functools.lru_cache(maxsize=1 << 16)
def _damage_of_file(part: Part, size: int, mtime_ns: int) -> str | None:
    return damage(part)


def damage(part: Part) -> str | None:
    """Say what is wrong with a part's bytes, which are read again; None if they are those that were published.

    The checksum finds accidents. It is no defence against a part that was forged together with its checksum. Intact
    bytes may still be another file under a part's name, so three things are checked that would end a reader: how many
    numbers the part covers, the required columns of its table, and that its row groups fit into memory. A link, a pipe
    or a folder is never listed as a part: no reader leaves the run's folder, and none waits for a pipe.

    Raises:
        OSError: the bytes cannot be read now; that may pass.
    """
    path = part.file()
    crc32 = file_crc32(path)
    if crc32 != part.crc32:
        return f"has changed since it was published: CRC-32 {crc32:08x}, not {part.crc32:08x}"
    try:
        return footer.misfit(pq.read_metadata(path), part.table, range(part.first, part.last + 1))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        # An error of the disk has a number. Arrow's own have none: the bytes could be read, but are no Parquet.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return f"is not Parquet: {reason(error)}"


def good_parts(folder: Place, parts: Iterable[Part]) -> list[Part]:
    """Leave out the damaged ones among the parts in a folder, with a ``BadPartWarning`` for each.

    Raises:
        FileNotFoundError: a part is gone; it may have been merged since it was listed.
    """
    listed = list(parts)
    folder.fetch(part.path.name for part in listed)
    good = []
    for part in listed:
        problem = known_problem(part)
        if problem is None:
            good.append(part)
        else:
            warnings.warn(
                plain(f"{part.path} {problem}; its rows are left out (`tracer verify` lists every bad part)"),
                BadPartWarning,
                stacklevel=2,
            )
    return good


def missing_numbers(parts: Iterable[Part], published: Mapping[int, int] | None = None) -> list[tuple[int, int, int]]:
    """The gaps in the publish numbers of a table's parts, as (rank, first missing, last missing).

    Args:
        parts: The parts of the table.
        published: How many numbers each rank used, as far as known.
    """
    gaps = []
    expected: dict[int, int] = {}
    for part in sorted(parts):
        number = expected.get(part.rank, 0)
        if part.first > number:
            gaps.append((part.rank, number, part.first - 1))
        expected[part.rank] = max(number, part.last + 1)
    for rank, count in (published or {}).items():
        if expected.get(rank, 0) < count:
            gaps.append((rank, expected.get(rank, 0), count - 1))
    return gaps


def rows_by_number(part: Part) -> list[int]:
    """How many rows each publish number of a part contributed, from ``part.first`` to ``part.last``.

    Raises:
        pa.ArrowInvalid: the file's footer cannot be read.
    """
    return footer.rows_by_number(pq.read_metadata(part.file()))


class MergeTimeoutError(Exception):
    """A merge would take longer than allowed; the parts that it has not merged are unchanged."""


def merge(
    run: Place, table: str, rank: int, *, seconds: float = float("inf"), numbers: tuple[int, int] | None = None
) -> list[Part]:
    """Merge a rank's parts into as few as possible, and delete those that the merged ones replace.

    Only neighbours without a gap are merged, and a damaged part stays as it is. A reader sees the same rows before,
    during and after. If the process dies halfway, readers ignore the replaced parts, and the next merge deletes them.

    Args:
        run: The run's folder.
        table: The table's name.
        rank: The rank whose parts are merged.
        seconds: How long it may take.
        numbers: The first and the last publish number to merge; all without them.

    Returns:
        The merged parts that were made.

    Raises:
        MergeTimeoutError: it would take longer than ``seconds``.
        OSError: a part cannot be read or written.
        pyarrow.ArrowException: a part cannot be decoded.
    """
    deadline = time.monotonic() + seconds

    def wanted(part: Part) -> bool:
        return part.rank == rank and (numbers is None or (numbers[0] <= part.first and part.last <= numbers[1]))

    with run.brief_copies():
        # Another process that merges the same parts deletes them.
        return with_listing(run, table, lambda parts: _merge(run, table, [*filter(wanted, parts)], deadline))


def _merge(run: Place, table: str, parts: list[Part], deadline: float) -> list[Part]:
    merged = []
    for group in _neighbours(parts, deadline):
        whole = group[0]
        if len(group) > 1:
            write = functools.partial(_write_merged, parts=group, deadline=deadline)
            whole = _publish(run, table, whole.rank, whole.first, group[-1].last, write)
            merged.append(whole)
        _remove((part for part in all_parts(run, table) if part.inside(whole)), deadline)
    return merged


def _remove(parts: Iterable[Part], deadline: float) -> None:
    """Delete parts that a merged one has replaced. One that a reader has open on Windows is left to the next merge."""
    for part in parts:
        try:
            part.path.remove()
        except OSError as error:
            if not system.in_use(error):
                raise
            _check_time(deadline)


def _neighbours(parts: list[Part], deadline: float) -> list[list[Part]]:
    """Group the undamaged ones among these parts, so that no group has a gap, or a column of two types."""
    groups: list[list[Part]] = [[]]
    types: dict[str, pa.DataType] = {}
    for part in parts:
        _check_time(deadline)
        # A part that cannot be read at this moment ends the merge with an error. Another process may read it and merge
        # it with its neighbours; to go on around it would divide the same rows differently.
        if damage(part) is not None:
            groups.append([])
            continue
        own = {field.name: field.type for field in pq.read_schema(part.file())}
        clash = any(types.get(name, of) != of for name, of in own.items())
        if groups[-1] and (clash or groups[-1][-1].last + 1 < part.first):
            groups.append([])
        types = {**types, **own} if groups[-1] else own
        groups[-1].append(part)
    return [group for group in groups if group]


def _check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise MergeTimeoutError("merging takes too long")


def _write_merged(staged: Staged, parts: list[Part], deadline: float) -> None:
    schemas = [pq.read_schema(part.file()).remove_metadata() for part in parts]
    # What only some parts have is null in the others.
    shared = set.intersection(*(set(columns.names) for columns in schemas))
    unified = pa.schema(
        [field if field.name in shared else field.with_nullable(True) for field in pa.unify_schemas(schemas)]
    )
    repeated = [part.repeats(before) for before, part in zip((None, *parts), parts, strict=False)]
    numbers = [rows for part, known in zip(parts, repeated, strict=True) for rows in rows_by_number(part)[known:]]
    metadata = footer.naming_rows(numbers)
    # Of each metric the last number and the extremes, so that tables of runs need no rows.
    summary: summaries.Summary | None = {} if parts[0].table == "metrics" else None
    with pq.ParquetWriter(staged, unified.with_metadata(metadata), **schema.write_options(unified)) as writer:
        pending: list[pa.Table] = []
        for part, known in zip(parts, repeated, strict=True):
            skipped = sum(rows_by_number(part)[:known])
            for batch in pq.ParquetFile(part.file()).iter_batches(batch_size=_ROW_GROUP_ROWS):
                _check_time(deadline)
                pending.append(pa.Table.from_batches([batch.slice(skipped)]))
                if summary is not None:
                    summary = summaries.joined([summary, summaries.of_rows(pending[-1])])
                skipped = max(0, skipped - batch.num_rows)
                if sum(table.num_rows for table in pending) >= _ROW_GROUP_ROWS:
                    writer.write_table(_joined(pending, unified))
                    pending = []
        if pending:
            writer.write_table(_joined(pending, unified))
        if summary is not None:
            writer.add_key_value_metadata(summaries.naming(summary))


def _joined(tables: list[pa.Table], unified: pa.Schema) -> pa.Table:
    """Join tables into one with the unified schema, and one dictionary for each column of names."""
    joined = pa.concat_tables([unified.empty_table(), *tables], promote_options="default")
    return joined.combine_chunks().select(unified.names).cast(unified)
