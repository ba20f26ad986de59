from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.logs import activations, events, extremes, histograms, metrics, new_run, publish_next
from tracer.log import schema
from tracer.log.parts import list_parts, merge
from tracer.log.store import Local as Path

NAME = pa.dictionary(pa.int32(), pa.string())
KEY = {
    "step": (pa.int64(), False),
    "time": (pa.timestamp("us", tz="UTC"), False),
    "rank": (pa.int32(), False),
    "attempt": (pa.int32(), False),
}
COLUMNS = {
    "extremes": {
        **KEY,
        "param": (NAME, False),
        "span": (pa.int32(), False),
        "value_min": (pa.float64(), True),
        "value_max": (pa.float64(), True),
        "grad_min": (pa.float64(), True),
        "grad_max": (pa.float64(), True),
    },
    "metrics": {**KEY, "name": (NAME, False), "value": (pa.float64(), False)},
    "events": {**KEY, "kind": (pa.string(), False), "param": (pa.string(), True), "detail": (pa.string(), False)},
    "discarded": {
        **KEY,
        "param": (NAME, False),
        "span": (pa.int32(), False),
        **dict.fromkeys(["value_min", "value_max", "grad_min", "grad_max"], (pa.float64(), True)),
    },
    "histograms": {
        **KEY,
        "param": (NAME, False),
        "of": (NAME, False),
        "low": (pa.float64(), False),
        "high": (pa.float64(), False),
        "counts": (pa.list_(pa.int64()), True),
    },
    "activations": {
        **KEY,
        "module": (NAME, False),
        "training": (pa.bool_(), False),
        **dict.fromkeys(["min", "max", "mean", "std"], (pa.float64(), False)),
        **dict.fromkeys(["zeros", "saturated", "dead"], (pa.float64(), True)),
    },
}
ROWS = {
    "extremes": extremes([0, 1, 2], ["conv.weight", "fc.bias"]),
    "metrics": metrics([0, 1, 2], [0.5, 0.25, 0.125]),
    "events": events([0, 1, 2], param="fc.bias"),
    "discarded": extremes([0, 1, 2], ["conv.weight", "fc.bias"]),
    "histograms": histograms([0, 1, 2]),
    "activations": activations([0, 1, 2]),
}
POLARS_KEY = {"step": pl.Int64(), "time": pl.Datetime("us", "UTC"), "rank": pl.Int32(), "attempt": pl.Int32()}
POLARS_TYPES: dict[str, dict[str, Any]] = {
    "extremes": {
        **POLARS_KEY,
        "param": pl.Categorical(),
        "span": pl.Int32(),
        **dict.fromkeys(["value_min", "value_max", "grad_min", "grad_max"], pl.Float64()),
    },
    "metrics": {**POLARS_KEY, "name": pl.Categorical(), "value": pl.Float64()},
    "events": {**POLARS_KEY, **dict.fromkeys(["kind", "param", "detail"], pl.String())},
    "discarded": {
        **POLARS_KEY,
        "param": pl.Categorical(),
        "span": pl.Int32(),
        **dict.fromkeys(["value_min", "value_max", "grad_min", "grad_max"], pl.Float64()),
    },
    "histograms": {
        **POLARS_KEY,
        **dict.fromkeys(["param", "of"], pl.Categorical()),
        **dict.fromkeys(["low", "high"], pl.Float64()),
        "counts": pl.List(pl.Int64()),
    },
    "activations": {
        **POLARS_KEY,
        "module": pl.Categorical(),
        "training": pl.Boolean(),
        **dict.fromkeys(["min", "max", "mean", "std", "zeros", "saturated", "dead"], pl.Float64()),
    },
}


def written(run: Path, table: str, merged: bool) -> Path:
    """A part with a table's rows, as a rank publishes it or as merging leaves it."""
    new_run(run)
    for _ in range(2 if merged else 1):
        publish_next(run, table, ROWS[table])
    if merged:
        merge(run, table, 0)
    (part,) = list_parts(run, table)
    return Path(part.file())


def encodings_of(physical_type: str) -> set[str]:
    """How the pages of a column are encoded; RLE is that of the definition levels."""
    values = {
        "DOUBLE": {"BYTE_STREAM_SPLIT"},
        "BYTE_ARRAY": {"PLAIN", "RLE_DICTIONARY"},
        "BOOLEAN": {"PLAIN"},
        "LIST": {"PLAIN"},
    }
    return {"RLE", *values.get(physical_type, {"DELTA_BINARY_PACKED"})}


def test_the_format_has_these_tables() -> None:
    """Format 1 has the tables extremes, metrics and events in every run, and others where there is need."""
    assert schema.ALWAYS == ("extremes", "metrics", "events")
    assert schema.FORMAT == 1
    assert set(schema.TABLES) == set(schema.SCHEMAS) == set(COLUMNS)


