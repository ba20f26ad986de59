import errno
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.halves import first_of
from tests.logs import extremes, flip_bit, histograms, largest_file, metrics, new_run, publish_next
from tracer.log import parts
from tracer.log.parts import (
    MergeTimeoutError,
    Part,
    all_parts,
    damage,
    file_crc32,
    list_parts,
    merge,
    missing_numbers,
    part_name,
    publish,
    rows_by_number,
)
from tracer.log.store import Local as Path

RANKS = st.integers(0, 10**6)
NUMBERS = st.integers(0, 10**12)


def log_of(run: Path, counts: list[int], rank: int = 0) -> Path:
    """A run whose parts hold so many steps each, counted from 0 over the parts."""
    first = 0
    for count in counts:
        publish_next(run, "extremes", extremes(range(first, first + count), rank=rank), rank)
        first += count
    return run


def steps(run: Path, rank: int = 0) -> list[int]:
    """The steps that a reader of a rank's parts sees, in the order of the parts."""
    return [step for part in list_parts(run, "extremes") if part.rank == rank for step in steps_in(part)]


def steps_in(part: Part) -> list[int]:
    """The steps in a part's file, as pyarrow reads it."""
    found: list[int] = pq.ParquetFile(part.path).read(["step"])["step"].to_pylist()
    return found


def ranges(found: list[Part]) -> list[tuple[int, int]]:
    """The publish numbers that parts cover."""
    return [(part.first, part.last) for part in found]


def content(run: Path) -> dict[str, bytes]:
    """Every file of a run, by name."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


@contextmanager
def restored(run: Path) -> Iterator[None]:
    """Bring back every part that is deleted meanwhile, as a crash before the deletion would have left them."""
    before = {part.file(): part.file().read_bytes() for part in all_parts(run, "extremes")}
    yield
    for path, was in before.items():
        path.write_bytes(was)


def failing(real: Callable[..., Any], nth: int) -> Callable[..., Any]:
    """The function, but its ``nth`` call fails for want of disk space."""
    calls = itertools.count()

    def function(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    return function


@given(rank=RANKS, first=NUMBERS, count=NUMBERS, crc32=st.integers(0, 2**32 - 1))
def test_a_part_name_says_what_the_part_covers(rank: int, first: int, count: int, crc32: int) -> None:
    """Parsing a part's name gives back the rank, the range and the checksum that it was made of."""
    path = Path("extremes") / part_name(rank, first, first + count, crc32)
    assert Part.parse(path) == Part(rank, first, first + count, crc32, path)


def test_a_part_name_has_the_documented_form() -> None:
    """A name is r<rank>-<first>-<last>-<crc32>.parquet, padded so that names sort as their numbers do."""
    assert part_name(0, 0, 0, 0x1C291CA3) == "r00000-000000000-000000000-1c291ca3.parquet"


@pytest.mark.parametrize(
    "name",
    [
        "part.parquet",
        "r00000-000000000-000000000-1c291ca3.parquet.tmp",
        ".r00000-000000000-000000000-1c291ca3.parquet",
        "r00000-000000000-000000000.parquet",
        "r00000-000000000-000000000-1C291CA3.parquet",
        "r0-0-0-1c291ca3.parquet",
        "r00000-000000001-000000000-1c291ca3.parquet",
        "r00000-000000000-000000000-1c291ca3.parquet\n",
    ],
)
def test_a_foreign_file_is_no_part(tmp_path: Path, name: str) -> None:
    """A file with another name is ignored: it is neither listed nor merged nor deleted."""
    run = log_of(new_run(tmp_path / "run"), [1, 1])
    foreign = run / "extremes" / name
    foreign.write_text("not ours")
    assert ranges(list_parts(run, "extremes")) == [(0, 0), (1, 1)]
    merge(run, "extremes", 0)
    assert ranges(all_parts(run, "extremes")) == [(0, 1)]
    assert foreign.read_text() == "not ours"


def test_only_a_file_is_a_part(tmp_path: Path) -> None:
    """A folder or a link with the name of a part is ignored."""
    run = log_of(new_run(tmp_path / "run"), [1])
    (run / "extremes" / part_name(0, 1, 1, 0)).mkdir()
    (run / "extremes" / part_name(0, 2, 2, 0)).symlink_to(list_parts(run, "extremes")[0].path)
    assert ranges(list_parts(run, "extremes")) == [(0, 0)]


