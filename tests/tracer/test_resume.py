"""Runs that go on from a checkpoint: after a crash, on another machine, or in the same process."""

import copy
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.amp.grad_scaler import GradScaler

import tracer
import viewer
from tests.disk import Disk
from tests.logs import close_run, extremes, new_run, publish_next
from tests.logs import events as events_at
from tests.torture import often
from tests.tracer.log.test_read import LATER
from tests.training import events, loss_of, mlp, set_daemons
from tests.viewing import view
from tests.waiting import wait_until
from tracer.log.schema import BEGINNINGS
from tracer.log.store import Local as Path
from viewer.options import View, ViewOptions
from viewer.read.live import Live
from viewer.read.monitor import FindingsMonitor
from viewer.snapshot import Snapshot

Seen = list[tuple[int, int, float]]
"""Attempts, steps and numbers."""


class Loop:
    """The training of one weight, whose gradient is whatever number is asked for, and its trace."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        self.trace = tracer.attach(self.model, path, **options)

    def backward(self, gradient: float) -> None:
        """Gradients alone."""
        self.optimizer.zero_grad()
        self.model(torch.tensor([float(gradient)])).sum().backward()

    def train(self, *gradients: float) -> None:
        """A step for each of these gradients."""
        for gradient in gradients:
            self.backward(gradient)
            self.optimizer.step()

    @property
    def step(self) -> int:
        """The step that a checkpoint made now would say."""
        return self.trace.state_dict()["step"]


@contextmanager
def training(path: Path, **options: Any) -> Iterator[Loop]:
    """A loop whose trace is closed at the end of the block."""
    loop = Loop(path, **options)
    try:
        yield loop
    finally:
        loop.trace.close()


def seen(path: Path, table: str = "extremes", **options: Any) -> Seen:
    """What a scan gives of what a loop made: attempt, step and number of each row, in this order."""
    number = "grad_max" if table == "extremes" else "value"
    frame = tracer.scan(path, table, **options)
    if table == "metrics":
        frame = frame.filter(~pl.col("name").is_in(["discarded", "lr"]))
    return sorted(frame.select("attempt", "step", number).collect().rows())


_LATEST: "WeakKeyDictionary[Live, Snapshot]" = WeakKeyDictionary()


def shown(live: Live) -> Snapshot:
    """How a run is now, whether or not anything is new."""
    snapshot = live.refresh()
    if snapshot is not None:
        _LATEST[live] = snapshot
    return _LATEST[live]


class Daemons:
    """Daemons that publish when a test says so, so that it knows what is in the log."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = 0.0
        self._rounds = 0
        set_daemons(monkeypatch, clock=lambda: self._now, cadence=self._after_round, tick_seconds=0.001)

    def _after_round(self, age_seconds: float) -> float:
        self._rounds += 1
        return 1.0

    def publish(self) -> None:
        """Let the daemon publish all that it has been given."""
        # The first time, it may have emptied its queue just before.
        for _ in range(2):
            rounds = self._rounds
            self._now += 1.0
            wait_until(lambda rounds=rounds: self._rounds > rounds)  # type: ignore[misc]


@pytest.fixture
def daemons(monkeypatch: pytest.MonkeyPatch) -> Daemons:
    """Daemons that publish nothing by themselves while a training goes on."""
    return Daemons(monkeypatch)


# What a checkpoint says


@pytest.mark.parametrize("options", [{}, {"every": 2}, {"every": 3}, {"fold": 4}, {"budget": 0.5}], ids=str)
def test_a_checkpoint_knows_how_many_updates_were_done(tmp_path: Path, options: dict[str, Any]) -> None:
    """Before the first step, between backward and update, and after it: the number is that of the updates."""
    with training(tmp_path / "run", **options) as loop:
        assert loop.step == 0
        for done in range(10):
            for _ in range(2):
                # Accumulated.
                loop.model(torch.ones(1)).sum().backward()
                assert loop.step == done
            loop.optimizer.step()
            assert loop.step == done + 1
            loop.optimizer.zero_grad()
            assert loop.step == done + 1
    assert loop.step == 10


@pytest.mark.parametrize("every", [1, 3])
def test_a_loop_that_ends_its_steps_itself_knows_their_number(tmp_path: Path, every: int) -> None:
    """Without a torch optimizer, the calls of step() count."""
    with training(tmp_path / "run", every=every) as loop:
        for done in range(5):
            assert loop.step == done
            loop.backward(1.0)
            assert loop.step == done
            loop.trace.step()
    assert loop.step == 5


@pytest.mark.parametrize("every", [1, 2])
def test_a_closure_and_a_skipped_update_are_counted(tmp_path: Path, every: int) -> None:
    """Each update of LBFGS is one, and a step that a scaler skips is one, too."""
    with training(tmp_path / "closure", every=every) as loop:
        optimizer = torch.optim.LBFGS(loop.model.parameters(), lr=0.1, max_iter=3)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = loop.model(torch.ones(1)).square().sum()
            loss.backward()
            return loss

        for done in range(4):
            assert loop.step == done
            optimizer.step(closure)
            assert loop.step == done + 1
    scaler = GradScaler("cpu", init_scale=2.0)
    with training(tmp_path / "scaler", every=every, scaler=scaler) as loop:
        for done, loss in enumerate([1.0, float("inf"), 1.0, float("inf"), float("inf"), 1.0]):
            loop.optimizer.zero_grad()
            scaler.scale(loop.model(torch.tensor([loss])).sum()).backward()
            assert loop.step == done
            scaler.step(loop.optimizer)
            scaler.update()
            assert loop.step == done + 1


