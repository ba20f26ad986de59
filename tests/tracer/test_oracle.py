"""The rows against numbers taken by hand at the same moment, and training with against training without a trace."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

import tracer
from tests.halves import first_of
from tests.training import assert_rows, by_hand

Optimize = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]


def cnn() -> nn.Module:
    """A small convolutional network."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )


def small_resnet() -> nn.Module:
    """A ResNet-18 for ten classes, random weights."""
    model: nn.Module = resnet18(weights=None, num_classes=10)
    return model


def sgd(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def adamw(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW."""
    return torch.optim.AdamW(parameters, lr=1e-3)


def images(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of images and their classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 32, 32, generator=generator), torch.randint(10, (8,), generator=generator)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> torch.Tensor:
    """One step up to the backward; the update is left to the caller."""
    inputs, labels = images(seed)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    return loss


@pytest.mark.parametrize(("build", "count"), [(cnn, 12), (small_resnet, 5)])
def test_rows_equal_a_float64_oracle(build: Callable[[], nn.Module], count: int, tmp_path: Path) -> None:
    """Every number of every parameter and step equals the one taken by hand between backward and update."""
    model = build()
    optimizer = sgd(iter(model.parameters()))
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for seed in range(count):
            train_step(model, optimizer, seed)
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


@pytest.mark.parametrize("optimize", [sgd, adamw])
@pytest.mark.parametrize("build", first_of([cnn, small_resnet]))
def test_training_is_bit_identical_with_the_tracer(
    build: Callable[[], nn.Module], optimize: Optimize, tmp_path: Path
) -> None:
    """After 20 steps, weights and buffers of a traced training equal those of an untraced one bit for bit."""
    plain = build()
    traced = copy.deepcopy(plain)

    def train(model: nn.Module, trace: tracer.Trace | None) -> None:
        optimizer = optimize(iter(model.parameters()))
        for seed in range(20):
            loss = train_step(model, optimizer, seed)
            optimizer.step()
            if trace is not None:
                trace.log(loss=loss)

    train(plain, None)
    with tracer.attach(traced, tmp_path / "run") as trace:
        train(traced, trace)
    for (name, a), b in zip(plain.state_dict().items(), traced.state_dict().values(), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes(), name
