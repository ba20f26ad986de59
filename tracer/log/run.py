"""A run's folder: creating and opening it, run.json, heartbeat, closed mark, and whether it is still being written."""

import contextlib
import json
import os
import re
import socket
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from tracer.log import schema, store
from tracer.log.store import Place

State = Literal["running", "closed", "stopped"]

# The daemon renews the heartbeat every five seconds; a machine that swaps or a slow network disk may delay it.
HEARTBEAT_STALE_SECONDS = 20.0
# How often a heartbeat is looked at whose renewal is waited for, and whether another process has reopened a rank.
_LOOK_SECONDS = 0.5
_TURN_SECONDS = 0.05

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
# What a count is below, so that it fits into a column.
_BEYOND_NUMBERS = 1 << 63
_RANK_FILE = re.compile(r"(heartbeat|closed)-r(\d{5,})(?:\.json)?")
_STAGED_FILE = re.compile(r"(?:.*-)?r(\d{5,})[-.].*")


class LogError(Exception):
    """A run that cannot be created, opened or read, in a sentence that says what to do next."""


@dataclass(frozen=True)
class Run:
    """A run's folder and the content of its run.json."""

    path: Place
    info: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name


def create_run(path: Place, info: Mapping[str, Any]) -> Run:
    """Make a run's folders and write its run.json.

    Args:
        path: The run's folder; it may exist as long as it holds no run.
        info: What run.json shall say beside the format version, the run id, the start time and the host.

    Raises:
        LogError: the folder holds a run, which another process may have made at this moment, is not a folder, or cannot
            be written.
    """
    prepare_folders(path)
    full = {
        "format": schema.FORMAT,
        "run_id": uuid.uuid4().hex,
        "started": datetime.now(UTC).isoformat(),
        "host": socket.gethostname(),
        **info,
    }
    _begin(path, path / "run.json", _json(full))
    return Run(path, full)


def _begin(path: Place, file: Place, content: bytes) -> None:
    """Write the first file of a run, or of a rank's part of it, or raise ``LogError``."""
    try:
        _claim(path, file, content)
    except FileExistsError as error:
        raise LogError(HOLDS_A_RUN.format(path=path)) from error
    except OSError as error:
        raise LogError(f"{path} cannot be written: {_reason(error)}; give a path that can be written") from error


def _claim(path: Place, file: Place, content: bytes) -> None:
    """Write a file, or raise ``FileExistsError`` where it is there, or another process writes it at this moment."""
    # Not every disk can tell that when the file gets its name.
    if store.exists(file):
        raise FileExistsError(file)
    with store.stage(path, f"{file.name.partition('.')[0]}-{uuid.uuid4().hex}") as staged:
        staged.write(content)
        staged.claim(file)


def _reason(error: OSError) -> str:
    return error.strerror or " ".join(str(error).split())


def prepare_folders(path: Place, tables: Iterable[str] = schema.ALWAYS) -> None:
    """Make a run's folders where they are missing: one for each of these tables, and what parts are staged in.

    Raises:
        LogError: ``path`` is a file, or cannot be made.
    """
    try:
        store.make_folders(path, (*tables, "staging"))
    except (FileExistsError, NotADirectoryError) as error:
        raise LogError(f"{path} cannot be a run's folder: {error.filename} is a file; give another path") from error
    except OSError as error:
        raise LogError(f"{path} cannot be made: {_reason(error)}; give a path that can be written") from error


def remake_folders(path: Place, tables: Iterable[str]) -> None:
    """Make again what somebody deleted of a run's folders; where the run itself was deleted, none."""
    if holds_run(path):
        store.remake_folders(path, (*tables, "staging"))


def holds_run(path: Place) -> bool:
    """Whether a folder holds a run, of this or any format version."""
    return store.exists(path / "run.json")


def open_run(path: Place) -> Run:
    """Open a run that exists.

    Raises:
        LogError: there is no run, its run.json cannot be read, or its format is newer than this reader's.
    """
    try:
        info = json.loads(store.read(path / "run.json"))
        version = int(info["format"])
        if version <= schema.FORMAT:
            _check(info)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LogError(f"{path} holds no run: it has no run.json; is the path right?") from error
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
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
    datetime.fromisoformat(info["started"]).timestamp()
    if not all(isinstance(param, dict) and isinstance(param.get("name"), str) for param in info["params"]):
        raise ValueError("one of its params has no name")
    for name, kinds in (("stats", list), ("total_steps", int), ("every", int), ("fold", int), ("budget", float)):
        value = info["settings"].get(name)
        if not isinstance(value, kinds | None) or (isinstance(value, int) and not 0 < value < _BEYOND_NUMBERS):
            raise ValueError(f"{name} in its settings is no {kinds.__name__} that it could be")