def test_a_resumed_run_counts_on(tmp_path: Path) -> None:
    """The number is that of the run, and not of the process."""
    for done in (0, 2, 4):
        with training(tmp_path / "run", resume=True) as loop:
            assert loop.step == done
            loop.train(1.0, 1.0)


def test_a_checkpoint_is_plain(tmp_path: Path) -> None:
    """What a checkpoint holds is a dict of a number, which JSON and a safe torch.load take."""
    with training(tmp_path / "run") as loop:
        loop.train(1.0, 1.0, 1.0)
        state = loop.trace.state_dict()
    file = io.BytesIO()
    torch.save({"trace": state}, file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["trace"] == json.loads(json.dumps(state)) == {"step": 3}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "a dict of []"),
        ({"model": {}, "optimizer": {}, "trace": {"step": 3}}, "a dict of ['model', 'optimizer', 'trace']"),
        ({"step": -1}, "a dict of ['step']"),
        ({"step": 1.5}, "a dict of ['step']"),
        ({"step": True}, "a dict of ['step']"),
        ({"step": 2**53}, "a dict of ['step']"),
        (1000, "int"),
        (None, "NoneType"),
    ],
    ids=str,
)
def test_what_is_no_state_is_refused_and_changes_nothing(tmp_path: Path, state: Any, words: str) -> None:
    """A wrong dict is named by its keys, and the run goes on as if nothing had been asked."""
    with training(tmp_path / "run") as loop:
        loop.train(1.0, 2.0)
        with pytest.raises(ValueError, match="load_state_dict needs what state_dict") as error:
            loop.trace.load_state_dict(state)
        assert str(error.value).endswith(f"and got {words}")
        loop.train(3.0)
    assert seen(tmp_path / "run", attempts="all") == [(0, 0, 1.0), (0, 1, 2.0), (0, 2, 3.0)]


def test_a_closed_trace_gives_its_last_state_and_takes_none(tmp_path: Path) -> None:
    """The checkpoint at a training's end may come after the trace's; to restore one is refused, with what to do."""
    with training(tmp_path / "run") as loop:
        loop.train(1.0, 2.0)
    assert loop.trace.state_dict() == {"step": 2}
    with pytest.raises(RuntimeError, match=r"is closed: attach again, with resume=True, to go on with it"):
        loop.trace.load_state_dict({"step": 1})


# What restoring one does


def test_a_fresh_run_begins_at_the_restored_step(tmp_path: Path) -> None:
    """A checkpoint of another run restored before the first step: the first row is that of its step, in attempt 0."""
    with training(tmp_path / "run") as loop:
        loop.trace.load_state_dict({"step": 1000})
        assert loop.step == 1000
        loop.train(1.0, 2.0)
        loop.trace.log(loss=0.5)
    assert seen(tmp_path / "run", attempts="all") == [(0, 1000, 1.0), (0, 1001, 2.0)]
    assert seen(tmp_path / "run", "metrics") == [(0, 1001, 0.5)]
    assert events(tmp_path / "run", "restored") == [(1000, None, "step 0 -> step 1000")]


def test_after_a_rollback_the_abandoned_rows_stay_under_their_attempt(tmp_path: Path) -> None:
    """Restored twice in one process: readers show the branch that went on, and all branches to who asks."""
    with training(tmp_path / "run") as loop:
        loop.train(1.0, 2.0, 3.0, 99.0, 99.0)
        loop.trace.log(loss=99.0)
        loop.trace.load_state_dict({"step": 3})
        loop.train(4.0, 98.0)
        loop.trace.log(loss=98.0)
        loop.trace.load_state_dict({"step": 4})
        loop.train(5.0)
        loop.trace.log(loss=5.0)
    first = [(0, 0, 1.0), (0, 1, 2.0), (0, 2, 3.0)]
    assert seen(tmp_path / "run") == [*first, (1, 3, 4.0), (2, 4, 5.0)]
    every = [*first, (0, 3, 99.0), (0, 4, 99.0), (1, 3, 4.0), (1, 4, 98.0), (2, 4, 5.0)]
    assert seen(tmp_path / "run", attempts="all") == every
    assert seen(tmp_path / "run", "metrics") == [(2, 4, 5.0)]
    assert seen(tmp_path / "run", "metrics", attempts="all") == [(0, 4, 99.0), (1, 4, 98.0), (2, 4, 5.0)]
    assert [step for step, _, _ in events(tmp_path / "run", "restored")] == [3, 4]


