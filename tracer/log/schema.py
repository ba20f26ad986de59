"""The log format, version 1. This docstring is the specification; writer and readers both import this module.

A run is a folder::

    run.json                      written first, once: what is traced, and by what
    extremes/ metrics/ events/    a folder a table, holding complete, immutable parts and nothing else; likewise
                                  discarded/, and histograms/ and activations/ where they were asked for
    staging/                      parts being written; no reader looks here
    heartbeat-r00000              its mtime is renewed while rank 0 is alive; it holds that process's host and pid, and
                                  in a second line the id of the machine's boot and the pid's namespace, or "- 0"
    closed-r00000.json            written last by rank 0: last step, rows written, rows dropped, publish numbers used

**run.json** holds ``format`` (this version), ``run_id``, ``started`` (ISO 8601), ``host``, ``model`` (class),
``params`` (a list of ``name``, ``aliases``, ``shape`` or null, ``dtype``, ``trainable``, and, where its slices are
recorded, ``slices``, their number), ``settings``, ``versions``, and, but for older logs, ``config`` (the user's
hyper-parameters, an object).
``settings`` says whether the trace writes metrics of its own: ``amp_scale`` and ``skipped`` where ``scaler`` is true,
``tracer_cost`` where ``budget`` is not null, or from an event on that says so. Otherwise a metric of such a name is the
user's. In a log without ``scaler``, which is older, it is the trace's.

The **closed mark** holds ``closed`` (ISO 8601), ``rank``, ``last_step``, ``reason`` (the exception that ended it, or
""), and by table ``rows``, ``rows_dropped`` and ``published`` (publish numbers used).

**Parts.** ``r<rank>-<first>-<last>-<crc32>.parquet`` holds the rows of the publish numbers ``first`` to ``last`` of
one rank, counted from 0 in each table; the CRC-32 is that of the file's bytes. A fresh part covers one number. A merged
part covers a range; it names the rows that each number contributed, in order, in the file metadata ``gradwatch.rows``
(a JSON list), so that a reader that has seen some of these numbers can take the others. One of ``metrics`` may say in
``gradwatch.metrics`` what is known of each metric without its rows: a JSON list of ``[name, attempt, last step for
which it was logged, when, the number then, lowest finite number, highest]``; times in microseconds, numbers as text.
A part whose range lies inside another's of the same rank is ignored. A published byte never changes.

**Columns.** Every table begins with

====================  ===========================  ===============================================================
``step``              int64                        optimizer updates before this one: the first step is 0
``time``              timestamp[us, UTC]           when the step's update happened, or when the metric was logged
``rank``              int32                        training process
``attempt``           int32                        0; one more each time that the run was resumed or went back
====================  ===========================  ===============================================================

``extremes`` adds ``param`` (dictionary<string>), ``span`` (int32: how many steps the row covers, ending at ``step``)
and the statistics, float64 and nullable: ``value_min``, ``value_max``, ``grad_min``, ``grad_max``, and, where they were
asked for, ``applied_min``, ``applied_max``, and any of ``mean``, ``std`` (of the population), ``norm`` (L2),
``absmax``, ``zeros`` (fraction exactly zero), ``nonfinite`` (count) and ``smallest`` (magnitude that is not 0), each as
``<value|grad|applied|update>_<statistic>``; ``update_*`` is what an update changed, after minus before. With them comes
``update_ratio``: the standard deviation of what the update changed over that of the value before; null where all
elements are alike, or all have moved alike.
Null means that there was nothing to measure: a parameter without a gradient in this step, or without an element. NaN
and infinity are recorded as they are. A value is that at the parameter's first gradient in the step, which is what the
forward used; a gradient is what its last backward left in ``.grad``. A slice of a parameter's first dimension has
rows of its own, named ``<param>[<index>]``, with extremes and ``absmax`` alone.

``discarded`` has the columns of ``extremes``, for backwards whose gradients no update used: the loop skipped a bad
batch, or another model's backward went through this one. Such a backward is no step. The metric ``discarded`` counts
those of the step that came after. It has rows here if anything in it was not finite; their ``step`` is that same one,
and rows of one backward have one ``time``.

``metrics`` adds ``name`` (dictionary<string>) and ``value`` (float64). ``events`` adds ``kind``, ``param`` (nullable)
and ``detail``, what happened to the trace itself: ``attached``, ``resumed`` (at this step, after the last one),
``restored`` (a checkpoint of this step, unless it goes on where ``resumed`` does), ``closed``; of a parameter
``joined``, ``replaced``, ``removed`` (a renamed one is removed and joined; each detail gives the other name); of all
that were frozen, or unfrozen, at once, ``frozen`` and ``unfrozen``, whose detail is a JSON list of modules, which stand
for all that is traced in them, and parameters, and whose ``param`` is its element, if it has but one (of older logs,
a row a parameter); ``stride``, ``paused``, ``failed``;
``dropped``, whose detail is a JSON object: how many rows of each table could not be written since the last such event;
``unheld``, ``rate_zero`` and ``ungraded``, of parameters that do not train (no optimizer holds them, their learning
rate is 0, they never have a gradient), with a JSON list as that of ``frozen``;
and ``order``, one a rank and attempt, at its first measured step: its detail is a JSON list of the parameters' names,
in the order in which their gradients first arrived. The detail of ``attached`` and ``resumed`` ends with ", scaler",
", budget" or both, where this process was given them; that of ``adopted`` is "scaler", where it has found a scaler.
``histograms`` adds ``param``, ``of`` ("value" or "grad"), ``low`` and ``high`` (the extremes) and ``counts``
(list<int64>): in bins of equal width from low to high, or, where these are equal, from low - 0.5 to high + 0.5; null
where no finite distance is between them.

``activations`` adds ``module``, ``training`` (the module's mode), and of its outputs in the step the ``min``, ``max``,
``mean`` and ``std``, and, but for older logs and where it says so null, ``zeros`` (fraction exactly zero),
``saturated`` (fraction where a bounded function saturates: at the bounds of Hardtanh, Hardsigmoid, and at 6 of ReLU6,
which they reach; within 1/64 of their range of those of Sigmoid, Tanh and Softsign; null of other modules) and ``dead``
(fraction of units, such as channels, that gave out nothing but zeros in this step and in all of the 99 measured steps
before it, or in all there were since the process began; null where outputs have no two dimensions). The rows of a step
stand in the order in which the modules first gave something out, those within a module before it.

A row of several steps holds the minimum of their minima and of ``smallest``, the mean of their means, and the maximum
of everything else.
All extremes of one step and rank stand in one part; metrics may be logged at any time. Parts of one table may differ in
their statistics; a reader fills what is missing with null.

**Bounds.** ``step``, ``counts`` and ``time`` (in microseconds since 1970) are from 0 to 2^53 - 1, ``rank`` and ``span``
are below 2^31, and ``attempt`` is below 2^30. The statistics of Parquet say so, of each row group.
Columns of float64 have no such statistics: these leave NaN out, so that a reader that filters by them may miss it.

**Later versions.** A minor version may add tables, and columns of any type, and write numbers in another width, times
in another unit or zone, or texts in another encoding. A reader casts the columns above to their types. It takes further
floats of ``extremes`` for statistics, and leaves out what it does not know. Whatever else changes has another
``format``.

**Attempts.** Each rank counts its own. An attempt begins at the smallest step of its ``resumed`` and ``restored``
events, which are published before its rows; if these are lost, with its first row. From there on it abandons what
earlier attempts of its rank recorded, at once, however far it comes itself: those rows stay in the log, and a reader
leaves them out unless asked for all. A folded row that reaches beyond that step goes with them. Events always count.

**Encoding.** zstd; BYTE_STREAM_SPLIT for floats, DELTA_BINARY_PACKED for integers and times, dictionaries for names.
"""

