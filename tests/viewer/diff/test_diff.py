"""``viewer diff``: where two runs part, found in logs with a planted difference."""

import json
import math
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.logs import close_run, events, extremes, flip_bit, metrics, new_run, publish_next
from tests.viewing import view
from tracer.log.parts import merge
from tracer.log.schema import STATISTICS
from tracer.log.store import Local as Path
from viewer.diff import compare, report
from viewer.diff.compare import Parting, Side, Tolerance, difference, side

_PARAMS = ("a.weight", "b.weight", "c.bias")
_NUMBERS = st.one_of(
    st.floats(-1e30, 1e30).filter(lambda number: abs(number) > 1e-30), st.sampled_from([math.nan, math.inf, -math.inf])
)


def frame(table: pa.Table) -> pl.LazyFrame:
    """Rows as ``tracer.scan`` would give them."""
    return pl.DataFrame(pl.from_arrow(table)).lazy()


def a_side(table: pa.Table, **more: Any) -> Side:
    """A run with these extremes."""
    return Side(frame(table), **{"metrics": frame(metrics([], [])), **more})


def partings(a: Side, b: Side, **options: Any) -> list[Parting]:
    """Where two runs part, and nothing else of them is different."""
    found = difference(a, b, **options)
    assert found.alike is not bool(found.params.partings)
    assert found.params.only == ([], [])
    return list(found.params.partings)


@st.composite
def numbers(draw: st.DrawFn) -> tuple[list[int], dict[str, list[float | None]]]:
    """Steps, and for each and each parameter four numbers, null where there is no gradient."""
    steps = sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=12)))
    count = len(steps) * len(_PARAMS)
    generator = random.Random(draw(st.integers(0, 1000)))
    found: dict[str, list[float | None]] = {
        name: [generator.choice([generator.gauss(0, 1), 0.0, math.nan, math.inf, -1e-9]) for _ in range(count)]
        for name in STATISTICS
    }
    for row in range(count):
        if generator.random() < 0.2:
            found["grad_min"][row] = found["grad_max"][row] = None
    return steps, found


def shuffled(table: pa.Table, seed: int) -> pa.Table:
    """The same rows in another order."""
    order = list(range(table.num_rows))
    random.Random(seed).shuffle(order)
    return table.take(order)


@pytest.mark.slow
@given(numbers(), st.integers(0, 9), st.sampled_from([3, 10, 10_000]), st.booleans())
def test_runs_with_the_same_numbers_are_alike(
    given: tuple[list[int], dict[str, list[float | None]]], seed: int, rows: int, shuffle: bool
) -> None:
    """Whatever the numbers, NaN, infinities and nulls among them, and in however many pieces they are read."""
    steps, columns = given
    table = extremes(steps, _PARAMS, columns)
    other = shuffled(table, seed) if shuffle else table
    found = difference(a_side(table), a_side(other), rows_at_once=rows)
    assert found.alike
    assert (found.params.partings, found.params.steps, found.params.alike_until) == ([], len(steps), steps[-1])


@pytest.mark.slow
@given(numbers(), st.data(), st.sampled_from([3, 10, 10_000]), st.booleans())
def test_a_planted_difference_is_found(
    given: tuple[list[int], dict[str, list[float | None]]], data: st.DataObject, rows: int, shuffle: bool
) -> None:
    """One number that differs, anywhere, in any way, is the first parting and the only one."""
    steps, columns = given
    at, param = data.draw(st.integers(0, len(steps) - 1)), data.draw(st.integers(0, len(_PARAMS) - 1))
    statistic = data.draw(st.sampled_from(STATISTICS))
    row = at * len(_PARAMS) + param
    was = columns[statistic][row]
    planted = data.draw(st.one_of(_NUMBERS, st.none()).filter(lambda new: really_differ(was, new)))
    spoiled = {name: list(values) for name, values in columns.items()}
    spoiled[statistic][row] = planted
    other = extremes(steps, _PARAMS, spoiled)
    sides = a_side(extremes(steps, _PARAMS, columns)), a_side(shuffled(other, 1) if shuffle else other)
    found = difference(*sides, rows_at_once=rows)
    (parting,) = found.params.partings
    assert (parting.name, parting.step, parting.span, parting.statistic) == (_PARAMS[param], steps[at], 1, statistic)
    assert same(parting.a, was)
    assert same(parting.b, planted)
    assert found.params.alike_until == (steps[at - 1] if at else None)
    assert found.params.steps == len(steps)


