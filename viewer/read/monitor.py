"""Follows a run for its findings: those that hold now, and those that did.

It reads the run by itself, so that no figure waits for findings, and each figure reads only what it shows.
"""

import dataclasses
import math
import threading
from collections.abc import Sequence
from functools import partial

import polars as pl

from tracer.log.place import Place
from tracer.log.ranks import closed_summaries
from tracer.log.run import Run, holds_run
from viewer.read.batches import Batches
from viewer.read.follow import Progress, Rows
from viewer.read.run import FollowedRun, News, PartGoneError
from viewer.read.waker import Waker
from viewer.rules.evidence import Evidence, Record
from viewer.rules.findings import LIMITS, OF_LOG, findings
from viewer.rules.rule import Limits
from viewer.snapshot import Finding, Severity

# So many restarts are looked back at: each takes as long as to read the run.
_RESTARTS = 5


class FindingsMonitor:
    """Follows one run for its findings. Several figures share it, whatever view they show: it reads the run once.

    The findings of one rank come from what that rank wrote: it knows nothing of a metric that another rank logged. The
    state of the run, and which ranks are silent, are the same for all of its ranks.

    Args:
        path: The run's folder.
        limits: The rules' thresholds.
        rank: Only this rank's findings; None for those of all.
        waker: Watches the run's folders while it goes on.
        attempt: The attempt that is seen as the latest one; None for the latest.
        named: The regular expressions of ``Evidence`` that say which metrics are losses, and which accuracies.

    Attributes:
        findings: Those that hold now, and those that did, the worst first.
        rank: The rank whose findings they are; None for those of all ranks.
        lock: Held during a refresh, where several threads share it.
        current: Whether the last refresh read everything.
        run_id: The run whose findings they are: another run may have taken the place of a deleted one.
    """

    def __init__(
        self,
        path: Place,
        limits: Limits = LIMITS,
        rank: int | None = None,
        waker: Waker | None = None,
        attempt: int | None = None,
        named: tuple[str, str] = ("", ""),
    ) -> None:
        self.path = path
        self.rank = rank
        self.findings: tuple[Finding, ...] = ()
        self.lock = threading.Lock()
        self.current = False
        self.run_id: str | None = None
        self._limits = limits
        self._named = named
        self._followed = FollowedRun(path, self._record, Record.tables, rank, waker, attempt)
        self._begins: pl.DataFrame | None = None
        self._batches = Batches()
        # What was wrong before each restart, by its attempt.
        self._given_up: dict[int, tuple[Finding, ...]] = {}

    def _record(self, run: Run) -> Record:
        if run.info["run_id"] != self.run_id:
            self.run_id, self.findings, self._begins = run.info["run_id"], (), None
            self._given_up, self._batches = {}, Batches()
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
        loss, accuracy = self._named
        evidence = news.kept.evidence(
            loss=loss,
            accuracy=accuracy,
            state=news.state,
            dropped=news.rows.dropped(summaries),
            reasons=tuple(str(summary["reason"]) for summary in summaries if summary.get("reason")),
            silent=news.stopped_ranks,
            problems=news.problems,
            complete=news.complete,
        )
        evidence = dataclasses.replace(evidence, batches=partial(self._batches.at, news.rows, evidence))
        self._look_back(news)
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
        return [finding for finding in self.findings if finding.restart is None and finding.last_step < since]

    def _look_back(self, news: News[Record]) -> None:
        """Find what was wrong with the steps that the newest restarts have given up."""
        restarts = news.rows.begins.group_by("attempt").agg(pl.col("step").min()).sort("attempt").tail(_RESTARTS)
        for attempt, step in restarts.iter_rows():
            if attempt in self._given_up:
                continue
            rows = Rows(self.path, partial(Record, news.run), self.rank, attempt - 1)
            try:
                rows.read()
            except FileNotFoundError as error:
                raise PartGoneError from error
            evidence = rows.kept.evidence()
            evidence = dataclasses.replace(evidence, batches=partial(Batches().at, rows, evidence))
            before = findings(evidence, self._limits)
            self._given_up[attempt] = tuple(
                dataclasses.replace(
                    finding,
                    resolved=True,
                    restart=step,
                    sentence=f"Before the restart at step {step:,}: {finding.sentence}",
                )
                for finding in before
                if finding.last_step >= step and finding.severity is not Severity.NOTE and finding.kind not in OF_LOG
            )

    def _find(self, evidence: Evidence, past: Sequence[Finding]) -> None:
        present = findings(evidence, self._limits)
        kinds = {finding.kind for finding in present}
        resolved = [dataclasses.replace(finding, resolved=True) for finding in past if finding.kind not in kinds]
        # What began before the part that was given up, and still holds, is said once.
        given_up = [
            finding
            for found in self._given_up.values()
            for finding in found
            if finding.kind not in kinds or finding.first_step >= (finding.restart or 0)
        ]
        self.findings = tuple(sorted([*present, *resolved, *given_up], key=lambda finding: finding.order))