@pytest.mark.parametrize("every", [1, 2])
def test_a_step_that_is_under_way_belongs_to_the_branch_that_is_left(tmp_path: Path, every: int) -> None:
    """A backward without its update, as where a loss is found to be NaN, is a row of the old attempt alone."""
    with training(tmp_path / "run", every=every) as loop:
        loop.train(1.0, 2.0)
        state = loop.trace.state_dict()
        loop.backward(99.0)
        loop.trace.load_state_dict(state)
        loop.train(3.0, 4.0)
    expected = [(0, 0, 1.0), (0, 1, 2.0), (1, 2, 3.0), (1, 3, 4.0)]
    assert seen(tmp_path / "run") == expected[::every]
    assert (0, 2, 99.0) in seen(tmp_path / "run", attempts="all")


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("to", [1, 2, 3])
@pytest.mark.parametrize("reached", [4, 5, 6, 7])
def test_steps_that_are_not_measured_are_restored_as_well(tmp_path: Path, every: int, to: int, reached: int) -> None:
    """From any step to any other, measured or not: the next rows are those of the steps that every= asks for."""
    with training(tmp_path / "run", every=every) as loop:
        loop.train(*range(reached))
        loop.trace.load_state_dict({"step": to})
        assert loop.step == to
        loop.train(*range(10 + to, 20))
        assert loop.step == 10
    rows = [(step, float(step if step < to else 10 + step)) for step in range(0, 10, every)]
    assert [row[1:] for row in seen(tmp_path / "run")] == rows


def test_a_step_that_is_left_leaves_nothing_in_later_rows(tmp_path: Path) -> None:
    """Restored in the middle of a measured step to one that is not: no later row holds a gradient of either."""
    model = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in "ab"})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def backward(gradient: float, *names: str) -> None:
        optimizer.zero_grad()
        torch.stack([model[name](torch.tensor([gradient])) for name in names]).sum().backward()

    with tracer.attach(model, tmp_path / "run", every=2) as trace:
        for _ in range(2):
            backward(1.0, "a", "b")
            optimizer.step()
        backward(99.0, "a", "b")
        trace.load_state_dict({"step": 1})
        backward(98.0, "a", "b")
        optimizer.step()
        backward(2.0, "b")
        optimizer.step()
    rows = tracer.scan(tmp_path / "run").filter(pl.col("step") == 2).sort("param").select("attempt", "grad_max")
    assert rows.collect().rows() == [(1, None), (1, 2.0)]


@pytest.mark.parametrize("what", ["nothing", "log", "gradient", "activations"])
def test_an_attempt_ends_where_it_has_recorded_the_step_already(tmp_path: Path, what: str) -> None:
    """Whatever was recorded of the step, it is not mixed with what comes; where nothing was, the attempt goes on."""
    with training(tmp_path / "run", activations=what == "activations") as loop:
        loop.train(1.0, 2.0)
        if what == "log":
            loop.trace.load_state_dict({"step": 2})
            loop.trace.log(loss=99.0)
        elif what == "gradient":
            loop.backward(99.0)
        elif what == "activations":
            loop.model(torch.tensor([99.0]))
        loop.trace.load_state_dict({"step": 2})
        loop.train(3.0)
        loop.trace.log(loss=3.0)
    attempt = int(what != "nothing")
    assert seen(tmp_path / "run") == [(0, 0, 1.0), (0, 1, 2.0), (attempt, 2, 3.0)]
    assert seen(tmp_path / "run", "metrics") == [(attempt, 2, 3.0)]
    if what == "activations":
        rows = tracer.scan(tmp_path / "run", "activations", attempts="all").filter(pl.col("step") == 2)
        assert sorted(set(rows.select("attempt").collect()["attempt"])) == [0, 1]
        latest = tracer.scan(tmp_path / "run", "activations").filter(pl.col("step") == 2).collect()
        assert set(latest["attempt"]) == {1}


def test_a_later_step_than_any_so_far_goes_on_in_the_same_attempt(tmp_path: Path) -> None:
    """A checkpoint that is newer than what the log has, as after a kill, abandons nothing."""
    with training(tmp_path / "run") as loop:
        loop.train(1.0, 2.0)
        loop.trace.load_state_dict({"step": 7})
        loop.train(3.0)
    assert seen(tmp_path / "run") == [(0, 0, 1.0), (0, 1, 2.0), (0, 7, 3.0)]


def test_a_resumed_and_restored_run_is_one_attempt(tmp_path: Path) -> None:
    """To restore right after resuming begins no attempt of its own, and the next one goes on where this one ended."""
    with training(tmp_path / "run") as loop:
        loop.train(*range(6))
    with training(tmp_path / "run", resume=True) as loop:
        assert loop.step == 6
        loop.trace.load_state_dict({"step": 2})
        loop.train(12.0, 13.0)
    with training(tmp_path / "run", resume=True) as loop:
        assert loop.step == 4
        loop.train(24.0)
    assert seen(tmp_path / "run") == [(0, 0, 0.0), (0, 1, 1.0), (1, 2, 12.0), (1, 3, 13.0), (2, 4, 24.0)]


