"""Every rule on both sides of its threshold: a made-up run that trips it, and one that just does not."""

import inspect
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import polars as pl
import pytest

import viewer.rules
from tests.logs import extremes
from tracer.log.ranks import State
from viewer.reduce.param_history import ParamHistory
from viewer.rules.evidence import Event, Evidence, Param
from viewer.rules.findings import RULES, THRESHOLDS, findings, with_limits
from viewer.rules.rule import Rule
from viewer.snapshot import Curve, Finding, Severity

NAN, INF = math.nan, math.inf
Row = tuple[float | None, float | None, float | None, float | None]


def weight(step: int) -> float:
    """A value that moves a little at each step, one way."""
    return 0.1 + 1e-4 * step


def row(step: int, grad: float | None = 0.1, value: float | None = None) -> Row:
    """A row whose extremes are as large at both ends."""
    size = weight(step) if value is None else value
    return -size, size, None if grad is None else -grad, grad


def made(
    rows: Mapping[str, Callable[[int], Row]],
    steps: Sequence[int] = range(200),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    metrics: Mapping[str, Sequence[float]] | None = None,
    **given: Any,
) -> Evidence:
    """A run of parameters with these rows and shapes, (8, 8) where none is given, and these metrics."""
    history = ParamHistory(list(rows))
    names = ("value_min", "value_max", "grad_min", "grad_max")
    each = [rows[name](step) for step in steps for name in rows]
    columns = dict(zip(names, map(list, zip(*each, strict=True)), strict=True))
    history.absorb(pl.DataFrame(pl.from_arrow(extremes(steps, list(rows), columns))).lazy())
    described = {name: Param(name, (shapes or {}).get(name, (8, 8))) for name in rows}
    curves = tuple(curve(name, numbers) for name, numbers in (metrics or {}).items())
    return Evidence(**{"tables": history.tables(), "described": described, "curves": curves, **given})


def curve(name: str, numbers: Sequence[float], every: int = 1) -> Curve:
    """A metric that was logged so often."""
    steps = range(0, len(numbers) * every, every)
    bad = [step for step, number in zip(steps, numbers, strict=True) if not math.isfinite(number)]
    return Curve(name, steps, numbers, numbers, numbers, bad)


def healthy(**changed: Callable[[int], Row]) -> dict[str, Callable[[int], Row]]:
    """Eight layers in which all is well, but for those that are given by other rows."""
    return {f"layer{number}": row for number in range(8)} | changed


def said(evidence: Evidence, kind: str) -> list[Finding]:
    """What is found of a kind."""
    return [finding for finding in findings(evidence) if finding.kind == kind]


def only(evidence: Evidence, kind: str) -> Finding:
    """The one finding of a kind."""
    (found,) = said(evidence, kind)
    return found


def test_a_healthy_run_has_no_findings() -> None:
    """Where all is well nothing is said."""
    loss = [2 / (1 + step / 10) for step in range(400)]
    accuracy = [min(0.9, 0.1 + step / 200) for step in range(400)]
    assert findings(made(healthy(), range(400), metrics={"loss": loss, "accuracy": accuracy})) == []


@pytest.mark.parametrize("steps", [[], range(1), range(3)], ids=len)
def test_a_run_that_has_hardly_begun_has_no_findings(steps: Sequence[int]) -> None:
    """With no row, or a few, no rule fails or says anything."""
    assert findings(Evidence()) == []
    if steps:
        assert findings(made(healthy(), steps, metrics={"loss": [2.0] * len(steps), "accuracy": [0.1]})) == []


def test_the_first_nonfinite_gradient_in_backward_order_is_named() -> None:
    """Of the gradients that are not finite in the same step, the one that arrived first; and who followed."""

    def bad(first: int) -> Callable[[int], Row]:
        return lambda step: row(step, NAN if step >= first else 0.1)

    rows = healthy(layer2=bad(7), layer5=bad(7), layer6=bad(9))
    found = only(made(rows, metrics={"loss": [1.0] * 8 + [NAN] * 192}), "nonfinite")
    assert (found.severity, found.param, found.first_step) == (Severity.ERROR, "layer5", 7)
    assert found.numbers["loss_finite"] is True
    assert (found.numbers["at_once"], found.numbers["reached"]) == (2, 3)
    assert found.params == ("layer5", "layer2", "layer6")
    order = Event(0, 0, "order", None, json.dumps(["layer2", "layer5"]))
    assert only(made(rows, events=(order,)), "nonfinite").param == "layer2"
    assert only(made(rows, metrics={"loss": [NAN] * 200}), "nonfinite").numbers["loss_finite"] is False
    assert "loss_finite" not in only(made(rows), "nonfinite").numbers


@pytest.mark.parametrize(("first", "cause"), [(4, "initialisation"), (5, "data")])
def test_a_bad_start_explains_the_first_steps_alone(first: int, cause: str) -> None:
    """Weights a hundred times too large are blamed within five steps; later, others have had their time."""
    rows = {"layer": lambda step: row(step, NAN if step >= first else 0.1, 100.0 + step)}
    found = only(made(rows, metrics={"loss": [1.0] * first + [NAN] * (200 - first)}), "nonfinite")
    assert found.numbers["cause"] == cause


def test_a_loss_says_nothing_of_an_empty_batch_where_its_gradients_are_not_known() -> None:
    """Before the rows of its step have come, or where a scaler hides what they were."""
    loss = [1 - step / 300 for step in range(250)] + [NAN] * 5
    late = only(made(healthy(), metrics={"loss": loss}), "nonfinite")
    assert (late.first_step, late.numbers["cause"]) == (250, "data")
    loss = [NAN if step == 100 else 1 - step / 300 for step in range(200)]
    scaled = {"loss": loss, "skipped": [float(step == 100) for step in range(200)]}
    assert only(made(healthy(), metrics=scaled), "nonfinite").numbers["cause"] == "data"
    rows = healthy(layer3=lambda step: row(step, NAN if step == 100 else 0.1))
    found = only(made(rows, metrics={"loss": loss}), "nonfinite")
    assert found.sentence.endswith("look at the batch of this step; 1 parameter with it, 1 by now.")
    assert only(made(healthy(), metrics={"loss": loss}), "nonfinite").numbers["cause"] == "empty"


def test_values_that_ran_away_in_one_step_are_a_learning_rate() -> None:
    """The gradients before were as always: only the update was too large."""
    rows = healthy(layer3=lambda step: row(step, NAN if step > 50 else 0.1, 1e9 if step == 50 else None))
    found = only(made(rows, metrics={"loss": [1 - step / 200 for step in range(200)]}), "nonfinite")
    assert (found.numbers["cause"], found.param) == ("learning rate", "layer3")


@pytest.mark.parametrize(("reached", "cause"), [(8000.0, "exploding"), (8500.0, "overflow")])
def test_half_precision_explains_what_came_near_its_end(reached: float, cause: str) -> None:
    """Three bits below 65,504 or less; what grew and stayed further away has grown."""
    rows = healthy(layer3=lambda step: row(step, INF if step > 50 else reached if step == 50 else 0.1))
    evidence = made(rows, metrics={"loss": [1 - step / 200 for step in range(200)]})
    half = {name: Param(name, (8, 8), "float16") for name in rows}
    assert only(replace(evidence, described=half), "nonfinite").numbers["cause"] == cause
    spoilt = made(healthy(layer3=lambda step: row(step, 0.1, INF if step > 50 else None)))
    assert only(replace(spoilt, described=half), "nonfinite").numbers["cause"] == "update"


@pytest.mark.parametrize("detail", ["", "[", "7", "[7]", "{}"])
def test_an_order_that_is_none_counts_as_not_recorded(detail: str) -> None:
    """What a damaged event says costs nothing but the order."""
    rows = healthy(layer1=lambda step: row(step, INF), layer3=lambda step: row(step, INF))
    assert only(made(rows, events=(Event(0, 0, "order", None, detail),)), "nonfinite").param == "layer3"