import contextlib
import warnings
from collections.abc import Collection, Iterable
from typing import Any

import pyarrow as pa

# pyarrow imports pandas, where it is installed, with its first array. A broken pandas raises there, and one that is too
# old makes it warn; both only once. So the first array is made here, and not while rows are written or read.
with contextlib.suppress(Exception), warnings.catch_warnings():
    warnings.filterwarnings("ignore", "pyarrow requires pandas")
    pa.array(())

FORMAT = 1
ALWAYS = ("extremes", "metrics", "events")
TABLES = (*ALWAYS, "discarded", "histograms", "activations")
# The events with which an attempt begins, or goes back to an earlier step.
BEGINNINGS = ("resumed", "restored")
# Integers are from 0 to less than this. What is computed of larger ones would overflow, or be of no year.
BEYOND = {"step": 1 << 53, "time": 1 << 53, "rank": 1 << 31, "attempt": 1 << 30, "span": 1 << 31, "counts": 1 << 53}
# The names under which wrappers (DDP, torch.compile, FSDP, checkpointing, …) keep what they wrap. They are no part of a
# parameter's name.
WRAPPERS = frozenset({"module", "_module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
STATISTICS = ("value_min", "value_max", "grad_min", "grad_max")
RATIO = "update_ratio"
# A parameter with more slices than this has no rows of them.
MOST_SLICES = 1024

_NAME = pa.dictionary(pa.int32(), pa.string())
_KEY = [
    pa.field("step", pa.int64(), nullable=False),
    pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
    pa.field("rank", pa.int32(), nullable=False),
    pa.field("attempt", pa.int32(), nullable=False),
]

SCHEMAS: dict[str, pa.Schema] = {
    "extremes": pa.schema(
        [
            *_KEY,
            pa.field("param", _NAME, nullable=False),
            pa.field("span", pa.int32(), nullable=False),
            *(pa.field(statistic, pa.float64()) for statistic in STATISTICS),
        ]
    ),
    "metrics": pa.schema(
        [*_KEY, pa.field("name", _NAME, nullable=False), pa.field("value", pa.float64(), nullable=False)]
    ),
    "events": pa.schema(
        [
            *_KEY,
            pa.field("kind", pa.string(), nullable=False),
            pa.field("param", pa.string()),
            pa.field("detail", pa.string(), nullable=False),
        ]
    ),
    "histograms": pa.schema(
        [
            *_KEY,
            pa.field("param", _NAME, nullable=False),
            pa.field("of", _NAME, nullable=False),
            pa.field("low", pa.float64(), nullable=False),
            pa.field("high", pa.float64(), nullable=False),
            pa.field("counts", pa.list_(pa.int64())),
        ]
    ),
    "activations": pa.schema(
        [
            *_KEY,
            pa.field("module", _NAME, nullable=False),
            pa.field("training", pa.bool_(), nullable=False),
            *(pa.field(statistic, pa.float64(), nullable=False) for statistic in ("min", "max", "mean", "std")),
            *(pa.field(statistic, pa.float64()) for statistic in ("zeros", "saturated", "dead")),
        ]
    ),
}


# The same columns, of backwards that no step has.
SCHEMAS["discarded"] = SCHEMAS["extremes"]


def extremes_schema(columns: Iterable[str]) -> pa.Schema:
    """The schema of ``extremes`` with these statistics; those of every log come first."""
    further = [pa.field(name, pa.float64()) for name in columns if name not in STATISTICS]
    return pa.schema([*SCHEMAS["extremes"], *further])


def slices_among(names: Collection[str]) -> dict[str, str]:
    """Which of these names of rows are slices, each with its parameter: ``w[3]`` is one of ``w``, if that is there."""
    known = set(names)
    ended = {name: name.rpartition("[")[0] for name in names if name.endswith("]")}
    return {name: of for name, of in ended.items() if of in known and name[len(of) + 1 : -1].isdecimal()}


def write_options(schema: pa.Schema) -> dict[str, Any]:
    """The keyword arguments of ``pyarrow.parquet.ParquetWriter`` that give ``schema`` the encodings of the format."""
    encodings = {
        field.name: "BYTE_STREAM_SPLIT" if pa.types.is_floating(field.type) else "DELTA_BINARY_PACKED"
        for field in schema
        if pa.types.is_floating(field.type) or pa.types.is_integer(field.type) or pa.types.is_timestamp(field.type)
    }
    texts = (pa.types.is_dictionary, pa.types.is_string)
    return {
        "compression": "zstd",
        "use_dictionary": [field.name for field in schema if any(is_text(field.type) for is_text in texts)],
        "column_encoding": encodings,
        # Not of numbers that may be NaN, which statistics leave out: polars before 1.39 then skips it in filters.
        "write_statistics": [
            f"{field.name}.list.element" if pa.types.is_nested(field.type) else field.name
            for field in schema
            if not pa.types.is_floating(field.type)
        ],
    }
