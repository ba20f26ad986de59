"""Follows a run for its findings: those that hold now, and those that did.

It reads the run by itself, so that no figure waits for findings, and each figure reads only what it shows.
"""

import dataclasses
import math
import threading
from collections.abc import Sequence

import polars as pl

from tracer.log.place import Place
from tracer.log.ranks import closed_summaries
from tracer.log.run import Run, holds_run
from viewer.read.follow import Progress
from viewer.read.run import FollowedRun, News, PartGoneError
from viewer.read.waker import Waker
from viewer.rules.evidence import Evidence, Record
from viewer.rules.findings import LIMITS, findings
from viewer.rules.rule import Limits
from viewer.snapshot import Finding


class FindingsMonitor:
    """Follows one run for its findings. Several figures share it, whatever view they show: it reads the run once.

    The findings of one rank come from what that rank wrote: it knows nothing of a metric that another rank logged. The
    state of the run, and which ranks are silent, are the same for all of its ranks.

    Args:
        path: The run's folder.
        limits: The rules' thresholds.
        rank: Only this rank's findings; None for those of all.
        waker: Watches the run's folders while it goes on.

    Attributes:
        findings: Those that hold now, and those that did, the worst first.
        rank: The rank whose findings they are; None for those of all ranks.
        lock: Held during a refresh, where several threads share it.
        current: Whether the last refresh read everything.
        run_id: The run whose findings they are: another run may have taken the place of a deleted one.
    """

    def __init__(
        self, path: Place, limits: Limits = LIMITS, rank: int | None = None, waker: Waker | None = None
    ) -> None:
        self.path = path
        self.rank = rank
        self.findings: tuple[Finding, ...] = ()
        self.lock = threading.Lock()
        self.current = False
        self.run_id: str | None = None
        self._limits = limits
        self._followed = FollowedRun(path, self._record, Record.tables, rank, waker)
        self._begins: pl.DataFrame | None = None

    def _record(self, run: Run) -> Record:
        if run.info["run_id"] != self.run_id:
            self.run_id, self.findings, self._begins = run.info["run_id"], (), None
        return Record(run)

    def refresh(self, progress: Progress | None = None) -> Evidence | None:
        """Read what is new, and give the evidence; None where nothing has changed, or there is no run yet.

        Raises:
            LogError: the run cannot be read.
        """
        self.current = False
        if not holds_run(self.path):
            self._followed.watch()
            return None
        try:
            evidence = self._followed.refresh(self._examined, progress)
        except PartGoneError:
            return None
        self.current = True
        return evidence

    def _examined(self, news: News[Record]) -> Evidence:
        summaries = [summary for summary in closed_summaries(self.path) if self.rank in (None, summary["rank"])]
        evidence = news.kept.evidence(
            state=news.state,
            dropped=news.rows.dropped(summaries),
            reasons=tuple(str(summary["reason"]) for summary in summaries if summary.get("reason")),
            silent=news.stopped_ranks,
            problems=news.problems,
            complete=news.complete,
        )
        self._find(evidence, self._past(news.rows.begins))
        if evidence.ended:
            # A folder may hold hundreds of runs that have ended.
            self._followed.leave()
        return evidence

    def _past(self, begins: pl.DataFrame) -> list[Finding]:
        """Give the findings until now, without those of steps that have been abandoned since."""
        new = begins if self._begins is None else begins.join(self._begins, on=begins.columns, how="anti")
        self._begins = begins
        since = min(new["step"], default=math.inf)
        return [finding for finding in self.findings if finding.last_step < since]

    def _find(self, evidence: Evidence, past: Sequence[Finding]) -> None:
        present = findings(evidence, self._limits)
        kinds = {finding.kind for finding in present}
        resolved = [dataclasses.replace(finding, resolved=True) for finding in past if finding.kind not in kinds]
        self.findings = tuple(sorted([*present, *resolved], key=lambda finding: finding.order))
