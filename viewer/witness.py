"""Follows a run for its findings: what is wrong with it now, and what was."""

import dataclasses
import threading
from functools import partial

from tracer.log.run import Run, closed_summaries, holds_run, open_run, overall, rank_states, stopped
from tracer.log.store import Place
from viewer.evidence import Evidence, Record
from viewer.findings import LIMITS, Finding, Limits, findings, worst_first
from viewer.follow import Progress, Rows


class Witness:
    """Follows one run for its findings. Several threads may share it: what one has read, the others need not read.

    Args:
        path: The run's folder.
        limits: The rules' thresholds.

    Attributes:
        folders: Those that have to be watched while the run goes on.
        findings: What is wrong with it, and what was and is over; the worst first.
    """

    def __init__(self, path: Place, limits: Limits = LIMITS) -> None:
        self.path = path
        self.folders = [path, *(path / table for table in Record.tables)]
        self.findings: tuple[Finding, ...] = ()
        self._limits = limits
        self._lock = threading.Lock()
        self._run: Run | None = None
        self._seen: object = None

    def refresh(self, progress: Progress | None = None) -> Evidence | None:
        """Read what is new; what is known now, or None where nothing has changed, or there is no run yet.

        None, too, where another thread reads at this moment.

        Raises:
            LogError: the run cannot be read.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return self._refresh(progress)
        finally:
            self._lock.release()

    def _refresh(self, progress: Progress | None) -> Evidence | None:
        if not holds_run(self.path):
            return None
        run = open_run(self.path)
        if self._run is None or run.info["run_id"] != self._run.info["run_id"]:
            self._run, self._seen = run, None
            self._rows = Rows(self.path, partial(Record, run))
            self.findings = ()
        # The state first: rows that are published before a run closes are then read before it shows as closed.
        states = rank_states(self.path)
        now, silent = overall(states), tuple(stopped(states))
        record = self._rows.kept
        try:
            new = self._rows.read(progress)
        except FileNotFoundError:
            self._seen = None
            return None
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
        return evidence

    def _find(self, evidence: Evidence, past: tuple[Finding, ...]) -> None:
        found = findings(evidence, self._limits)
        kinds = {finding.kind for finding in found}
        over = [dataclasses.replace(finding, over=True) for finding in past if finding.kind not in kinds]
        self.findings = tuple(worst_first([*found, *over]))
