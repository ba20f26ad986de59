"""skorch's own nets, with the callback and without."""

import pickle
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.integrations.training import Oracle, assert_rows, assert_same_weights, dataset, network, reason, runs
from tests.training import metric

pytestmark = pytest.mark.slow
pytest.importorskip("skorch", reason="skorch is not installed: pip install skorch")

from sklearn.base import clone  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from skorch import NeuralNetRegressor  # noqa: E402
from skorch.callbacks import Callback, Checkpoint, GradientNormClipping, LoadInitState  # noqa: E402
from skorch.hf import AccelerateMixin  # noqa: E402

from tracer.integrations.skorch import Gradwatch  # noqa: E402

DATA = tuple(tensor.numpy() for tensor in dataset().tensors)


class Accumulating(NeuralNetRegressor):  # type: ignore[misc, unused-ignore]
    """Accumulates over two batches, as skorch's documentation does it."""

    def train_step(self, batch: Any, **fit_params: Any) -> Any:
        step = self.train_step_single(batch, **fit_params)
        self.batches = getattr(self, "batches", 0) + 1
        if self.batches % 2 == 0:
            self.optimizer_.step()
            self.optimizer_.zero_grad()
        return step


class Mixed(AccelerateMixin, NeuralNetRegressor):  # type: ignore[misc, unused-ignore]
    """Trains in bfloat16."""

    def __init__(self, *args: Any, accelerator: Any = None, **options: Any) -> None:
        from accelerate import Accelerator

        accelerator = accelerator or Accelerator(cpu=True, mixed_precision="bf16")
        super().__init__(*args, accelerator=accelerator, **options)


class Fails(Callback):  # type: ignore[misc, unused-ignore]
    """Raises at the fourth batch."""

    def on_batch_begin(self, net: Any, **kwargs: Any) -> None:
        if len(net.history[-1, "batches"]) == 4:
            raise ArithmeticError("the batch is bad")


class Pickles(Callback):  # type: ignore[misc, unused-ignore]
    """Pickles the net after each batch."""

    def on_batch_end(self, net: Any, **kwargs: Any) -> None:
        self.made_ = b""
        self.made_ = pickle.dumps(net)


def net(*callbacks: Any, kind: type[NeuralNetRegressor] = NeuralNetRegressor, **options: Any) -> NeuralNetRegressor:
    """A net that trains on six batches an epoch, and shows nothing."""
    options = {"max_epochs": 1, "train_split": None, **options}
    return kind(
        network(), optimizer=torch.optim.Adam, lr=0.01, batch_size=4, verbose=0, callbacks=list(callbacks), **options
    )


def observed(net: NeuralNetRegressor) -> list[Any]:
    """What the oracle sees of the net's next ``partial_fit``."""
    if not net.initialized_:
        net.initialize()
    return Oracle(net.module_, net.optimizer_).rows


@pytest.mark.parametrize(
    ("kind", "callbacks", "steps"),
    [
        pytest.param(NeuralNetRegressor, [], 12, id="plain"),
        pytest.param(Accumulating, [], 6, id="accumulation"),
        pytest.param(NeuralNetRegressor, [GradientNormClipping(1e-3)], 12, id="clipping"),
        pytest.param(Mixed, [], 12, id="mixed precision"),
    ],
)
def test_rows_are_the_oracles_and_training_is_bit_identical(
    kind: type[NeuralNetRegressor], callbacks: list[Any], steps: int, tmp_path: Path
) -> None:
    """Every row is what the update used, in its step, and the weights are those of a training without a trace."""
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        traced = net(gradwatch, *callbacks, kind=kind, max_epochs=2)
        rows = observed(traced)
        traced.partial_fit(*DATA)
    plain = net(*callbacks, kind=kind, max_epochs=2).fit(*DATA)
    assert len(rows) == steps
    assert_rows(tmp_path / "run", rows)
    assert_same_weights(traced.module_, plain.module_)


def test_metrics_stand_at_their_step(tmp_path: Path) -> None:
    """A training loss stands at its step, and scores at their epoch's last one, each once."""
    from skorch.dataset import ValidSplit

    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        traced = net(gradwatch, max_epochs=2, train_split=ValidSplit(3)).fit(*DATA)
    found = traced.history[:, "valid_loss"]
    assert metric(tmp_path / "run", "valid_loss") == [(3, found[0]), (7, found[1])]
    losses = [loss for epoch in traced.history[:, "batches", :, "train_loss"] for loss in epoch]
    assert metric(tmp_path / "run", "loss") == list(enumerate(losses))


