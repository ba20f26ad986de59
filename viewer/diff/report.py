"""The command ``viewer diff A B``: where two runs part, in words or as JSON.

Exit codes: 0 alike within the tolerance, 1 not, 2 the command line is wrong, 3 a run cannot be read or there is nothing
to compare, 130 ended with Ctrl-C.
"""

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tracer.log.parts import BadPartWarning, with_listing
from tracer.log.ranks import settle, state
from tracer.log.run import LogError, open_run
from tracer.log.store import at, from_here
from tracer.log.text import plain
from viewer.diff.compare import RTOL, Compared, Difference, Parting, Tolerance, difference, side
from viewer.options import matching

_LINES = 10

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")

_EPILOG = """
Exit codes: 0 alike within the tolerance, 1 not, 2 the command line is wrong, 3 a run cannot be read or there is nothing
to compare, 130 ended with Ctrl-C.
"""


@app.command(epilog=_EPILOG)
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A run's folder or URI.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The run to compare it with.")],
    rtol: Annotated[float, typer.Option(min=0, help="Alike: a difference of at most this share of the size.")] = RTOL,
    atol: Annotated[float, typer.Option(min=0, help="Alike, too: a difference of at most this much.")] = 0.0,
    without: Annotated[str, typer.Option(metavar="REGEX", help="Leave out parameters and metrics that match.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For machines: all parameters and metrics, as JSON.")] = False,
) -> None:
    """Say where two runs part, and how the gap then spreads: the first step, parameter and statistic that differ.

    Steps that both runs have are compared. Parameters match without the prefixes of wrappers (module., _orig_mod.).
    """
    try:
        matching([], without)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if not (math.isfinite(rtol) and math.isfinite(atol)):
        raise typer.BadParameter("--rtol and --atol are finite numbers")
    paths = at(a), at(b)
    names = [open_run(path).name for path in paths]
    if names[0] == names[1]:
        names = [from_here(path) for path in paths]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", BadPartWarning)
        # Parts that are merged meanwhile are listed again.
        result = with_listing(
            paths[0], "extremes", lambda _: difference(side(paths[0]), side(paths[1]), Tolerance(rtol, atol), without)
        )
    params = result.params
    damaged = list(dict.fromkeys(str(warning.message) for warning in caught))
    if params.steps == 0 and (params.names or None in params.ends or not any(params.only)):
        why = f"; {damaged[0]}" if damaged else ""
        raise LogError(f"there is nothing to compare: {_ends(names, params)}, and no row is of the same steps{why}")
    notes = _notes(names, result)
    settle(paths)
    notes += [f"{name} is still running" for name, path in zip(names, paths, strict=True) if state(path) == "running"]
    notes += damaged
    if as_json:
        tables = asdict(result, dict_factory=_plain_json)
        print(json.dumps({"a": names[0], "b": names[1], "alike": result.alike, **tables, "notes": notes}, indent=1))
    else:
        _print(names, result, notes)
    raise typer.Exit(0 if result.alike else 1)


def _plain_json(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """NaN and infinities as words, since JSON has no numbers for them."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value for key, value in fields
    }


def _print(names: Sequence[str], result: Difference, notes: Sequence[str]) -> None:
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line in _sentences(names, result):
        console.print(plain(line))
    partings = result.params.partings
    if len(partings) > 1:
        headings = map(plain, ("step", "parameter", "statistic", *names))
        table = Table(*(Column(Text(heading), overflow="fold") for heading in headings), box=None, pad_edge=False)
        for parting in partings[:_LINES]:
            words = str(parting.step), parting.name, parting.statistic, *_digits(parting.a, parting.b)
            table.add_row(*(Text(plain(word)) for word in words))
        console.print(table)
        more = f"and {len(partings) - _LINES} more; " if len(partings) > _LINES else ""
        stay = result.params.names - len(partings)
        console.print(
            f"{more}{stay:,} of {_some(result.params.names, 'parameter')} {'stays' if stay == 1 else 'stay'} alike"
        )
    for note in notes:
        console.print(plain(note))


def _sentences(names: Sequence[str], result: Difference) -> list[str]:
    """The difference in words: where parameters part, why that may be, and where metrics part."""
    a, b = names
    params = result.params
    said = []
    if params.partings:
        first = params.partings[0]
        until = params.alike_until
        since = "differ from the first step that both have" if until is None else f"are alike until step {until:,}"
        said.append(f"{a} and {b} {since}; {_where(first)} {_gap(f'{first.statistic} of {first.name}', names, first)}.")
        said.append(_why(params))
    elif params.names:
        said.append(f"{a} and {b} are alike: {_some(params.names, 'parameter')}, {_some(params.steps, 'step')}.")
    else:
        said.append(f"{a} and {b} have no parameter in common.")
    metrics = result.metrics.partings[:_LINES]
    return said + [f"{_gap(metric.name, names, metric)}, {_where(metric)}." for metric in metrics]


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _where(parting: Parting) -> str:
    return f"at step {parting.step:,}" if parting.span == 1 else f"in the {parting.span:,} steps up to {parting.step:,}"


def _gap(what: str, names: Sequence[str], parting: Parting) -> str:
    numbers = _digits(parting.a, parting.b)
    return f"{what} is {numbers[0]} in {names[0]} and {numbers[1]} in {names[1]}"


def _digits(a: float | None, b: float | None) -> tuple[str, str]:
    """Two numbers with as many digits as it takes to tell them apart."""
    texts = [(_text(a, digits), _text(b, digits)) for digits in range(3, 18)]
    return next((both for both in texts if both[0] != both[1]), texts[-1])


def _text(number: float | None, digits: int) -> str:
    return "null" if number is None else f"{number:.{digits}g}"


def _why(params: Compared) -> str:
    """Where to look for the cause."""
    first = params.partings[0]
    if first.span > 1:
        return "Each row covers several steps, so what came first within them is not known."
    if not first.statistic.startswith("value"):
        if first.statistic.startswith("applied"):
            return "All values and gradients were alike in that step, so look at what is made of them: clipping, say."
        return "All values were alike in that step, so look within the step: its data, dropout, or how it was computed."
    if params.alike_until is None:
        before = "the initialisation" if first.step == 0 else "the initialisation, or an update"
        return f"Values are recorded before each update, so look at what came before it: {before}."
    until, last = params.alike_until, first.step - 1
    updates = f"the update of step {until:,}" if until == last else f"the updates of the steps {until:,} to {last:,}"
    return (
        f"Values are recorded before each update, so look at {updates}: the optimizer, its learning rate, "
        "or gradients whose extremes do not show it."
    )


def _notes(names: Sequence[str], result: Difference) -> list[str]:
    """A line for everything that was not compared."""
    notes = []
    for what, table in (("parameter", result.params), ("metric", result.metrics)):
        for name, only in zip(names, table.only, strict=True):
            if only:
                more = f" and {len(only) - _LINES} more" if len(only) > _LINES else ""
                notes.append(f"only {name} has {_some(len(only), what)}: {', '.join(only[:_LINES])}{more}")
    if result.params.ends[0] != result.params.ends[1]:
        notes.append(f"{_ends(names, result.params)}: compared up to the earlier one")
    return notes


def _ends(names: Sequence[str], compared: Compared) -> str:
    ends = ["has no row" if end is None else f"ends at step {end:,}" for end in compared.ends]
    return ", ".join(f"{name} {end}" for name, end in zip(names, ends, strict=True))