def test_a_table_that_is_not_there_has_no_parts(tmp_path: Path) -> None:
    """Listing a folder that does not exist gives nothing, and no error."""
    assert list_parts(tmp_path / "nowhere", "extremes") == []


def test_parts_are_listed_by_rank_and_number(tmp_path: Path) -> None:
    """Parts are listed by rank, then by number, in whatever order they were published."""
    run = new_run(tmp_path / "run")
    keys = [(rank, number) for rank in (0, 1, 10) for number in (0, 1, 2, 10)]
    for rank, number in random.Random(0).sample(keys, len(keys)):
        publish(run, "extremes", rank, number, extremes([number]))
    assert [(part.rank, part.first) for part in list_parts(run, "extremes")] == keys


def test_publishing_makes_one_complete_file(tmp_path: Path) -> None:
    """A published part is in its table's folder, holds its rows, bears its CRC-32, and leaves nothing in staging."""
    run = new_run(tmp_path / "run")
    rows = extremes(range(5), ["weight", "bias"])
    part = publish(run, "extremes", 3, 7, rows)
    assert (part.rank, part.first, part.last, part.file().parent) == (3, 7, 7, run / "extremes")
    assert part.crc32 == file_crc32(part.file()) == zlib.crc32(part.file().read_bytes())
    assert pq.read_table(part.path).equals(rows)
    assert damage(part) is None
    assert os.listdir(run / "extremes") == [part.path.name]
    assert os.listdir(run / "staging") == []