def test_a_nonfinite_value_is_the_cause_of_the_gradients_of_its_step() -> None:
    """Where an update made a value NaN, it is named, and not the first of the gradients that it spoils."""
    rows = {name: lambda step: row(step, NAN if step > 4 else 0.1) for name in healthy()}
    rows["layer1"] = lambda step: row(step, NAN if step > 4 else 0.1, NAN if step > 4 else None)
    found = only(made(rows), "nonfinite")
    assert (found.param, found.first_step, found.numbers["what"]) == ("layer1", 5, "value")


def test_gradients_may_overflow_where_a_scaler_skips_the_step() -> None:
    """With a scaler, infinite gradients are how the scale is found; a value is never to be infinite."""
    rows = healthy(layer1=lambda step: row(step, INF if step in (0, 100) else 0.1))
    skipped = {"skipped": [float(step in (0, 100)) for step in range(200)]}
    assert said(made(rows, metrics=skipped), "nonfinite") == []
    assert said(made(rows), "nonfinite") != []
    spoilt = healthy(layer1=lambda step: row(step, 0.1, INF if step > 150 else None))
    assert only(made(spoilt, metrics=skipped), "nonfinite").first_step == 151


def test_a_metric_of_the_users_is_none_of_the_tracers() -> None:
    """Where no scaler was given, what a user calls as the tracer calls its own neither causes nor hides a finding."""
    given: dict[str, Any] = {"metrics": {"skipped": [1.0] * 200, "amp_scale": [2.0] * 200}, "own_metrics": frozenset()}
    assert said(made(healthy(), **given), "skipping") == []
    infinite = healthy(layer1=lambda step: row(step, INF if step == 7 else 0.1))
    assert only(made(infinite, **given), "nonfinite").first_step == 7
    tiny = {"layer": lambda step: row(step, 1e-8)}
    half: dict[str, Any] = {"described": {"layer": Param("layer", (8, 8), "float16")}}
    assert said(made(tiny, **given, **half), "underflow") != []
    assert said(made(tiny, metrics=given["metrics"], **half), "underflow") == []


def test_a_scaler_that_skips_every_step_is_an_error() -> None:
    """When no scale helps any more, nothing is learnt."""
    rows = healthy()
    assert said(made(rows, metrics={"skipped": [0.0] * 181 + [1.0] * 19}), "skipping") == []
    found = only(made(rows, metrics={"skipped": [0.0] * 180 + [1.0] * 20}), "skipping")
    assert (found.severity, found.first_step) == (Severity.ERROR, 180)


def test_what_never_was_finite_and_is_not_trained_is_no_news() -> None:
    """A mask of minus infinity is a frozen parameter as it was made."""
    evidence = made(healthy(mask=lambda step: (-INF, 0.0, None, None)))
    frozen = {**evidence.described, "mask": Param("mask", (8, 8), trainable=False)}
    assert said(replace(evidence, described=frozen), "nonfinite") == []
    assert only(evidence, "nonfinite").param == "mask"


@pytest.mark.parametrize(("grown", "count"), [(150.0, 1), (90.0, 0)])
def test_gradients_that_rise_and_stay_explode(grown: float, count: int) -> None:
    """A thousand times their own median, and for more than a step."""
    rows = healthy(layer3=lambda step: row(step, 0.1 if step < 100 else grown))
    found = said(made(rows), "exploding")
    assert len(found) == count
    for finding in found:
        assert (finding.severity, finding.param, finding.first_step) == (Severity.ERROR, "layer3", 100)
        assert finding.numbers["factor"] == pytest.approx(1500)


@pytest.mark.parametrize(
    ("grad", "value", "severity"),
    [
        (lambda step: 500.0, weight, Severity.WARNING),
        (lambda step: 500.0 + 10 * (step - 100), weight, Severity.WARNING),
        (lambda step: 500.0 * 1.1 ** (step - 100), weight, Severity.ERROR),
        (lambda step: 500.0, lambda step: step - 80.0, Severity.ERROR),
    ],
)
def test_gradients_that_stay_high_are_no_error_where_a_loss_is_known(
    grad: Callable[[int], float], value: Callable[[int], float], severity: Severity
) -> None:
    """A value's targets rise with the first reward: it takes gradients that rise on, NaN, or values that run away."""
    rows = healthy(layer3=lambda step: row(step, 0.1) if step < 100 else row(step, grad(step), value(step)))
    loss = [1e-3 if step < 100 else 1e3 for step in range(200)]
    assert only(made(rows, metrics={"loss": loss}), "exploding").severity is severity
    assert only(made(rows, metrics={"loss": loss}), "loss_diverging").severity is severity


@pytest.mark.parametrize(("rows", "count"), [(3, 1), (2, 0)])
def test_an_explosion_that_ends_is_a_warning_with_its_steps(rows: int, count: int) -> None:
    """Once it is resolved it stays as history; a step or two are none."""
    found = said(made(healthy(layer3=lambda step: row(step, 500.0 if 100 <= step < 100 + rows else 0.1))), "exploding")
    assert [(each.severity, each.first_step, each.last_step) for each in found] == [
        (Severity.WARNING, 100, 99 + rows)
    ] * count


def test_an_explosion_into_nan_needs_no_more_than_a_step() -> None:
    """The last finite gradients before a NaN are no spike, but what led there: one finding says both."""
    rows = healthy(layer3=lambda step: row(step, NAN if step > 50 else 500.0 if step == 50 else 0.1))
    (found,) = findings(made(rows))
    assert (found.kind, found.first_step, found.numbers["cause"], found.numbers["since"]) == (
        *("nonfinite", 51, "exploding", 50),
    )
    assert "since step 50, that of layer3 first, to 5e+03 times its median" in found.sentence


def test_one_event_takes_in_what_led_to_it_and_nothing_else() -> None:
    """Gradients that exploded long before it, or after it, are findings of their own; so is none in its very step."""

    def size(step: int) -> float:
        return 500.0 if step in (*range(20, 30), 150, *range(170, 180)) else 0.1

    rows = healthy(
        layer5=lambda step: row(step, size(step)), layer3=lambda step: row(step, NAN if step == 151 else 0.1)
    )
    found = findings(made(rows))
    assert [(each.kind, each.first_step) for each in found if each.kind != "spike"] == [
        ("exploding", 20),
        ("nonfinite", 151),
    ]
    event = found[[each.kind for each in found].index("nonfinite")]
    assert (event.param, event.params, event.numbers["first_nonfinite"]) == ("layer5", ("layer5", "layer3"), "layer3")
    rows = healthy(
        layer5=lambda step: row(step, 500.0 if step == 100 else 0.1),
        layer3=lambda step: row(step, NAN if step == 100 else 0.1),
    )
    loss = [NAN if step == 100 else 1 - step / 300 for step in range(200)]
    assert [each.kind for each in findings(made(rows, metrics={"loss": loss}))] == ["nonfinite"]


def test_what_blew_up_before_is_said_though_nan_comes_later() -> None:
    """Gradients that exploded and came back, long before a batch that is bad, are a finding of their own."""
    rows = healthy(layer3=lambda step: row(step, NAN if step > 150 else 500.0 if 50 <= step < 60 else 0.1))
    found = findings(made(rows, metrics={"loss": [1 - step / 200 if step < 151 else NAN for step in range(200)]}))
    assert [(each.kind, each.first_step) for each in found] == [("exploding", 50), ("nonfinite", 151)]
    assert found[1].numbers["cause"] == "data"


def test_a_spike_within_a_bin_is_no_explosion_though_a_nan_comes_later() -> None:
    """Of a long run a bin covers several steps: one high gradient among low ones is not one that stays."""
    rows = healthy(layer3=lambda step: row(step, NAN if step > 1900 else 500.0 if step == 1001 else 0.1))
    assert said(made(rows, range(2000)), "exploding") == []


