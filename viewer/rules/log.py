"""Rules on the log itself: what it lacks, so that silence elsewhere is not taken for health."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from tracer.log.read import rows_lost
from viewer.rules.evidence import Event, Evidence
from viewer.rules.rule import Limits
from viewer.snapshot import Finding, Severity

_NOTED = {
    "stride": (
        "Measured more or less often",
        "Steps are measured more or less often, and between them nothing is known",
    ),
    "paused": ("Not all steps measured", "Not all steps are measured"),
    "failed": ("A part of the trace failed", "The trace goes on without a part of it"),
    "resumed": ("Resumed", "The job was started again and went on with this run"),
    "restored": ("Restored from a checkpoint", "The training went on from a checkpoint"),
}
_RESTARTS = ("resumed", "restored")


def _in_words(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} rows of {table}" for table, count in rows.items()) or "an unknown number"


def lost(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Rows that could not be written, or cannot be read."""
    found = []
    dropped = [event for event in evidence.events if event.kind == "dropped"]
    if dropped or evidence.dropped:
        first = min((event.step for event in dropped), default=0)
        last = max((event.step for event in dropped), default=evidence.last_step)
        many = f"{evidence.dropped:,}" if evidence.dropped else f"lastly {_in_words(rows_lost(dropped[-1].detail))}"
        found.append(
            Finding(
                "dropped",
                "Rows dropped",
                Severity.WARNING,
                None,
                first,
                last,
                f"Rows were dropped, which could not be written: {many}. What they held is not in these findings.",
                "See whether the disk was full or too slow; every=, fold= or budget= write less.",
                {"rows": evidence.dropped, "times": len(dropped)},
            )
        )
    if evidence.problems:
        found.append(
            Finding(
                "damaged",
                "Parts of the log unreadable",
                Severity.WARNING,
                None,
                0,
                evidence.last_step,
                f"Parts of the log cannot be read and are left out: {len(evidence.problems)}, first "
                f"{evidence.problems[0]}.",
                "`tracer verify` lists every damaged part; copy them anew from where the log was written.",
                {"parts": len(evidence.problems)},
            )
        )
    return found


def silent(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Ranks that went away without closing."""
    if not evidence.silent:
        return []
    those = ", ".join(map(str, evidence.silent))
    alone = evidence.state == "stopped"
    who = "the training" if alone else f"rank {those}"
    return [
        Finding(
            "silent",
            "The training stopped" if alone else "Rank silent",
            Severity.ERROR if alone else Severity.WARNING,
            None,
            evidence.last_step,
            evidence.last_step,
            f"Nothing is heard of {who}, which did not close its log: it was killed, or its machine is gone.",
            "Look for the out-of-memory killer, a time limit, or a rank that waits for another (NCCL timeout).",
            {"ranks": len(evidence.silent)},
        )
    ]


def no_step(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Backwards without an update, as where ``optimizer.step()`` was forgotten; or nothing at all until the end."""
    courses = evidence.courses
    unended = next((event for event in evidence.events if event.kind == "unended"), None)
    if courses is None and evidence.over:
        severity, title, sentence = Severity.WARNING, "No step", "No step was recorded until the end."
    elif courses is not None and unended is not None and courses.ends.max() <= unended.step:
        severity, title = Severity.ERROR, "No update"
        sentence = "There are gradients, and no optimizer has updated these parameters: all of it counts as one step."
    else:
        return []
    return [
        Finding(
            "no_step",
            title,
            severity,
            None,
            0,
            evidence.last_step,
            sentence,
            "See whether optimizer.step() is called, and whether the optimizer holds this model's parameters; a loop "
            "that updates them itself calls trace.step() after each update.",
        )
    ]


def noted(evidence: Evidence, limits: Limits) -> list[Finding]:
    """What the trace itself said: how often it measures, that it goes on without a part, or that it was restarted."""
    found = []
    restarts = _lasting(evidence.events)
    for kind, (title, words) in _NOTED.items():
        events = [event for event in (restarts if kind in _RESTARTS else evidence.events) if event.kind == kind]
        names = tuple(dict.fromkeys(event.param for event in events if event.param))
        if events:
            steps = sorted({event.step for event in events})
            # Each rank tells of the same.
            times = max(Counter(event.rank for event in events).values())
            often = f", the last of {times:,} times" if times > 1 else ""
            found.append(
                Finding(
                    kind,
                    title,
                    Severity.NOTE,
                    names[0] if names else None,
                    steps[0],
                    steps[-1],
                    f"{words}: {events[-1].detail}{often}.",
                    "",
                    {"times": times},
                    names,
                    steps=tuple(steps) if kind in _RESTARTS else (),
                )
            )
    return found


def _lasting(events: Sequence[Event]) -> list[Event]:
    """The restarts that show in the run, by step: no later one of the same rank went back before theirs."""
    earliest: dict[int, float] = {}
    found = []
    for event in reversed(events):
        if event.kind in _RESTARTS and event.step <= earliest.get(event.rank, math.inf):
            earliest[event.rank] = event.step
            found.append(event)
    found.reverse()
    return sorted(found, key=lambda event: event.step)


def ended(evidence: Evidence, limits: Limits) -> list[Finding]:
    """An exception ended the training."""
    return [
        Finding(
            "ended",
            "Ended with an exception",
            # Who pressed Ctrl-C, or ended it by sys.exit, knows.
            Severity.NOTE if reason.startswith(("KeyboardInterrupt", "SystemExit")) else Severity.ERROR,
            None,
            evidence.last_step,
            evidence.last_step,
            f"The training ended with an exception: {reason}.",
            "Its traceback is where the training printed it.",
        )
        for reason in dict.fromkeys(evidence.reasons)
    ]