def runs_in(folder: Place) -> list[Place]:
    """The runs in a folder, in the order of their beginning."""
    return sorted(
        (path for path in store.folders(folder) if holds_run(path)), key=lambda path: (began(path), path.name)
    )


def began(path: Place) -> float:
    """When a run began, in seconds since 1970; 0 where there is none."""
    try:
        return store.modified(path / "run.json")
    except FileNotFoundError:
        return 0.0


def newest_run(folder: Place) -> Place | None:
    """The run in ``folder`` that was started last; None where there is none."""
    return next(reversed(runs_in(folder)), None)


def _heartbeat(path: Place, rank: int) -> Place:
    return path / f"heartbeat-r{rank:05d}"


def _closed_mark(path: Place, rank: int) -> Place:
    return path / f"closed-r{rank:05d}.json"


def beat(path: Place, rank: int) -> None:
    """Renew a rank's heartbeat."""
    store.touch(_heartbeat(path, rank), _owner())


def _owner() -> bytes:
    return f"{socket.gethostname()} {os.getpid()}\n".encode()


def close_rank(path: Place, rank: int, summary: Mapping[str, Any]) -> None:
    """Write a rank's closed mark."""
    mark = _closed_mark(path, rank)
    with store.stage(path, mark.name) as staged:
        staged.write(_json({"closed": datetime.now(UTC).isoformat(), "rank": rank, **summary}))
        staged.publish(mark)


def claim_rank(path: Place, rank: int) -> None:
    """Begin a rank's part of a run, with its first heartbeat.

    Raises:
        LogError: the rank has begun, maybe in another process at this moment, or nothing can be written.
    """
    _begin(path, _heartbeat(path, rank), _owner())


def reopen_rank(path: Place, rank: int) -> None:
    """Take back a rank's closed mark, and make its heartbeat this process's, since the rank goes on.

    Where a process of another machine was alive a moment ago, this waits until it is sure to be dead.

    Raises:
        LogError: another live process is writing as this rank, maybe since this moment.
    """
    heartbeat, closed = _heartbeat(path, rank), _closed(path, rank)
    seen = _beat_of(heartbeat)
    if not closed and time.time() - seen[1] < HEARTBEAT_STALE_SECONDS and _still_written(path, rank, *seen):
        raise _written_by(path, seen[0])
    with _turn(path, rank):
        now = _beat_of(heartbeat)
        # Who has reopened it since made the heartbeat its own first, and took back the closed mark then.
        if now[0] and (now != seen or (closed and not _closed(path, rank))):
            raise _written_by(path, now[0])
        store.remove(heartbeat)
        beat(path, rank)
        store.remove(_closed_mark(path, rank))
    clear_staging(path, rank)


def _beat_of(file: Place) -> tuple[str, float]:
    """Who wrote a heartbeat, and when; nobody, before everything else, where there is none."""
    with contextlib.suppress(FileNotFoundError):
        if store.exists(file):
            return store.read(file).decode(errors="replace").strip(), store.modified(file)
    return "", float("-inf")


def _written_by(path: Place, owner: str) -> LogError:
    return LogError(f"{path} is being written by {owner!r} (host, pid): end that first")


@contextlib.contextmanager
def _turn(path: Place, rank: int) -> Iterator[None]:
    """Within the block no other process reopens this rank."""
    lock = path / "staging" / f"reopening-r{rank:05d}.lock"
    give_up = time.monotonic() + HEARTBEAT_STALE_SECONDS
    while True:
        try:
            _claim(path, lock, _owner())
            break
        except FileExistsError:
            # It is held for a moment, but by a process that died in that moment.
            owner, _ = _beat_of(lock)
            if time.monotonic() > give_up or (owner and _lives(owner) is False):
                store.remove(lock)
            time.sleep(_TURN_SECONDS)
    try:
        yield
    finally:
        store.remove(lock)


def clear_staging(path: Place, rank: int) -> list[str]:
    """Delete what a process that died was writing as this rank; the names of what was deleted."""
    cleared = []
    for name in sorted(store.inner_names(path, "staging")):
        match = _STAGED_FILE.fullmatch(name)
        # run.json is written by rank 0, before anything has a rank in its name.
        owner = int(match[1]) if match else 0
        # Another process may be merging this rank's parts at this moment.
        if owner == rank and _age_seconds(path / "staging" / name) > HEARTBEAT_STALE_SECONDS:
            store.remove(path / "staging" / name)
            cleared.append(name)
    return cleared


