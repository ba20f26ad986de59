"""Keras 3 on the torch backend: a callback.

``model.fit(x, y, callbacks=[Gradwatch("runs/a")])`` traces each ``fit``. The losses and metrics are Keras' own: means
over the epoch so far.
"""

from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from tracer.integrations.shell import Shell, needs

with needs("keras", "keras"):
    import keras

if keras.backend.backend() != "torch":
    raise ImportError(f"Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=torch before it is imported")


class Gradwatch(Shell, keras.callbacks.Callback):
    """Traces every ``fit`` that has it among its callbacks: each batch is a step.

    Keras has its own optimizers, so that ``applied=True`` finds nothing, and its layers call no hooks of torch, so that
    ``activations=True`` does not either. With ``gradient_accumulation_steps`` each batch is a step, too: Keras adds up
    gradients where nobody sees them.
    """

    _skipped = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Another training begins."""
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begin when the other callbacks have restored their checkpoint."""
        if not self._begun:
            self._begun = True
            # The trace ends with the module that it was given.
            self._weights = _weights(self.model)
            batches = _batches(self.model.optimizer)
            self._begin(self._weights, step=batches and batches + self._skipped, scaler=_scaler(self.model.optimizer))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """End the step."""
        self._step(logs or {})

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Note how many batches Keras does not count: where gradients were infinite under a loss scale."""
        self._skipped = self._state()["step"] - _batches(self.model.optimizer)

    def on_test_end(self, logs: Any = None) -> None:
        """Record a validation, or an ``evaluate`` that has this callback."""
        self._log({f"val_{name}": metric for name, metric in (logs or {}).items()})

    def on_train_end(self, logs: Any = None) -> None:
        """Let a later ``evaluate`` log."""
        self._end()


def _weights(model: Any) -> nn.Module:
    """A model's weights by their paths, with dots, in Keras' order; torch sees them in one module, sorted by name."""
    weights: nn.Module = type(type(model).__name__, (nn.Module,), {})()
    for weight in model.weights:
        # A model that was loaded leaves its own name out.
        name = weight.path.removeprefix(f"{model.name}/").replace("/", ".")
        while name in weights._parameters:
            name += "_"
        # Not ``register_parameter``, which refuses dots.
        weights._parameters[name] = weight.value
    return weights


def _batches(optimizer: Any) -> int:
    """How many batches an optimizer has seen."""
    updates = getattr(optimizer, "inner_optimizer", optimizer)
    return int(updates.iterations) * (updates.gradient_accumulation_steps or 1)


def _scaler(optimizer: Any) -> GradScaler | None:
    """Keras' loss scale as ``attach`` takes it; None if it scales nothing."""
    dynamic = getattr(optimizer, "dynamic_scale", None)
    if dynamic is None and optimizer.loss_scale_factor is None:
        return None
    scaler = GradScaler("cpu")
    # Keras changes it in place.
    scaler._scale = torch.tensor(optimizer.loss_scale_factor) if dynamic is None else dynamic.value
    return scaler
