"""Rules on gradients: exploding, vanishing, dead, unused, spikes."""

from dataclasses import replace
from itertools import accumulate, takewhile

import numpy as np

from viewer.reduce.cells import Floats, Integers
from viewer.reduce.depth import listed
from viewer.reduce.param_history import ParamTables
from viewer.rules import values as value_rules
from viewer.rules.evidence import Evidence, Moment
from viewer.rules.rule import Case, Limits, Threshold, cases_of, longest, param_rule, rule, wholes_and_slices
from viewer.snapshot import Severity

# Gradients that explode are still rising at so many times their median since. Those of targets that have risen, even
# steadily, stay within a few times of it.
_STILL_RISING = 10
_DEAD_SLICE = (
    "A slice of stacked experts is an expert that the router never chooses: balance the load with a loss for it, with "
    "noise on the router, or with a bias. A row of an embedding is a token that never occurs."
)


@param_rule(
    "exploding",
    title="Gradients explode: {first}{others}",
    severity=Severity.WARNING,
    sentence="Gradients explode ({params}): that of {first} reached {largest:.3g}{rise}.",
    advice="Lower the learning rate, warm it up, or clip gradients (torch.nn.utils.clip_grad_norm_); check the scale "
    "of inputs and targets.",
    factor=Threshold(
        1e3,
        "a gradient's largest element is so many times its own median until then",
        "measured: healthy gradients stay within two decades of their own median",
    ),
    largest=Threshold(
        1e6,
        "or is larger than this",
        "where anybody clips gradients, it is to about 1 (Pascanu et al. 2013); what is left of a target of some "
        "thousands, squared, stays below",
    ),
    rows=Threshold(3, "for so many measured steps, unless NaN follows", "one or two are a spike"),
)
def exploding(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Gradients that rise far above their own running median and stay there, or are huge.

    They may stay there since targets have risen, as those of a value do once there is a reward: so it is an error where
    NaN follows, where they go on rising, where values run away, or where no loss is known.
    """
    high = tables.grad_high
    huge = high > limits["largest"]
    first, last, factor = huge.argmax(axis=0), len(high) - 1 - huge[::-1].argmax(axis=0), np.zeros(high.shape[1])
    beyond = np.full(high.shape[1], limits["largest"])
    # What is below the gradients that the model began with harms nobody.
    least = 10 * _begun(tables)
    lowest = np.fmin.accumulate(tables.grad_mean, axis=0)
    risen = high[1:] > np.maximum(limits["factor"] * lowest[:-1], least)
    for number in np.flatnonzero(risen.any(axis=0)).tolist():
        rise = _rise(tables, number, limits, least)
        if rise is not None:
            first[number], last[number], factor[number], beyond[number] = rise
    numbers = np.flatnonzero(huge.any(axis=0) | (factor > 0))
    if not len(numbers):
        return []
    end = last[numbers].max()
    leading = numbers[first[numbers].argmin()]
    front = factor[leading]
    spoilt = tables.bad_grads[end + 1 :].any() or tables.bad_values.any()
    rising = high[end, numbers] > _STILL_RISING * np.nanmedian(high[first[leading] : end + 1, numbers], axis=0)
    alarming = rising.any() or not evidence.losses or value_rules.exploding_weight.findings(evidence, limits)
    moment = _moment(tables, int(first[leading]), int(leading), beyond[leading])
    cases = cases_of(
        tables,
        numbers,
        (tables.begins[first], tables.ends[last]),
        Severity.ERROR if front > 0 and (spoilt or (end == len(high) - 1 and alarming)) else None,
        {"rise": f", {front:,.4g} times its median until then" if front > 0 else ""},
        largest=np.nanmax(high, axis=0, initial=0.0),
        factor=factor,
    )
    return [replace(case, moment=moment) for case in cases]


def _moment(tables: ParamTables, place: int, number: int, beyond: float) -> Moment:
    """The first step of a bin in which a parameter's gradient was beyond a magnitude."""
    return Moment(int(tables.begins[place]), int(tables.ends[place]), param=tables.params[number], beyond=float(beyond))


def _rise(tables: ParamTables, number: int, limits: Limits, least: float) -> tuple[int, int, float, float] | None:
    """The first and last bin in which a gradient stayed above its median before, how far, and beyond what it was."""
    high, mean = tables.grad_high[:, number], tables.grad_mean[:, number]
    bins = np.flatnonzero(mean > 0)
    # A median is no less than the least of its numbers, which is known sooner.
    lowest = np.minimum.accumulate(mean[bins])[1:-1]
    for at in np.flatnonzero(high[bins[2:]] > np.maximum(limits["factor"] * lowest, least)) + 2:
        place, before = bins[at], float(np.median(mean[bins[:at]]))
        beyond = max(limits["factor"] * before, least)
        down = bins[at:][mean[bins[at:]] <= limits["factor"] / 10 * before]
        if not high[place] > beyond or place in down[:1]:
            continue
        last = int(bins[np.searchsorted(bins, down[0]) - 1] if len(down) else bins[-1])
        spoilt = tables.bad_grads[place:, number].any() or tables.bad_values[place:, number].any()
        if spoilt or tables.grads[place : last + 1, number].sum() >= limits["rows"] * tables.ranks:
            return int(place), last, float(np.nanmax(high[place : last + 1]) / before), beyond
    return None


@param_rule(
    "vanishing",
    title="Gradients vanish: {first}{others}",
    severity=Severity.WARNING,
    sentence="Gradients vanish ({params}): towards the input, those of the first {parameters} of {layers} layers are "
    "{share:.1g} times those of the last {parameters}, so that the first hardly learn.",
    advice="Use ReLU or GELU instead of sigmoid or tanh, residual connections, normalisation layers, He or Xavier "
    "initialisation.",
    threshold=Threshold(
        1e-4,
        "gradients of the first third of the layers are less than this share of those of the last third",
        "each sigmoid passes on a quarter at most (Glorot & Bengio 2010), and torch's own initial weights halve it: "
        "five layers of that lie between the thirds; measured: healthy models stay above 1e-2",
    ),
    layers=Threshold(6, "the model has so many layers at least", "two in each third"),
    rows=Threshold(20, "for so many measured steps, and half of them all", "a few steps prove nothing"),
)
def vanishing(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """The gradients of the layers nearest to the input are a tiny share of those nearest to the loss, for long.

    It is their share that counts: where a loss has converged, all gradients are small.
    """
    trained = evidence.weights & (tables.grad_mean > 0).any(axis=0)
    depth: Integers = np.array([number for number in evidence.backward[::-1] if trained[number]], np.int64)
    if len(depth) < limits["layers"]:
        return []
    third = len(depth) // 3
    early, late = (_typical(tables.grad_mean[:, part]) for part in (depth[:third], depth[-third:]))
    share = early / late
    rows = tables.grads[:, depth].max(axis=1, keepdims=True)
    stretch = longest(tables, (share < limits["threshold"])[:, None], rows)
    if stretch.rows[0] < max(limits["rows"], rows.sum() / tables.ranks / 2):
        return []
    within = (tables.begins >= stretch.steps[0]) & (tables.ends <= stretch.steps[1])
    return cases_of(
        tables,
        depth[:third],
        stretch.steps,
        share=np.exp(np.nanmean(np.log(share[within]))),
        layers=len(depth),
        rows=stretch.rows[0],
    )


def _typical(means: Floats) -> Floats:
    """The median over parameters, NaN where none has a gradient that is not 0."""
    medians = np.full(len(means), np.nan)
    some = (means > 0).any(axis=1)
    medians[some] = np.nanmedian(means[some], axis=1)
    return medians


@param_rule(
    "dead",
    title="Dead: {first}{others}",
    severity=Severity.WARNING,
    sentence="Dead ({params}): the gradient has been exactly 0 for {rows:,.0f} measured steps, and {until}: nothing is "
    "learnt there{others_learn}.",
    advice="Look for ReLUs that are never active (a large negative bias, a learning rate too large: try LeakyReLU or "
    "GELU), for weights that are all zero behind it, for a detach(), for a loss that it has no part in.",
    slices=True,
    rows=Threshold(
        100,
        "the gradient is exactly 0 for so many measured steps, others are not",
        "the dead ReLUs of cs231n never recover; a layer that merely gets few examples does so within some steps",
    ),
)
def dead(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Gradients that are exactly zero for long, while those of other parameters, or other slices, are not."""
    # Where all are zero, the loss is flat: nothing can be said of one.
    some = tables.grad_high > 0
    alive = np.where(tables.whole, some.any(axis=1, keepdims=True), some[:, tables.wholes])
    stretch = longest(tables, (tables.zeros == tables.grads) & (tables.grads > 0) & alive, tables.grads)
    numbers, slices = wholes_and_slices(tables, np.flatnonzero(stretch.rows >= limits["rows"]))
    most = 2 * evidence.weights[numbers].sum() >= max(1, evidence.weights.sum())
    kinds = (
        (numbers, Severity.ERROR if most else None, "", ""),
        (slices, None, ", while other slices of the same parameter learn", _DEAD_SLICE),
    )
    cases: list[Case] = []
    for dead, severity, others, advice in kinds:
        last = stretch.steps[1][dead].max(initial=0)
        until = "still is" if last == tables.ends[-1] else f"was until step {last:,}"
        words = {"until": until, "others_learn": others}
        cases += cases_of(tables, dead, stretch.steps, severity, words, advice, rows=stretch.rows)
    return cases


@rule(
    "untrained",
    title="{what}: {first}{others}",
    severity=Severity.WARNING,
    sentence="{what} ({params}), though it is meant to train: it requires a gradient.",
    advice="Give it to the optimizer, mend the learning rate or its schedule, or freeze it with requires_grad_(False).",
)
def untrained(evidence: Evidence, limits: Limits) -> list[Case]:
    """What the trace itself has seen of optimizers: parameters that none holds, or with a learning rate of 0."""
    return [
        Case(names[0], event.step, event.step, {"parameters": len(names)}, tuple(names), words={"what": what})
        for kind, what in (("unheld", "No optimizer holds it"), ("rate_zero", "Learning rate 0"))
        if (event := next((event for event in evidence.events if event.kind == kind), None)) is not None
        and (names := listed(event.detail))
    ]


@param_rule(
    "unused",
    title="Never a gradient: {first}{others}",
    severity=Severity.WARNING,
    sentence="Never a gradient ({params}): in {rows:,.0f} measured steps there was none, so the loss does not depend "
    "on it.",
    advice="Use its module in forward, leave it out of the model, or freeze it with requires_grad_(False).",
    rows=Threshold(
        20, "never a gradient in so many measured steps, while others have one", "a few steps prove nothing"
    ),
)
def unused(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Parameters that are to be trained and never had a gradient, while others did.

    No backward tells of a gradient that was set by hand: values that move do, or the gradient that was applied.
    """
    told = [event for event in evidence.events if event.kind in ("frozen", "failed", "removed")]
    # Modules or parameters.
    named = {event.param for event in told}.union(*map(listed, {event.detail for event in told}))
    wanted = np.array(
        [
            param.trainable
            and 0 not in param.shape
            and param.name not in tables.applied
            and named.isdisjoint(accumulate(param.name.split("."), "{}.{}".format))
            for param in evidence.params
        ]
    )
    # Since a parameter joined, so often others had a gradient.
    since = tables.rows.cumsum(axis=0) > 0
    measured = (tables.grads.max(axis=1, keepdims=True) * since).sum(axis=0) / tables.ranks
    holds = wanted & ~tables.grads.any(axis=0) & ~tables.moved.any(axis=0) & (measured >= limits["rows"])
    numbers = np.flatnonzero(holds)
    copies = _copies(evidence, tables, numbers)
    others = numbers[~np.isin(numbers, copies)]
    return cases_of(tables, others, (tables.begins[0], evidence.last_step), rows=measured)


def _copies(evidence: Evidence, tables: ParamTables, numbers: Integers) -> list[int]:
    """Those of these parameters that belong to a copy of trained ones: a target network, a teacher, a reference.

    A copy takes over its values seldom or never. It began as what it is a copy of, all of it, under another name. Not
    under another number: layers in a row may begin alike, and one of them may be left out.
    """
    shapes = (param.shape for param in evidence.params)
    began = list(zip(shapes, tables.first_step, tables.first_low, tables.first_high, strict=True))
    trained: dict[object, set[str]] = {}
    for number in np.flatnonzero(tables.grads.any(axis=0)) if len(numbers) else ():
        trained.setdefault(began[number], set()).add(tables.params[number])
    # Constants say nothing by themselves.
    varied = numbers[tables.first_low[numbers] < tables.first_high[numbers]]
    modules = {_apart(tables.params[number], name) for number in varied for name in trained.get(began[number], ())}
    return [
        number
        for number in numbers
        for copy, original in modules - {("", "")}
        if (name := tables.params[number]).startswith(f"{copy}.")
        and original + name.removeprefix(copy) in trained.get(began[number], ())
    ]


def _apart(name: str, other: str) -> tuple[str, str]:
    """The modules in which two parameters have the same name; nothing if there are none, or numbers tell them apart."""
    keys, others = name.split("."), other.split(".")
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(keys[::-1], others[::-1], strict=False)))
    if not 0 < same < min(len(keys), len(others)) or (keys[-same - 1] + others[-same - 1]).isdecimal():
        return "", ""
    return ".".join(keys[:-same]), ".".join(others[:-same])


@param_rule(
    "spike",
    title="Gradient spikes: {first}",
    severity=Severity.NOTE,
    sentence="Gradients spike ({times} times); most in {first} {where}: {factor:,.4g} times what it is around it.",
    advice="Look at the batch of that step for an outlier or a broken example; clip gradients.",
    factor=Threshold(100, "a gradient is so many times what it is before and after", "as for exploding.factor"),
)
def spike(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Isolated steps whose gradient is far outside of what it is around them."""
    if len(tables.ends) < 3:
        return []
    around = np.maximum(tables.grad_mean[:-2], tables.grad_mean[2:])
    factor = tables.grad_high[1:-1] / around
    # What is below the gradients that the model began with is no news: a converged run's band is narrow.
    far = (factor > limits["factor"]) & (tables.grad_high[1:-1] > _begun(tables))
    if not far.any():
        return []
    bins = np.flatnonzero(far.any(axis=1)) + 1
    at, number = np.unravel_index(np.where(far, factor, 0).argmax(), far.shape)
    begin, end = int(tables.begins[at + 1]), int(tables.ends[at + 1])
    params = tuple(tables.params[number] for number in np.flatnonzero(far.any(axis=0)))
    return [
        Case(
            tables.params[number],
            int(tables.begins[bins[0]]),
            int(tables.ends[bins[-1]]),
            {"times": len(bins), "factor": float(factor[at, number]), "step": end, "parameters": len(params)},
            params,
            words={"where": f"at step {begin:,}" if begin == end else f"between steps {begin:,} and {end:,}"},
            moment=_moment(tables, int(at) + 1, int(number), limits["factor"] * around[at, number]),
        )
    ]


def _begun(tables: ParamTables) -> float:
    """The largest gradient of the run's first tenth."""
    return float(np.nanmax(tables.grad_high[: max(1, len(tables.ends) // 10)], initial=0.0))
