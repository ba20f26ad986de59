"""Follows a run for its findings: what is wrong with it now, and what was.

It has followers of its own, so that figures need not wait for it, and need not be of what rules look at.
"""

import dataclasses
import math
import threading
from collections.abc import Sequence

import polars as pl

from tracer.log.run import Run, closed_summaries, holds_run
from tracer.log.store import Place
from viewer.read.follow import Progress
from viewer.read.run import FollowedRun, News, PartGoneError
from viewer.read.waker import Waker
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
        waker: Watches the run's folders while it goes on.

    Attributes:
        findings: What is wrong with it, and what was and is over; the worst first.
        rank: Of which rank they are; None where of all.
        lock: Who shares it holds it for a refresh.
        current: Whether the last refresh read all that there was.
        run_id: Which run the findings are of: after a deleted one, another may be in the same folder.
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
        """Read what is new; what is known now, or None where nothing has changed or there is no run yet.

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
        summaries = [each for each in closed_summaries(self.path) if self.rank in (None, each["rank"])]
        evidence = news.kept.evidence(
            name=news.run.name,
            state=news.state,
            dropped=news.rows.dropped(summaries),
            reasons=tuple(str(summary["reason"]) for summary in summaries if summary.get("reason")),
            silent=news.stopped_ranks,
            problems=news.problems,
            complete=news.complete,
        )
        self._find(evidence, self._past(news.rows.begins))
        if evidence.over:
            # Of hundreds of runs, most have ended.
            self._followed.leave()
        return evidence

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
