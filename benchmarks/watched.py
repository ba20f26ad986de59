"""Runs to watch, viewers that watch them, and a page's client: what benchmarks of the viewer share."""

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tracer.log import schema
from tracer.log.parts import all_parts, publish
from tracer.log.ranks import beat, close_rank
from tracer.log.run import create_run
from tracer.log.store import Local as Path

PARAMS = 62
MANY_PARTS = 3000
STEPS_A_SECOND = 20
_CLOSED_STEPS = 300


def names(params: int) -> list[str]:
    """The names of so many parameters."""
    return [f"layer{index // 4}.{index % 4}.conv1.weight" for index in range(params)]


def _common(step: "np.ndarray[tuple[int], np.dtype[np.int64]]", began: float) -> dict[str, object]:
    """The columns of every table, for a rank 0 that began at a time in seconds since 1970."""
    time = pa.array(step * (1_000_000 // STEPS_A_SECOND) + round(began * 1e6)).cast(pa.timestamp("us", tz="UTC"))
    nothing = np.zeros(len(step), np.int32)
    return {"step": step, "time": time, "rank": nothing, "attempt": nothing}


def rows(first: int, steps: int, params: int = PARAMS, began: float = 0.0) -> pa.Table:
    """The extremes of so many steps, with numbers as float32 gives them."""
    generator = np.random.default_rng(first)
    step = np.repeat(np.arange(first, first + steps), params)
    sizes = np.abs(generator.normal(size=(4, len(step)))) * [[1], [1], [1e-3], [1e-3]]
    sizes = sizes.astype(np.float32).astype(np.float64)
    indices = np.tile(np.arange(params, dtype=np.int32), steps)
    columns = _common(step, began) | {
        "param": pa.DictionaryArray.from_arrays(indices, pa.array(names(params))),
        "span": np.ones(len(step), np.int32),
        **dict(zip(schema.STATISTICS, (-sizes[0], sizes[1], -sizes[2], sizes[3]), strict=True)),
    }
    return pa.table(columns, schema=schema.SCHEMAS["extremes"])


def build(run: Path, count: int, parts: int, params: int = PARAMS, began: float = 0.0) -> Path:
    """A run of about so many rows in so many parts."""
    described = [
        {"name": name, "aliases": [], "shape": [64, 64, 3, 3], "dtype": "float32", "trainable": True}
        for name in names(params)
    ]
    create_run(run, {"model": "ResNet", "params": described, "settings": {}, "versions": {}})
    steps = max(1, round(count / params / parts))
    for number in range(parts):
        publish(run, "extremes", 0, number, rows(number * steps, steps, params, began))
    return run


def closed_runs(folder: Path, count: int) -> Path:
    """A folder of so many closed runs with a loss."""
    step = np.arange(_CLOSED_STEPS)
    for number in range(count):
        run = build(folder / f"run-{number:03d}", _CLOSED_STEPS * PARAMS, 1)
        losses = _common(step, 0.0) | {
            "name": pa.DictionaryArray.from_arrays(np.zeros(_CLOSED_STEPS, np.int32), pa.array(["loss"])),
            "value": np.exp(-step / 100) + number / 1000,
        }
        publish(run, "metrics", 0, 0, pa.table(losses, schema=schema.SCHEMAS["metrics"]))
        summary = {"last_step": _CLOSED_STEPS - 1, "reason": "", "rows_dropped": {}}
        close_rank(run, 0, summary | {"published": {"extremes": 1, "metrics": 1}})
    return folder


def next_number(run: Path) -> int:
    """The publish number of a run's next part."""
    return max(part.last for part in all_parts(run, "extremes")) + 1


def publish_steps(run: Path, number: int) -> float:
    """Publish five more steps, as a living process does; the time when they were published."""
    beat(run, 0)
    publish(run, "extremes", 0, number, rows(200_000 + 5 * number, 5))
    return time.perf_counter()


@contextlib.contextmanager
def viewer(run: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A viewer as a process of its own."""
    command = [sys.executable, "-m", "viewer", str(run), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def served(process: "subprocess.Popen[str]") -> str:
    """The address that a viewer prints."""
    assert process.stdout is not None
    return next(line.split()[-1] for line in process.stdout if "http://" in line)


async def connected(process: "subprocess.Popen[str]") -> WebSocketClientConnection:
    """A client of a viewer's page."""
    address = await asyncio.to_thread(served, process)
    page = await websocket_connect(f"{address.replace('http', 'ws')}socket")
    for message in (
        {"type": "supports_binary", "value": True},
        {"type": "resize", "width": 1000, "height": 800},
        {"type": "refresh"},
    ):
        await page.write_message(json.dumps(message))
    return page


async def received(page: WebSocketClientConnection) -> None:
    """Answer the viewer, as matplotlib's script in a page does, until a picture comes."""
    while not isinstance(message := await page.read_message(), bytes):
        assert message is not None, "the viewer has ended"
        if json.loads(message)["type"] == "draw":
            await page.write_message('{"type": "draw"}')
    await page.write_message('{"type": "ack"}')


def spread(numbers: list[float], unit: str = "s", factor: float = 1.0) -> tuple[str, str]:
    """The median, and the range from the smallest to the largest."""
    low, middle, high = (factor * number for number in (min(numbers), statistics.median(numbers), max(numbers)))
    return f"{middle:.3g} {unit}", f"{low:.3g} to {high:.3g}"
