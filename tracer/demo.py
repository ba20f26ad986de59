"""The main job on real data: a ResNet-18 learns handwritten digits, traced, with the viewer beside it."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

import tracer
from tracer.log.system import has_display
from tracer.trace import Trace

_BATCH = 32
_VALIDATION_SHARE = 0.2
# torchvision's sets are many times larger than the digits. A part of them keeps the demo within minutes on a CPU.
_LARGEST = 6_000
_SIZE_PIXELS = 32
_SEED = 0


@dataclass(frozen=True)
class Images:
    """Images, float32 of shape (n, 3, 32, 32) in [-1, 1], and their classes, int64 of shape (n,)."""

    images: torch.Tensor
    labels: torch.Tensor

    def split(self, share: float) -> tuple["Images", "Images"]:
        """A shuffled (training, validation) split; ``share`` of the images validate."""
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(_SEED))
        cut = int(len(order) * (1 - share))
        return tuple(Images(self.images[part], self.labels[part]) for part in (order[:cut], order[cut:]))  # type: ignore[return-value]

    def batches(self, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch in random order."""
        for batch in torch.randperm(len(self.labels), generator=generator).split(_BATCH):
            yield self.images[batch], self.labels[batch]


def load(name: str, folder: Path) -> Images:
    """Load a data set: ``digits`` comes with scikit-learn, the others are downloaded into ``folder``.

    Raises:
        tracer.LogError: the data set, or a library that it needs, is missing and cannot be downloaded.
    """
    try:
        if name == "digits":
            from sklearn.datasets import load_digits

            digits = load_digits()
            raw, labels, white = torch.tensor(digits.images).unsqueeze(1), torch.tensor(digits.target), 16.0
        else:
            from torchvision import datasets

            kind = datasets.FashionMNIST if name == "fashion-mnist" else datasets.CIFAR10
            data = kind(folder, train=True, download=True)
            raw = torch.as_tensor(data.data)[:_LARGEST]
            raw = raw.unsqueeze(1) if raw.ndim == 3 else raw.permute(0, 3, 1, 2)
            labels, white = torch.as_tensor(data.targets)[:_LARGEST], 255.0
    except ImportError as error:
        raise tracer.LogError(f"the demo needs {error.name}: pip install 'torch-gradwatch[demo]'") from error
    except (OSError, RuntimeError) as error:
        raise tracer.LogError(f"{name} cannot be had ({error}): try --data digits, which needs no network") from error
    images = nn.functional.interpolate(raw.float(), size=(_SIZE_PIXELS, _SIZE_PIXELS), mode="bilinear")
    return Images(images.expand(-1, 3, -1, -1) / white * 2 - 1, labels.long())


def steps_in(training: Images, epochs: int) -> int:
    """How many steps a training of so many epochs takes."""
    return epochs * -(-len(training.labels) // _BATCH)


def train(model: nn.Module, training: Images, validation: Images, epochs: int, trace: Trace, console: Console) -> float:
    """Train a classifier, logging loss and accuracy at each step, and on the validation images after each epoch.

    Returns:
        The last validation accuracy.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = steps_in(training, epochs)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(_SEED)
    accuracy = 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=steps)
        for epoch in range(epochs):
            model.train()
            for images, labels in training.batches(generator):
                optimizer.zero_grad()
                scores = model(images)
                loss = nn.functional.cross_entropy(scores, labels)
                loss.backward()
                optimizer.step()
                schedule.step()
                trace.log(loss=loss, accuracy=(scores.argmax(1) == labels).float().mean())
                progress.advance(task)
            validation_loss, accuracy = evaluate(model, validation)
            trace.log(val_loss=validation_loss, val_accuracy=accuracy)
            progress.update(task, description=f"epoch {epoch + 1}/{epochs}  validation accuracy {accuracy:.3f}")
    return accuracy


@torch.no_grad()
def evaluate(model: nn.Module, data: Images) -> tuple[float, float]:
    """The mean loss and the accuracy on a data set."""
    model.eval()
    scores = torch.cat([model(images) for images in data.images.split(4 * _BATCH)])
    loss = nn.functional.cross_entropy(scores, data.labels)
    return loss.item(), (scores.argmax(1) == data.labels).float().mean().item()


@contextlib.contextmanager
def viewer_beside(run: Path, figure: Path) -> Iterator[None]:
    """Start viewers as processes: one updates a figure until the run is closed, the other is a window, if it can open.

    The window stays open afterwards, for the user to close, unless the training ended with an exception.
    """
    view = [sys.executable, "-m", "viewer", str(run)]
    drawing = subprocess.Popen([*view, "--save", str(figure), "--follow"], stdout=subprocess.DEVNULL)
    window = subprocess.Popen(view, stdout=subprocess.DEVNULL) if has_display() else None
    try:
        yield
        # It ends by itself once the run is closed.
        drawing.wait()
    except BaseException:
        for process in (drawing, window):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait()
        raise


def largest_gradient(run: Path) -> pl.LazyFrame:
    """The one row with the gradient that is largest in magnitude."""
    size = pl.max_horizontal(pl.col("grad_min").abs(), pl.col("grad_max").abs())
    return tracer.scan(run).select("param", "step", gradient=size).sort("gradient", descending=True).head(1)


_QUERY = """\
tracer.scan("{run}").select("param", "step",
    gradient=pl.max_horizontal(pl.col("grad_min").abs(), pl.col("grad_max").abs())
).sort("gradient", descending=True).head(1).collect()"""


def demo(path: Path, data: str, epochs: int, console: Console) -> None:
    """Train on a data set, watch, and report.

    Args:
        path: The run's folder, which must not hold a run yet.
        data: ``digits``, ``fashion-mnist`` or ``cifar10``.
        epochs: The number of epochs.
        console: Shows progress and results.

    Raises:
        tracer.LogError: the data or torchvision is missing, or ``path`` cannot take a run.
    """
    try:
        from torchvision.models import resnet18
    except ImportError as error:
        raise tracer.LogError(f"the demo needs {error.name}: pip install 'torch-gradwatch[demo]'") from error
    images = load(data, path.parent / "data")
    torch.manual_seed(_SEED)
    model = resnet18(weights=None, num_classes=10)
    console.print(f"ResNet-18, random weights, on {len(images.labels):,} real images ({data})")
    figure = path.parent / f"{path.name}.png"
    training, validation = images.split(_VALIDATION_SHARE)
    with viewer_beside(path, figure), tracer.attach(model, path, total_steps=steps_in(training, epochs)) as trace:
        accuracy = train(model, training, validation, epochs, trace, console)
    overall = tracer.overall_extremes(tracer.model_extremes(model))
    top = largest_gradient(path).collect().row(0, named=True)
    facts = {
        "log": path,
        "figure": figure,
        "validation accuracy": f"{accuracy:.3f}",
        **{name: f"{number:.4g}" for name, number in overall.items()},
        "largest gradient": f"{top['gradient']:.4g} in {top['param']} at step {top['step']}",
    }
    for name, fact in facts.items():
        console.print(f"{name:21} {fact}", highlight=False)
    console.print("found with polars:", highlight=False)
    console.print(_QUERY.format(run=path), style="cyan", highlight=False, soft_wrap=True)