@pytest.mark.parametrize("step", [6, 9])
def test_a_clean_resume_is_one_note(step: int, tmp_path: Path) -> None:
    """A job that goes on from its checkpoint where the log ends, or a little later, has begun again once."""
    with training(tmp_path / "run") as loop:
        loop.train(*range(6))
    with training(tmp_path / "run", resume=True) as loop:
        loop.trace.load_state_dict({"step": step})
        loop.train(6.0)
    kinds = tracer.scan(tmp_path / "run", "events").filter(pl.col("kind").is_in(BEGINNINGS)).collect()["kind"].to_list()
    assert kinds == (["resumed"] if step == 6 else ["resumed", "restored"])
    monitor = FindingsMonitor(tmp_path / "run")
    monitor.refresh()
    told = [each for each in monitor.findings if each.kind in BEGINNINGS]
    assert [(each.kind, each.steps) for each in told] == [(kinds[-1], (step,))]
    assert seen(tmp_path / "run")[-1] == (1, step, 6.0)


def test_a_step_made_before_the_checkpoint_is_restored_is_told_apart(tmp_path: Path) -> None:
    """A resumed run that has a gradient of its step, or a metric, and then restores its checkpoint, makes it again."""
    with training(tmp_path / "run") as loop:
        loop.train(*range(6))
    with training(tmp_path / "run", resume=True) as loop:
        loop.train(1.0)
        loop.trace.load_state_dict({"step": 6})
        loop.train(2.0)
    assert [step for step, _, _ in events(tmp_path / "run", "restored")] == [6]
    assert seen(tmp_path / "run", attempts="all")[-2:] == [(1, 6, 1.0), (2, 6, 2.0)]


def test_folded_rows_do_not_mix_attempts(tmp_path: Path) -> None:
    """A row that is half full when a checkpoint is restored ends there; the new attempt's begins there."""
    with training(tmp_path / "run", fold=4) as loop:
        loop.train(*range(7))
        loop.trace.load_state_dict({"step": 5})
        loop.train(*range(15, 20))
    found = tracer.scan(tmp_path / "run", attempts="all").select("attempt", "step", "span", "grad_min", "grad_max")
    assert sorted(found.collect().rows()) == [
        (0, 3, 4, 0.0, 3.0), (0, 6, 3, 4.0, 6.0), (1, 7, 3, 15.0, 17.0), (1, 9, 2, 18.0, 19.0)
    ]  # fmt: skip
    assert [row[:2] for row in seen(tmp_path / "run")] == [(0, 3), (1, 7), (1, 9)]


def test_folded_rows_wait_for_their_own_attempts_steps(tmp_path: Path, daemons: Daemons) -> None:
    """While the run goes on, what an abandoned attempt left is published, and a new row is, as ever, whole."""
    with training(tmp_path / "run", fold=4) as loop:
        loop.train(*range(7))
        loop.trace.load_state_dict({"step": 0})
        loop.train(*range(10, 13))
        daemons.publish()
        rows = tracer.scan(tmp_path / "run", attempts="all").select("attempt", "step", "span").collect().rows()
        assert sorted(rows) == [(0, 3, 4), (0, 6, 3)]


def test_a_budget_goes_on_after_a_restore(tmp_path: Path) -> None:
    """Steps stay exact, and what is measured is among them."""
    with training(tmp_path / "run", budget=0.5, every=2) as loop:
        loop.train(*range(50))
        loop.trace.load_state_dict({"step": 7})
        loop.train(*range(107, 160))
        assert loop.step == 60
    found = seen(tmp_path / "run")
    assert all(number == step + 100 for attempt, step, number in found if attempt)
    assert {attempt for attempt, _, _ in found} == {0, 1}


def test_histograms_and_snapshots_belong_to_their_attempt(tmp_path: Path) -> None:
    """A histogram that is due again after a restore is made again, and the abandoned one is left out."""
    with training(tmp_path / "run", stats="histogram", histogram_every=4) as loop:
        loop.train(*range(1, 7))
        loop.trace.snapshot()
        loop.trace.load_state_dict({"step": 4})
        loop.train(15.0)
    rows = tracer.scan(tmp_path / "run", "histograms").filter(pl.col("of") == "grad").select("attempt", "step", "high")
    assert sorted(rows.collect().rows()) == [(0, 0, 1.0), (1, 4, 15.0)]


def test_a_scaler_goes_on_after_a_restore(tmp_path: Path) -> None:
    """Scale and skip of each step are logged under its attempt, also of a step that was skipped and left."""
    scaler = GradScaler("cpu", init_scale=2.0)
    with training(tmp_path / "run", scaler=scaler) as loop:

        def train(*gradients: float) -> None:
            for gradient in gradients:
                loop.optimizer.zero_grad()
                scaler.scale(loop.model(torch.tensor([gradient])).sum()).backward()
                scaler.step(loop.optimizer)
                scaler.update()

        train(1.0)
        saved = scaler.state_dict()
        train(2.0, float("inf"))
        loop.trace.load_state_dict({"step": 1})
        scaler.load_state_dict(saved)
        train(3.0, 4.0)
    assert seen(tmp_path / "run") == [(0, 0, 1.0), (1, 1, 3.0), (1, 2, 4.0)]
    skipped = tracer.scan(tmp_path / "run", "metrics", attempts="all").filter(pl.col("name") == "skipped")
    found = skipped.select("attempt", "step", "value").collect().rows()
    assert sorted(found) == [(0, 0, 0.0), (0, 1, 0.0), (0, 2, 1.0), (1, 1, 0.0), (1, 2, 0.0)]


