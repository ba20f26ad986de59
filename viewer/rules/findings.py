"""What is wrong with a run: every rule's findings, the worst first."""

import numpy as np

from viewer.rules import gradients, log, metrics, values
from viewer.rules.evidence import Evidence
from viewer.rules.rule import LIMITS, THRESHOLDS, Limits, ParamRule, Rule, with_limits
from viewer.snapshot import Finding, Severity

__all__ = [
    "LIMITS",
    "ON_PARAMS",
    "RULES",
    "THRESHOLDS",
    "Finding",
    "Limits",
    "Severity",
    "findings",
    "with_limits",
]

ON_PARAMS: tuple[ParamRule, ...] = (
    gradients.nonfinite,
    gradients.exploding,
    gradients.vanishing,
    gradients.dead,
    gradients.unused,
    gradients.spike,
    values.exploding_weight,
    values.drifting,
    values.unchanged,
    values.constant_init,
    values.scaled_init,
    values.output_bias,
    values.oscillating,
    values.update_large,
    values.update_small,
    values.overflow,
    values.underflow,
)
RULES: tuple[Rule, ...] = (
    metrics.loss_nonfinite,
    metrics.loss_flat,
    metrics.loss_diverging,
    metrics.overfitting,
    metrics.at_chance,
    metrics.skipping,
    log.lost,
    log.silent,
    log.no_step,
    log.noted,
    log.ended,
)


def findings(evidence: Evidence, limits: Limits = LIMITS) -> list[Finding]:
    """What every rule found: the worst first, of these the earliest, and of these a parameter's, the likely cause."""
    courses = evidence.courses
    found: list[Finding] = []
    # NaN stands where there is nothing to say, and of that nothing comes.
    with np.errstate(all="ignore"):
        if courses is not None:
            found += [finding for rule in ON_PARAMS for finding in rule(evidence, courses, limits)]
        found += [finding for rule in RULES for finding in rule(evidence, limits)]
    return sorted(found, key=lambda finding: finding.order)