@pytest.mark.parametrize(("largest", "count"), [(1.1e6, 1), (0.9e6, 0)])
def test_huge_gradients_are_warned_of_whatever_came_before(largest: float, count: int) -> None:
    """Where they are huge from the first step on, no median tells."""
    found = said(made({"layer": lambda step: row(step, largest)}), "exploding")
    assert [finding.severity for finding in found] == [Severity.WARNING] * count


def test_a_layer_that_wakes_up_does_not_explode() -> None:
    """Behind a branch that begins as zero gradients grow from almost nothing; they stay below all others'."""
    rows = healthy(layer3=lambda step: row(step, min(0.2, 1e-9 * 2**step)))
    assert said(made(rows), "exploding") == []
    assert said(made(rows), "spike") == []


@pytest.mark.parametrize(("share", "count"), [(0.21, 1), (0.22, 0)])
def test_gradients_vanish_over_depth(share: float, count: int) -> None:
    """From the last layer to the first each passes on a share."""
    depth = {f"layer{number}": (lambda step, n=number: row(step, share ** (8 - n))) for number in range(9)}
    found = said(made(depth), "vanishing")
    assert len(found) == count
    for finding in found:
        assert (finding.param, finding.first_step, finding.last_step) == ("layer0", 0, 199)
        assert finding.numbers["share"] == pytest.approx(share**6)


@pytest.mark.parametrize(("layers", "steps", "count"), [(6, 20, 1), (5, 20, 0), (6, 19, 0)])
def test_vanishing_takes_depth_and_time(layers: int, steps: int, count: int) -> None:
    """Six layers, and twenty measured steps."""
    depth = {f"layer{number}": (lambda step, n=number: row(step, 0.01 ** (9 - n))) for number in range(layers)}
    assert len(said(made(depth, range(steps)), "vanishing")) == count


def test_vanishing_is_told_by_the_depth_that_gradients_show() -> None:
    """A model whose layers are defined in another order than they are used in is judged by the gradients' order."""
    depth = {f"layer{number}": (lambda step, n=number: row(step, 0.1 ** (n + 1))) for number in range(8)}
    assert said(made(depth), "vanishing") == []
    order = Event(0, 0, "order", None, json.dumps([f"layer{number}" for number in range(8)]))
    assert only(made(depth, events=(order,)), "vanishing").param == "layer7"


def test_a_converged_run_does_not_vanish() -> None:
    """Where all gradients shrink alike, their share stays."""
    assert said(made({f"l{n}": lambda step: row(step, 0.1 * 0.9**step) for n in range(8)}), "vanishing") == []


def test_a_moment_of_vanishing_is_none() -> None:
    """Less than half of the run is not enough."""
    depth = {
        f"layer{number}": (lambda step, n=number: row(step, 0.1 if step < 120 else 0.1 ** (8 - n)))
        for number in range(8)
    }
    assert said(made(depth), "vanishing") == []


@pytest.mark.parametrize(("rows", "count"), [(100, 1), (99, 0)])
def test_a_gradient_of_exactly_zero_for_long_is_dead(rows: int, count: int) -> None:
    """For a hundred measured steps, and while others are not."""
    evidence = made(healthy(layer2=lambda step: row(step, 0.0 if 20 <= step < 20 + rows else 0.1)))
    found = said(evidence, "dead")
    assert [(each.param, each.first_step, each.last_step) for each in found] == [("layer2", 20, 119)] * count
    assert all(each.severity is Severity.WARNING for each in found)


def test_of_several_parameters_the_one_that_had_it_first_stands_in_front() -> None:
    """One finding for all of them, from the first step to the last of any, with the numbers of the one in front."""
    rows = healthy(
        layer2=lambda step: row(step, 0.0 if step >= 80 else 0.1),
        layer5=lambda step: row(step, 0.0 if 20 <= step < 130 else 0.1),
    )
    found = only(made(rows), "dead")
    assert (found.params, found.param, found.title) == (("layer5", "layer2"), "layer5", "Dead: layer5 and others")
    assert (found.first_step, found.last_step, found.numbers) == (20, 199, {"rows": 110, "parameters": 2})


def test_where_every_gradient_is_zero_nothing_is_dead() -> None:
    """A loss that has converged to exactly 0 has no gradient anywhere."""
    rows = {name: lambda step: row(step, 0.0 if step > 50 else 0.1) for name in healthy()}
    assert said(made(rows), "dead") == []


def test_most_layers_dead_is_an_error() -> None:
    """Then the network as a whole learns nothing."""
    rows = healthy(**{f"layer{number}": lambda step: row(step, 0.0) for number in range(7)})
    found = only(made(rows), "dead")
    assert (found.severity, found.numbers["parameters"]) == (Severity.ERROR, 7)


@pytest.mark.parametrize(("steps", "count"), [(20, 1), (19, 0)])
def test_a_parameter_that_never_had_a_gradient_is_unused(steps: int, count: int) -> None:
    """Unless it was frozen, from the start or later."""
    evidence = made(healthy(layer4=lambda step: row(step, None, 0.5)), range(steps))
    assert [found.param for found in said(evidence, "unused")] == ["layer4"] * count
    frozen = {**evidence.described, "layer4": Param("layer4", (8, 8), trainable=False)}
    assert said(replace(evidence, described=frozen), "unused") == []
    assert said(replace(evidence, events=(Event(3, 0, "frozen", "layer4", ""),)), "unused") == []


def test_parameters_that_were_frozen_together_are_not_unused() -> None:
    """An event names the modules and the parameters that were frozen at once."""
    names = ["a.body.weight", "a.bodyguard", "b"]
    evidence = made(healthy() | dict.fromkeys(names, lambda step: row(step, None, 0.5)))
    evidence = replace(evidence, events=(Event(3, 0, "frozen", None, '["a.body", "b"]'),))
    assert [found.params for found in said(evidence, "unused")] == [("a.bodyguard",)]


def test_what_is_updated_without_a_backward_is_not_unused() -> None:
    """A gradient that is set by hand shows in values that move, or, if that is recorded, where it was applied."""
    assert said(made(healthy(layer4=lambda step: row(step, None))), "unused") == []
    history = ParamHistory(["a", "b"])
    table = extremes(range(60), ["a", "b"], {"grad_min": [-0.1, None] * 60, "grad_max": [0.1, None] * 60})
    rows = pl.DataFrame(pl.from_arrow(table)).lazy()
    history.absorb(rows)
    evidence = Evidence(tables=history.tables(), described={name: Param(name, (8, 8)) for name in "ab"})
    assert only(evidence, "unused").param == "b"
    history.absorb(rows.with_columns(pl.col("step") + 60, applied_min=-0.1))
    assert said(replace(evidence, tables=history.tables()), "unused") == []


@pytest.mark.parametrize(
    ("copied", "original", "unused"),
    [
        ("target", "online", []),
        # Layers in a row may begin alike, as those of nn.TransformerEncoder do.
        ("layers.1", "layers.0", ["layers.1.fc.weight", "layers.1.norm.weight"]),
    ],
)
def test_a_copy_of_trained_parameters_is_not_unused(copied: str, original: str, unused: list[str]) -> None:
    """A target network takes over its values seldom; what only began as other constants is no copy."""

    def began(size: float, grad: float | None) -> Callable[[int], Row]:
        return lambda step: (-size, size, None, None) if grad is None else row(step, grad, size + 1e-4 * step)

    def ones(grad: float | None) -> Callable[[int], Row]:
        return lambda step: (1.0, 1.0, None, None) if grad is None else (1.0 - step / 1e4, 1.0, -grad, grad)

    rows = {
        f"{original}.fc.weight": began(0.3, 0.1),
        f"{original}.norm.weight": ones(0.1),
        f"{copied}.fc.weight": began(0.3, None),
        f"{copied}.norm.weight": ones(None),
    }
    assert [list(each.params) for each in said(made(rows), "unused")] == ([unused] if unused else [])
    rows |= {"left.fc.weight": began(0.2, None), "left.norm.weight": ones(None)}
    assert only(made(rows), "unused").params == (*unused, "left.fc.weight", "left.norm.weight")


