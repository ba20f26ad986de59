"""fastai's own learner, with the callback and without."""

import math
import pickle
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.integrations.training import Oracle, assert_rows, assert_same_weights, dataset, network, reason, runs
from tests.training import metric, recorded

pytestmark = pytest.mark.slow
pytest.importorskip("fastai", reason="fastai is not installed: pip install fastai")

import fastai.callback.schedule  # noqa: E402, F401
from fastai.callback.core import Callback, CancelStepException  # noqa: E402
from fastai.callback.fp16 import MixedPrecision  # noqa: E402
from fastai.callback.training import GradientAccumulation, GradientClip, ShortEpochCallback  # noqa: E402
from fastai.data.core import DataLoaders  # noqa: E402
from fastai.learner import Learner  # noqa: E402
from fastai.metrics import mae  # noqa: E402
from fastai.optimizer import SGD, OptimWrapper  # noqa: E402

from tracer.integrations.fastai import Gradwatch  # noqa: E402


class MixedOnCpu(MixedPrecision):  # type: ignore[misc, unused-ignore]
    """As the class of fastai, which knows CUDA alone, on the CPU."""

    scale = 64.0

    def before_fit(self) -> None:
        self.autocast, self.scales = torch.autocast("cpu", torch.float16), list[float]()
        self.learn.scaler = torch.amp.GradScaler("cpu", init_scale=self.scale, growth_interval=100)


class Fails(Callback):  # type: ignore[misc, unused-ignore]
    """Raises at the fourth batch."""

    def before_batch(self) -> None:
        if self.iter == 3:
            raise ArithmeticError("the batch is bad")


class Cancels(Callback):  # type: ignore[misc, unused-ignore]
    """Keeps the optimizer from the third update."""

    def before_step(self) -> None:
        if self.iter == 2:
            raise CancelStepException


class Pickles(Callback):  # type: ignore[misc, unused-ignore]
    """Pickles the learner after each batch that trains."""

    run_valid = False
    made = b""

    def after_batch(self) -> None:
        self.made = b""
        self.made = pickle.dumps(self.learn)


def learner(folder: Path, *callbacks: Any, **options: Any) -> Learner:
    """A learner that trains on six batches an epoch, always the same ones."""
    examples = list(zip(*dataset().tensors, strict=True))
    loaders = DataLoaders.from_dsets(examples, examples, bs=4, shuffle=False, device="cpu", num_workers=0)
    return Learner(
        loaders, network(), nn.MSELoss(), metrics=mae, path=folder, cbs=list(callbacks), **{"lr": 0.01, **options}
    )


def observed(learner: Learner) -> list[Any]:
    """What the oracle sees of the learner's trainings."""
    if learner.opt is None:
        learner.create_opt()
    return Oracle(learner.model, learner.opt).rows


def of_fastai(rows: list[Any], scale: float = 1.0) -> list[Any]:
    """The oracle's rows as the log has them under fastai's own optimizers: nobody sees what they apply."""
    for row in rows:
        for numbers in row.values():
            for column in list(numbers):
                if column.startswith("applied"):
                    del numbers[column]
                elif column.startswith("grad"):
                    numbers[column] /= scale
    return rows


