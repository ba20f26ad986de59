"""Normal ends lose nothing, and none is delayed by more than five seconds: real processes that end in every way."""

import contextlib
import functools
import inspect
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tests.faults.injection import impatient
from tests.faults.test_failing_calls import assert_sound
from tests.halves import smoke_of
from tests.torture import often
from tests.training import by_hand, events, loss_of, metric, mlp, recorded, steps
from tests.warm import warm
from tracer import trace as trace_module
from tracer.log.ranks import state
from tracer.log.store import Local as Path

pytestmark = pytest.mark.slow

Figures = Callable[..., None]
# What exit may take, and what a busy machine adds.
LONGEST_SECONDS, MARGIN_SECONDS = 5.0, 6.0

_TRAINING = """
import os, signal, sys, threading, time, torch, tracer, tracer.log.store, tracer.trace
from tests.training import loss_of, mlp
torch.set_num_threads(1)

class Os:
    fsync = staticmethod(os.fsync)
    def __getattr__(self, name):
        return getattr(os, name)

disk = tracer.log.store.os = Os()

def train(*traces, steps=20):
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    for step in range(steps):
        for model, optimizer, trace in zip(models, optimizers, traces):
            optimizer.zero_grad(); loss_of(model).backward(); optimizer.step(); trace.log(number=step)
        print(step, flush=True)

models = [mlp() for _ in sys.argv[1:]]
traces = [tracer.attach(model, path) for model, path in zip(models, sys.argv[1:])]
"""

ENDS = {
    "return": ("train(*traces)", 0, ""),
    "sys.exit": ("train(*traces); sys.exit(3)", 3, ""),
    "exception": ("train(*traces); raise RuntimeError('uncaught')", 1, "RuntimeError: uncaught"),
    "ctrl-c": ("train(*traces, steps=10**9)", -signal.SIGINT, "KeyboardInterrupt: "),
    "ctrl-c in with": ("with traces[0]: train(*traces, steps=10**9)", -signal.SIGINT, "KeyboardInterrupt: "),
    "sigterm": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); train(*traces, steps=10**9)",
        143,
        "",
    ),
}


@functools.cache
def why_not(python: str) -> str:
    """Why a Python cannot train here; "" if it can."""
    if python == "this":
        return ""
    path = shutil.which(python)
    if path is None:
        return f"there is no {python} here"
    script = "import torch, polars, pyarrow"
    done = subprocess.run([path, "-c", script], capture_output=True, text=True, check=False, cwd="/")
    return f"{path} cannot import what is needed: {done.stderr.strip()[-200:]}" if done.returncode else ""


