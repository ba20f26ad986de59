"""Hugging Face's own ``Trainer``, with the callback and without; nothing is downloaded."""

import copy
import pickle
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import viewer
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
    settings,
)
from tests.training import events, metric

pytestmark = pytest.mark.slow
pytest.importorskip("transformers", reason="transformers is not installed: pip install 'transformers[torch]'")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")

from transformers import (  # noqa: E402
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tracer.integrations.huggingface import Gradwatch  # noqa: E402


class Model(nn.Module):
    """The network as the trainer calls it; it fails at a forward of its choice."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.network = network()
        self.fails_at = fails_at
        self.rows: list[Any] = []

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(self.rows) == self.fails_at:
            raise ArithmeticError("the batch is bad")
        outputs = self.network(inputs)
        return {"loss": nn.functional.mse_loss(outputs, labels), "logits": outputs}


class Data(Dataset[Any]):
    """The examples as the trainer wants them."""

    def __init__(self) -> None:
        inputs, labels = dataset().tensors
        self.examples = [{"inputs": inputs[i], "labels": labels[i]} for i in range(len(inputs))]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.examples[index]


def trainer(folder: Path, model: Model, *callbacks: Any, **options: Any) -> Any:
    """A trainer of six steps of four examples that shows nothing."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.rows = Oracle(model, optimizer).rows
    options = {
        "max_steps": 6,
        "logging_steps": 1,
        "max_grad_norm": 0,
        "save_strategy": "no",
        "eval_strategy": "no",
        **options,
    }
    arguments = TrainingArguments(
        folder / "out",
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        seed=0,
        **options,
    )
    return Trainer(
        model,
        arguments,
        train_dataset=Data(),
        eval_dataset=Data(),
        optimizers=(optimizer, None),
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        pytest.param({}, 6, id="plain"),
        pytest.param({"gradient_accumulation_steps": 2}, 6, id="accumulation"),
        pytest.param({"max_grad_norm": 1e-3}, 6, id="clipping"),
        pytest.param({"bf16": True}, 6, id="mixed precision"),
        pytest.param({"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch"}, 12, id="two epochs"),
    ],
)
def test_rows_are_the_oracles_and_training_is_bit_identical(
    options: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    """Every row is what the update used, in its step, and the weights are those of a training without a trace."""
    traced, plain = Model(), Model()
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        trainer(tmp_path, traced, gradwatch, **options).train()
    trainer(tmp_path, plain, **options).train()
    assert len(traced.rows) == steps
    assert_rows(tmp_path / "run", traced.rows)
    assert_same_weights(traced, plain)


def test_a_training_that_was_not_traced_is_judged_by_what_it_saved(tmp_path: Path) -> None:
    """``viewer check`` takes the ``trainer_state.json`` of a checkpoint: here of a loss that became NaN."""
    # Hugging Face's Trainer logs a mean in the place of a NaN unless it is told otherwise.
    made = trainer(tmp_path, Model(), save_strategy="steps", save_steps=12, max_steps=12, logging_nan_inf_filter=False)
    made.optimizer.param_groups[0]["lr"] = 1e30
    made.train()
    (finding,) = viewer.check(tmp_path / "out" / "checkpoint-12" / "trainer_state.json").frame.iter_rows(named=True)
    assert (finding["kind"], finding["severity"]) == ("nonfinite", "error")


def test_metrics_stand_at_their_step(tmp_path: Path) -> None:
    """A loss stands at its own step, an evaluation at the latest one, also after the training; epochs are no metric."""
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        made = trainer(tmp_path, Model(), gradwatch, eval_strategy="steps", eval_steps=3)
        made.train()
        evaluated = made.evaluate()
    assert settings(tmp_path / "run")["total_steps"] == 6
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == list(range(6))
    assert [step for step, _ in metric(tmp_path / "run", "eval_loss")] == [2, 5, 5]
    assert metric(tmp_path / "run", "eval_loss")[-1] == (5, evaluated["eval_loss"])
    assert metric(tmp_path / "run", "epoch") == []


def test_a_resumed_training_goes_on_at_its_step_in_its_run(tmp_path: Path) -> None:
    """From a checkpoint of step 3, rows go on there, in the run that it was saved in, though that is a sibling."""
    for _ in range(2):
        with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
            trainer(tmp_path, first := Model(), gradwatch, save_strategy="steps", save_steps=3).train()
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        trainer(tmp_path, resumed := Model(), gradwatch).train(tmp_path / "out" / "checkpoint-3")
    assert runs(tmp_path) == ["run", "run-2"]
    assert_rows(tmp_path / "run-2", first.rows[:3] + resumed.rows)
    assert_same_weights(first, resumed)


def test_a_training_that_goes_on_where_the_log_ends_is_one_event(tmp_path: Path) -> None:
    """Resumed with more steps from its last checkpoint, a run goes on without another attempt at any step."""
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        trainer(tmp_path, first := Model(), gradwatch, save_strategy="steps", save_steps=6).train()
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        trainer(tmp_path, resumed := Model(), gradwatch, max_steps=9).train(tmp_path / "out" / "checkpoint-6")
    assert_rows(tmp_path / "run", first.rows + resumed.rows)
    assert [step for step, *_ in events(tmp_path / "run", "resumed")] == [6]
    assert events(tmp_path / "run", "restored") == []


def test_checkpoints_do_not_need_the_callback(tmp_path: Path) -> None:
    """A checkpoint of a traced training is loaded without a trace, and one of an untraced training with one."""
    saves = {"save_strategy": "steps", "save_steps": 3}
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        trainer(tmp_path / "traced", Model(), gradwatch, **saves).train()
    trainer(tmp_path / "plain", Model(), **saves).train()
    again = {"restore_callback_states_from_checkpoint": True}
    trainer(tmp_path, plain := Model(), **again).train(tmp_path / "traced" / "out" / "checkpoint-3")
    with closing(Gradwatch(tmp_path / "new", applied=True)) as gradwatch:
        trainer(tmp_path, traced := Model(), gradwatch, **again).train(tmp_path / "plain" / "out" / "checkpoint-3")
    assert_rows(tmp_path / "new", traced.rows, first=3)
    assert_same_weights(traced, plain)


def test_two_trainings_have_a_run_each(tmp_path: Path) -> None:
    """A second ``train`` of a trainer gets the path's sibling, and so does another trainer of the same model."""
    made = trainer(tmp_path, model := Model(), Gradwatch(tmp_path / "run", applied=True))
    made.train()
    first = list(model.rows)
    made.train()
    second = model.rows[len(first) :]
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        trainer(tmp_path, model, gradwatch).train()
    assert_rows(tmp_path / "run", first)
    assert_rows(tmp_path / "run-2", second)
    assert [reason(tmp_path / name) for name in runs(tmp_path)] == [""] * 3


def test_an_exception_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    """Where nobody catches it, the process's exit closes the run with the reason."""
    code = """
from pathlib import Path
from tests.integrations.test_huggingface import Gradwatch, Model, be_patient, trainer
be_patient()
trainer(Path(), Model(fails_at=4), Gradwatch("run")).train()
"""
    ended = in_a_process(tmp_path, code)
    assert ended.returncode == 1
    assert reason(tmp_path / "run") == "ArithmeticError: the batch is bad"
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == [0, 1, 2, 3]


def test_a_training_that_died_has_a_reason_once_another_begins(tmp_path: Path) -> None:
    """Where an exception was caught, the next training says that the one before it did not end."""
    made = trainer(tmp_path, model := Model(fails_at=4), Gradwatch(tmp_path / "run", applied=True))
    with pytest.raises(ArithmeticError):
        made.train()
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        model.fails_at = -1
        trainer(tmp_path, model, gradwatch).train()
    assert runs(tmp_path) == ["run", "run-2"]
    assert reason(tmp_path / "run") == "RuntimeError: another training began before this one had ended"


def test_the_callback_is_copied_and_pickled_in_the_middle_of_a_training(tmp_path: Path) -> None:
    """A copy traces nothing, and begins a training of its own."""

    class Copies(TrainerCallback):
        made: list[Gradwatch]

        def on_step_end(self, *_: Any, **others: Any) -> None:
            self.made = [copy.deepcopy(gradwatch), pickle.loads(pickle.dumps(gradwatch))]

    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        trainer(tmp_path, model := Model(), gradwatch, copies := Copies()).train()
    assert_rows(tmp_path / "run", model.rows)
    for number, copied in enumerate(copies.made, 2):
        with closing(copied):
            trainer(tmp_path, model := Model(), copied).train()
        assert_rows(tmp_path / f"run-{number}", model.rows)


def test_a_pretrained_model_is_traced_and_saved(tmp_path: Path) -> None:
    """A small GPT-2 with its tied embedding, its dropout and a trace trains as without, and loads what it has saved."""

    def train(*callbacks: Any) -> Any:
        torch.manual_seed(0)
        made = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2))
        tokens = [{"input_ids": row, "labels": row} for row in torch.arange(64).reshape(8, 8) % 16]
        arguments = TrainingArguments(
            tmp_path / "out", max_steps=3, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
        )
        Trainer(made, arguments, train_dataset=tokens, callbacks=list(callbacks)).train()
        return made

    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        traced = train(gradwatch)
        traced.save_pretrained(tmp_path / "saved")
    assert_same_weights(traced, train())
    before = set(threading.enumerate())
    assert_same_weights(traced, GPT2LMHeadModel.from_pretrained(tmp_path / "saved"))
    # Transformers loads weights with threads of its own, and does not wait for their end.
    for thread in set(threading.enumerate()) - before:
        thread.join()


def test_two_ranks_write_one_run(tmp_path: Path) -> None:
    """Under DDP each rank records its own gradients and the mean that is applied; rank 0 alone logs."""
    succeeded("tests.integrations.test_huggingface", tmp_path)
    assert runs(tmp_path) == ["run", "run-2"]
    for rank in range(RANKS):
        assert_rows(tmp_path / "run-2", kept(tmp_path, rank), rank=rank)
    assert [step for step, _ in metric(tmp_path / "run-2", "loss")] == [0, 1, 2]


def on_two_ranks(folder: Path) -> None:
    """Train twice into one path, and once without a trace, whose weights are the same."""
    for _ in range(2):
        with closing(Gradwatch(folder / "run", applied=True)) as gradwatch:
            trainer(folder, traced := Model(), gradwatch, max_steps=3).train()
    keep(folder, traced.rows)
    trainer(folder, plain := Model(), max_steps=3).train()
    assert_same_weights(traced, plain)


if __name__ == "__main__":
    be_patient()
    on_two_ranks(Path.cwd())
