"""Lightning: a callback that joins the trainer's loggers.

``Trainer(callbacks=[Gradwatch("runs/a")])`` traces each ``fit``, and records what is logged.
"""

import sys
from collections.abc import Mapping
from typing import Any

from tracer.integrations.shell import Shell, needs
from tracer.warn import warn

with needs("lightning", "lightning"):
    # One framework under two names, whose classes do not mix.
    if "pytorch_lightning" in sys.modules and "lightning" not in sys.modules:
        from pytorch_lightning import Callback
        from pytorch_lightning.loggers import Logger
    else:
        from lightning.pytorch import Callback
        from lightning.pytorch.loggers import Logger


class Gradwatch(Shell, Callback, Logger):
    """Traces each ``fit`` of a trainer that has it among its callbacks; with ``logger=False`` no metric is recorded."""

    @property
    def name(self) -> str:
        """What Lightning calls this logger."""
        return "gradwatch"

    @property
    def version(self) -> str:
        """The number of the run among those of the same path."""
        return str(self._number)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin when the checkpoint is restored, and searches for a learning rate or batch size are over."""
        if next(callback for callback in trainer.callbacks if isinstance(callback, Gradwatch)) is not self:
            return  # The environment asked for another one.
        if trainer.loggers and self not in trainer.loggers:
            trainer.loggers = [*trainer.loggers, self]
        batches = trainer.estimated_stepping_batches
        total = batches if isinstance(batches, int) and batches > 0 else None
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._begin(pl_module, step=trainer.global_step, scaler=scaler, total_steps=total)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Let a later ``test`` log."""
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close with the reason."""
        self.close(exception)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the step."""
        checkpoint["gradwatch"] = self._state()

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Mapping[str, Any]) -> None:
        """Restore the step."""
        self._restore(checkpoint.get("gradwatch", {}))

    def log_metrics(self, metrics: Mapping[str, object], step: int | None = None) -> None:
        """Record the metrics at the step of the latest backward."""
        self._log(metrics)

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Say so where nothing is traced, as the trainer has this as its logger only."""
        if self not in model.trainer.callbacks:
            warn("this trainer logs here and traces nothing: give it Gradwatch among its callbacks, too")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Record none: a run has no place for them."""
