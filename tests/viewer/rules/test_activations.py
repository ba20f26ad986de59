"""Dead units, saturation, and the cause of NaN by modules' outputs: made-up runs on both sides, and real trainings."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import polars as pl
import pytest
import torch
from torch import nn

import tracer
from tests.digits import batches, classify, digits, mlp
from tests.illnesses import judged
from tests.logs import activations
from tests.viewer.rules.test_findings import healthy, made, row, said
from tracer.log.store import Local as Path
from viewer.reduce.modules import ModuleHistory
from viewer.rules.evidence import Event, Evidence, Param
from viewer.rules.findings import findings, with_limits
from viewer.snapshot import Finding, Severity

NAN, INF = math.nan, math.inf
MODULES = ("flatten", "conv", "relu", "pool", "block.fc", "block.act", "block", "head", "")
LAYERS = ("conv", "block.fc", "head")
Column = Mapping[str, Callable[[int], float | None]]


def outputs(
    modules: Sequence[str] = MODULES,
    steps: Sequence[int] = range(120),
    training: bool = True,
    ranks: int = 1,
    history: ModuleHistory | None = None,
    **columns: Column,
) -> Evidence:
    """A run in which modules gave out these; where nothing is given, each module has a maximum of its own."""
    history = history or ModuleHistory()
    columns = {"max": {}, **columns}
    for rank in range(ranks):
        values = {
            name: [
                of[module](step) if module in of else 1.0 + place if name == "max" else 0.0
                for step, (place, module) in itertools.product(steps, enumerate(modules))
            ]
            for name, of in columns.items()
        }
        table = activations(steps, modules, values, training, rank)
        history.absorb(pl.DataFrame(pl.from_arrow(table)).lazy())
    described = {f"{name}.weight": Param(f"{name}.weight", (8, 8)) for name in LAYERS}
    return Evidence(modules=history.tables(), described=described)


def named(evidence: Evidence, kind: str = "dead_units") -> list[tuple[object, object]]:
    """The modules in front of the findings of a kind, and how many modules have it."""
    return [(finding.numbers["module"], finding.numbers["modules"]) for finding in said(evidence, kind)]


# ---- dead units ----


@pytest.mark.parametrize(("share", "steps", "count"), [(0.41, 100, 1), (0.39, 100, 0), (0.41, 99, 0), (1.0, 100, 1)])
def test_dead_units_are_a_large_share_for_long(share: float, steps: int, count: int) -> None:
    """Forty per cent, in a hundred measured steps; the finding says in which module, since when, and how many."""
    found = said(outputs(dead={"relu": lambda step: share}, steps=range(50, 50 + steps)), "dead_units")
    assert len(found) == count
    for finding in found:
        assert (finding.severity, finding.param, finding.params) == (Severity.WARNING, None, ())
        assert finding.title == "Dead units: relu"
        assert (finding.first_step, finding.last_step) == (50, 49 + steps)
        assert f"at least {share:.0%} of the units of relu" in finding.sentence


def test_a_share_that_is_large_now_and_then_is_none() -> None:
    """One row in between with a small share, as units that are active again, ends the stretch."""
    assert named(outputs(dead={"relu": lambda step: 0.1 if step == 60 else 0.9})) == []
    assert named(outputs(dead={"relu": lambda step: 0.9 if step else 0.1})) == [("relu", 1)]
    assert named(outputs(dead={"relu": lambda step: None})) == []


def test_what_passes_dead_units_on_is_not_named() -> None:
    """A pooling behind them, and the module around, which ends with them; but units that are dead anew are."""
    dead = dict.fromkeys(("relu", "pool", "block.act", "block"), lambda step: 0.5)
    assert named(outputs(dead=dead)) == [("relu", 1)]
    dead["block.act"] = dead["block"] = lambda step: 0.6
    (found,) = said(outputs(dead=dead), "dead_units")
    assert (found.numbers["module"], found.numbers["modules"]) == ("relu", 2)
    assert found.title == "Dead units: relu and others"
    assert "2 modules, relu the first" in found.sentence


def test_zeros_of_the_input_are_nobodys_dead_units() -> None:
    """What runs before the first layer passes on what comes in: a border that is always empty, or rare words."""
    dead: Column = {"flatten": lambda step: 0.9}
    assert named(outputs(dead=dead)) == []
    assert named(outputs(dead={**dead, "relu": lambda step: 0.9})) == [("relu", 1)]
    assert named(outputs(("relu", "pool"), dead={"relu": lambda step: 0.9})) == [("relu", 1)]


def test_a_model_that_ends_with_dead_units_is_named_in_words() -> None:
    """The model itself has no name."""
    (found,) = said(outputs(("conv", ""), dead={"": lambda step: 0.9}), "dead_units")
    assert "the units of (model) had" in found.sentence


def test_evaluation_alone_has_no_dead_units() -> None:
    """What a validation, or a part that is frozen in evaluation mode, gives out is not judged."""
    dead: Column = {"relu": lambda step: 0.9}
    assert named(outputs(dead=dead, training=False)) == []
    history = ModuleHistory()
    outputs(history=history)
    assert named(outputs(dead=dead, training=False, history=history)) == []


def test_ranks_count_as_one_and_a_unit_is_dead_on_all() -> None:
    """A hundred rows of two ranks are fifty steps, and the rank with the least share decides."""
    dead: Column = {"relu": lambda step: 0.9}
    assert named(outputs(dead=dead, steps=range(60), ranks=2)) == []
    assert named(outputs(dead=dead, steps=range(110), ranks=2)) == [("relu", 1)]
    history = ModuleHistory()
    outputs(dead=dead, history=history)
    assert named(outputs(history=history)) == []


def test_thresholds_of_activations_can_be_changed() -> None:
    """By their names."""
    evidence = outputs(dead={"relu": lambda step: 0.2}, saturated={"block.act": lambda step: 0.5}, steps=range(60))
    assert findings(evidence) == []
    given = ["dead_units.share=0.1", "dead_units.rows=50", "saturated.share=0.4", "saturated.rows=50"]
    assert [found.kind for found in findings(evidence, with_limits(given))] == ["dead_units", "saturated"]


# ---- saturation ----


@pytest.mark.parametrize(("share", "steps", "count"), [(0.76, 100, 1), (0.74, 100, 0), (0.76, 99, 0)])
def test_a_hidden_function_that_is_saturated_for_long_is_a_warning(share: float, steps: int, count: int) -> None:
    """Three quarters of its outputs, in a hundred measured steps."""
    found = said(outputs(saturated={"block.act": lambda step: share}, steps=range(steps)), "saturated")
    assert [(finding.title, finding.severity) for finding in found] == [
        ("Saturated: block.act", Severity.WARNING)
    ] * count
    assert all(f"{share:.0%} of the outputs of block.act" in finding.sentence for finding in found)


def test_an_output_may_be_decided() -> None:
    """What gives the output of the outermost module, or runs last where none is around it, is no hidden function."""
    held: Column = {"gen.act": lambda step: 0.9}
    same: Column = dict.fromkeys(("gen.act", "gen"), lambda step: 1.0)
    assert named(outputs(("gen.fc", "gen.act", "gen"), max=same, saturated=held), "saturated") == []
    assert named(outputs(("gen.fc", "gen.act", "gen"), saturated=held), "saturated") == [("gen.act", 1)]
    assert named(outputs(("gen.fc", "gen.act", "gen", ""), max=same, saturated=held), "saturated") == [("gen.act", 1)]
    assert named(outputs(("first", "gen.act"), saturated=held), "saturated") == []
    assert named(outputs(("gen.act", "last"), saturated=held), "saturated") == [("gen.act", 1)]
    assert named(outputs(("fc", ""), saturated={"": lambda step: 0.9}), "saturated") == []


# ---- the cause of NaN ----


def broken(modules: Sequence[str], bad: Column, **given: object) -> Finding:
    """The verdict on a loss that is NaN from step 60 on, where modules gave out these."""
    seen = outputs(modules, steps=range(80), max=bad)
    metrics = {"loss": [1.0] * 60 + [NAN] * 20}
    rows = {f"{name}.weight": each for name, each in healthy().items()}
    rows["layer3.weight"] = lambda step: row(step, NAN if step >= 60 else 0.1)
    evidence = replace(made(rows, range(80), metrics=metrics), modules=seen.modules, **given)  # type: ignore[arg-type]
    (found,) = said(evidence, "nonfinite")
    return found


def since(step: int, what: float = NAN) -> Callable[[int], float]:
    """A maximum that is not finite from a step on."""
    return lambda at: what if at >= step else 1.0


@pytest.mark.parametrize("what", [NAN, INF])
@pytest.mark.parametrize(
    ("bad", "cause", "module"),
    [
        (("conv", "relu", "head", ""), "input", "of conv"),
        (("relu", "head", ""), "forward", "of relu"),
        (("",), "forward", "of (model)"),
        ((), "loss", "all 4 recorded modules"),
    ],
    ids=["input", "middle", "model", "loss"],
)
def test_the_first_module_with_nan_tells_data_from_loss(
    bad: Sequence[str], cause: str, module: str, what: float
) -> None:
    """In the order in which modules ran: the first of all, one in between, or none."""
    found = broken(("conv", "relu", "head", ""), {name: since(60, what) for name in bad})
    assert (found.numbers["cause"], found.first_step) == (cause, 60)
    assert module in found.sentence
    assert found.numbers.get("module") == (bad[0] if bad else None)


def test_the_loss_is_blamed_where_all_of_the_model_is_seen() -> None:
    """By the model itself, or by its last layer; a selection that ends before it proves nothing."""
    assert broken(("layer0", "layer7"), {}).numbers["cause"] == "loss"
    assert broken(("layer0", "layer3"), {}).numbers["cause"] == "data"
    order = (Event(0, 0, "order", None, '["layer3.weight", "layer7.weight"]'),)
    assert broken(("layer0", "layer3"), {}, events=order).numbers["cause"] == "loss"


def test_what_was_not_finite_before_says_nothing_of_the_step() -> None:
    """A mask that gives out infinities by design, or a bad batch before: neither is named, nor is the loss blamed."""
    assert broken(("mask", "head", ""), {"mask": since(0, -INF)}).numbers["cause"] == "data"
    found = broken(("mask", "head", ""), {"mask": since(0, -INF), "head": since(60)})
    assert (found.numbers["cause"], found.numbers["module"]) == ("forward", "head")


def test_of_a_step_without_activations_nothing_is_said() -> None:
    """Where only every other step was measured, those between have the verdict that they had."""
    seen = outputs(("conv", ""), steps=range(0, 80, 7))
    evidence = made(healthy(), range(80), metrics={"loss": [1.0] * 60 + [NAN] * 20})
    bad = made(healthy(layer3=lambda step: row(step, NAN if step >= 60 else 0.1)), range(80))
    evidence = replace(evidence, tables=bad.tables, modules=seen.modules)
    assert said(evidence, "nonfinite")[0].numbers["cause"] == "data"


def test_without_a_loss_the_outputs_tell_the_cause() -> None:
    """Where no loss was logged, a module with NaN decides what otherwise nobody knows."""
    rows = healthy(layer3=lambda step: row(step, NAN if step >= 60 else 0.1))
    evidence = made(rows, range(80))
    assert said(evidence, "nonfinite")[0].numbers["cause"] == "unknown"
    seen = outputs(("conv", "head"), steps=range(80), max={"head": since(60)})
    (found,) = said(replace(evidence, modules=seen.modules), "nonfinite")
    assert (found.numbers["cause"], found.title) == ("forward", "The output of head is NaN or infinite")


def test_an_overflow_names_the_module_in_which_it_was() -> None:
    """Of half precision: the module whose output was the first to overflow."""
    half = {f"{name}.weight": Param(f"{name}.weight", (8, 8), "float16") for name in healthy()}
    found = broken(("conv", "head", ""), {"head": since(60, INF), "": since(60, INF)}, described=half)
    assert found.numbers["cause"] == "overflow"
    assert "in the forward one was larger: first in the output of head" in found.sentence


# ---- real trainings ----


def train(path: Path, model: nn.Sequential, rate: float = 1e-3, size: int = 32) -> None:
    """Learn digits with Adam, all outputs recorded, with a validation every 20 steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    images, labels = digits()
    if isinstance(model[0], nn.Conv2d):
        images = images.unflatten(1, (1, 8, 8))

    def validate(step: int) -> None:
        if step % 20 == 19:
            with torch.no_grad():
                model.eval()(images[:100])
            model.train()

    with tracer.attach(model, path, activations=True) as trace:
        classify(model, optimizer, batches(images, labels, 130, size), trace, validate)