def same(one: float | None, other: float | None) -> bool:
    """The oracle: whether two numbers are the same, NaN and NaN too."""
    if one is None or other is None:
        return one is other
    return one == other or (math.isnan(one) and math.isnan(other))


def really_differ(one: float | None, other: float | None) -> bool:
    """The oracle: whether they differ by more than the default tolerance."""
    return not same(one, other) and (one is None or other is None or not math.isclose(one, other, rel_tol=1.1e-5))


@pytest.mark.parametrize(
    ("a", "b", "tolerance", "alike"),
    [
        (1.0, 1.0 + 0.9e-5, Tolerance(), True),
        (1.0, 1.0 + 1.1e-5, Tolerance(), False),
        (1e-12, 2e-12, Tolerance(), False),
        (1e-12, 2e-12, Tolerance(absolute=1e-9), True),
        (1.0, 1.05, Tolerance(0.1), True),
        (1.0, 1.0 + 1e-15, Tolerance(0.0), False),
        (0.0, -0.0, Tolerance(0.0), True),
        (math.inf, 1e300, Tolerance(1.0, 1e300), False),
        (math.inf, -math.inf, Tolerance(1.0), False),
        (math.nan, 1.0, Tolerance(1.0), False),
        (None, 0.0, Tolerance(1.0, 1.0), False),
        (-1e308, 1e308, Tolerance(), False),
    ],
)
def test_the_tolerance_is_a_share_of_the_larger_magnitude(
    a: float | None, b: float | None, tolerance: Tolerance, alike: bool
) -> None:
    """What is not finite, and what is null, is alike to itself alone, however large the tolerance."""
    one, other = (a_side(extremes([0], values={"grad_max": [number]})) for number in (a, b))
    assert difference(one, other, tolerance).alike is alike
    assert difference(other, one, tolerance).alike is alike


def changed(steps: Sequence[int], where: Mapping[tuple[int, str, str], float]) -> pa.Table:
    """Rows that are all the same, but for these numbers."""
    keys = [(step, param) for step in steps for param in _PARAMS]
    values = {name: [where.get((*key, name), 1.0) for key in keys] for name in STATISTICS}
    return extremes(steps, _PARAMS, values)


def test_the_gap_is_followed_from_values_to_gradients_in_backward_order() -> None:
    """By step; within one, values before gradients, and these in the order in which the backward came by."""
    where = {
        (3, "b.weight", "grad_min"): 2.0,
        (3, "c.bias", "grad_max"): 3.0,
        (3, "a.weight", "grad_min"): 4.0,
        (3, "a.weight", "value_max"): 5.0,
    }
    a = a_side(changed(range(5), {}), order=["c.bias", "b.weight", "a.weight"])
    assert partings(a, a_side(changed(range(5), where))) == [
        Parting("a.weight", 3, 1, "value_max", 1.0, 5.0),
        Parting("c.bias", 3, 1, "grad_max", 1.0, 3.0),
        Parting("b.weight", 3, 1, "grad_min", 1.0, 2.0),
    ]


@pytest.mark.slow
@given(st.integers(0, 99))
def test_of_a_parameter_the_first_step_that_differs_counts(seed: int) -> None:
    """Whatever the order of rows in either log."""
    where = {(4, "c.bias", "grad_max"): 5.0, (3, "a.weight", "grad_max"): 7.0, (1, "a.weight", "grad_max"): 6.0}
    a, b = (a_side(shuffled(changed(range(5), numbers), seed)) for numbers in ({}, where))
    assert [(each.name, each.step) for each in partings(a, b)] == [("a.weight", 1), ("c.bias", 4)]
    a, b = a_side(shuffled(changed(range(5), {}), seed)), a_side(shuffled(changed(range(5), where), seed + 1))
    assert [(each.name, each.step) for each in partings(a, b)] == [("a.weight", 1), ("c.bias", 4)]


def test_names_match_without_what_wrappers_add() -> None:
    """Prefixes of DDP, compile and FSDP count for nothing, wherever they stand; the first run's names are shown."""
    plain, wrapped = (
        ["net.0.weight", "net.1.weight"],
        ["module._orig_mod.net.0.weight", "net._fsdp_wrapped_module.1.weight"],
    )
    values, other = {"grad_max": [1.0, 2.0]}, {"grad_max": [1.0, 3.0]}
    found = partings(a_side(extremes([0], plain, values)), a_side(extremes([0], wrapped, other)))
    assert [(parting.name, parting.b) for parting in found] == [("net.1.weight", 3.0)]
    found = partings(a_side(extremes([0], wrapped, values)), a_side(extremes([0], plain, other)))
    assert [(parting.name, parting.b) for parting in found] == [(wrapped[1], 3.0)]


