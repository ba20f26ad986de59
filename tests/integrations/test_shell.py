"""What the frameworks' shells share, without a framework."""

import importlib
import pickle
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.integrations.training import reason, runs, settings
from tests.training import events, loss_of, metric, mlp, steps
from tracer.integrations.shell import Shell, _sibling
from tracer.log.store import Local
from tracer.warn import TracerWarning


def train(model: nn.Module, count: int = 2) -> None:
    """Some steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(count):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("module", "framework", "install"),
    [
        ("accelerate", "accelerate", "accelerate"),
        ("huggingface", "transformers", "'transformers[torch]'"),
        ("lightning", "lightning", "lightning"),
        ("fastai", "fastai", "fastai"),
        ("ignite", "ignite", "pytorch-ignite"),
        ("keras", "keras", "keras"),
        ("skorch", "skorch", "skorch"),
        ("stable_baselines3", "stable_baselines3", "stable-baselines3"),
        ("ultralytics", "ultralytics", "ultralytics"),
    ],
)
def test_a_missing_framework_is_one_sentence(
    module: str, framework: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who imports the integration of a framework that is not there reads what to install."""
    for loaded in [name for name in sys.modules if name.startswith(f"{framework}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, framework, None)
    monkeypatch.delitem(sys.modules, f"tracer.integrations.{module}", raising=False)
    with pytest.raises(ImportError) as error:
        importlib.import_module(f"tracer.integrations.{module}")
    assert str(error.value) == f"this integration needs {framework}: pip install {install}"


def test_an_argument_that_attach_does_not_take_is_said_at_once() -> None:
    """A misspelt option is an error before the training begins."""
    with pytest.raises(TypeError, match="evry"):
        Shell("run", evry=3)


@pytest.mark.parametrize(
    ("path", "sibling"),
    [("/runs/a", "/runs/a-2"), ("/runs/a/", "/runs/a-2"), ("s3://b/a?region=x", "s3://b/a-2?region=x")],
)
def test_a_sibling_is_beside_the_path(path: str, sibling: str) -> None:
    """The number stands behind the last folder's name, before what a URI asks for."""
    assert _sibling(path, 2).__fspath__() == sibling


def test_a_training_that_begins_anew_gets_a_sibling(tmp_path: Path) -> None:
    """Of three trainings into one path, each has a run of its own."""
    with closing(Shell(tmp_path / "run")) as shell:
        for _ in range(3):
            shell._begin(model := mlp(), step=0)
            train(model)
            shell._end()
    assert [steps(tmp_path / name) for name in ("run", "run-2", "run-3")] == [[0, 1]] * 3


def test_a_training_with_a_step_goes_on(tmp_path: Path) -> None:
    """A framework that has counted updates goes on in the path's run; where the log ends there, that is one event."""
    for step in (0, 2, 3):
        with closing(Shell(tmp_path / "run")) as shell:
            shell._begin(model := mlp(), step=step)
            train(model)
    assert steps(tmp_path / "run") == [0, 1, 2, 3, 4]
    assert [step for step, *_ in events(tmp_path / "run", "resumed")] == [2, 4]
    assert [step for step, *_ in events(tmp_path / "run", "restored")] == [3]


def test_a_user_may_ask_to_go_on(tmp_path: Path) -> None:
    """``resume=True`` goes on after the last step, whatever the framework says."""
    for _ in range(2):
        with closing(Shell(tmp_path / "run", resume=True)) as shell:
            shell._begin(model := mlp(), step=0)
            train(model)
    assert steps(tmp_path / "run") == [0, 1, 2, 3]


def test_a_relative_path_is_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that goes to another folder begins, and goes on, where its ``Gradwatch`` was made."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with closing(Shell("run")) as shell:
        monkeypatch.chdir(tmp_path / "elsewhere")
        for step in (0, 2):
            shell._begin(model := mlp(), step=step)
            train(model)
    assert steps(tmp_path / "run") == [0, 1, 2, 3]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_user_may_ask_to_replace_the_runs_of_earlier_processes(tmp_path: Path) -> None:
    """With overwrite=True no number is counted up for them; this process's own trainings keep a run each."""
    for count in (1, 3):
        with closing(Shell(tmp_path / "run", overwrite=True)) as shell:
            for _ in range(2):
                shell._begin(model := mlp(), step=0)
                train(model, count)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-2"]
        assert steps(tmp_path / "run") == steps(tmp_path / "run-2") == list(range(count))


def test_a_training_that_failed_gives_way_to_the_next_of_its_model(tmp_path: Path) -> None:
    """Where a framework told of no end, another shell's training of this model ends the run with a reason."""
    model = mlp()
    with closing(Shell(tmp_path / "run")) as shell, closing(Shell(tmp_path / "run")) as other:
        shell._begin(model, step=0)
        train(model)
        other._begin(model, step=0)
        train(model)
    assert reason(tmp_path / "run") == "RuntimeError: another training began before this one had ended"
    assert steps(tmp_path / "run-2") == [0, 1]


def test_two_models_are_traced_side_by_side(tmp_path: Path) -> None:
    """Trainings of two models that are under way at the same time have a run each."""
    one, two = mlp(), mlp()
    with closing(Shell(tmp_path / "one")) as shell, closing(Shell(tmp_path / "two")) as other:
        shell._begin(one, step=0)
        other._begin(two, step=0)
        train(one)
        train(two)
    assert steps(tmp_path / "one") == steps(tmp_path / "two") == [0, 1]


def test_an_evaluation_after_the_training_stands_at_its_last_step(tmp_path: Path) -> None:
    """What is logged when the training has ended belongs to it, until another training begins."""
    with closing(Shell(tmp_path / "run")) as shell, closing(Shell(tmp_path / "other")) as other:
        shell._begin(model := mlp(), step=0)
        train(model)
        shell._end()
        shell._log({"accuracy": 0.5})
        other._begin(mlp(), step=0)
        shell._log({"accuracy": 0.75})
    assert metric(tmp_path / "run", "accuracy") == [(1, 0.5)]


def test_what_fails_after_a_training_did_not_end_it(tmp_path: Path) -> None:
    """An exception ends the run of the training in which it was raised, and no run whose training was over."""
    for name, over in (("over", True), ("failed", False)):
        shell = Shell(tmp_path / name)
        shell._begin(mlp(), step=0)
        if over:
            shell._end()
        shell.close(ArithmeticError("bad"))
    assert [reason(tmp_path / name) for name in ("over", "failed")] == ["", "ArithmeticError: bad"]


def test_what_the_user_gives_wins(tmp_path: Path) -> None:
    """Of the arguments of ``attach`` that the framework knows, those that the user gave are used."""
    with closing(Shell(tmp_path / "run", total_steps=9)) as shell:
        shell._begin(mlp(), step=0, total_steps=7, every=3)
    assert settings(tmp_path / "run")["total_steps"] == 9
    assert settings(tmp_path / "run")["every"] == 3


def test_without_a_path_each_training_has_a_run_named_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell without a path takes new folders under ``runs/``, also where the framework goes on."""
    monkeypatch.chdir(tmp_path)
    found = []
    for step in (0, 5):
        with closing(Shell()) as shell:
            shell._begin(model := mlp(), step=step)
            train(model)
        assert shell.trace is not None
        found.append(steps(Local(shell.trace.path)))
    assert found == [[0, 1], [5, 6]]
    assert len(runs(tmp_path / "runs")) == 2


def test_what_is_no_number_is_said_once_by_name(tmp_path: Path) -> None:
    """Texts, None, dicts and tensors of many elements cost no number beside them; the x axis is no metric."""
    odd: dict[str, Any] = {"text": "a", "none": None, "dict": {"a": 1}, "many": torch.ones(3)}
    numbers = {"loss": torch.tensor(0.5), "epoch": 1, "step": 7, "global_step": 7, "self": 2}
    with closing(Shell(tmp_path / "run")) as shell:
        shell._begin(mlp(), step=0)
        with pytest.warns(TracerWarning, match="no numbers are not recorded: text, none, dict, many$"):
            shell._log({**odd, **numbers})
        shell._log({**odd, **numbers})
    assert metric(tmp_path / "run", "loss") == [(0, 0.5)] * 2
    assert metric(tmp_path / "run", "self") == [(0, 2)] * 2
    assert metric(tmp_path / "run", "step") == metric(tmp_path / "run", "epoch") == []


def test_a_pickled_shell_is_idle_until_its_training_begins(tmp_path: Path) -> None:
    """A shell that was pickled in the middle of a training records nothing of it, and can begin one."""
    with closing(Shell(tmp_path / "run")) as shell:
        shell._begin(mlp(), step=0)
        with closing(pickle.loads(pickle.dumps(shell))) as copied:
            copied._log({"loss": 1})
            copied._begin(model := mlp(), step=0)
            train(model)
    assert metric(tmp_path / "run", "loss") == []
    assert steps(tmp_path / "run-2") == [0, 1]
