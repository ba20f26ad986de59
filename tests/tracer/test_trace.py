"""The user's handle: what attach accepts and refuses, what log takes, what close leaves behind."""

import copy
import gc
import io
import json
import math
import os
import pickle
import subprocess
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import tracer
from tests.disk import Disk
from tests.logs import new_run
from tests.tracer.test_hooks import hooks_on
from tests.training import assert_rows, by_hand, events, loss_of, metric, mlp, recorded, set_daemons, steps
from tests.waiting import wait_until
from tests.warm import warm
from tracer.log import store
from tracer.log.ranks import rank_states, state
from tracer.log.store import Local as Path
from tracer.rows import RowBuffer
from tracer.settings import Settings


def train(model: nn.Module, trace: tracer.Trace, count: int = 3) -> list[dict[str, dict[str, float | None]]]:
    """Train a little; what each step's rows should be."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        expected.append(by_hand(model))
        optimizer.step()
        trace.log(loss=loss)
    return expected


def test_a_plain_call_and_a_context_manager_do_the_same(tmp_path: Path) -> None:
    """With or without with, close() ends the trace."""
    for name in ("with", "without"):
        model = mlp()
        if name == "with":
            with tracer.attach(model, tmp_path / name) as trace:
                expected = train(model, trace)
        else:
            trace = tracer.attach(model, tmp_path / name)
            expected = train(model, trace)
            trace.close()
        assert trace.path == tmp_path / name
        assert_rows(tmp_path / name, expected)
        assert state(tmp_path / name) == "closed"


def test_attach_says_where_and_how_to_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with the folder and the viewer's command is printed, and nothing else."""
    tracer.attach(mlp(), tmp_path / "run").close()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert f"viewer {tmp_path / 'run'}" in printed.err


def test_without_a_path_the_run_goes_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default folder bears time and model class, and two of the same second do not collide."""
    monkeypatch.chdir(tmp_path)
    paths = []
    for _ in range(3):
        with tracer.attach(mlp()) as trace:
            paths.append(Path(trace.path))
    assert len(set(paths)) == 3
    assert all(path.parent == tmp_path / "runs" and "Sequential" in path.name and path.is_dir() for path in paths)


def test_run_json_describes_model_settings_and_libraries(tmp_path: Path) -> None:
    """run.json names every traced parameter with its aliases, shape, dtype and whether it trains."""
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    with tracer.attach(model, tmp_path / "run", every=5, budget=0.5, stats="norm", applied=True, total_steps=9):
        info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["format"] == 1
    assert info["model"] == "Sequential"
    assert info["settings"] == {
        "every": 5, "budget": 0.5, "fold": 1, "stats": ["min", "max", "norm"], "applied": True, "update": False,
        "update_every": None, "histogram_every": None, "bins": None, "total_steps": 9, "scaler": False,
    }  # fmt: skip
    assert info["versions"]["torch"] == torch.__version__
    described = {parameter["name"]: parameter for parameter in info["params"]}
    assert list(described) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.bias"]
    assert described["0.weight"] == {
        "name": "0.weight", "aliases": ["2.weight"], "shape": [2, 2], "dtype": "float32", "trainable": True
    }  # fmt: skip
    assert described["0.bias"]["trainable"] is False
    assert described["1.weight"]["shape"] is None


def test_params_selects_by_pattern_or_callable(tmp_path: Path) -> None:
    """Only the selected parameters have rows, and the steps are the same."""
    for name, select in (("pattern", r"^2\."), ("callable", lambda name: name.startswith("2."))):
        model = mlp()
        with tracer.attach(model, tmp_path / name, params=select) as trace:
            train(model, trace)
        assert set(recorded(tmp_path / name)) == {
            (step, f"2.{kind}") for step in range(3) for kind in ("weight", "bias")
        }


def test_close_removes_every_hook_and_is_idempotent(tmp_path: Path) -> None:
    """After close(), however often, the model carries no hook, and log and step do nothing."""
    model = mlp()
    trace = tracer.attach(model, tmp_path / "run")
    assert hooks_on(model) == 4
    train(model, trace)
    trace.close()
    trace.close()
    assert hooks_on(model) == 0
    trace.log(loss=1.0)
    trace.step(loss=1.0)
    assert len(metric(tmp_path / "run", "loss")) == 3
    again = tracer.attach(model, tmp_path / "again")
    again.close()


def test_a_closed_trace_keeps_no_model_alive(tmp_path: Path) -> None:
    """Who keeps the trace does not keep the model."""
    model = mlp()
    trace = tracer.attach(model, tmp_path / "run")
    train(model, trace)
    trace.close()
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_an_exception_in_the_with_block_closes_and_is_named(tmp_path: Path) -> None:
    """The user's exception passes, the rows are there, and the log says how the run ended."""
    model = mlp()

    def explode(trace: tracer.Trace) -> None:
        with trace:
            train(model, trace)
            raise FloatingPointError("boom")

    with pytest.raises(FloatingPointError, match="boom"):
        explode(tracer.attach(model, tmp_path / "run"))
    assert steps(tmp_path / "run") == [0, 1, 2]
    assert events(tmp_path / "run", "closed") == [(2, None, "FloatingPointError: boom")]
    closed = json.loads((tmp_path / "run" / "closed-r00000.json").read_text())
    assert closed["last_step"] == 2
    assert closed["reason"] == "FloatingPointError: boom"
    # Of each step its loss, and of the first the learning rate.
    assert closed["rows"] == {"discarded": 0, "extremes": 12, "metrics": 4, "events": 3}
    assert closed["rows_dropped"] == {"discarded": 0, "extremes": 0, "metrics": 0, "events": 0}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (0.5, 0.5),
        (True, 1.0),
        (np.float32(0.25), 0.25),
        (np.bool_(True), 1.0),
        (np.array([3]), 3.0),
        (torch.tensor(2.0), 2.0),
        (torch.tensor([[4]]), 4.0),
        (torch.tensor(1.5, requires_grad=True), 1.5),
        (torch.tensor(True), 1.0),
        (torch.tensor(0.1, dtype=torch.float64), 0.1),
        (torch.tensor(1.0, dtype=torch.bfloat16), 1.0),
        (math.inf, math.inf),
    ],
)
def test_log_takes_numbers_and_one_element_tensors(value: object, expected: float, tmp_path: Path) -> None:
    """Whatever holds one number is recorded as that number."""
    with tracer.attach(mlp(), tmp_path / "run") as trace:
        trace.log(it=value)
    assert metric(tmp_path / "run", "it") == [(0, expected)]


