"""A killed process loses at most one cadence, wherever it is killed, and whoever comes after goes on at once."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl
import pytest
import torch
from torch import nn

import tracer
from tests.logs import age_heartbeat
from tests.torture import FACTOR, often
from tests.waiting import wait_until
from tracer.cli import _examined
from tracer.log import ranks, schema
from tracer.log.parts import all_parts, merge
from tracer.log.store import Local as Path

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# Beyond the cadence, which is a second in a run so young: the daemon's look into its queue, and a publish on a disk and
# processors that others use.
_PUBLISH_SECONDS = 3.0

# Forks trainings, each of which says when each of its steps had ended. One ends itself where it is told to, before the
# N-th call of a name to the system, or after it.
TRAININGS = """
import json
import os
import signal
import sys
import time

import torch
from torch import nn

import tracer
from tracer import daemon, trace
from tracer.log import store


class Dying:
    def __init__(self, name, word, count, after):
        self.name, self.word, self.count, self.after = name, word, count, after
        self.calls = 0

    def __getattr__(self, wanted):
        found = getattr(os, wanted)
        return self.dies(found) if wanted == self.name else found

    def dies(self, found):
        def call(*arguments, **options):
            before = self.calls
            self.calls += self.word in " ".join(map(str, arguments))
            if before == self.calls:
                return found(*arguments, **options)
            if self.calls == self.count and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = found(*arguments, **options)
            if self.calls == self.count:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def train(path, steps, point):
    if point:
        store.os = Dying(*point)
        # There is then enough to merge after less than a second.
        daemon.SETTINGS = daemon.DaemonSettings(cadence=lambda age_seconds: 0.1, tick_seconds=0.05)
    said = os.open(path + ".steps", os.O_WRONLY | os.O_CREAT)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trace = tracer.attach(model, path)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        trace.log(loss=float(step))
        os.write(said, f"{step} {time.monotonic()}\\n".encode())
        if os.getppid() != forker:
            # The tests themselves were killed.
            os._exit(1)
        time.sleep(0.01)
    trace.close()


# The first optimizer imports much, which every training would import again.
torch.optim.SGD(nn.Linear(1, 1).parameters())
forker = os.getpid()
for line in sys.stdin:
    if line.startswith("wait "):
        print(os.waitstatus_to_exitcode(os.waitpid(int(line.split()[1]), 0)[1]), flush=True)
        continue
    pid = os.fork()
    if not pid:
        try:
            train(*json.loads(line))
        finally:
            os._exit(0)
    print(pid, flush=True)
