"""A log on a disk that behaves as Windows' does: what is open cannot be renamed, replaced or deleted."""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path as Folder
from types import SimpleNamespace
from typing import IO

import pytest
import torch

import tracer
from tests.commands import tracer_says, viewer_says
from tests.logs import close_run, extremes, metrics, new_run, publish_next
from tests.training import loss_of, metric, mlp, steps
from tests.viewing import all_shown
from tests.windows import ROOT, Windows
from tracer.log import system
from tracer.log.parts import all_parts, merge, part_name
from tracer.log.ranks import clear_staging
from tracer.log.remote import Remote
from tracer.log.run import open_run, replace_run
from tracer.log.store import Local as Path
from viewer.options import ViewOptions
from viewer.read.runs import Runs
from viewer.surfaces.files import FigureFile
from viewer.surfaces.token import kept_secret

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that tells which files are open")


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> Windows:
    """Windows' disk under everything that this test does."""
    return Windows(monkeypatch)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is open stays open: nobody waits for it."""
    monkeypatch.setattr(system, "_PATIENCE_SECONDS", 0.0)


def closing_soon(monkeypatch: pytest.MonkeyPatch, opened: IO[bytes]) -> None:
    """Let another one close a file while it is waited for the second time."""
    pauses = iter([lambda: None, opened.close])

    def sleep(seconds: float) -> None:
        next(pauses)()

    monkeypatch.setattr(system, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep))


def train(run: Path, losses: int = 3, *, resume: bool = False, overwrite: bool = False) -> None:
    """Train for a few steps, traced into this run."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, run, resume=resume, overwrite=overwrite) as trace:
        for number in range(losses):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            trace.log(loss=float(number))


def names(run: Path, table: str = "extremes") -> list[str]:
    """The names of a table's files."""
    return sorted(file.name for file in (run / table).iterdir())


def test_a_run_is_written_resumed_and_replaced_without_a_try_in_vain(tmp_path: Path, windows: Windows) -> None:
    """The writer has closed what it renames or deletes, so that Windows refuses nothing of it."""
    run = tmp_path / "run"
    train(run)
    train(run, resume=True)
    assert (steps(run), len(names(run))) == ([*range(6)], 1)
    assert metric(run, "loss") == [(step, float(step % 3)) for step in range(6)]
    train(run, losses=2, overwrite=True)
    assert (steps(run), len(names(run))) == ([0, 1], 1)
    assert tracer_says("verify", run).returncode == 0
    assert names(run, "staging") == windows.refused == []


def test_a_viewer_that_has_read_has_nothing_open(tmp_path: Path, windows: Windows) -> None:
    """All that it has read can be merged, and its figure and its secret are written, at once."""
    run = new_run(tmp_path / "run")
    for step in range(3):
        publish_next(run, "extremes", extremes([step]))
        publish_next(run, "metrics", metrics([step], [1.0]))
    with contextlib.closing(Runs([run])) as runs:
        shown = all_shown(runs)
        runs.examine()
        frame = tracer.scan(run)
        assert frame.collect().height == 3
        merge(run, "extremes", 0)
        merge(run, "metrics", 0)
        assert len(names(run)) == len(names(run, "metrics")) == 1
        file = FigureFile(tmp_path / "figure.png", ViewOptions())
        for _ in range(2):
            file.write(shown)
    close_run(run, 2)
    assert tracer.runs(run)["steps"].to_list() == [3]
    assert viewer_says(tmp_path, "check", "run").returncode == 0
    secret = kept_secret(new=True)
    assert kept_secret() == secret != kept_secret(new=True)
    assert windows.refused == []


@pytest.mark.usefixtures("impatient")
def test_a_part_that_a_reader_has_open_is_left_to_the_next_merge(tmp_path: Path, windows: Windows) -> None:
    """It is beside the part that replaces it meanwhile, and no row counts twice."""
    run = new_run(tmp_path / "run")
    parts = [publish_next(run, "extremes", extremes([step])) for step in range(3)]
    with parts[1].file().open("rb"):
        (merged,) = merge(run, "extremes", 0)
        assert windows.refused == [parts[1].path.name]
        assert all_parts(run, "extremes") == [merged, parts[1]]
        assert tracer.scan(run).collect().height == 3
    assert merge(run, "extremes", 0) == []
    assert all_parts(run, "extremes") == [merged]
    assert steps(run) == [0, 1, 2]


@pytest.mark.usefixtures("impatient")
def test_a_run_of_which_a_part_is_open_is_not_replaced_in_part(tmp_path: Path, windows: Windows) -> None:
    """What cannot be deleted is said, nothing is mixed, and once it is closed the run can be replaced."""
    run = tmp_path / "run"
    train(run)
    (part,) = all_parts(run, "extremes")
    with part.file().open("rb"), pytest.raises(tracer.LogError, match="another process uses the file"):
        train(run, overwrite=True)
    assert windows.refused == [part.path.name]
    assert steps(run) == [0, 1, 2]
    train(run, losses=1, overwrite=True)
    assert steps(run) == [0]


