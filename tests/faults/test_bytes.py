"""Every flipped byte is found, and whatever lies in a run's folder neither ends a reader nor leads it elsewhere."""

import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tracer
from tests.commands import tracer_says
from tests.halves import smoke_of
from tests.logs import activations, close_run, events, extremes, histograms, metrics, new_run, publish_next
from tests.torture import often
from tracer.cli import _examined
from tracer.log import ranks, schema
from tracer.log.parts import BadPartWarning, list_parts, merge, part_name
from tracer.log.read import rows_dropped
from tracer.log.run import LogError
from tracer.log.store import Local as Path
from viewer.options import View, ViewOptions
from viewer.read.live import Live
from viewer.read.monitor import FindingsMonitor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MAKERS = {
    "extremes": extremes,
    "metrics": lambda steps: metrics(steps, [0.5] * len(steps)),
    "events": events,
    "discarded": extremes,
    "histograms": histograms,
    "activations": activations,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two fresh parts a table, and beside it a file that is none of its business."""
    (tmp_path / "secret").write_text("not for readers of the run\n" * 100)
    made = new_run(tmp_path / "run")
    for table, rows in MAKERS.items():
        for step in range(2):
            publish_next(made, table, rows([step]))
    return made


@pytest.mark.parametrize("table", smoke_of(schema.TABLES))
@pytest.mark.parametrize("merged", [False, True], ids=["fresh", "merged"])
def test_every_flipped_byte_is_found(run: Path, table: str, merged: bool, figures: Callable[..., None]) -> None:
    """Whichever byte of a part is changed, and by whichever bit, ``tracer verify`` names the part."""
    if merged:
        merge(run, table, 0)
    part = list_parts(run, table)[0]
    good = part.file().read_bytes()
    chance = random.Random(table)
    unnoticed, flips = [], 0
    with part.file().open("r+b") as file:
        for offset in range(0, len(good), often(5, 1)):
            for bit in chance.sample(range(8), often(1, 8)):
                os.pwrite(file.fileno(), bytes([good[offset] ^ 1 << bit]), offset)
                flips += 1
                # A file is read once as long as its time is the same; two flips may fall into one tick of the clock.
                os.utime(part.file(), ns=(flips, flips))
                _, problems = _examined(run)
                if [line for line in problems if line.startswith(str(part.path))] == []:
                    unnoticed.append((offset, bit))
            os.pwrite(file.fileno(), good[offset : offset + 1], offset)
    figures(bytes_flipped=flips, flips_unnoticed=len(unnoticed))
    assert unnoticed == []


def put(run: Path, table: str, content: bytes, first: int, last: int, rank: int = 0) -> Path:
    """A file with a part's name, its checksum right."""
    path = run / table / part_name(rank, first, last, zlib.crc32(content))
    path.write_bytes(content)
    return path


def parquet(rows: pa.Table, **options: Any) -> bytes:
    """The bytes of a Parquet file."""
    stream = pa.BufferOutputStream()
    pq.write_table(rows, stream, **options)
    return bytes(stream.getvalue())


def changed(column: str, value: pa.Array | None) -> bytes:
    """A part of one row of metrics of which one column is another, or is not there."""
    rows = metrics([7], [0.5])
    place = rows.schema.get_field_index(column)
    return parquet(rows.remove_column(place) if value is None else rows.set_column(place, column, value))


def instant(microseconds: int) -> pa.Array:
    """One time."""
    return pa.array([microseconds]).cast(pa.timestamp("us", "UTC"))


def bomb(rows: int) -> bytes:
    """A few kilobytes that are so many rows of metrics."""
    one = metrics([7], [0.5])
    columns = [column.combine_chunks() for column in one.columns]
    columns = [column.chunk(0) if isinstance(column, pa.ChunkedArray) else column for column in columns]
    taken = [column.take(pa.array(np.zeros(rows, dtype=np.int64))) for column in columns]
    table = pa.Table.from_arrays(taken, schema=one.schema)
    return parquet(table, row_group_size=1 << 30, data_page_size=1 << 30, compression="zstd")


HOSTILE: dict[str, Callable[[Path], object]] = {
    "an empty part": lambda run: put(run, "metrics", b"", 2, 2),
    "a part cut short": lambda run: put(run, "metrics", parquet(metrics([7], [0.5]))[:-9], 2, 2),
    "a claim of a billion numbers": lambda run: put(run, "metrics", parquet(metrics([7], [0.5])), 0, 999_999_999),
    "a claim of more numbers than a word holds": lambda run: put(
        run, "metrics", parquet(metrics([7], [0.5])), 0, 10**200
    ),
    "a claim of a rank beyond all": lambda run: put(run, "metrics", parquet(metrics([1], [0.5])), 2, 2, 10**12),
    "numbers named deep": lambda run: put(run, "metrics", named(b"[" * 100_000), 2, 3),
    "numbers named by words": lambda run: put(run, "metrics", named(b'["a", {}]'), 2, 3),
    "a million rows in a byte": lambda run: put(run, "metrics", bomb(20_000_000), 2, 2),
    "no step": lambda run: put(run, "metrics", changed("step", None), 2, 2),
    "a step that is a word": lambda run: put(run, "metrics", changed("step", pa.array(["x"])), 2, 2),
    "a step that is null": lambda run: put(run, "metrics", changed("step", pa.array([None], pa.int64())), 2, 2),
    "a time without a zone": lambda run: put(
        run, "metrics", changed("time", pa.array([0]).cast(pa.timestamp("us"))), 2, 2
    ),
    "a step before all": lambda run: put(run, "metrics", changed("step", pa.array([-(2**63)])), 2, 2),
    "a step below zero": lambda run: put(run, "metrics", changed("step", pa.array([-1])), 2, 2),
    "a step beyond all": lambda run: put(run, "metrics", changed("step", pa.array([2**63 - 1])), 2, 2),
    "a step beyond signs": lambda run: put(run, "metrics", changed("step", pa.array([2**64 - 1], pa.uint64())), 2, 2),
    "a time before all": lambda run: put(run, "metrics", changed("time", instant(-(2**63))), 2, 2),
    "a time of no year": lambda run: put(run, "metrics", changed("time", instant(2**63 - 1)), 2, 2),
    "an attempt beyond all": lambda run: put(
        run, "metrics", changed("attempt", pa.array([2**31 - 1], pa.int32())), 2, 2
    ),
    "a rank below zero": lambda run: put(run, "metrics", changed("rank", pa.array([-1], pa.int32())), 2, 2),
    "integers that nobody counted": lambda run: put(
        run, "metrics", parquet(metrics([7], [0.5]), write_statistics=False), 2, 2
    ),
    "an endless number of rows": lambda run: put(run, "metrics", named(b"[1e400, 1]"), 2, 3),
    "fewer rows than none": lambda run: put(run, "metrics", named(b"[-1, 2]"), 2, 3),
    "more rows than there are": lambda run: put(run, "metrics", named(b"[5, 5]"), 2, 3),
    "a value that is a list": lambda run: put(run, "metrics", changed("value", pa.array([[1.0]])), 2, 2),
    "a name that is bytes": lambda run: put(run, "metrics", changed("name", pa.array([b"\xff"])), 2, 2),
    "a part of another table": lambda run: put(run, "metrics", parquet(events([7])), 2, 2),
    "no column at all": lambda run: put(run, "metrics", parquet(pa.table({})), 2, 2),
    "other columns": lambda run: put(run, "metrics", parquet(pa.table({"x": [{"y": [1]}]})), 2, 2),
    "a link as part": lambda run: (run / "metrics" / part_name(0, 2, 2, 0)).symlink_to(run.parent / "secret"),
    "a folder as part": lambda run: (run / "metrics" / part_name(0, 2, 2, 0)).mkdir(),
    "a pipe as part": lambda run: os.mkfifo(run / "metrics" / part_name(0, 2, 2, 0)),
    "a long name": lambda run: (run / "metrics" / ("r" + "0" * 240)).write_text(""),
    "a name of no letters": lambda run: (run / "metrics" / "\n\x1b[2J\udcff").write_text(""),
    "a pipe as heartbeat": lambda run: os.mkfifo(run / "heartbeat-r00001"),
    "a link as heartbeat": lambda run: (run / "heartbeat-r00001").symlink_to(run.parent / "secret"),
    "a link as closed mark": lambda run: (run / "closed-r00001.json").symlink_to(run.parent / "secret"),
    "a heartbeat of a rank beyond all": lambda run: (run / f"heartbeat-r{'9' * 200}").write_text(""),
}


def named(numbers: bytes) -> bytes:
    """A part of one row that says this of its numbers."""
    return parquet(metrics([7], [0.5]).replace_schema_metadata({"gradwatch.rows": numbers}))


def look_everywhere(run: Path) -> None:
    """Let every reader read, and check what was there before; each may name what it does not believe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BadPartWarning)
        for table in schema.TABLES:
            frame = tracer.scan(run, table).collect()
            assert frame["step"].unique().sort().to_list() == [0, 1], table
        rows_dropped(run)
    _examined(run)
    ranks.state(run)
    for look in (
        ViewOptions(),
        ViewOptions(view=View.LAYERS),
        ViewOptions(view=View.LAYERS, statistic="update_ratio"),
        ViewOptions(view=View.PARAM, param="weight"),
    ):
        live = Live(run, look)
        try:
            snapshot = live.refresh()
            assert snapshot is not None
            assert snapshot.last_step == 1
        finally:
            live.close()
    evidence = FindingsMonitor(run).refresh()
    assert evidence is not None
    assert evidence.last_step == 1


@pytest.mark.parametrize("made", HOSTILE, ids=str)
def test_what_lies_in_the_folder_ends_no_reader(run: Path, made: str, figures: Callable[..., None]) -> None:
    """A foreign file is ignored or named; the run's own rows are read, and merged, as if it were not there."""
    HOSTILE[made](run)
    before = peak_bytes()
    look_everywhere(run)
    for table in schema.TABLES:
        merge(run, table, 0)
    look_everywhere(run)
    assert peak_bytes() - before < 300 << 20
    figures(hostile_files_read=1)


def peak_bytes() -> int:
    """The most memory that this process has had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.mark.parametrize("name", ["metrics", "extremes", "events"])
def test_a_table_that_is_a_link_is_not_followed(run: Path, tmp_path: Path, name: str) -> None:
    """Rows of another folder are not taken for the run's, wherever a link leads."""
    elsewhere = tmp_path / "elsewhere"
    (run / name).rename(elsewhere)
    (run / name).symlink_to(elsewhere)
    assert tracer.scan(run, name).collect().height == 0
    assert _examined(run)[0] == 10
    live = Live(run)
    live.refresh()
    live.close()


RUN_JSON = {
    "a link": None,
    "nothing": b"",
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "depth": b"[" * 1_000_000,
    "a format beyond numbers": b'{"format": 1e999}',
    "a format without end": b'{"format": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.smoke
@pytest.mark.parametrize("content", RUN_JSON, ids=str)
def test_a_run_json_that_is_none_is_refused_in_a_sentence(run: Path, content: str) -> None:
    """Where run.json cannot be believed, every reader raises LogError, and nothing else."""
    found = RUN_JSON[content]
    if found is None:
        (run / "run.json").rename(run.parent / "run.json")
        (run / "run.json").symlink_to(run.parent / "run.json")
    else:
        (run / "run.json").write_bytes(found)
    with pytest.raises(LogError, match=r"run\.json"):
        tracer.scan(run)
    live = Live(run)
    if found is None:
        assert live.refresh() is None
    else:
        with pytest.raises(LogError, match=r"run\.json"):
            live.refresh()
    live.close()


VALUES: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    -(10**30),
    "x",
    "0001-01-01",
    "9999-12-31T23:59:59",
    [],
    [None],
    {},
    {"a": 1},
)


@pytest.mark.parametrize("place", ["", "settings", "params"])
def test_wrong_types_in_run_json_end_no_reader(run: Path, place: str, figures: Callable[..., None]) -> None:
    """Whatever stands in a field of run.json, a reader reads on or refuses the run in a sentence."""
    settings = ("every", "fold", "budget", "stats", "applied", "update", "update_every", "total_steps", "bins")
    good = json.loads((run / "run.json").read_text())
    names = {"": tuple(good), "settings": settings, "params": ("name", "aliases", "shape", "dtype", "trainable")}[place]
    tried = 0
    for name, value in list(itertools.product(names, VALUES))[:: often(3, 1)]:
        bad = json.loads(json.dumps(good))
        {"": bad, "settings": bad["settings"], "params": bad["params"][0]}[place][name] = value
        (run / "run.json").write_text(json.dumps(bad))
        tried += 1
        try:
            look_everywhere(run)
        except LogError as error:
            assert "run.json" in str(error) or "format" in str(error)  # noqa: PT017 (most are no error)
    figures(hostile_values_read=tried)


def test_wrong_types_in_a_closed_mark_end_no_reader(run: Path, figures: Callable[..., None]) -> None:
    """Whatever stands in a closed mark, a reader reads on or names the mark in a sentence."""
    close_run(run)
    mark = run / "closed-r00000.json"
    good = json.loads(mark.read_text())
    good["published"] = {"metrics": 2}
    tried = 0
    names = (*good, "published.metrics", "rows_dropped.metrics")
    for name, value in list(itertools.product(names, (*VALUES, 10**18)))[:: often(3, 1)]:
        bad = json.loads(json.dumps(good))
        outer, _, inner = name.partition(".")
        if inner:
            bad[outer][inner] = value
        else:
            bad[name] = value
        mark.write_text(json.dumps(bad))
        tried += 1
        try:
            look_everywhere(run)
        except LogError as error:
            assert "closed-r00000.json cannot be read" in str(error)  # noqa: PT017 (most are no error)
    figures(hostile_values_read=tried)


@pytest.fixture
def undecodable(run: Path) -> Path:
    """A part of metrics whose checksum and footer are right, and whose first pages are nothing."""
    good = parquet(metrics([7], [0.5]), **schema.write_options(schema.SCHEMAS["metrics"]))
    return put(run, "metrics", good[:4] + bytes(100) + good[104:], 2, 2)


def test_a_part_that_cannot_be_decoded_costs_a_viewer_its_rows(run: Path, undecodable: Path) -> None:
    """A figure and the findings name the part, and show the run's other rows."""
    live = Live(run)
    snapshot, evidence = live.refresh(), FindingsMonitor(run).refresh()
    live.close()
    for seen in (snapshot, evidence):
        assert seen is not None
        assert seen.last_step == 1
        assert [problem.partition(":")[0] for problem in seen.problems] == [f"{undecodable.name} cannot be decoded"]


@pytest.mark.parametrize("command", ["info", "verify", "merge"])
def test_a_part_that_cannot_be_decoded_ends_a_tool_in_a_line(run: Path, undecodable: Path, command: str) -> None:
    """Whatever a tool makes of it, it prints no traceback, and the part is as it was."""
    before = undecodable.read_bytes()
    said = tracer_says(command, run)
    assert said.returncode in (0, 1)
    assert said.stderr.count("\n") == said.returncode
    assert undecodable.read_bytes() == before


@pytest.mark.smoke
def test_nothing_in_a_log_is_executed(run: Path) -> None:
    """Bytes that pickle would obey, in metadata and names, are bytes."""
    order = b"cos\nsystem\n(S'touch " + os.fsencode(run.parent / "owned") + b"'\ntR."
    schema_found = metrics([7], [0.5]).schema
    metadata = {"gradwatch.rows": b"[1]", "pandas": order, "ARROW:extension:name": b"arrow.py_extension_type"}
    metadata |= {"ARROW:extension:metadata": order}
    fields = [field.with_metadata({**metadata, "PARQUET:field_id": b"1"}) for field in schema_found]
    rows = pa.Table.from_arrays(metrics([1], [0.5]).columns, schema=pa.schema(fields, metadata=metadata))
    put(run, "metrics", parquet(rows), 2, 2)
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "model": order.decode(), "pickle": order.decode()}))
    live = Live(run)
    for read in (lambda: tracer.scan(run, "metrics").collect(), live.refresh, lambda: merge(run, "metrics", 0)):
        # A library may say that it does not know such a type.
        with contextlib.suppress(pl.exceptions.PolarsError):
            read()
    live.close()
    assert not (run.parent / "owned").exists()


def test_what_is_written_follows_the_umask(tmp_path: Path) -> None:
    """Files and folders of a run are open to whom the umask leaves them open, and to nobody else."""
    script = """
import os, sys
from tracer.log.store import Local as Path
from tests.logs import close_run, metrics, new_run, publish_next
from tracer.log.parts import merge

os.umask(int(sys.argv[2], 8))
run = new_run(Path(sys.argv[1]))
publish_next(run, "metrics", metrics([0], [0.5]))
publish_next(run, "metrics", metrics([1], [0.5]))
merge(run, "metrics", 0)
publish_next(run, "metrics", metrics([2], [0.5]))
close_run(run)
"""
    for mask in (0o077, 0o022, 0o002):
        run = tmp_path / oct(mask)
        subprocess.run([sys.executable, "-c", script, str(run), oct(mask)], check=True, cwd=ROOT)
        for path in (run, *run.rglob("*")):
            wanted = (0o777 if path.is_dir() else 0o666) & ~mask
            assert path.stat().st_mode & 0o777 == wanted, path
