"""What is wrong with a run: every rule's findings, the worst first."""

import numpy as np

from viewer import rules_gradients, rules_log, rules_metrics, rules_values
from viewer.evidence import Evidence
from viewer.rule import LIMITS, THRESHOLDS, Limits, ParamRule, Rule, with_limits
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
    rules_gradients.nonfinite,
    rules_gradients.exploding,
    rules_gradients.vanishing,
    rules_gradients.dead,
    rules_gradients.unused,
    rules_gradients.spike,
    rules_values.exploding_weight,
    rules_values.drifting,
    rules_values.unchanged,
    rules_values.constant_init,
    rules_values.scaled_init,
    rules_values.output_bias,
    rules_values.oscillating,
    rules_values.update_large,
    rules_values.update_small,
    rules_values.overflow,
    rules_values.underflow,
)
RULES: tuple[Rule, ...] = (
    rules_metrics.loss_nonfinite,
    rules_metrics.loss_flat,
    rules_metrics.loss_diverging,
    rules_metrics.overfitting,
    rules_metrics.at_chance,
    rules_metrics.skipping,
    rules_log.lost,
    rules_log.silent,
    rules_log.no_step,
    rules_log.noted,
    rules_log.ended,
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
