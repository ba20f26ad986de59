"""Follows a run for its findings: what is wrong with it now, and what was.

It has followers of its own, so that figures need not wait for it, and need not be of what rules look at.
"""

import dataclasses
import threading
from functools import partial

from tracer.log.run import Run, closed_summaries, holds_run, open_run, overall, rank_states, stopped
from tracer.log.store import Place
from viewer.evidence import Evidence, Record
from viewer.findings import LIMITS, Finding, Limits, findings, rank
from viewer.follow import Progress, Rows


class Witness:
    """Follows one run for its findings. Several figures share it, whatever they show: it is read once for all of them.

    Args:
        path: The run's folder.
        limits: The rules' thresholds.

    Attributes:
        folders: Those that have to be watched while the run goes on.
        findings: What is wrong with it, and what was and is over; the worst first.
        lock: Who shares it holds it for a refresh.
        current: Whether the last refresh read all that there was.
    """

    def __init__(self, path: Place, limits: Limits = LIMITS) -> None:
        self.path = path
        self.folders = [path, *(path / table for table in Record.tables)]
        self.findings: tuple[Finding, ...] = ()
        self._limits = limits
        self.lock = threading.Lock()
        self.current = False
        self._run: Run | None = None
        self._rows: Rows[Record] | None = None
        self._seen: object = None

    def refresh(self, progress: Progress | None = None) -> Evidence | None:
        """Read what is new; what is known now, or None where nothing has changed or there is no run yet.

        Raises:
            LogError: the run cannot be read.
        """
        self.current = False
        if not holds_run(self.path):
            return None
        run = open_run(self.path)
        if self._run is None or run.info["run_id"] != self._run.info["run_id"]:
            self._run, self._rows, self.findings = run, None, ()
        if self._rows is None:
            self._rows, self._seen = Rows(self.path, partial(Record, run)), None
        # The state first: rows that are published before a run closes are then read before it shows as closed.
        states = rank_states(self.path)
        now, silent = overall(states), tuple(stopped(states))
        record = self._rows.kept
        try:
            new = self._rows.read(progress)
        except FileNotFoundError:
            self._seen = None
            return None
        self.current = True
        problems, complete = self._rows.problems, self._rows.complete(now)
        if not new and self._seen == (now, silent, problems, complete):
            return None
        self._seen = now, silent, problems, complete
        summaries = closed_summaries(self.path)
        evidence = self._rows.kept.evidence(
            name=run.name,
            state=now,
            dropped=sum(sum(summary.get("rows_dropped", {}).values()) for summary in summaries),
            reasons=tuple(str(summary["reason"]) for summary in summaries if summary.get("reason")),
            silent=silent,
            problems=problems,
            complete=complete,
        )
        # What an abandoned attempt had is not this one's past.
        self._find(evidence, past=self.findings if self._rows.kept is record else ())
        if evidence.over:
            # Of hundreds of runs, most have ended. One that is resumed is read again.
            self._rows = None
        return evidence

    def _find(self, evidence: Evidence, past: tuple[Finding, ...]) -> None:
        found = findings(evidence, self._limits)
        kinds = {finding.kind for finding in found}
        over = [dataclasses.replace(finding, over=True) for finding in past if finding.kind not in kinds]
        self.findings = tuple(sorted([*found, *over], key=rank))
