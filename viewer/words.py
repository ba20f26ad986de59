"""The state of runs in words, for every surface."""

from collections.abc import Collection, Sequence

from tracer.log.ranks import STATE_WORDS
from tracer.log.schema import slices_among
from tracer.log.text import shortened
from viewer.options import MERGED, SPREAD, View, ViewOptions
from viewer.snapshot import Finding, Severity, Snapshot

# The name of the model itself, which is "" in a log, where people read it.
MODEL = "(model)"
# Kinds of statistics, as their columns begin, in words.
KINDS = {"value": "value", "grad": "gradient", "applied": "applied"}
# cs231n (https://cs231n.github.io/neural-networks-3/#ratio): an update should be about so large, against the value.
USUAL_RATIO, USUAL_WORDS = 1e-3, "rule of thumb"
RATIO_WORDS = "update / value"
NO_RATIO = "no update of it was measured, or its elements are all alike"
_MARKS = {"running": "●", "closed": "■", "stopped": "▲"}
_RANKS_NAMED = 8


def title(snapshots: Sequence[Snapshot], now: float, options: ViewOptions | None = None) -> str:
    """The title: the runs, how they are, and which part of them is shown, at ``now`` seconds since 1970."""
    part = "" if options is None else _part(snapshots, options)
    if len(snapshots) == 1:
        return f"{shortened(snapshots[0].name)}  {words(snapshots[0], now)}{part}"
    states = [snapshot.state for snapshot in snapshots]
    counts = [f"{_MARKS[state]} {states.count(state)} {STATE_WORDS[state]}" for state in dict.fromkeys(states)]
    return f"{len(snapshots)} runs  {' · '.join(counts)}{part}"


def _part(snapshots: Sequence[Snapshot], options: ViewOptions) -> str:
    part = ""
    if options.rank == SPREAD and options.view is View.OVERVIEW:
        part = " · spread over ranks"
    elif options.rank not in (MERGED, SPREAD):
        part = f" · rank {options.rank}"
    if options.params and options.view is View.ACTIVATIONS:
        part += f" · modules that match {shortened(options.params)}"
    elif options.params and options.view is not View.PARAM:
        shown = sum(parameters_in(snapshot.params, snapshot.all_params) for snapshot in snapshots)
        everything = sum(parameters_in(snapshot.all_params, snapshot.all_params) for snapshot in snapshots)
        part += f" · {shown:,} of {everything:,} parameters"
    return part


def parameters_in(names: Collection[str], everything: Collection[str]) -> int:
    """How many parameters these names are of, slices counted as theirs; ``everything`` holds all names."""
    slices = slices_among(everything)
    return len({slices.get(name, name) for name in names})


def words(snapshot: Snapshot, now: float) -> str:
    """A run's state, last step, speed, the age of its last row, and the time that is left."""
    parts = [f"{_MARKS[snapshot.state]} {STATE_WORDS[snapshot.state]}"]
    if snapshot.last_step is None:
        return f"{parts[0]} · {'no step can be read' if snapshot.problems else 'no step yet'}"
    total, speed = snapshot.total_steps or 0, snapshot.steps_per_second
    # A percentage, and no "of": the last step's number, counted from 0, would seem to miss one.
    share = f" ({(snapshot.last_step + 1) * 100 // total} %)" if snapshot.last_step < total else ""
    parts.append(f"step {snapshot.last_step:,}{share}")
    if speed:
        parts.append(f"{speed:,.0f} steps/s" if speed >= 100 else f"{speed:.3g} steps/s")
    if snapshot.state != "closed" and snapshot.last_time is not None:
        parts.append(f"last row {_ago(now - snapshot.last_time)}")
    if snapshot.state == "running" and speed and snapshot.last_step < total - 1:
        # Rounded to the nearest, unlike an age: 28 s are about 30.
        left = round((total - 1 - snapshot.last_step) / speed, -1)
        parts.append(f"about {duration(max(10, left))} left")
    return " · ".join(parts)


def missing(snapshots: Sequence[Snapshot], note: str) -> str:
    """A note on what has no row yet; what cannot be read may have some."""
    return "rows cannot be read: see `tracer verify`" if any(each.problems for each in snapshots) else note


NO_STEP = "no step recorded yet"
"""The note of a panel of what each step has."""
_NO_ACTIVATIONS = "no activations are recorded: attach(model, activations=True) records them"


def no_rows(snapshots: Sequence[Snapshot], options: ViewOptions) -> str:
    """A note on layers, or on activations, that have no row."""
    note = NO_STEP
    if options.view is View.ACTIVATIONS and any(each.last_step is not None for each in snapshots):
        recorded = any(each.statistics for each in snapshots)
        note = f"no module's name matches {shortened(options.params)}" if recorded else _NO_ACTIVATIONS
    elif options.params:
        note += f" with such a {'module' if options.view is View.ACTIVATIONS else 'parameter'}"
    return missing(snapshots, note)


# What the colours of the activations' view are the largest of, where that is no magnitude.
_SHARES = {"zeros": "share of zeros", "saturated": "saturated share", "dead": "share of dead units"}