def start(script: str, *paths: Path, python: str = "this") -> subprocess.Popen[str]:
    """Begin a training with a trace into each of these paths, which then does what the script says."""
    executable = warm() if python == "this" else (str(shutil.which(python)),)
    return subprocess.Popen(
        [*executable, "-c", _TRAINING + script, *map(str, paths)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def lines_until(process: subprocess.Popen[str], words: str) -> None:
    """Read what a process prints until it prints this."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == words:
            return
    raise AssertionError(f"{words!r} was never printed: {process.communicate()[1]}")


@pytest.mark.parametrize("round_", range(often(1, 5)))
@pytest.mark.parametrize("python", ["this", "python3.12", "python3.13"])
@pytest.mark.parametrize("end", smoke_of(ENDS))
def test_a_normal_end_loses_nothing(end: str, python: str, round_: int, tmp_path: Path, figures: Figures) -> None:
    """However a process ends: all steps up to the last are there, once, and the run is closed with the reason."""
    if reason := why_not(python):
        pytest.skip(reason)
    script, code, why = ENDS[end]
    run = tmp_path / "run"
    process = start(script, run, python=python)
    if code in (-signal.SIGINT, 143):
        lines_until(process, str(20 + 7 * round_))
        process.send_signal(signal.SIGTERM if code == 143 else signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    told = int(out.split()[-1]) if out.split() else 20
    found = steps(run)
    numbers = [number for _, number in metric(run, "number")]
    figures(ends=1, steps_ended=told + 1, steps_lost=max(0, told + 1 - min(len(found), len(numbers))))
    # A step in which the end came may be there, or not.
    assert found == list(range(len(found)))
    assert len(found) >= told + 1
    assert len(recorded(run)) == 4 * len(found)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) in (len(found), len(found) - 1)
    assert state(run) == "closed"
    ((_, _, reason),) = events(run, "closed")
    assert reason == why
    assert "TracerWarning" not in err


def test_a_shell_sees_that_ctrl_c_ended_a_training(tmp_path: Path) -> None:
    """It ends of the signal, though Python forgets that at each text that is executed while the rows are written."""
    script = """
def fsync(descriptor):
    exec("print('writes', flush=True)"); os.fsync(descriptor)
disk.fsync = fsync
train(*traces)
print("pressed", flush=True)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""
    process = start(script, tmp_path / "run")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out.split()[-1]) == (-signal.SIGINT, "writes"), err
    assert state(tmp_path / "run") == "closed"


@pytest.mark.parametrize("runs", [1, 3])
def test_a_disk_that_hangs_delays_no_end_by_more_than_five_seconds(runs: int, tmp_path: Path, figures: Figures) -> None:
    """However many traces are open; the training has gone on meanwhile, and the user is told."""
    script = """
hung = threading.Event()
def fsync(descriptor):
    hung.set(); threading.Event().wait()
disk.fsync = fsync
train(*traces)
assert hung.wait(60)
train(*traces)
print("end", flush=True)
"""
    process = start(script, *(tmp_path / f"run-{number}" for number in range(runs)))
    lines_until(process, "end")
    began = time.monotonic()
    _, err = process.communicate(timeout=120)
    delayed = time.monotonic() - began >= LONGEST_SECONDS + MARGIN_SECONDS
    figures(ends=1, ends_delayed_beyond_the_promise=delayed)
    assert not delayed
    assert process.returncode == 0, err
    assert err.count("does not take the last rows within 5 s; they may be lost") == runs


def test_ctrl_c_while_it_closes_loses_nothing(tmp_path: Path, figures: Figures) -> None:
    """A user who presses Ctrl-C again while close waits for the disk still gets every row and a closed run."""
    script = """
fsync = os.fsync
def slow(descriptor):
    if not pressed:
        pressed.append(True)
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1); fsync(descriptor)
pressed = [True]
disk.fsync = slow
train(*traces)
pressed.clear()
traces[0].log(last=1.0)
traces[0].close()
print("not interrupted")
"""
    run = tmp_path / "run"
    process = start(script, run)
    out, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT, err
    assert "not interrupted" not in out
    found = steps(run)
    figures(ends=1, steps_ended=20, steps_lost=20 - len(found))
    assert found == list(range(20))
    assert metric(run, "last") == [(19, 1.0)]
    assert state(run) == "closed"


@pytest.mark.skipif(sys.platform != "linux", reason="this system does not fork")
def test_a_child_of_multiprocessing_that_returns_loses_nothing(tmp_path: Path, figures: Figures) -> None:
    """A training in a forked child, which ends without the interpreter's exit handlers, is closed as any other."""
    script = """
import multiprocessing
def main(path):
    models.append(mlp())
    train(tracer.attach(models[0], path))
child = multiprocessing.get_context("fork").Process(target=main, args=(os.environ["RUN"],))
child.start(); child.join(); sys.exit(child.exitcode)
"""
    run = tmp_path / "run"
    environment = {**os.environ, "RUN": str(run)}
    subprocess.run([*warm(), "-c", _TRAINING + script], check=True, capture_output=True, env=environment)
    found = steps(run)
    figures(ends=1, steps_ended=20, steps_lost=20 - len(found))
    assert found == list(range(20))
    assert state(run) == "closed"


class _Interrupt:
    """Presses Ctrl-C at the N-th line that the tracer executes in this thread, in any function or in one."""

    def __init__(self, line: int, function: str) -> None:
        self._left = line
        self._function = function
        self.where = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(str(Path(tracer.__file__).parent)):
            return None
        if event == "line" and not self.where and self._function in ("", frame.f_code.co_name):
            self._left -= 1
            if self._left == 0:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize(
    ("function", "stride"),
    [("", often(29, 1)), ("_leave", 1), ("_end", 1)],
    ids=["any", "step", "end"],
)
def test_ctrl_c_at_any_line_leaves_a_true_log(
    function: str, stride: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: Figures
) -> None:
    """Wherever in the tracer it strikes, no row is twice or out of its step, no hook is left, and the run is closed."""
    impatient(monkeypatch)
    for number in itertools.count(1, stride):
        run = tmp_path / f"run-{number}"
        torch.manual_seed(0)
        model = mlp()
        trace = tracer.attach(model, run)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        interrupt = _Interrupt(number, function)
        ended, expected = 0, []
        sys.settrace(interrupt)
        try:
            for step in range(3):
                optimizer.zero_grad()
                loss_of(model).backward()
                expected.append(by_hand(model))
                optimizer.step()
                trace.log(number=step)
                ended += 1
            trace.close()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        trace_module._close_all()
        note = interrupt.where
        rows = recorded(run)
        # A step whose rows were on their way at that moment may be lost, as a whole.
        lost = {*range(ended)} - {step for step, _ in rows}
        figures(ctrl_c_at_lines=bool(note), steps_ended=ended, steps_lost=max(0, len(lost) - 1))
        assert len(lost) <= 1, note
        assert {step for step, _ in rows} <= {*range(ended + 1)}, note
        for (step, name), row in rows.items():
            # Two of one step that are published at once become one row, which says so.
            assert row["span"] == 1, note
            if step < len(expected):
                assert row["grad_min"] in (None, expected[step][name]["grad_min"]), (note, step, name)
        for step in range(ended):
            assert len([name for at, name in rows if at == step]) in (0, 4), note
        numbers = metric(run, "number")
        assert [at for at, _ in numbers] == [int(value) for _, value in numbers], note
        assert state(run) == "closed", note
        assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters()), note
        assert_sound(run)
        if not interrupt.where:
            assert number > 9, "nothing was interrupted"
            return