"""


@dataclass(frozen=True)
class Killed:
    """A training that was killed, and when: each step that it had ended by then, and its moment."""

    run: Path
    moments: dict[int, float]
    died: float


class Trainings:
    """A process that has imported everything already, and forks trainings."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", TRAININGS]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def asked(self, line: str) -> int:
        """The number that it answers."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def begin(self, run: Path, point: tuple[str, str, int, bool] | None = None) -> int:
        """The id of a new training, which goes on for long unless it is to end itself at a point."""
        return self.asked(json.dumps([str(run), 60 if point else 100_000, point]))

    def ended(self, run: Path, pid: int) -> Killed:
        """What a training that was killed left."""
        code = self.asked(f"wait {pid}")
        died = time.monotonic()
        assert code == -signal.SIGKILL
        lines = run.with_name(f"{run.name}.steps").read_text().splitlines()
        return Killed(run, {int(step): float(moment) for step, moment in map(str.split, lines)}, died)


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    """What forks trainings."""
    made = Trainings()
    with made.process:
        yield made
        made.process.kill()


def assert_whole(found: Killed, seconds: float, figures: Callable[..., None]) -> None:
    """Every part is readable, without gap or repeat, and holds what the promise says."""
    run = found.run
    assert _examined(run)[1] == []
    extremes = tracer.scan(run).filter(pl.col("param") == "weight").collect()["step"].to_list()
    metrics = tracer.scan(run, "metrics").filter(pl.col("name") != "lr").collect()["value"].to_list()
    assert extremes == list(range(len(extremes)))
    assert metrics == [float(step) for step in range(len(metrics))]
    lost = [step for step in found.moments if step >= min(len(extremes), len(metrics))]
    # The last step is recorded with the first gradient of the next.
    too_old = [step for step in lost if found.died - found.moments[step] > seconds and step + 1 in found.moments]
    figures(steps_ended=len(found.moments), steps_lost=len(lost), steps_lost_beyond_the_promise=len(too_old))
    assert too_old == []


def goes_on(run: Path) -> None:
    """With resume, a training goes on at once after the last step that the log holds."""
    before = tracer.scan(run).select(pl.col("step").max()).collect().item()
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with tracer.attach(model, run, resume=True) as trace:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            trace.log(loss=0.0)
    steps = tracer.scan(run).filter(pl.col("param") == "weight").collect()["step"].to_list()
    metrics = tracer.scan(run, "metrics").select(pl.col("step").max()).collect().item()
    first = 0 if before is None else before + 1
    assert steps[:first] == list(range(first))
    assert steps[-2:] == [metrics - 1, metrics]
    assert ranks.state(run) == "closed"
    assert _examined(run)[1] == []


def begins(run: Path) -> bool:
    """Whether a training has ended its first step."""
    said = run.with_name(f"{run.name}.steps")
    return said.exists() and said.stat().st_size > 0


@pytest.mark.parametrize("batch", range(often(2, 25)))
def test_a_training_may_be_killed_at_any_moment(
    tmp_path: Path, trainings: Trainings, batch: int, figures: Callable[..., None]
) -> None:
    """A training that is killed at random loses no step that was older than the cadence, and is gone on with."""
    chance = random.Random(batch)
    alive = {tmp_path / f"{number}": trainings.begin(tmp_path / f"{number}") for number in range(10)}
    for run in alive:
        wait_until(lambda run=run: begins(run))  # type: ignore[misc]
    begun = time.monotonic()
    # About a second, when parts are published, is the moment to be looked at.
    moments = sorted(chance.choice((0.0, 0.3, 0.8, 1.0, 1.1, 2.1, 5.0, 6.0)) + chance.random() / 5 for _ in alive)
    for (run, pid), moment in zip(alive.items(), moments, strict=True):
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        os.kill(pid, signal.SIGKILL)
        found = trainings.ended(run, pid)
        figures(kills_at_random=1)
        assert_whole(found, 1.0 + _PUBLISH_SECONDS, figures)
    for run in alive:
        goes_on(run)


# The N-th call of a name with this word among its arguments; True is after the call.
POINTS = [
    pytest.param(("write", "", 3, True), marks=pytest.mark.smoke),
    ("fsync", "", 3, True),
    ("replace", "extremes", 2, False),
    ("replace", "metrics", 2, True),
    ("replace", "closed", 1, False),
    ("unlink", "extremes", 1, False),  # between a merge and its deletions
    ("unlink", "metrics", 2, True),
]
MORE_POINTS = [
    ("open", "staging", 3, False),
    ("write", "", 4, False),
    ("fsync", "", 4, False),
    ("replace", "events", 1, True),
    ("replace", "closed", 1, True),
    ("unlink", "metrics", 1, False),
    ("unlink", "extremes", 2, True),
    ("link", "run.json", 1, True),
    ("utime", "heartbeat", 1, False),
]


@pytest.mark.parametrize("round_", range(often(1, 5)))
@pytest.mark.parametrize("point", [*POINTS, *(MORE_POINTS if FACTOR else [])], ids=str)
def test_a_training_may_be_killed_at_any_call(
    tmp_path: Path, trainings: Trainings, point: tuple[str, str, int, bool], round_: int, figures: Callable[..., None]
) -> None:
    """Killed within a publish, a merge or its closing, it leaves a whole log that is merged and gone on with."""
    name, word, count, after = point
    further = round_ % 2 if count > 1 else 0
    run = tmp_path / "run"
    found = trainings.ended(run, trainings.begin(run, (name, word, count + further, after)))
    figures(kills_at_a_call=1)
    assert_whole(found, 0.1 + _PUBLISH_SECONDS, figures)
    before = tracer.scan(found.run).collect()
    for table in schema.TABLES:
        merge(run, table, 0)
    assert tracer.scan(found.run).collect().equals(before)
    assert all(len(all_parts(found.run, table)) <= 1 for table in schema.TABLES)
    assert ranks.clear_staging(found.run, 0) == []
    goes_on(found.run)


def test_what_a_dead_writer_left_in_staging_is_cleared_once_it_is_dead(tmp_path: Path, trainings: Trainings) -> None:
    """Half a part is left alone while its writer may live, and is deleted by merge or the rank itself later."""
    found = trainings.ended(tmp_path / "run", trainings.begin(tmp_path / "run", ("replace", "extremes", 2, False)))
    orphans = sorted(path.name for path in (found.run / "staging").iterdir())
    assert len(orphans) == 1
    # Another rank, and whoever comes while a merge may be going on, leaves it.
    assert ranks.clear_staging(found.run, 1) == ranks.clear_staging(found.run, 0) == []
    for path in (found.run / "staging").iterdir():
        age(path)
    age_heartbeat(found.run, 60)
    assert ranks.clear_staging(found.run, 1) == []
    assert ranks.clear_staging(found.run, 0) == orphans
    assert not list((found.run / "staging").iterdir())
    goes_on(found.run)


def age(path: Path) -> None:
    """Let a file be as old as that of a process that died a minute ago."""
    import os

    os.utime(path, (time.time() - 60, time.time() - 60))