@pytest.mark.parametrize(("height", "count"), [(11.0, 1), (9.0, 0)])
def test_an_isolated_step_is_a_spike(height: float, count: int) -> None:
    """A hundred times what is around it, once; it is noted, and no more."""
    evidence = made(healthy(layer1=lambda step: row(step, height if step == 90 else 0.1)))
    found = said(evidence, "spike")
    assert [(each.severity, each.param, each.first_step) for each in found] == [(Severity.NOTE, "layer1", 90)] * count
    assert said(evidence, "exploding") == []


@pytest.mark.parametrize(("size", "count"), [(101.0, 1), (99.0, 0)])
def test_values_run_away(size: float, count: int) -> None:
    """Beyond what weights are."""
    rows = healthy(layer1=lambda step: row(step, 0.1, 0.1 + size * step / 199))
    assert [found.param for found in said(made(rows), "exploding_weight")] == ["layer1"] * count


@pytest.mark.parametrize(("rate", "count"), [(1.001, 1), (1.0004, 0)])
def test_steady_growth_over_many_steps_is_a_drift(rate: float, count: int) -> None:
    """To twice within half of a run of thousands of steps, and far from the beginning."""
    rows = healthy(layer1=lambda step: row(step, 0.1, 0.1 * rate**step))
    assert [found.param for found in said(made(rows, range(0, 5000, 4)), "drifting")] == ["layer1"] * count


@pytest.mark.parametrize(("growth", "steps", "count"), [(2.2, 1000, 1), (1.8, 1000, 0), (2.2, 980, 0)])
def test_a_drift_takes_growth_and_time(growth: float, steps: int, count: int) -> None:
    """To twice within the second half, and a thousand measured steps."""

    def grown(step: int) -> Row:
        return row(step, 0.1, 0.1 if step < steps / 2 else 2 * growth ** (2 * step / steps - 1))

    assert len(said(made(healthy(layer1=grown), range(steps)), "drifting")) == count


@pytest.mark.parametrize(("rows", "count"), [(101, 1), (100, 0)])
def test_extremes_that_do_not_move_under_a_gradient(rows: int, count: int) -> None:
    """One matrix alone is noted; a whole module is a warning, and the whole model an error."""

    def still(step: int) -> Row:
        return row(step, 0.1, 0.5)

    assert [found.severity for found in said(made(healthy(layer1=still), range(rows)), "unchanged")] == [
        Severity.NOTE
    ] * count
    module = healthy(**{"head.weight": still, "head.bias": still})
    assert [found.severity for found in said(made(module, range(rows)), "unchanged")] == [Severity.WARNING] * count
    model = dict.fromkeys(healthy(), still)
    assert [found.severity for found in said(made(model, range(rows)), "unchanged")] == [Severity.ERROR] * count


@pytest.mark.parametrize(("low", "high"), [(-0.01, 0.01), (-0.01, 0.03), (0.0, 1.0)])
@pytest.mark.parametrize("begun", [True, False])
def test_values_that_are_clipped_are_not_said_to_stand_still(low: float, high: float, begun: bool) -> None:
    """All stand at the same bounds, whatever their shape: a note, even where they began there, as in a resumed run."""

    def clipped(step: int) -> Row:
        return (low, high, -0.1, 0.1) if step or not begun else (-0.25, 0.25, -0.1, 0.1)

    # Layers of the same shape may be copies of one. But no initialisation has exactly opposite extremes.
    alike = begun and low == -high
    shapes = {f"layer{number}": (8, 8 if alike else 8 + number) for number in range(8)}
    found = only(made(dict.fromkeys(shapes, clipped), shapes=shapes), "unchanged")
    assert (found.severity, found.title) == (Severity.NOTE, "Values at their bounds: layer0 and others")
    assert len(found.params) == 8


def test_layers_that_began_alike_and_stand_still_are_not_clipped() -> None:
    """Layers that are copies of one have the same extremes, and norms have those of a constant."""
    rows = {f"layer{number}.weight": lambda step: (-0.1, 0.2, -0.1, 0.1) for number in range(4)}
    norms = {f"norm{number}.weight": lambda step: (1.0, 1.0, -0.1, 0.1) for number in range(4)}
    shapes = {name: (number + 1,) for number, name in enumerate(norms)}
    found = only(made(rows | norms, shapes=shapes), "unchanged")
    assert (found.severity, found.title) == (Severity.ERROR, "Values do not move: layer0.weight and others")


def test_what_has_no_gradient_need_not_move() -> None:
    """Frozen layers stay as they are."""
    assert said(made(healthy(layer1=lambda step: row(step, None, 0.5))), "unchanged") == []


@pytest.mark.parametrize(("layers", "severity"), [(5, Severity.ERROR), (4, Severity.NOTE)])
@pytest.mark.parametrize("begun", [0.0, 0.5])
def test_weights_that_begin_all_equal(begun: float, layers: int, severity: Severity) -> None:
    """Some, up to half, is what recipes ask for; with more of them no symmetry is broken."""

    def constant(step: int) -> Row:
        return (begun, begun, -0.1, 0.1) if begun == 0 or step == 0 else row(step)

    rows = healthy(**{f"layer{number}": constant for number in range(layers)})
    found = only(made(rows), "constant_init")
    assert (found.severity, found.numbers["parameters"]) == (severity, layers)
    assert said(made(rows, shapes=dict.fromkeys(rows, (8,))), "constant_init") == []
    assert said(made(rows, shapes=dict.fromkeys(rows, (8, 1, 1))), "constant_init") == []
    assert said(made(rows, range(5, 200)), "constant_init") == []


@pytest.mark.parametrize(("rows", "count"), [(20, 1), (19, 0)])
def test_zeros_are_found_once_they_have_stayed_alike(rows: int, count: int) -> None:
    """For twenty measured steps; zeros that part with the first updates are what recipes want."""
    alike = healthy(layer1=lambda step: (0.0, 0.0, 0.0, 0.0))
    assert len(said(made(alike, range(rows)), "constant_init")) == count
    assert said(made(healthy(layer1=from_0)), "constant_init") == []


@pytest.mark.parametrize(("parts", "count"), [(False, 1), (True, 0)])
def test_a_bias_tells_whether_neurons_that_began_as_zeros_stay_alike(parts: bool, count: int) -> None:
    """Their weights may differ from input to input, and yet be the same for each of them."""

    def bias(step: int) -> Row:
        return (0.01 * step, 0.02 * step if parts else 0.01 * step, 0.1, 0.1)

    rows = healthy(**{"head.weight": from_0, "head.bias": bias})
    assert len(said(made(rows, shapes={"head.bias": (8,)}), "constant_init")) == count


@pytest.mark.parametrize(("size", "count"), [(16.0, 1), (13.0, 0), (0.0135, 1), (0.016, 0)])
def test_badly_scaled_initialisation(size: float, count: int) -> None:
    """Beyond ten times, or below a hundredth of what He's initialisation of the shape gives: here 1.44."""
    rows = {name: lambda step: row(step, 0.1, size + 1e-6 * step) for name in healthy()}
    found = said(made(rows), "badly_scaled")
    assert [finding.severity for finding in found] == [Severity.WARNING] * count
    one = healthy(layer0=rows["layer0"])
    one |= {name: lambda step: row(step, 0.1, 1 + 1e-6 * step) for name in list(one)[1:]}
    assert [finding.severity for finding in said(made(one), "badly_scaled")] == [Severity.NOTE] * count
    assert said(made({"embedding.weight": rows["layer0"]}), "badly_scaled") == []