def test_the_bytes_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced, then renamed into place, then its folder is synced: power may fail between any two."""
    run = new_run(tmp_path / "run")
    calls: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        calls.append(("rename", source.stat().st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    part = publish(run, "extremes", 0, 0, extremes([0]))
    file, folder = part.file().stat().st_ino, part.file().parent.stat().st_ino
    assert calls == [("fsync", file), ("rename", file), ("fsync", folder)]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
def test_a_disk_that_fills_up_publishes_nothing(tmp_path: Path, share: float) -> None:
    """Where the system refuses bytes, publishing raises, and nothing is published or staged; later it succeeds."""
    run = new_run(tmp_path / "run")
    size = publish(new_run(tmp_path / "whole"), "extremes", 0, 0, extremes(range(100))).file().stat().st_size
    with largest_file(int(size * share)), pytest.raises(OSError, match="File too large"):
        publish(run, "extremes", 0, 0, extremes(range(100)))
    assert list((run / "extremes").iterdir()) == list((run / "staging").iterdir()) == []
    publish(run, "extremes", 0, 0, extremes(range(100)))
    assert steps(run) == list(range(100))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_disk_that_fills_up_merges_nothing(tmp_path: Path, share: float) -> None:
    """Where the system refuses bytes, merging raises and leaves every file as it was."""
    run = log_of(new_run(tmp_path / "run"), [100, 100])
    before = content(run)
    size = list_parts(run, "extremes")[0].file().stat().st_size
    with largest_file(int(size * share)), pytest.raises(OSError, match="File too large"):
        merge(run, "extremes", 0)
    assert content(run) == before


@pytest.mark.parametrize("kept", [0, 4, 300, -1])
def test_a_writer_that_ends_short_without_an_error_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """A file that lost bytes on its way to the disk is never published, even where no call raised an error."""
    run = new_run(tmp_path / "run")
    fsync = os.fsync

    def lose_bytes(descriptor: int) -> None:
        os.truncate(descriptor, max(0, os.fstat(descriptor).st_size - 1) if kept < 0 else kept)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", lose_bytes)
    with pytest.raises(OSError, match="not written completely"):
        publish(run, "extremes", 0, 0, extremes([0]))
    assert list((run / "extremes").iterdir()) == list((run / "staging").iterdir()) == []


def test_rows_that_break_the_schema_are_not_published(tmp_path: Path) -> None:
    """A null where the format allows none raises, and nothing is published or staged."""
    run = new_run(tmp_path / "run")
    rows = extremes([0, 1])
    broken = rows.set_column(0, rows.schema.field("step"), pa.array([0, None], pa.int64()))
    with pytest.raises(pa.ArrowInvalid, match="non-nullable"):
        publish(run, "extremes", 0, 0, broken)
    assert list((run / "extremes").iterdir()) == list((run / "staging").iterdir()) == []


@pytest.mark.parametrize("nth", range(3))
@pytest.mark.parametrize(
    "call", ["os.open", "os.write", "os.fsync", "os.fstat", "os.replace", "pyarrow.parquet.write_table"]
)
def test_publishing_is_all_or_nothing_whichever_call_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    """Whichever call to the system fails, rows are in the log if publishing returned, and are not if it raised."""
    run = log_of(new_run(tmp_path / "run"), [2])
    with monkeypatch.context() as patched:
        module, name = call.rsplit(".", 1)
        owner = {"os": os, "pyarrow.parquet": pq}[module]
        patched.setattr(owner, name, failing(getattr(owner, name), nth))
        try:
            publish(run, "extremes", 0, 1, extremes([2]))
            expected = [0, 1, 2]
        except OSError:
            expected = [0, 1]
    assert steps(run) == expected
    assert os.listdir(run / "staging") == []
    if expected == [0, 1]:
        publish(run, "extremes", 0, 1, extremes([2, 3]))
        assert steps(run) == [0, 1, 2, 3]


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    """A part of which any one byte differs from what was published is reported."""
    part = publish_next(new_run(tmp_path / "run"), "extremes", extremes([0, 1]))
    good = part.file().read_bytes()
    unnoticed = []
    for offset in range(len(good)):
        flip_bit(part.path, offset)
        if damage(part) is None:
            unnoticed.append(offset)
        part.file().write_bytes(good)
    assert unnoticed == []
    assert damage(part) is None


def test_every_truncation_is_found(tmp_path: Path) -> None:
    """A part that lost its end, wherever it was cut, or all of its bytes, is reported."""
    part = publish_next(new_run(tmp_path / "run"), "extremes", extremes([0, 1]))
    unnoticed = []
    for size in reversed(range(part.file().stat().st_size)):
        os.truncate(part.path, size)
        if damage(part) is None:
            unnoticed.append(size)
    assert unnoticed == []


@pytest.mark.parametrize("rest", [b"", b"not Parquet at all", b"PAR1PAR1"])
def test_a_file_that_is_no_parquet_is_found(tmp_path: Path, rest: bytes) -> None:
    """A file whose checksum is right and whose content is not Parquet is reported as such."""
    path = tmp_path / part_name(0, 0, 0, zlib.crc32(rest))
    path.write_bytes(rest)
    part = Part.parse(path)
    assert part is not None
    assert "not Parquet" in str(damage(part))


LARGEST = {"step": 2**53 - 1, "time": 2**53 - 1, "attempt": 2**30 - 1, "span": 2**31 - 1, "counts": 2**53 - 1}


@pytest.mark.parametrize("column", LARGEST)
def test_integers_out_of_bounds_are_found(tmp_path: Path, column: str) -> None:
    """The largest number that the format allows is read; a larger one and one below 0 are damage."""
    run = new_run(tmp_path / "run")
    table = "histograms" if column == "counts" else "extremes"
    rows = histograms([0, 1]) if column == "counts" else extremes([0, 1])
    index, field = rows.schema.get_field_index(column), rows.schema.field(column)

    def problem(number: int) -> str | None:
        values = pa.array([[1], [number, 2]], field.type) if column == "counts" else pa.array([1, number])
        return parts.known_problem(publish_next(run, table, rows.set_column(index, field, values.cast(field.type))))

    assert problem(LARGEST[column]) is None
    beyond = [-1] if column == "span" else [-1, LARGEST[column] + 1]
    assert {problem(number) for number in beyond} == {f"has numbers out of bounds, or none, in {column}"}


@pytest.mark.parametrize(("unit", "largest"), [("ms", (2**53 - 1) // 1000), ("ns", 2**53 * 1000 - 1)])
def test_times_of_another_unit_have_the_same_bounds(tmp_path: Path, unit: str, largest: int) -> None:
    """A later version may write milliseconds or nanoseconds; what no year holds is damage in them, too."""
    run, rows = new_run(tmp_path / "run"), extremes([0])
    index = rows.schema.get_field_index("time")

    def problem(number: int) -> str | None:
        times = pa.array([number]).cast(pa.timestamp(unit, "UTC"))
        return parts.known_problem(publish_next(run, "extremes", rows.set_column(index, "time", times)))

    assert problem(largest) is None
    assert {problem(number) for number in (-1, largest + 1)} == {"has numbers out of bounds, or none, in time"}


@pytest.mark.parametrize("function", ["file_crc32", "pq.read_metadata"])
def test_a_part_that_is_gone_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    """Asking after a part that is merged away, before or while it is looked at, raises FileNotFoundError."""
    part = publish_next(new_run(tmp_path / "run"), "extremes", extremes([0]))
    look = {"file_crc32": file_crc32, "pq.read_metadata": pq.read_metadata}[function]

    def gone_before(path: Path) -> Any:
        path.unlink()
        return look(path)

    monkeypatch.setattr(f"tracer.log.parts.{function}", gone_before)
    with pytest.raises(FileNotFoundError):
        damage(part)


def test_no_gap_is_found_in_a_whole_log(tmp_path: Path) -> None:
    """Numbers that follow each other from 0, in fresh and in merged parts, are no gap."""
    run = log_of(new_run(tmp_path / "run"), [1, 1, 1])
    merge(run, "extremes", 0)
    log_of(run, [1, 1])
    log_of(run, [1], rank=1)
    assert missing_numbers(list_parts(run, "extremes")) == []
    assert missing_numbers([]) == []


def test_gaps_are_found_for_each_rank(tmp_path: Path) -> None:
    """What is missing at the beginning or between is told by rank, whatever the order of the parts."""
    numbers = {0: [1, 2, 5, 9], 2: [0], 3: [1]}
    found = [Part(rank, number, number, 0, tmp_path) for rank, held in numbers.items() for number in held]
    assert missing_numbers(reversed(found)) == [(0, 0, 0), (0, 3, 4), (0, 6, 8), (3, 0, 0)]


def test_merging_keeps_every_row_in_its_place(tmp_path: Path) -> None:
    """One part replaces all, with the same rows in the same order, and says how many each number contributed."""
    counts = [3, 1, 0, 4, 2]
    run = log_of(new_run(tmp_path / "run"), counts)
    before = pa.concat_tables(pq.read_table(part.path) for part in list_parts(run, "extremes"))
    (merged,) = merge(run, "extremes", 0)
    assert all_parts(run, "extremes") == [merged]
    assert (merged.first, merged.last) == (0, 4)
    assert merged.crc32 == zlib.crc32(merged.file().read_bytes())
    assert rows_by_number(merged) == counts
    assert pq.read_table(merged.path).replace_schema_metadata().equals(before.unify_dictionaries().combine_chunks())
    assert pl.read_parquet(run / "extremes")["step"].to_list() == list(range(10))
    assert os.listdir(run / "staging") == []


def test_a_fresh_part_says_how_many_rows_it_has(tmp_path: Path) -> None:
    """A fresh part's one number contributed all of its rows."""
    assert rows_by_number(publish_next(new_run(tmp_path / "run"), "extremes", extremes(range(5)))) == [5]


