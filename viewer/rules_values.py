"""Rules on values: initialisation, how they move, and what their dtype can hold."""

import re
from collections.abc import Iterable
from math import prod

import numpy as np
import numpy.typing as npt

from viewer.evidence import Evidence, Param
from viewer.rule import Finding, Limits, Severity, Stretch, longest, named, titled
from viewer.tracks import Courses, Floats, Integers

# Of the dtypes whose ends a training may reach: the largest number, and the smallest of full precision.
_ENDS = {
    "float16": (65504.0, 2.0**-14),
    "bfloat16": (3.3895313892515355e38, 2.0**-126),
    "float8_e4m3fn": (448.0, 2.0**-6),
    "float8_e5m2": (57344.0, 2.0**-14),
}
_EMBEDDING = re.compile("emb|wte|wpe|token|lookup|codebook", re.IGNORECASE)


def exploding_weight(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Values that have left what weights are."""
    courses = evidence.courses
    if courses is None:
        return []
    largest = limits["exploding_weight.largest"]
    over = courses.size > np.maximum(largest, largest * _first_size(courses))
    trained = courses.moved.sum(axis=0) > 0
    numbers = np.flatnonzero(over.any(axis=0) & trained)
    if not len(numbers):
        return []
    begun = over.argmax(axis=0)
    numbers = numbers[np.argsort(begun[numbers], kind="stable")]
    names = [courses.params[number] for number in numbers]
    size = float(np.nanmax(courses.size[:, numbers]))
    return [
        Finding(
            "exploding_weight",
            titled("Values run away", names),
            Severity.WARNING,
            names[0],
            int(courses.begins[begun[numbers[0]]]),
            _last(courses, over[:, numbers]),
            f"Values run away ({named(names)}): they began at {_first_size(courses)[numbers[0]]:.3g} at most, and "
            f"reached {size:.3g}.",
            "Lower the learning rate, use weight decay, put a normalisation layer behind it.",
            {"largest": size, "began": float(_first_size(courses)[numbers[0]]), "parameters": len(names)},
            tuple(names),
        )
    ]


def drifting(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Weights that have grown without a break, at a rate that does not end, over many steps."""
    courses = evidence.courses
    if courses is None or len(courses.ends) < 16:
        return []
    half = len(courses.ends) // 2
    later = courses.size[half:]
    rows = courses.rows[half:].sum(axis=0) / max(1, courses.ranks)
    with np.errstate(invalid="ignore"):
        steady = (np.diff(later, axis=0) > 0).mean(axis=0) >= 0.95
        grown = later[-1] / later[0]
        far = later[-1] > limits["drifting.largest"] * np.maximum(_first_size(courses), 0.1)
    numbers = np.flatnonzero(
        steady & (grown > limits["drifting.growth"]) & far & (rows >= limits["drifting.rows"] / 2) & evidence.weights
    )
    if not len(numbers):
        return []
    numbers = numbers[np.argsort(-grown[numbers], kind="stable")]
    names = [courses.params[number] for number in numbers]
    first = numbers[0]
    return [
        Finding(
            "drifting",
            titled("Values drift", names),
            Severity.WARNING,
            names[0],
            int(courses.begins[half]),
            int(courses.ends[-1]),
            f"Values drift ({named(names)}): those of {names[0]} have grown from {later[0, first]:.3g} to "
            f"{later[-1, first]:.3g} since step {courses.begins[half]:,}, step by step, and go on.",
            "Use weight decay, lower the learning rate; logits that only grow ask for label smoothing or a z-loss.",
            {"from": float(later[0, first]), "to": float(later[-1, first]), "parameters": len(names)},
            tuple(names),
        )
    ]


def unchanged(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Values whose extremes do not move though there are gradients.

    One matrix alone proves little: its largest elements may belong to a token or a pixel that never occurs.
    """
    courses = evidence.courses
    if courses is None:
        return []
    pulled = (courses.grad_high > 0) & (courses.grads > 0)
    still = (courses.moved == 0) & (courses.followed > 0) & pulled
    stretch = longest(still, courses.followed, courses.ranks)
    numbers = np.flatnonzero(stretch.rows >= limits["unchanged.rows"])
    if not len(numbers):
        return []
    pulled_ever = pulled.any(axis=0)
    stuck = set(numbers[courses.moved[:, numbers].sum(axis=0) == 0].tolist())
    whole = stuck >= set(np.flatnonzero(pulled_ever).tolist())
    modules: dict[str, set[int]] = {}
    for number in np.flatnonzero(pulled_ever).tolist():
        modules.setdefault(courses.params[number].rpartition(".")[0], set()).add(number)
    in_whole_modules = any(len(members) > 1 and members <= stuck for members in modules.values())
    names = [courses.params[number] for number in numbers]
    every = "every parameter" if whole else named(names)
    return [
        Finding(
            "unchanged",
            titled("Values do not move", names),
            Severity.ERROR if whole else Severity.WARNING if in_whole_modules else Severity.NOTE,
            names[0],
            int(courses.begins[stretch.first[numbers].min()]),
            int(courses.ends[stretch.last[numbers].max()]),
            f"The extremes of {every} have not moved in {stretch.rows[numbers].max():,.0f} measured steps, though "
            "there are gradients.",
            "See whether the optimizer was given these parameters, whether its learning rate is 0, and whether updates "
            "are lost to rounding in half precision.",
            {"rows": float(stretch.rows[numbers].max()), "parameters": len(names)},
            tuple(names),
        )
    ]


def constant_init(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Weights that begin with all elements equal: then all neurons of a layer learn the same."""
    courses = evidence.courses
    if courses is None or not _from_the_start(courses):
        return []
    constant = evidence.weights & (courses.first_low == courses.first_high) & (_elements(evidence.params) > 1)
    numbers = np.flatnonzero(constant)
    if not len(numbers):
        return []
    names = [courses.params[number] for number in numbers]
    values = {float(courses.first_low[number]) for number in numbers}
    word = "0" if values == {0.0} else "one number" if len(values) > 1 else f"{values.pop():g}"
    return [
        Finding(
            "constant_init",
            titled("All elements begin alike", names),
            # A single layer that begins with zeros is what many recipes want, as at the end of a residual block.
            Severity.ERROR if 2 * len(numbers) >= evidence.weights.sum() else Severity.NOTE,
            names[0],
            0,
            0,
            f"All elements of {named(names)} begin as {word}: the neurons of such a layer all learn the same.",
            "Initialise at random (torch.nn.init.kaiming_uniform_, xavier_uniform_); only biases, and the last layer "
            "of a residual branch, may begin as 0.",
            {"parameters": len(names), "weights": int(evidence.weights.sum())},
            tuple(names),
        )
    ]


def scaled_init(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Initial weights far from what the shapes of their layers ask for, after Xavier and He."""
    courses = evidence.courses
    if courses is None or not _from_the_start(courses):
        return []
    size, params = _first_size(courses), evidence.params
    share = np.array([extent / _usual(param) for param, extent in zip(params, size, strict=True)])
    judged = evidence.weights & np.array(
        [param.shape[:1] > (1,) and not _EMBEDDING.search(param.name) for param in params], np.bool_
    )
    far = (share > limits["badly_scaled.factor"]) | ((share < 1 / limits["badly_scaled.small"]) & (size > 0))
    numbers = np.flatnonzero(judged & far)
    if not len(numbers):
        return []
    names = [params[number].name for number in numbers]
    first = numbers[0]
    return [
        Finding(
            "badly_scaled",
            titled("Badly scaled at the start", names),
            Severity.WARNING if 2 * len(numbers) >= judged.sum() else Severity.NOTE,
            names[0],
            0,
            0,
            f"Badly scaled at the start: {named(names)}; {names[0]} has elements up to {size[first]:.3g}, where its "
            f"shape {list(params[first].shape)} asks for about {_usual(params[first]):.2g}.",
            "Initialise after He (torch.nn.init.kaiming_normal_) for ReLU, after Xavier (xavier_uniform_) for tanh.",
            {"largest": float(size[first]), "usual": _usual(params[first]), "parameters": len(names)},
            tuple(names),
        )
    ]


def _usual(param: Param) -> float:
    """The largest element to be expected of an initialisation after He, normal, for which Xavier's bound is smaller."""
    fan_in = max(1, prod(param.shape[1:]))
    elements = max(2, prod(param.shape))
    # The largest of n normal numbers is about sqrt(2 ln n).
    return float(np.sqrt(2 / fan_in) * np.sqrt(2 * np.log(elements)))


def output_bias(evidence: Evidence, limits: Limits) -> list[Finding]:
    """One end of the last layer's bias is far from all that other biases are: a class that is never the answer."""
    courses = evidence.courses
    params = evidence.params
    if courses is None:
        return []
    biases = [n for n in evidence.backward if len(params[n].shape) == 1 and params[n].name.endswith("bias")]
    if not biases or params[biases[0]].shape[0] < 3 or not params[biases[0]].trainable:
        return []
    last = biases[0]
    low, high = courses.low[:, last], courses.high[:, last]
    with np.errstate(invalid="ignore"):
        near, far = np.minimum(np.abs(low), np.abs(high)), np.maximum(np.abs(low), np.abs(high))
        apart = (far > limits["output_bias.least"]) & (far > limits["output_bias.factor"] * near)
    if not apart[-1]:
        return []
    first = int(np.flatnonzero(~apart)[-1]) + 1 if not apart.all() else 0
    lowest = abs(low[-1]) > abs(high[-1])
    name = params[last].name
    return [
        Finding(
            "output_bias",
            f"Output bias far off: {name}",
            # Without an accuracy it may be a regression, whose targets are what they are.
            Severity.WARNING if evidence.accuracies else Severity.NOTE,
            name,
            int(courses.begins[first]),
            int(courses.ends[-1]),
            f"An element of the output's bias, {name}, is at {(low if lowest else high)[-1]:.3g}, its other end at "
            f"{(high if lowest else low)[-1]:.3g}: that class is {'hardly ever' if lowest else 'nearly always'} the "
            "answer.",
            "Count the classes in the training data: is one missing, rare, or mislabelled? Weight the loss or sample "
            "them evenly.",
            {"low": float(low[-1]), "high": float(high[-1])},
            (name,),
        )
    ]


def oscillating(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Values that turn back at nearly every step, by much."""
    courses = evidence.courses
    if courses is None:
        return []
    with np.errstate(invalid="ignore", divide="ignore"):
        share = _around(courses.turned) / _around(courses.followed)
    holds = (share >= limits["oscillating.share"]) & (courses.update >= limits["oscillating.update"])
    stretch = longest(holds, courses.moved, courses.ranks)
    numbers = np.flatnonzero(stretch.rows >= limits["oscillating.rows"])
    return _since(
        "oscillating",
        "Values swing",
        Severity.WARNING,
        courses,
        stretch,
        numbers,
        "Values swing to and fro ({names}): each step takes back the one before, for {rows:,.0f} measured steps.",
        "Lower the learning rate, or the momentum.",
    )


def update_size(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Weights whose extremes move by far more, or by far less, in a step than the rule of thumb wants."""
    courses = evidence.courses
    if courses is None:
        return []
    with np.errstate(invalid="ignore"):
        large = (courses.update > limits["update.large"]) & evidence.weights
        # Small at the end is a schedule's aim, and small throughout is not.
        small = evidence.weights & ~(courses.update > limits["update.small"]).any(axis=0) & (courses.moved > 0)
    fast, slow = (longest(holds, courses.moved, courses.ranks) for holds in (large, small))
    return _since(
        "update_large",
        "Updates too large",
        Severity.WARNING,
        courses,
        fast,
        np.flatnonzero(fast.rows >= limits["update.rows"]),
        "Updates are too large ({names}): the extremes move by more than "
        f"{limits['update.large']:.0%} of their size in a step, where about 0.1 % is usual; for {{rows:,.0f}} measured "
        "steps.",
        "Lower the learning rate, or warm it up.",
    ) + _since(
        "update_small",
        "Updates tiny",
        Severity.NOTE,
        courses,
        slow,
        np.flatnonzero(slow.rows >= limits["update.rows"]),
        "Updates are tiny ({names}): the extremes never moved by more than "
        f"{limits['update.small']:.0e} of their size in a step, where about 1e-03 is usual.",
        "Raise the learning rate; see whether gradients vanish before they arrive here.",
    )


def headroom(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Extremes within a few bits of what their dtype can hold."""
    courses = evidence.courses
    if courses is None:
        return []
    room = 2 ** limits["headroom.bits"]
    ends = np.array([_ENDS.get(param.dtype, (np.inf, 0.0)) for param in evidence.params]).reshape(-1, 2).T
    scaled = evidence.curve("amp_scale") is not None
    # Gradients are recorded without the scale with which they were computed.
    grad_high = np.full_like(courses.grad_high, np.nan) if scaled else courses.grad_high
    with np.errstate(invalid="ignore"):
        high = np.fmax(courses.size, grad_high) > ends[0] / room
        low = (courses.grad_mean < ends[1] * room) & (not scaled)
    over = longest(high, courses.rows, courses.ranks)
    under = longest(low, courses.grads, courses.ranks)
    return _since(
        "overflow",
        "Close to overflow",
        Severity.WARNING,
        courses,
        over,
        np.flatnonzero(over.rows > 0),
        f"Close to overflow ({{names}}): within {limits['headroom.bits']:g} bits of the largest number of its dtype.",
        "Use a GradScaler, bfloat16 instead of float16, clip gradients, scale inputs and loss down.",
    ) + _since(
        "underflow",
        "Close to underflow",
        Severity.NOTE,
        courses,
        under,
        np.flatnonzero(under.rows >= limits["headroom.rows"]),
        "Close to underflow ({names}): even the largest elements of the gradient are among the smallest numbers that "
        "its dtype resolves, for {rows:,.0f} measured steps.",
        "Use a GradScaler, or keep these parameters in float32 or bfloat16.",
    )


def _since(
    kind: str,
    title: str,
    severity: Severity,
    courses: Courses,
    stretch: Stretch,
    numbers: Integers,
    words: str,
    advice: str,
) -> list[Finding]:
    """One finding on all parameters of which something held for long, the first of them in front."""
    if not len(numbers):
        return []
    numbers = numbers[np.argsort(stretch.first[numbers], kind="stable")]
    names = [courses.params[number] for number in numbers]
    rows = float(stretch.rows[numbers].max())
    return [
        Finding(
            kind,
            titled(title, names),
            severity,
            names[0],
            int(courses.begins[stretch.first[numbers[0]]]),
            int(courses.ends[stretch.last[numbers].max()]),
            words.format(names=named(names), rows=rows),
            advice,
            {"rows": rows, "parameters": len(names)},
            tuple(names),
        )
    ]


def _around(counts: Floats) -> Floats:
    """Each bin's count together with those of the bins beside it: of single steps a share would be 0 or 1."""
    sums = np.concatenate([np.zeros((1, counts.shape[1])), np.cumsum(counts, axis=0)])
    places = np.arange(len(counts))
    found: Floats = sums[np.minimum(places + 10, len(counts))] - sums[np.maximum(places - 10, 0)]
    return found


def _first_size(courses: Courses) -> Floats:
    return np.maximum(np.abs(courses.first_low), np.abs(courses.first_high))


def _from_the_start(courses: Courses) -> bool:
    """Whether the first row is of the first step: later, values are no longer those of the initialisation."""
    return int(courses.begins[0]) == 0 and bool((courses.first_step[courses.first_step >= 0] <= courses.ends[0]).all())


def _elements(params: Iterable[Param]) -> Floats:
    return np.array([prod(param.shape) for param in params])


def _last(courses: Courses, holds: npt.NDArray[np.bool_]) -> int:
    return int(courses.ends[np.flatnonzero(holds.any(axis=1))[-1]])