def test_a_module_that_somebody_calls_module_is_itself() -> None:
    """Where both runs have a name as it is, nothing is left out of it."""
    names = ["module.weight", "weight"]
    values = {"grad_max": [1.0, 2.0]}
    table = extremes([0], names, values)
    assert partings(a_side(table), a_side(table)) == []


def test_parameters_of_one_run_only_are_named() -> None:
    """They are a difference, but for those that are left out."""
    a, b = (a_side(extremes([0, 1], names)) for names in (["x", "y"], ["y", "z"]))
    found = difference(a, b)
    assert (found.alike, found.params.only, found.params.names) == (False, (["x"], ["z"]), 1)
    assert difference(a, b, without="^[xz]$").alike


def test_a_row_that_one_run_lacks_is_a_difference() -> None:
    """A parameter that leaves the model in one run has nulls there, at a step that both have."""
    whole = changed(range(3), {})
    without = whole.filter(
        pc.invert(pc.and_(pc.equal(whole["step"], 1), pc.equal(whole["param"].cast(pa.string()), "b.weight")))
    )
    assert partings(a_side(whole), a_side(without)) == [Parting("b.weight", 1, 1, "value_min", 1.0, None)]
    assert partings(a_side(without), a_side(whole)) == [Parting("b.weight", 1, 1, "value_min", None, 1.0)]


def test_steps_that_both_have_are_compared() -> None:
    """Of every=2 and every=3 these are each sixth; a difference between them shows at the next one."""
    where = {(step, "b.weight", "value_max"): 2.0 for step in range(8, 25)}
    a, b = a_side(changed(range(0, 25, 2), {})), a_side(changed(range(0, 22, 3), where))
    found = difference(a, b)
    assert [(each.step, each.name) for each in found.params.partings] == [(12, "b.weight")]
    assert (found.params.steps, found.params.alike_until, found.params.ends) == (4, 6, (24, 21))


def test_a_row_of_many_steps_is_compared_with_the_same_many_steps() -> None:
    """Rows of single steps are folded as the other run's; where they cover other steps, nothing is said."""
    where = {(13, "b.weight", "grad_max"): 7.0}
    single = changed(range(24), {})
    folded = changed([9, 19, 23], {(19, "b.weight", "grad_max"): 7.0})
    spans = pa.array([10] * 6 + [4] * 3, pa.int32())
    folded = folded.set_column(folded.schema.get_field_index("span"), folded.schema.field("span"), spans)
    a, b = a_side(folded, fold=10), a_side(changed(range(24), where))
    assert partings(a, b) == []
    (parting,) = partings(a, a_side(single))
    assert parting == Parting("b.weight", 19, 10, "grad_max", 7.0, 1.0)
    assert difference(a, b).params.steps == 3
    every = changed(range(0, 24, 3), {})
    assert difference(a, a_side(every)).params.steps == 0
    longer = difference(a, a_side(changed(range(40), {}))).params
    assert (longer.steps, longer.ends) == (3, (23, 39))


@pytest.mark.slow
@given(numbers(), st.sampled_from([3, 10_000]))
def test_ranks_count_as_one(given: tuple[list[int], dict[str, list[float | None]]], rows: int) -> None:
    """A run of two ranks is alike to one with the least minima and the largest maxima of both."""
    steps, columns = given
    inside = {name: [None if each is None else 0.0 for each in values] for name, values in columns.items()}
    merged = {name: [merged_by_hand(name, each) for each in values] for name, values in columns.items()}
    both = pa.concat_tables([extremes(steps, _PARAMS, columns), extremes(steps, _PARAMS, inside, rank=1)])
    found = difference(a_side(both), a_side(extremes(steps, _PARAMS, merged)), rows_at_once=rows)
    assert found.params.partings == []


def merged_by_hand(statistic: str, number: float | None) -> float | None:
    """The oracle: what becomes of a number beside another rank's 0."""
    if number is None or math.isnan(number):
        return number
    return min(number, 0.0) if statistic.endswith("_min") else max(number, 0.0)


