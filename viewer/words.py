"""How a run is, in words, for every surface."""

from collections.abc import Sequence

from tracer.log.ranks import STATE_WORDS
from viewer.options import MERGED, SPREAD, View, ViewOptions
from viewer.snapshot import Finding, Snapshot

_MARKS = {"running": "●", "closed": "■", "stopped": "▲"}
_NAME_LENGTH = 28
_RANKS_NAMED = 8


def title(snapshots: Sequence[Snapshot], now: float, options: ViewOptions | None = None) -> str:
    """The line that stands above everything: which runs these are, how they are, and what part of them is shown.

    Args:
        snapshots: What is shown.
        now: Seconds since 1970.
        options: How it is shown.
    """
    part = "" if options is None else _part(snapshots, options)
    if len(snapshots) == 1:
        return f"{shortened(snapshots[0].name)}  {words(snapshots[0], now)}{part}"
    states = [snapshot.state for snapshot in snapshots]
    counts = [f"{_MARKS[each]} {states.count(each)} {STATE_WORDS[each]}" for each in dict.fromkeys(states)]
    return f"{len(snapshots)} runs  {' · '.join(counts)}{part}"


def _part(snapshots: Sequence[Snapshot], options: ViewOptions) -> str:
    found = ""
    if options.rank == SPREAD and options.view is View.OVERVIEW:
        found = " · spread over ranks"
    elif options.rank not in (MERGED, SPREAD):
        found = f" · rank {options.rank}"
    if options.params and options.view is not View.PARAM:
        shown, there = (sum(len(names) for names in both) for both in zip(*map(_params, snapshots), strict=True))
        found += f" · {shown:,} of {there:,} parameters"
    return found


def _params(snapshot: Snapshot) -> tuple[Sequence[str], Sequence[str]]:
    return snapshot.params, snapshot.params_there


def words(snapshot: Snapshot, now: float) -> str:
    """State, last step, speed, age of the last row, and how long it will take."""
    found = [f"{_MARKS[snapshot.state]} {STATE_WORDS[snapshot.state]}"]
    if snapshot.last_step is None:
        return f"{found[0]} · no step yet"
    # Steps are counted from 0, so that "of" would seem to miss one at the end.
    total = snapshot.total_steps or 0
    share = f" ({(snapshot.last_step + 1) * 100 // total} %)" if snapshot.last_step < total else ""
    found.append(f"step {snapshot.last_step:,}{share}")
    if snapshot.steps_per_second:
        speed = snapshot.steps_per_second
        found.append(f"{speed:,.0f} steps/s" if speed >= 100 else f"{speed:.3g} steps/s")
    if snapshot.state != "closed" and snapshot.last_time is not None:
        found.append(f"last row {_ago(now - snapshot.last_time)}")
    if snapshot.state == "running" and snapshot.total_steps and snapshot.steps_per_second:
        left = max(0, snapshot.total_steps - 1 - snapshot.last_step)
        if left:
            # Unlike an age, which has been reached, it is rounded to the nearest: 28 s are about 30.
            found.append(f"about {duration(max(10, round(left / snapshot.steps_per_second, -1)))} left")
    return " · ".join(found)


def notices(snapshots: Sequence[Snapshot]) -> list[str]:
    """What a user has to know beyond that, a line each: what is damaged, lost, or not there yet."""
    found = []
    for snapshot in snapshots:
        of = "" if len(snapshots) == 1 else f"{shortened(snapshot.name)}: "
        if snapshot.gone:
            found.append(f"{of}the run's folder is gone: waiting for it")
        if not snapshot.complete:
            found.append(f"{of}the last rows are still to arrive")
        if snapshot.stopped_ranks and snapshot.state == "running":
            found.append(f"{of}{ranks_in_words(snapshot.stopped_ranks)} stopped without closing, others go on")
        if snapshot.dropped:
            found.append(f"{of}{snapshot.dropped:,} rows dropped, which could not be written")
        found += [f"{of}left out: {problem}" for problem in snapshot.problems]
    return found


def first_of(lines: Sequence[str], limit: int, command: str) -> list[str]:
    """So many lines at most; where there are more, the last one says which command shows them."""
    if len(lines) <= limit:
        return list(lines)
    return [*lines[: limit - 1], f"… and {len(lines) - limit + 1} more: see `{command}`"]


def noticed(snapshots: Sequence[Snapshot], options: ViewOptions) -> list[tuple[int, Snapshot, Finding]]:
    """What is wrong with these runs and concerns what is shown of them: what goes on first, and of that the worst.

    Each has the same number wherever it is listed or marked, in every view.
    """
    found = [(snapshot, finding) for snapshot in snapshots for finding in snapshot.findings]
    numbered = enumerate(sorted(found, key=lambda each: each[1].order), 1)
    return [(number, snapshot, each) for number, (snapshot, each) in numbered if _concerns(each, snapshot, options)]


def _concerns(finding: Finding, snapshot: Snapshot, options: ViewOptions) -> bool:
    if options.view is View.PARAM:
        # Every parameter's curves show where the run was restarted.
        return options.param in finding.params or bool(finding.steps)
    return not options.params or finding.param is None or not set(finding.params).isdisjoint(snapshot.params)


def finding_words(snapshots: Sequence[Snapshot], options: ViewOptions) -> list[str]:
    """A line for each of what was ``noticed``."""
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
    return f"{steps}, over" if finding.over else steps


def ranks_in_words(ranks: Sequence[int]) -> str:
    """The first of these ranks, and how many there are."""
    named = ", ".join(map(str, ranks[:_RANKS_NAMED]))
    more = f" and {len(ranks) - _RANKS_NAMED:,} more" if len(ranks) > _RANKS_NAMED else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {named}{more}"


def _ago(seconds: float) -> str:
    # Coarse, so that a figure is seldom drawn for its age alone; a clock that is ahead of ours counts as now.
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


def plain(text: str) -> str:
    """A text on one line, without what a terminal would obey, and what has no letter in a figure."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())


def shortened(name: str, length: int = _NAME_LENGTH) -> str:
    """A name on one line, its middle left out where it is too long."""
    line = plain(name)
    half = length // 2
    return line if len(line) <= length else f"{line[: half - 1]}…{line[-half:]}"
