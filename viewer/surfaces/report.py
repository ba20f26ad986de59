"""The report of ``viewer check``: findings as lines while a run goes on, and at the end as paragraphs or as JSON."""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from tracer.log.place import Place
from tracer.log.ranks import STATE_WORDS, ranks_in, settle
from tracer.log.run import LogError, holds_run, open_run, runs_or_itself
from tracer.log.store import at
from tracer.log.text import as_json as to_json
from tracer.log.text import failure, plain
from viewer.options import ViewOptions
from viewer.read.changes import changes
from viewer.read.metrics_file import is_metrics_file, judge
from viewer.read.monitor import FindingsMonitor
from viewer.read.runs import Runs, named
from viewer.rules.findings import THRESHOLDS
from viewer.rules.rule import Limits
from viewer.snapshot import Finding, Severity, Snapshot
from viewer.surfaces.actions import Actions
from viewer.words import counted

_MEASURED = "measured: between small trainings with and without the illness, far from both"
# Longer lines are hard to read.
_WIDEST = 100
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def check(
    runs: Sequence[str],
    options: ViewOptions,
    limits: Limits,
    follow: bool,
    as_json: bool,
    actions: Actions | None = None,
) -> tuple[set[Severity], bool]:
    """Print what is wrong with runs. Returns how bad it is, and whether one of several runs could not be read.

    Args:
        runs: Folders or URIs of runs, or of folders of runs; none for the newest run under ``runs/``.
        options: Which rank's findings are meant, and which metrics are losses and accuracies.
        limits: The thresholds.
        follow: Whether to watch runs until one has an error, or all are over.
        as_json: Whether to print JSON alone.
        actions: Runs the user's command for each finding.

    Raises:
        LogError: the only run cannot be read.
    """
    rank = options.only_rank
    paths = named(runs, "viewer check")
    failed: dict[str, str] = {}
    if follow:
        if (path := next(filter(is_metrics_file, paths), None)) is not None:
            raise LogError(f"{path} is a file of metrics, which cannot be followed: leave out --follow")
        with contextlib.closing(Runs(paths, options, limits=limits)) as watched:
            checked = followed(watched, quiet=as_json, actions=actions)
    else:
        checked = read(paths, limits, options, failed)
    if actions is not None:
        actions.look(map(_counting, checked))
        actions.wait()
    checked = [replace(snapshot, name=_as_given(snapshot.name, runs)) for snapshot in _with_rank(checked, rank, failed)]
    for reason in failed.values():
        print(f"viewer: {plain(reason)}", file=sys.stderr)
    if as_json:
        errors = [{"run": _as_given(name, runs), "error": reason} for name, reason in failed.items()]
        print(to_json([*(_plain(snapshot, rank) for snapshot in checked), *errors]))
    else:
        _print(paragraphs(checked, Console().width, "" if rank is None else f", rank {rank}"))
    severities = {finding.severity for snapshot in checked for finding in snapshot.findings if _counts(finding)}
    return severities, bool(failed)


def _as_given(name: str, runs: Sequence[str]) -> str:
    """A run's path as the user wrote it, in whose scripts it stands."""
    for given in runs or ("runs",):
        whole = str(at(given))
        if "://" not in given and Path(name).is_relative_to(whole):
            return str(Path(given) / Path(name).relative_to(whole))
    return name


def list_thresholds(as_json: bool) -> None:
    """Print every threshold, what it means, and where its number comes from."""
    if as_json:
        thresholds = [{"name": name} | dataclasses.asdict(threshold) for name, threshold in THRESHOLDS.items()]
        print(to_json(thresholds))
        return
    width = Console().width
    for name, threshold in THRESHOLDS.items():
        _print(_wrapped(Text(name, "bold").append(f"={threshold.default:g}", "not bold"), width))
        _print(_wrapped(Text(threshold.meaning), width, indent=4))
        _print(_wrapped(Text(f"why: {threshold.source}", "dim"), width, indent=4))
    _print(_wrapped(Text(_MEASURED, "italic"), width))


