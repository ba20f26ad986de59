"""Loops over Accelerate's own ``Accelerator``, with the tracker and without."""

import contextlib
import copy
import pickle
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.distributed.launch import RANKS, succeeded
from tests.integrations.training import (
    Oracle,
    assert_rows,
    assert_same_weights,
    be_patient,
    dataset,
    in_a_process,
    keep,
    kept,
    network,
    reason,
    runs,
)
from tests.training import events, metric, steps
from tracer.warn import TracerWarning

pytestmark = pytest.mark.slow
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")

from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402

from tracer.integrations.accelerate import Gradwatch  # noqa: E402


class Training:
    """A loop as the framework's examples write it: of six batches of four examples."""

    def __init__(self, gradwatch: Gradwatch | None = None, **options: Any) -> None:
        # The framework keeps these for the process.
        AcceleratorState._reset_state()
        GradientState._reset_state()
        self.plain = network()
        optimizer = torch.optim.AdamW(self.plain.parameters(), lr=0.01)
        self.rows = Oracle(self.plain, optimizer).rows
        self.accelerator: Any = Accelerator(cpu=True, log_with=gradwatch, **options)
        loader: Any = DataLoader(dataset(), batch_size=4)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(self.plain, optimizer, loader)
        self.accelerator.init_trackers("project")
        if gradwatch is not None:
            gradwatch.attach(self.accelerator, self.model)

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """The loss of a batch."""
        return nn.functional.mse_loss(self.model(batch[0]).float(), batch[1])

    def epoch(self, *, clip: float | None = None, fails_at: int = -1, logs_first: bool = False) -> None:
        """Train on each batch."""
        for number, batch in enumerate(self.loader):
            if number == fails_at:
                raise ArithmeticError("the batch is bad")
            with self.accelerator.accumulate(self.model):
                loss = self.loss(batch)
                if logs_first:
                    self.accelerator.log({"loss": loss}, step=number)
                self.accelerator.backward(loss)
                if clip is not None and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            if not logs_first:
                self.accelerator.log({"loss": loss}, step=number)

    def validate(self) -> None:
        """Log the loss of the first batch."""
        with torch.no_grad():
            self.accelerator.log({"val_loss": self.loss(next(iter(self.loader)))})


@contextlib.contextmanager
def training(gradwatch: Gradwatch | None = None, **options: Any) -> Iterator[Training]:
    """A training, and its end."""
    made = Training(gradwatch, **options)
    yield made
    made.accelerator.end_training()


@pytest.mark.parametrize(
    ("options", "clip", "count"),
    [
        pytest.param({}, None, 12, id="plain"),
        pytest.param({"gradient_accumulation_steps": 2}, None, 6, id="accumulation"),
        pytest.param({}, 1e-3, 12, id="clipping"),
        pytest.param({"mixed_precision": "bf16"}, None, 12, id="mixed precision"),
    ],
)
def test_rows_are_the_oracles_and_training_is_bit_identical(
    options: dict[str, Any], clip: float | None, count: int, tmp_path: Path
) -> None:
    """Every row is what the update used, in its step, and the weights are those of a training without a trace."""
    with training(Gradwatch(tmp_path / "run", applied=True), **options) as traced:
        for _ in range(2):
            traced.epoch(clip=clip)
    with training(**options) as plain:
        for _ in range(2):
            plain.epoch(clip=clip)
    assert len(traced.rows) == count
    assert_rows(tmp_path / "run", traced.rows)
    assert_same_weights(traced.plain, plain.plain)


def test_metrics_stand_at_their_step(tmp_path: Path) -> None:
    """A loss stands at its own step, and a validation, also one before the training, at the latest one."""
    with training(Gradwatch(tmp_path / "run")) as made:
        made.validate()
        for _ in range(2):
            made.epoch()
            made.validate()
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == list(range(12))
    assert [step for step, _ in metric(tmp_path / "run", "val_loss")] == [5, 11]


def test_a_loss_that_is_logged_before_its_backward_stands_at_its_step(tmp_path: Path) -> None:
    """A loop that logs between forward and backward has a loss for each step."""
    with training(Gradwatch(tmp_path / "run")) as made:
        made.epoch(logs_first=True)
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == list(range(6))


def test_a_resumed_training_goes_on_at_its_step_in_its_run(tmp_path: Path) -> None:
    """From ``load_state``, rows go on where it was saved, in the run that it was saved in, though that is a sibling."""
    for _ in range(2):
        with training(Gradwatch(tmp_path / "run", applied=True)) as first:
            first.epoch()
            first.accelerator.save_state(tmp_path / "saved")
    with training(Gradwatch(tmp_path / "run", applied=True)) as resumed:
        resumed.accelerator.load_state(tmp_path / "saved")
        resumed.epoch()
    assert runs(tmp_path) == ["run", "run-2"]
    assert_rows(tmp_path / "run-2", first.rows + resumed.rows)
    assert [step for step, *_ in events(tmp_path / "run-2", "resumed")] == [6]
    assert events(tmp_path / "run-2", "restored") == []


def test_a_checkpoint_that_is_loaded_in_the_middle_restores_its_step(tmp_path: Path) -> None:
    """After a bad epoch, ``load_state`` makes its steps an earlier attempt."""
    with training(Gradwatch(tmp_path / "run", applied=True)) as made:
        made.epoch()
        made.accelerator.save_state(tmp_path / "saved")
        made.epoch()
        made.accelerator.load_state(tmp_path / "saved")
        made.epoch()
    assert_rows(tmp_path / "run", made.rows[:6] + made.rows[12:])


