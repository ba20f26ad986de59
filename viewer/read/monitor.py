"""Follows a run for its findings: what is wrong with it now, and what was.

It has followers of its own, so that figures need not wait for it, and need not be of what rules look at.
"""

import dataclasses
import math
import threading
from collections.abc import Sequence
from functools import partial

import polars as pl

from tracer.log import store
from tracer.log.run import State, closed_summaries, holds_run, open_run, overall, rank_states, stopped
from tracer.log.store import Place
from viewer.read.follow import Progress, Rows
from viewer.rules.evidence import Evidence, Record
from viewer.rules.findings import LIMITS, Limits, findings
from viewer.snapshot import Finding


class FindingsMonitor:
    """Follows one run for its findings. Several figures share it, whatever they show: it is read once for all of them.

    Of one rank, findings are those of what it wrote, as curves are: of a metric that another one logged, nothing is
    known. How the run is as a whole, and which ranks are silent, is so for each of its ranks.

    Args:
        path: The run's folder.
        limits: The rules' thresholds.
        rank: Only this rank's findings; None for those of all.

    Attributes:
        folders: Those that have to be watched while the run goes on.
        findings: What is wrong with it, and what was and is over; the worst first.
        rank: Of which rank they are; None where of all.
        lock: Who shares it holds it for a refresh.
        current: Whether the last refresh read all that there was.
        run_id: Which run the findings are of: after a deleted one, another may be in the same folder.
    """

    def __init__(self, path: Place, limits: Limits = LIMITS, rank: int | None = None) -> None:
        self.path = path
        self.rank = rank
        self.folders = [path, *(path / table for table in Record.tables)]
        self.findings: tuple[Finding, ...] = ()
        self._limits = limits
        self.lock = threading.Lock()
        self.current = False
        self.run_id: str | None = None
        self._rows: Rows[Record] | None = None
        self._begins: pl.DataFrame | None = None
        self._seen: object = None
        # How a run that has ended was left.
        self._left: object = None

    def refresh(self, progress: Progress | None = None) -> Evidence | None:
        """Read what is new; what is known now, or None where nothing has changed or there is no run yet.

        Raises:
            LogError: the run cannot be read.
        """
        self.current = False
        if not holds_run(self.path):
            return None
        run = open_run(self.path)
        if run.info["run_id"] != self.run_id:
            self._rows, self._begins, self._seen, self._left = None, None, None, None
            self.findings = ()
            self.run_id = run.info["run_id"]
        # The state first: rows that are published before a run closes are then read before it shows as closed.
        states = rank_states(self.path)
        now, silent = overall(states), tuple(stopped(states))
        if self._rows is None:
            if self._left is not None and self._left == self._leave(now, silent):
                self.current = True
                return None
            self._rows = Rows(self.path, partial(Record, run), self.rank)
        # Where this is interrupted, what was read is not looked at yet.
        seen, self._seen = self._seen, None
        try:
            new = self._rows.read(progress)
        except FileNotFoundError:
            return None
        self.current = True
        problems, complete = self._rows.problems, self._rows.complete(now)
        known = now, silent, problems, complete
        if not new and seen == known:
            self._seen = known
            return None
        summaries = [each for each in closed_summaries(self.path) if self.rank in (None, each["rank"])]
        evidence = self._rows.kept.evidence(
            name=run.name,
            state=now,
            dropped=self._rows.dropped(summaries),
            reasons=tuple(str(summary["reason"]) for summary in summaries if summary.get("reason")),
            silent=silent,
            problems=problems,
            complete=complete,
        )
        self._find(evidence, self._past(self._rows.begins))
        self._seen = known
        if evidence.over:
            # Of hundreds of runs, most have ended. One that is resumed is read again.
            self._rows, self._seen, self._left = None, None, self._leave(now, silent)
        return evidence

    def _leave(self, now: State, silent: tuple[int, ...]) -> object:
        return now, silent, [store.inner_names(self.path, table) for table in Record.tables]

    def _past(self, begins: pl.DataFrame) -> list[Finding]:
        """The findings until now, without those of steps that attempts have abandoned since."""
        new = begins if self._begins is None else begins.join(self._begins, on=begins.columns, how="anti")
        self._begins = begins
        since = min(new["step"], default=math.inf)
        return [finding for finding in self.findings if finding.last_step < since]

    def _find(self, evidence: Evidence, past: Sequence[Finding]) -> None:
        found = findings(evidence, self._limits)
        kinds = {finding.kind for finding in found}
        over = [dataclasses.replace(finding, over=True) for finding in past if finding.kind not in kinds]
        self.findings = tuple(sorted([*found, *over], key=lambda finding: finding.order))
