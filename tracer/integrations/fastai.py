"""fastai: a callback.

``Learner(…, cbs=Gradwatch("runs/a"))`` traces each ``fit`` of the learner. Those that follow each other, as in
``fine_tune``, are one run. A search for a learning rate is left out.
"""

from torch.amp.grad_scaler import GradScaler

from tracer.integrations.shell import Shell, needs

with needs("fastai", "fastai"):
    from fastai.callback.core import Callback


class Gradwatch(Shell, Callback):
    """Traces every ``fit`` of a learner that has it among its callbacks.

    fastai has its own optimizers, so that ``applied=True`` finds nothing.
    """

    # After the recorder, whose metrics are recorded.
    order = 60

    def after_create(self) -> None:
        """Belong to a new learner: what an earlier one has trained is over."""
        self.close()
        self.trace = None

    def before_fit(self) -> None:
        """Another training begins, or a validation, or a search."""
        self._begun = self._skipped = False
        if hasattr(self.learn, "lr_finder"):
            self.close()
            # fastai resets it when the search is over.
            self.run = False

    def before_train(self) -> None:
        """Begin with the first epoch that trains."""
        if not self._begun:
            self._begun = True
            scaler = getattr(self.learn, "scaler", None)
            # Not this one, which takes a callback for the optimizer: whether that updates cannot be seen.
            self._scaler = GradScaler("cpu") if scaler is not None and scaler.is_enabled() else None
            earlier = self._state().get("step", 0)
            left_out = self.learn.epoch * len(self.learn.dls.train)
            self._begin(self.learn.model, step=earlier or left_out, scaler=self._scaler)

    def before_backward(self) -> None:
        """Take the scale of the backward that comes."""
        if self._scaler is not None:
            self._scaler._scale = self.learn.scaler._scale

    def after_cancel_step(self) -> None:
        """Note that there is no update."""
        self._skipped = True

    def after_step(self) -> None:
        """End the step, also where the scale was too large; without a scale, what was cancelled is no step."""
        metrics = {"loss": self.learn.loss.detach()}
        if self._scaler is not None:
            self._step(metrics)
            self._log_own("skipped", float(self._skipped))
        elif not self._skipped:
            self._step(metrics)
        self._skipped = False

    def after_epoch(self) -> None:
        """Record the metrics of an epoch that has trained, as the recorder shows them."""
        recorder = getattr(self.learn, "recorder", None)
        # Of an epoch that was cut short it has fewer metrics than names.
        if self._begun and recorder is not None and len(recorder.log) == len(recorder.metric_names):
            metrics = dict(zip(recorder.metric_names, recorder.log, strict=True))
            metrics.pop("time", None)
            self._log(metrics)

    def after_fit(self) -> None:
        """Let what comes after log."""
        self._end()
