"""Nothing raises into training after ``attach`` returned: every call that the tracer makes fails once, one by one."""

import io
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tests.faults.injection import Faults, FaultyOs, faulty_torch, impatient, weights
from tests.torture import often
from tests.training import events, loss_of, mlp
from tests.waiting import wait_until
from tracer import updates
from tracer.items import HostCopy
from tracer.log import schema
from tracer.log.parts import all_parts, damage
from tracer.log.ranks import closed_summaries
from tracer.log.read import rows_lost
from tracer.log.store import Local as Path
from tracer.rows import RowBuffer
from tracer.trace import _open
from tracer.warn import warn

pytestmark = pytest.mark.slow

Figures = Callable[..., None]
STEPS = 3
EVERYTHING: dict[str, Any] = {
    "stats": ("mean", "std", "norm", "absmax", "zeros", "nonfinite", "histogram"),
    "histogram_every": 1,
    "applied": True,
    "activations": True,
    "total_steps": 1000,
}
KEYS = {
    "extremes": ("step", "param"),
    "metrics": ("step", "name"),
    "histograms": ("step", "param", "of"),
    "activations": ("step", "module", "training"),
}
Row = dict[str, Any]


def train(model: nn.Module, trace: tracer.Trace | None = None, midway: Callable[[], None] = lambda: None) -> None:
    """A few steps, whatever else happens; what is logged in each is its number."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        if trace is not None:
            trace.log(number=float(step), tensor=torch.tensor(step))
            if step == STEPS // 2:
                if trace._settings.measures.histogram:
                    trace.snapshot()
                midway()


def rows(path: Path) -> dict[str, dict[tuple[Any, ...], list[Row]]]:
    """What is in a log, by table and key; events aside."""
    found: dict[str, dict[tuple[Any, ...], list[Row]]] = {table: {} for table in KEYS}
    for table, key in KEYS.items():
        if not published(path, table):
            continue
        for row in tracer.scan(path, table).drop("time").collect().iter_rows(named=True):
            found[table].setdefault(tuple(row[name] for name in key), []).append(row)
    return found


@dataclass
class Outcome:
    """What came of a training with faults."""

    faults: Faults
    path: Path
    attached: bool
    warned: list[str] = field(default_factory=list)

    @property
    def dropped(self) -> dict[str, int]:
        """How many rows the closed mark says were lost."""
        (summary,) = closed_summaries(self.path)
        return dict(summary["rows_dropped"])


class Case:
    """A training that is repeated with one fault after the other.

    Args:
        folder: Where its runs go.
        options: What is given to ``attach``.
        figures: Counts what is done.
    """

    def __init__(self, folder: Path, options: dict[str, Any], figures: Figures) -> None:
        self._folder = folder
        self._options = options
        self._figures = figures
        torch.manual_seed(0)
        self._model = mlp()
        plain = self.model()
        train(plain)
        self._weights = weights(plain)
        clean = self.run(Faults(0, False, OSError), lambda faults: ExitStack())
        self.truth = rows(clean.path)
        assert not clean.warned
        assert set(clean.dropped.values()) == {0}

    def model(self) -> nn.Module:
        """The model before the training."""
        model = mlp()
        model.load_state_dict(self._model.state_dict())
        return model

    def run(self, faults: Faults, inject: Callable[[Faults], AbstractContextManager[object]]) -> Outcome:
        """Train with these faults; whatever they are, the training is as without a trace, and nothing is left."""
        path = self._folder / f"run-{len(list(self._folder.iterdir()))}"
        model = self.model()
        before = threading.active_count()
        with warnings.catch_warnings(record=True) as caught, pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("always", tracer.TracerWarning)
            # What fails once is never to be given up, however slow the machine is.
            impatient(patch, 0.05 if faults.lasting else 4.0)
            with inject(faults):
                try:
                    trace = tracer.attach(model, path, **self._options)
                except (tracer.LogError, InjectedError):
                    trace = None
                train(model, trace, lambda: wait_until(lambda: bool(faults.failed) or published(path)))
                if trace is not None:
                    trace.close()
            faults.armed = False
        changed = weights(model) != self._weights
        self._figures(trainings=1, calls_that_failed=len(faults.failed), trainings_changed=changed)
        assert not changed, faults.failed
        assert threading.active_count() == before, faults.failed
        assert not _open, faults.failed
        assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters()), faults.failed
        assert not updates.reports, faults.failed
        assert not nn.modules.module._global_forward_hooks, faults.failed
        assert {warning.category for warning in caught} <= {tracer.TracerWarning}, faults.failed
        return Outcome(faults, path, trace is not None, [str(warning.message) for warning in caught])

    def one_by_one(
        self,
        faults: Callable[[int], Faults],
        inject: Callable[[Faults], AbstractContextManager[object]],
        stride: int = 1,
    ) -> Iterator[Outcome]:
        """Let the first call fail, then the second, … until there is none left that could."""
        for first in count(1, stride):
            outcome = self.run(faults(first), inject)
            if not outcome.faults.failed:
                assert first > 1, "nothing was injected"
                return
            if outcome.attached:
                yield outcome


class InjectedError(RuntimeError):
    """What a failing operation of torch raises."""


def published(path: Path, table: str = "extremes") -> bool:
    """Whether some of a run's rows of a table are in the log."""
    return (path / table).is_dir() and any((path / table).iterdir())