def test_a_nan_metric_is_recorded(tmp_path: Path) -> None:
    """A NaN loss is the news, not an error."""
    with tracer.attach(mlp(), tmp_path / "run") as trace:
        trace.log(loss=torch.tensor(math.nan))
    ((_, loss),) = metric(tmp_path / "run", "loss")
    assert math.isnan(loss)


def test_a_metric_tensor_is_read_at_once(tmp_path: Path) -> None:
    """A tensor that the loop goes on adding to is recorded as it was when it was logged."""
    with tracer.attach(mlp(), tmp_path / "run") as trace:
        total = torch.zeros(())
        for _ in range(3):
            total += 1
            trace.log(total=total)
    assert [value for _, value in metric(tmp_path / "run", "total")] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0.5", r"metric loss='0.5' \(str\)"),
        (None, r"metric loss=None \(NoneType\)"),
        (10**400, r"metric loss=10+ \(int\)"),
        (torch.zeros(3), r"metric loss=a tensor of shape \(3,\) \(Tensor\)"),
        (torch.tensor(1j), r"metric loss=a tensor of shape \(\) \(Tensor\)"),
        (np.zeros(2), r"metric loss=array\(\[0., 0.\]\) \(ndarray\)"),
        ([1.0], r"metric loss=\[1.0\] \(list\)"),
    ],
)
def test_a_metric_that_is_no_number_is_named(value: object, words: str, tmp_path: Path) -> None:
    """The error says which metric it was and what, and nothing of that call is recorded."""
    with tracer.attach(mlp(), tmp_path / "run") as trace:
        with pytest.raises(TypeError, match=words):
            trace.log(fine=1.0, loss=value)
        with pytest.raises(TypeError, match=words):
            trace.step(fine=1.0, loss=value)
    assert tracer.scan(tmp_path / "run", "metrics").collect().is_empty()


