"""Keras' own ``fit`` on the torch backend, with the callback and without."""

import copy
import importlib
import json
import math
import os
import pickle
import sys
from contextlib import closing
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import polars as pl
import pytest

import tracer
from tests.integrations.training import Row, assert_rows, reason, runs
from tests.training import events, metric

pytestmark = pytest.mark.slow
os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("keras", reason="Keras is not installed: pip install keras")

import keras  # noqa: E402

from tracer.integrations.keras import Gradwatch  # noqa: E402

WEIGHTS = [
    "conv.kernel",
    "conv.bias",
    "norm.gamma",
    "norm.beta",
    "norm.moving_mean",
    "norm.moving_variance",
    "out.kernel",
    "out.bias",
]


def network(optimizer: Any = None, policy: str = "float32", scale: float = 2.0**10) -> Any:
    """A small network, its weights the same each time."""
    keras.utils.set_random_seed(1)
    layers = [
        keras.Input((6, 6, 1)),
        keras.layers.Conv2D(2, 3, name="conv", dtype=policy),
        keras.layers.BatchNormalization(name="norm", dtype=policy),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(3, name="out"),
    ]
    model = keras.Sequential(layers, name="net")
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), scale, dynamic_growth_steps=2)
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return model


class Oracle:
    """What each update used, taken by hand: every weight, and the gradient that the optimizer's own ``apply`` is given.

    Attributes:
        rows: For each update, each weight's numbers in the columns of the log.
    """

    def __init__(self, model: Any) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._apply = model.optimizer.apply
        model.optimizer.apply = MethodType(self._wrapped, model.optimizer)

    def _wrapped(self, optimizer: Any, gradients: Any, trainable_variables: Any) -> None:
        # What it will divide gradients by.
        scale = float(getattr(optimizer, "dynamic_scale", optimizer.loss_scale_factor or 1))
        given = {id(variable): gradient for variable, gradient in zip(trainable_variables, gradients, strict=True)}
        row: Row = {}
        for name, weight in zip(WEIGHTS, self._model.weights, strict=True):
            gradient = given.get(id(weight))
            taken = {"value": weight.value, "grad": None if gradient is None else gradient.double() / scale}
            row[name] = {
                f"{of}_{extreme}": None if tensor is None else getattr(tensor.detach().double(), extreme)().item()
                for of, tensor in taken.items()
                for extreme in ("min", "max")
            }
        self.rows.append(row)
        self._apply(gradients, trainable_variables)


def fit(model: Any, *callbacks: Any, batches: int = 3, **options: Any) -> None:
    """Train on so many batches of eight examples; they are the same each time."""
    random = np.random.default_rng(2)
    images, targets = random.normal(size=(8 * batches, 6, 6, 1)), random.normal(size=(8 * batches, 3))
    model.fit(images, targets, batch_size=8, shuffle=False, verbose=0, callbacks=list(callbacks), **options)


def recorded(run: Path, param: str) -> list[dict[str, Any]]:
    """The rows of one weight."""
    return tracer.scan(run).filter(pl.col("param") == param).sort("step").collect().to_dicts()


