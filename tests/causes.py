"""Real trainings of seconds that end in NaN, each of a known cause; as a script it prints what the viewer says of each.

``python -m tests.causes`` prints the table of docs/causes.md.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

import tracer
from tests.digits import batches, digits, mlp
from tests.illnesses import judged
from tracer.log.store import Local as Path

# In which step the data, or what stands for it, goes wrong.
STEP = 60
Batch = tuple[torch.Tensor, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def learn(
    path: Path,
    model: nn.Module,
    data: Iterator[Batch],
    loss_of: Loss = nn.functional.cross_entropy,
    rate: float = 0.05,
    skip: bool = False,
    activations: bool = False,
) -> None:
    """Train with SGD, and log the loss; a loop may skip what is not finite."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with tracer.attach(model, path, activations=activations) as trace:
        for inputs, labels in data:
            optimizer.zero_grad()
            loss = loss_of(model(inputs), labels)
            loss.backward()
            if not skip or all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None):
                optimizer.step()
            trace.log(loss=loss)


def changed(change: Callable[[torch.Tensor, torch.Tensor], Batch], count: int = 80) -> Iterator[Batch]:
    """Batches of digits, of which one is changed."""
    for step, (inputs, labels) in enumerate(batches(*digits(), count)):
        yield change(inputs.clone(), labels) if step == STEP else (inputs, labels)


def nan_pixel(path: Path, activations: bool = False) -> None:
    """A picture has a pixel that is NaN."""

    def change(inputs: torch.Tensor, labels: torch.Tensor) -> Batch:
        inputs[3, 7] = math.nan
        return inputs, labels

    learn(path, mlp(64, 32, 32, 10), changed(change), activations=activations)


def squared(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A regression."""
    return (outputs.squeeze(1) - labels / 10).square().mean()


def inf_label(path: Path, activations: bool = False) -> None:
    """A target is infinite."""

    def change(inputs: torch.Tensor, labels: torch.Tensor) -> Batch:
        labels = labels.float()
        labels[0] = math.inf
        return inputs, labels

    learn(path, mlp(64, 32, 1), changed(change), squared, activations=activations)


def log_of_zero(path: Path, activations: bool = False) -> None:
    """A loss takes the logarithm of a probability that is exactly 0 where an input is large."""

    def loss_of(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -outputs.softmax(1)[torch.arange(len(labels)), labels].log().mean()

    data = changed(lambda inputs, labels: (inputs * 1e4, labels))
    learn(path, mlp(64, 32, 10), data, loss_of, activations=activations)


class Root(nn.Module):
    """The root of the positive part, whose gradient at 0 is infinite."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Take the root."""
        return (inputs * (inputs > 0)).sqrt()


def root_of_zero(path: Path) -> None:
    """A layer takes the root of exactly 0 once an input is negative; the loss stays finite."""
    hidden = nn.Linear(64, 8)
    nn.init.constant_(hidden.bias, 6.0)
    nn.init.normal_(hidden.weight, 0, 0.02)
    model = nn.Sequential(hidden, Root(), nn.Linear(8, 10))
    # So dark a picture makes all of the hidden layer negative.
    learn(path, model, changed(lambda inputs, labels: (inputs - 1e3 * hidden.weight.detach().sum(0).sign(), labels)))


class Exponential(nn.Module):
    """The exponential, which overflows float32 from 89 on."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Take the exponential."""
        return inputs.exp()


def exponential(path: Path, activations: bool = False) -> None:
    """A layer in the middle takes the exponential, which overflows where an input is large."""
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), Exponential(), nn.Linear(8, 10))
    data = changed(lambda inputs, labels: (inputs * 1e4, labels))
    learn(path, model, data, rate=0.01, activations=activations)