def largest(options: ViewOptions) -> str:
    """What each cell of the layers', or the activations', view is the largest of."""
    if options.view is not View.ACTIVATIONS:
        return f"magnitude: {shortened(options.statistic)}"
    return _SHARES.get(options.statistic, f"magnitude: {options.statistic} of outputs")


def row_with(finding: Finding, options: ViewOptions) -> str | None:
    """The parameter, or in the activations' view the module, in whose row a finding is marked; None without one."""
    if options.view is not View.ACTIVATIONS:
        return finding.param
    module = finding.numbers.get("module")
    return None if module is None else str(module) or MODEL


def notices(snapshots: Sequence[Snapshot]) -> list[str]:
    """A line for everything that is damaged, lost, or still to arrive."""
    lines = []
    for snapshot in snapshots:
        of_run = _notices(snapshot)
        # Of hundreds of runs most have none, and a name takes a while to be fitted.
        run = f"{shortened(snapshot.name)}: " if of_run and len(snapshots) > 1 else ""
        lines += [run + line for line in of_run]
    return lines


def _notices(snapshot: Snapshot) -> list[str]:
    lines = []
    if snapshot.gone:
        lines.append("the run's folder is gone: waiting for it")
    if not snapshot.complete:
        lines.append("the last rows are still to arrive")
    if snapshot.stopped_ranks and snapshot.state == "running":
        lines.append(f"{ranks_in_words(snapshot.stopped_ranks)} stopped without closing, others go on")
    if snapshot.dropped:
        lines.append(f"{snapshot.dropped:,} rows dropped, which could not be written")
    return lines + [f"left out: {problem}" for problem in snapshot.problems]


def first_of(lines: Sequence[str], limit: int, command: str) -> list[str]:
    """The first lines, at most ``limit``; the last one then says which command shows the others."""
    if len(lines) <= limit:
        return list(lines)
    return [*lines[: limit - 1], f"… and {len(lines) - limit + 1} more: see `{command}`"]


def noticed(snapshots: Sequence[Snapshot], options: ViewOptions) -> list[tuple[int, Snapshot, Finding]]:
    """The findings that concern what is shown, numbered: first those that go on, and of these the worst.

    A finding has the same number wherever it is listed or marked, in every view.
    """
    findings = [(snapshot, finding) for snapshot in snapshots for finding in snapshot.findings]
    return [
        (number, snapshot, finding)
        for number, (snapshot, finding) in enumerate(sorted(findings, key=lambda pair: pair[1].order), 1)
        if _concerns(finding, snapshot, options)
    ]


def _concerns(finding: Finding, snapshot: Snapshot, options: ViewOptions) -> bool:
    if options.view is View.PARAM:
        # Every parameter's curves show where the run was restarted.
        return options.param in finding.params or bool(finding.steps)
    return not options.params or finding.param is None or not set(finding.params).isdisjoint(snapshot.params)


def finding_words(snapshots: Sequence[Snapshot], options: ViewOptions) -> list[str]:
    """A line for each finding that is ``noticed``."""
    return [
        f"[{number}] {finding.severity}, {span(finding)}: "
        f"{'' if len(snapshots) == 1 else f'{shortened(snapshot.name)}: '}{finding.title}"
        for number, snapshot, finding in noticed(snapshots, options)
    ]


def span(finding: Finding) -> str:
    """The steps of a finding, in words."""
    steps = f"step {finding.first_step:,}"
    if finding.last_step > finding.first_step:
        steps = f"steps {finding.first_step:,} to {finding.last_step:,}"
    if finding.restart is not None:
        return f"{steps}, before the restart at step {finding.restart:,}"
    return f"{steps}, resolved" if finding.resolved else steps


def ranks_in_words(ranks: Sequence[int]) -> str:
    """The first of these ranks, and how many there are."""
    named = ", ".join(map(str, ranks[:_RANKS_NAMED]))
    more = f" and {len(ranks) - _RANKS_NAMED:,} more" if len(ranks) > _RANKS_NAMED else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {named}{more}"


def _ago(seconds: float) -> str:
    # Coarse, so that a figure is seldom drawn for its age alone. A clock ahead of ours counts as now.
    if seconds < 10:
        return "just now"
    return f"{duration(10 if seconds < 20 else 30 if seconds < 55 else 60 * round(seconds / 60))} ago"


def duration(seconds: float) -> str:
    """A length of time in its largest unit, to about a tenth: "40 s", "12 min", "3.5 h", "2.1 days"."""
    if seconds < 55:
        return f"{round(seconds / 10) * 10} s"
    for unit, length, below in (("min", 60, 5400), ("h", 3600, 129_600)):
        if seconds < below:
            return f"{max(1.0, seconds / length):.2g} {unit}"
    days = seconds / 86_400
    return f"{days:.2g} days" if days < 99.5 else f"{days:,.0f} days"


def counted(findings: Sequence[Finding]) -> str:
    """How many findings there are of each severity, the worst first; nothing where there are none."""
    counts = [(kind, sum(finding.severity is kind for finding in findings)) for kind in Severity]
    return ", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in counts if count)