def test_merged_parts_are_merged_again(tmp_path: Path) -> None:
    """Merged and fresh parts merge into one that still knows every number's rows."""
    run = log_of(new_run(tmp_path / "run"), [1, 2])
    merge(run, "extremes", 0)
    for count, total in ((3, [1, 2, 3]), (4, [1, 2, 3, 4])):
        publish_next(run, "extremes", extremes(range(sum(total) - count, sum(total))))
        (merged,) = merge(run, "extremes", 0)
        assert rows_by_number(merged) == total
        assert steps(run) == list(range(sum(total)))
    assert merge(run, "extremes", 0) == []
    assert list_parts(run, "extremes") == [merged]


def test_merging_does_not_bridge_a_gap(tmp_path: Path) -> None:
    """A missing number stays visible as missing: only neighbours are merged."""
    run = log_of(new_run(tmp_path / "run"), [1, 1, 1, 1, 1])
    list_parts(run, "extremes")[2].file().unlink()
    assert ranges(merge(run, "extremes", 0)) == [(0, 1), (3, 4)]
    assert missing_numbers(list_parts(run, "extremes")) == [(0, 2, 2)]
    assert steps(run) == [0, 1, 3, 4]


def test_merging_leaves_a_damaged_part_alone(tmp_path: Path) -> None:
    """A damaged part stays, byte for byte, and the parts before and after it are merged around it."""
    run = log_of(new_run(tmp_path / "run"), [1, 1, 1, 1, 1])
    damaged = list_parts(run, "extremes")[2]
    flip_bit(damaged.path)
    was = damaged.file().read_bytes()
    merge(run, "extremes", 0)
    found = list_parts(run, "extremes")
    assert ranges(found) == [(0, 1), (2, 2), (3, 4)]
    assert damaged.file().read_bytes() == was
    assert [damage(part) is None for part in found] == [True, False, True]
    assert steps_in(found[0]) + steps_in(found[2]) == [0, 1, 3, 4]


