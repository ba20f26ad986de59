"""Lightning's own trainer, with the callback and without."""

import copy
import pickle
import subprocess
import tomllib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import viewer
from tests.distributed.launch import RANKS, succeeded
from tests.integrations.training import (
    ROOT,
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
from tracer.warn import TracerWarning

pytestmark = pytest.mark.slow
pytest.importorskip("lightning", reason="Lightning is not installed: pip install lightning")

import lightning.pytorch as lightning  # noqa: E402

from tracer.integrations.lightning import Gradwatch  # noqa: E402


class Module(lightning.LightningModule):
    """A module that logs at each step and after each validation; it fails at a batch of its choice."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.network = network()
        self.fails_at = fails_at
        self.rows: list[Any] = []

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return nn.functional.mse_loss(self.network(batch[0]), batch[1])

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        if index == self.fails_at:
            raise ArithmeticError("the batch is bad")
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        self.rows = Oracle(self, optimizer).rows
        return optimizer


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Any:
    """A trainer of six steps of four examples that shows nothing, and logs into a CSV file."""
    options = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": lightning.loggers.CSVLogger(folder / "csv"),
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        **options,
    }
    return lightning.Trainer(
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def loader() -> DataLoader[Any]:
    """Six batches."""
    return DataLoader(dataset(), batch_size=4)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        pytest.param({}, 6, id="plain"),
        pytest.param({"accumulate_grad_batches": 2}, 3, id="accumulation"),
        pytest.param({"gradient_clip_val": 1e-3}, 6, id="clipping"),
        pytest.param({"precision": "bf16-mixed"}, 6, id="mixed precision"),
        pytest.param({"max_epochs": 2}, 12, id="two epochs"),
    ],
)
def test_rows_are_the_oracles_and_training_is_bit_identical(
    options: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    """Every row is what the update used, in its step, and the weights are those of a training without a trace."""
    traced, plain = Module(), Module()
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        trainer(tmp_path, gradwatch, **options).fit(traced, loader())
    trainer(tmp_path, **options).fit(plain, loader())
    assert len(traced.rows) == steps
    assert_rows(tmp_path / "run", traced.rows)
    assert_same_weights(traced, plain)


def test_a_training_that_was_not_traced_is_judged_by_what_it_logged(tmp_path: Path) -> None:
    """``viewer check`` takes the file of Lightning's ``CSVLogger``: all metrics in it, and nothing found."""
    trainer(tmp_path, max_epochs=2).fit(Module(), loader(), loader())
    (path,) = tmp_path.rglob("metrics.csv")
    (run,) = viewer.check(path).runs
    assert (run.last_step, run.findings) == (11, ())


def test_metrics_stand_at_their_step(tmp_path: Path) -> None:
    """A loss stands at its own step, a validation and a later test at the latest one, each once; epochs do not."""
    module = Module()
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        fitted = trainer(tmp_path, gradwatch, max_epochs=2, val_check_interval=3)
        fitted.fit(module, loader(), loader())
        fitted.test(module, loader(), verbose=False)
    assert settings(tmp_path / "run")["total_steps"] == 12
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == list(range(12))
    assert [step for step, _ in metric(tmp_path / "run", "val_loss")] == [2, 5, 8, 11]
    (tested,) = metric(tmp_path / "run", "test_loss")
    assert tested == (11, fitted.callback_metrics["test_loss"].item())
    assert metric(tmp_path / "run", "epoch") == []


def test_a_resumed_training_goes_on_at_its_step_in_its_run(tmp_path: Path) -> None:
    """From a checkpoint, rows go on where it was saved, in the run that it was saved in, though that is a sibling."""
    module = Module()
    for name in ("other", "saved"):
        with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
            fitted = trainer(tmp_path, gradwatch)
            fitted.fit(module := Module(), loader())
            fitted.save_checkpoint(tmp_path / f"{name}.ckpt")
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        trainer(tmp_path, gradwatch, max_epochs=2).fit(resumed := Module(), loader(), ckpt_path=tmp_path / "saved.ckpt")
    assert runs(tmp_path) == ["run", "run-2"]
    assert_rows(tmp_path / "run-2", module.rows + resumed.rows)
    assert [step for step, *_ in events(tmp_path / "run-2", "resumed")] == [6]
    assert events(tmp_path / "run-2", "restored") == []


def test_a_training_that_is_restored_to_an_earlier_step_goes_on_there(tmp_path: Path) -> None:
    """A checkpoint of step 3 of a run of 6 steps makes the later ones an earlier attempt."""
    saves = lightning.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        trainer(tmp_path, gradwatch, saves, enable_checkpointing=True).fit(first := Module(), loader())
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        trainer(tmp_path, gradwatch).fit(second := Module(), loader(), ckpt_path=tmp_path / "step=3.ckpt")
    assert_rows(tmp_path / "run", first.rows[:3] + second.rows)


def test_checkpoints_do_not_need_the_callback(tmp_path: Path) -> None:
    """A checkpoint of a traced training is loaded without a trace, and one of an untraced training with one."""
    for number, callbacks in enumerate([(), (Gradwatch(tmp_path / "run"),)]):
        fitted = trainer(tmp_path, *callbacks)
        fitted.fit(Module(), loader())
        fitted.save_checkpoint(tmp_path / f"{number}.ckpt")
        for callback in callbacks:
            callback.close()
    trainer(tmp_path, max_epochs=2).fit(Module(), loader(), ckpt_path=tmp_path / "1.ckpt")
    Module.load_from_checkpoint(tmp_path / "1.ckpt")
    with closing(Gradwatch(tmp_path / "new", applied=True)) as gradwatch:
        trainer(tmp_path, gradwatch, max_epochs=2).fit(module := Module(), loader(), ckpt_path=tmp_path / "0.ckpt")
    assert_rows(tmp_path / "new", module.rows, first=6)


def test_two_trainings_have_a_run_each(tmp_path: Path) -> None:
    """A second training of the same model by another trainer gets the path's sibling, and ends the first run well."""
    module = Module()
    gradwatch = Gradwatch(tmp_path / "run", applied=True)
    trainer(tmp_path, gradwatch).fit(module, loader())
    first = module.rows
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        trainer(tmp_path, gradwatch).fit(module, loader())
    assert_rows(tmp_path / "run", first)
    assert_rows(tmp_path / "run-2", module.rows)
    assert reason(tmp_path / "run") == reason(tmp_path / "run-2") == ""


def test_an_exception_ends_the_run_with_its_reason(tmp_path: Path) -> None:
    """The run has closed when the exception arrives, with what was recorded until then."""
    module = Module(fails_at=4)
    with pytest.raises(ArithmeticError):
        trainer(tmp_path, Gradwatch(tmp_path / "run", applied=True)).fit(module, loader())
    assert reason(tmp_path / "run") == "ArithmeticError: the batch is bad"
    assert_rows(tmp_path / "run", module.rows)


def test_the_callback_is_copied_and_pickled_in_the_middle_of_a_training(tmp_path: Path) -> None:
    """A copy traces nothing, and begins a training of its own; so does the copy of a trainer's checkpoint."""

    class Copies(lightning.Callback):
        made: list[Gradwatch]

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.made = [copy.deepcopy(trainer.callbacks[0]), pickle.loads(pickle.dumps(trainer.callbacks[0]))]

    copies = Copies()
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        trainer(tmp_path, gradwatch, copies).fit(module := Module(), loader())
    assert_rows(tmp_path / "run", module.rows)
    for number, gradwatch in enumerate(copies.made, 2):
        with closing(gradwatch):
            trainer(tmp_path, gradwatch).fit(module := Module(), loader())
        assert_rows(tmp_path / f"run-{number}", module.rows)


def test_two_ranks_write_one_run(tmp_path: Path) -> None:
    """Under DDP each rank records its own gradients and the mean that is applied; rank 0 alone logs."""
    succeeded("tests.integrations.test_lightning", tmp_path)
    assert runs(tmp_path) == ["run", "run-2"]
    for rank in range(RANKS):
        assert_rows(tmp_path / "run-2", kept(tmp_path, rank), rank=rank)
    assert [step for step, _ in metric(tmp_path / "run-2", "loss")] == [0, 1, 2]


def on_two_ranks(folder: Path) -> None:
    """Train twice into one path, and once without a trace, whose weights are the same."""
    ddp = {"strategy": "ddp", "devices": RANKS}
    for _ in range(2):
        with closing(Gradwatch(folder / "run", applied=True)) as gradwatch:
            trainer(folder, gradwatch, **ddp).fit(traced := Module(), loader())
    keep(folder, traced.rows)
    trainer(folder, **ddp).fit(plain := Module(), loader())
    assert_same_weights(traced, plain)


def test_what_is_no_number_is_left_out_and_said_once(tmp_path: Path) -> None:
    """A text, a None, a dict and a tensor of many elements cost no other metric; one warning names them."""
    odd = {"text": "a", "none": None, "dict": {"a": 1}, "many": torch.ones(3), "loss/a": torch.tensor(0.5), "epoch": 1}

    class Logs(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            for logger in trainer.loggers[1:]:
                logger.log_metrics(odd)

    with (
        closing(Gradwatch(tmp_path / "run")) as gradwatch,
        pytest.warns(TracerWarning, match="no numbers are not recorded: text, none, dict, many$") as warned,
    ):
        trainer(tmp_path, gradwatch, Logs()).fit(Module(), loader())
    assert len([warning for warning in warned if "gradwatch" in str(warning.message)]) == 1
    assert metric(tmp_path / "run", "loss/a") == [(step, 0.5) for step in range(6)]


def test_a_trainer_that_has_it_as_its_logger_only_is_told(tmp_path: Path) -> None:
    """A logger is not told of a training, so one warning says where the callback belongs; as both, it logs once."""
    with pytest.warns(TracerWarning, match="among its callbacks"):
        trainer(tmp_path, logger=Gradwatch(tmp_path / "run")).fit(Module(), loader())
    assert runs(tmp_path) == []
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        trainer(tmp_path, gradwatch, logger=gradwatch).fit(Module(), loader())
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == list(range(6))


def test_a_wrong_argument_is_said_at_once() -> None:
    """What ``attach`` does not take is an error before the training."""
    with pytest.raises(TypeError, match="evry"):
        Gradwatch("run", evry=3)


def script(folder: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that finds this house installed, with its entry points."""
    installed = folder / "site" / "torch_gradwatch-0.dist-info"
    installed.mkdir(parents=True, exist_ok=True)
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [line for group, points in groups.items() for line in (f"[{group}]", *map(" = ".join, points.items()))]
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-gradwatch\nVersion: 0\n")
    (installed / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return in_a_process(folder, code, folder / "site", **environment)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a script ran with ``GRADWATCH=runs/a``: one training says nothing of a trace, one has its own callback."""
    folder = tmp_path_factory.mktemp("scripted")
    code = """
from pathlib import Path
from tests.integrations.test_lightning import Gradwatch, Module, be_patient, loader, trainer
be_patient()
trainer(Path()).fit(Module(), loader())
trainer(Path(), Gradwatch("runs/b")).fit(Module(), loader())
"""
    ended = script(folder, code, GRADWATCH="runs/a")
    assert ended.returncode == 0, ended.stderr
    return folder / "runs"


def test_the_environment_starts_a_trace_without_code(scripted: Path) -> None:
    """``GRADWATCH=runs/a`` traces a training whose script says nothing of it; its process's exit closes the run."""
    assert [step for step, _ in metric(scripted / "a", "loss")] == list(range(6))
    assert reason(scripted / "a") == ""


def test_a_script_with_a_callback_of_its_own_has_one_trace(scripted: Path) -> None:
    """The callback that the script gives wins over the environment's."""
    assert runs(scripted) == ["a", "b"]
    assert [step for step, _ in metric(scripted / "b", "loss")] == list(range(6))


def test_without_the_environment_a_users_tracer_py_harms_no_trainer(tmp_path: Path) -> None:
    """A script beside a ``tracer.py`` of its own, which hides ours, makes a trainer as before."""
    (tmp_path / "tracer.py").write_text("")
    ended = script(
        tmp_path, "import lightning.pytorch as L\nL.Trainer(logger=False, accelerator='cpu')\n", GRADWATCH=""
    )
    assert ended.returncode == 0, ended.stderr


def test_pytorch_lightning_is_accepted_too(tmp_path: Path) -> None:
    """The framework's other name, whose classes are others, takes the callback."""
    pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    code = """
import sys
import pytorch_lightning
import torch
from tests.integrations.training import be_patient, dataset, network
be_patient()
class Module(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = network()
    def training_step(self, batch, index):
        loss = self.network(batch[0]).square().mean()
        self.log("loss", loss)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
trainer = pytorch_lightning.Trainer(accelerator="cpu", max_steps=3, log_every_n_steps=1, enable_checkpointing=False)
trainer.fit(Module(), torch.utils.data.DataLoader(dataset(), batch_size=4))
assert "lightning" not in sys.modules
"""
    ended = script(tmp_path, code, GRADWATCH="runs/a")
    assert ended.returncode == 0, ended.stderr
    assert [step for step, _ in metric(tmp_path / "runs" / "a", "loss")] == [0, 1, 2]


if __name__ == "__main__":
    be_patient()
    on_two_ranks(Path.cwd())
