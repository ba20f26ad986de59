"""A run that takes the place of another one: ``attach(…, overwrite=True)``."""

import itertools
import os
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch

import tracer
from tests.disk import Disk
from tests.logs import close_run, extremes, metrics, new_run, publish_next
from tests.training import loss_of, metric, mlp, steps
from tests.warm import warm
from tracer.log.ranks import ranks_in, state
from tracer.log.run import open_run
from tracer.log.store import Local as Path
from viewer.read.live import Live

# Attaches, says so, and lives until its input ends.
WRITER = """
import sys
import torch
import tracer
model = torch.nn.Linear(1, 1)
trace = tracer.attach(model, sys.argv[1])
trace.log(loss=1.0)
print("writes", flush=True)
sys.stdin.read()
"""


# The second of two ranks, which replaces the run, and looks again for what the first has done once it is told to.
SECOND = """
import sys
import time
import torch
import tracer

def wait(seconds):
    print("waits", flush=True)
    sys.stdin.readline()
    time.sleep = sleep

sleep, time.sleep = time.sleep, wait
with tracer.attach(torch.nn.Linear(1, 1), sys.argv[1], overwrite=True) as trace:
    trace.log(loss=1.0)
"""


def older_run(path: Path, closed: bool = True) -> Path:
    """A run of two ranks, with parts in two tables, that nobody writes."""
    run = new_run(path, params=["old"])
    for rank in (0, 1):
        publish_next(run, "extremes", extremes(range(100, 103), params=["old"], rank=rank), rank=rank)
        publish_next(run, "metrics", metrics(range(100, 103), [7.0] * 3, rank=rank), rank=rank)
    (run / "heartbeat-r00000").write_text(f"{os.uname().nodename} {2**22 + 1}\n")
    (run / "heartbeat-r00001").write_text(f"{os.uname().nodename} {2**22 + 1}\n")
    if closed:
        close_run(run, 102)
    return run


def train(run: Path) -> None:
    """Put a run of two steps there."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, run, overwrite=True) as trace:
        for _ in range(2):
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)


def assert_only_the_new_one(run: Path) -> None:
    """The folder holds the run of ``train``, and no row of another one."""
    assert steps(run) == [0, 1]
    assert tracer.scan(run, attempts="all").select("rank", "attempt").unique().collect().rows() == [(0, 0)]
    assert "old" not in {str(name) for name in tracer.scan(run).collect()["param"]}
    assert [step for step, _ in metric(run, "loss")] == [0, 1]
    assert (ranks_in(run), state(run)) == ([0], "closed")
    assert [param["name"] for param in open_run(run).info["params"]] == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("closed", [True, False])
def test_a_run_that_nobody_writes_is_replaced(tmp_path: Path, closed: bool) -> None:
    """Whether it was closed or killed, nothing of it is left; where there is none, one begins."""
    train(older_run(tmp_path / "run", closed))
    assert_only_the_new_one(tmp_path / "run")
    train(tmp_path / "new")
    assert_only_the_new_one(tmp_path / "new")


def test_files_of_others_stay(tmp_path: Path) -> None:
    """Checkpoints, files beside the parts, and what links lead to are nobody's to delete."""
    run, elsewhere = older_run(tmp_path / "run"), older_run(tmp_path / "elsewhere")
    (part,) = (elsewhere / "extremes").glob("r00000-*")
    strangers = [run / "model.pt", run / "checkpoints" / "a.pt", run / "extremes" / "notes.txt", run / "closed.json"]
    strangers += [run / "checkpoints" / part.name, run / "heartbeat"]
    for file in strangers:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    link = run / "extremes" / part.name.replace("000000000-", "000000009-")
    link.symlink_to(part)
    (run / "histograms").rmdir()
    (run / "histograms").symlink_to(elsewhere / "extremes")
    before = sorted(elsewhere.rglob("*"))
    train(run)
    assert_only_the_new_one(run)
    assert [file.read_text() for file in strangers] == ["mine"] * len(strangers)
    assert link.is_symlink()
    assert sorted(elsewhere.rglob("*")) == before
    train(Path(tmp_path / "run"))


@pytest.mark.parametrize("content", ["{}", "not JSON", '{"format": 99}', '{"format": 1, "run_id": 3}'])
def test_what_is_no_run_of_ours_is_refused_untouched(tmp_path: Path, content: str) -> None:
    """A run.json of another program, or of a later version, is not replaced."""
    run = older_run(tmp_path / "run")
    (run / "run.json").write_text(content)
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    with pytest.raises(tracer.LogError, match=r"cannot be read|has log format 99"):
        tracer.attach(mlp(), run, overwrite=True)
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