def read(given: Sequence[Place], limits: Limits, options: ViewOptions, failed: dict[str, str]) -> list[Snapshot]:
    """Runs with their findings; ``failed`` gets the reason why one of several cannot be read."""
    paths = [path for folder in given for path in runs_or_itself(folder)]
    settle(paths)
    checked = []
    for path in dict.fromkeys(paths):
        try:
            checked.append((judge if is_metrics_file(path) else _judged)(path, limits, options))
        except (LogError, OSError) as error:
            _fail(str(path), error, len(paths) == 1, failed)
    return checked


def _judged(path: Place, limits: Limits, options: ViewOptions) -> Snapshot:
    """A run with its findings."""
    monitor = FindingsMonitor(path, limits, options.only_rank, named=options.named)
    evidence = None
    # None where a part was merged away at this moment, or the run was deleted.
    while evidence is None:
        open_run(path)
        evidence = monitor.refresh()
    return Snapshot(
        name=str(path),
        state=evidence.state,
        last_step=evidence.last_step if evidence.tables or evidence.curves else None,
        complete=evidence.complete,
        problems=evidence.problems,
        ranks=tuple(ranks_in(path)),
        findings=monitor.findings,
    )


def _with_rank(checked: Sequence[Snapshot], rank: int | None, failed: dict[str, str]) -> list[Snapshot]:
    """The runs that have the rank; ``failed`` gets the others."""
    for snapshot in checked:
        if not _has_rank(snapshot, rank):
            written = ", ".join(map(str, snapshot.ranks))
            words = f"there are {written}" if written else "none has written yet"
            error = LogError(f"{snapshot.name} has no rank {rank}: {words}")
            _fail(snapshot.name, error, len(checked) + len(failed) == 1, failed)
    return [snapshot for snapshot in checked if snapshot.name not in failed]


def _has_rank(snapshot: Snapshot, rank: int | None) -> bool:
    return rank in (None, *snapshot.ranks)


def _fail(name: str, error: Exception, alone: bool, failed: dict[str, str]) -> None:
    """Raise the error of the only run; note that of one among several, so that the others are still checked."""
    if alone:
        raise error
    failed[name] = failure(error)


def followed(runs: Runs, quiet: bool, actions: Actions | None = None) -> list[Snapshot]:
    """Watch runs until one has an error, or all are over; print findings as they appear unless ``quiet``.

    Raises:
        LogError: a run that was there at the beginning never could be read.
    """
    first_paths = set(map(str, runs.listed().values()))
    for path in runs.listed().values():
        if not holds_run(path):
            print(f"viewer: {plain(path)} holds no run yet: waiting for it", file=sys.stderr)
    said: set[tuple[object, ...]] = set()
    # A run that is deleted stays in the report, and counts as over if it was.
    checked: dict[str, Snapshot] = {}
    over: set[str] = set()
    unreadable: set[str] = set()
    for snapshots, _ in changes(runs):
        paths = {name: str(path) for name, path in runs.places.items()}
        for snapshot in (_checked(snapshot, paths, runs.options.only_rank) for snapshot in snapshots):
            if snapshot.problems and not snapshot.ranks:
                # It could not be read even once: only a disk that was readable is waited for.
                if snapshot.name in first_paths:
                    raise LogError(snapshot.problems[0])
                _say(f"viewer: {plain(snapshot.problems[0])}", (snapshot.name, "unreadable"), said, sys.stderr)
                unreadable.add(snapshot.name)
                continue
            unreadable.discard(snapshot.name)
            checked[snapshot.name] = snapshot
            for finding in () if quiet else snapshot.findings:
                _say(_line(snapshot.name, finding), (snapshot.name, *_news(finding)), said, sys.stdout)
        over_now = {paths.get(name, name) for name in runs.over}
        if actions is not None:
            actions.look(_counting(snapshot, sure=snapshot.name in over_now) for snapshot in checked.values())
        if any(_has_error(snapshot, sure=snapshot.name in over_now) for snapshot in checked.values()):
            break
        over |= over_now
        if checked and over | unreadable >= set(paths.values()):
            break
    return [*checked.values()]


