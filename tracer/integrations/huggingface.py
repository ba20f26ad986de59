"""Hugging Face's ``Trainer``: a callback. ``Trainer(…, callbacks=[Gradwatch("runs/a")])`` traces each ``train``.

An exception that nobody catches is the reason with which the run closes; the trainer tells callbacks of none.
"""

from collections.abc import Mapping
from typing import Any

from tracer.integrations.shell import Shell, needs

with needs("transformers", "'transformers[torch]'"):
    from transformers import TrainerCallback

_KEY = "gradwatch"


class Gradwatch(Shell, TrainerCallback):
    """Traces every ``train`` of a trainer that has it among its callbacks, and records what the trainer logs."""

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **others: Any
    ) -> None:
        """Begin, or go on where the checkpoint was saved."""
        self._restore(state.stateful_callbacks.get(_KEY, {}))
        scaler = getattr(optimizer, "scaler", None)
        self._begin(model, step=state.global_step, scaler=scaler, total_steps=state.max_steps)
        # Checkpoints hold all that is in the state.
        state.stateful_callbacks[_KEY] = {"number": self._number}

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, object] | None = None, **others: Any
    ) -> None:
        """Record the logs, also those of an evaluation after the training."""
        self._log(logs or {})

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Let a later ``evaluate`` log."""
        self._end()
