"""The footer of a part: how many rows each publish number gave, and whether the file fits its table."""

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction

import pyarrow as pa
import pyarrow.parquet as pq

from tracer.log import schema

_ROWS_KEY = b"gradwatch.rows"
# pyarrow, which writes fresh parts, makes none larger.
_LARGEST_ROW_GROUP_ROWS = 1 << 20
# Parquet has no seconds: pyarrow writes them as milliseconds.
_PER_MICROSECOND = {"s": Fraction(1, 1000), "ms": Fraction(1, 1000), "us": Fraction(1), "ns": Fraction(1000)}


def naming_rows(by_number: Sequence[int]) -> dict[bytes, bytes]:
    """The metadata of a merged part, whose publish numbers gave so many rows each."""
    return {_ROWS_KEY: json.dumps(by_number, separators=(",", ":")).encode()}


def rows_by_number(footer: pq.FileMetaData) -> list[int]:
    """How many rows each publish number of a part gave, in order."""
    stored = (footer.metadata or {}).get(_ROWS_KEY)
    return [footer.num_rows] if stored is None else [int(rows) for rows in json.loads(stored)]


def misfit(footer: pq.FileMetaData, table: str, numbers: range) -> str | None:
    """Say why a file cannot hold what these publish numbers gave to a table; None if it can.

    Raises:
        ValueError, TypeError, OverflowError, RecursionError: it does not say how many rows each number gave.
    """
    by_number = rows_by_number(footer)
    if len(by_number) != len(numbers) or min(by_number) < 0 or sum(by_number) != footer.num_rows:
        return f"does not name the rows of the numbers {numbers[0]} to {numbers[-1]}"
    types = {field.name: field.type for field in footer.schema.to_arrow_schema()}
    known = [field for field in schema.SCHEMAS[table] if not field.nullable or field.name in types]
    if other := [field.name for field in known if not _alike(field.type, types.get(field.name, pa.null()))]:
        return f"is no part of {table}: it lacks {', '.join(other)}, or has another type of it"
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    rows = max((group.num_rows for group in groups), default=0)
    if rows > _LARGEST_ROW_GROUP_ROWS:
        return f"has {rows} rows in one row group"
    # A column of the Parquet type REQUIRED has no null.
    nullable = [footer.schema.column(index).max_definition_level > 0 for index in range(footer.num_columns)]
    columns = [(group.column(index), null) for group in groups if group.num_rows for index, null in enumerate(nullable)]
    # A later version may write times in another unit.
    bounds: dict[str, int | Fraction] = {
        **schema.BEYOND,
        "time": schema.BEYOND["time"] * _PER_MICROSECOND[types["time"].unit],
    }
    beyond = sorted({_known_name(column) for column, null in columns if _is_beyond(table, column, null, bounds)})
    return f"has numbers out of bounds, or none, in {', '.join(beyond)}" if beyond else None


def _known_name(column: pq.ColumnChunkMetaData) -> str:
    # A name may hold a dot; the numbers of a list have a longer path.
    return str(column.path_in_schema.partition(".list.")[0])


def _is_beyond(
    table: str, column: pq.ColumnChunkMetaData, nullable: bool, bounds: Mapping[str, int | Fraction]
) -> bool:
    """Whether needed statistics lack, or say that a number is out of bounds, or null where that cannot be."""
    name, fields = _known_name(column), schema.SCHEMAS[table]
    if name not in fields.names:
        return False
    numbers, required = column.statistics, not fields.field(name).nullable
    if numbers is None:
        return (required and nullable) or name in bounds
    if required and numbers.null_count:
        return True
    if name not in bounds or not numbers.num_values:
        return False
    return not (numbers.has_min_max and 0 <= numbers.min_raw <= numbers.max_raw < bounds[name])


def _alike(known: pa.DataType, written: pa.DataType) -> bool:
    """Whether a reader may cast what is written to the known type."""
    if pa.types.is_list(known):
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        return any(is_kind(written) for is_kind in lists) and _alike(known.value_type, written.value_type)
    kinds = (pa.types.is_integer, pa.types.is_floating, _is_text, _is_instant)
    return known == written or any(is_kind(known) and is_kind(written) for is_kind in kinds)


def _is_instant(of: pa.DataType) -> bool:
    return pa.types.is_timestamp(of) and of.tz is not None


def _is_text(of: pa.DataType) -> bool:
    plain = of.value_type if pa.types.is_dictionary(of) else of
    return plain in (pa.string(), pa.large_string(), pa.string_view())