@pytest.mark.parametrize(("begun", "later"), [(16.0, 13.0), (0.0135, 0.016)])
def test_what_leaves_its_bad_scale_is_not_said_to_have_one(begun: float, later: float) -> None:
    """Heads begin small on purpose and grow; it takes a hundred measured steps to tell."""
    rows = healthy(layer0=lambda step: row(step, 0.1, begun if step < 90 else later))
    assert said(made(rows), "badly_scaled") == []
    stays = healthy(layer0=lambda step: row(step, 0.1, begun + 1e-6 * step))
    assert [len(said(made(stays, range(steps)), "badly_scaled")) for steps in (99, 100)] == [0, 1]


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("a.weight", (8, 8, 3, 3), 1),
        ("a.planes", (8, 8, 3, 3), 0),
        ("a.kernel", (8, 8, 3), 1),
        ("a.weight", (8, 1, 1), 0),
        ("a", (8, 1), 0),
    ],
)
def test_the_scale_of_a_bare_parameter_is_not_judged(name: str, shape: tuple[int, ...], count: int) -> None:
    """Of three dimensions or more, nobody knows which are inputs, unless it is a layer's; and a vector has none."""
    rows = healthy(**{name: lambda step: row(step, 0.1, 1e-6 * (1 + 1e-6 * step))})
    assert len(said(made(rows, shapes={name: shape}), "badly_scaled")) == count


def output(low: float, high: float, steps: int = 200) -> dict[str, Callable[[int], Row]]:
    """A model whose last layer's bias has these ends for the last so many of 200 steps."""

    def bias(step: int) -> Row:
        return low if step >= 200 - steps else -high, high, -0.1, 0.1

    return healthy(**{"head.weight": row, "head.bias": bias})


ACCURATE: dict[str, Any] = {"shapes": {"head.bias": (10,)}, "metrics": {"accuracy": [0.8] * 200}}


@pytest.mark.parametrize(
    ("low", "high", "steps", "count"),
    [(-0.81, 0.2, 50, 1), (-0.79, 0.2, 200, 0), (-0.81, 0.2, 49, 0), (-0.51, 0.1, 200, 1), (-0.49, 0.1, 200, 0)],
)
def test_an_output_whose_bias_is_far_from_the_others(low: float, high: float, steps: int, count: int) -> None:
    """Four times as far below 0 as its other end is above, for fifty steps; where it may be a regression, a note."""
    evidence = made(output(low, high, steps), **ACCURATE)
    said_of = [("head.bias", Severity.WARNING, 200 - steps)] * count
    assert [(each.param, each.severity, each.first_step) for each in said(evidence, "output_bias")] == said_of
    regression = replace(evidence, curves=())
    assert [each.severity for each in said(regression, "output_bias")] == [Severity.NOTE] * count


def test_an_output_bias_may_be_high_or_below_zero_throughout() -> None:
    """A frequent class is where it should be, and labels that do not exclude each other may all be rare."""
    assert said(made(output(-1.0, 5.0), **ACCURATE), "output_bias") == []
    assert said(made(output(-5.0, -0.2), **ACCURATE), "output_bias") == []


def test_only_the_bias_of_the_last_layer_is_that_of_classes() -> None:
    """Not that of a hidden layer or a norm, and not of two classes, where one end says as much as the other."""
    rows = output(-5.0, 0.2)
    assert said(made(rows | {"last.weight": row}, **ACCURATE), "output_bias") == []
    assert said(made(rows, shapes={"head.bias": (2,)}, metrics=ACCURATE["metrics"]), "output_bias") == []