@pytest.mark.parametrize("argument", ["every", "fold", "histogram_every", "bins", "total_steps"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True, 2**63])
def test_a_number_that_is_no_positive_integer_is_refused(argument: str, value: Any, tmp_path: Path) -> None:
    """The error names the value, and no folder is made."""
    with pytest.raises(ValueError, match=rf"{argument}=.* must be a whole number, 1 or more"):
        tracer.attach(mlp(), tmp_path / "run", **{argument: value})
    assert not (tmp_path / "run").exists()


def test_any_name_may_be_a_metrics_name(tmp_path: Path) -> None:
    """Names that Python's own calls use are names like any other."""
    with tracer.attach(mlp(), tmp_path / "run") as trace:
        trace.log(**{"self": 1.0, "a name/with $signs$": 2.0})
    assert metric(tmp_path / "run", "self") == [(0, 1.0)]
    assert metric(tmp_path / "run", "a name/with $signs$") == [(0, 2.0)]


def test_a_folder_that_is_being_written_is_refused_to_a_second_trace(tmp_path: Path) -> None:
    """Two traces of one process never share a run, not even with resume=True."""
    with (
        tracer.attach(mlp(), tmp_path / "run"),
        pytest.raises(RuntimeError, match="another model is being traced into"),
    ):
        tracer.attach(mlp(), tmp_path / "run", resume=True)


def test_bad_models_and_selections_leave_no_folder(tmp_path: Path) -> None:
    """What cannot be traced is refused before anything is written."""
    with pytest.raises(TypeError, match=r"needs a torch.nn.Module, and got dict"):
        tracer.attach({}, tmp_path / "run")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no trainable parameter"):
        tracer.attach(nn.ReLU(), tmp_path / "run")
    with pytest.raises(ValueError, match="selects none"):
        tracer.attach(mlp(), tmp_path / "run", params="no such name")
    with pytest.raises(TypeError, match=r"params=\['weight'\] must be a regular expression, or a callable"):
        tracer.attach(mlp(), tmp_path / "run", params=["weight"])  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_holds_a_run_names_all_ways_out(tmp_path: Path) -> None:
    """Another path, resume=True, or overwrite=True; and no call below ``attach`` is shown."""
    tracer.attach(mlp(), tmp_path / "run").close()
    words = r"already holds a run: give another path, or attach with resume=True .*, or with overwrite=True to replace"
    with pytest.raises(tracer.LogError, match=words) as raised:
        tracer.attach(mlp(), tmp_path / "run")
    error = raised.value
    assert (error.__cause__, error.__suppress_context__) == (None, True)
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)][1:] == ["called"]


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """The sentence says that it is a file."""
    (tmp_path / "run").write_text("")
    with pytest.raises(tracer.LogError, match="is a file; give another path"):
        tracer.attach(mlp(), tmp_path / "run")


def test_attaching_twice_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    """A model, or another module that holds one of its parameters, is traced once at a time."""
    model = mlp()
    trace = tracer.attach(model, tmp_path / "one")
    for again in (model, model[0], nn.Sequential(model)):
        with pytest.raises(RuntimeError, match=r"is already traced, into .*one: close that trace first"):
            tracer.attach(again, tmp_path / "two")
    trace.close()
    tracer.attach(model, tmp_path / "two").close()