def _still_written(path: Place, rank: int, owner: str, beaten: float) -> bool:
    """Whether a heartbeat's process lives; one of another machine has time to show it until its heartbeat is stale."""
    lives = _lives(owner)
    if lives is not None:
        return lives
    seconds, host = HEARTBEAT_STALE_SECONDS, owner.rpartition(" ")[0]
    print(f"gradwatch waits up to {seconds:.0f} s: is {path} still being written on {host}?", file=sys.stderr)
    # By this machine's clock alone: the other's may be ahead.
    stale = time.monotonic() + seconds
    while time.monotonic() < stale and not _closed(path, rank):
        time.sleep(_LOOK_SECONDS)
        if _modified(_heartbeat(path, rank)) > beaten:
            return True
    return False


def _lives(owner: str) -> bool | None:
    """Whether this is a living process, and another one than ours; None where it is of another machine."""
    host, _, pid = owner.rpartition(" ")
    if not pid.isdecimal():
        return False
    if host != socket.gethostname():
        return None
    try:
        number = int(pid)
        os.kill(number, 0)
    except PermissionError:
        # It is somebody else's, but it lives.
        return True
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    return number not in (0, os.getpid())


def ranks(path: Place) -> list[int]:
    """The ranks that have written into a run, ascending."""
    return _ranks(store.names(path))


def _ranks(names: Iterable[str]) -> list[int]:
    return sorted({int(match[2]) for name in names if (match := _RANK_FILE.fullmatch(name))})


def state(path: Place) -> State:
    """Whether a run is ``running``, ``closed``, or ``stopped`` without closing.

    A run is closed when every rank has closed, and running while any rank that has not closed has a fresh heartbeat.
    """
    return overall(rank_states(path))


def overall(states: Mapping[int, State]) -> State:
    """The state of a run of whose ranks these are the states."""
    found = set(states.values())
    if found == {"closed"}:
        return "closed"
    return "running" if "running" in found else "stopped"


def stopped(states: Mapping[int, State]) -> list[int]:
    """The ranks that have stopped without closing, ascending."""
    return [rank for rank, found in states.items() if found == "stopped"]


def rank_states(path: Place) -> dict[int, State]:
    """How each rank is that has written into a run, by rank, ascending."""
    # One look at the folder: each further one is a request, where it is far away.
    written = store.written(path)
    found: dict[int, State] = {}
    for rank in _ranks(written):
        beat = _heartbeat(path, rank)
        if _closed_mark(path, rank).name in written:
            found[rank] = "closed"
        elif beat.name in written and _beat_age_seconds(beat, written[beat.name]) < HEARTBEAT_STALE_SECONDS:
            found[rank] = "running"
        else:
            found[rank] = "stopped"
    return found


STATE_WORDS: dict[State, str] = {"running": "running", "closed": "closed", "stopped": "stopped without closing"}


# What this process has seen of heartbeats: when each was written, since when it is known by our clock, and whether it
# came after another one.
_seen_beats: dict[Place, tuple[float, float, bool]] = {}


def _beat_age_seconds(beat: Place, written: float) -> float:
    """How long ago a heartbeat was written; once another one was seen, no two machines' clocks need to agree."""
    now = time.monotonic()
    seen = _seen_beats.get(beat)
    if seen is None or seen[0] != written:
        seen = _seen_beats[beat] = written, now, seen is not None and written > seen[0]
    _, since, renewed = seen
    return now - since if renewed else max(now - since, time.time() - written)


def _closed(path: Place, rank: int) -> bool:
    return store.exists(_closed_mark(path, rank))


def _age_seconds(file: Place) -> float:
    return time.time() - _modified(file)


def _modified(file: Place) -> float:
    """When a file was written last; before everything else, where there is none."""
    try:
        return store.modified(file)
    except FileNotFoundError:
        return float("-inf")


def closed_summaries(path: Place) -> list[dict[str, Any]]:
    """What each closed rank wrote when it closed.

    Raises:
        LogError: a closed mark cannot be read.
    """
    summaries = []
    for rank in ranks(path):
        mark = _closed_mark(path, rank)
        try:
            summary = json.loads(store.read(mark))
            counts = [*summary.get("rows_dropped", {}).values(), *summary.get("published", {}).values()]
            if summary["rank"] != rank:
                raise ValueError("it is another rank's")
            if not all(isinstance(number, int) and 0 <= number < _BEYOND_NUMBERS for number in counts):
                raise ValueError("what should be numbers in it are none")
            summaries.append(summary)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LogError(f"{mark} cannot be read ({error}): delete it if the run has ended") from error
    return summaries


def published_counts(path: Place, table: str) -> dict[int, int]:
    """How many publish numbers of a table each closed rank used, by rank.

    Raises:
        LogError: a closed mark cannot be read.
    """
    return {summary["rank"]: summary.get("published", {}).get(table, 0) for summary in closed_summaries(path)}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
