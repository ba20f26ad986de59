"""skorch: a callback.

``NeuralNetClassifier(…, callbacks=[Gradwatch("runs/a")])`` traces each ``fit``. A ``partial_fit``, or a ``fit`` with
``warm_start=True``, goes on in the run.
"""

from typing import Any, Self

from tracer.integrations.shell import Shell, needs

with needs("skorch", "skorch"):
    from skorch.callbacks import Callback

# What skorch keeps of an epoch beside its scores.
_NO_SCORES = {"batches", "epoch", "dur", "train_batch_count", "valid_batch_count"}


class Gradwatch(Shell, Callback):
    """Traces every ``fit`` of a net that has it among its callbacks. Scores of callbacks before it are recorded."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What scikit-learn clones."""
        return {"path": self.path, **self.options}

    def set_params(self, **params: Any) -> Self:
        """Change arguments, as ``net.set_params(callbacks__Gradwatch__every=10)`` does."""
        self.path = params.pop("path", self.path)
        self.options = {**self.options, **params}
        return self

    def initialize(self) -> Self:
        """Forget the steps of the weights that the net had before."""
        self._steps: dict[int, int] = {}
        return self

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Another training begins."""
        self._begun = False

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Begin when the other callbacks have restored their checkpoint."""
        if not self._begun:
            self._begun = True
            epochs = net.history[:-1]
            batches = sum(epoch.get("train_batch_count", len(epoch["batches"])) for epoch in epochs)
            scaler = getattr(getattr(net, "accelerator", None), "scaler", None)
            self._begin(net.module_, step=self._steps.get(len(epochs), batches), scaler=scaler)

    def on_batch_end(self, net: Any, training: bool = False, **kwargs: Any) -> None:
        """Record the loss of a training batch."""
        if training:
            self._log({"loss": kwargs["loss"].detach()})

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Record the scores."""
        self._steps[len(net.history)] = self._state()["step"]
        epoch = net.history[-1]
        scores = {name: epoch[name] for name in epoch.keys() - _NO_SCORES if not isinstance(epoch[name], bool)}
        self._log(scores)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Let what comes after log."""
        self._end()
