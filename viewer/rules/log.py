"""Rules on the log itself: what it lacks, so that silence elsewhere is not taken for health."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from tracer.log.read import rows_lost
from viewer.rules.evidence import Event, Evidence
from viewer.rules.rule import Case, Limits, Rule, rule
from viewer.snapshot import Severity

_RESTARTS = ("resumed", "restored")


@rule(
    "dropped",
    title="Rows dropped",
    severity=Severity.WARNING,
    sentence="Rows were dropped, which could not be written: {many}. What they held is not in these findings.",
    advice="See whether the disk was full or too slow; every=, fold= or budget= write less.",
)
def dropped(evidence: Evidence, limits: Limits) -> list[Case]:
    """Rows that could not be written."""
    events = [event for event in evidence.events if event.kind == "dropped"]
    if not events and not evidence.dropped:
        return []
    first = min((event.step for event in events), default=0)
    last = max((event.step for event in events), default=evidence.last_step)
    many = f"{evidence.dropped:,}" if evidence.dropped else f"lastly {_in_words(rows_lost(events[-1].detail))}"
    return [Case(None, first, last, {"rows": evidence.dropped, "times": len(events)}, words={"many": many})]


def _in_words(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} rows of {table}" for table, count in rows.items()) or "an unknown number"


@rule(
    "damaged",
    title="Parts of the log unreadable",
    severity=Severity.WARNING,
    sentence="Parts of the log cannot be read and are left out: {parts}, first {problem}.",
    advice="`tracer verify` lists every damaged part; copy them anew from where the log was written.",
)
def damaged(evidence: Evidence, limits: Limits) -> list[Case]:
    """Rows that cannot be read."""
    problems = evidence.problems
    numbers = {"parts": len(problems)}
    return [Case(None, 0, evidence.last_step, numbers, words={"problem": problem}) for problem in problems[:1]]


@rule(
    "silent",
    title="{what}",
    severity=Severity.WARNING,
    sentence="Nothing is heard of {whom}, which did not close its log: it was killed, or its machine is gone.",
    advice="Look for the out-of-memory killer, a time limit, or a rank that waits for another (NCCL timeout).",
)
def silent(evidence: Evidence, limits: Limits) -> list[Case]:
    """Ranks that went away without closing."""
    if not evidence.silent:
        return []
    severity, words = None, {"what": "Rank silent", "whom": f"rank {', '.join(map(str, evidence.silent))}"}
    if evidence.state == "stopped":
        severity, words = Severity.ERROR, {"what": "The training stopped", "whom": "the training"}
    step = evidence.last_step
    return [Case(None, step, step, {"ranks": len(evidence.silent)}, severity=severity, words=words)]


_UPDATES = (
    "See whether optimizer.step() is called, and whether the optimizer holds this model's parameters; a loop that "
    "updates them itself calls trace.step() after each update."
)


@rule(
    "no_step",
    title="No step",
    severity=Severity.WARNING,
    sentence="No step was recorded until the end.",
    advice=_UPDATES,
)
def no_step(evidence: Evidence, limits: Limits) -> list[Case]:
    """A run that ended without a step."""
    # What cannot be read may hold steps.
    known = evidence.ended and not evidence.problems
    return [Case(None, 0, evidence.last_step)] if evidence.tables is None and known else []


@rule(
    "no_step",
    title="No update",
    severity=Severity.ERROR,
    sentence="There are gradients, and no optimizer has updated these parameters: all of it counts as one step.",
    advice=_UPDATES,
)
def no_update(evidence: Evidence, limits: Limits) -> list[Case]:
    """Backwards without an update, as where ``optimizer.step()`` was forgotten."""
    tables = evidence.tables
    unended = next((event.step for event in evidence.events if event.kind == "unended"), None)
    if tables is None or unended is None or tables.ends.max() > unended:
        return []
    return [Case(None, 0, evidence.last_step)]


def _noted(kind: str, title: str, words: str) -> Rule:
    """A rule that passes on what the trace itself said, in events of this kind."""

    @rule(kind, title=title, severity=Severity.NOTE, sentence=f"{words}: {{detail}}{{often}}.")
    def noted(evidence: Evidence, limits: Limits) -> list[Case]:
        events = [event for event in evidence.events if event.kind == kind]
        if kind in _RESTARTS:
            events = [event for event in _lasting(evidence.events) if event.kind == kind]
        if not events:
            return []
        names = tuple(dict.fromkeys(event.param for event in events if event.param))
        steps = sorted({event.step for event in events})
        # Each rank tells of the same.
        times = max(Counter(event.rank for event in events).values())
        often = f", the last of {times:,} times" if times > 1 else ""
        return [
            Case(
                names[0] if names else None,
                steps[0],
                steps[-1],
                {"times": times},
                names,
                words={"detail": events[-1].detail, "often": often},
                steps=tuple(steps) if kind in _RESTARTS else (),
            )
        ]

    return noted


stride = _noted(
    "stride",
    "Measured more or less often",
    "Steps are measured more or less often, and between them nothing is known",
)
paused = _noted("paused", "Not all steps measured", "Not all steps are measured")
failed = _noted("failed", "A part of the trace failed", "The trace goes on without a part of it")
resumed = _noted("resumed", "Resumed", "The job was started again and went on with this run")
restored = _noted("restored", "Restored from a checkpoint", "The training went on from a checkpoint")


def _lasting(events: Sequence[Event]) -> list[Event]:
    """The restarts that show in the run, by step: no later one of the same rank went back before theirs.

    A job that is started again and then restores its checkpoint is one restart.
    """
    earliest: dict[int, float] = {}
    later: dict[int, Event] = {}
    lasting = []
    for event in reversed(events):
        if event.kind in _RESTARTS:
            if event.step <= earliest.get(event.rank, math.inf):
                earliest[event.rank] = event.step
                if not _one_restart(event, later.get(event.rank)):
                    lasting.append(event)
            later[event.rank] = event
    lasting.reverse()
    return sorted(lasting, key=lambda event: event.step)


def _one_restart(event: Event, later: Event | None) -> bool:
    """Whether the rank's next restart tells of this one, too: its checkpoint was restored before it made a step."""
    if later is None or (event.kind, later.kind) != ("resumed", "restored"):
        return False
    return later.detail.startswith(f"step {event.step} -> ")


@rule(
    "ended",
    title="Ended with an exception",
    severity=Severity.ERROR,
    sentence="The training ended with an exception: {reason}.",
    advice="Its traceback is where the training printed it.",
)
def ended(evidence: Evidence, limits: Limits) -> list[Case]:
    """An exception ended the training."""
    step = evidence.last_step
    # Who pressed Ctrl-C, or ended it by sys.exit, knows.
    known = ("KeyboardInterrupt", "SystemExit")
    return [
        Case(None, step, step, severity=Severity.NOTE if reason.startswith(known) else None, words={"reason": reason})
        for reason in dict.fromkeys(evidence.reasons)
    ]