def test_merging_fills_missing_statistics_with_null(tmp_path: Path) -> None:
    """Parts with different statistics merge into one with all of them, null where a part had none."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes([0]))
    publish_next(run, "extremes", extremes([1]).append_column("grad_norm", pa.array([0.5])))
    publish_next(run, "extremes", extremes([2]).drop_columns(["grad_min", "grad_max"]))
    (merged,) = merge(run, "extremes", 0)
    read = pq.read_table(merged.path)
    assert read["step"].to_pylist() == [0, 1, 2]
    assert read["grad_norm"].to_pylist() == [None, 0.5, None]
    assert read["grad_min"].to_pylist() == [-2.0, -2.0, None]
    assert read["value_max"].to_pylist() == [1.0, 1.0, 1.0]


def test_merging_many_rows_makes_row_groups_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are merged in row groups of about the same size, which bounds the memory, with every row in its place."""
    monkeypatch.setattr(parts, "_ROW_GROUP_ROWS", 100)
    counts = [70, 250, 1, 60]
    run = log_of(new_run(tmp_path / "run"), counts)
    (merged,) = merge(run, "extremes", 0)
    footer = pq.read_metadata(merged.path)
    sizes = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
    assert min(sizes[:-1]) >= 100
    assert max(sizes) < 200
    assert steps(run) == list(range(sum(counts)))
    assert rows_by_number(merged) == counts


def test_names_of_different_parts_stay_themselves(tmp_path: Path) -> None:
    """Parts with different dictionaries of names merge without mixing the names up."""
    run = new_run(tmp_path / "run")
    for names in (["a", "b"], ["b", "c"], ["c", "a"]):
        publish_next(run, "extremes", extremes([0], names))
    (merged,) = merge(run, "extremes", 0)
    assert pq.read_table(merged.path)["param"].to_pylist() == ["a", "b", "b", "c", "c", "a"]


def test_ranks_are_merged_separately(tmp_path: Path) -> None:
    """Merging one rank's parts leaves those of the others alone."""
    run = log_of(new_run(tmp_path / "run"), [1, 1])
    log_of(run, [2, 2, 2], rank=1)
    merge(run, "extremes", 1)
    assert [(part.rank, part.first, part.last) for part in list_parts(run, "extremes")] == [
        (0, 0, 0),
        (0, 1, 1),
        (1, 0, 2),
    ]
    assert steps(run, rank=0) == [0, 1]
    assert steps(run, rank=1) == [0, 1, 2, 3, 4, 5]


def test_tables_are_merged_separately(tmp_path: Path) -> None:
    """Merging one table leaves the others alone."""
    run = log_of(new_run(tmp_path / "run"), [1, 1])
    for step in range(2):
        publish_next(run, "metrics", metrics([step], [0.5]))
    merge(run, "metrics", 0)
    assert ranges(list_parts(run, "metrics")) == [(0, 1)]
    assert ranges(list_parts(run, "extremes")) == [(0, 0), (1, 1)]


def test_a_crash_before_the_old_parts_are_deleted_repeats_no_row(tmp_path: Path) -> None:
    """Old parts beside the merged one are ignored by readers, and the next merge deletes them."""
    run = log_of(new_run(tmp_path / "run"), [1, 2, 1])
    with restored(run):
        (merged,) = merge(run, "extremes", 0)
    assert len(all_parts(run, "extremes")) == 4
    assert list_parts(run, "extremes") == [merged]
    assert steps(run) == [0, 1, 2, 3]
    merge(run, "extremes", 0)
    assert all_parts(run, "extremes") == [merged]
    assert steps(run) == [0, 1, 2, 3]


def test_old_parts_are_kept_while_the_merged_one_is_damaged(tmp_path: Path) -> None:
    """Where the merged part has gone bad after a crash, the old ones are read at once, and merged anew."""
    run = log_of(new_run(tmp_path / "run"), [1, 2, 1])
    with restored(run):
        (merged,) = merge(run, "extremes", 0)
    flip_bit(merged.path)
    publish_next(run, "extremes", extremes([4]))
    found = list_parts(run, "extremes")
    assert ranges(found) == [(0, 2), (0, 0), (1, 1), (2, 2), (3, 3)]
    assert [part for part in found if damage(part) is not None] == [merged]
    merge(run, "extremes", 0)
    assert ranges(all_parts(run, "extremes")) == [(0, 3)]
    assert steps(run) == [0, 1, 2, 3, 4]


