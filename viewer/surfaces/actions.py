"""A user's command for each new finding: ``viewer check --on-finding``."""

import os
import subprocess
import sys
from collections.abc import Iterable

from tracer.log.text import plain
from viewer.snapshot import Finding, Severity, Snapshot

# Its number, as a command gets it.
_STANDARD_ERROR = 2


class Actions:
    """Runs a command once for each finding, while others are looked for.

    Args:
        command: A command line for the shell. What a log holds reaches it as environment variables alone.
        least: How bad a finding has to be.
    """

    def __init__(self, command: str, least: Severity) -> None:
        self._command = command
        self._severities = list(Severity)[: list(Severity).index(least) + 1]
        self._known: set[tuple[object, ...]] = set()
        self._running: list[subprocess.Popen[bytes]] = []

    def look(self, snapshots: Iterable[Snapshot]) -> None:
        """Run the command for what is new in these runs."""
        for snapshot in snapshots:
            for finding in snapshot.findings:
                # What a finding is; its steps and parameters grow while it goes on.
                key = snapshot.name, finding.kind, finding.severity, finding.numbers.get("metric"), finding.restart
                if finding.severity in self._severities and finding.restart is None and key not in self._known:
                    self._known.add(key)
                    self._start(snapshot, finding)

    def _start(self, snapshot: Snapshot, finding: Finding) -> None:
        said = {
            "RUN": snapshot.name,
            "STEP": str(finding.first_step),
            "KIND": finding.kind,
            "SEVERITY": finding.severity,
            "PARAM": finding.param or "",
            "TEXT": finding.sentence,
            "BATCH": " ".join(str(each.value) for each in finding.batches if each.name == finding.batches[0].name),
        }
        words = {f"GRADWATCH_{name}": plain(text).encode(errors="replace").decode() for name, text in said.items()}
        # Standard output is for what `check` itself says, which may be JSON.
        self._running.append(
            subprocess.Popen(  # noqa: S602 (the user's own command line)
                self._command, shell=True, env={**os.environ, **words}, stdin=subprocess.DEVNULL, stdout=_STANDARD_ERROR
            )
        )

    def wait(self) -> None:
        """Wait until all have ended; those that failed are told of."""
        for process in self._running:
            code = process.wait()
            if code:
                print(f"viewer: the command of --on-finding ended with {code}", file=sys.stderr)
        self._running.clear()
