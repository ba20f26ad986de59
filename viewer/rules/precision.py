"""Rules on what a dtype can hold: numbers near its ends, and a scaler that finds no scale for it."""

from dataclasses import replace

import numpy as np

from viewer.dtypes import RANGES, Range
from viewer.reduce.param_history import ParamTables
from viewer.rules.evidence import Evidence
from viewer.rules.rule import Case, Limits, Threshold, cases_of, longest, param_rule, rule
from viewer.snapshot import Severity

# What is not trained comes near no end, nor does what is of these dtypes: that of an unknown one is taken for float32.
_NO_ENDS, _FAR_ENDS = Range(np.inf, 0.0, 0.0), ("float32", "float64")


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
    largest = np.array([held.largest for held in _held(evidence)]) / 2 ** limits["bits"]
    # Gradients are recorded without the scale with which they were computed.
    high = tables.size if _scaled(evidence) else np.fmax(tables.size, tables.grad_high)
    stretch = longest(tables, high > largest, tables.rows)
    return cases_of(tables, np.flatnonzero(stretch.rows > 0), stretch.steps, rows=stretch.rows)


@param_rule(
    "underflow",
    title="Close to underflow: {first}{others}",
    severity=Severity.NOTE,
    sentence="Close to underflow ({params}): even the largest elements of the gradient are among the smallest numbers "
    "that its dtype resolves, for {rows:,.0f} measured steps{down}.",
    advice="Use a GradScaler, or keep these parameters in float32 or bfloat16.",
    bits=Threshold(
        3,
        "a gradient's extremes are so few powers of two above the smallest number of full precision",
        "as for overflow.bits",
    ),
    rows=Threshold(20, "for so many measured steps", "a few steps prove nothing"),
)
def underflow(evidence: Evidence, tables: ParamTables, limits: Limits) -> list[Case]:
    """Gradients within a few bits of the smallest number that their dtype resolves.

    Where the smallest magnitude that is not 0 was recorded, and has full precision, nothing is lost.
    """
    if _scaled(evidence):
        return []
    held = _held(evidence)
    normal = np.array([each.normal for each in held])
    stretch = longest(tables, tables.grad_mean < normal * 2 ** limits["bits"], tables.grads)
    smallest = np.array([tables.smallest_grads.get(name, 0.0) for name in tables.params])
    numbers = np.flatnonzero((stretch.rows >= limits["rows"]) & (smallest < normal))
    cases = cases_of(tables, numbers, stretch.steps, rows=stretch.rows, smallest=smallest)
    return [replace(case, words={"down": _down(case, held[tables.params.index(case.params[0])])}) for case in cases]


def _down(case: Case, held: Range) -> str:
    """Words for the smallest element of the parameter in front, where that is known."""
    smallest = float(case.numbers["smallest"])
    if not smallest:
        return ""
    bits = np.log2(smallest) - np.log2(held.smallest)
    return f"; those of {case.param} go down to {smallest:.2g}, {bits:.2g} bits above the smallest number that it holds"


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


def _held(evidence: Evidence) -> list[Range]:
    """What each parameter's dtype holds."""
    return [
        RANGES.get(param.dtype, _NO_ENDS) if param.trainable and param.dtype not in _FAR_ENDS else _NO_ENDS
        for param in evidence.params
    ]


def _scaled(evidence: Evidence) -> bool:
    return evidence.own("amp_scale") is not None
