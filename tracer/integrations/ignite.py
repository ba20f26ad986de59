"""PyTorch Ignite: a handler.

``Gradwatch("runs/a").attach(trainer, model, val=evaluator)`` traces each ``run`` of the trainer. Metrics of the
evaluator are called ``val_…``. For the step to go on after a checkpoint, give the handler to ``Checkpoint`` with the
rest of ``to_save``: an iteration of Ignite is a batch, and not always an update.
"""

from collections.abc import Mapping
from typing import Self

from torch import nn

from tracer.integrations.shell import Shell, needs

with needs("ignite", "pytorch-ignite"):
    from ignite.engine import Engine, Events


class Gradwatch(Shell):
    """Traces every ``run`` of the trainer that it is attached to."""

    def attach(self, trainer: Engine, model: nn.Module, **evaluators: Engine) -> Self:
        """Follow a trainer.

        Args:
            trainer: The engine that trains.
            model: What it trains.
            evaluators: Engines whose metrics are recorded, by the prefix of their names.
        """
        trainer.add_event_handler(Events.STARTED, self._on_started, model)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._on_iteration_completed)
        trainer.add_event_handler(Events.COMPLETED, self._end)
        trainer.add_event_handler(Events.EXCEPTION_RAISED, self._on_exception_raised)
        for prefix, evaluator in evaluators.items():
            evaluator.add_event_handler(Events.COMPLETED, self._on_metrics, f"{prefix}_")
        return self

    def state_dict(self) -> dict[str, int]:
        """Keep the step in a checkpoint."""
        return self._state()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore the step from a checkpoint."""
        self._restore(state)

    def _on_started(self, trainer: Engine, model: nn.Module) -> None:
        if self.trace is not None and self._restored is None:
            # A run that goes on in this process.
            self._restore(self._state())
        self._begin(model, step=trainer.state.iteration, scaler=getattr(trainer.state, "scaler", None))
        if not trainer.has_event_handler(self._on_metrics):
            # Now, so that it comes after the handlers that compute metrics.
            trainer.add_event_handler(Events.EPOCH_COMPLETED, self._on_metrics, "")

    def _on_iteration_completed(self, trainer: Engine) -> None:
        output = trainer.state.output
        if isinstance(output, Mapping):
            self._log(output)
        elif not isinstance(output, list | tuple):
            self._log({"loss": output})

    def _on_metrics(self, engine: Engine, prefix: str) -> None:
        self._log({f"{prefix}{name}": metric for name, metric in engine.state.metrics.items()})

    def _on_exception_raised(self, trainer: Engine, error: BaseException) -> None:
        self.close(error)
        # Ignite takes an exception for handled where it has a handler.
        handlers = [
            getattr(handler, "__self__", None) for handler, *_ in trainer._event_handlers[Events.EXCEPTION_RAISED]
        ]
        if handlers[-1] is self and all(isinstance(handler, Gradwatch) for handler in handlers):
            raise error
