"""Rules on what a dtype can hold: numbers near its ends, and a scaler that finds no scale for it."""

import numpy as np

from viewer.reduce.cells import Floats
from viewer.reduce.param_history import ParamTables
from viewer.rules.evidence import Evidence
from viewer.rules.rule import Case, Limits, Threshold, cases_of, longest, param_rule, rule
from viewer.snapshot import Severity

# Of the dtypes whose ends a training may reach: the largest number, and the smallest of full precision.
_ENDS = {
    "float16": (65504.0, 2.0**-14),
    "bfloat16": (3.3895313892515355e38, 2.0**-126),
    "float8_e4m3fn": (448.0, 2.0**-6),
    "float8_e5m2": (57344.0, 2.0**-14),
}


@param_rule(
    "overflow",
    title="Close to overflow: {first}{others}",
    severity=Severity.WARNING,
    sentence="Close to overflow ({params}): within {limits[bits]:g} bits of the largest number of its dtype.",
    advice="Use a GradScaler, bfloat16 instead of float16, clip gradients, scale inputs and loss down.",
    bits=Threshold(
        3,
        "an extreme is so few powers of two below the largest number of its dtype",
        "three are a factor of eight, which gradients vary by anyway",
    ),
)
def overflow(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Extremes within a few bits of the largest number that their dtype can hold."""
    largest = _ends(evidence)[0] / 2 ** limits["bits"]
    # Gradients are recorded without the scale with which they were computed.
    high = tables.size if _scaled(evidence) else np.fmax(tables.size, tables.grad_high)
    stretch = longest(tables, high > largest, tables.rows)
    return cases_of(tables, np.flatnonzero(stretch.rows > 0), stretch.steps, rows=stretch.rows)


@param_rule(
    "underflow",
    title="Close to underflow: {first}{others}",
    severity=Severity.NOTE,
    sentence="Close to underflow ({params}): even the largest elements of the gradient are among the smallest numbers "
    "that its dtype resolves, for {rows:,.0f} measured steps.",
    advice="Use a GradScaler, or keep these parameters in float32 or bfloat16.",
    bits=Threshold(
        3,
        "a gradient's extremes are so few powers of two above the smallest number of full precision",
        "as for overflow.bits",
    ),
    rows=Threshold(20, "for so many measured steps", "a few steps prove nothing"),
)
def underflow(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Gradients within a few bits of the smallest number that their dtype resolves."""
    if _scaled(evidence):
        return []
    smallest = _ends(evidence)[1] * 2 ** limits["bits"]
    stretch = longest(tables, tables.grad_mean < smallest, tables.grads)
    return cases_of(tables, np.flatnonzero(stretch.rows >= limits["rows"]), stretch.steps, rows=stretch.rows)


@rule(
    "skipping",
    title="The scaler skips every step",
    severity=Severity.ERROR,
    sentence="The scaler has skipped every step since step {first_step:,}: gradients overflow at any scale, so nothing "
    "is learnt.",
    advice="Look for NaN in the forward: with a scaler, infinities are expected, and they end as the scale sinks.",
    steps=Threshold(
        20,
        "a GradScaler has skipped so many steps without a break",
        "a scale that is searched for skips a few steps at first, and then one in 2,000 (torch.amp.GradScaler)",
    ),
)
def skipping(evidence: Evidence, limits: Limits) -> list[Case]:
    """A scaler that skips step after step."""
    curve = evidence.own("skipped")
    if curve is None or not len(curve.step):
        return []
    learnt = np.flatnonzero(~(np.array(curve.mean) >= 1))
    begun = int(learnt[-1]) + 1 if len(learnt) else 0
    if begun == len(curve.step):
        return []
    last = int(curve.step[-1])
    skipped = last - (int(curve.step[begun - 1]) if begun else -1)
    if skipped < limits["steps"]:
        return []
    return [Case(None, int(curve.step[begun]), last, {"metric": curve.name, "skipped": skipped})]


def _ends(evidence: Evidence) -> Floats:
    """The largest and the smallest number of each parameter's dtype; what is not trained comes near neither."""
    no_ends = (np.inf, 0.0)
    ends = [_ENDS.get(param.dtype, no_ends) if param.trainable else no_ends for param in evidence.params]
    return np.array(ends).reshape(-1, 2).T


def _scaled(evidence: Evidence) -> bool:
    return evidence.own("amp_scale") is not None
