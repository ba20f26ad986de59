"""Ultralytics: callbacks.

``Gradwatch("runs/a").attach(YOLO("yolo11n.yaml"))`` traces each ``train`` of the model. Under DDP nothing is traced:
Ultralytics starts processes of its own, without the user's callbacks.
"""

import sys
from collections.abc import Mapping
from typing import Any, Self

from tracer.integrations.shell import Shell, needs

with needs("ultralytics", "ultralytics"):
    from ultralytics.engine.model import Model


class Gradwatch(Shell):
    """Traces every ``train`` of the model that it is attached to."""

    def attach(self, model: Model) -> Self:
        """Follow the trainings of a model.

        Args:
            model: A ``YOLO``, ``RTDETR`` or the like.
        """
        for event, callback in {
            "on_train_start": self._on_train_start,
            "on_train_batch_end": self._on_train_batch_end,
            "on_train_epoch_end": self._on_train_epoch_end,
            "on_fit_epoch_end": self._on_fit_epoch_end,
            "on_train_end": lambda trainer: self._end(),
            "teardown": lambda trainer: self.close(sys.exc_info()[1]),
        }.items():
            model.add_callback(event, callback)
        return self

    def _on_train_start(self, trainer: Any) -> None:
        updates = trainer.ema.updates if trainer.start_epoch else 0
        self._begin(trainer.model, step=updates, scaler=trainer.scaler)

    def _on_train_batch_end(self, trainer: Any) -> None:
        losses = trainer.loss_items
        if not isinstance(losses, Mapping):
            # Before version 8.4.
            losses = dict(zip(trainer.loss_names, losses, strict=False))
        self._log({"loss": trainer.loss.detach(), **losses})

    def _on_train_epoch_end(self, trainer: Any) -> None:
        self._before = trainer.metrics

    def _on_fit_epoch_end(self, trainer: Any) -> None:
        # Not those of an earlier epoch, nor those of the best checkpoint, which is validated once more at the end.
        if self._before is not None and trainer.metrics is not self._before:
            self._log(trainer.metrics)
        self._before = None