def test_a_training_that_goes_on_does_so_at_its_step(tmp_path: Path) -> None:
    """``partial_fit`` goes on in the run, though its batches are not updates; so does the net that was pickled."""
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        traced = net(gradwatch, kind=Accumulating)
        rows = observed(traced)
        traced.partial_fit(*DATA).partial_fit(*DATA)
        del traced.optimizer_.step
        copied = pickle.loads(pickle.dumps(traced))
    more = observed(copied)
    with closing(copied.callbacks[0]):
        copied.partial_fit(*DATA)
    assert runs(tmp_path) == ["run"]
    assert len(rows + more) == 9
    assert_rows(tmp_path / "run", rows + more)


def test_a_checkpoint_is_gone_on_with_at_its_step(tmp_path: Path) -> None:
    """The history of a checkpoint says how many batches there were, whichever callback is the first."""
    saves = Checkpoint(monitor=lambda net: len(net.history) == 2, dirname=tmp_path / "saved")
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        first = net(gradwatch, saves, max_epochs=3)
        rows = observed(first)
        first.partial_fit(*DATA)
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        second = net(gradwatch, LoadInitState(saves), max_epochs=2)
        more = observed(second)
        second.partial_fit(*DATA)
    assert_rows(tmp_path / "run", rows[:12] + more)


def test_two_trainings_have_a_run_each(tmp_path: Path) -> None:
    """A second ``fit`` begins with new weights, in the path's sibling."""
    with closing(Gradwatch(tmp_path / "run", every=2)) as gradwatch:
        traced = net(gradwatch)
        traced.fit(*DATA).fit(*DATA)
    assert [step for step, _ in metric(tmp_path / "run", "loss")] == list(range(6))
    assert [step for step, _ in metric(tmp_path / "run-2", "loss")] == list(range(6))
    assert reason(tmp_path / "run") == reason(tmp_path / "run-2") == ""


def test_an_exception_arrives_as_it_is_and_costs_no_row(tmp_path: Path) -> None:
    """Nobody is told that a training failed: its trace is closed by who has it, or by the next training."""
    gradwatch = Gradwatch(tmp_path / "run", applied=True)
    traced = net(gradwatch, Fails())
    rows = observed(traced)
    with pytest.raises(ArithmeticError) as raised:
        traced.partial_fit(*DATA)
    gradwatch.close(raised.value)
    assert_rows(tmp_path / "run", rows)
    assert reason(tmp_path / "run") == "ArithmeticError: the batch is bad"


def test_a_net_is_cloned_searched_and_changed_with_the_callback(tmp_path: Path) -> None:
    """scikit-learn's clones and searches have arguments of the callback as of any other, and a run for each ``fit``."""
    searched = GridSearchCV(
        net(Gradwatch(tmp_path / "run")), {"callbacks__Gradwatch__every": [1, 3]}, cv=2, scoring="r2", refit=False
    ).fit(*DATA)
    assert np.isfinite(searched.cv_results_["mean_test_score"]).all()
    assert runs(tmp_path) == ["run", "run-2", "run-3", "run-4"]
    cloned = clone(net(Gradwatch(tmp_path / "cloned", every=3))).fit(*DATA)
    with closing(cloned.callbacks[0]) as gradwatch:
        assert gradwatch.options == {"every": 3}
    assert runs(tmp_path)[0] == "cloned"


def test_a_net_is_pickled_in_the_middle_of_a_training(tmp_path: Path) -> None:
    """A net that is pickled while it trains predicts as it did then, and its parameters are those of any other."""
    pickles = Pickles()
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        traced = net(gradwatch, pickles).fit(*DATA)
        traced.save_params(f_params=tmp_path / "params.pt")
    other = net().initialize()
    other.load_params(f_params=tmp_path / "params.pt")
    for copied in (pickle.loads(pickles.made_), other):
        assert copied.predict(DATA[0]).tobytes() == traced.predict(DATA[0]).tobytes()
