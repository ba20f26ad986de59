"""Real logs for tests, written part by part through the log's own functions, without a training."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from tracer.log import schema
from tracer.log.parts import Part, all_parts, publish
from tracer.log.place import Place
from tracer.log.ranks import beat, close_rank
from tracer.log.run import create_run, prepare_folders
from tracer.log.store import Local as Path

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def new_run(path: str | os.PathLike[str], params: Sequence[str] = ("weight",), **info: object) -> Path:
    """A run without a row, being written by rank 0."""
    described = [
        {"name": name, "aliases": [], "shape": [2, 2], "dtype": "float32", "trainable": True} for name in params
    ]
    path = Path(path)
    prepare_folders(path, schema.TABLES)
    create_run(path, {"model": "Model", "params": described, "settings": {"every": 1}, "versions": {}, **info})
    beat(path, 0)
    return path


def close_run(path: Place, last_step: int = 0) -> None:
    """Rank 0 closes the run."""
    counts = dict.fromkeys(schema.TABLES, 0)
    close_rank(path, 0, {"last_step": last_step, "reason": "", "rows": counts, "rows_dropped": counts})


def extremes(
    steps: Sequence[int],
    params: Sequence[str] = ("weight",),
    values: Mapping[str, Sequence[float | None]] | None = None,
    rank: int = 0,
    attempt: int = 0,
) -> pa.Table:
    """Rows of the table extremes: one a step and parameter, in that order; -1, 1, -2, 2 where no values are given."""
    count = len(steps) * len(params)
    given = values or {}
    defaults = dict(zip(schema.STATISTICS, (-1.0, 1.0, -2.0, 2.0), strict=True))
    columns = {name: list(given.get(name, [defaults[name]] * count)) for name in schema.STATISTICS}
    each = [step for step in steps for _ in params]
    rows = {
        "step": each,
        "time": [_EPOCH + timedelta(seconds=step) for step in each],
        "rank": [rank] * count,
        "attempt": [attempt] * count,
        "param": list(params) * len(steps),
        "span": [1] * count,
        **columns,
    }
    return pa.Table.from_pydict(rows, schema=schema.SCHEMAS["extremes"])


def metrics(
    steps: Sequence[int], values: Sequence[float], name: str = "loss", rank: int = 0, attempt: int = 0
) -> pa.Table:
    """Rows of the table metrics: one a step."""
    count = len(steps)
    rows = {
        "step": list(steps),
        "time": [_EPOCH + timedelta(seconds=step) for step in steps],
        "rank": [rank] * count,
        "attempt": [attempt] * count,
        "name": [name] * count,
        "value": list(values),
    }
    return pa.Table.from_pydict(rows, schema=schema.SCHEMAS["metrics"])


def publish_next(run: Place, table: str, rows: pa.Table, rank: int = 0) -> Part:
    """Publish rows under the rank's next number."""
    number = max((part.last + 1 for part in all_parts(run, table) if part.rank == rank), default=0)
    return publish(run, table, rank, number, rows)


def _rows(table: str, steps: Sequence[int], **columns: object) -> pa.Table:
    """Rows of a table, one a step, of rank 0 and attempt 0, with the same values in all of them."""
    times = [_EPOCH + timedelta(seconds=step) for step in steps]
    key = {"step": list(steps), "time": times, "rank": [0] * len(steps), "attempt": [0] * len(steps)}
    given = {name: [value] * len(steps) for name, value in columns.items()}
    return pa.Table.from_pydict({**key, **given}, schema=schema.SCHEMAS[table])


def histograms(steps: Sequence[int]) -> pa.Table:
    """Rows of the table histograms, one a step."""
    return _rows("histograms", steps, param="weight", of="grad", low=-2.0, high=2.0, counts=[1, 0, 3])


def activations(
    steps: Sequence[int],
    modules: Sequence[str] = ("fc",),
    values: Mapping[str, Sequence[float | None]] | None = None,
    training: bool = True,
    rank: int = 0,
) -> pa.Table:
    """Rows of the table activations: one a step and module, in that order; no unit is dead unless values say so."""
    defaults = {"min": -1.0, "max": 1.0, "mean": 0.0, "std": 0.5, "zeros": 0.25, "saturated": None, "dead": 0.0}
    each = [step for step in steps for _ in modules]
    key = _rows("activations", each, module="", training=training, **defaults).to_pydict()
    rows = key | {"module": list(modules) * len(steps), "rank": [rank] * len(each)}
    return pa.Table.from_pydict(
        rows | {name: list(of) for name, of in (values or {}).items()}, schema=schema.SCHEMAS["activations"]
    )


def events(
    steps: Sequence[int],
    kind: str = "frozen",
    param: str | None = None,
    detail: str = "by hand",
    rank: int = 0,
    attempt: int = 0,
) -> pa.Table:
    """Rows of the table events: one a step."""
    count = len(steps)
    rows = {
        "step": list(steps),
        "time": [_EPOCH + timedelta(seconds=step) for step in steps],
        "rank": [rank] * count,
        "attempt": [attempt] * count,
        "kind": [kind] * count,
        "param": [param] * count,
        "detail": [detail] * count,
    }
    return pa.Table.from_pydict(rows, schema=schema.SCHEMAS["events"])


def flip_bit(path: Place, offset: int = 100) -> None:
    """Damage a file: one bit of one byte is no longer what it was."""
    file = path.local_file()
    content = bytearray(file.read_bytes())
    content[offset] ^= 1 << offset % 8
    file.write_bytes(content)


def age_heartbeat(run: Place, seconds: float, rank: int = 0) -> None:
    """Let a rank's last heartbeat be so long ago."""
    heartbeat = run / f"heartbeat-r{rank:05d}"
    then = datetime.now(UTC).timestamp() - seconds
    os.utime(heartbeat.local_file(), (then, then))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse to write a file beyond this size, like a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def statistics(
    steps: Sequence[int], params: Sequence[str], columns: Mapping[str, Sequence[float | None]], rank: int = 0
) -> pa.Table:
    """Rows of the table extremes as ``extremes`` makes them, with further statistics in columns of their own."""
    given = extremes(steps, params, {name: columns[name] for name in schema.STATISTICS if name in columns}, rank)
    wanted = schema.extremes_schema(columns)
    further = [name for name in wanted.names if name not in given.column_names]
    for name in further:
        given = given.append_column(wanted.field(name), pa.array(list(columns[name]), pa.float64()))
    return given


def histograms_of(
    steps: Sequence[int],
    param: str,
    of: str,
    ends: Sequence[tuple[float, float]],
    counts: Sequence[Sequence[int]],
) -> pa.Table:
    """Rows of the table histograms of one parameter: a range and its counts for each step."""
    key = _rows("histograms", steps, param=param, of=of, low=0.0, high=0.0, counts=[0])
    columns = {"low": [low for low, _ in ends], "high": [high for _, high in ends], "counts": list(map(list, counts))}
    rows = key.to_pydict() | columns
    return pa.Table.from_pydict(rows, schema=schema.SCHEMAS["histograms"])
