"""What a store that fails costs a run: the training does not notice, and rows arrive late or are counted."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest
import torch

import tracer
from tests.logs import metrics
from tests.remote.conftest import Server
from tests.remote.runs import begin, metric_of, new_run, steps_of
from tests.torture import often
from tests.training import by_hand, daemon_of, loss_of, mlp
from tests.waiting import wait_until
from tracer.daemon import Daemon, DaemonSettings
from tracer.log.ranks import beat, closed_summaries, state
from tracer.log.run import LogError
from tracer.warn import TracerWarning

pytestmark = pytest.mark.slow

Figures = Callable[..., None]
Extremes = dict[tuple[int, str], dict[str, float | None]]


class Training:
    """A small training, and what its rows must say."""

    def __init__(self, uri: str) -> None:
        torch.manual_seed(0)
        self.model = mlp()
        self.trace = tracer.attach(self.model, uri)
        self.expected: Extremes = {}
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self._step = 0

    def steps(self, count: int) -> None:
        """Train so many steps."""
        for _ in range(count):
            self._optimizer.zero_grad()
            loss_of(self.model).backward()
            self.expected |= {(self._step, name): extremes for name, extremes in by_hand(self.model).items()}
            self._optimizer.step()
            self.trace.log(number=self._step)
            self._step += 1

    def arrives(self) -> None:
        """Wait until the last step is in the log."""
        wait_until(lambda: self._step - 2 in steps_of(self.trace.path))

    def ends(self, figures: Figures) -> None:
        """End it; the log holds each of its rows once."""
        self.trace.close()
        assert_rows(self, figures)


def assert_rows(training: Training, figures: Figures) -> None:
    """Each row of the training is in its log, once."""
    frame = tracer.scan(training.trace.path).collect()
    found = {
        (row["step"], str(row["param"])): {
            name: row[name] for name in ("value_min", "value_max", "grad_min", "grad_max")
        }
        for row in frame.iter_rows(named=True)
    }
    lost = sum(found.get(key) != row for key, row in training.expected.items())
    figures(rows_written=len(training.expected), rows_lost=lost, rows_repeated=frame.height - len(found))
    assert found == training.expected
    assert frame.height == len(found)
    steps = len({step for step, _ in found})
    assert metric_of(str(training.trace.path), "number") == [(step, float(step)) for step in range(steps)]


FAULTS: dict[str, dict[str, Any]] = {
    "the connection breaks": {"kind": "reset"},
    "the store is out of order": {"kind": "error", "status": 503},
    "the store refuses": {"kind": "error", "status": 403},
    "answers are lost": {"kind": "lost", "match": "^(PUT|POST)"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_rows_of_an_outage_arrive_once_it_is_over(s3: Server, fault: str, figures: Figures) -> None:
    """The training goes on through an outage; afterwards each of its rows is in the log, none of them twice."""
    training = Training(s3.uri())
    training.steps(5)
    with pytest.warns(TracerWarning, match="cannot be written") as warned:
        for _ in range(often(1, 11)):
            figures(outages=1)
            s3.fails(**FAULTS[fault])
            training.steps(20)
            s3.asked_for("PUT /bucket")
            training.steps(20)
            s3.asked_for("PUT /bucket")
            s3.works()
            training.arrives()
        training.steps(5)
        training.ends(figures)
    assert len(warned) == 1
    assert state(training.trace.path) == "closed"


def test_a_single_error_is_nobodys_business(s3: Server, figures: Figures) -> None:
    """A request that fails once is repeated at once: no warning, and no row is missing or there twice."""
    training = Training(s3.uri())
    daemon = daemon_of(training.trace)
    for kind in ("reset", "error", "lost") * often(1, 10):
        figures(requests_that_failed_once=1)
        s3.fails(kind, "PUT /bucket.*/(extremes|metrics)/", 1, status=500)
        training.steps(10)
        training.arrives()
        # What has arrived may be sent once more, as its answer was lost: that is not to meet the next error.
        wait_until(lambda: daemon.waiting_bytes == 0)
    training.ends(figures)


def test_a_store_that_answers_slowly_gets_every_row(s3: Server, figures: Figures) -> None:
    """Where each answer takes a while, rows arrive late."""
    training = Training(s3.uri())
    s3.fails("slow", "^PUT", seconds=1.5)
    for _ in range(often(2, 12)):
        training.steps(20)
        s3.asked_for("PUT /bucket")
    s3.works()
    training.ends(figures)


def test_a_training_does_not_wait_for_a_store_that_hangs(s3: Server, figures: Figures) -> None:
    """While not one request is answered, thousands of steps go on; afterwards their rows arrive."""
    training = Training(s3.uri())
    training.steps(5)
    # The daemon is then in the middle of a request, and stays there.
    s3.fails("slow", "^PUT", seconds=2)
    s3.asked_for("PUT /bucket")
    s3.works()
    figures(outages=1)
    with s3.hangs():
        training.steps(200)
    training.ends(figures)


def encode(items: Sequence[int]) -> pa.Table:
    """Each item is a step of which a metric is logged."""
    return metrics(list(items), [float(item) for item in items])


@pytest.mark.smoke
def test_what_an_outage_leaves_no_room_for_is_counted(s3: Server, figures: Figures) -> None:
    """What waits is kept up to the limit; what comes then is dropped, and the closed mark says how much it was."""
    run = begin(s3.uri())
    daemon = Daemon(run, 0, {"metrics": encode}, lambda item: item, settings=DaemonSettings(limit_bytes=1000))
    s3.fails("reset")
    with pytest.warns(TracerWarning):
        for number in range(15):
            daemon.put("metrics", number, size_bytes=100)
        s3.asked_for("PUT /bucket")
        s3.works()
        daemon.close({})
    found = steps_of(run, "metrics")
    (summary,) = closed_summaries(run)
    dropped = sum(summary["rows_dropped"].values())
    figures(outages=1, rows_dropped_and_counted=dropped, rows_lost=15 - dropped - len(found))
    assert found == list(range(10))
    assert summary["rows_dropped"] == {"metrics": 5}


def test_attach_says_that_there_is_no_store(s3: Server) -> None:
    """Before a training begins, a store that cannot be reached, or refuses, is an error of one line."""
    for fault in ("the connection breaks", "the store refuses"):
        s3.fails(**FAULTS[fault])
        for resume in (False, True):
            with pytest.raises(LogError, match=r"s3://bucket/.* cannot be (written|read): ") as refused:
                tracer.attach(mlp(), s3.uri(), resume=resume)
            assert "\n" not in str(refused.value)


def test_a_run_goes_on_where_it_was(s3: Server, figures: Figures) -> None:
    """``resume=True`` takes back the closed mark, and counts on from the last step."""
    uri = s3.uri()
    training = Training(uri)
    training.steps(5)
    training.ends(figures)
    model = mlp()
    with tracer.attach(model, uri, resume=True) as trace:
        assert state(trace.path) == "running"
        loss_of(model).backward()
    assert sorted(set(steps_of(uri))) == list(range(6))
    assert state(trace.path) == "closed"
    with pytest.raises(LogError, match="already holds a run"):
        tracer.attach(model, uri)


def test_a_heartbeat_is_a_small_object_that_is_renewed(s3: Server) -> None:
    """Without a row to write, a run that goes on says so every few seconds, with one request each."""
    run = new_run(s3.uri())
    first = (run / "heartbeat-r00000").modified()
    s3.asked()
    beat(run, 0)
    (request,) = s3.asked()
    assert request.startswith("PUT")
    assert (run / "heartbeat-r00000").modified() >= first
    assert state(run) == "running"


# A process that ends while its store has stopped answering, in the middle of a request.
ENDS = """
import atexit, os, signal, sys, time
from tests.logs import metrics
from tests.remote.runs import begin
from tracer.daemon import Daemon
daemon = Daemon(begin(sys.argv[1]), 0, {"metrics": lambda items: metrics(items, items)}, lambda item: item)
atexit.register(daemon.close, {})
os.kill(int(sys.argv[2]), signal.SIGSTOP)
daemon.put("metrics", 0)
time.sleep(2)
print(time.time(), flush=True)
"""

# The same of a training.
TRAINING_ENDS = """
import os, signal, sys, time
import tracer
from tests.training import loss_of, mlp
model = mlp()
trace = tracer.attach(model, sys.argv[1])
os.kill(int(sys.argv[2]), signal.SIGSTOP)
loss_of(model).backward()
time.sleep(len(sys.argv[1]) % 3)
print(time.time(), flush=True)
"""


@pytest.mark.parametrize("script", [ENDS, *[TRAINING_ENDS] * often(0, 5)])
def test_a_store_that_hangs_keeps_no_process_from_its_end(s3: Server, script: str, figures: Figures) -> None:
    """A script whose store answers nothing any more ends by itself, without an error, before a minute is over."""
    with s3.hangs():
        s3.process.send_signal(signal.SIGCONT)
        command = [sys.executable, "-c", script, s3.uri(), str(s3.process.pid)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        figures(outages=1)
        assert done.returncode == 0, done.stderr
        assert "they may be lost" in done.stderr
        assert time.time() - float(done.stdout) < 60