def convolution(bias: float = 0.0) -> nn.Sequential:
    """Channels, a ReLU, what passes its zeros on, dropout, and a layer of features."""
    first = nn.Conv2d(1, 16, 3, padding=1)
    assert first.bias is not None
    with torch.no_grad():
        first.bias[:10] -= bias
    return nn.Sequential(
        *(first, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5)),
        *(nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 10)),
    )


def test_dead_channels_of_a_real_training_are_found_where_they_begin(tmp_path: Path) -> None:
    """Ten of 16 channels behind a large negative bias: the ReLU is named, and nothing behind it."""
    _, found = judged(functools.partial(train, model=convolution(100.0)), tmp_path / "run")
    (dead,) = [finding for finding in found if finding.kind == "dead_units"]
    assert (dead.numbers["module"], dead.numbers["modules"], dead.numbers["share"]) == ("1", 1, 10 / 16)
    assert (dead.first_step, dead.last_step) == (0, 129)


@pytest.mark.parametrize("size", [1, 32])
def test_a_healthy_convolution_has_no_dead_units(size: int, tmp_path: Path) -> None:
    """Neither dropout nor a batch of one, half of whose numbers are zero, makes any; nor do pooling and flattening."""
    _, found = judged(functools.partial(train, model=convolution(), size=size), tmp_path / "run")
    assert [finding for finding in found if finding.kind in ("dead_units", "saturated")] == []


@pytest.mark.parametrize(("rate", "modules"), [(1e-3, []), (0.3, ["1"])])
def test_a_learning_rate_that_is_too_high_saturates(rate: float, modules: list[str], tmp_path: Path) -> None:
    """A tanh network of digits that learns has no such finding; one that leapt into its bounds has."""
    model = mlp(64, 64, 64, 10, activation=nn.Tanh)
    _, found = judged(functools.partial(train, model=model, rate=rate), tmp_path / "run")
    assert [finding.numbers["module"] for finding in found if finding.kind == "saturated"] == modules
