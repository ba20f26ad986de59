"""Rules on the outputs of modules, where a log has them: dead units, and functions that are saturated."""

from collections.abc import Callable

import numpy as np

from viewer.reduce.cells import Floats
from viewer.reduce.modules import ModuleTables
from viewer.rules.evidence import Evidence
from viewer.rules.rule import Case, Limits, Stretch, Threshold, longest, rule
from viewer.snapshot import Number, Severity
from viewer.words import MODEL


@rule(
    "dead_units",
    title="Dead units: {name}{more}",
    severity=Severity.WARNING,
    sentence="Dead units ({which}): in each of {rows:,.0f} measured steps, at least {share:.0%} of the units of {name} "
    "had given out nothing but 0, as far back as 100 measured steps.",
    advice="A ReLU that is never active learns nothing: lower the learning rate, look for a large negative bias, try "
    "LeakyReLU or GELU. Units that are masked or pruned on purpose are 0, too.",
    share=Threshold(
        0.4,
        "this share of a module's units is exactly 0 for all inputs",
        "cs231n on ReLU: as much as 40 % of a network can be dead if the learning rate is too high",
    ),
    rows=Threshold(100, "for so many measured steps", "as for dead.rows"),
)
def dead_units(evidence: Evidence, limits: Limits) -> list[Case]:
    """A large share of units that are 0 whatever comes in, in the module in which that begins.

    A row's share is of units that were 0 in the step and in those before it, so that few examples, sparse inputs and
    dropout make none. What passes dead units on is not named, such as a pooling, a flattening, or the module around.
    Nor is what comes before the first layer: zeros there are of the input.
    """
    tables = evidence.modules
    if tables is None:
        return []
    stretch = longest(tables, tables.dead >= limits["share"], tables.judged)
    holds = stretch.rows >= limits["rows"]
    layers = {param.rpartition(".")[0] for param in evidence.described}
    first = next((number for number, name in enumerate(tables.modules) if name in layers), 0)
    begun: list[int] = []
    for number in np.flatnonzero(holds[first:]) + first:
        # What ran just before, or has the same share in all bins, passed them on.
        before = [other for other in range(first, number) if holds[other]]
        same = any(np.array_equal(tables.dead[:, number], tables.dead[:, other], equal_nan=True) for other in before)
        if number - 1 not in before and not same:
            begun.append(int(number))
    return _cases(tables, begun, stretch, tables.dead, np.nanmin)


@rule(
    "saturated",
    title="Saturated: {name}{more}",
    severity=Severity.WARNING,
    sentence="Saturated ({which}): for {rows:,.0f} measured steps, {share:.0%} of the outputs of {name} were at the "
    "bounds of its function, where it is flat: hardly a gradient comes through.",
    advice="Initialise after Xavier (torch.nn.init.xavier_uniform_), scale inputs, lower the learning rate, or put a "
    "normalisation layer before it.",
    share=Threshold(
        0.75,
        "this share of a bounded function's outputs is at its bounds",
        "cs231n shows tanh layers with nearly all outputs at -1 and 1, where gradients vanish; measured: up to 0.57 in "
        "healthy networks, for Hardtanh, and from 0.94 on where the learning rate is too high",
    ),
    rows=Threshold(100, "for so many measured steps", "as for dead.rows"),
)
def saturated(evidence: Evidence, limits: Limits) -> list[Case]:
    """A hidden sigmoid, tanh or the like that is flat for most of what comes in. An output is meant to be decided."""
    tables = evidence.modules
    if tables is None:
        return []
    shares = tables.saturated / tables.bounded
    stretch = longest(tables, shares >= limits["share"], tables.bounded)
    numbers = [
        number for number in np.flatnonzero(stretch.rows >= limits["rows"]).tolist() if not _is_output(tables, number)
    ]
    return _cases(tables, numbers, stretch, shares, np.nanmean)


def _is_output(tables: ModuleTables, number: int) -> bool:
    """Whether a module gives what all of the recorded modules around it give; without any, whether it runs last."""
    name = tables.modules[number]
    around = [
        other
        for other, outer in enumerate(tables.modules)
        if other != number and (not outer or name.startswith(f"{outer}."))
    ]
    if not around:
        return number == len(tables.modules) - 1
    extremes = tables.low, tables.high
    return all(np.array_equal(of[:, number], of[:, other], equal_nan=True) for of in extremes for other in around)


def _cases(
    tables: ModuleTables, numbers: list[int], stretch: Stretch, shares: Floats, typical: Callable[[Floats], float]
) -> list[Case]:
    """One case of all modules that have something, the one that runs first in front; none without any."""
    if not numbers:
        return []
    front, count = numbers[0], len(numbers)
    begins, ends = stretch.steps
    within = (tables.begins >= begins[front]) & (tables.ends <= ends[front])
    name, rows = tables.modules[front] or MODEL, float(stretch.rows[front])
    said: dict[str, Number] = {
        "module": tables.modules[front],
        "share": float(typical(shares[within, front])),
        "rows": rows,
    }
    words = {
        "name": name,
        "more": " and others" if count > 1 else "",
        "which": f"{count} modules, {name} the first" if count > 1 else name,
    }
    steps = int(begins[numbers].min()), int(ends[numbers].max())
    return [Case(None, *steps, {**said, "modules": count}, words=words)]