def test_steps_that_not_every_rank_has_are_not_compared() -> None:
    """While two ranks write, one is ahead of the other: what only one has said of a step is not the step's."""
    a = a_side(pa.concat_tables([extremes(range(10)), extremes(range(2, 6), rank=1)]))
    larger = {"grad_max": [3.0 if step in (0, 1, 6, 7) else 2.0 for step in range(10)]}
    b = a_side(pa.concat_tables([extremes(range(10)), extremes(range(10), values=larger, rank=1)]))
    found = difference(a, b)
    assert found.alike
    assert (found.params.steps, found.params.ends) == (4, (5, 9))


def test_statistics_that_both_recorded_are_compared() -> None:
    """A column that one run lacks is no difference."""
    table = extremes(range(3))
    norm = pa.field("grad_norm", pa.float64())
    a, b = table.append_column(norm, [[1.0, 2.0, 3.0]]), table.append_column(norm, [[1.0, 2.0, 4.0]])
    assert partings(a_side(a), a_side(table)) == []
    assert partings(a_side(a), a_side(b)) == [Parting("weight", 2, 1, "grad_norm", 3.0, 4.0)]


def test_metrics_are_compared_where_both_were_logged() -> None:
    """A metric parts at a step of its own; the tracer's own cost is no metric of the training."""
    shape = extremes(range(10))
    one = pa.concat_tables([metrics(range(10), [1.0] * 10), metrics([0, 5], [3.0, math.nan], "accuracy")])
    other = pa.concat_tables(
        [metrics(range(0, 10, 2), [1, 1, 1, 2, 2.5]), metrics([0, 5], [3.0, math.nan], "accuracy")]
    )
    cost = metrics([0], [0.5], "tracer_cost")
    a, b = Side(frame(shape), frame(one)), Side(frame(shape), frame(pa.concat_tables([other, cost])))
    found = difference(a, b)
    assert not found.alike
    assert (found.params.partings, found.metrics.only) == ([], ([], []))
    (parting,) = found.metrics.partings
    assert (parting.name, parting.step, parting.a, parting.b) == ("loss", 6, 1.0, 2.0)
    assert difference(a, b, without="loss").alike


@pytest.mark.parametrize(
    ("settings", "resumed", "own"),
    [({}, None, True), ({"budget": None}, None, False), ({"budget": 0.1}, None, True), ({"budget": None}, True, True)],
)
def test_the_cost_of_tracing_is_known_by_the_budget(
    settings: dict[str, object], resumed: bool | None, own: bool, tmp_path: Path
) -> None:
    """A metric called tracer_cost is compared like any other, unless the trace was given a budget and wrote it."""
    for name, cost in (("a", 1.0), ("b", 2.0)):
        run = new_run(tmp_path / name, settings=settings)
        publish_next(run, "extremes", extremes(range(3)))
        publish_next(run, "metrics", metrics(range(3), [cost] * 3, "tracer_cost"))
        if resumed:
            publish_next(run, "events", events([0], "resumed", detail="1 parameters, every 16, budget"))
    assert difference(side(tmp_path / "a"), side(tmp_path / "b")).alike is own


def test_metrics_of_ranks_are_compared_as_far_as_all_ranks_are(tmp_path: Path) -> None:
    """What one rank logs once, and the other at each step, is compared at each; what a rank has still to log is not."""
    rows = pa.concat_tables([extremes(range(6)), extremes(range(9), rank=1)])
    once = metrics([0], [5.0], "begun", rank=1)
    a, b = (
        Side(frame(rows), frame(pa.concat_tables([once, metrics(range(9), [*range(4), *last])])))
        for last in ([4.0, 5.0, 6.0, 7.0, 8.0], [4.0, 9.0, 9.0, 9.0, 9.0])
    )
    found = difference(a, b).metrics
    assert [(each.name, each.step) for each in found.partings] == [("loss", 5)]
    beyond = Side(frame(rows), frame(pa.concat_tables([once, metrics(range(9), [0, 1, 2, 3, 4, 5, 9, 9, 9])])))
    assert difference(a, beyond).alike


def test_what_is_logged_twice_in_a_step_is_compared_by_its_extremes() -> None:
    """Validation logged for two data sets under one name is alike only if both are."""
    a, b = (
        Side(frame(extremes([0])), frame(pa.concat_tables([metrics([0], [1.0]), metrics([0], [number])])))
        for number in (2.0, 3.0)
    )
    (parting,) = difference(a, b).metrics.partings
    assert (parting.a, parting.b) == (2.0, 3.0)