def test_what_a_row_holds_after_a_restore_is_the_models_own(tmp_path: Path) -> None:
    """With weights and optimizer restored, the repeated steps are recorded as the first time, bit by bit."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", applied=True, stats="norm") as trace:
        for step in range(8):
            if step == 2:
                checkpoint = copy.deepcopy((model.state_dict(), optimizer.state_dict(), trace.state_dict()))
            if step == 5:
                model.load_state_dict(checkpoint[0])
                optimizer.load_state_dict(checkpoint[1])
                trace.load_state_dict(checkpoint[2])
            torch.manual_seed(step if step < 5 else step - 3)
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
    rows = tracer.scan(tmp_path / "run", attempts="all").drop("time").sort("step", "param").collect()
    both = [rows.filter((pl.col("attempt") == attempt) & (pl.col("step") >= 2)).drop("attempt") for attempt in (0, 1)]
    assert both[0].height == 3 * 4
    assert both[0].equals(both[1])


# How rows come into the log


@pytest.mark.usefixtures("daemons")
def test_rows_that_wait_keep_the_attempt_in_which_they_were_made(tmp_path: Path) -> None:
    """Rows of three attempts that are published together, in one part, are told apart."""
    with training(tmp_path / "run") as loop:
        for attempt in range(3):
            loop.trace.load_state_dict({"step": 1})
            loop.train(attempt)
            loop.trace.log(loss=attempt)
    assert len(list((tmp_path / "run" / "extremes").iterdir())) == 1
    expected = [(0, 1, 0.0), (1, 1, 1.0), (2, 1, 2.0)]
    assert seen(tmp_path / "run", attempts="all") == seen(tmp_path / "run", "metrics", attempts="all") == expected
    rows = tracer.scan(tmp_path / "run", "events").select("kind", "attempt").filter(pl.col("kind") != "order")
    expected_events = [("attached", 0), ("restored", 0), ("restored", 1), ("restored", 2), ("closed", 2)]
    assert rows.collect().rows() == expected_events


def test_an_end_between_two_tables_leaves_no_row_of_an_unknown_attempt(
    tmp_path: Path, daemons: Daemons, disk: Disk
) -> None:
    """After whatever part nothing more is published, the log knows where each attempt begins of which it has rows."""
    parts_left = 0

    def replace(source: Path, target: Path) -> None:
        nonlocal parts_left
        parts_left -= 1
        if parts_left < 0:
            raise OSError(5, "Input/output error")
        os.replace(source, target)

    for survived in range(4):
        run = tmp_path / str(survived)
        with training(run, stats="histogram", activations=True) as loop:
            loop.train(1.0, 2.0, 3.0)
            daemons.publish()
            loop.trace.load_state_dict({"step": 1})
            loop.train(4.0, 5.0)
            loop.trace.log(loss=5.0)
            parts_left, disk.replace = survived, replace
            with pytest.warns(tracer.TracerWarning, match="Input/output error"):
                daemons.publish()
            disk.replace = os.replace
            attempts = {
                table: set(tracer.scan(run, table, attempts="all").select("attempt").collect()["attempt"])
                for table in ("extremes", "metrics", "events", "histograms", "activations")
            }
            assert set().union(*attempts.values()) == attempts["events"] == ({0, 1} if survived else {0})


# Runs that were killed


SCRIPT = """
import sys, time, torch, tracer
from torch import nn

