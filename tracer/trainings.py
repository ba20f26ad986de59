"""Trainings to measure: networks, batches for them, and a step. None needs a library beside torch."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

Build = Callable[[], tuple[nn.Module, torch.Tensor]]
"""Makes a network, and a batch for it; its output has the shape (batch, classes)."""

Step = Callable[[], None]
After = Callable[[torch.Tensor], object]


def mlp() -> tuple[nn.Module, torch.Tensor]:
    """A small network of 14 parameters, and a batch for it."""
    sizes = [64, 256, 256, 256, 256, 256, 256, 10]
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers), torch.randn(256, 64)


class Residual(nn.Module):
    """A ResNet's block: two convolutions, or three of which the last has four times as many channels."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        three = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
        layers: list[nn.Module] = []
        before = channels
        for after, size, step in three if bottleneck else [(width, 3, stride), (width, 3, 1)]:
            layers += [*_convolution(before, after, size, step), nn.ReLU()]
            before = after
        self.layers = nn.Sequential(*layers[:-1])
        same = channels == before and stride == 1
        self.past = nn.Identity() if same else nn.Sequential(*_convolution(channels, before, 1, stride))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The sum of what went through the layers and what went past them."""
        return torch.relu(self.layers(inputs) + self.past(inputs))


def _convolution(before: int, after: int, size: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after)]


def resnet(blocks: Sequence[int], bottleneck: bool, images: int, pixels: int) -> tuple[nn.Module, torch.Tensor]:
    """A ResNet with so many blocks in each stage, and so many square images."""
    layers = [*_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers.append(Residual(channels, 64 << stage, 2 if stage and not block else 1, bottleneck))
            channels = (64 << stage) * (4 if bottleneck else 1)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*layers), torch.randn(images, 3, pixels, pixels)


def transformer(layers: int, width: int, tokens: int) -> tuple[nn.Module, torch.Tensor]:
    """Torch's own encoder with a last layer, and 8 sequences of embedded tokens."""
    layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, batch_first=True)
    encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.Flatten(), nn.Linear(tokens * width, 10)), torch.randn(8, tokens, width)


resnet18: Build = partial(resnet, (2, 2, 2, 2), bottleneck=False, images=16, pixels=64)
resnet50: Build = partial(resnet, (3, 4, 6, 3), bottleneck=True, images=64, pixels=224)
small_transformer: Build = partial(transformer, layers=6, width=384, tokens=32)
gpt2: Build = partial(transformer, layers=12, width=768, tokens=512)


def training_step(model: nn.Module, inputs: torch.Tensor, after: After, autocast: torch.dtype | None = None) -> Step:
    """One step of plain training; ``after`` gets the loss, between backward and update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    with torch.no_grad():
        labels = torch.randint(model(inputs).shape[1], (len(inputs),), device=inputs.device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(inputs.device.type, autocast) if autocast else contextlib.nullcontext():
            loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        after(loss)
        optimizer.step()

    return step