@pytest.mark.parametrize(
    ("optimizer", "policy"),
    [
        pytest.param({}, "float32", id="plain"),
        pytest.param({"gradient_accumulation_steps": 2}, "float32", id="accumulation"),
        pytest.param({"global_clipnorm": 1e-3}, "float32", id="clipping"),
        pytest.param({"loss_scale_factor": 8.0}, "float32", id="a loss that is scaled"),
        pytest.param({}, "mixed_bfloat16", id="mixed precision"),
        pytest.param({}, "mixed_float16", id="mixed precision with a scale"),
    ],
)
def test_rows_are_the_oracles_and_training_is_bit_identical(
    optimizer: dict[str, Any], policy: str, tmp_path: Path
) -> None:
    """Every row is what the batch's update was given, and the weights are those of a training without a trace."""
    traced, plain = (network(keras.optimizers.Adam(0.01, **optimizer), policy) for _ in range(2))
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        oracle = Oracle(traced)
        keras.utils.set_random_seed(3)
        fit(traced, gradwatch, epochs=2)
    keras.utils.set_random_seed(3)
    fit(plain, epochs=2)
    assert len(oracle.rows) == 6
    assert_rows(tmp_path / "run", oracle.rows)
    for one, other in zip(traced.get_weights(), plain.get_weights(), strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_batch_that_keras_skips_is_a_step_with_what_it_found(tmp_path: Path) -> None:
    """Under too large a scale gradients are infinite and nothing is updated; a second ``fit`` goes on after that."""
    model = network(policy="mixed_float16", scale=2.0**19)
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        for _ in range(2):
            fit(model, gradwatch, epochs=3)
    kernels = recorded(tmp_path / "run", "conv.kernel")
    assert [row["step"] for row in kernels] == list(range(18))
    skipped = [row["step"] for row in kernels if not math.isfinite(row["grad_max"])]
    assert len(skipped) == 18 - int(model.optimizer.iterations)
    assert skipped[0] == 0
    assert all(kernels[step]["value_max"] == kernels[step + 1]["value_max"] for step in skipped)


def test_weights_have_keras_own_names_and_order(tmp_path: Path) -> None:
    """The log names weights by their paths, layer after layer, and holds no state of a random generator beside them."""
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        fit(network(), gradwatch)
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [param["name"] for param in described["params"]] == WEIGHTS
    assert [param["trainable"] for param in described["params"]] == [True] * 4 + [False] * 2 + [True] * 2
    assert described["model"] == "Sequential"


def test_weights_of_one_path_are_told_apart(tmp_path: Path) -> None:
    """Two layers of one name are two weights, though Keras' own module for torch holds one of them alone."""

    class Twins(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="twins")
            self.one, self.two = (keras.layers.Dense(3, use_bias=False, name="same") for _ in range(2))

        def call(self, inputs: Any) -> Any:
            return self.two(self.one(keras.ops.reshape(inputs, (-1, 36))))

    model = Twins()
    model.compile("sgd", "mse")
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        fit(model, gradwatch, batches=1)
    assert [len(recorded(tmp_path / "run", f"same.kernel{mark}")) for mark in ("", "_")] == [1, 1]


def test_metrics_stand_at_their_step(tmp_path: Path) -> None:
    """A loss stands at its batch, a validation and a later ``evaluate`` at the latest one, each once."""
    model = network()
    data = np.zeros((4, 6, 6, 1)), np.zeros((4, 3))
    with closing(Gradwatch(tmp_path / "run")) as gradwatch:
        fit(model, gradwatch, epochs=2, validation_data=data)
        found = model.evaluate(*data, verbose=0, callbacks=[gradwatch], return_dict=True)
    losses = metric(tmp_path / "run", "loss")
    assert [step for step, _ in losses] == list(range(6))
    assert [losses[2][1], losses[5][1]] == model.history.history["loss"]
    validations = metric(tmp_path / "run", "val_mae")
    assert [step for step, _ in validations] == [2, 5, 5]
    assert [number for _, number in validations] == [*model.history.history["val_mae"], found["mae"]]


def test_a_training_that_goes_on_does_so_at_its_step(tmp_path: Path) -> None:
    """A second ``fit`` of the same model, and one of the model that was saved and loaded, go on in the run."""
    model = network()
    rows = Oracle(model).rows
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        fit(model, gradwatch)
        fit(model, gradwatch)
    del model.optimizer.apply
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    more = Oracle(loaded).rows
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        fit(loaded, gradwatch)
    assert runs(tmp_path) == ["run"]
    assert_rows(tmp_path / "run", rows + more)
    assert [step for step, *_ in events(tmp_path / "run", "resumed")] == [3, 6]


def test_a_backup_that_is_restored_makes_later_steps_an_earlier_attempt(tmp_path: Path) -> None:
    """Keras restores the last epoch after the callback has seen the training begin, and the step goes on there."""
    first, second = network(), network()
    rows = Oracle(first).rows
    backup = tmp_path / "backup"

    class Fails(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if len(rows) == 5:
                raise ArithmeticError("the machine is gone")

    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch, pytest.raises(ArithmeticError):
        fit(first, gradwatch, keras.callbacks.BackupAndRestore(backup), Fails(), epochs=3)
    more = Oracle(second).rows
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        fit(second, gradwatch, keras.callbacks.BackupAndRestore(backup), epochs=3)
    assert len(more) == 6
    assert_rows(tmp_path / "run", rows[:3] + more)


def test_a_training_from_the_beginning_has_a_run_of_its_own(tmp_path: Path) -> None:
    """A second model that trains into the same path gets its sibling, and the first run has ended well."""
    gradwatch = Gradwatch(tmp_path / "run", applied=True)
    oracles = []
    for _ in range(2):
        model = network()
        oracles.append(Oracle(model))
        fit(model, gradwatch)
    gradwatch.close()
    assert_rows(tmp_path / "run", oracles[0].rows)
    assert_rows(tmp_path / "run-2", oracles[1].rows)
    assert reason(tmp_path / "run") == reason(tmp_path / "run-2") == ""


def test_an_exception_arrives_as_it_is_and_costs_no_row(tmp_path: Path) -> None:
    """Keras tells nobody that a training failed: its trace is closed by who has it, or by the next training."""
    model, error = network(), ArithmeticError("the batch is bad")
    rows = Oracle(model).rows

    class Fails(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 2:
                raise error

    gradwatch = Gradwatch(tmp_path / "run", applied=True)
    with pytest.raises(ArithmeticError) as raised:
        fit(model, gradwatch, Fails())
    assert raised.value is error
    with closing(Gradwatch(tmp_path / "other")) as other:
        fit(network(), other)
    gradwatch.close(error)
    assert_rows(tmp_path / "run", rows)
    assert reason(tmp_path / "run") == "ArithmeticError: the batch is bad"


def test_models_are_saved_and_callbacks_copied_in_the_middle_of_a_training(tmp_path: Path) -> None:
    """A checkpoint of a traced model is that of an untraced one; a copy of the callback traces nothing."""

    class Saves(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.save(tmp_path / "model.keras")
            keras.saving.load_model(tmp_path / "model.keras")
            self.copies = [copy.deepcopy(gradwatch.trace), pickle.loads(pickle.dumps(gradwatch.trace))]

    model = network()
    with closing(Gradwatch(tmp_path / "run", applied=True)) as gradwatch:
        fit(model, gradwatch, Saves())
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        assert one.tobytes() == other.tobytes()


def test_another_backend_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose Keras runs on something else reads what to set."""
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.delitem(sys.modules, "tracer.integrations.keras")
    with pytest.raises(ImportError, match=r"^Keras runs on jax: set KERAS_BACKEND=torch before it is imported$"):
        importlib.import_module("tracer.integrations.keras")