class _AtEntry(_Interrupt):
    """Presses Ctrl-C at the N-th call within the tracer, where Python looks whether it was pressed."""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        # A generator that is closed is called, too, where nothing can be raised.
        if not frame.f_code.co_flags & inspect.CO_GENERATOR:
            super().__call__(frame, "line" if event == "call" else "", argument)
        return None


def test_a_training_that_goes_on_after_ctrl_c_is_measured_at_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook a cell is interrupted and run again: no step is measured that is not due, nor one of two steps."""
    impatient(monkeypatch)
    for number in itertools.count(1, often(8, 1)):
        run = tmp_path / f"run-{number}"
        model = nn.Linear(1, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        interrupt = _AtEntry(number, "")
        with tracer.attach(model, run, every=2):
            for gradient in range(8):
                with contextlib.suppress(KeyboardInterrupt):
                    sys.settrace(interrupt)
                    optimizer.zero_grad()
                    model(torch.tensor([float(gradient)])).sum().backward()
                    optimizer.step()
                sys.settrace(None)
        found = {step: row["grad_max"] for (step, _), row in recorded(run).items()}
        assert not [step for step in found if step % 2], interrupt.where
        # An update that was interrupted may count, or not: so each row is of its step, or of one of the next two.
        assert all(of is None or of - step in (0, 1, 2) for step, of in found.items()), (interrupt.where, found)
        assert len(found) >= 3, interrupt.where
        if not interrupt.where:
            assert number > 50, "nothing was interrupted"
            return