@pytest.mark.parametrize(("every", "count"), [(11, 1), (4, 0)])
def test_values_that_turn_back_at_each_step_oscillate(every: int, count: int) -> None:
    """Nearly all steps have to take back the one before: every so-manyth does not."""

    def swing(step: int) -> Row:
        place = (step - step // every) % 2
        return -0.5 - 0.1 * place, 0.5 - 0.1 * place, -0.1, 0.1

    assert [found.param for found in said(made(healthy(layer1=swing)), "oscillating")] == ["layer1"] * count
    little = healthy(layer1=lambda step: (-0.5 - 1e-4 * (step % 2), 0.5 - 1e-4 * (step % 2), -0.1, 0.1))
    assert said(made(little), "oscillating") == []


@pytest.mark.parametrize(("rate", "count"), [(1.11, 1), (1.09, 0)])
def test_updates_too_large(rate: float, count: int) -> None:
    """More than a tenth of a weight's size, step after step."""
    rows = healthy(layer1=lambda step: row(step, 0.1, 1e-3 * rate ** (step % 30)))
    assert [found.param for found in said(made(rows), "update_large")] == ["layer1"] * count


@pytest.mark.parametrize(("change", "count"), [(0.9e-7, 1), (1.1e-7, 0)])
def test_updates_too_small(change: float, count: int) -> None:
    """Never more than a ten-millionth: less than float32 resolves. Small at the end is a schedule's aim."""
    rows = healthy(layer1=lambda step: row(step, 0.1, 1 + change * step))
    assert [found.param for found in said(made(rows), "update_small")] == ["layer1"] * count
    rows = healthy(layer1=lambda step: row(step, 0.1, 1 + 1e-3 * min(step, 9) + 1e-9 * step))
    assert said(made(rows), "update_small") == []


@pytest.mark.parametrize(
    ("dtype", "grad", "kinds"),
    [
        ("float16", 8200.0, ["overflow"]),
        ("float16", 8100.0, []),
        ("bfloat16", 8200.0, []),
        ("float8_e4m3fn", 57.0, ["overflow"]),
        ("float8_e4m3fn", 55.0, []),
        ("float16", 4.8e-4, ["underflow"]),
        ("float16", 4.9e-4, []),
        ("float32", 1e-20, []),
    ],
)
def test_headroom_is_that_of_the_dtype(dtype: str, grad: float, kinds: list[str]) -> None:
    """Three bits to the largest number, and to the smallest of full precision."""
    evidence = made({"layer": lambda step: row(step, grad)})
    evidence = replace(evidence, described={"layer": Param("layer", (8, 8), dtype)})
    assert [found.kind for found in findings(evidence) if found.kind in ("overflow", "underflow")] == kinds


def test_gradients_without_their_scale_say_nothing_of_headroom() -> None:
    """With a scaler they were computed multiplied by it."""
    evidence = made({"layer": lambda step: row(step, 1e-6)}, metrics={"amp_scale": [65536.0] * 200})
    evidence = replace(evidence, described={"layer": Param("layer", (8, 8), "float16")})
    assert said(evidence, "underflow") == []


def test_a_loss_that_is_not_finite() -> None:
    """Of training it is an error, of validation a warning, each with its first step."""
    metrics = {"loss": [1.0] * 50 + [NAN] * 10, "val_loss": [1.0] * 5 + [INF], "value": [NAN]}
    found = findings(made(healthy(), metrics=metrics))
    assert [(each.kind, each.severity, each.first_step) for each in found] == [
        ("nonfinite", Severity.ERROR, 50),
        ("validation_nonfinite", Severity.WARNING, 5),
    ]
    for first in (49, 51):
        metrics["val_loss"] = [1.0] * first + [INF]
        assert [each.kind for each in findings(made(healthy(), metrics=metrics))] == ["nonfinite"]


@pytest.mark.parametrize(("last", "steps", "count"), [(1.97, 200, 1), (1.95, 200, 0), (1.97, 199, 0)])
def test_a_loss_that_does_not_fall(last: float, steps: int, count: int) -> None:
    """Two hundred steps, and not by two per cent."""
    loss = [2.0 if step < 50 else last for step in range(steps)]
    assert len(said(made(healthy(), metrics={"loss": loss}), "loss_flat")) == count


@pytest.mark.parametrize(("steps", "height", "count"), [(80, 4.1, 0), (80, 3.9, 1), (20, 40.0, 1)])
def test_a_loss_that_has_come_down_again_does_fall(steps: int, height: float, count: int) -> None:
    """One that rose with its targets for long is not called flat; one that jumped for a moment is."""
    loss = [2.0] * 100 + [height] * steps + [1.99] * (400 - 100 - steps)
    assert len(said(made(healthy(), metrics={"loss": loss}), "loss_flat")) == count


def test_what_only_sounds_like_a_loss_or_an_accuracy_is_judged_as_neither() -> None:
    """The scale or weight of a loss, and counts of what was accumulated or accepted."""
    rows, shapes = healthy(**{"head.bias": row}), {"head.bias": (10,)}
    sounds = (
        "loss_scale",
        "train/loss-weight",
        "aux_loss_coef",
        "accumulated_tokens",
        "acceptance",
        "accelerator_memory",
    )
    assert findings(made(rows, shapes=shapes, metrics=dict.fromkeys(sounds, [0.1] * 400))) == []
    named = ("acc", "train/acc@1", "trainAcc", "balanced_accuracy", "top1_acc")
    assert len(said(made(rows, shapes=shapes, metrics=dict.fromkeys(named, [0.1] * 400)), "at_chance")) == len(named)


def test_of_several_losses_only_the_one_called_so_is_judged() -> None:
    """The two of a GAN are not meant to fall."""
    flat = [1.0] * 300
    assert said(made(healthy(), metrics={"d_loss": flat, "g_loss": flat}), "loss_flat") == []
    assert only(made(healthy(), metrics={"d_loss": flat, "train/loss": flat}), "loss_flat").numbers["metric"]


@pytest.mark.parametrize(("last", "count"), [(4.1, 1), (3.9, 0)])
def test_a_loss_that_diverges(last: float, count: int) -> None:
    """It ends at more than twice what it began with; that alone is no error, since targets may have risen."""
    loss = [2.0 if step < 50 else 1 + (last - 1) * (step - 50) / 49 for step in range(100)] + [last] * 20
    found = said(made(healthy(), metrics={"loss": loss}), "loss_diverging")
    assert [finding.severity for finding in found] == [Severity.WARNING] * count
    assert said(made(healthy(), metrics={"loss": [number - 3 for number in loss]}), "loss_diverging") == []


@pytest.mark.parametrize(
    ("grad", "severity"),
    [
        (lambda step: 0.1 * 1.1 ** max(0, step - 60), Severity.ERROR),
        (lambda step: NAN if step == 150 else 0.1, Severity.ERROR),
        # Before the loss rose, in a spike; much less than a thousand times; huge throughout, as with large targets.
        (lambda step: NAN if step == 5 else 0.1, Severity.WARNING),
        (lambda step: 1e3 if 10 < step < 20 else 0.1, Severity.WARNING),
        (lambda step: 0.1 + 0.1 * step, Severity.WARNING),
        (lambda step: 2e6, Severity.WARNING),
    ],
)
def test_a_loss_that_diverges_is_an_error_where_gradients_explode(
    grad: Callable[[int], float], severity: Severity
) -> None:
    """While it rises, gradients rise far beyond their median, or are not finite."""
    loss = [1.0 + max(0, step - 60) / 10 for step in range(200)]
    found = only(made(healthy(layer1=lambda step: row(step, grad(step))), metrics={"loss": loss}), "loss_diverging")
    assert found.severity is severity


@pytest.mark.parametrize(("last", "count"), [(1.35, 1), (1.25, 0)])
def test_validation_that_parts_from_training(last: float, count: int) -> None:
    """A third above its best, while training falls on."""
    loss = [2 / (1 + step / 20) for step in range(200)]
    validation = curve("val_loss", [2.0, 1.5, 1.0, 1.1, last, last, last, last], every=25)
    evidence = made(healthy(), metrics={"loss": loss})
    found = said(replace(evidence, curves=(*evidence.curves, validation)), "overfitting")
    assert [(finding.first_step, finding.severity) for finding in found] == [(50, Severity.WARNING)] * count
    rising = (curve("loss", [1 + step / 100 for step in range(200)]), validation)
    assert said(replace(evidence, curves=rising), "overfitting") == []


@pytest.mark.parametrize(("accuracy", "count"), [(0.125, 1), (0.135, 0), (12.5, 1), (13.5, 0)])
def test_an_accuracy_stuck_at_chance(accuracy: float, count: int) -> None:
    """Of ten classes; in shares or per cent."""
    rows = healthy(**{"head.bias": row})
    evidence = made(rows, shapes={"head.bias": (10,)}, metrics={"accuracy": [accuracy] * 200})
    assert len(said(evidence, "at_chance")) == count


def test_an_accuracy_that_was_better_is_not_stuck() -> None:
    """Where it learned and then lost all, as after a NaN, it was not stuck since the beginning."""
    evidence = made(
        healthy(**{"head.bias": row}),
        shapes={"head.bias": (10,)},
        metrics={"accuracy": [min(0.6, 0.1 + step / 60) if step < 60 else 0.1 for step in range(400)]},
    )
    assert said(evidence, "at_chance") == []


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ([1.0] * 12, "no loss of this step is known"),
        ([1.0] * 30, "while the loss was finite"),
        ([1.0] * 19 + [NAN], "look at the batch of this step"),
    ],
)
def test_a_live_nan_says_of_the_loss_what_is_known(loss: list[float], words: str) -> None:
    """The rows of a step may come before its loss: until then nothing is said of it."""
    rows = healthy(layer3=lambda step: (-1.0, 1.0, NAN, NAN) if step >= 15 else row(step))
    loss = [*loss[:15], *([NAN] * 5 if math.isnan(loss[-1]) else loss[15:])]
    assert words in only(made(rows, range(20), metrics={"loss": loss}), "nonfinite").sentence


def test_what_the_log_lacks_is_said() -> None:
    """Dropped rows, damaged parts, silent ranks, changed strides, failures, pauses and the exception that ended it."""
    events = (
        Event(5, 0, "dropped", None, '{"extremes": 3}'),
        Event(6, 0, "stride", None, "every 1 -> every 2"),
        Event(7, 0, "failed", "layer1", "no memory"),
        Event(8, 0, "paused", None, "a CUDA graph is captured"),
    )
    lacking: dict[str, Any] = {"dropped": 3, "silent": (2,), "problems": ("damaged",), "reasons": ("ValueError: no",)}
    found = findings(made(healthy(), events=events, **lacking))
    assert {(each.kind, each.severity.value, each.first_step) for each in found} == {
        ("dropped", "warning", 5),
        ("damaged", "warning", 0),
        ("silent", "warning", 199),
        ("stride", "note", 6),
        ("failed", "note", 7),
        ("paused", "note", 8),
        ("ended", "error", 199),
    }
    assert "3 rows" in only(made(healthy(), events=events[:1]), "dropped").sentence


def test_a_restart_is_noted_with_its_steps() -> None:
    """One note for resumed, one for restored: how often, each step, what was said last; all ranks tell of the same."""
    told = [(100, "resumed"), (150, "resumed"), (150, "restored"), (180, "restored")]
    events = [Event(step, rank, kind, None, f"what {step}") for rank in (0, 1) for step, kind in told]
    found = findings(made(healthy(), events=tuple(events)))
    assert [(each.kind, each.severity, each.steps, each.first_step, each.last_step) for each in found] == [
        ("resumed", Severity.NOTE, (100, 150), 100, 150),
        ("restored", Severity.NOTE, (150, 180), 150, 180),
    ]
    assert [(each.numbers, each.param, each.resolved) for each in found] == [({"times": 2}, None, False)] * 2
    assert found[1].sentence == "The training went on from a checkpoint: what 180, the last of 2 times."
    behind = (*events, Event(100, 2, "restored", None, "what 100"))
    assert "what 180, the last" in only(made(healthy(), events=behind), "restored").sentence
    once = only(made(healthy(), events=tuple(events[:1])), "resumed")
    assert once.sentence == "The job was started again and went on with this run: what 100."