def test_checkpoints_do_not_need_the_tracker(tmp_path: Path) -> None:
    """A checkpoint of a traced training is loaded without a trace; one without a step begins a run of its own."""
    with training(Gradwatch(tmp_path / "run")) as made:
        made.epoch()
        made.accelerator.save_state(tmp_path / "traced")
    with training() as plain:
        plain.accelerator.load_state(tmp_path / "traced")
        plain.accelerator.save_state(tmp_path / "plain")
        plain.epoch()
    with training(Gradwatch(tmp_path / "run", applied=True)) as traced:
        traced.accelerator.load_state(tmp_path / "plain")
        traced.epoch()
    assert_rows(tmp_path / "run-2", traced.rows)
    assert_same_weights(traced.plain, plain.plain)


def test_a_checkpoint_whose_step_cannot_be_read_is_loaded(tmp_path: Path) -> None:
    """A damaged file of ours costs the step, and one warning, but not the training."""
    with training(Gradwatch(tmp_path / "run")) as made:
        made.epoch()
        made.accelerator.save_state(tmp_path / "saved")
    (tmp_path / "saved" / "gradwatch.json").write_text("{")
    with training(Gradwatch(tmp_path / "run")) as made:
        with pytest.warns(TracerWarning, match="the step of a checkpoint cannot be read"):
            made.accelerator.load_state(tmp_path / "saved")
        made.epoch()
    assert steps(tmp_path / "run-2") == list(range(6))


def test_two_trainings_have_a_run_each(tmp_path: Path) -> None:
    """A tracker that is used twice writes the path and its sibling, each with its own rows."""
    gradwatch = Gradwatch(tmp_path / "run", applied=True)
    for name in ("run", "run-2"):
        with training(gradwatch) as made:
            made.epoch()
        assert_rows(tmp_path / name, made.rows)
        assert reason(tmp_path / name) == ""


def test_a_part_of_the_model_may_begin_the_training(tmp_path: Path) -> None:
    """A loop that never calls the model itself is traced from the first part on that it calls."""
    with training(Gradwatch(tmp_path / "run", applied=True)) as made:
        for inputs, _ in made.loader:
            made.model[2](made.model[0](inputs)).square().mean().backward()
            made.optimizer.step()
            made.optimizer.zero_grad()
    assert_rows(tmp_path / "run", made.rows)


def test_a_model_that_is_never_called_is_said(tmp_path: Path) -> None:
    """Who attached another model than the one that trains reads so at the end, and that model waits no more."""
    gradwatch, other = Gradwatch(tmp_path / "run"), network()
    with training() as made:
        gradwatch.attach(made.accelerator, other)
        made.epoch()
    with pytest.warns(TracerWarning, match="nothing was traced"):
        gradwatch.finish()
    other(torch.ones(1, 6))
    assert runs(tmp_path) == []


def test_an_exception_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    """Where nobody catches it, the process's exit closes the run with the reason."""
    code = """
from tests.integrations.test_accelerate import Gradwatch, Training, be_patient
be_patient()
Training(Gradwatch("run")).epoch(fails_at=4)
"""
    ended = in_a_process(tmp_path, code)
    assert ended.returncode == 1
    assert reason(tmp_path / "run") == "ArithmeticError: the batch is bad"
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == [0, 1, 2, 3]


def test_the_tracker_is_copied_and_pickled_in_the_middle_of_a_training(tmp_path: Path) -> None:
    """A copy, also of one that waits for its training, traces nothing until it is given a model."""
    gradwatch = Gradwatch(tmp_path / "run", applied=True)
    with training(gradwatch) as made:
        copies = [pickle.loads(pickle.dumps(gradwatch)), copy.deepcopy(gradwatch)]
        made.epoch()
        copies.append(pickle.loads(pickle.dumps(gradwatch)))
    assert_rows(tmp_path / "run", made.rows)
    for number, copied in enumerate(copies, 2):
        with training(copied) as made:
            made.epoch()
        assert_rows(tmp_path / f"run-{number}", made.rows)


def test_two_ranks_write_one_run(tmp_path: Path) -> None:
    """Under DDP each rank records its own gradients and the mean that is applied; rank 0 alone logs."""
    succeeded("tests.integrations.test_accelerate", tmp_path)
    assert runs(tmp_path) == ["run", "run-2"]
    for rank in range(RANKS):
        assert_rows(tmp_path / "run-2", kept(tmp_path, rank), rank=rank)
    assert [step for step, _ in metric(tmp_path / "run-2", "loss")] == list(range(6))


def on_two_ranks(folder: Path) -> None:
    """Train two runs into one path, go on with the second, and train once without a trace: the weights are the same."""
    for _ in range(2):
        with closing(Gradwatch(folder / "run", applied=True)) as gradwatch:
            traced = Training(gradwatch)
            traced.epoch()
            traced.accelerator.save_state(folder / "saved")
    with closing(Gradwatch(folder / "run", applied=True)) as gradwatch:
        resumed = Training(gradwatch)
        resumed.accelerator.load_state(folder / "saved")
        resumed.epoch()
    keep(folder, traced.rows + resumed.rows)
    plain = Training()
    for _ in range(2):
        plain.epoch()
    assert_same_weights(resumed.plain, plain.plain)


if __name__ == "__main__":
    be_patient()
    on_two_ranks(Path.cwd())