def test_a_model_that_is_attached_again_closes_its_older_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a path, or into its own, the older trace has ended then, with one note; a wrapper is its model."""

    def slow_for_daemons(descriptor: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.1)
        os.fsync(descriptor)

    monkeypatch.chdir(tmp_path)
    model = mlp()
    first = tracer.attach(model, params="0", every=2)
    first.log(loss=1.0)
    wrapper = nn.Module()
    wrapper.module = model
    disk.fsync = slow_for_daemons
    second = tracer.attach(wrapper)
    assert state(first.path) == "closed"
    assert metric(Path(first.path), "loss") == [(0, 1.0)]
    disk.fsync = os.fsync
    closed = f"gradwatch closed the trace into {first.path}: its model is attached again\n"
    assert capsys.readouterr().err.count(closed) == 1
    loss_of(model).backward()
    second.close()
    assert steps(Path(second.path)) == [0]
    hows: list[dict[str, Any]] = [{"resume": True}, {"overwrite": True}]
    for how in hows:
        third = tracer.attach(model, second.path, **how)
        with pytest.raises(tracer.LogError, match="already holds a run: give another path"):
            tracer.attach(model, second.path)
        with pytest.raises(ValueError, match="selects none"):
            tracer.attach(model, second.path, params="none", **how)
        assert state(second.path) == "running", "what was refused has ended nothing"
        fourth = tracer.attach(model, second.path, **how)
        third.log(loss=2.0)
        fourth.log(loss=3.0)
        fourth.close()
        assert [value for _, value in metric(Path(second.path), "loss")] == [3.0]


def test_close_ends_every_trace(tmp_path: Path) -> None:
    """Also those that nobody has any more, and those whose models are gone."""
    model = mlp()
    tracer.attach(model, tmp_path / "a")
    of_none = tracer.attach(mlp(), tmp_path / "b")
    of_none.log(loss=1.0)
    tracer.close()
    assert [state(tmp_path / name) for name in "ab"] == ["closed", "closed"]
    assert metric(tmp_path / "b", "loss") == [(0, 1.0)]
    tracer.close()


def through_a_file(model: nn.Module) -> nn.Module:
    """The model through torch.save."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    restored: nn.Module = torch.load(file, weights_only=False)
    return restored


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        through_a_file,
        lambda model: AveragedModel(model).module,
    ],
    ids=["deepcopy", "pickle", "torch.save", "AveragedModel"],
)
def test_a_model_that_holds_its_trace_can_be_copied(copied: Callable[[Any], Any], closed: bool, tmp_path: Path) -> None:
    """The copy holds a trace that does nothing, and knows where the training was; the other one goes on."""
    model: Any = mlp()
    # A generator, as an argument of attach that cannot be pickled.
    model.trace = tracer.attach(model, tmp_path / "run", stats=(name for name in ("mean",)))
    model.log = model.trace.log
    expected = train(model, model.trace)
    if closed:
        model.trace.close()
    other = copied(model)
    assert other.trace.state_dict() == {"step": 3}
    train(other, other.trace)
    other.log(loss=0.0)
    other.trace.close()
    if not closed:
        expected += train(model, model.trace)
        model.trace.close()
    assert_rows(tmp_path / "run", expected)
    assert len(metric(tmp_path / "run", "loss")) == len(expected)
    # The copy's trace keeps nobody from tracing it.
    tracer.attach(other, tmp_path / "other").close()


def test_a_copy_takes_and_gives_state_like_any_trace(tmp_path: Path) -> None:
    """A framework that copies what holds a trace and then loads a checkpoint finds its step again when it saves."""
    with tracer.attach(mlp(), tmp_path / "run") as trace:
        other = copy.deepcopy(trace)
    other.load_state_dict({"step": 7})
    assert other.state_dict() == {"step": 7}
    assert pickle.loads(pickle.dumps(other)).state_dict() == {"step": 7}


def test_a_copied_trace_has_no_password_in_it(tmp_path: Path) -> None:
    """A checkpoint that holds a model and its trace is given to others."""
    place = store.at("s3://somebody:secret@host/runs/a?token=secret")
    assert b"secret" not in pickle.dumps(tracer.Trace(place, Settings(), None))


def test_what_two_models_share_is_named(tmp_path: Path) -> None:
    """A module if it is one, else parameters: the model itself is not traced yet."""
    encoder, tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 4)
    first = nn.ModuleDict({"encoder": encoder, "head": tied})
    with tracer.attach(first, tmp_path / "one"):
        second = nn.ModuleDict({"body": nn.ModuleDict({"encoder": encoder, "neck": nn.Linear(4, 4)})})
        with pytest.raises(
            RuntimeError, match=r"^ModuleDict shares body.encoder with a model that is already traced, in"
        ):
            tracer.attach(second, tmp_path / "two")
        second["head"] = nn.Linear(4, 4)
        second["head"].weight = tied.weight
        several = "body.encoder.0.weight, body.encoder.0.bias, body.encoder.1.weight and 2 more parameters"
        with pytest.raises(
            RuntimeError, match=rf"^ModuleDict shares {several} with a model .*one: close that trace first"
        ):
            tracer.attach(second, tmp_path / "two")


def test_two_models_are_traced_side_by_side(tmp_path: Path) -> None:
    """Traces of different models count their own steps."""
    first, second = mlp(), mlp()
    with tracer.attach(first, tmp_path / "first") as a, tracer.attach(second, tmp_path / "second") as b:
        expected_second = train(second, b, 5)
        expected_first = train(first, a, 2)
    assert_rows(tmp_path / "first", expected_first)
    assert_rows(tmp_path / "second", expected_second)