@pytest.mark.parametrize(
    ("told", "lasting"),
    [
        ([(140, 0, "resumed"), (100, 0, "restored")], {"restored": (100,)}),
        ([(90, 0, "resumed"), (100, 0, "restored")], {"resumed": (90,), "restored": (100,)}),
        ([(100, 0, "restored"), (100, 0, "restored"), (100, 0, "restored")], {"restored": (100,)}),
        ([(140, 0, "restored"), (180, 0, "resumed"), (150, 0, "restored")], {"restored": (140, 150)}),
        ([(140, 0, "resumed"), (100, 1, "restored")], {"resumed": (140,), "restored": (100,)}),
        ([(140, 1, "resumed"), (100, 0, "restored")], {"resumed": (140,), "restored": (100,)}),
    ],
)
def test_a_restart_that_a_later_one_went_back_before_is_not_noted(
    told: list[tuple[int, int, str]], lasting: dict[str, tuple[int, ...]]
) -> None:
    """What is shown no longer has it: as of a job that began behind its checkpoint, and then loaded that."""
    events = tuple(Event(step, rank, kind, None, "") for step, rank, kind in told)
    assert {each.kind: each.steps for each in findings(made(healthy(), events=events))} == lasting


@pytest.mark.parametrize(
    ("given", "severity"),
    [
        ({"reasons": ("RuntimeError: no",)}, Severity.ERROR),
        ({"reasons": ("KeyboardInterrupt",)}, Severity.NOTE),
        ({"reasons": ("SystemExit: 0",)}, Severity.NOTE),
        ({"silent": (2,)}, Severity.WARNING),
        ({"silent": (0,), "state": "stopped"}, Severity.ERROR),
    ],
)
def test_a_training_that_died_is_an_error(given: dict[str, Any], severity: Severity) -> None:
    """By an exception or a kill; a rank that others go on without is a warning, and what the user ended is a note."""
    (found,) = findings(made(healthy(), **given))
    assert (found.kind, found.severity) == ("ended" if "reasons" in given else "silent", severity)


def test_a_forgotten_update_is_an_error() -> None:
    """Many backwards and no update are one step; once there was one, there is nothing to say."""
    unended = (Event(0, 0, "unended", None, "several backwards and no update"),)
    found = only(made(healthy(), range(1), events=unended), "no_step")
    assert (found.severity, "optimizer.step()" in found.advice) == (Severity.ERROR, True)
    assert said(made(healthy(), range(2), events=unended), "no_step") == []
    assert said(made(healthy(), range(1)), "no_step") == []


@pytest.mark.parametrize(("state", "count"), [("running", 0), ("closed", 1)])
def test_a_run_without_a_step_is_a_warning(state: State, count: int) -> None:
    """Once it is over."""
    found = said(Evidence(state=state), "no_step")
    assert [each.severity for each in found] == [Severity.WARNING] * count


def test_what_cannot_be_read_is_never_called_no_step() -> None:
    """A part that cannot be read may hold steps."""
    assert said(Evidence(state="closed", problems=("a part cannot be read",)), "no_step") == []


def test_the_worst_comes_first_and_of_these_the_earliest() -> None:
    """Errors, warnings, notes; then the step."""
    rows = healthy(
        layer1=lambda step: row(step, None, 0.5),
        layer2=lambda step: row(step, 50.0 if step == 30 else 0.1),
        layer3=lambda step: row(step, NAN if step > 150 else 0.1),
    )
    found = findings(made(rows, metrics={"loss": [NAN] * 200}))
    assert [each.kind for each in found] == ["nonfinite", "unused", "spike"]


def test_a_parameters_finding_comes_before_what_it_causes() -> None:
    """Of the same severity and step: gradients that vanish, and then a loss that does not fall."""
    depth = {f"layer{number}": (lambda step, n=number: row(step, 0.1 ** (8 - n))) for number in range(9)}
    found = findings(made(depth, metrics={"loss": [2.0] * 200}))
    assert [each.kind for each in found] == ["vanishing", "loss_flat"]
    rows = {name: lambda step: row(step, 9000.0) for name in healthy()}
    evidence = made(rows, metrics={"loss": [2.0] * 200})
    evidence = replace(evidence, described={name: Param(name, (8, 8), "float16") for name in rows})
    assert [each.kind for each in findings(evidence)] == ["overflow", "loss_flat"]


def test_every_threshold_can_be_changed() -> None:
    """By its name; an unknown name, or no number, is told what there is."""
    evidence = made(healthy(layer2=lambda step: row(step, 0.0 if step < 50 else 0.1)))
    assert findings(evidence) == []
    assert [each.kind for each in findings(evidence, with_limits(["dead.rows=40"]))] == ["dead"]
    with pytest.raises(ValueError, match=r"no threshold 'vanishing\.treshold': try vanishing\.threshold"):
        with_limits(["vanishing.treshold=1"])
    with pytest.raises(ValueError, match=r"write dead\.rows=100"):
        with_limits(["dead.rows=many"])
    with pytest.raises(ValueError, match="try `viewer check --rules`"):
        with_limits(["?=1"])


def source(rule: Rule) -> str:
    """The declaration and the code of a rule, with that of the helpers that it gives its thresholds to."""
    module = inspect.getmodule(inspect.unwrap(rule.decide))
    texts, helpers = [inspect.getsource(rule.decide)], {""}
    while new := {*re.findall(r"\b(_\w+)\([^()]*\blimits\b", "".join(texts))} - helpers:
        helpers |= new
        texts += [inspect.getsource(getattr(module, helper)) for helper in new]
    return "".join(texts)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_each_threshold_that_a_rule_declares_decides(rule: Rule) -> None:
    """None is declared and not used, or used and not declared; each says what it means, and why it is so."""
    used = set(re.findall(r"""limits\[["']?([\w.]+)["']?\]""", source(rule)))
    assert {name for name in used if name not in THRESHOLDS} == set(rule.thresholds)
    assert all(threshold.meaning and threshold.source for threshold in rule.thresholds.values())


def test_strides_and_folds_leave_rules_as_they_are() -> None:
    """Rows that are steps apart are counted as rows, and their updates by the steps between."""
    steps = range(0, 2000, 10)
    rows = healthy(layer2=lambda step: row(step, 0.0))
    assert [(found.kind, found.numbers["rows"]) for found in findings(made(rows, steps))] == [("dead", 200)]
    assert (
        findings(made(healthy(layer1=lambda step: row(step, 0.1, 0.1 * 1.02 ** (step / 10))), range(0, 300, 10))) == []
    )


def test_several_ranks_count_as_one() -> None:
    """A hundred steps of two ranks are a hundred steps."""
    history = ParamHistory(["a", "b"])
    for rank in (0, 1):
        columns = {"grad_min": [0.0, -0.1] * 60, "grad_max": [0.0, 0.1] * 60}
        table = extremes(range(60), ["a", "b"], columns, rank)
        history.absorb(pl.DataFrame(pl.from_arrow(table)).lazy())
    evidence = Evidence(tables=history.tables(), described={name: Param(name, (8, 8)) for name in "ab"})
    assert said(evidence, "dead") == []
    (found,) = [each for each in findings(evidence, with_limits(["dead.rows=60"])) if each.kind == "dead"]
    assert found.numbers["rows"] == 60


def turned_back(step: int) -> float:
    """A value that swings by a tenth from step 100 on, after it has moved one way."""
    return weight(step) if step < 100 else 0.1 + 0.02 * (step % 2)


@pytest.mark.parametrize(
    ("kind", "changed", "steps"),
    [
        ("exploding_weight", lambda step: row(step, 0.1, 200.0 if 150 <= step < 160 else None), (150, 159)),
        ("update_large", lambda step: row(step, 0.1, 0.1 * 1.2 ** max(0, step - 100)), (101, 199)),
        ("unchanged", lambda step: row(step, 0.1, weight(min(step, 60))), (61, 199)),
        ("overflow", lambda step: row(step, 9000.0 if 120 <= step < 130 else 0.1), (120, 129)),
        ("underflow", lambda step: row(step, 1e-5 if 60 <= step < 100 else 0.1), (60, 99)),
        # Whether something turns back is seen over ten rows.
        ("oscillating", lambda step: row(step, 0.1, turned_back(step)), (106, 199)),
    ],
)
def test_findings_begin_and_end_with_their_cause(
    kind: str, changed: Callable[[int], Row], steps: tuple[int, int]
) -> None:
    """The steps in which it holds, and no others; a change shows in the row after it."""
    evidence = made(healthy(layer3=changed))
    evidence = replace(evidence, described={**evidence.described, "layer3": Param("layer3", (8, 8), "float16")})
    found = only(evidence, kind)
    assert (found.param, found.first_step, found.last_step) == ("layer3", *steps)