def empty_mask(path: Path, activations: bool = False) -> None:
    """A mean over a mask that selects nothing is 0 / 0."""

    def loss_of(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        mask = (labels >= 0).float()
        each = nn.functional.cross_entropy(outputs, labels.clamp(0), reduction="none")
        return (each * mask).sum() / mask.sum()

    data = changed(lambda inputs, labels: (inputs, torch.full_like(labels, -1)))
    learn(path, mlp(64, 32, 10), data, loss_of, activations=activations)


def empty_batch(path: Path) -> None:
    """A batch without an example: the mean of nothing is NaN, and its gradients are 0."""
    learn(path, mlp(64, 32, 10), changed(lambda inputs, labels: (inputs[:0], labels[:0])))


def half_forward(path: Path, activations: bool = False) -> None:
    """In float16 an input that is large, and finite, overflows in the forward."""
    model = mlp(64, 32, 10).half()
    data = changed(lambda inputs, labels: (inputs * 30_000, labels))
    halves = ((inputs.half(), labels) for inputs, labels in data)
    learn(path, model, halves, rate=0.01, activations=activations)


def half_backward(path: Path) -> None:
    """In float16 a loss that is scaled by hand overflows in the backward, while it is finite itself."""
    model, calls = mlp(64, 32, 32, 10).half(), 0

    def loss_of(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = nn.functional.cross_entropy(outputs.float(), labels)
        return loss * 1e7 if calls == STEP + 1 else loss

    learn(path, model, ((inputs.half(), labels) for inputs, labels in batches(*digits(), 80)), loss_of, rate=0.01)


def learning_rate(path: Path) -> None:
    """A learning rate that is too large for a regression."""
    learn(path, mlp(64, 32, 32, 1, activation=nn.LeakyReLU), batches(*digits(), 60), squared, rate=8.0)


def exploding_recurrence(path: Path) -> None:
    """A recurrence whose matrix grows past 1, step by step, over 200 steps in time."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Linear(8, 8, bias=False)
            self.head = nn.Linear(8, 1)
            nn.init.orthogonal_(self.step.weight)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            state = inputs[:, :8]
            for _ in range(200):
                state = nn.functional.linear(state, self.step.weight)
            return nn.functional.linear(state, self.head.weight, self.head.bias)

    learn(path, Recurrent(), batches(*digits(), 80), squared, rate=3e-3)


def initialisation(path: Path) -> None:
    """Weights that begin thousands of times too large."""
    model = mlp(64, 64, 64, 64, 1)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(0, 1e5)
    # Eight digits of a square of such outputs are beyond float32.
    learn(path, model, batches(*digits(), 10), lambda outputs, labels: squared(outputs, labels).square())


def loaded(path: Path) -> None:
    """A checkpoint holds NaN."""
    model = mlp(64, 32, 10)
    weights = model.state_dict()
    weights["2.weight"][1, 1] = math.nan
    model.load_state_dict(weights)
    learn(path, model, batches(*digits(), 10))


def skipped(path: Path) -> None:
    """A NaN loss that the loop skips: no update used it."""

    def change(inputs: torch.Tensor, labels: torch.Tensor) -> Batch:
        return inputs * math.nan, labels

    learn(path, mlp(64, 32, 10), changed(change), skip=True)


def spoilt_update(path: Path) -> None:
    """An optimizer divides by an epsilon of 0: a gradient that is 0 becomes 0 / 0."""
    model = mlp(64, 32, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=0.0)
    with tracer.attach(model, path) as trace:
        for step, (inputs, labels) in enumerate(batches(*digits(), 30)):
            optimizer.zero_grad()
            # The picture's border is always empty, whose weights have no gradient.
            loss = nn.functional.cross_entropy(model(inputs if step else inputs + 1), labels)
            loss.backward()
            if step == 20:
                for state in optimizer.state.values():
                    state["exp_avg"].zero_()
                    state["exp_avg_sq"].zero_()
            optimizer.step()
            trace.log(loss=loss)


@dataclass(frozen=True)
class Cause:
    """A training that ends in NaN, and what the viewer is to say of it.

    Attributes:
        train: The training.
        cause: Its cause, in one word.
        step: The step in which it is to be found; None where training decides.
        kind: The finding's kind.
        says: What it says, too.
        activations: Whether the outputs of modules are recorded.
    """

    train: Callable[..., None]
    cause: str
    step: int | None = STEP
    kind: str = "nonfinite"
    says: str = ""
    activations: bool = False

    @property
    def name(self) -> str:
        """What was done, in one word."""
        return self.train.__name__ + "_with_activations" * self.activations

    @property
    def words(self) -> str:
        """What was done."""
        return (self.train.__doc__ or "").rstrip(".") + "; with `activations=True`" * self.activations

    def run(self, path: Path) -> None:
        """Do it."""
        if self.activations:
            self.train(path, activations=True)
        else:
            self.train(path)


CAUSES = [
    Cause(nan_pixel, "data"),
    Cause(inf_label, "data"),
    Cause(log_of_zero, "data"),
    Cause(empty_mask, "data"),
    Cause(exponential, "data"),
    Cause(nan_pixel, "input", says="the output of 0, the first module", activations=True),
    Cause(inf_label, "loss", says="look at the loss function and its labels", activations=True),
    Cause(log_of_zero, "loss", activations=True),
    Cause(empty_mask, "loss", activations=True),
    Cause(exponential, "forward", says="the output of 3, while those", activations=True),
    Cause(empty_batch, "empty"),
    Cause(root_of_zero, "backward"),
    Cause(half_forward, "overflow", says="in the forward"),
    Cause(half_forward, "overflow", says="in the loss, since the outputs of all 4", activations=True),
    Cause(half_backward, "overflow", says="in the backward"),
    Cause(learning_rate, "learning rate", None),
    Cause(exploding_recurrence, "exploding", None),
    Cause(initialisation, "initialisation", 0),
    Cause(loaded, "loaded", 0),
    Cause(spoilt_update, "update", None),
    Cause(skipped, "", kind="discarded"),
]


def main() -> None:
    """Print the table."""
    print("| what was done | cause | what the viewer said | at step |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for cause in CAUSES:
            _, found = judged(cause.run, Path(folder, cause.name))
            for finding in found:
                print(
                    f"| {cause.words} | {finding.kind} {finding.numbers.get('cause', '')} | {finding.severity}: "
                    f"{finding.sentence} | {finding.first_step:,} |"
                )


if __name__ == "__main__":
    main()