def test_resume_goes_on_after_the_last_step(tmp_path: Path) -> None:
    """Step count and part numbers go on, under the next attempt, and the run is open again until it closes."""
    model = mlp()
    expected = []
    for _ in range(3):
        with tracer.attach(model, tmp_path / "run", resume=True) as trace:
            assert state(tmp_path / "run") == "running"
            expected += train(model, trace, 2)
    assert_rows(tmp_path / "run", expected)
    attempts = dict(tracer.scan(tmp_path / "run").select("step", "attempt").unique().collect().iter_rows())
    assert attempts == {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2}
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == list(range(6))
    assert [detail for _, _, detail in events(tmp_path / "run", "resumed")] == ["4 parameters, every 1"] * 2


def test_resume_without_a_path_is_refused() -> None:
    """There is nothing to go on with."""
    with pytest.raises(ValueError, match="resume=True needs the path"):
        tracer.attach(mlp(), resume=True)


def test_an_empty_parameter_has_null_in_all_columns(tmp_path: Path) -> None:
    """A parameter without an element has rows that say so."""
    model = mlp()
    model.register_parameter("nothing", nn.Parameter(torch.empty(0)))
    with tracer.attach(model, tmp_path / "run") as trace:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model[2](model[1](model[0](torch.randn(4, 6)))).sum().backward()
        optimizer.step()
        trace.log(loss=0.0)
    row = recorded(tmp_path / "run")[0, "nothing"]
    assert [row[name] for name in ("value_min", "value_max", "grad_min", "grad_max")] == [None] * 4


