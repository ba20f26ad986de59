"""Units of a module's output: which dimension holds them, which were active lately, and where a function saturates."""

import math
from collections.abc import Mapping

import torch
from torch import nn

# A unit counts as dead after so many measured steps without a number that is not 0, or after all there were: few
# batches are no proof, since healthy units may be active for one example of hundreds. As for the rule ``dead.rows``.
DEAD_STEPS = 100
# A function that never reaches its bounds is saturated within this share of its range: that is |tanh| >= 31/32, where
# its slope is 6 % of its largest. Karpathy (Neural Networks: Zero to Hero, "Building makemore" part 3) counts from
# 0.97. Every dtype holds these numbers exactly.
_NEAR = 1 / 64
# The layers whose outputs have their units in the last dimension, and those that have them in the second one.
_LAST = (
    nn.Linear,
    nn.Bilinear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.MultiheadAttention,
)
_SECOND = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm),
)


def bounds_of(module: nn.Module) -> tuple[float, float] | None:
    """From where on a bounded function counts as saturated: up to the first number, and from the second one on.

    A function that reaches its bounds is saturated at them alone, where its slope is 0. A lower bound of 0 is that of
    a ReLU, whose zeros are a statistic of their own: ReLU6 is saturated at 6.

    Returns:
        None for a module that is no such function.
    """
    if isinstance(module, nn.Sigmoid):
        return _NEAR, 1 - _NEAR
    if isinstance(module, nn.Tanh | nn.Softsign):
        return 2 * _NEAR - 1, 1 - 2 * _NEAR
    if isinstance(module, nn.Hardsigmoid):
        return 0.0, 1.0
    if isinstance(module, nn.Hardtanh):
        return float(module.min_val) or -math.inf, float(module.max_val)
    return None


def with_units_last(model: nn.Module) -> frozenset[int]:
    """The ids of modules whose outputs of three dimensions or more have their units in the last one, as tokens have.

    A layer says so by its class. A module without a class that says anything, such as a ReLU, is taken to follow the
    layer that was registered before it; a module of several, to end with the last of them. Of the first modules,
    and of a model of other classes, nothing is known: they are taken for images.
    """
    last: dict[int, bool] = {}

    def walk(module: nn.Module, before: bool) -> bool:
        for child in module._modules.values():
            if child is not None:
                before = walk(child, before)
        if isinstance(module, _LAST + _SECOND):
            before = isinstance(module, _LAST)
        return last.setdefault(id(module), before)

    walk(model, before=False)
    return frozenset(key for key, holds in last.items() if holds)


def unit_dimension(output: torch.Tensor, last: bool) -> int | None:
    """The dimension of a module's output that holds its units: channels of images, features of tokens or examples.

    Args:
        output: Batch × units, or batch × units × …; or, with ``last``, … × units.
        last: Whether an output of three dimensions or more has them in the last one.

    Returns:
        None of a nested tensor, and of less than two dimensions: there an example and a unit cannot be told apart.
    """
    if output.is_nested or output.dim() < 2:
        return None
    return output.dim() - 1 if last else 1


class Activity:
    """The units of one module that were active lately.

    Its memory is a number for each unit, of the sizes that the module's outputs have had in the newest step.
    """

    def __init__(self) -> None:
        # By the number of units: how many measured steps there were, and in which of them each was active last.
        self._last: dict[int, tuple[int, torch.Tensor]] = {}

    def active(self, nonzero: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Count the units that were active in one of the last ``DEAD_STEPS`` measured steps, without a host sync.

        Args:
            nonzero: Of the newest step: by the number of units, how many numbers of each were not 0.

        Returns:
            int64 of shape (1,).
        """
        before, self._last, counts = self._last, {}, []
        for units, numbers in nonzero.items():
            steps, last = before.get(units, (0, torch.zeros_like(numbers, dtype=torch.int64)))
            steps += 1
            last = torch.where(numbers > 0, steps, last.to(numbers.device))
            self._last[units] = steps, last
            counts.append(torch.count_nonzero(last > max(0, steps - DEAD_STEPS)))
        return torch.stack(counts).sum(0, keepdim=True)