def broken_disk(
    concerns: Callable[[tuple[Any, ...]], bool] = lambda args: True,
) -> Callable[[Faults], AbstractContextManager[object]]:
    """Has the calls of the log's one seam to the disk fail."""

    def inject(faults: Faults) -> AbstractContextManager[object]:
        context = pytest.MonkeyPatch.context()
        stack = ExitStack()
        stack.enter_context(context).setattr("tracer.log.store.os", FaultyOs(faults, concerns))
        return stack

    return inject


def no_space() -> OSError:
    """What a full disk says."""
    return OSError(28, "No space left on device")


def assert_true(found: dict[str, dict[tuple[Any, ...], list[Row]]], truth: Any, note: object) -> None:
    """A log has no row twice and none that is not in the truth; of its numbers some may be missing, and are null."""
    for table, by_key in found.items():
        for key, alike in by_key.items():
            true = list(truth[table].get(key, []))
            for row in alike:
                like = [each for each in true if all(value in (None, each[name]) for name, value in row.items())]
                assert like, (table, key, row, note)
                true.remove(like[0])


def missing_rows(found: dict[str, dict[tuple[Any, ...], list[Row]]], truth: Any) -> dict[str, int]:
    """How many rows each table lacks."""
    return {table: sum(map(len, true.values())) - sum(map(len, found[table].values())) for table, true in truth.items()}


def assert_sound(path: Path) -> None:
    """Every part in a log is complete."""
    for table in schema.TABLES:
        for part in all_parts(path, table):
            assert damage(part) is None


def kinds(warned: list[str]) -> Counter[str]:
    """How often each trouble was warned of."""
    known = (
        "cannot be written",
        "not take them in time",
        "did not give them",
        "activations of",
        "the last activations",
        "the extremes of step",
        "is no longer traced",
    )
    return Counter(next(words for words in known if words in message) for message in warned)


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done"])
def test_a_call_to_the_disk_that_fails_once_costs_no_row(done: bool, tmp_path: Path, figures: Figures) -> None:
    """Whichever it is, and whether or not it had done its work: one warning at most, and each row is there once."""
    case = Case(tmp_path, {}, figures)
    stride = often(5 if done else 3, 1)
    for outcome in case.one_by_one(lambda first: Faults(first, False, no_space, done), broken_disk(), stride):
        note, found = outcome.faults.failed, rows(outcome.path)
        figures(rows_lost_beyond_the_promise=sum(missing_rows(found, case.truth).values()))
        assert found == case.truth, note
        assert set(outcome.dropped.values()) == {0}, note
        assert set(kinds(outcome.warned)) <= {"cannot be written"}, note
        assert len(outcome.warned) <= 1, note
        assert_sound(outcome.path)


