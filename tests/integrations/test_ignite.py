"""Ignite's own engines, with the handler and without."""

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
    keep,
    kept,
    network,
    reason,
    runs,
)
from tests.training import events, metric

pytestmark = pytest.mark.slow
pytest.importorskip("ignite", reason="Ignite is not installed: pip install pytorch-ignite")

from ignite import distributed  # noqa: E402
from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer  # noqa: E402
from ignite.handlers import Checkpoint  # noqa: E402
from ignite.metrics import Loss, RunningAverage  # noqa: E402

from tracer.integrations.ignite import Gradwatch  # noqa: E402


class Training:
    """A model, its optimizer and its engines; the batch of index ``fails_at`` raises. Ranks train it together.

    Attributes:
        rows: What the oracle saw.
    """

    def __init__(self, accumulate: int = 1, fails_at: int = -1, **options: Any) -> None:
        self.plain = network()
        # With one rank, this is the model itself.
        self.model = distributed.auto_model(self.plain) if distributed.get_world_size() > 1 else self.plain
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.rows = Oracle(self.plain, self.optimizer).rows
        loss = nn.MSELoss()
        if options:
            self.trainer = Engine(lambda engine, batch: self.update(batch, **options))
        else:
            self.trainer = create_supervised_trainer(
                self.model, self.optimizer, loss, gradient_accumulation_steps=accumulate
            )
        self.evaluator = create_supervised_evaluator(self.model, {"loss": Loss(loss)})

        self.trainer.add_event_handler(Events.ITERATION_STARTED, self.fail, fails_at)

    def fail(self, trainer: Engine, fails_at: int) -> None:
        """Raise at this batch."""
        if trainer.state.iteration == fails_at:
            raise ArithmeticError("the batch is bad")

    def update(self, batch: Any, clip: float | None = None, mixed: bool = False, output: Any = None) -> Any:
        """A step as users write it."""
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        return loss if output is None else output

    def run(self, **options: Any) -> None:
        """Train on six batches an epoch."""
        self.trainer.run(batches(), **{"max_epochs": 1, **options})


def batches() -> DataLoader[Any]:
    """Six batches."""
    return DataLoader(dataset(), batch_size=4)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        pytest.param({}, 12, id="plain"),
        pytest.param({"accumulate": 2}, 6, id="accumulation"),
        pytest.param({"clip": 1e-3}, 12, id="clipping"),
        pytest.param({"mixed": True}, 12, id="mixed precision"),
    ],
)
def test_rows_are_the_oracles_and_training_is_bit_identical(
    options: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    """Every row is what the update used, in its step, and the weights are those of a training without a trace."""
    traced, plain = Training(**options), Training(**options)
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        gradwatch.attach(traced.trainer, traced.model)
        traced.run(max_epochs=2)
    plain.run(max_epochs=2)
    assert len(traced.rows) == steps
    assert_rows(tmp_path / "run", traced.rows)
    assert_same_weights(traced.model, plain.model)


def test_metrics_stand_at_their_step(tmp_path: Path) -> None:
    """A loss stands at its step, a validation and the trainer's own metrics at the latest one, each once."""
    training = Training()
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        gradwatch.attach(training.trainer, training.model, val=training.evaluator)
        RunningAverage(output_transform=lambda output: output).attach(training.trainer, "average")
        training.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: training.evaluator.run(batches()))
        training.run(max_epochs=2)
        state = training.evaluator.run(batches())
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == list(range(12))
    assert [step for step, _ in metric(tmp_path / "run", "average")] == [5, 11]
    assert [step for step, _ in metric(tmp_path / "run", "val_loss")] == [5, 11, 11]
    assert metric(tmp_path / "run", "val_loss")[-1][1] == state.metrics["loss"]


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ({"loss": 0.5, "rate": torch.tensor(0.1), "epoch": 3}, ["loss", "rate"]),
        ((torch.ones(3), torch.ones(3)), []),
        (None, ["loss"]),
        (torch.tensor([0.5]), ["loss"]),
    ],
)
def test_an_output_is_recorded_as_far_as_it_says_what_it_is(output: Any, names: list[str], tmp_path: Path) -> None:
    """Of a dict each number is a metric, a number or the loss itself is the loss, and of a tuple nobody knows."""
    training = Training(output=output)
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        gradwatch.attach(training.trainer, training.model)
        training.run()
    for name in ("loss", "rate", "epoch"):
        assert [step for step, _ in metric(tmp_path / "run", name)] == (list(range(6)) if name in names else [])


def test_a_resumed_training_goes_on_at_its_step_in_its_run(tmp_path: Path) -> None:
    """From a checkpoint that holds the handler, rows go on where it was saved, though batches are not updates."""
    rows: list[Any] = []
    file = tmp_path / "saved" / "4.pt"
    for _ in range(2):
        training = Training(accumulate=2)
        gradwatch = Gradwatch(tmp_path / "run", applied=True).attach(training.trainer, training.model)
        kept = {"model": training.model, "optimizer": training.optimizer}
        kept |= {"trainer": training.trainer, "gradwatch": gradwatch}
        if file.exists():
            Checkpoint.load_objects(kept, torch.load(file, weights_only=True))
        else:
            saves = Checkpoint(kept, str(file.parent), n_saved=None, filename_pattern="{global_step}.pt")
            training.trainer.add_event_handler(Events.ITERATION_COMPLETED(every=2), saves)
        with closing(gradwatch):
            training.run(max_epochs=2)
        rows = rows[:2] + training.rows
    assert len(rows) == 6
    assert_rows(tmp_path / "run", rows)
    assert [step for step, *_ in events(tmp_path / "run", "restored")] == [2]


