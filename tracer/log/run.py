"""A run's folder: creating and opening it, run.json, heartbeat, closed mark, and whether it is still being written."""

import contextlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tracer.log import schema

State = Literal["running", "closed", "stopped"]

# The daemon renews the heartbeat every second or so; a machine that swaps or a slow network disk may delay it.
HEARTBEAT_STALE_SECONDS = 20.0

HOLDS_A_RUN = "{path} already holds a run: give another path, or attach with resume=True to go on with it"

_REQUIRED = {
    "run_id": str,
    "started": str,
    "host": str,
    "model": str,
    "params": list,
    "settings": dict,
    "versions": dict,
}
_RANK_FILE = re.compile(r"(heartbeat|closed)-r(\d{5,})(?:\.json)?")


class LogError(Exception):
    """A run that cannot be created, opened or read, in a sentence that says what to do next."""


@dataclass(frozen=True)
class Run:
    """A run's folder and the content of its run.json."""

    path: Path
    info: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name


def create_run(path: Path, info: Mapping[str, Any]) -> Run:
    """Make a run's folders and write its run.json.

    Args:
        path: The run's folder; it may exist as long as it holds no run.
        info: What run.json shall say beside the format version, the run id, the start time and the host.

    Raises:
        LogError: the folder holds a run, which another process may have made at this moment, is not a folder, or cannot
            be written.
    """
    prepare_folders(path)
    run_id = uuid.uuid4().hex
    full = {
        "format": schema.FORMAT,
        "run_id": run_id,
        "started": datetime.now(UTC).isoformat(),
        "host": socket.gethostname(),
        **info,
    }
    staged = path / "staging" / f"run-{run_id}.json"
    try:
        if holds_run(path):
            raise FileExistsError(path)
        _write_json(staged, full)
        _rename_first(staged, path / "run.json")
    except FileExistsError as error:
        raise LogError(HOLDS_A_RUN.format(path=path)) from error
    except OSError as error:
        raise LogError(f"{path} cannot be written: {error.strerror}; give a path that can be written") from error
    finally:
        with contextlib.suppress(OSError):
            staged.unlink()
    return Run(path, full)


def _rename_first(source: Path, target: Path) -> None:
    """Rename, or raise ``FileExistsError`` where another process was faster."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        # This disk knows no hard links, so two processes at the same moment would go unnoticed.
        os.replace(source, target)


def prepare_folders(path: Path, tables: Iterable[str] = schema.ALWAYS) -> None:
    """Make a run's folders where they are missing: one for each of these tables, and what parts are staged in.

    Raises:
        LogError: ``path`` is a file, or cannot be made.
    """
    try:
        for folder in (*tables, "staging"):
            (path / folder).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise LogError(f"{path} cannot be a run's folder: {error.filename} is a file; give another path") from error
    except OSError as error:
        raise LogError(f"{path} cannot be made: {error.strerror}; give a path that can be written") from error


def holds_run(path: Path) -> bool:
    """Whether a folder holds a run, of this or any format version."""
    return (path / "run.json").is_file()


def open_run(path: Path) -> Run:
    """Open a run that exists.

    Raises:
        LogError: there is no run, its run.json cannot be read, or its format is newer than this reader's.
    """
    try:
        info = json.loads((path / "run.json").read_text(encoding="utf-8"))
        version = int(info["format"])
        if version <= schema.FORMAT:
            _check(info)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LogError(f"{path} holds no run: it has no run.json; is the path right?") from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise LogError(f"{path / 'run.json'} cannot be read ({error}); is {path} a run's folder?") from error
    if version > schema.FORMAT:
        raise LogError(
            f"{path} has log format {version}, and this gradwatch reads formats up to {schema.FORMAT}: "
            "upgrade gradwatch to read it"
        )
    return Run(path, info)


def _check(info: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where a reader could not rely on what a run.json says."""
    for name, kind in _REQUIRED.items():
        if not isinstance(info.get(name), kind):
            raise ValueError(f"it lacks {name}, or its {name} is no {kind.__name__}")
    datetime.fromisoformat(info["started"])
    if not all(isinstance(param, dict) and isinstance(param.get("name"), str) for param in info["params"]):
        raise ValueError("one of its params has no name")
    for name, kinds in (("stats", list), ("total_steps", int), ("every", int), ("fold", int), ("budget", float)):
        if not isinstance(info["settings"].get(name), kinds | None):
            raise ValueError(f"{name} in its settings is no {kinds.__name__}")


