"""Networks whose every number is exact in float64, so that ranks and a single process agree to the last bit.

Weights and data are small integers, losses are sums, and the learning rate is a power of two: in a few steps no sum or
product needs more than the 53 bits of a float64, so that no order of summation rounds.
"""

import torch
from torch import nn

LEARNING_RATE = 0.125
STEPS = 3


class Network(nn.Module):
    """Layers whose first dimensions are 6, 3 and 1: two ranks share them evenly, unevenly, and one gets nothing.

    Attributes:
        with_side: Whether the side branch takes part in the forward.
    """

    def __init__(self, *, with_side: bool) -> None:
        super().__init__()
        self.with_side = with_side
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.empty(3), requires_grad=False)
        self.last = nn.Linear(3, 1)
        self.side = nn.Linear(4, 1)
        _fill(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.second(self.first(x).relu()) * self.scale)
        return out + self.side(x) if self.with_side else out


class Block(nn.Module):
    """A transformer's block without its attention: each token by itself."""

    def __init__(self) -> None:
        super().__init__()
        # With eps=0, tokens of as many 1 as -1 are normalised exactly: to themselves.
        self.norm = nn.LayerNorm(4, eps=0.0)
        self.up = nn.Linear(4, 6)
        self.down = nn.Linear(6, 4)
        self.head = nn.Linear(4, 1)
        _fill(self)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.down(self.up(self.norm(tokens)).relu()))
        return out


def _fill(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape, generator=generator))


def batch(step: int, micro: int, rank: int) -> torch.Tensor:
    """A rank's data of a step and micro-batch, of shape (2, 4)."""
    generator = torch.Generator().manual_seed(100 * step + 10 * micro + rank)
    return torch.randint(-3, 4, (2, 4), generator=generator).double()


def tokens(step: int) -> torch.Tensor:
    """A step's two sequences of four tokens, of shape (2, 4, 4)."""
    generator = torch.Generator().manual_seed(step)
    order = torch.stack([torch.randperm(4, generator=generator) for _ in range(8)]).reshape(2, 4, 4)
    return torch.where(order < 2, -1.0, 1.0).double()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of ranks and oracle alike."""
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