def test_a_failing_reduction_costs_one_warning_and_one_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on, the other parameters are recorded, and the log names the one that is not."""
    record = RowBuffer.record

    def failing(self: RowBuffer, index: int, value: torch.Tensor, gradient: torch.Tensor | None) -> None:
        if index == 1:
            raise MemoryError("no memory left")
        record(self, index, value, gradient)

    monkeypatch.setattr(RowBuffer, "record", failing)
    monkeypatch.setattr(RowBuffer, "direct", lambda self, *_: None)
    model = mlp()
    with (
        pytest.warns(
            tracer.TracerWarning, match=r"0\.bias is no longer traced \(MemoryError: no memory left\)"
        ) as caught,
        tracer.attach(model, tmp_path / "run") as trace,
    ):
        train(model, trace)
    assert len(caught) == 1
    assert {name for _, name in recorded(tmp_path / "run")} == {"0.weight", "2.weight", "2.bias"}
    assert events(tmp_path / "run", "failed") == [(0, "0.bias", "MemoryError: no memory left")]


def test_a_warning_never_raises_into_training(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the user turned warnings into errors, the tracer's becomes a line on stderr."""
    from tracer.warn import warn

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn("something")
    assert "gradwatch: something" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "end", ["pass", "sys.exit(3)", "raise RuntimeError('uncaught')", "signal.raise_signal(signal.SIGINT)"]
)
def test_a_trace_that_nobody_closed_is_closed_at_exit(end: str, tmp_path: Path) -> None:
    """However the interpreter ends, every row is written and the run is closed."""
    script = f"""
import signal, sys, torch, tracer
from tests.training import loss_of, mlp
model = mlp()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
trace = tracer.attach(model, {str(tmp_path / "run")!r})
for step in range(5):
    optimizer.zero_grad(); loss_of(model).backward(); optimizer.step(); trace.log(loss=step)
{end}
"""
    done = subprocess.run([*warm(), "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (end == "pass"), done.stderr
    assert steps(tmp_path / "run") == list(range(5))
    assert len(metric(tmp_path / "run", "loss")) == 5
    assert state(tmp_path / "run") == "closed"
    ((_, _, reason),) = events(tmp_path / "run", "closed")
    assert reason == ("RuntimeError: uncaught" if "uncaught" in end else "KeyboardInterrupt: " if "SIG" in end else "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_leaves_the_parents_log_alone(tmp_path: Path) -> None:
    """A child that trains, logs, closes and exits in an orderly way adds nothing to its parent's run."""
    script = f"""
import os, sys, torch, tracer
from tests.training import loss_of, mlp
torch.set_num_threads(1)
model = mlp()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def step():
    optimizer.zero_grad(); loss_of(model).backward(); optimizer.step(); trace.log(loss=0)
trace = tracer.attach(model, {str(tmp_path / "run")!r})
step()
child = os.fork()
if child == 0:
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    step(); step()
    trace.close()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
step()
"""
    subprocess.run([*warm(), "-c", script], check=True, capture_output=True)
    assert steps(tmp_path / "run") == [0, 1]
    assert len(metric(tmp_path / "run", "loss")) == 2


def test_a_rank_refuses_a_path_in_which_it_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only rank 0, which writes run.json, sees that a run is there already."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    tracer.attach(mlp(), tmp_path / "run").close()
    with pytest.raises(tracer.LogError, match="already holds a run: give another path"):
        tracer.attach(mlp(), tmp_path / "run")


@pytest.mark.parametrize(
    "left", [{"RANK": "-1"}, {"RANK": "2"}, {"WORLD_SIZE": "4"}, {"RANK": "4", "WORLD_SIZE": "4"},
             {"RANK": "-1", "WORLD_SIZE": "2"}, {"RANK": "", "WORLD_SIZE": ""}, {"RANK": "1.5", "WORLD_SIZE": "x"},
             {"RANK": str(2**31), "WORLD_SIZE": str(2**40)}],
    ids=str,
)  # fmt: skip
def test_what_a_launcher_left_behind_makes_no_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: dict[str, str]
) -> None:
    """Where the environment does not say a whole rank and world, the process is the only one, and its run is found."""
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    tracer.attach(mlp(), tmp_path / "run").close()
    assert rank_states(tmp_path / "run") == {0: "closed"}
    assert tracer.scan(tmp_path / "run", "events").collect()["rank"].unique().to_list() == [0]


@pytest.mark.parametrize("when", ["early", "at the end"])
def test_a_rank_whose_rank_0_is_missing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """A whole environment may be left over, too: that no reader finds what such a process writes is no secret."""
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    if when == "early":
        set_daemons(monkeypatch, tick_seconds=0.005, cadence=lambda age_seconds: 0.0, lonely_seconds=0.0)
    with pytest.warns(tracer.TracerWarning, match=r"rank 0 has written no run\.json: .* unset RANK and WOR") as caught:
        trace = tracer.attach(mlp(), tmp_path / "run")
        trace.log(loss=0.0)
        if when == "early":
            wait_until(lambda: bool(caught))
        trace.close()
    assert len(caught) == 1
    with tracer.attach(mlp(), new_run(tmp_path / "begun")) as trace:
        trace.log(loss=0.0)


def test_ranks_need_an_explicit_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that torchrun started cannot each make up a folder of their own."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 ranks write into one run, so attach needs its path"):
        tracer.attach(mlp())


def test_a_rank_that_begins_its_part_of_a_fresh_run_resumes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With resume=True on every rank, one that comes after rank 0 has begun the run writes attempt 0, as that does."""
    new_run(tmp_path / "run")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with tracer.attach(mlp(), tmp_path / "run", resume=True):
        pass
    rows = tracer.scan(tmp_path / "run", "events").select("rank", "attempt", "kind").collect().rows()
    assert rows == [(1, 0, "attached"), (1, 0, "closed")]


@pytest.mark.parametrize("activations", [False, True])
def test_an_attach_that_fails_half_way_leaves_nothing_open(activations: bool, tmp_path: Path) -> None:
    """Where a hook cannot be set, the error is raised, and no thread, hook or running run is left."""
    model = mlp()
    model[0]._parameters["weight"] = torch.ones(8, 6, requires_grad=True) * 1.0  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="non-leaf"):
        tracer.attach(model, tmp_path / "run", activations=activations)
    assert state(tmp_path / "run") == "closed"
    assert hooks_on(model) == 0


def test_a_trace_may_begin_under_inference_mode(tmp_path: Path) -> None:
    """What is attached inside torch.inference_mode is recorded outside of it."""
    model = mlp()
    with torch.inference_mode():
        trace = tracer.attach(model, tmp_path / "run")
    loss_of(model).backward()
    expected = by_hand(model)
    trace.close()
    assert_rows(tmp_path / "run", [expected])
