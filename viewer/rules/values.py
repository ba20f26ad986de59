"""Rules on values: initialisation, how they move, and what their dtype can hold."""

import re
from math import prod

import numpy as np
import numpy.typing as npt

from viewer.reduce.cells import Floats
from viewer.reduce.param_history import ParamTables as Courses
from viewer.rules.evidence import Evidence, Param
from viewer.rules.rule import Limits, longest, on_params
from viewer.snapshot import Finding, Severity

# Of the dtypes whose ends a training may reach: the largest number, and the smallest of full precision.
_ENDS = {
    "float16": (65504.0, 2.0**-14),
    "bfloat16": (3.3895313892515355e38, 2.0**-126),
    "float8_e4m3fn": (448.0, 2.0**-6),
    "float8_e5m2": (57344.0, 2.0**-14),
}
_EMBEDDING = re.compile("emb|wte|wpe|token|lookup|codebook", re.IGNORECASE)


def exploding_weight(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """Values that have left what weights are."""
    largest, began = limits["exploding_weight.largest"], _first_size(courses)
    over = courses.size > np.maximum(largest, largest * began)
    last = len(over) - 1 - over[::-1].argmax(axis=0)
    return on_params(
        "exploding_weight",
        "Values run away",
        Severity.WARNING,
        courses,
        np.flatnonzero(over.any(axis=0) & courses.moved.any(axis=0)),
        (courses.begins[over.argmax(axis=0)], courses.ends[last]),
        "those of {first} began at {began:.3g} at most, and reached {largest:.3g}.",
        "Lower the learning rate, see whether zero_grad() is called, use weight decay or a normalisation layer.",
        largest=np.nanmax(courses.size, axis=0, initial=0.0),
        began=began,
    )


def drifting(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """Weights that have grown without a break, at a rate that does not end, over many steps."""
    if len(courses.ends) < 16:
        return []
    half = len(courses.ends) // 2
    later = courses.size[half:]
    steady = (np.diff(later, axis=0) > 0).mean(axis=0) >= 0.95
    grown = later[-1] > limits["drifting.growth"] * later[0]
    far = later[-1] > limits["drifting.largest"] * np.maximum(_first_size(courses), 0.1)
    lasted = courses.rows[half:].sum(axis=0) / courses.ranks >= limits["drifting.rows"] / 2
    return on_params(
        "drifting",
        "Values drift",
        Severity.WARNING,
        courses,
        np.flatnonzero(evidence.weights & steady & grown & far & lasted),
        (courses.begins[half], courses.ends[-1]),
        "those of {first} have grown from {before:.3g} to {now:.3g} since step "
        f"{courses.begins[half]:,}, step by step, and go on.",
        "Use weight decay, lower the learning rate; logits that only grow ask for label smoothing or a z-loss.",
        before=later[0],
        now=later[-1],
    )


def unchanged(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """Values whose extremes do not move though there are gradients.

    One matrix alone proves little: its largest elements may belong to a token or a pixel that never occurs.
    """
    pulled = (courses.grad_high > 0) & (courses.grads > 0)
    stretch = longest(courses, (courses.moved == 0) & (courses.followed > 0) & pulled, courses.followed)
    numbers = np.flatnonzero(stretch.rows >= limits["unchanged.rows"])
    stuck = set(numbers[~courses.moved[:, numbers].any(axis=0)].tolist())
    trained = set(np.flatnonzero(pulled.any(axis=0)).tolist())
    modules: dict[str, set[int]] = {}
    for number in trained:
        modules.setdefault(courses.params[number].rpartition(".")[0], set()).add(number)
    in_whole_modules = any(len(members) > 1 and members <= stuck for members in modules.values())
    return on_params(
        "unchanged",
        "Values do not move",
        Severity.ERROR if trained <= stuck else Severity.WARNING if in_whole_modules else Severity.NOTE,
        courses,
        numbers,
        stretch.steps,
        "the extremes stayed as they are in {rows:,.0f} measured steps, though there are gradients.",
        "See whether the optimizer was given these parameters, whether its learning rate is 0, and whether updates are "
        "lost to rounding in half precision.",
        rows=stretch.rows,
    )


def constant_init(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """Weights that begin with all elements equal: then all neurons of a layer learn the same.

    Not those of a model of one layer, which have nothing but targets behind them.
    """
    layers = _layers(evidence)
    holds = layers & (courses.first_low == courses.first_high) & _from_the_start(courses) & (layers.sum() > 1)
    return on_params(
        "constant_init",
        "All elements begin alike",
        # Some recipes want zeros: at the end of a residual block, in the last layer, in one half of LoRA's pairs.
        Severity.ERROR if 2 * holds.sum() > layers.sum() else Severity.NOTE,
        courses,
        np.flatnonzero(holds),
        (0, 0),
        "those of {first} as {begun:g}. Neurons that begin alike learn alike, unless what follows tells them apart.",
        "Initialise at random (torch.nn.init.kaiming_uniform_, xavier_uniform_); only biases, and the last layer of a "
        "residual branch, may begin as 0.",
        begun=courses.first_low + 0.0,
        weights=layers.sum(),
    )


def scaled_init(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """Initial weights far from what the shapes of their layers ask for, after Xavier and He."""
    size, layers = _first_size(courses), _layers(evidence)
    usual = np.array([_usual(param) for param in evidence.params])
    large, small = limits["badly_scaled.factor"] * usual, usual / limits["badly_scaled.small"]
    holds = layers & ((size > large) | ((size < small) & (size > 0))) & _from_the_start(courses)
    return on_params(
        "badly_scaled",
        "Badly scaled at the start",
        Severity.WARNING if 2 * holds.sum() >= layers.sum() else Severity.NOTE,
        courses,
        np.flatnonzero(holds),
        (0, 0),
        "{first} has elements up to {largest:.3g}, where its shape asks for about {usual:.2g}.",
        "Initialise after He (torch.nn.init.kaiming_normal_) for ReLU, after Xavier (xavier_uniform_) for tanh.",
        largest=size,
        usual=usual,
    )


def _layers(evidence: Evidence) -> npt.NDArray[np.bool_]:
    """Which parameters are the weights of layers of several neurons: no table of embeddings, no single vector."""
    several = [param.shape[:1] > (1,) and not _EMBEDDING.search(param.name) for param in evidence.params]
    return evidence.weights & np.array(several, np.bool_)


def _usual(param: Param) -> float:
    """The largest element to be expected of an initialisation after He, normal, for which Xavier's bound is smaller."""
    fan_in = max(1, prod(param.shape[1:]))
    elements = max(2, prod(param.shape))
    # The largest of n normal numbers is about sqrt(2 ln n).
    return float(np.sqrt(2 / fan_in) * np.sqrt(2 * np.log(elements)))


def output_bias(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """The lower end of the last layer's bias is far below all others: a class that is hardly ever the answer.

    The upper end may belong to what most of the data is, a background or a common word. And where all elements are
    below 0, labels do not exclude each other, and each of them may be rare.
    """
    params = evidence.params
    output = next((params[number].name for number in evidence.backward if evidence.weights[number]), "")
    name = output.removesuffix("weight") + "bias"
    if name not in courses.params:
        return []
    number = courses.params.index(name)
    if params[number].shape[:1] < (3,) or not params[number].trainable:
        return []
    low, high = courses.low, courses.high
    apart = (-low > limits["output_bias.least"]) & (high > 0) & (-low > limits["output_bias.factor"] * high)
    stretch = longest(courses, apart, courses.rows)
    if stretch.rows[number] < limits["output_bias.rows"]:
        return []
    return on_params(
        "output_bias",
        "Output bias far off",
        # Without an accuracy it may be a regression, whose targets are what they are.
        Severity.WARNING if evidence.accuracies else Severity.NOTE,
        courses,
        np.array([number]),
        stretch.steps,
        "an element fell to {low:.3g}, while all others stayed below {high:.3g}: that class is hardly ever the answer.",
        "Count the classes in the training data: is one missing, rare, or mislabelled? Weight the loss or sample them "
        "evenly.",
        low=low[apart[:, number], number].min(),
        high=high[apart[:, number], number].max(),
    )


def oscillating(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """Values that turn back at nearly every step, by much."""
    share = _around(courses.turned) / _around(courses.followed)
    holds = (share >= limits["oscillating.share"]) & (courses.update >= limits["oscillating.update"])
    stretch = longest(courses, holds, courses.moved)
    return on_params(
        "oscillating",
        "Values swing",
        Severity.WARNING,
        courses,
        np.flatnonzero(stretch.rows >= limits["oscillating.rows"]),
        stretch.steps,
        "each step takes back the one before, for {rows:,.0f} measured steps.",
        "Lower the learning rate, or the momentum.",
        rows=stretch.rows,
    )


def update_large(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """Weights whose extremes move by far more in a step than the rule of thumb wants."""
    stretch = longest(courses, (courses.update > limits["update_large.share"]) & evidence.weights, courses.moved)
    return on_params(
        "update_large",
        "Updates too large",
        Severity.WARNING,
        courses,
        np.flatnonzero(stretch.rows >= limits["update_large.rows"]),
        stretch.steps,
        f"the extremes move by more than {limits['update_large.share']:.0%} of their size "
        "in a step, where about 0.1 % is usual; for {rows:,.0f} measured steps.",
        "Lower the learning rate, or warm it up.",
        rows=stretch.rows,
    )


def update_small(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """Weights whose extremes never move by more than a far smaller share. Small at the end is a schedule's aim."""
    never_more = evidence.weights & ~(courses.update > limits["update_small.share"]).any(axis=0)
    stretch = longest(courses, never_more & (courses.moved > 0), courses.moved)
    return on_params(
        "update_small",
        "Updates tiny",
        Severity.NOTE,
        courses,
        np.flatnonzero(stretch.rows >= limits["update_small.rows"]),
        stretch.steps,
        "the extremes never moved by more than "
        f"{limits['update_small.share']:.0e} of their size in a step, where about 1e-03 is usual.",
        "Raise the learning rate; see whether gradients vanish before they arrive here.",
        rows=stretch.rows,
    )


def overflow(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """Extremes within a few bits of the largest number that their dtype can hold."""
    largest = _ends(evidence)[0] / 2 ** limits["overflow.bits"]
    # Gradients are recorded without the scale with which they were computed.
    high = courses.size if _scaled(evidence) else np.fmax(courses.size, courses.grad_high)
    stretch = longest(courses, high > largest, courses.rows)
    return on_params(
        "overflow",
        "Close to overflow",
        Severity.WARNING,
        courses,
        np.flatnonzero(stretch.rows > 0),
        stretch.steps,
        f"within {limits['overflow.bits']:g} bits of the largest number of its dtype.",
        "Use a GradScaler, bfloat16 instead of float16, clip gradients, scale inputs and loss down.",
        rows=stretch.rows,
    )


def underflow(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """Gradients within a few bits of the smallest number that their dtype resolves."""
    if _scaled(evidence):
        return []
    smallest = _ends(evidence)[1] * 2 ** limits["underflow.bits"]
    stretch = longest(courses, courses.grad_mean < smallest, courses.grads)
    return on_params(
        "underflow",
        "Close to underflow",
        Severity.NOTE,
        courses,
        np.flatnonzero(stretch.rows >= limits["underflow.rows"]),
        stretch.steps,
        "even the largest elements of the gradient are among the smallest numbers that "
        "its dtype resolves, for {rows:,.0f} measured steps.",
        "Use a GradScaler, or keep these parameters in float32 or bfloat16.",
        rows=stretch.rows,
    )


def _ends(evidence: Evidence) -> Floats:
    """The largest and the smallest number of each parameter's dtype; what is not trained comes near neither."""
    no_ends = (np.inf, 0.0)
    ends = [_ENDS.get(param.dtype, no_ends) if param.trainable else no_ends for param in evidence.params]
    return np.array(ends).reshape(-1, 2).T


def _scaled(evidence: Evidence) -> bool:
    return evidence.curve("amp_scale") is not None


def _around(counts: Floats) -> Floats:
    """Each bin's count together with those of the bins beside it: of single steps a share would be 0 or 1."""
    sums = np.concatenate([np.zeros((1, counts.shape[1])), np.cumsum(counts, axis=0)])
    places = np.arange(len(counts))
    found: Floats = sums[np.minimum(places + 10, len(counts))] - sums[np.maximum(places - 10, 0)]
    return found


def _first_size(courses: Courses) -> Floats:
    return np.maximum(np.abs(courses.first_low), np.abs(courses.first_high))


def _from_the_start(courses: Courses) -> npt.NDArray[np.bool_]:
    """Of which parameters the first row is of the first step: later, values are no longer those they began with."""
    early: npt.NDArray[np.bool_] = (courses.first_step <= courses.ends[0]) & (courses.begins[0] == 0)
    return early