def test_a_training_that_goes_on_in_its_process_does_so_at_its_step(tmp_path: Path) -> None:
    """More epochs of the same trainer go on in the run."""
    training = Training(accumulate=2)
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        gradwatch.attach(training.trainer, training.model)
        training.run()
        training.run(max_epochs=2)
    assert runs(tmp_path) == ["run"]
    assert_rows(tmp_path / "run", training.rows)


def test_a_training_without_the_handlers_state_goes_on_at_the_trainers_iteration(tmp_path: Path) -> None:
    """A checkpoint that was saved without the handler is gone on with at the iteration of its trainer."""
    first, second = Training(), Training()
    first.run()
    second.trainer.load_state_dict(first.trainer.state_dict())
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        gradwatch.attach(second.trainer, second.model)
        second.run(max_epochs=2)
    assert_rows(tmp_path / "run", second.rows, first=6)


def test_two_trainings_have_a_run_each(tmp_path: Path) -> None:
    """A trainer that begins anew gets the path's sibling, and the first run has ended well."""
    training = Training()
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        gradwatch.attach(training.trainer, training.model)
        training.run()
        training.trainer.state.max_epochs = None
        training.run()
    assert_rows(tmp_path / "run", training.rows[:6])
    assert_rows(tmp_path / "run-2", training.rows[6:])
    assert reason(tmp_path / "run") == ""


@pytest.mark.parametrize("others", [0, 1])
def test_an_exception_ends_the_run_with_its_reason_and_arrives(others: int, tmp_path: Path) -> None:
    """Ignite swallows an exception that has a handler, and the trace's is no such one, be there two traces."""
    training = Training(fails_at=4)
    other = nn.Linear(1, 1)
    gradwatch = Gradwatch(tmp_path / "run", applied=True).attach(training.trainer, training.model)
    for number in range(others):
        Gradwatch(tmp_path / f"other-{number}").attach(training.trainer, other)
    with pytest.raises(ArithmeticError, match=r"^the batch is bad$"):
        training.run()
    gradwatch.close()
    assert reason(tmp_path / "run") == "ArithmeticError: the batch is bad"
    assert_rows(tmp_path / "run", training.rows)


@pytest.mark.parametrize("first", [True, False])
def test_an_exception_that_the_user_handles_stays_handled(first: bool, tmp_path: Path) -> None:
    """A handler of the user's decides what becomes of an exception, with a trace as without."""
    training = Training(fails_at=4)
    seen = []
    if first:
        training.trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda trainer, error: seen.append(error))
    Gradwatch(tmp_path / "run").attach(training.trainer, training.model)
    if not first:
        training.trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda trainer, error: seen.append(error))
    training.run()
    assert len(seen) == 1
    assert reason(tmp_path / "run") == "ArithmeticError: the batch is bad"


def test_a_trainer_that_terminates_ends_well(tmp_path: Path) -> None:
    """A training that a handler ends early, say because nothing improves, has ended well."""
    training = Training()
    training.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), training.trainer.terminate)
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        gradwatch.attach(training.trainer, training.model)
        training.run()
    assert_rows(tmp_path / "run", training.rows)
    assert reason(tmp_path / "run") == ""


def test_two_ranks_write_one_run(tmp_path: Path) -> None:
    """Under DDP each rank records its own gradients and the mean that is applied; rank 0 alone logs."""
    succeeded("tests.integrations.test_ignite", tmp_path)
    assert runs(tmp_path) == ["run", "run-2"]
    for rank in range(RANKS):
        assert_rows(tmp_path / "run-2", kept(tmp_path, rank), rank=rank)
    assert kept(tmp_path, 0) != kept(tmp_path, 1)
    assert [step for step, _ in metric(tmp_path / "run-2", "loss")] == [0, 1, 2]


def on_two_ranks(folder: Path) -> None:
    """Train twice into one path, and once without a trace, whose weights are the same."""
    # Each rank gets half of the batches.
    loader = distributed.auto_dataloader(dataset(), batch_size=4 * RANKS)
    for _ in range(2):
        with closing(Gradwatch(folder / "run", applied=True)) as gradwatch:
            traced = Training()
            gradwatch.attach(traced.trainer, traced.model)
            traced.trainer.run(loader, max_epochs=1)
    keep(folder, traced.rows)
    plain = Training()
    plain.trainer.run(loader, max_epochs=1)
    assert_same_weights(traced.plain, plain.plain)


if __name__ == "__main__":
    be_patient()
    with distributed.Parallel("gloo"):
        on_two_ranks(Path.cwd())