@pytest.mark.parametrize("table", COLUMNS)
def test_a_table_has_the_columns_of_the_specification(table: str) -> None:
    """A table's columns stand in the specified order, with the specified types and nullability."""
    found = {field.name: (field.type, field.nullable) for field in schema.SCHEMAS[table]}
    assert list(found.items()) == list(COLUMNS[table].items())


@pytest.mark.parametrize("merged", [False, True], ids=["fresh", "merged"])
@pytest.mark.parametrize("table", COLUMNS)
def test_any_reader_sees_the_specified_types_in_a_part(tmp_path: Path, table: str, merged: bool) -> None:
    """Both pyarrow and polars find the specified columns and types in a part's file alone, fresh or merged."""
    path = written(tmp_path / "run", table, merged)
    fields = pq.read_schema(path).remove_metadata()
    assert {field.name: (field.type, field.nullable) for field in fields} == COLUMNS[table]
    assert dict(pl.read_parquet(path, glob=False).schema) == POLARS_TYPES[table]


@pytest.mark.parametrize("merged", [False, True], ids=["fresh", "merged"])
@pytest.mark.parametrize("table", COLUMNS)
def test_a_part_has_the_encodings_of_the_format(tmp_path: Path, table: str, merged: bool) -> None:
    """All is zstd; floats are BYTE_STREAM_SPLIT, integers and times DELTA_BINARY_PACKED, names dictionaries."""
    footer = pq.read_metadata(written(tmp_path / "run", table, merged))
    columns = [footer.row_group(0).column(index) for index in range(footer.num_columns)]
    assert len(columns) == len(COLUMNS[table])
    for column in columns:
        assert column.compression == "ZSTD"
        kind = "LIST" if ".list." in column.path_in_schema else column.physical_type
        assert set(column.encodings) - {"RLE"} == encodings_of(kind) - {"RLE"}, column.path_in_schema
        assert column.has_dictionary_page == (column.physical_type == "BYTE_ARRAY"), column.path_in_schema


def test_a_further_statistic_is_encoded_like_the_others(tmp_path: Path) -> None:
    """A statistic that the format does not know is written as BYTE_STREAM_SPLIT too."""
    rows = ROWS["extremes"].append_column("grad_norm", pa.array(np.arange(6.0)))
    path = publish_next(new_run(tmp_path / "run"), "extremes", rows).path
    column = pq.read_metadata(path).row_group(0).column(len(COLUMNS["extremes"]))
    assert (column.path_in_schema, set(column.encodings)) == ("grad_norm", encodings_of("DOUBLE"))


@settings(deadline=None, max_examples=25)
@given(bits=st.lists(st.none() | st.integers(0, 2**64 - 1) | st.floats(width=64), max_size=20))
def test_every_float_is_read_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, bits: list[int | float | None]
) -> None:
    """NaN of any payload, infinities, -0.0, subnormals and null come back as they went in, merged or not."""
    values = [np.uint64(each).view(np.float64).item() if isinstance(each, int) else each for each in bits]
    rows = extremes(range(len(values)), values={"grad_min": values})
    run = new_run(tmp_path_factory.mktemp("bits") / "run")
    publish_next(run, "extremes", rows)
    publish_next(run, "extremes", rows)
    for repeats in (2, 1):
        column = pa.concat_tables(pq.read_table(part.path) for part in list_parts(run, "extremes"))["grad_min"]
        expected = np.array([0.0 if each is None else each for each in values] * 2).view(np.uint64)
        assert len(list_parts(run, "extremes")) == repeats
        assert column.is_null().to_pylist() == [each is None for each in values] * 2
        assert np.array_equal(column.fill_null(0.0).to_numpy().view(np.uint64), expected)
        merge(run, "extremes", 0)


@settings(deadline=None, max_examples=25)
@given(names=st.lists(st.text(), min_size=1, max_size=5))
def test_every_name_is_read_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    """A parameter's name may hold any character, or none at all."""
    run = new_run(tmp_path_factory.mktemp("names") / "run")
    path = publish_next(run, "extremes", extremes([0], names)).file()
    assert pl.read_parquet(path, glob=False)["param"].cast(pl.String).to_list() == names
    assert pq.read_table(path)["param"].to_pylist() == names


def test_times_keep_their_microseconds(tmp_path: Path) -> None:
    """A time is read back to the microsecond, in UTC."""
    instants = [0, 1, 1_767_225_600_123_457, 2**53 + 1]
    times = pa.array(instants, pa.timestamp("us", tz="UTC"))
    rows = metrics(range(len(instants)), [0.0] * len(instants))
    path = publish_next(new_run(tmp_path / "run"), "metrics", rows.set_column(1, rows.schema.field(1), times)).file()
    assert pl.read_parquet(path, glob=False)["time"].dt.epoch("us").to_list() == instants