path, checkpoint, first, last, gradient = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
model = nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
with tracer.attach(model, path, resume=True) as trace:
    if first:
        trace.load_state_dict(torch.load(checkpoint)["trace"])
    for step in range(first, last):
        optimizer.zero_grad()
        model(torch.full((1, 2), float(gradient if step >= 1000 else 1))).sum().backward()
        optimizer.step()
        trace.log(loss=gradient if step >= 1000 else 1)
        if step == 999:
            torch.save({"trace": trace.state_dict()}, checkpoint)
    print("done", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def process(folder: Path, first: int, last: int, gradient: int) -> Iterator["subprocess.Popen[str]"]:
    """A training from a step to another, which then waits for a word; from step 1,000 on its gradient is this one."""
    arguments = [folder / "run", folder / "checkpoint.pt", first, last, gradient]
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


LOOKS = (ViewOptions(), ViewOptions(View.LAYERS), ViewOptions(View.PARAM, param="weight"))
OLD, NEW = 1000.0, 2.0


def gradients(snapshot: Snapshot) -> set[float]:
    """Which gradients a snapshot shows anywhere, beside those of the first 1,000 steps."""
    found: set[float | None] = set()
    if snapshot.extremes is not None:
        found |= set(snapshot.extremes.statistics["grad_max"])
    if snapshot.layers is not None:
        found |= set(snapshot.layers.magnitudes.flatten().tolist())
    for curve in snapshot.curves:
        found |= {*curve.high, curve.newest}
    return {number for number in found if number in (OLD, NEW)}


@pytest.mark.slow
def test_a_run_restored_after_a_crash_shows_nothing_of_what_it_abandoned(tmp_path: Path) -> None:
    """Killed at step 1,200 and restored at 1,000, it ends at 1,050 in every view; none ever shows both branches."""
    run = tmp_path / "run"
    lives = [Live(run, look) for look in LOOKS]

    def all_at(step: int) -> bool:
        snapshots = [shown(live) for live in lives] if run.exists() and (run / "run.json").exists() else []
        for snapshot in snapshots:
            assert len(gradients(snapshot)) < 2, "rows of both branches"
            if OLD in gradients(snapshot):
                assert snapshot.last_step is not None
                assert snapshot.last_step >= 1000
        # Of the step under way there are metrics, and extremes once it is over.
        return bool(snapshots) and all(snapshot.last_step in (step - 1, step) for snapshot in snapshots)

    try:
        with process(tmp_path, 0, 1200, int(OLD)) as running:
            wait_until(lambda: all_at(1199))
            running.send_signal(signal.SIGKILL)
            running.wait()
        assert [gradients(shown(live)) for live in lives] == [{OLD}] * 3
        with process(tmp_path, 1000, 1050, int(NEW)) as running:
            wait_until(lambda: all_at(1049))
            assert running.stdin is not None
            running.stdin.write("\n")
            running.stdin.flush()
            assert running.wait(60) == 0
        again = [Live(run, look) for look in LOOKS]
        try:
            for live in (*lives, *again):
                snapshot = shown(live)
                assert (snapshot.last_step, snapshot.state, snapshot.problems) == (1049, "closed", ())
                assert gradients(snapshot) == {NEW}
        finally:
            for live in again:
                live.close()
    finally:
        for live in lives:
            live.close()
    for name in View.OVERVIEW, View.PARAM:
        drawn = viewer.figure(run, view=name, param="weight")
        reached = [np.asarray(line.get_xdata(), dtype=float) for axes in drawn.axes for line in axes.lines]
        assert {max(steps) for steps in reached if len(steps) > 2} == {1049}
    code, said, errors = view(tmp_path, run, "--text")
    assert (code, errors) == (0, "")
    assert "step 1,049" in said
    assert "loss 2" in said
    assert "1,199" not in said
    assert [number for _, step, number in seen(run, "metrics") if step >= 1000] == [NEW] * 50
    kept = [number for _, step, number in seen(run, "metrics", attempts="all") if step >= 1000]
    assert sorted(kept) == [NEW] * 50 + [OLD] * 200


def test_a_run_goes_on_on_another_machine(tmp_path: Path) -> None:
    """Copied elsewhere with a heartbeat of where it was, restored there, and read there: as if it had stayed."""
    with training(tmp_path / "run") as loop:
        loop.train(*range(5))
        state = loop.trace.state_dict()
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "run", moved)
    (moved / "closed-r00000.json").unlink()
    (moved / "heartbeat-r00000").write_text("node-7 4711\n")
    os.utime(moved / "heartbeat-r00000", (0, 0))
    with training(moved, resume=True) as loop:
        loop.trace.load_state_dict(state)
        loop.train(*range(5, 8))
    assert [row[1:] for row in seen(moved)] == [(step, step) for step in range(8)]


@pytest.mark.parametrize("restored", [None, 2])
@pytest.mark.parametrize("first", [0, 1])
def test_ranks_resume_at_the_same_step_whoever_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, restored: int | None
) -> None:
    """After a crash each rank resumes after the last step of any, although the other has gone on or back by then."""
    run = new_run(tmp_path / "run")
    for rank, steps in ((0, 4), (1, 9)):
        publish_next(run, "extremes", extremes(range(steps), rank=rank), rank)
        (run / f"heartbeat-r{rank:05d}").write_text("")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (first, 1 - first):
        monkeypatch.setenv("RANK", str(rank))
        with training(run, resume=True) as loop:
            assert loop.step == 9
            if restored is not None:
                loop.trace.load_state_dict({"step": restored})
            loop.train(1.0, 2.0, 3.0)
    found = tracer.scan(run).filter(pl.col("attempt") == 1).select("rank", "step").collect()
    begin = 9 if restored is None else restored
    assert sorted(found.rows()) == [(rank, begin + number) for rank in (0, 1) for number in range(3)]


@pytest.mark.parametrize("every", [1, 10])
def test_ranks_that_went_back_resume_together_whatever_each_has_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """One rank logs each step, another one logs nothing, and measures few: both have begun the same attempts."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        with training(tmp_path / "run", every=every) as loop:
            for number in range(18):
                if number == 8:
                    loop.trace.load_state_dict({"step": 5})
                loop.train(float(number))
                loop.trace.log(**({"loss": 1.0} if rank == 0 else {}))
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        with training(tmp_path / "run", every=every, resume=True) as loop:
            assert loop.step == 15


RESUMING = """
import sys, torch, tracer

