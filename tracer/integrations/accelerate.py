"""Accelerate: a tracker that is told the model.

``Accelerator(log_with=gradwatch)`` gives it what is logged, and ``gradwatch.attach(accelerator, model)`` the model.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tracer.integrations.shell import Shell, needs
from tracer.trace import Trace
from tracer.warn import in_short, warn

with needs("accelerate", "accelerate"):
    from accelerate.tracking import GeneralTracker

# It lies in a checkpoint's folder, beside the framework's own files, and nobody misses it there.
_FILE = "gradwatch.json"


class Gradwatch(Shell, GeneralTracker):
    """Traces the model that ``attach`` is given, until ``accelerator.end_training``."""

    name = "gradwatch"
    requires_logging_directory = False
    main_process_only = False
    # What waits for the training's first forward, and what watches the framework's checkpoints.
    _waiting: Sequence[RemovableHandle] = ()
    _watching: Sequence[RemovableHandle] = ()

    def attach(self, accelerator: Any, model: nn.Module) -> None:
        """Trace a model from its first forward of a training on: until then, ``load_state`` says where it goes on.

        Every process calls this.

        Args:
            accelerator: The accelerator, whose checkpoints keep the step from now on.
            model: The model, as ``accelerator.prepare`` returned it.
        """

        def begin(*_: object) -> None:
            if self._waiting and torch.is_grad_enabled():
                self._waiting = _removed(self._waiting)
                self._begin(model, scaler=accelerator.scaler)

        def save(models: object, weights: object, folder: str) -> None:
            if accelerator.is_local_main_process:
                self._save(Path(folder) / _FILE)

        self.close()
        # A loop may call no more than a part of the model.
        self._waiting = [module.register_forward_pre_hook(begin) for module in model.modules()]
        self._watching = [
            accelerator.register_save_state_pre_hook(save),
            accelerator.register_load_state_pre_hook(lambda models, folder: self._load(Path(folder) / _FILE)),
        ]

    def _save(self, file: Path) -> None:
        try:
            file.write_text(json.dumps(self._state()), encoding="utf-8")
        except OSError as error:
            warn(f"a checkpoint does not know the step: {in_short(error)}")

    def _load(self, file: Path) -> None:
        state = {}
        try:
            if file.exists():
                state = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            warn(f"the step of a checkpoint cannot be read: {in_short(error)}")
        if self._waiting:
            self._restore(state)
        elif self.trace is not None and state:
            self.trace.load_state_dict(state)

    @property
    def tracker(self) -> Trace | None:
        """The trace."""
        return self.trace

    def log(self, values: Mapping[str, object], step: int | None = None, **others: Any) -> None:
        """Record the values at the step of the latest backward."""
        self._log(values)

    def finish(self) -> None:
        """End the trace."""
        self.close()

    def close(self, error: BaseException | None = None) -> None:
        """End the trace, and leave the model and the accelerator as they were."""
        if self._waiting:
            warn("nothing was traced: no forward of the model that attach was given has been seen")
        self._waiting, self._watching = _removed(self._waiting), _removed(self._watching)
        super().close(error)

    def __getstate__(self) -> dict[str, Any]:
        """Leave hooks where they are, so that a copy waits for nothing."""
        return {**self.__dict__, "_waiting": (), "_watching": ()}


def _removed(handles: Sequence[RemovableHandle]) -> Sequence[RemovableHandle]:
    for handle in handles:
        handle.remove()
    return ()