def test_a_disk_that_fails_for_good_leaves_what_it_took(tmp_path: Path, figures: Figures) -> None:
    """From whichever call on: what was published before is there once, and is complete; two warnings at most."""
    case = Case(tmp_path, {}, figures)
    stride = often(5, 1)
    for outcome in case.one_by_one(lambda first: Faults(first, True, no_space), broken_disk(), stride):
        note = outcome.faults.failed[0]
        found = rows(outcome.path)
        assert_true(found, case.truth, note)
        assert_sound(outcome.path)
        assert set(kinds(outcome.warned)) <= {"cannot be written", "not take them in time"}, note
        assert set(kinds(outcome.warned).values()) <= {1}, note


@pytest.mark.smoke
@pytest.mark.parametrize("table", ["extremes", "metrics"])
def test_what_one_table_lost_is_counted_to_the_row(table: str, tmp_path: Path, figures: Figures) -> None:
    """Where a table's folder takes nothing from some call on, mark and events say just how many rows are missing."""
    case = Case(tmp_path, {}, figures)
    places = (f"/{table}/", f"/staging/{table}-")

    def concerns(args: tuple[Any, ...]) -> bool:
        return any(place in str(argument) for argument in args for place in places)

    outcomes = 0
    for outcome in case.one_by_one(lambda first: Faults(first, True, no_space), broken_disk(concerns)):
        note = outcome.faults.failed[0]
        found = rows(outcome.path)
        assert_true(found, case.truth, note)
        lost = missing_rows(found, case.truth)
        missing = {name: lost[name] for name in ("extremes", "metrics")}
        uncounted = sum(missing.values()) - sum(outcome.dropped.values())
        figures(rows_lost_and_counted=sum(missing.values()) - uncounted, rows_lost_beyond_the_promise=uncounted)
        assert outcome.dropped == {**missing, "discarded": 0, "events": 0}, note
        told = [detail for _, _, detail in events(outcome.path, "dropped")]
        assert list(map(rows_lost, told)) == [{table: missing[table]}] * bool(missing[table]), note
        outcomes += bool(missing[table])
    assert outcomes


@pytest.mark.parametrize(
    ("options", "stride"),
    [({}, 1), ({"stats": ("mean", "norm"), "applied": True}, 7), ({"budget": 0.01}, 3), (EVERYTHING, 41)],
    ids=["default", "stats", "budget", "everything"],
)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for good"])
def test_an_operation_that_fails_costs_what_it_was_for(
    lasting: bool, options: dict[str, Any], stride: int, tmp_path: Path, figures: Figures
) -> None:
    """Whichever operation of torch fails, what the log lacks for it, an event names; metrics are all there."""
    case = Case(tmp_path, options, figures)
    stride = often(stride, 1) * (3 if lasting else 1)
    for outcome in case.one_by_one(lambda first: Faults(first, lasting, InjectedError), faulty_torch, stride):
        note = outcome.faults.failed[0]
        found = rows(outcome.path)
        assert_true(found, case.truth, note)
        assert set(kinds(outcome.warned).values()) <= {1}, (note, outcome.warned)
        assert [row[0]["value"] for (_, name), row in found["metrics"].items() if name == "number"] == list(
            range(STEPS)
        )
        failed = events(outcome.path, "failed")
        for table, missing in missing_rows(found, case.truth).items():
            if not failed or table == "metrics":
                figures(rows_lost_beyond_the_promise=missing - outcome.dropped.get(table, 0))
                assert outcome.dropped.get(table, 0) == missing, (note, table)
            assert outcome.dropped.get(table, 0) <= missing, (note, table)
        named = {param for _, param, _ in failed}
        lacking = {key[1] for key, true in case.truth["extremes"].items() if found["extremes"].get(key) != true}
        assert outcome.dropped["extremes"] or None in named or lacking <= named, (note, lacking, named)


