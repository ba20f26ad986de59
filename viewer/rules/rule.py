"""What rules have in common: what a finding is, the thresholds, and the question how long something lasted.

A rule is a function ``(evidence, limits) -> list[Finding]``: it reads nothing else, changes nothing, and costs the same
however long the run is. A rule on parameters is ``(evidence, courses, limits)``: it is asked once there are rows.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from viewer.reduce.cells import Floats, Integers
from viewer.reduce.param_history import ParamTables as Courses
from viewer.rules.evidence import Evidence
from viewer.snapshot import Finding, Number, Severity

Limits = Mapping[str, float]


@dataclass(frozen=True)
class Threshold:
    """A number that decides whether there is a finding: of the kind that its name begins with.

    Attributes:
        default: The number, unless a user gives another.
        meaning: What it says.
        source: Where it comes from, or why it is not another one.
    """

    default: float
    meaning: str
    source: str


# Where a number of measured steps is needed, the rows of all ranks at a step count as one.
THRESHOLDS: Mapping[str, Threshold] = {
    "exploding.factor": Threshold(
        1e3,
        "a gradient's largest element is so many times its own median until then",
        "measured: healthy gradients stay within two decades of their own median",
    ),
    "exploding.largest": Threshold(
        1e6,
        "or is larger than this",
        "where anybody clips gradients, it is to about 1 (Pascanu et al. 2013); what is left of a target of some "
        "thousands, squared, stays below",
    ),
    "exploding.rows": Threshold(3, "for so many measured steps, unless NaN follows", "one or two are a spike"),
    "vanishing.threshold": Threshold(
        1e-4,
        "gradients of the first third of the layers are less than this share of those of the last third",
        "each sigmoid passes on a quarter at most (Glorot & Bengio 2010), and torch's own initial weights halve it: "
        "five layers of that lie between the thirds; measured: healthy models stay above 1e-2",
    ),
    "vanishing.layers": Threshold(6, "the model has so many layers at least", "two in each third"),
    "vanishing.rows": Threshold(20, "for so many measured steps, and half of them all", "a few steps prove nothing"),
    "dead.rows": Threshold(
        100,
        "the gradient is exactly 0 for so many measured steps, others are not",
        "the dead ReLUs of cs231n never recover; a layer that merely gets few examples does so within some steps",
    ),
    "unused.rows": Threshold(
        20, "never a gradient in so many measured steps, while others have one", "a few steps prove nothing"
    ),
    "spike.factor": Threshold(
        100, "a gradient is so many times what it is before and after", "as for exploding.factor"
    ),
    "exploding_weight.largest": Threshold(
        100,
        "an element is larger than this, and than so many times the largest at the start",
        "initial weights are at most about 1 in every initialisation of torch.nn.init; trained ones seldom beyond 10",
    ),
    "drifting.rows": Threshold(1000, "weights grow for so many measured steps", "an end would show by then"),
    "drifting.growth": Threshold(2, "in the later half of them so many times", "a choice"),
    "drifting.largest": Threshold(
        10, "to so many times what they were at the start (0.1 at least)", "as for exploding_weight.largest"
    ),
    "unchanged.rows": Threshold(
        100, "extremes stay as they are for so many measured steps with a gradient", "as for dead.rows"
    ),
    "badly_scaled.factor": Threshold(
        10,
        "initial weights are so many times larger than their shape asks for",
        "against the bound of He et al. (2015), to which that of Glorot & Bengio (2010) is close; the defaults of "
        "torch.nn are within a factor of four",
    ),
    "badly_scaled.small": Threshold(100, "or so many times smaller", "as for badly_scaled.factor"),
    "output_bias.factor": Threshold(
        4,
        "the lower end of the last bias is so many times as far from 0 as the upper one",
        "measured: where all classes are learnt, up to 2.6 times",
    ),
    "output_bias.least": Threshold(0.5, "and so far from 0 at least", "near 0 a factor says nothing"),
    "output_bias.rows": Threshold(50, "for so many measured steps", "a few steps prove nothing"),
    "oscillating.share": Threshold(
        0.8,
        "both extremes turn back in this share of the measured steps",
        "of two that move at random, a quarter of the steps turn both",
    ),
    "oscillating.rows": Threshold(50, "for so many of them", "a few steps prove nothing"),
    "oscillating.update": Threshold(
        1e-2, "and move by more than this share of their size", "ten times cs231n's rule of thumb for updates"
    ),
    "update_large.share": Threshold(
        1e-1,
        "the extremes of a weight move in a step by more than this share of their size",
        "cs231n's rule of thumb is about 1e-3 for the size of an update against that of the weights",
    ),
    "update_large.rows": Threshold(50, "for so many measured steps", "a few steps prove nothing"),
    "update_small.share": Threshold(
        1e-7, "the extremes of a weight move, and never by more than this share", "as for update_large.share"
    ),
    "update_small.rows": Threshold(50, "in so many measured steps", "a few steps prove nothing"),
    "loss_flat.steps": Threshold(
        200, "the loss has been logged for so many steps", "after so many, a training that learns shows it"
    ),
    "loss_flat.share": Threshold(
        0.98,
        "and still is above this share of what it began with, up to loss_diverging.factor times it",
        "two per cent may be noise",
    ),
    "loss_diverging.factor": Threshold(
        2, "the loss ends above so many times what it began with", "more than the noise of batches"
    ),
    "loss_diverging.steps": Threshold(20, "after it has been logged for so many steps", "a few steps prove nothing"),
    "overfitting.factor": Threshold(
        1.3,
        "the validation's loss is so many times its least, while that of training falls",
        "the least one is noisy where a validation set is small",
    ),
    "overfitting.numbers": Threshold(5, "of so many logged numbers at least", "as for overfitting.factor"),
    "at_chance.factor": Threshold(
        1.3,
        "an accuracy stays below so many times that of guessing; of few classes, below a smaller multiple",
        "more than the noise of batches",
    ),
    "at_chance.steps": Threshold(200, "for so many steps", "as for loss_flat.steps"),
    "overflow.bits": Threshold(
        3,
        "an extreme is so few powers of two below the largest number of its dtype",
        "three are a factor of eight, which gradients vary by anyway",
    ),
    "underflow.bits": Threshold(
        3,
        "a gradient's extremes are so few powers of two above the smallest number of full precision",
        "as for overflow.bits",
    ),
    "underflow.rows": Threshold(20, "for so many measured steps", "a few steps prove nothing"),
    "skipping.steps": Threshold(
        20,
        "a GradScaler has skipped so many steps without a break",
        "a scale that is searched for skips a few steps at first, and then one in 2,000 (torch.amp.GradScaler)",
    ),
}
LIMITS: Limits = {name: threshold.default for name, threshold in THRESHOLDS.items()}


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
            near = difflib.get_close_matches(name, limits, n=3, cutoff=0.5)
            raise ValueError(f"there is no threshold {name!r}: try {', '.join([*near, '`viewer check --rules`'])}")
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
