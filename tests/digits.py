"""What small trainings on images of digits share: the images, a model, a loop."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import nn

import tracer

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def digits(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """1,797 real images of 64 pixels between 0 and 1, and their classes, in an order of its own for each seed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(found.data / 16, dtype=torch.float32)[order], torch.tensor(found.target)[order]


def batches(inputs: torch.Tensor, labels: torch.Tensor, steps: int, size: int = 64) -> Batches:
    """So many batches, around and around."""
    for step in range(steps):
        at = torch.arange(step * size, (step + 1) * size) % len(labels)
        yield inputs[at], labels[at]


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation between each two."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def classify(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Batches,
    trace: tracer.Trace,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """Train a classifier, logging loss and accuracy at each step."""
    for step, (inputs, labels) in enumerate(data):
        optimizer.zero_grad()
        scores = model(inputs)
        loss = nn.functional.cross_entropy(scores.float(), labels)
        loss.backward()
        optimizer.step()
        trace.log(loss=loss, accuracy=(scores.argmax(1) == labels).float().mean())
        after(step)