def copies(faults: Faults) -> AbstractContextManager[object]:
    """Has every step's rows be copied, as they are from a GPU, and copies to the host fail."""
    stack = ExitStack()
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    make, start = RowBuffer.__init__, HostCopy._start

    def made(self: RowBuffer, *args: Any) -> None:
        make(self, *args)
        self._views = [None] * len(self._views)

    patch.setattr(RowBuffer, "__init__", made)

    def started(copy: HostCopy, tensor: torch.Tensor) -> None:
        # The two extremes with which updates by hand are noticed are no row's.
        if tensor.shape == (2,) and tensor.is_floating_point():
            start(copy, tensor)
        else:
            # On the host, what is copied there would be the tensor itself.
            faults.call("copy", start, (copy, tensor.clone()), {})

    patch.setattr(HostCopy, "_start", started)
    return stack


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "for good"])
def test_a_copy_to_the_host_that_fails_costs_its_rows_alone(lasting: bool, tmp_path: Path, figures: Figures) -> None:
    """Pinned memory that cannot be had: its rows are counted as dropped, in the events as well."""
    case = Case(tmp_path, EVERYTHING, figures)
    for outcome in case.one_by_one(lambda first: Faults(first, lasting, InjectedError), copies):
        found, note = rows(outcome.path), outcome.faults.failed
        assert_true(found, case.truth, note)
        missing = missing_rows(found, case.truth)
        uncounted = sum(missing.values()) - sum(outcome.dropped.values())
        figures(rows_lost_and_counted=sum(missing.values()) - uncounted, rows_lost_beyond_the_promise=uncounted)
        assert outcome.dropped == {**missing, "discarded": 0, "events": 0}
        told = Counter(dict.fromkeys(missing, 0))
        for _, _, detail in events(outcome.path, "dropped"):
            told.update(rows_lost(detail))
        assert dict(told) == missing
        assert not events(outcome.path, "failed")
        assert kinds(outcome.warned) == {"did not give them": 1}
        if not lasting:
            assert sum(map(bool, missing.values())) == 1


def test_a_call_that_fails_while_a_run_is_resumed_raises_a_log_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call to the disk it is: attach raises that alone, or goes on, and the run can be resumed later."""
    run = tmp_path / "run"
    tracer.attach(mlp(), run).close()
    raised = 0
    for first in count(1):
        faults = Faults(first, False, no_space)
        monkeypatch.setattr("tracer.log.store.os", FaultyOs(faults))
        trace = None
        try:
            trace = tracer.attach(mlp(), run, resume=True)
        except tracer.LogError:
            raised += 1
            assert not _open
        faults.armed = False
        if trace is not None:
            trace.close()
            if not faults.failed:
                break
    assert raised > 20
    assert Counter(kind for kind in tracer.scan(run, "events").collect()["kind"])["resumed"] == first - raised


@pytest.mark.smoke
def test_a_thread_that_cannot_start_is_said_by_attach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LogError is raised, and there is neither a hook nor a trace."""

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    model = mlp()
    with pytest.raises(tracer.LogError, match="can't start new thread"):
        tracer.attach(model, tmp_path / "run")
    assert not _open
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_a_warning_that_nobody_takes_never_raises_into_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a program's own way to show warnings fails, it becomes a line on stderr; where that is closed, nothing."""

    def showwarning(*args: object) -> None:
        raise ValueError("I/O operation on closed file")

    monkeypatch.setattr(warnings, "showwarning", showwarning)
    warn("something")
    assert "gradwatch: something" in capsys.readouterr().err
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    warn("something")
