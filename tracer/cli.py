"""The command ``tracer``: a demo, a look at a model, what tracing costs, and care for a run's log.

Exit codes: 0 done, 1 the run cannot be used or is damaged, or what is asked for is not there, 2 the command line is
wrong, 130 ended with Ctrl-C.

Slow modules are imported where they are used, so that ``--help`` and a wrong option are answered at once.
"""

import errno
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.table import Table

from tracer.log.system import file_name, quoted
from tracer.log.text import as_json as to_json
from tracer.log.text import failure, plain, print_anything, say_wrong_use

if TYPE_CHECKING:
    from tracer.log.parts import Part
    from tracer.log.place import Place

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

# A run may have thousands.
_METRICS = 100
# What typer raises for a wrong command line; it does not export the name.
_WrongUseError: Any = typer.BadParameter.__base__
# Of a column of `bench`.
_WIDTH = 14

RunArgument = Annotated[str, typer.Argument(help="The run's folder, or its URI, or a folder of runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="For machines: the same, as JSON.")]


def _console() -> Console:
    """The terminal, as wide as it is now."""
    return Console(emoji=False)


class Data(StrEnum):
    """The demo's data sets."""

    DIGITS = "digits"
    FASHION_MNIST = "fashion-mnist"
    CIFAR10 = "cifar10"


@app.callback()
def about() -> None:
    """Trace PyTorch training into a Parquet log, and look after such logs."""


@app.command()
def demo(
    path: Annotated[Path | None, typer.Option(help="The run's folder. Default: a new one under runs/.")] = None,
    data: Annotated[Data, typer.Option(help="digits needs no network; the others are downloaded.")] = Data.DIGITS,
    epochs: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Train a ResNet-18 on real images, traced, with the viewer beside it."""
    from tracer.demo import demo as run_demo
    from tracer.log.store import at

    run_demo(Path(at(path or f"runs/demo-{datetime.now():%Y%m%d-%H%M%S}")), data.value, epochs, _console())


@app.command()
def doctor(
    target: Annotated[str, typer.Argument(metavar="MODULE:FACTORY", help="A model, or a callable that makes one.")],
    as_json: AsJson = False,
) -> None:
    """Say for each parameter of a model whether it would be recorded, and why not."""
    from tracer.notebook import doctor as examine

    parameters = examine(_model_of(target))
    if as_json:
        print(to_json(parameters.to_dicts()))
        return
    table = Table(box=None, pad_edge=False)
    for name in parameters.columns:
        table.add_column(name, no_wrap=name != "note")
    for row in parameters.iter_rows():
        table.add_row(*map(plain, row))
    _console().print(table, highlight=False, markup=False)
    states = parameters.group_by("state", maintain_order=True).len()
    summary = ", ".join(f"{count} {state}" for state, count in states.iter_rows())
    print(f"{parameters.height} parameters: {summary or 'none'}")
    if not set(parameters["state"]) & {"traced", "sharded", "lazy"}:
        raise _failed("there is no gradient to trace in this model, so attach would refuse it")


def _model_of(target: str) -> Any:
    """The model that ``module:factory`` names."""
    from torch import nn

    module, _, attribute = target.partition(":")
    if not attribute:
        raise _failed(f"{target!r} is not of the form MODULE:FACTORY, as torchvision.models:resnet18 is")
    # As for `python -m`: modules in the current folder can be imported.
    sys.path.insert(0, "")
    try:
        made = getattr(importlib.import_module(module), attribute)
        model = made if isinstance(made, nn.Module) else made()
    except Exception as error:
        raise _failed(f"{target} gives no model: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise _failed(f"{target} gives a {type(model).__name__}, not a torch.nn.Module")
    return model


@app.command()
def bench(
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, … Default: cuda if it is there.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each network is trained, about.")] = 10,
    network: Annotated[str, typer.Option(help="Only the networks whose names contain this.")] = "",
    as_json: AsJson = False,
) -> None:
    """Measure what tracing costs on this machine, and print a table to paste."""
    from tracer import bench as benches

    where = benches.device_of(device)
    rows = benches.bench(benches.networks(where, network), where, seconds)
    if as_json:
        print(to_json({"on": benches.described(where), "rows": list(rows)}))
        return
    print(benches.described(where), end="\n\n")
    _say_row("network", "trained", "ms a step", "× plain", "quartiles")
    _say_row(*["-" * _WIDTH] * 5)
    for row in rows:
        low, high = row["quartiles"]
        numbers = f"{row['ms_a_step']:.3f}", f"{row['times_plain']:.3f}", f"{low:.3f} to {high:.3f}"
        _say_row(row["network"], row["trained"], *numbers)


def _say_row(*cells: str) -> None:
    # At once: the next network takes a while.
    print(f"| {' | '.join(cell.ljust(_WIDTH) for cell in cells)} |", flush=True)


def _failed(message: str) -> typer.Exit:
    _say(f"tracer: {message}", file=sys.stderr)
    return typer.Exit(1)


def _say(words: str, file: TextIO | None = None) -> None:
    print(plain(words), file=file)


@app.command(name="runs")
def runs_command(
    runs: Annotated[list[str] | None, typer.Argument(help="Folders of runs, or runs, or URIs. Default: runs.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs: state, beginning, steps, last and best metrics, and in what their configs differ."""
    from tracer.log.runs import frame, rows_of
    from tracer.log.store import at
    from tracer.log.table import columns_of, table_of

    rows = rows_of([at(run) for run in runs or ["runs"]])
    if as_json:
        print(to_json(frame(rows).to_dicts()))
        return
    columns = columns_of(rows)
    table, left_out = table_of(columns, _console().width)
    _console().print(table, highlight=False, markup=False)
    if left_out:
        _say(f"… and {left_out} more columns: a wider terminal has room for them, and tracer.runs() gives all")


@app.command()
def info(run: RunArgument, as_json: AsJson = False) -> None:
    """Say what a run holds: status, steps, parameters, rows, size, last metrics."""
    from tracer.log.ranks import settle
    from tracer.log.run import runs_at
    from tracer.log.store import at

    paths = runs_at(at(run))
    settle(paths)

    told: list[dict[str, Any]] = []

    def say(path: "Place") -> bool:
        facts = _facts(path)
        if as_json:
            told.append(facts)
            return True
        if len(paths) > 1:
            _say(f"{path}")
        _info(path, facts)
        if path is not paths[-1]:
            print()
        return True

    try:
        _each(paths, say)
    finally:
        if as_json:
            print(to_json(told))


def _each(paths: "Sequence[Place]", do: "Callable[[Place], bool]") -> None:
    """Do something with each run; exit code 1 if it is not right with one, or cannot be done."""
    right = True
    for path in paths:
        try:
            right &= do(path)
        except Exception as error:
            if len(paths) == 1:
                raise
            # What is wrong with one run costs no other.
            _say(f"tracer: {_in_a_line(error)}", file=sys.stderr)
            right = False
    if not right:
        raise typer.Exit(1)


def _facts(path: "Place") -> dict[str, Any]:
    """What a run holds, as ``info --json`` gives it."""
    import polars as pl

    from tracer.log import schema
    from tracer.log.parts import all_parts
    from tracer.log.ranks import overall, rank_states, stopped
    from tracer.log.read import rows_dropped, scan
    from tracer.log.run import open_run

    opened = open_run(path)
    run = os.fspath(path)
    steps = pl.col("step")
    span = scan(run).select(steps.min().alias("first"), steps.max().alias("last"), steps.n_unique().alias("count"))
    first, last, count = span.collect().row(0)
    parts = {name: all_parts(path, name) for name in schema.TABLES}
    sizes = [(path / name).sizes_bytes(part.path.name for part in listed) for name, listed in parts.items()]
    states = rank_states(path)
    attempts, again = _attempts(run)
    # Without the times: one that was forged is no time that Python knows.
    latest = scan(run, "metrics").sort("step", "time").group_by("name").last().drop("time")
    return {
        "run": str(path),
        "state": overall(states),
        "model": opened.info["model"],
        "started": opened.info["started"],
        "host": opened.info["host"],
        "ranks": len(states),
        "ranks_stopped": stopped(states),
        "steps": count,
        "first_step": first,
        "last_step": last,
        "attempts": attempts,
        "rows_made_again": again,
        "params": len(opened.info["params"]),
        "rows": {name: scan(run, name).select(pl.len()).collect().item() for name in schema.TABLES},
        "rows_dropped": rows_dropped(path),
        "bytes": sum(sum(of_table.values()) for of_table in sizes),
        "parts": sum(map(len, parts.values())),
        "problems": _examined(path)[1],
        "metrics": [
            {"name": str(row["name"]), "value": row["value"], "step": row["step"]}
            for row in latest.sort(pl.col("name").cast(pl.String)).collect().iter_rows(named=True)
        ],
    }


def _info(path: "Place", facts: Mapping[str, Any]) -> None:
    from tracer.log import schema
    from tracer.log.ranks import STATE_WORDS

    table = Table(show_header=False, box=None, pad_edge=False)
    dead, problems = facts["ranks_stopped"], facts["problems"]
    some_dead = f"; stopped without closing: {', '.join(map(str, dead))}" if 0 < len(dead) < facts["ranks"] else ""
    rows = [f"{name} {count:,}" for name, count in facts["rows"].items() if count or name in schema.ALWAYS]
    none = "none can be read" if problems else "none yet"
    span = f"{facts['steps']:,} recorded, {facts['first_step']:,} to {facts['last_step']:,}" if facts["steps"] else none
    words = {
        "status": STATE_WORDS[facts["state"]],
        "model": facts["model"],
        "started": f"{facts['started']} on {facts['host']}",
        "ranks": f"{facts['ranks']}{some_dead}",
        "steps": span,
        "params": f"{facts['params']:,}",
        "rows": f"{', '.join(rows)}; dropped {facts['rows_dropped']:,}",
        "size": f"{facts['bytes'] / 1e6:.2f} MB in {facts['parts']} parts",
    }
    if facts["attempts"] > 1:
        again = facts["rows_made_again"]
        made = f"; {again:,} rows of extremes are of steps that a later one made again" if again else ""
        words["attempts"] = f"{facts['attempts']}{made}"
    if problems:
        words["damage"] = f"{len(problems)} parts damaged or missing: tracer verify {quoted(str(path))} names them"
    for name, fact in words.items():
        table.add_row(name, plain(fact))
    metrics = facts["metrics"]
    for row in metrics[:_METRICS]:
        table.add_row(plain(row["name"]), f"{row['value']:.6g} at step {row['step']:,}")
    if len(metrics) > _METRICS:
        table.add_row("…", f"and {len(metrics) - _METRICS:,} more metrics")
    _console().print(table, highlight=False, markup=False)


def _attempts(run: str) -> tuple[int, int]:
    """The number of attempts of a run, and of the rows that a later one replaces."""
    import polars as pl

    from tracer.log.read import scan

    every, latest = scan(run, attempts="all"), scan(run)
    last, rows = every.select(pl.col("attempt").max(), pl.len()).collect().row(0)
    return (last or 0) + 1, rows - int(latest.select(pl.len()).collect().item())


@app.command()
def verify(run: RunArgument, as_json: AsJson = False) -> None:
    """Check every byte of a run against the checksums in its parts' names."""
    from tracer.log.run import open_run, runs_at
    from tracer.log.store import at

    told: list[dict[str, Any]] = []

    def check(path: "Place") -> bool:
        open_run(path)
        checked, problems = _examined(path)
        told.append({"run": str(path), "parts": checked, "problems": problems})
        for problem in () if as_json else problems:
            _say(problem, file=sys.stderr)
        if not problems and not as_json:
            _say(f"{path}: {checked} parts, every byte as it was published")
        return not problems

    try:
        _each(runs_at(at(run)), check)
    finally:
        if as_json:
            print(to_json(told))


def _examined(path: "Place") -> tuple[int, list[str]]:
    """How many parts a run has to read, and a line for each that is damaged, and for each gap between them."""
    from tracer.log import schema
    from tracer.log.parts import known_problem, missing_numbers, with_listing
    from tracer.log.ranks import published_counts

    def examine(parts: "list[Part]") -> "tuple[list[Part], list[str]]":
        return parts, [f"{part.path} {problem}" for part in parts if (problem := known_problem(part)) is not None]

    checked = 0
    problems = []
    for table in schema.TABLES:
        parts, damaged = with_listing(path, table, examine)
        checked += len(parts)
        problems.extend(damaged)
        for rank, first, last in missing_numbers(parts, published_counts(path, table)):
            problems.append(f"{path / table}: the parts {first} to {last} of rank {rank} are missing")
    return checked, problems


class Form(StrEnum):
    """What a run can be exported to."""

    CSV = "csv"
    TENSORBOARD = "tensorboard"


@app.command()
def export(
    run: RunArgument,
    to: Annotated[Form, typer.Option(help="A row for each step, or event files.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where RUN.csv, or the folder RUN, is put.")] = Path(
        "exported"
    ),
) -> None:
    """Write metrics and extremes for other tools: as CSV, or for TensorBoard, with histograms and findings."""
    from tracer.export import to_csv, to_tensorboard
    from tracer.log.run import open_run, runs_at
    from tracer.log.store import at

    def write(path: "Place") -> bool:
        open_run(path)
        target = out / file_name(f"{path.resolve().name}{'.csv' if to is Form.CSV else ''}")
        if target.exists():
            raise FileExistsError(errno.EEXIST, "File exists", str(target))
        out.mkdir(parents=True, exist_ok=True)
        (to_csv if to is Form.CSV else to_tensorboard)(os.fspath(path), target)
        _say(f"{path} is in {target}")
        return True

    _each(runs_at(at(run)), write)


@app.command(name="merge")
def merge_command(run: RunArgument) -> None:
    """Merge the parts of a run, one that is being written too, and delete what a process that died left half written.

    There is then one part a table and rank, but where one is damaged or missing.
    """
    from tracer.log.run import runs_at
    from tracer.log.store import at

    _each(runs_at(at(run)), _merge)


def _merge(path: "Place") -> bool:
    from tracer.log import schema
    from tracer.log.parts import all_parts, merge
    from tracer.log.ranks import clear_staging, ranks_in
    from tracer.log.run import open_run

    open_run(path)
    before = sum(len(all_parts(path, table)) for table in schema.TABLES)
    for table in schema.TABLES:
        for rank in sorted({part.rank for part in all_parts(path, table)}):
            merge(path, table, rank)
    after = sum(len(all_parts(path, table)) for table in schema.TABLES)
    _say(f"{path}: {before} parts before, {after} now")
    for rank in ranks_in(path):
        for name in clear_staging(path, rank):
            _say(f"{path}: deleted staging/{name}, which a process that died was writing as rank {rank}")
    return True


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"tracer: {plain(message)}\n"


def commands() -> Iterator[tuple[str, str]]:
    """Each command, and what it does in a line."""
    for command in app.registered_commands:
        assert command.callback is not None
        yield command.name or command.callback.__name__, str(command.callback.__doc__).partition("\n")[0]


def main(arguments: Sequence[str] | None = None, name: str = "tracer") -> None:
    """Run the command; every error becomes one line and an exit code.

    Args:
        arguments: The words after the command's name; by default those of this process.
        name: What the user called.

    Raises:
        SystemExit: always, with the exit code.
    """
    warnings.formatwarning = _warning_line
    print_anything()
    try:
        sys.exit(app(arguments, prog_name=name, standalone_mode=False))
    except _WrongUseError as error:
        say_wrong_use(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        _say(f"tracer: {_in_a_line(error)}", file=sys.stderr)
        sys.exit(1)


def _in_a_line(error: Exception) -> str:
    """An error from outside in one line; an error of the tracer's own is raised again."""
    import polars as pl
    import pyarrow as pa

    from tracer.log.run import LogError

    if isinstance(error, LogError):
        return str(error)
    if isinstance(error, (OSError, pl.exceptions.PolarsError, pa.ArrowException)):
        return failure(error)
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        return "this command needs torch, which is not installed here: pip install torch"
    raise error
