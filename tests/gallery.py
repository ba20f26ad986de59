"""Draw the gallery of the documentation, from real trainings of a second or two: ``python -m tests.gallery FOLDER``."""

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

import tracer
import viewer

_INPUTS, _CLASSES, _TRAINED, _VALIDATED = 16, 4, 2048, 512
_VALIDATE_EVERY = 20


def network(depth: int, activation: type[nn.Module], width: int = 32) -> nn.Sequential:
    """A plain network with so many hidden layers; the same one each time."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(_INPUTS, width), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, _CLASSES))


def squared(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The squared error, which nothing bounds."""
    return nn.functional.mse_loss(outputs, nn.functional.one_hot(labels, _CLASSES).to(outputs))


def train(
    run: Path,
    model: nn.Module,
    rate: float,
    steps: int,
    *,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = nn.functional.cross_entropy,
    growth: float = 1.0,
    clip: float | None = None,
    **recorded: Any,
) -> None:
    """Learn which of some linear functions of points is the largest, with a validation now and then.

    Args:
        run: The run's folder.
        model: What is trained.
        rate: The learning rate of the first step.
        steps: How many.
        loss_of: The loss of outputs and labels.
        growth: By how much the learning rate grows each step.
        clip: The largest norm of all gradients that is applied.
        recorded: What ``attach`` is to record.
    """
    torch.manual_seed(0)
    dtype = next(model.parameters()).dtype
    inputs = torch.randn(_TRAINED + _VALIDATED, _INPUTS)
    labels = (inputs @ torch.randn(_INPUTS, _CLASSES)).argmax(1)
    inputs = inputs.to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, growth)
    with tracer.attach(model, run, **recorded) as trace:
        for step in range(steps):
            batch = torch.randint(_TRAINED, (128,))
            outputs = model(inputs[batch])
            loss = loss_of(outputs, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            trace.log(loss=loss, accuracy=accuracy(outputs, labels[batch]))
            if step % _VALIDATE_EVERY == _VALIDATE_EVERY - 1:
                with torch.no_grad():
                    outputs, wanted = model(inputs[_TRAINED:]), labels[_TRAINED:]
                    trace.log(val_loss=loss_of(outputs, wanted), val_accuracy=accuracy(outputs, wanted))


def accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The share of outputs that are right."""
    return (outputs.argmax(1) == labels).float().mean()


def train_all(runs: Path) -> None:
    """The trainings that the gallery shows: one that goes well, some that do not."""
    statistics: dict[str, Any] = {"stats": ("norm", "histogram"), "histogram_every": 10, "applied": True}
    train(runs / "healthy", network(3, nn.ReLU), 0.02, 600, clip=0.3, **statistics)
    # Sigmoids on sigmoids: each layer passes on a fraction of its gradient, and a high rate saturates the last ones.
    saturating = network(8, nn.Sigmoid).append(nn.Sigmoid())
    train(runs / "deep sigmoids", saturating, 12.0, 200, loss_of=squared)
    # It learns until the rate is too large for it; 16 bits then soon have no number for it.
    train(runs / "rising rate", network(4, nn.LeakyReLU).half(), 0.05, 260, loss_of=squared, growth=1.02)
    for rate in (0.001, 0.01, 0.1):
        train(runs / "rates" / f"rate {rate:g}", network(3, nn.ReLU), rate, 400)


def draw_all(folder: Path, runs: Path) -> None:
    """Draw the trainings into a folder."""
    pictures: dict[str, dict[str, Any]] = {
        "overview-healthy": {"run": runs / "healthy"},
        "overview-vanishing": {"run": runs / "deep sigmoids"},
        "overview-nan": {"run": runs / "rising rate", "scale": "log"},
        "layers-vanishing": {"run": runs / "deep sigmoids", "view": "layers"},
        "layers-nan": {"run": runs / "rising rate", "view": "layers"},
        "parameter": {"run": runs / "healthy", "param": "2.weight"},
        "histograms-ridge": {"run": runs / "healthy", "param": "2.weight", "histograms": "ridge"},
        "compare": {"run": runs / "rates"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, asked in pictures.items():
        with io.BytesIO() as drawn:
            viewer.figure(**asked).savefig(drawn)
            # Colour scales need more than a palette.
            save(drawn, folder / f"{name}.png", palette=asked.get("view") != "layers")


def save(drawn: io.BytesIO, path: Path, palette: bool = True) -> None:
    """Keep a picture in little space, for a repository keeps every version for ever: a palette takes a third of it."""
    picture: Image.Image = Image.open(drawn)
    if palette:
        picture = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE)
    picture.save(path, optimize=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as runs:
        train_all(Path(runs))
        draw_all(Path(sys.argv[1]), Path(runs))