def test_a_log_without_the_order_is_read_from_the_last_parameter_on(tmp_path: Path) -> None:
    """As a backward usually comes by; where the order is known, it is that of the latest attempt of the first rank."""
    run = new_run(tmp_path / "a", _PARAMS)
    publish_next(run, "extremes", extremes([0], _PARAMS))
    assert side(run).order == ["c.bias", "b.weight", "a.weight"]
    publish_next(run, "events", events([0], "order", None, "no list of the tracer's"))
    assert side(run).order == ["c.bias", "b.weight", "a.weight"]
    other = new_run(tmp_path / "b", _PARAMS)
    publish_next(other, "extremes", extremes([0], _PARAMS))
    known = [
        (0, 0, '["a.weight"]'),
        (0, 1, '["b.weight", "c.bias"]'),
        (1, 2, '["a.weight", "b.weight"]'),
    ]
    for rank, attempt, detail in known:
        rows = events([0], "order", None, detail)
        for column, number in ((2, rank), (3, attempt)):
            rows = rows.set_column(column, rows.schema.field(column), pa.array([number], pa.int32()))
        publish_next(other, "events", rows, rank)
    assert side(other).order == ["b.weight", "c.bias", "a.weight"]


def test_of_a_resumed_run_the_latest_attempt_counts(tmp_path: Path) -> None:
    """Steps that a run repeated are those that it went on from."""
    for name, first in (("a", 7.0), ("b", 2.0)):
        run = new_run(tmp_path / name)
        publish_next(run, "extremes", extremes(range(3), values={"grad_max": [first] * 3}))
        publish_next(run, "extremes", extremes(range(3), attempt=1))
    assert partings(side(tmp_path / "a"), side(tmp_path / "b")) == []


def planted(folder: Path, number: float | None = math.nan, count: int = 15) -> None:
    """Two closed runs, of which the second has another number at step 5 in each of so many parameters."""
    names = [f"layer{index:02}.weight" for index in range(count)]
    for name in ("a", "b"):
        run = new_run(folder / name, names)
        values = [number if name == "b" and step == 5 else 1.0 for step in range(8) for _ in names]
        publish_next(run, "extremes", extremes(range(8), names, {"grad_max": values}))
        close_run(run, 7)