def test_a_run_that_is_alive_is_refused_until_its_process_is_dead(tmp_path: Path) -> None:
    """Another process that writes keeps its run; once it is killed, the run is replaced without waiting."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", WRITER, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writes\n"
        before = (run / "run.json").read_text()
        with pytest.raises(tracer.LogError, match=rf"is being written by '\S+ {writer.pid}' .*: end that first"):
            tracer.attach(mlp(), run, overwrite=True)
        assert (run / "run.json").read_text() == before
        assert state(run) == "running"
        writer.kill()
    train(run)
    assert_only_the_new_one(run)


def test_a_run_of_which_one_rank_is_alive_is_refused(tmp_path: Path) -> None:
    """Whichever rank it is, and though rank 0 is dead."""
    run = older_run(tmp_path / "run", closed=False)
    (run / "heartbeat-r00001").write_text(f"{os.uname().nodename} {os.getppid()}\n")
    with pytest.raises(tracer.LogError, match=rf"is being written by '\S+ {os.getppid()}' .*: end that first"):
        tracer.attach(mlp(), run, overwrite=True)
    assert steps(run) == [100, 101, 102]


CALLS = ("unlink", "replace", "link", "write", "makedirs")


def test_a_rank_may_come_after_the_first_has_closed(tmp_path: Path) -> None:
    """A rank that waits for the run to be replaced begins its part, though the first one's training is over by then."""
    run = older_run(tmp_path / "run")
    with subprocess.Popen(
        [*warm(), "-c", SECOND, str(run)],
        env={**os.environ, "RANK": "1", "WORLD_SIZE": "2"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == "waits\n"
        train(run)
        assert ranks_in(run) == [0]
        second.communicate("go on\n")
    assert second.returncode == 0
    assert (ranks_in(run), state(run)) == ([0, 1], "closed")


class Killed(BaseException):
    """The process ends here."""


def killing(disk: Disk, call: int) -> None:
    """Let this thread end at one of its calls that change the disk."""
    calls = itertools.count()

    def until_then(name: str) -> Any:
        real = getattr(os, name)

        def called(*arguments: Any, **options: Any) -> Any:
            # The daemon has calls of its own.
            if threading.current_thread() is threading.main_thread() and next(calls) == call:
                raise Killed
            return real(*arguments, **options)

        return called

    for name in CALLS:
        setattr(disk, name, until_then(name))


def test_a_process_that_is_killed_in_the_middle_leaves_a_run_that_can_be_replaced(tmp_path: Path) -> None:
    """At whichever call to the disk it ends, a run is there, with no row of both, and it can be replaced again."""
    for call in itertools.count():
        run = older_run(tmp_path / str(call))
        disk = Disk()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tracer.log.store.os", disk)
            killing(disk, call)
            try:
                trace = tracer.attach(mlp(), run, overwrite=True)
            except Killed:
                assert open_run(run)
                assert set(steps(run)) <= {100, 101, 102}
            else:
                trace.close()
                break
        (run / "heartbeat-r00000").write_text(f"{os.uname().nodename} {2**22 + 1}\n")
        train(run)
        assert_only_the_new_one(run)
    assert call > 8, "the calls were not seen"


def test_a_model_that_is_gone_gives_its_run_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cell that makes its model anew replaces the run of the model before; a living model keeps its run."""
    model = mlp()
    trace = tracer.attach(model, tmp_path / "run")
    with pytest.raises(RuntimeError, match=r"another model is being traced into .* or all with tracer\.close\(\)"):
        tracer.attach(mlp(), tmp_path / "run", overwrite=True)
    del model
    train(tmp_path / "run")
    trace.log(loss=1.0)
    assert_only_the_new_one(tmp_path / "run")
    assert capsys.readouterr().err.count("gradwatch closed the trace into") == 1


def test_a_viewer_that_follows_shows_the_new_run_alone(tmp_path: Path) -> None:
    """Nothing that it had read of the replaced run stays in its figure."""
    live = Live(older_run(tmp_path / "run"))
    before = live.refresh()
    train(tmp_path / "run")
    after = live.refresh()
    live.close()
    assert before is not None
    assert after is not None
    assert (before.last_step, after.last_step) == (102, 1)
    assert after.all_params == ("0.weight", "0.bias", "2.weight", "2.bias")


@pytest.mark.parametrize(
    ("given", "words"), [({}, "needs the path of the run to replace"), ({"path": "a", "resume": True}, "give one")]
)
def test_what_overwrite_cannot_be_given_with_is_said(given: dict[str, Any], words: str) -> None:
    """It needs a path, and is the opposite of resume."""
    with pytest.raises(ValueError, match=words):
        tracer.attach(mlp(), overwrite=True, **given)
