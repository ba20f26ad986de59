"""The footer of a part: how many rows each publish number gave, and whether the file fits its table."""

import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from tracer.log import schema

_ROWS_KEY = b"gradwatch.rows"
# pyarrow, which writes fresh parts, makes none larger.
_LARGEST_ROW_GROUP_ROWS = 1 << 20


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
    columns = (group.column(index) for group in groups if group.num_rows for index in range(group.num_columns))
    beyond = sorted({_known_name(column) for column in columns if _is_beyond(table, column)})
    return f"has numbers out of bounds, or none, in {', '.join(beyond)}" if beyond else None


def _known_name(column: pq.ColumnChunkMetaData) -> str:
    return str(column.path_in_schema.partition(".")[0])


def _is_beyond(table: str, column: pq.ColumnChunkMetaData) -> bool:
    """Whether a column's statistics lack, or say that a number is out of bounds, or null where that cannot be."""
    name, fields = _known_name(column), schema.SCHEMAS[table]
    if name not in fields.names:
        return False
    numbers, required = column.statistics, not fields.field(name).nullable
    if numbers is None:
        return required or name in schema.BEYOND
    if required and numbers.null_count:
        return True
    if name not in schema.BEYOND or not numbers.num_values:
        return False
    return not (numbers.has_min_max and 0 <= numbers.min_raw <= numbers.max_raw < schema.BEYOND[name])


def _alike(known: pa.DataType, written: pa.DataType) -> bool:
    """Whether a reader may cast what is written to the known type."""
    if pa.types.is_list(known):
        lists = pa.types.is_list(written) or pa.types.is_large_list(written)
        return lists and _alike(known.value_type, written.value_type)
    kinds = (pa.types.is_integer, pa.types.is_floating, _is_text)
    return known == written or any(is_kind(known) and is_kind(written) for is_kind in kinds)


def _is_text(of: pa.DataType) -> bool:
    plain = of.value_type if pa.types.is_dictionary(of) else of
    return plain in (pa.string(), pa.large_string(), pa.string_view())
