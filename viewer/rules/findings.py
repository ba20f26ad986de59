"""Findings of all rules, and the thresholds with which these decide."""

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from viewer.rules import activations, gradients, log, metrics, nonfinite, precision, ranks, values
from viewer.rules.evidence import Evidence
from viewer.rules.rule import Limits, Rule, Threshold
from viewer.snapshot import Finding

RULES: tuple[Rule, ...] = tuple(
    declared
    for module in (nonfinite, gradients, values, activations, metrics, precision, ranks, log)
    for declared in vars(module).values()
    if isinstance(declared, Rule)
)
# What is wrong with the log, and with the run as a whole, which is found as it is now.
OF_LOG = frozenset(rule.kind for rule in vars(log).values() if isinstance(rule, Rule))
# Where a number of measured steps is needed, the rows of all ranks at a step count as one.
THRESHOLDS: Mapping[str, Threshold] = {
    f"{rule.kind}.{name}": threshold for rule in RULES for name, threshold in rule.thresholds.items()
}
# What rules see of values and gradients that are about to become NaN.
_ON_THE_WAY = frozenset({"exploding", "exploding_weight", "loss_diverging", "spike", "overflow", "badly_scaled"})
LIMITS: Limits = {name: threshold.default for name, threshold in THRESHOLDS.items()}


def findings(evidence: Evidence, limits: Limits = LIMITS) -> list[Finding]:
    """Every rule's findings: the worst first, of these the earliest, and of these a parameter's, the likely cause."""
    causes_first = sorted(RULES, key=lambda rule: not rule.on_params)
    # NaN stands where nothing is known, and no comparison with it holds.
    with np.errstate(all="ignore"):
        unsorted = [finding for rule in causes_first for finding in rule.findings(evidence, limits)]
    return sorted(_without_what_led_there(unsorted), key=lambda finding: finding.order)


def _without_what_led_there(found: Sequence[Finding]) -> list[Finding]:
    """One event is one finding: the verdict of what ended in NaN holds what other rules saw of it and on the way."""
    event = next((finding for finding in found if finding.kind == "nonfinite"), None)
    if event is None:
        return list(found)
    since = event.numbers.get("since")

    def is_part(finding: Finding) -> bool:
        on_the_way = since is not None and finding.first_step <= event.first_step and finding.last_step >= float(since)
        return finding.kind in _ON_THE_WAY and (on_the_way or finding.first_step == event.first_step)

    return [finding for finding in found if not is_part(finding)]


def with_limits(given: Sequence[str]) -> Limits:
    """The thresholds with those that a user gave, each as ``vanishing.threshold=1e-8``.

    Raises:
        ValueError: there is no such threshold, or its value is no number.
    """
    limits = dict(LIMITS)
    for argument in given:
        name, _, number = (part.strip() for part in argument.partition("="))
        if name not in limits:
            near = difflib.get_close_matches(name, limits, n=3, cutoff=0.5)
            raise ValueError(f"there is no threshold {name!r}: try {', '.join([*near, '`viewer check --rules`'])}")
        try:
            limits[name] = float(number)
        except ValueError:
            raise ValueError(f"{argument!r} gives no number: write {name}={limits[name]:g}") from None
    return limits