def test_a_merge_that_may_take_no_time_changes_nothing(tmp_path: Path) -> None:
    """A merge that cannot end in its time raises MergeTimeoutError and leaves every file as it was."""
    run = log_of(new_run(tmp_path / "run"), [1, 1, 1])
    before = content(run)
    with pytest.raises(MergeTimeoutError):
        merge(run, "extremes", 0, seconds=0)
    assert content(run) == before
    merge(run, "extremes", 0, seconds=float("inf"))
    assert ranges(list_parts(run, "extremes")) == [(0, 2)]


@pytest.mark.parametrize("allowed", [0, 3, 5, 8, 11, 14])
def test_a_merge_out_of_time_leaves_the_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    """Wherever a merge runs out of time, the same rows stay readable, and nothing half done stays behind."""
    monkeypatch.setattr(parts, "_ROW_GROUP_ROWS", 2)
    run = log_of(new_run(tmp_path / "run"), [9, 1, 1, 1, 9])
    flip_bit(list_parts(run, "extremes")[2].path)
    whole = [part for part in list_parts(run, "extremes") if damage(part) is None]
    before = [steps_in(part) for part in whole]
    clock = itertools.count()
    with monkeypatch.context() as patched:
        patched.setattr("tracer.log.parts.time.monotonic", lambda: float(next(clock)))
        with pytest.raises(MergeTimeoutError):
            merge(run, "extremes", 0, seconds=allowed)
    after = [steps_in(part) for part in list_parts(run, "extremes") if damage(part) is None]
    assert list(itertools.chain(*after)) == list(itertools.chain(*before))
    assert os.listdir(run / "staging") == []
    assert all_parts(run, "extremes") == list_parts(run, "extremes")