def test_a_file_that_is_open_for_a_moment_is_waited_for(
    tmp_path: Path, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run.json that is being read is replaced once it is closed."""
    run = new_run(tmp_path / "run")
    closing_soon(monkeypatch, (run / "run.json").open("rb"))
    replace_run(run, {**open_run(run).info, "model": "Other"})
    assert open_run(run).info["model"] == "Other"
    assert windows.refused == ["run.json"] * 2


def test_a_file_that_stays_open_is_an_error_after_a_second(
    tmp_path: Path, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the system's own, and nothing is left in staging/."""
    run = new_run(tmp_path / "run")
    clock, pauses = itertools.count(step=0.5), iter([None] * 5)
    monkeypatch.setattr(system, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: next(pauses)))
    with (run / "run.json").open("rb"), pytest.raises(PermissionError, match="another process uses the file"):
        replace_run(run, {**open_run(run).info})
    assert windows.refused == ["run.json"] * 2
    assert names(run, "staging") == []


def test_another_error_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a file that is open may be closed soon."""
    monkeypatch.setattr(system, "time", SimpleNamespace(monotonic=lambda: 0.0))

    def fail() -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(PermissionError):
        system.patiently(fail)


@pytest.mark.usefixtures("impatient")
def test_what_a_dead_process_was_writing_is_left_while_it_is_open(tmp_path: Path, windows: Windows) -> None:
    """Whoever has it open may be writing it still; the next one who looks deletes it."""
    run = new_run(tmp_path / "run")
    orphans = [run / "staging" / name for name in (f"extremes-{part_name(0, 0, 0, 0)}", "run-1")]
    for orphan in orphans:
        orphan.touch()
        os.utime(orphan, (0, 0))
    with orphans[0].open("rb"):
        assert clear_staging(run, 0) == ["run-1"]
    assert clear_staging(run, 0) == [orphans[0].name]
    assert windows.refused == [orphans[0].name]


@pytest.mark.usefixtures("impatient")
def test_a_copy_that_another_thread_has_made_meanwhile_is_used(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file in a store: its bytes are the same, and it cannot be replaced while that thread reads it."""
    file = Remote("memory://windows/part")
    file.write(b"bytes")
    replace = os.replace
    with contextlib.ExitStack() as others:

        def overtaken(source: str, target: Folder) -> None:
            shutil.copy(source, target)
            others.enter_context(target.open("rb"))
            replace(source, target)

        monkeypatch.setattr(os, "replace", overtaken)
        copy = file.local_file()
        assert copy.read_bytes() == b"bytes"
    assert windows.refused == [copy.name]
    assert not [each for each in copy.parent.glob("tmp*") if each.is_file()]


RESERVED = {"con", "prn", "aux", "nul"} | {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}


def test_no_file_has_a_name_of_the_users(tmp_path: Path) -> None:
    """Whatever parameters and metrics are called, a run's files have names that every system can hold."""
    odd = ["CON", "aux.weight", "a:b", "c/d\\e", "trailing.", "Weight", "weight", "*?<>|"]
    run = new_run(tmp_path / "run", odd)
    publish_next(run, "extremes", extremes([0, 1], odd))
    for name in odd:
        publish_next(run, "metrics", metrics([0, 1], [1.0, 2.0], name))
    merge(run, "metrics", 0)
    close_run(run, 1)
    found = [piece for file in run.rglob("*") for piece in file.relative_to(run).parts]
    assert found
    for name in found:
        assert name == name.lower().strip(" .")
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
        assert name.partition(".")[0] not in RESERVED


@pytest.mark.slow
def test_nothing_is_called_that_windows_lacks(tmp_path: Path) -> None:
    """Every module is imported, and a run written, resumed, drawn and replaced, without what POSIX alone has."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [sys.executable, "-m", "tests.faults.without_posix"]
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert sorted(tmp_path.glob("figure.*")) == [tmp_path / "figure.csv", tmp_path / "figure.png"]


@pytest.mark.parametrize("asked", ["os.register_at_fork", "signal.SIGKILL", "__import__('fcntl')"])
def test_what_windows_lacks_is_missing_for_our_packages_alone(asked: str) -> None:
    """The test above would fail: a module of ours that asks for it does not find it, and any other one does."""
    asks = f"""
import os, signal
from tests.faults.without_posix import hide
hide()
for name in ("other.module", "tracer.module"):
    print(name)
    exec({asked!r}, {{"__name__": name, "os": os, "signal": signal}})
"""
    process = subprocess.run([sys.executable, "-c", asks], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.split() == ["other.module", "tracer.module"]
    assert "Windows has no" in process.stderr