def _checked(snapshot: Snapshot, paths: Mapping[str, str], rank: int | None) -> Snapshot:
    """A run under its path, with the findings of the rank that is asked for."""
    findings = snapshot.findings if _has_rank(snapshot, rank) else ()
    return replace(snapshot, name=paths.get(snapshot.name, snapshot.name), findings=findings)


def _say(line: str, news: tuple[object, ...], said: set[tuple[object, ...]], stream: TextIO) -> None:
    """Print a line, if its news were not said before."""
    if news not in said:
        said.add(news)
        print(line, file=stream, flush=True)


def _has_error(snapshot: Snapshot, sure: bool) -> bool:
    """Whether a run has a finding that is an error, and that counts."""
    return any(_counts(finding, sure) and finding.severity is Severity.ERROR for finding in snapshot.findings)


def _counting(snapshot: Snapshot, sure: bool = True) -> Snapshot:
    """A run with the findings that count."""
    return replace(snapshot, findings=tuple(finding for finding in snapshot.findings if _counts(finding, sure)))


def _counts(finding: Finding, sure: bool = True) -> bool:
    """Whether a finding decides on the exit code: silence does not while the training lives or may live."""
    return finding.restart is None and (finding.kind != "silent" or (sure and not finding.resolved))


def _news(finding: Finding) -> tuple[object, ...]:
    """The parts of a finding whose change is worth a line; of its parameters only each doubling is."""
    doubled = len(finding.params).bit_length()
    return finding.kind, finding.severity, finding.numbers.get("metric"), doubled


def _line(name: str, finding: Finding) -> str:
    return plain(f"{name}: {finding.severity} at step {finding.first_step:,}: {finding.sentence}")


def _plain(snapshot: Snapshot, rank: int | None) -> dict[str, Any]:
    """A run's findings in types that JSON knows."""
    return {
        "run": snapshot.name,
        **({} if rank is None else {"rank": rank}),
        "state": snapshot.state,
        "last_step": snapshot.last_step or 0,
        "complete": snapshot.complete,
        "findings": [dataclasses.asdict(finding) for finding in snapshot.findings],
    }


def _print(lines: Iterable[Text]) -> None:
    console = Console(highlight=False)
    for line in lines:
        # Wrapped already. What is longer is a name, which a terminal breaks at its edge, and a file does not.
        console.print(line, soft_wrap=True)


def paragraphs(checked: Iterable[Snapshot], width: int, part: str = "") -> Iterator[Text]:
    """Say what was found in each run, in lines of whole words.

    Args:
        checked: The runs, with their findings.
        width: In characters.
        part: Of which rank the findings are.
    """
    for place, snapshot in enumerate(checked):
        late = "" if snapshot.complete else "; its last rows are still to arrive"
        where = "without a step" if snapshot.last_step is None else f"at step {snapshot.last_step:,}"
        if snapshot.last_step is None and snapshot.problems:
            where = "with steps that cannot be read"
        how = f"{plain(snapshot.name)}{part}: {STATE_WORDS[snapshot.state]} {where}{late}"
        if place:
            yield Text()
        yield from _wrapped(Text(f"{how}; {counted(snapshot.findings) or 'nothing found'}", "bold"), width)
        for number, finding in enumerate(snapshot.findings, 1):
            steps = f"since step {finding.first_step:,} until {finding.last_step:,}"
            heading = Text(f"[{number}] ").append(finding.severity, _STYLES[finding.severity])
            yield Text()
            yield from _wrapped(heading.append(f" {finding.kind}, {steps}"), width)
            yield from _wrapped(Text(plain(finding.sentence)), width, indent=4)
            yield from _wrapped(Text(finding.advice, "dim"), width, indent=4)


def _wrapped(text: Text, width: int, indent: int = 0) -> Iterator[Text]:
    """Lines that no word is broken in, whatever its length."""
    room = min(width, _WIDEST) - indent
    begins = [0]
    for word in re.finditer(r"\S+", text.plain):
        if word.start() > begins[-1] and cell_len(text.plain[begins[-1] : word.end()]) > room:
            begins.append(word.start())
    for line in text.divide(begins[1:]):
        line.rstrip()
        if line:
            yield Text(" " * indent).append_text(line)