@pytest.mark.parametrize("overtaken_call", first_of([0, 1]))
def test_a_listing_during_a_merge_misses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overtaken_call: int
) -> None:
    """A listing that a merge overtakes, after the system gave out the first names, still covers every number."""
    count = 600
    run = new_run(tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        for number in range(count):
            publish(run, "extremes", 0, number, extremes([number]))
    scandir = os.scandir
    calls = itertools.count()

    @contextmanager
    def overtaken(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(folder) as entries:

            def each() -> Iterator[os.DirEntry[str]]:
                yield next(iter(entries))
                if next(calls) == overtaken_call:
                    monkeypatch.undo()
                    merge(run, "extremes", 0)
                yield from entries

            yield each()

    monkeypatch.setattr(os, "scandir", overtaken)
    assert ranges(list_parts(run, "extremes")) == [(0, count - 1)]
    assert steps(run) == list(range(count))


def test_a_reader_sees_the_same_rows_at_every_moment_of_a_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each change of the folder that a merge makes, a listing gives the same rows."""
    run = log_of(new_run(tmp_path / "run"), [1, 2, 3])
    seen = [steps(run)]
    replace, unlink = os.replace, os.unlink

    def watched_replace(source: Path, target: Path) -> None:
        seen.append(steps(run))
        replace(source, target)
        seen.append(steps(run))

    def watched_unlink(path: Path) -> None:
        unlink(path)
        seen.append(steps(run))

    monkeypatch.setattr(os, "replace", watched_replace)
    monkeypatch.setattr(os, "unlink", watched_unlink)
    merge(run, "extremes", 0)
    assert seen == [[0, 1, 2, 3, 4, 5]] * 6


OPERATIONS = st.lists(
    st.tuples(st.just("publish"), st.integers(0, 2), st.integers(0, 5))
    | st.tuples(st.sampled_from(["merge", "crash"]), st.integers(0, 2), st.just(0)),
    max_size=15,
)


@settings(deadline=None, max_examples=60)
@given(operations=OPERATIONS)
def test_any_sequence_of_publishing_and_merging_is_a_list_of_rows(
    operations: list[tuple[str, int, int]],
) -> None:
    """Whatever is published, merged, or merged with a crash before the deletion, each rank's log is a plain list."""
    model: dict[int, list[list[int]]] = {0: [], 1: [], 2: []}
    counter = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(Path(folder) / "run")
        for operation, rank, count in operations:
            if operation == "publish":
                model[rank].append([next(counter) for _ in range(count)])
                publish_next(run, "extremes", extremes(model[rank][-1], rank=rank), rank)
            elif operation == "merge":
                merge(run, "extremes", rank)
            else:
                with restored(run):
                    merge(run, "extremes", rank)
            found = list_parts(run, "extremes")
            assert missing_numbers(found) == []
            for each, published in model.items():
                assert steps(run, each) == list(itertools.chain(*published))
                numbers = [rows for part in found if part.rank == each for rows in rows_by_number(part)]
                assert numbers == [len(rows) for rows in published]


DYING = """
import os, signal, sys
from tracer.log.store import Local as Path
from tests.logs import extremes, new_run
from tracer.log.parts import merge, publish


def write(run, last_call):
    calls = 0

    def die(event, _):
        nonlocal calls
        calls += event in ("open", "os.rename", "os.remove", "os.scandir")
        if calls == last_call:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(die)
    for number in range(3):
        publish(run, "extremes", 0, number, extremes([2 * number, 2 * number + 1]))
        (run / f"published-{number}").touch()
        if number:
            merge(run, "extremes", 0)


for last_call in range(1, 10**6):
    run = new_run(Path(sys.argv[1]) / f"{last_call}")
    child = os.fork()
    if not child:
        write(run, last_call)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


@pytest.mark.slow
def test_a_writer_may_die_before_any_call(tmp_path: Path) -> None:
    """Before whichever call to the system a writer is killed, what it had published is there once, and merges on."""
    subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], check=True, cwd=Path(__file__).parents[3])
    runs = sorted(tmp_path.iterdir(), key=lambda run: int(run.name))
    assert len(runs) > 30
    for run in runs:
        published = len(list(run.glob("published-*")))
        found = list_parts(run, "extremes")
        assert [damage(part) for part in found] == [None] * len(found)
        assert missing_numbers(found) == []
        seen = steps(run)
        assert seen in (list(range(2 * published)), list(range(2 * published + 2))), run.name
        merge(run, "extremes", 0)
        assert steps(run) == seen
        assert len(all_parts(run, "extremes")) == min(len(seen), 1)
    assert steps(runs[-1]) == list(range(6))


WRITER = """
import sys
from tracer.log.store import Local as Path
from tests.logs import extremes
from tracer.log.parts import merge, publish

run, merging = Path(sys.argv[1]), int(sys.argv[2])
for number in range(10**6):
    publish(run, "extremes", 0, number, extremes([3 * number, 3 * number + 1, 3 * number + 2]))
    print(number, flush=True)
    if merging and number % merging == 0:
        merge(run, "extremes", 0)
"""


@pytest.mark.parametrize("kill", first_of(range(10)))
def test_a_killed_writer_leaves_a_whole_log(tmp_path: Path, kill: int) -> None:
    """However a writer is killed, every part is whole, numbers are contiguous, and what it had published is there."""
    run = new_run(tmp_path / "run")
    chance = random.Random(kill)
    merging = kill % 5
    command = [sys.executable, "-c", WRITER, str(run), str(merging)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(chance.randint(1, 60))]
        # About as long as a publish and a merge take, so that the kill falls anywhere in what the writer does.
        moment = time.perf_counter() + chance.uniform(0, 0.01)
        while time.perf_counter() < moment:
            pass
        writer.kill()
        acknowledged += [int(line) for line in writer.stdout.read().split()]
    found = list_parts(run, "extremes")
    assert [damage(part) for part in found] == [None] * len(found)
    assert missing_numbers(found) == []
    assert found[-1].last >= acknowledged[-1]
    expected = list(range(3 * (found[-1].last + 1)))
    assert steps(run) == expected
    assert pl.scan_parquet([part.file() for part in found], glob=False).collect()["step"].to_list() == expected


def test_missing_last_numbers_are_known_from_the_closed_mark(tmp_path: Path) -> None:
    """Where it is known how many numbers a rank used, a lost last part, or all of them, is a gap too."""
    run = new_run(tmp_path / "run")
    found = [publish_next(run, "metrics", metrics([step], [0.0])) for step in range(3)]
    assert missing_numbers(found, {0: 3}) == []
    assert missing_numbers(found, {0: 5, 1: 2}) == [(0, 3, 4), (1, 0, 1)]
