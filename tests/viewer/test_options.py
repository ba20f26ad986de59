"""What a user wants to see: what cannot be is named, and what has to be read again is known."""

import dataclasses
import itertools
from typing import Any

import polars as pl
import pytest

from tests.logs import activations, events, extremes, histograms, metrics
from tracer.log.read import Attempts
from viewer.options import Histograms, Scale, View, ViewOptions, XAxis, matching
from viewer.reduce.history import History


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        *(("rank", value, "give merged, spread, or a rank's number") for value in ("", "all", "-1", "1.5", "٣", "²")),
        *(("smoothing", value, "at least 0 and less than 1") for value in (-0.1, 1.0, 2.0, float("nan"), float("inf"))),
        *(
            ("statistic", value, "grad_absmax")
            for value in ("", "param", "time", "span", "norm", "grad_", "grads_norm")
        ),
        *(("params", value, "no regular expression") for value in ("(", "*", "[a", "(?=x)")),
    ],
)
def test_what_cannot_be_is_named(field: str, value: Any, words: str) -> None:
    """The error is a ValueError of one line that says which value it is, and what could be instead."""
    with pytest.raises(ValueError, match=words) as caught:
        ViewOptions(**{field: value})
    assert str(value) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("enumeration", [View, XAxis, Scale])
def test_a_word_that_is_no_choice_is_named(enumeration: Any) -> None:
    """A page's address may carry any word: one that is no view, x axis or scale is a ValueError that names it."""
    with pytest.raises(ValueError, match="bogus"):
        enumeration("bogus")


@pytest.mark.parametrize(
    "statistic", ["grad_absmax", "value_absmax", "applied_absmax", "update_absmax", "update_std", "value_nonfinite"]
)
def test_every_column_of_a_parameter_is_a_statistic(statistic: str) -> None:
    """Whatever can be recorded may be asked for."""
    assert ViewOptions(statistic=statistic).statistic == statistic


def test_an_expression_is_found_anywhere_in_a_name() -> None:
    """Expressions are Rust's, anchored where they say so; an empty one picks all, in their order."""
    names = ["fc.weight", "conv1.weight", "conv1.bias"]
    assert matching(names, "") == names
    assert matching(names, "conv") == names[1:]
    assert matching(names, "^c.*s$") == ["conv1.bias"]
    assert matching(names, "FC") == []
    assert matching(names, "(?i)FC") == ["fc.weight"]
    assert matching([], "a") == []


TABLES = {
    "extremes": pl.concat(
        pl.DataFrame(
            pl.from_arrow(
                extremes(
                    [0, 1],
                    ["a", "b"],
                    {"grad_max": [rank + each + 9.0 * attempt * (each == 1) for each in (1, 2, 3, 4)]},
                    rank,
                    attempt,
                )
            )
        )
        for rank, attempt in ((0, 0), (1, 0), (0, 1))
    ).with_columns(grad_norm=pl.col("grad_max") * 7),
    "metrics": pl.concat(
        pl.DataFrame(pl.from_arrow(metrics([step], [step + 1.0], attempt=attempt)))
        for step, attempt in ((0, 0), (1, 0), (1, 1))
    ),
    "events": pl.DataFrame(pl.from_arrow(events([0], "order", None, '["b", "a"]'))),
    "histograms": pl.DataFrame(pl.from_arrow(histograms([0, 1]))).with_columns(param=pl.lit("a")),
    "activations": pl.concat(
        pl.DataFrame(
            pl.from_arrow(activations([0, 1], ["a", "b"], {"std": [1.0 + rank, 2.0, 3.0, 4.0 + each]}, rank=rank))
        )
        .with_columns(pl.lit(attempt, pl.Int32).alias("attempt"))
        .filter(pl.col("step") >= attempt)
        for each, (rank, attempt) in enumerate(((0, 0), (1, 0), (0, 1)))
    ),
}


def read(look: ViewOptions) -> tuple[object, ...]:
    """All that a look has of a run."""
    history = History(look, ["a", "b"])
    for table in history.tables:
        history.absorb(table, Attempts(last=look.last_attempt).latest(TABLES[table].lazy()))
    layers = history.layers()
    return (
        repr(layers), history.extremes(), history.curves(), history.histograms(), history.last_step,
        matching(["a", "b"], look.params),
    )  # fmt: skip


CHOICES: dict[str, list[Any]] = {
    "view": list(View),
    "params": ["", "b"],
    "param": ["a", "b"],
    "statistic": ["grad_absmax", "grad_norm", "std", "zeros"],
    "rank": ["merged", "spread", "0"],
    "metrics": ["", "acc"],
    "hide": ["", "loss"],
    "loss": ["", "acc"],
    "accuracy": ["", "loss"],
    "smoothing": [0.6, 0.0],
    "x": [XAxis.STEP, XAxis.WALL],
    "scale": [Scale.AUTO, Scale.LOG],
    "dark": [False, True],
    "findings": [True, False],
    "histograms": list(Histograms),
    "run": ["", "other"],
    "attempt": ["", "0"],
    "zoom": [(), ("1,2", "loss:0,1")],
    "runs": [(), ("b",)],
}


def test_all_that_a_look_has_is_tried() -> None:
    """The choices that are tried here are all that there are."""
    assert set(CHOICES) == {field.name for field in dataclasses.fields(ViewOptions)}


@pytest.mark.parametrize("field", [field for field in CHOICES if field != "view"])
@pytest.mark.parametrize("view", View)
def test_looks_read_differently_exactly_where_they_show_different_rows(view: View, field: str) -> None:
    """``reads`` differs where the history does, so that nothing is read again in vain, and nothing stale is shown."""
    looks = [dataclasses.replace(ViewOptions(view, param="a"), **{field: value}) for value in CHOICES[field]]
    for one, other in itertools.combinations(looks, 2):
        assert (one.reads == other.reads) == (read(one) == read(other))


def test_each_view_reads_something_else() -> None:
    """No two views share a history."""
    assert len({ViewOptions(view, param="a").reads for view in View}) == len(View)


def test_a_look_can_be_told_from_another() -> None:
    """Looks are values: equal where all is equal, and keys of a dictionary."""
    assert ViewOptions() == ViewOptions()
    assert len({ViewOptions(), ViewOptions(), ViewOptions(dark=True)}) == 2