def newest_run(folder: Path) -> Path | None:
    """The run under ``folder`` that was started last; None where there is none."""
    runs = [path.parent for path in folder.glob("*/run.json")]
    return max(runs, key=lambda path: (path / "run.json").stat().st_mtime, default=None)


def beat(path: Path, rank: int) -> None:
    """Renew a rank's heartbeat."""
    heartbeat = path / f"heartbeat-r{rank:05d}"
    try:
        os.utime(heartbeat)
    except FileNotFoundError:
        heartbeat.write_text(f"{socket.gethostname()} {os.getpid()}\n", encoding="utf-8")


def close_rank(path: Path, rank: int, summary: Mapping[str, Any]) -> None:
    """Write a rank's closed mark."""
    name = f"closed-r{rank:05d}.json"
    _write_json(path / "staging" / name, {"closed": datetime.now(UTC).isoformat(), "rank": rank, **summary})
    os.replace(path / "staging" / name, path / name)


def reopen_rank(path: Path, rank: int) -> None:
    """Take back a rank's closed mark and its heartbeat, since the rank goes on.

    Raises:
        LogError: another live process on this machine is writing as this rank.
    """
    heartbeat = path / f"heartbeat-r{rank:05d}"
    if not _closed(path, rank) and _age_seconds(heartbeat) < HEARTBEAT_STALE_SECONDS and _owner_lives(heartbeat):
        raise LogError(f"{path} is being written by {heartbeat.read_text().strip()!r} (host, pid): end that first")
    (path / f"closed-r{rank:05d}.json").unlink(missing_ok=True)
    heartbeat.unlink(missing_ok=True)


def _owner_lives(heartbeat: Path) -> bool:
    host, _, pid = heartbeat.read_text(encoding="utf-8").strip().rpartition(" ")
    if host != socket.gethostname() or not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It is somebody else's, but it lives.
        pass
    return True


def ranks(path: Path) -> list[int]:
    """The ranks that have written into a run, ascending."""
    found = {int(match[2]) for name in _names(path) if (match := _RANK_FILE.fullmatch(name))}
    return sorted(found)


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def state(path: Path) -> State:
    """Whether a run is ``running``, ``closed``, or ``stopped`` without closing.

    A run is closed when every rank has closed, and running while any rank that has not closed has a fresh heartbeat.
    """
    unclosed = [rank for rank in ranks(path) if not _closed(path, rank)]
    if not unclosed:
        return "closed" if ranks(path) else "stopped"
    ages = [_age_seconds(path / f"heartbeat-r{rank:05d}") for rank in unclosed]
    return "running" if min(ages) < HEARTBEAT_STALE_SECONDS else "stopped"


STATE_WORDS: dict[State, str] = {"running": "running", "closed": "closed", "stopped": "stopped without closing"}


def _closed(path: Path, rank: int) -> bool:
    return (path / f"closed-r{rank:05d}.json").exists()


def _age_seconds(heartbeat: Path) -> float:
    try:
        return time.time() - heartbeat.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def closed_summaries(path: Path) -> list[dict[str, Any]]:
    """What each closed rank wrote when it closed.

    Raises:
        LogError: a closed mark cannot be read.
    """
    summaries = []
    for rank in ranks(path):
        mark = path / f"closed-r{rank:05d}.json"
        try:
            summary = json.loads(mark.read_text(encoding="utf-8"))
            counts = [*summary.get("rows_dropped", {}).values(), *summary.get("published", {}).values()]
            if not all(isinstance(number, int) for number in (summary["rank"], *counts)):
                raise ValueError("what should be numbers in it are none")
            summaries.append(summary)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LogError(f"{mark} cannot be read ({error}): delete it if the run has ended") from error
    return summaries


def published_counts(path: Path, table: str) -> dict[int, int]:
    """How many publish numbers of a table each closed rank used, by rank.

    Raises:
        LogError: a closed mark cannot be read.
    """
    return {summary["rank"]: summary.get("published", {}).get(table, 0) for summary in closed_summaries(path)}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
