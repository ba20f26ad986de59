"""What rules have in common: what a finding is, the thresholds, and the question how long something lasted.

A rule is a function ``(evidence, limits) -> list[Finding]``: it reads nothing else, changes nothing, and costs the same
however long the run is. A rule on parameters is ``(evidence, courses, limits)``: it is asked once there are rows.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from viewer.evidence import Evidence
from viewer.tracks import Courses, Floats, Integers

Limits = Mapping[str, float]
Number = float | int | str | bool

# Every threshold, and where it comes from. "Measured" means: between the trainings with and without the illness in
# tests/test_illnesses.py, far from both. Where a number of rows is needed, one of each rank counts as one.
LIMITS: Limits = {
    # Healthy gradients stay within two decades of their own median (measured).
    "exploding.factor": 1e3,
    # Where anybody clips gradients, it is to about 1 (Pascanu et al. 2013); what is left of a target of some thousands,
    # squared, stays below this.
    "exploding.largest": 1e6,
    "exploding.rows": 3,
    # Each sigmoid passes on a quarter at most (Glorot & Bengio 2010), and torch's own initial weights halve it: five
    # layers of that lie between the thirds that are compared. Healthy models stay above 1e-2 (measured).
    "vanishing.threshold": 1e-4,
    "vanishing.layers": 6,
    "vanishing.rows": 20,
    # The dead ReLUs of cs231n never recover; a layer that merely gets few examples does so within some steps.
    "dead.rows": 100,
    "unused.rows": 20,
    # Outside the band means: so many times what it is before and after it.
    "spike.factor": 100,
    # Initial weights are at most about 1 in every initialisation of torch.nn.init; trained ones seldom beyond 10.
    "exploding_weight.largest": 100,
    "drifting.rows": 1000,
    "drifting.growth": 2,
    "drifting.largest": 10,
    "unchanged.rows": 100,
    # Against the bounds of He et al. (2015), to which those of Glorot & Bengio (2010) are close; defaults of torch.nn
    # are within a factor of four.
    "badly_scaled.factor": 10,
    "badly_scaled.small": 100,
    # Where all classes are learnt, the lower end is up to 2.6 times as far from 0 as the upper one (measured).
    "output_bias.factor": 4,
    "output_bias.least": 0.5,
    "output_bias.rows": 50,
    # Of two extremes that move at random, a quarter of the rows turn both.
    "oscillating.share": 0.8,
    "oscillating.rows": 50,
    "oscillating.update": 1e-2,
    # cs231n's rule of thumb is about 1e-3 for the size of an update against that of the weights.
    "update.large": 1e-1,
    "update.small": 1e-7,
    "update.rows": 50,
    # After so many logged numbers a training that learns shows it.
    "loss_flat.numbers": 200,
    "loss_flat.share": 0.98,
    "loss_diverging.factor": 2,
    "loss_diverging.numbers": 20,
    # Validation's least loss is noisy where a validation set is small.
    "overfitting.factor": 1.3,
    "overfitting.numbers": 5,
    "at_chance.factor": 1.3,
    "at_chance.numbers": 200,
    # A power of two for each step of the exponent: three are a factor of eight, which gradients vary by anyway.
    "headroom.bits": 3,
    "headroom.rows": 20,
    # A scale that is searched for skips a few steps at first, and then one in 2,000 (torch.amp.GradScaler).
    "skipping.rows": 20,
}


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """Something wrong that the viewer noticed.

    Attributes:
        kind: Which illness, in one word.
        title: What it is in a few words that stay while it goes on, for where a sentence has no room.
        severity: How bad it is.
        param: The parameter, or the first of several; None where it is none's.
        first_step: Where it began.
        last_step: Where it was seen last.
        sentence: What it is.
        advice: What people usually try.
        numbers: Those that decided.
        params: All parameters that have it.
        over: Whether it was seen and is no longer there.
        steps: Each step where it happened, of what happens at single steps; none of what lasts.
    """

    kind: str
    title: str
    severity: Severity
    param: str | None
    first_step: int
    last_step: int
    sentence: str
    advice: str
    numbers: Mapping[str, Number] = field(default_factory=dict)
    params: tuple[str, ...] = ()
    over: bool = False
    steps: tuple[int, ...] = ()


Rule = Callable[[Evidence, Limits], list[Finding]]
ParamRule = Callable[[Evidence, Courses, Limits], list[Finding]]


def with_limits(given: Sequence[str]) -> Limits:
    """The thresholds with those that a user gave, each as ``vanishing.threshold=1e-8``.

    Raises:
        ValueError: there is no such threshold, or its value is no number.
    """
    limits = dict(LIMITS)
    for each in given:
        name, _, number = (part.strip() for part in each.partition("="))
        if name not in limits:
            near = difflib.get_close_matches(name, limits, n=3, cutoff=0.5) or sorted(limits)
            raise ValueError(f"there is no threshold {name!r}: try {', '.join(near)}")
        try:
            limits[name] = float(number)
        except ValueError:
            raise ValueError(f"{each!r} gives no number: write {name}={limits[name]:g}") from None
    return limits


@dataclass(frozen=True)
class Stretch:
    """Of each parameter the longest stretch of bins in which something held.

    Attributes:
        steps: Its first step and its last one.
        rows: How many rows it has, those of all ranks at a step as one; 0 where it never held.
    """

    steps: tuple[Integers, Integers]
    rows: Floats


def longest(courses: Courses, holds: npt.NDArray[np.bool_], rows: Floats) -> Stretch:
    """The longest stretch in which something held, bins without a row passed over.

    Args:
        courses: Whose bins they are.
        holds: Of shape (bins, parameters).
        rows: How many rows count in each cell.
    """
    count = rows.shape[1]
    first, best_first, best_last = (np.zeros(count, np.int64) for _ in range(3))
    run, best = np.zeros(count), np.zeros(count)
    for place, (held, weight) in enumerate(zip(holds, rows, strict=True)):
        first = np.where(held & (run == 0), place, first)
        run = np.where(held, run + weight, np.where(weight > 0, 0, run))
        longer = run > best
        best_first, best_last = np.where(longer, first, best_first), np.where(longer, place, best_last)
        best = np.where(longer, run, best)
    return Stretch((courses.begins[best_first], courses.ends[best_last]), best / courses.ranks)


def on_params(
    kind: str,
    title: str,
    severity: Severity,
    courses: Courses,
    numbers: Integers,
    steps: tuple[npt.ArrayLike, npt.ArrayLike],
    how: str,
    advice: str,
    **decided: npt.ArrayLike,
) -> list[Finding]:
    """One finding on all parameters that have an illness, the one that had it first in front; none without any.

    Args:
        kind: Which illness.
        title: What it is in a few words, without the parameters.
        severity: How bad it is.
        courses: The parameters' courses.
        numbers: The parameters that have it.
        steps: The first and the last step, of each parameter or of all.
        how: The sentence's end, where ``{first}``, the parameter in front, and the numbers that decided are filled in.
        advice: What people usually try.
        **decided: Those numbers, of each parameter or of all; said is that of the parameter in front.
    """
    if not len(numbers):
        return []
    shape = len(courses.params)
    begins, ends = (np.broadcast_to(each, shape)[numbers] for each in steps)
    numbers = numbers[np.argsort(begins, kind="stable")]
    names = tuple(courses.params[number] for number in numbers)
    front: dict[str, Number] = {name: np.broadcast_to(each, shape)[numbers[0]].item() for name, each in decided.items()}
    all_names = names[0] if len(names) == 1 else f"{len(names)} parameters, first {names[0]}"
    return [
        Finding(
            kind,
            f"{title}: {names[0]}{' and others' if len(names) > 1 else ''}",
            severity,
            names[0],
            int(begins.min()),
            int(ends.max()),
            f"{title} ({all_names}): {how.format(first=names[0], **front)}",
            advice,
            {**front, "parameters": len(names)},
            names,
        )
    ]