def test_ten_parameters_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    """The table is short; ``--json`` has them all, with words for what JSON has no number for."""
    planted(tmp_path)
    code, said, _ = view(tmp_path, "diff", "a", "b")
    assert code == 1
    assert "at step 5 grad_max of layer14.weight is 1 in a and nan in b." in said
    assert len([line for line in said.splitlines() if line.startswith("5 ")]) == 10
    assert "and 5 more; 0 of 15 parameters stay alike" in said
    code, said, _ = view(tmp_path, "diff", "a", "b", "--json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(said, parse_constant=refuse)
    assert (code, found["alike"], len(found["params"]["partings"])) == (1, False, 15)
    assert found["params"]["partings"][0] == {
        "name": "layer14.weight",
        "step": 5,
        "span": 1,
        "statistic": "grad_max",
        "a": 1.0,
        "b": "nan",
    }


def test_numbers_are_shown_with_the_digits_that_tell_them_apart(tmp_path: Path) -> None:
    """Three digits where they suffice, else more; a gradient that is not there is null."""
    planted(tmp_path, 1.0001, 1)
    assert "is 1 in a and 1.0001 in b." in view(tmp_path, "diff", "a", "b")[1]
    planted(tmp_path / "null", None, 1)
    assert "is 1 in a and null in b." in view(tmp_path / "null", "diff", "a", "b")[1]


def test_what_limits_the_comparison_is_said(tmp_path: Path) -> None:
    """Runs that are alive, of different lengths, or with a damaged part, and names that only one has."""
    a = new_run(tmp_path / "a", ["x"])
    b = new_run(tmp_path / "b", ["x"])
    publish_next(a, "extremes", extremes(range(9), ["x"]))
    publish_next(b, "extremes", extremes(range(5), ["x", "y"]))
    flip_bit(publish_next(b, "extremes", extremes([5], ["x"])).path)
    publish_next(b, "metrics", metrics(range(5), range(5)))
    close_run(b, 5)
    code, said, complained = view(tmp_path, "diff", "a", "b")
    assert (code, complained) == (1, "")
    assert "a and b are alike: 1 parameter, 5 steps." in said
    assert "only b has 1 parameter: y" in said
    assert "only b has 1 metric: loss" in said
    assert "a ends at step 8, b ends at step 4: compared up to the earlier one" in said
    assert "a is still running" in said
    assert "b is still running" not in said
    assert "has changed since it was published" in said


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("a nowhere", 3, "nowhere holds no run"),
        ("nowhere a", 3, "nowhere holds no run"),
        ("a newer", 3, "upgrade"),
        ("a empty", 3, "there is nothing to compare: a ends at step 7, empty has no row"),
        ("a later", 3, "there is nothing to compare"),
        ("a other", 1, ""),
        ("a", 2, "Missing argument"),
        ("a b c", 2, "unexpected"),
        ("a b --rtol -1", 2, "--rtol"),
        ("a b --atol nan", 2, "--atol"),
        ("a b --rtol inf", 2, "finite"),
        ("a b --without layer", 3, "there is nothing to compare"),
        ("a b --without (", 2, "no regular expression"),
        ("a b --rtol 0.1", 0, ""),
        ("a file://FOLDER/b --rtol 0.1", 0, ""),
        ("a b --atol 0.1 --rtol 0", 0, ""),
        ("a a", 0, ""),
    ],
)
def test_the_exit_code_says_what_was_found(tmp_path: Path, arguments: str, code: int, words: str) -> None:
    """0 alike, 1 not, 2 a wrong command line, 3 nothing that can be compared; each without a traceback."""
    planted(tmp_path, 1.01, 2)
    new_run(tmp_path / "empty")
    publish_next(new_run(tmp_path / "other"), "extremes", extremes(range(3), ["z"]))
    publish_next(new_run(tmp_path / "later"), "extremes", extremes(range(8, 10), ["layer00.weight", "layer01.weight"]))
    info = json.loads((new_run(tmp_path / "newer") / "run.json").read_text())
    (tmp_path / "newer" / "run.json").write_text(json.dumps(info | {"format": 99}))
    found, said, complained = view(tmp_path, "diff", *arguments.replace("FOLDER", str(tmp_path)).split())
    assert (found, words in complained) == (code, True), said + complained
    assert "Traceback" not in complained
    assert (complained == "") is (code < 2)


def test_a_run_that_is_called_as_a_command_is_named_by_its_path(tmp_path: Path) -> None:
    """``viewer ./diff`` watches the run in that folder."""
    planted(tmp_path, 1.0, 1)
    (tmp_path / "a").rename(tmp_path / "diff")
    code, said, complained = view(tmp_path, "./diff", "--save", "figure.png")
    assert (code, complained) == (0, "")
    assert "diff is closed at step 7" in said


def test_parts_that_are_merged_meanwhile_are_read_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that closes while it is being compared takes parts away that were listed."""
    for name in ("a", "b"):
        run = new_run(tmp_path / name)
        for step in range(4):
            publish_next(run, "extremes", extremes([step]))
    plain = compare.difference

    def merging(*arguments: Any) -> compare.Difference:
        merge(tmp_path / "b", "extremes", 0)
        return plain(*arguments)

    monkeypatch.setattr(report, "difference", merging)
    assert report.app([str(tmp_path / "a"), str(tmp_path / "b")], standalone_mode=False) == 0
    assert "1 parameter, 4 steps" in capsys.readouterr().out


def test_help_names_the_command() -> None:
    """Who asks the viewer for help learns of it, and it explains itself."""
    for arguments, words in ((["--help"], "viewer diff runs/a runs/b"), (["diff", "--help"], "--without")):
        shown = subprocess.run([sys.executable, "-m", "viewer", *arguments], capture_output=True, text=True, check=True)
        assert words in shown.stdout


def test_a_loss_may_part_though_no_parameter_does(tmp_path: Path) -> None:
    """It is said when, and the runs are not alike."""
    for name, last in (("a", 3.0), ("b", 4.0)):
        run = new_run(tmp_path / name)
        publish_next(run, "extremes", extremes(range(3)))
        publish_next(run, "metrics", metrics(range(3), [1.0, 2.0, last]))
        close_run(run, 2)
    code, said, _ = view(tmp_path, "diff", "a", "b")
    assert code == 1
    assert "loss is 3 in a and 4 in b, at step 2." in said
