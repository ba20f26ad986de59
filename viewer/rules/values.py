"""Rules on values: how they are initialised, and how they move."""

import re
from math import prod

import numpy as np
import numpy.typing as npt

from viewer.reduce.cells import Floats, Integers
from viewer.reduce.param_history import ParamTables
from viewer.rules.evidence import Evidence, Param
from viewer.rules.rule import Case, Limits, Threshold, cases_of, longest, param_rule, wholes_and_slices
from viewer.snapshot import Severity

_EMBEDDING = re.compile("emb|wte|wpe|token|lookup|codebook", re.IGNORECASE)
# torch.nn and Keras.
_WEIGHT = re.compile("weight|kernel", re.IGNORECASE)


@param_rule(
    "exploding_weight",
    title="Values run away: {first}{others}",
    severity=Severity.WARNING,
    sentence="Values run away ({params}): those of {first} began at {began:.3g} at most, and reached {largest:.3g}.",
    advice="Lower the learning rate, see whether zero_grad() is called, use weight decay or a normalisation layer.",
    largest=Threshold(
        100,
        "an element is larger than this, and than so many times the largest at the start",
        "initial weights are at most about 1 in every initialisation of torch.nn.init; trained ones seldom beyond 10",
    ),
)
def exploding_weight(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Values that have left what weights are."""
    largest, began = limits["largest"], first_size(tables)
    over = tables.size > np.maximum(largest, largest * began)
    last = len(over) - 1 - over[::-1].argmax(axis=0)
    return cases_of(
        tables,
        np.flatnonzero(over.any(axis=0) & tables.moved.any(axis=0)),
        (tables.begins[over.argmax(axis=0)], tables.ends[last]),
        largest=np.nanmax(tables.size, axis=0, initial=0.0),
        began=began,
    )


@param_rule(
    "drifting",
    title="Values drift: {first}{others}",
    severity=Severity.WARNING,
    sentence="Values drift ({params}): those of {first} have grown from {before:.3g} to {now:.3g} since step "
    "{first_step:,}, step by step, and go on.",
    advice="Use weight decay, lower the learning rate; logits that only grow ask for label smoothing or a z-loss.",
    rows=Threshold(1000, "weights grow for so many measured steps", "an end would show by then"),
    growth=Threshold(2, "in the later half of them so many times", "a choice"),
    largest=Threshold(
        10, "to so many times what they were at the start (0.1 at least)", "as for exploding_weight.largest"
    ),
)
def drifting(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Weights that have grown without a break, at a rate that does not end, over many steps."""
    if len(tables.ends) < 16:
        return []
    half = len(tables.ends) // 2
    later = tables.size[half:]
    steady = (np.diff(later, axis=0) > 0).mean(axis=0) >= 0.95
    grown = later[-1] > limits["growth"] * later[0]
    far = later[-1] > limits["largest"] * np.maximum(first_size(tables), 0.1)
    lasted = tables.rows[half:].sum(axis=0) / tables.ranks >= limits["rows"] / 2
    numbers = np.flatnonzero(evidence.weights & steady & grown & far & lasted)
    return cases_of(tables, numbers, (tables.begins[half], tables.ends[-1]), before=later[0], now=later[-1])


@param_rule(
    "unchanged",
    title="{what}: {first}{others}",
    severity=Severity.NOTE,
    sentence="{what} ({params}): the extremes stayed {where} in {rows:,.0f} measured steps, though there are "
    "gradients.",
    advice="See whether the optimizer was given these parameters, whether its learning rate is 0, and whether updates "
    "are lost to rounding in half precision. Where values are clipped on purpose, as in a WGAN, nothing is wrong.",
    slices=True,
    rows=Threshold(100, "extremes stay as they are for so many measured steps with a gradient", "as for dead.rows"),
)
def unchanged(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Values whose extremes do not move though there are gradients.

    One matrix alone proves little: its largest elements may belong to a token or a pixel that never occurs.
    """
    pulled = (tables.grad_high > 0) & (tables.grads > 0)
    stretch = longest(tables, (tables.moved == 0) & (tables.followed > 0) & pulled, tables.followed)
    numbers, slices = wholes_and_slices(tables, np.flatnonzero(stretch.rows >= limits["rows"]))
    low, high = _extremes_at(tables, stretch.steps[1])
    clipped = np.isin(numbers, _clipped(evidence, tables, numbers, low, high))
    bounded, numbers = numbers[clipped], numbers[~clipped]
    stuck = set(numbers[~tables.moved[:, numbers].any(axis=0)].tolist())
    trained = set(np.flatnonzero(pulled.any(axis=0) & tables.whole).tolist())
    modules: dict[str, set[int]] = {}
    for number in trained:
        modules.setdefault(tables.params[number].rpartition(".")[0], set()).add(number)
    in_whole_modules = any(len(members) > 1 and members <= stuck for members in modules.values())
    severity = Severity.ERROR if trained <= stuck else Severity.WARNING if in_whole_modules else None
    words = {"what": "Values do not move", "where": "as they are"}
    still = cases_of(tables, numbers, stretch.steps, severity, words, rows=stretch.rows)
    still += cases_of(tables, slices, stretch.steps, None, words, rows=stretch.rows)
    words = {"what": "Values at their bounds", "where": "where clipping seems to hold them"}
    return still + cases_of(tables, bounded, stretch.steps, None, words, rows=stretch.rows, low=low, high=high)


def _extremes_at(tables: ParamTables, steps: Integers) -> tuple[Floats, Floats]:
    """Each parameter's extremes in the bin that ends with a step of its own."""
    places = np.searchsorted(tables.ends, steps), np.arange(len(tables.params))
    return tables.low[places], tables.high[places]


def _clipped(evidence: Evidence, tables: ParamTables, numbers: Integers, low: Floats, high: Floats) -> list[int]:
    """Those of these parameters whose extremes are bounds: opposite ones that came later, or those of other shapes."""
    shapes: dict[tuple[float, float], set[tuple[int, ...]]] = {}
    for number in numbers:
        shapes.setdefault((low[number], high[number]), set()).add(evidence.params[number].shape)
    came = (low == -high) & tables.moved.any(axis=0)
    return [
        number
        for number in numbers
        if low[number] < high[number] and (came[number] or len(shapes[low[number], high[number]]) > 1)
    ]


@param_rule(
    "constant_init",
    title="All elements begin alike: {first}{others}",
    severity=Severity.NOTE,
    sentence="All elements begin alike ({params}): those of {first} as {begun:g}. Neurons that begin alike learn "
    "alike, unless what follows tells them apart.",
    advice="Initialise at random (torch.nn.init.kaiming_uniform_, xavier_uniform_); only biases, and the last layer of "
    "a residual branch, may begin as 0.",
    rows=Threshold(
        20,
        "weights that begin as 0, or their biases, stay alike for so many measured steps",
        "recipes want zeros at the end of a residual block, in the last layer, in one half of LoRA's pairs: they part "
        "with the first updates",
    ),
)
def constant_init(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Weights that begin with all elements equal: then all neurons of a layer learn the same.

    Not those of a model of one layer, which have nothing but targets behind them. And not zeros whose neurons soon
    part. Neurons that learn the same have the same bias, though inputs may make their weights differ.
    """
    layers = layers_of(evidence)
    alike = layers & (tables.first_low == tables.first_high) & _from_the_start(tables) & (layers.sum() > 1)
    stays = ~(tables.low < tables.high).any(axis=0) & (tables.rows.sum(axis=0) / tables.ranks >= limits["rows"])
    places = {name: number for number, name in enumerate(tables.params)}
    telling = [places.get(name.removesuffix("weight") + "bias", at) for name, at in places.items()]
    holds = alike & (stays[telling] | (tables.first_low != 0))
    severity = Severity.ERROR if 2 * holds.sum() > layers.sum() else None
    begun = tables.first_low + 0.0
    return cases_of(tables, np.flatnonzero(holds), (0, 0), severity, begun=begun, weights=layers.sum())


@param_rule(
    "badly_scaled",
    title="Badly scaled at the start: {first}{others}",
    severity=Severity.NOTE,
    sentence="Badly scaled at the start ({params}): {first} has elements up to {largest:.3g}, where its shape asks for "
    "about {usual:.2g}.",
    advice="Initialise after He (torch.nn.init.kaiming_normal_) for ReLU, after Xavier (xavier_uniform_) for tanh.",
    factor=Threshold(
        10,
        "initial weights are so many times larger than their shape asks for",
        "against the bound of He et al. (2015), to which that of Glorot & Bengio (2010) is close; the defaults of "
        "torch.nn are within a factor of four",
    ),
    small=Threshold(100, "or so many times smaller", "as for badly_scaled.factor"),
    rows=Threshold(
        100,
        "and stay so for as many measured steps",
        "heads begin small on purpose, as PPO's with a gain of 0.01, and leave that within some steps",
    ),
)
def badly_scaled(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Weights that began far from what the shapes of their layers ask for, after Xavier and He, and have stayed so."""
    size, layers = first_size(tables), layers_of(evidence)
    usual = np.array([usual_size(param) for param in evidence.params])
    large, small = limits["factor"] * usual, usual / limits["small"]
    stays_small = (size > 0) & ~(tables.size >= small).any(axis=0)
    stays_large = (size > large) & ~(tables.size <= large).any(axis=0)
    lasted = tables.rows.sum(axis=0) / tables.ranks >= limits["rows"]
    holds = layers & (stays_small | stays_large) & _from_the_start(tables) & lasted
    severity = Severity.WARNING if 2 * holds.sum() >= layers.sum() else None
    return cases_of(tables, np.flatnonzero(holds), (0, 0), severity, largest=size, usual=usual)


def layers_of(evidence: Evidence) -> npt.NDArray[np.bool_]:
    """Mask of the weights of layers of several neurons: no table of embeddings, and no single vector.

    Of a parameter with three dimensions or more that no module calls its weight, nobody knows which are inputs.
    """
    several = [
        param.shape[:1] > (1,)
        and prod(param.shape[1:]) > 1
        and (len(param.shape) < 3 or bool(_WEIGHT.search(param.name.rpartition(".")[2])))
        and not _EMBEDDING.search(param.name)
        for param in evidence.params
    ]
    return evidence.weights & np.array(several, np.bool_)


def usual_size(param: Param) -> float:
    """The largest element to be expected of an initialisation after He, normal, for which Xavier's bound is smaller."""
    fan_in = max(1, prod(param.shape[1:]))
    elements = max(2, prod(param.shape))
    # The largest of n normal numbers is about sqrt(2 ln n).
    return float(np.sqrt(2 / fan_in) * np.sqrt(2 * np.log(elements)))


@param_rule(
    "output_bias",
    title="Output bias far off: {first}{others}",
    # Without an accuracy it may be a regression, whose targets are what they are.
    severity=Severity.NOTE,
    sentence="Output bias far off ({params}): an element fell to {low:.3g}, while all others stayed below {high:.3g}: "
    "that class is hardly ever the answer.",
    advice="Count the classes in the training data: is one missing, rare, or mislabelled? Weight the loss or sample "
    "them evenly.",
    factor=Threshold(
        4,
        "the lower end of the last bias is so many times as far from 0 as the upper one",
        "measured: where all classes are learnt, up to 2.6 times",
    ),
    least=Threshold(0.5, "and so far from 0 at least", "near 0 a factor says nothing"),
    rows=Threshold(50, "for so many measured steps", "a few steps prove nothing"),
)
def output_bias(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """The lower end of the last layer's bias is far below all others: a class that is hardly ever the answer.

    The upper end may belong to what most of the data is, a background or a common word. And where all elements are
    below 0, labels do not exclude each other, and each of them may be rare.
    """
    params = evidence.params
    output = next((params[number].name for number in evidence.backward if evidence.weights[number]), "")
    name = output.removesuffix("weight") + "bias"
    if name not in tables.params:
        return []
    number = tables.params.index(name)
    if params[number].shape[:1] < (3,) or not params[number].trainable:
        return []
    low, high = tables.low, tables.high
    apart = (-low > limits["least"]) & (high > 0) & (-low > limits["factor"] * high)
    stretch = longest(tables, apart, tables.rows)
    if stretch.rows[number] < limits["rows"]:
        return []
    return cases_of(
        tables,
        np.array([number]),
        stretch.steps,
        Severity.WARNING if evidence.accuracies else None,
        low=low[apart[:, number], number].min(),
        high=high[apart[:, number], number].max(),
    )


@param_rule(
    "oscillating",
    title="Values swing: {first}{others}",
    severity=Severity.WARNING,
    sentence="Values swing ({params}): each step takes back the one before, for {rows:,.0f} measured steps.",
    advice="Lower the learning rate, or the momentum.",
    share=Threshold(
        0.8,
        "both extremes turn back in this share of the measured steps",
        "of two that move at random, a quarter of the steps turn both",
    ),
    rows=Threshold(50, "for so many of them", "a few steps prove nothing"),
    update=Threshold(
        1e-2, "and move by more than this share of their size", "ten times cs231n's rule of thumb for updates"
    ),
)
def oscillating(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Values that turn back at nearly every step, by much."""
    share = _around(tables.turned) / _around(tables.followed)
    stretch = longest(tables, (share >= limits["share"]) & (tables.update >= limits["update"]), tables.moved)
    return cases_of(tables, np.flatnonzero(stretch.rows >= limits["rows"]), stretch.steps, rows=stretch.rows)


_RATIO = "cs231n's rule of thumb is about 1e-3 for the size of an update against that of the weights"


@param_rule(
    "update_large",
    title="Updates too large: {first}{others}",
    severity=Severity.WARNING,
    sentence="Updates too large ({params}): {what} by more than {share:.0%} of their size in a step, where about 0.1 % "
    "is usual; for {rows:,.0f} measured {counted}.",
    advice="Lower the learning rate, or warm it up.",
    ratio=Threshold(
        0.2,
        "weights move in measured updates by more than this share of their size",
        f"{_RATIO}; a critic of a WGAN that learns fast, its weights clipped, had 0.1",
    ),
    share=Threshold(1e-1, "where none is measured, their extremes move in a step by more than this share", _RATIO),
    rows=Threshold(50, "for so many measured steps, or so many steps of measured updates", "a few steps prove nothing"),
    updates=Threshold(
        10, "and where updates are measured, by so many of them", "weights that begin as 0 double with the first few"
    ),
)
def update_large(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Weights that move by far more in a step than the rule of thumb wants."""
    measured = tables.ratio_logged.any(axis=0)
    by_ratio = evidence.weights & (tables.ratio > limits["ratio"])
    by_extremes = evidence.weights & ~measured & (tables.update > limits["share"])
    return [*_updates(tables, by_ratio, limits, measured=True), *_updates(tables, by_extremes, limits, measured=False)]


@param_rule(
    "update_small",
    title="Updates tiny: {first}{others}",
    severity=Severity.NOTE,
    sentence="Updates tiny ({params}): {what}, but never by more than {share:.0e} of their size in a step, where about "
    "1e-03 is usual.",
    advice="Raise the learning rate; see whether gradients vanish before they arrive here.",
    ratio=Threshold(1e-5, "weights move in measured updates, and never by more than this share of their size", _RATIO),
    share=Threshold(1e-7, "where none is measured, their extremes do, likewise", "less than float32 resolves"),
    rows=Threshold(50, "in so many measured steps, or so many steps of measured updates", "a few steps prove nothing"),
    updates=Threshold(10, "and where updates are measured, in so many of them", "as for update_large.updates"),
)
def update_small(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Weights that never move by more than a far smaller share. Small at the end is a schedule's aim."""
    measured = tables.ratio_logged.any(axis=0)
    by_ratio = evidence.weights & ~(tables.ratio > limits["ratio"]).any(axis=0) & (tables.ratio_logged > 0)
    small = ~measured & ~(tables.update > limits["share"]).any(axis=0)
    by_extremes = evidence.weights & small & (tables.moved > 0)
    return [*_updates(tables, by_ratio, limits, measured=True), *_updates(tables, by_extremes, limits, measured=False)]


def _updates(tables: ParamTables, holds: npt.NDArray[np.bool_], limits: Limits, measured: bool) -> list[Case]:
    """The weights of which something holds for long enough.

    Args:
        tables: The parameters.
        holds: The cells in which it holds.
        limits: How long is enough.
        measured: Whether it is said of measured updates, or of how extremes move.
    """
    sizes, counts = (tables.ratio, tables.ratio_logged) if measured else (tables.update, tables.moved)
    stretch = longest(tables, holds, counts)
    enough = stretch.rows >= limits["rows"]
    words = {"what": "the extremes move", "counted": "steps", "share": limits["share"]}
    if measured:
        steps = stretch.steps[1] - stretch.steps[0] + 1
        enough = (stretch.rows >= limits["updates"]) & (steps >= limits["rows"])
        words = {"what": "values move", "counted": "updates", "share": limits["ratio"]}
    largest = np.nanmax(np.where(holds, sizes, np.nan), axis=0, initial=0.0)
    return cases_of(tables, np.flatnonzero(enough), stretch.steps, None, words, rows=stretch.rows, largest=largest)


def _around(counts: Floats) -> Floats:
    """Each bin's count together with those of the bins beside it: of single steps a share would be 0 or 1."""
    sums = np.concatenate([np.zeros((1, counts.shape[1])), np.cumsum(counts, axis=0)])
    places = np.arange(len(counts))
    around: Floats = sums[np.minimum(places + 10, len(counts))] - sums[np.maximum(places - 10, 0)]
    return around


def first_size(tables: ParamTables) -> Floats:
    """The largest magnitude of each parameter in its first row; NaN where that was not finite."""
    size: Floats = np.maximum(np.abs(tables.first_low), np.abs(tables.first_high))
    return size


def _from_the_start(tables: ParamTables) -> npt.NDArray[np.bool_]:
    """Mask of the parameters whose first row is of the first step: later, values are not those they began with."""
    early: npt.NDArray[np.bool_] = (tables.first_step <= tables.ends[0]) & (tables.begins[0] == 0)
    return early