for attempt in range(3):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, sys.argv[1], resume=True) as trace:
        assert trace.state_dict() == {"step": attempt}
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        trace.log(loss=1.0)
print([name for name in sys.modules if "polars" in name])
"""


def test_a_training_that_is_resumed_uses_no_polars(tmp_path: Path) -> None:
    """The threads of polars hang in a worker that is forked once they run, so no process that trains begins them."""
    command = [sys.executable, "-c", RESUMING, str(tmp_path / "run")]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    assert ended.stdout == "[]\n"


def test_a_branch_that_was_abandoned_is_not_resumed(tmp_path: Path) -> None:
    """After a restore the run goes on after the last step that counts, even where the restored branch has none."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes(range(9)))
    publish_next(run, "events", events_at([3], "restored", attempt=1))
    (run / "heartbeat-r00000").unlink()
    with training(run, resume=True) as loop:
        assert loop.step == 3
        loop.train(1.0)
    assert seen(run, attempts="all")[-1] == (2, 3, 1.0)


# Any sequence of all that


class Model:
    """What ought to be in the log of a loop, by a plain account of what was done."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.rows: dict[tuple[int, int], float] = {}
        self.logged: Seen = []
        self.begins: dict[int, int] = {}
        self.attempt = self.step = self.current = 0
        self.recorded = -1

    def begin(self, step: int) -> None:
        """The attempt begins, or goes to this step."""
        self.begins[self.attempt] = min(step, self.begins.get(self.attempt, step))
        self.step = self.current = step

    def record(self, number: float, done: bool) -> None:
        """A gradient of the step under way, and perhaps its update."""
        self.current = self.step
        if self.step % self.every == 0:
            self.recorded = self.step
            self.rows[self.attempt, self.step] = number
        self.step += done

    def log(self, number: float) -> None:
        """A metric."""
        self.recorded = max(self.recorded, self.current)
        self.logged.append((self.attempt, self.current, number))

    def restore(self, step: int) -> None:
        """A checkpoint of this step: another attempt, if this one has been through it, recorded or not."""
        went_back = step < self.step and self.begins.get(self.attempt, 0) < self.step
        if went_back or step <= self.recorded:
            self.attempt, self.recorded = self.attempt + 1, -1
        self.begin(step)

    def resume(self, attempt: int, step: int) -> None:
        """What was known of attempts that left nothing is forgotten, and another one begins."""
        self.begins = {known: at for known, at in self.begins.items() if known < attempt}
        self.attempt, self.recorded = attempt, -1
        self.begin(step)

    def latest(self, rows: Seen) -> Seen:
        """Those of these rows that no later attempt has abandoned."""
        return [
            (attempt, step, number)
            for attempt, step, number in rows
            if not any(later > attempt and at <= step for later, at in self.begins.items())
        ]


class Story:
    """A training to which things happen, beside its model; every number that is recorded is another."""

    def __init__(self, folder: Path, every: int, daemons: Daemons) -> None:
        self.daemons = daemons
        self.run = folder / "run"
        self.every = every
        self.model = Model(every)
        self.loop = Loop(self.run, every=every)
        self.lives = [Live(self.run), Live(self.run, ViewOptions(View.PARAM, param="weight"))]
        self.saved = [0]
        self.numbers = 0

    def number(self) -> float:
        """One that was never given before."""
        self.numbers += 1
        return float(self.numbers)

    def train(self, count: int) -> None:
        """Some steps."""
        for _ in range(count):
            number = self.number()
            self.loop.train(number)
            self.model.record(number, done=True)

    def backward(self, _: int) -> None:
        """Gradients without an update."""
        number = self.number()
        self.loop.backward(number)
        self.model.record(number, done=False)

    def log(self, _: int) -> None:
        """A metric."""
        number = self.number()
        self.loop.trace.log(loss=number)
        self.model.log(number)

    def save(self, _: int) -> None:
        """A checkpoint."""
        self.saved.append(self.loop.step)
        assert self.loop.step == self.model.step

    def restore(self, which: int) -> None:
        """To one of the last checkpoints."""
        step = self.saved[-1 - which % len(self.saved)]
        self.loop.trace.load_state_dict({"step": step})
        self.model.restore(step)

    def publish(self, _: int) -> None:
        """What waits comes into the log."""
        self.daemons.publish()
        self.check()

    def crash(self, _: int) -> None:
        """The process dies: what was not published is lost."""
        killed = self.run.with_name("killed")
        shutil.copytree(self.run, killed)
        self.loop.trace.close()
        shutil.rmtree(self.run)
        killed.rename(self.run)
        (self.run / "heartbeat-r00000").unlink()
        self.go_on()

    def close(self, _: int) -> None:
        """The training ends, and goes on."""
        self.loop.trace.close()
        self.check(everything=True)
        self.go_on()

    def go_on(self) -> None:
        """With the checkpoints that there are."""
        rows, logged = (seen(self.run, table, attempts="all") for table in ("extremes", "metrics"))
        self.model.rows = {key: number for key, number in self.model.rows.items() if (*key, number) in rows}
        self.model.logged = [row for row in self.model.logged if row in logged]
        attempts = tracer.scan(self.run, "events").select("attempt").collect()["attempt"].to_list()
        attempt = max(attempts, default=0) + 1
        self.model.begins = {known: at for known, at in self.model.begins.items() if known < attempt}
        # The tracer itself logs the learning rate, at the first step of each attempt.
        rates = tracer.scan(self.run, "metrics", attempts="all").filter(pl.col("name") == "lr")
        known = rows + logged + rates.select("attempt", "step", "value").collect().rows()
        step = max((row[1] + 1 for row in self.model.latest(known)), default=0)
        self.loop = Loop(self.run, every=self.every, resume=True)
        self.model.resume(attempt, step)
        assert self.loop.step == step

    def check(self, everything: bool = False) -> None:
        """The log has nothing but what was done, and every reader shows of it what is to be seen."""
        rows, logged = (seen(self.run, table, attempts="all") for table in ("extremes", "metrics"))
        assert set(rows) <= {(*key, number) for key, number in self.model.rows.items()}
        assert len({row[:2] for row in rows}) == len(rows)
        assert logged == sorted(self.model.logged)
        if everything:
            assert len(rows) == len(self.model.rows)
        expected, metrics = self.model.latest(rows), self.model.latest(logged)
        assert (seen(self.run), seen(self.run, "metrics")) == (expected, metrics)
        by_step = {step: number for _, step, number in expected}
        for live in self.lives:
            snapshot = shown(live)
            found = snapshot.extremes
            drawn = {} if found is None else dict(zip(found.step, found.statistics["grad_max"], strict=True))
            assert drawn == by_step
            if live is self.lives[0]:
                curves: dict[int, float] = {}
                for curve in snapshot.curves:
                    if curve.name not in ("discarded", "lr"):
                        curves |= dict(zip(curve.step, curve.mean, strict=True))
                by_metric: dict[int, list[float]] = {}
                for _, step, number in metrics:
                    by_metric.setdefault(step, []).append(number)
                assert curves == {step: sum(numbers) / len(numbers) for step, numbers in by_metric.items()}

    def end(self) -> None:
        """Close everything."""
        self.loop.trace.close()
        self.check(everything=True)
        for live in self.lives:
            live.close()


ACTIONS: Sequence[Callable[[Story, int], None]] = (
    Story.train, Story.train, Story.backward, Story.log, Story.save, Story.restore, Story.publish, Story.crash,
    Story.close,
)  # fmt: skip
DEEDS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(1, 4)), max_size=25)


def test_another_models_run_is_warned_of(tmp_path: Path) -> None:
    """Where most parameters are new to the run, its path may be wrong; a model that merely grew may go on."""
    with tracer.attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), tmp_path / "run"):
        pass
    with tracer.attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 2)), tmp_path / "run", resume=True):
        pass
    with (
        pytest.warns(tracer.TracerWarning, match="was begun with another model: it knows 0 of these 2 parameters"),
        tracer.attach(nn.Linear(3, 2), tmp_path / "run", resume=True),
    ):
        pass


@pytest.mark.slow
@settings(max_examples=often(25, 250))
@example(2, [(Story.train, 1), (Story.close, 1), (Story.train, 1), (Story.restore, 1), (Story.train, 1)])
@example(2, [(Story.train, 1), (Story.close, 1), (Story.train, 1), (Story.close, 1)])
@given(every=st.integers(1, 2), deeds=DEEDS)
def test_whatever_happens_readers_show_the_latest_branch(
    every: int, deeds: list[tuple[Callable[[Story, int], None], int]]
) -> None:
    """Through any training, saving, restoring, dying and going on, scan and viewer show what a plain account says."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # Some of these loops never update.
        warnings.filterwarnings("ignore", "gradwatch: several backwards", tracer.TracerWarning)
        story = Story(Path(folder), every, Daemons(patch))
        try:
            for deed, number in deeds:
                deed(story, number)
            story.end()
        finally:
            # The clock of its daemon stands still: without the folder, and after this block, it would never end.
            story.loop.trace.close()


def test_a_later_versions_run_is_resumed(tmp_path: Path) -> None:
    """Steps of another width count."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes([2]))
    publish_next(run, "extremes", LATER["step int32"])
    publish_next(run, "extremes", LATER["attempt uint8"])
    close_run(run, 5)
    with tracer.attach(nn.Linear(2, 2), run, resume=True) as trace:
        assert trace.state_dict() == {"step": 6}


def test_a_training_that_is_resumed_says_where(tmp_path: Path) -> None:
    """A real one that ended behind its checkpoint goes on from there; resumed without one, behind its last step."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for begin, end in ((0, 30), (20, 40), (40, 50)):
        with tracer.attach(model, tmp_path / "run", resume=True) as trace:
            if begin == 20:
                trace.load_state_dict({"step": begin})
            for _ in range(begin, end):
                optimizer.zero_grad()
                loss_of(model).backward()
                optimizer.step()
    monitor = FindingsMonitor(tmp_path / "run")
    monitor.refresh()
    assert [(each.kind, each.steps) for each in monitor.findings] == [("restored", (20,)), ("resumed", (40,))]
    assert "step 30 -> step 20" in monitor.findings[0].sentence
