"""A week in an hour: nothing grows with the length of a run but its log, which reads back whole."""

import os
import threading
import time
from collections.abc import Callable

import polars as pl
import psutil
import pytest
import torch
from torch import nn

import tracer
from tests.torture import often
from tests.training import daemon_of, set_daemons
from tracer.log import schema
from tracer.log.parts import all_parts, missing_numbers
from tracer.log.store import Local as Path
from viewer.read.follow import Follower
from viewer.read.live import Live

pytestmark = pytest.mark.slow

# The longest cadence: half a minute of 50 steps, of which a week has twenty thousand.
_STEPS_A_PART = 50
_GATHERED = 100


def resident_bytes() -> int:
    """How much memory this process has now."""
    return int(psutil.Process().memory_info().rss)


def test_nothing_grows_but_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Callable[..., None]
) -> None:
    """Over many cadences parts, memory, file handles and threads stay bounded; readers see each step once."""
    now = 0.0
    set_daemons(monkeypatch, clock=lambda: now, tick_seconds=0.001)
    steps = often(12_000, 1_000_000)
    run = tmp_path / "run"
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    batch = torch.ones(1, 2)
    trace = tracer.attach(model, run)
    follower, given = Follower(run, "metrics"), [0]
    live = Live(run)
    seen: list[tuple[int, int, int]] = []
    most_parts = 0

    def take(frame: pl.LazyFrame) -> None:
        values = frame.filter(pl.col("name") == "number").select("value").collect()["value"].to_list()
        assert values == [float(step) for step in range(given[0], given[0] + len(values))]
        given[0] += len(values)

    daemon = daemon_of(trace)
    for step in range(steps):
        optimizer.zero_grad()
        model(batch).sum().backward()
        optimizer.step()
        trace.log(number=float(step))
        if (step + 1) % _STEPS_A_PART == 0:
            before = dict(daemon.published)
            now += 31.0
            until = time.monotonic() + 60
            while any(daemon.published[of] == before[of] for of in ("extremes", "metrics")):
                assert time.monotonic() < until, "nothing was published"
                time.sleep(0.001)
        if (step + 1) % (steps // 40) == 0:
            follower.give(take)
            snapshot = live.refresh()
            assert snapshot is not None
            assert not snapshot.problems
            assert len(follower._given) <= 2 * _GATHERED + step // _STEPS_A_PART // _GATHERED
            handles = len(os.listdir("/proc/self/fd"))
            seen.append((resident_bytes(), handles, threading.active_count()))
            for table in schema.ALWAYS:
                parts = all_parts(run, table)
                most_parts = max(most_parts, len(parts))
                assert len(parts) <= 2 * _GATHERED + max((part.last for part in parts), default=0) // _GATHERED
    published = daemon.published["metrics"]
    trace.close()
    follower.give(take)
    assert given[0] == steps
    live.refresh()
    live.close()
    found = tracer.scan(run).collect()["step"].to_list()
    # The first tenth fills caches and buffers.
    early, late = seen[len(seen) // 10], seen[-1]
    half = len(seen) // 2
    more_handles = max(handles for _, handles, _ in seen[half:]) - max(handles for _, handles, _ in seen[:half])
    figures(
        steps=steps,
        parts_published=published,
        parts_at_most=most_parts,
        more_megabytes=(late[0] - early[0]) >> 20,
        more_open_files=more_handles,
        more_threads=late[2] - early[2],
        steps_missing_or_repeated=abs(steps - len(found)) + len(set(range(steps)) - set(found)),
    )
    assert late[0] - early[0] < 64 << 20
    # Of handles some come and go while a merge is under way.
    assert more_handles <= 8
    assert late[2] <= early[2]
    assert found == list(range(steps))
    for table in schema.ALWAYS:
        assert missing_numbers(all_parts(run, table)) == []
        assert len(all_parts(run, table)) == 1