@pytest.mark.parametrize(
    ("callbacks", "options", "steps"),
    [
        pytest.param([], {}, 12, id="plain"),
        pytest.param([], {"opt_func": SGD}, 12, id="plain SGD"),
        pytest.param([GradientAccumulation(8)], {}, 6, id="accumulation"),
        pytest.param([GradientClip(1e-3)], {}, 12, id="clipping"),
        pytest.param([MixedOnCpu()], {}, 12, id="mixed precision"),
        pytest.param([MixedPrecision()], {}, 12, id="mixed precision that the CPU lacks"),
        pytest.param([], {"opt_func": partial(OptimWrapper, opt=torch.optim.AdamW)}, 12, id="an optimizer of torch"),
    ],
)
def test_rows_are_the_oracles_and_training_is_bit_identical(
    callbacks: list[Any], options: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    """Every row is what the update used, in its step, and the weights are those of a training without a trace."""
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        traced = learner(tmp_path, gradwatch, *callbacks, **options)
        rows = observed(traced)
        fit(traced, 2)
    plain = learner(tmp_path, *callbacks, **options)
    fit(plain, 2)
    assert len(rows) == steps
    if not isinstance(options.get("opt_func"), partial):
        of_fastai(rows, 64.0 if any(isinstance(callback, MixedOnCpu) for callback in callbacks) else 1.0)
    assert_rows(tmp_path / "run", rows)
    assert_same_weights(traced.model, plain.model)


def test_a_step_that_the_scaler_skips_is_one_of_its_own(tmp_path: Path) -> None:
    """Under too large a scale gradients are infinite: the row says so, ``skipped`` is 1, and the scale is halved."""
    scaled = MixedOnCpu()
    scaled.scale = 2.0**18
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        fit(learner(tmp_path, gradwatch, scaled), 2)
    skipped = [number == 1.0 for _, number in metric(tmp_path / "run", "skipped")]
    finite = [True] * 12
    for (step, _), row in recorded(tmp_path / "run").items():
        finite[step] &= math.isfinite(row["grad_min"]) and math.isfinite(row["grad_max"])
    assert skipped[0]
    assert not skipped[-1]
    assert finite == [not bad for bad in skipped]
    scales = [number for _, number in metric(tmp_path / "run", "amp_scale")]
    assert scales == [2.0 ** (18 - min(step, sum(skipped))) for step in range(12)]


def test_a_step_that_is_cancelled_without_a_scale_is_none(tmp_path: Path) -> None:
    """What a callback keeps from updating stands in no step's row; each other row is the oracle's."""
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        traced = learner(tmp_path, gradwatch, Cancels())
        rows = observed(traced)
        fit(traced, 1)
    assert len(rows) == 5
    assert len(metric(tmp_path / "run", "loss")) == 5
    assert_rows(tmp_path / "run", of_fastai(rows))


def test_metrics_stand_at_their_step(tmp_path: Path) -> None:
    """A loss stands at its step, an epoch's metrics at its latest one, each once, under fastai's names."""
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        traced = learner(tmp_path, gradwatch)
        fit(traced, 2)
        values = [list(value) for value in traced.recorder.values]
        with traced.no_mbar():
            traced.get_preds()
            traced.validate()
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == list(range(12))
    for place, name in enumerate(("train_loss", "valid_loss", "mae")):
        assert metric(tmp_path / "run", name) == [(5, values[0][place]), (11, values[1][place])]
    assert metric(tmp_path / "run", "epoch") == []


def test_an_epoch_that_is_cut_short_has_no_metrics_under_wrong_names(tmp_path: Path) -> None:
    """Of an epoch whose training is cancelled, fastai shows fewer numbers than names; the losses are there."""
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        fit(learner(tmp_path, gradwatch, ShortEpochCallback(0.5)), 1)
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == list(range(4))
    assert metric(tmp_path / "run", "train_loss") == []


def test_a_search_for_a_learning_rate_is_no_training(tmp_path: Path) -> None:
    """``lr_find`` trains and puts the weights back: neither before a training nor after it is anything recorded."""
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        traced = learner(tmp_path, gradwatch)
        search(traced)
        assert runs(tmp_path) == []
        rows = observed(traced)
        fit(traced, 1)
        kept = rows[:]
        search(traced)
    assert len(kept) == 6
    assert_rows(tmp_path / "run", of_fastai(kept))
    assert len(metric(tmp_path / "run", "loss")) == 6


def search(learner: Learner) -> None:
    """Search for a learning rate, and show nothing."""
    with learner.no_logging(), learner.no_mbar():
        learner.lr_find(num_it=8, show_plot=False, suggest_funcs=None)


def test_a_training_that_goes_on_does_so_at_its_step(tmp_path: Path) -> None:
    """A second ``fit`` of a learner, as in ``fine_tune``, goes on in the run, though its batches are not updates."""
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        traced = learner(tmp_path, gradwatch, GradientAccumulation(8))
        rows = observed(traced)
        with traced.no_logging(), traced.no_mbar():
            traced.fine_tune(1)
    assert runs(tmp_path) == ["run"]
    assert len(rows) == 6
    assert_rows(tmp_path / "run", of_fastai(rows))


def test_a_checkpoint_is_gone_on_with_at_its_step(tmp_path: Path) -> None:
    """``start_epoch`` tells how many batches there were in the epochs that are left out."""
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        first = learner(tmp_path, gradwatch)
        rows = observed(first)
        fit(first, 1)
        first.save("saved")
        fit(first, 1)
    second = learner(tmp_path)
    more = observed(second)
    second.load("saved")
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        second.add_cb(gradwatch)
        fit(second, 3, start_epoch=1)
    assert len(more) == 12
    assert_rows(tmp_path / "run", of_fastai(rows[:6] + more))


def test_two_trainings_have_a_run_each(tmp_path: Path) -> None:
    """Another learner gets the path's sibling, though its callback is the same, and the first run has ended well."""
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        for name in ("run", "run-2"):
            traced = learner(tmp_path, gradwatch)
            rows = observed(traced)
            fit(traced, 1)
            assert gradwatch.trace is not None
            assert gradwatch.trace.path.name == name
    assert_rows(tmp_path / "run-2", of_fastai(rows))
    assert reason(tmp_path / "run") == reason(tmp_path / "run-2") == ""


def test_an_exception_arrives_as_it_is_and_costs_no_row(tmp_path: Path) -> None:
    """Nobody is told that a training failed: its trace is closed by who has it, or by the next training."""
    gradwatch = Gradwatch(tmp_path / "run", applied=True)
    traced = learner(tmp_path, gradwatch, Fails())
    rows = observed(traced)
    with pytest.raises(ArithmeticError) as raised:
        fit(traced, 1)
    gradwatch.close(raised.value)
    assert_rows(tmp_path / "run", of_fastai(rows))
    assert "the batch is bad" in reason(tmp_path / "run")


def test_a_learner_is_exported_in_the_middle_of_a_training(tmp_path: Path) -> None:
    """A learner that is pickled while it trains has the weights of then, and its copy of the callback is idle."""
    pickles = Pickles()
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        traced = learner(tmp_path, gradwatch, pickles)
        fit(traced, 1)
    copied = pickle.loads(pickles.made)
    assert_same_weights(copied.model, traced.model)
    assert copied.gradwatch.trace.state_dict() == {"step": 6}


def fit(learner: Learner, epochs: int, **options: Any) -> None:
    """Train, and show no table and no bar."""
    with learner.no_logging(), learner.no_mbar():
        learner.fit(epochs, **options)