def test_a_title_is_short_and_names_what_has_it() -> None:
    """It is for a mark on a figure: the illness and the parameter, or the metric, and no numbers that change."""
    rows = healthy(layer2=lambda step: row(step, NAN if step > 150 else 0.1), layer4=lambda step: row(step, None, 0.5))
    metrics = {"loss": [1 - step / 200 for step in range(200)]}
    found = {each.kind: each.title for each in findings(made(rows, metrics=metrics))}
    assert found == {
        "nonfinite": "NaN or infinity in the gradient of layer2",
        "unused": "Never a gradient: layer4",
    }
    rows["layer5"] = rows["layer4"]
    assert only(made(rows), "unused").title == "Never a gradient: layer4 and others"


def everywhere(cell: Row) -> dict[str, Callable[[int], Row]]:
    """Eight layers with the same row at every step."""
    return dict.fromkeys(healthy(), lambda step: cell)


def from_0(step: int) -> Row:
    """A row of a weight that begins as 0."""
    return row(step, 0.1, 1e-3 * step)


def joined(late: Sequence[int], value: float) -> Evidence:
    """A run of 100 steps in which a second parameter joined, whose value this is, without a gradient."""
    history = ParamHistory(["first"])
    for name, steps, size, grad in (("first", range(100), weight, 0.1), ("late", late, lambda step: value, None)):
        rows = zip(*(row(step, grad, size(step)) for step in steps), strict=True)
        numbers = dict(zip(("value_min", "value_max", "grad_min", "grad_max"), map(list, rows), strict=True))
        history.absorb(pl.DataFrame(pl.from_arrow(extremes(steps, [name], numbers))).lazy())
    described = {name: Param(name, (8, 8)) for name in ("first", "late")}
    return Evidence(tables=history.tables(), described=described)


def metrics_alone(**metrics: Sequence[float]) -> Evidence:
    """A run in which only metrics were logged, those of validation every 40 steps."""
    return Evidence(curves=tuple(curve(name, each, 40 if name == "val_loss" else 1) for name, each in metrics.items()))


RISING = [1.0, 0.5, 0.6, 0.7, 0.9, 1.0, 1.2]
ODD: list[tuple[str, Evidence, set[str]]] = [
    ("all NaN", made(everywhere((NAN, NAN, NAN, NAN))), {"nonfinite"}),
    ("all NaN, one step", made(everywhere((NAN, NAN, NAN, NAN)), range(1)), {"nonfinite"}),
    ("all infinite", made(everywhere((-INF, INF, -INF, INF))), {"nonfinite"}),
    ("NaN without gradients", made(everywhere((NAN, NAN, None, None))), {"nonfinite"}),
    ("all 0", made(everywhere((0.0, 0.0, 0.0, 0.0))), {"constant_init"}),
    ("no numbers", made(everywhere((None, None, None, None)), shapes=dict.fromkeys(healthy(), (0, 8))), set()),
    ("never a backward", made(everywhere((-0.5, 0.5, None, None))), set()),
    ("one parameter", made({"weight": row}, range(3000)), set()),
    ("one number", made({"weight": row}, range(300), {"weight": ()}), set()),
    ("one layer from 0", made({"weight": from_0}), set()),
    ("one neuron from 0", made(healthy(one=from_0), shapes={"one": (1, 8)}), set()),
    (
        "a mask in half precision",
        replace(
            made(healthy(mask=lambda step: (-65504.0, 0.0, None, None))),
            described={"mask": Param("mask", (8, 8), "float16", trainable=False)},
        ),
        set(),
    ),
    ("not described", replace(made(healthy()), described={}), set()),
    ("of an unknown dtype", replace(made(healthy()), described={"layer1": Param("layer1", (8, 8), "int3")}), set()),
    ("begun late", made(healthy(), range(10**6, 10**6 + 200)), set()),
    ("with gaps", made(healthy(), [0, 1, 2, 5000, 5001, 100_000]), set()),
    ("folded", made(healthy(), range(9, 2000, 10)), set()),
    ("the least numbers", made(everywhere((-5e-324, 5e-324, -5e-324, 5e-324))), {"unchanged", "badly_scaled"}),
    ("the largest", made(everywhere((-1e308, 1e308, -1e308, 1e308))), {"unchanged", "badly_scaled", "exploding"}),
    ("joined lately", joined(range(90, 100), 0.1), set()),
    ("joined long ago", joined(range(80, 100), 0.1), {"unused"}),
    ("joined as 0", joined(range(90, 100), 0.0), set()),
    ("braces", made({"a{0}b{": row, "{x}": lambda step: row(step, None, 0.5)}), {"unused"}),
    ("metrics alone", metrics_alone(loss=[2.0] * 300, accuracy=[0.1] * 300), {"loss_flat"}),
    ("a metric once", metrics_alone(loss=[1.0], val_loss=[1.0], accuracy=[1.0], skipped=[1.0], amp_scale=[1.0]), set()),
    ("only NaN", metrics_alone(loss=[NAN] * 300, val_loss=RISING, accuracy=[NAN] * 300), {"nonfinite"}),
    ("NaN for skips", metrics_alone(skipped=[NAN] * 300), set()),
    ("the largest losses", metrics_alone(loss=[1e308, -1e308] * 300, val_loss=[1e308] * 10), set()),
    ("losses of 0", metrics_alone(loss=[0.0] * 300, val_loss=[0.0] * 10), set()),
    ("events alone", Evidence(events=(Event(7, 0, "stride", None, "every 1 -> every 2"),)), {"stride"}),
]


@pytest.mark.parametrize(("evidence", "kinds"), [case[1:] for case in ODD], ids=[case[0] for case in ODD])
def test_odd_runs_are_judged_without_nonsense(evidence: Evidence, kinds: set[str]) -> None:
    """No rule fails, warns, or says what is not so, whatever a run consists of."""
    found = findings(evidence)
    assert {each.kind for each in found} == kinds
    for each in found:
        assert 0 <= each.first_step <= each.last_step
        assert not {"nan", "inf"} & set(each.sentence.replace(",", " ").split())
        assert len(each.title) < 70


def test_a_nan_that_is_over_has_a_last_step() -> None:
    """It stays as history: from its first step to its last one."""
    found = only(made(healthy(layer1=lambda step: row(step, NAN if 10 <= step < 13 else 0.1))), "nonfinite")
    assert (found.first_step, found.last_step) == (10, 12)


def test_every_rule_is_asked() -> None:
    """A rule that nobody asks finds nothing: each that a module declares is among those that are asked, once."""
    modules = [import_module(module.name) for module in iter_modules(viewer.rules.__path__, "viewer.rules.")]
    declared = [value for module in modules for value in vars(module).values() if isinstance(value, Rule)]
    assert sorted(map(id, declared)) == sorted(map(id, RULES))
    assert len(RULES) == 39


def test_an_accumulated_loss_is_no_accuracy() -> None:
    """A metric is to the rules what it is in a figure, whatever other letters are in its name."""
    names = ("accumulated_loss", "val_loss", "top1_acc", "lr")
    evidence = Evidence(curves=tuple(curve(name, [1.0]) for name in names))
    kinds = evidence.losses, evidence.validation_losses, evidence.accuracies
    assert [[each.name for each in curves] for curves in kinds] == [["accumulated_loss"], ["val_loss"], ["top1_acc"]]
