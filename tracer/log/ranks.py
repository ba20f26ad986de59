"""The ranks that write into a run: whether each is alive, how it closes, and how a later process goes on as it."""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from tracer.log import schema, system
from tracer.log.place import Place
from tracer.log.run import BEYOND_COUNTS, LogError, as_json, begin, claim, host_name
from tracer.log.text import plain, reason, say

State = Literal["running", "closed", "stopped"]
STATE_WORDS: dict[State, str] = {"running": "running", "closed": "closed", "stopped": "stopped without closing"}

# The daemon renews the heartbeat every five seconds; a machine that swaps or a slow network disk may delay it.
_MOVES_SECONDS = 6.0
HEARTBEAT_STALE_SECONDS = 20.0
# The clocks of two machines, or of a file server, may differ so much: what seems older is not waited for.
_CLOCKS_DIFFER_SECONDS = 3600.0
# How often to look whether a heartbeat was renewed, and whether another process has finished reopening a rank.
_LOOK_SECONDS = 0.5
_TURN_SECONDS = 0.05
# How long another rank may take to replace a run. The disk of another machine may show it late.
_REPLACED_SECONDS = 60.0

_RANK_FILE = re.compile(r"heartbeat-r(0\d{4}|[1-9]\d{4,9})|closed-r(0\d{4}|[1-9]\d{4,9})\.json", re.ASCII)
_STAGED_FILE = re.compile(r"(?:.*-)?r(\d{5,})[-.].*")
_NEVER = float("-inf")

# The heartbeats that this process has seen: when each was written, since when our clock knows it, and whether it
# followed an earlier one.
_seen_beats: dict[Place, tuple[float, float, bool]] = {}


def _heartbeat(rank: int) -> str:
    return f"heartbeat-r{rank:05d}"


def _closed_mark(rank: int) -> str:
    return f"closed-r{rank:05d}.json"


def beat(path: Place, rank: int) -> None:
    """Renew a rank's heartbeat."""
    (path / _heartbeat(rank)).renew(_this_process())


def owner(path: Place, rank: int) -> str:
    """The process that a rank's heartbeat names; empty if there is none."""
    return _beat_of(path / _heartbeat(rank))[0]


def _this_process() -> bytes:
    return f"{host_name()} {os.getpid()}\n{system.pid_space()}\n".encode()


def close_rank(path: Place, rank: int, summary: Mapping[str, Any]) -> None:
    """Write a rank's closed mark."""
    mark = _closed_mark(rank)
    with path.stage(mark) as staged:
        staged.write(as_json({"closed": datetime.now(UTC).isoformat(), "rank": rank, **summary}))
        staged.publish(mark)


def claim_rank(path: Place, rank: int) -> None:
    """Begin a rank's part of a run, with its first heartbeat.

    Raises:
        LogError: the rank has begun, maybe in another process at this moment, or nothing can be written.
    """
    begin(path, _heartbeat(rank), _this_process())


def reopen_rank(path: Place, rank: int) -> None:
    """Go on as a rank: make its heartbeat this process's, and delete its closed mark.

    If a process of another machine was alive within the hour, this waits until that one is sure to be dead.

    Raises:
        LogError: another live process is writing as this rank, maybe since this moment.
    """
    heartbeat, mark = path / _heartbeat(rank), path / _closed_mark(rank)
    closed = mark.file_exists()
    seen = _beat_of(heartbeat)
    if not closed and _still_written(path, rank, *seen):
        raise _written_by(path, seen[0])
    with _turn(path, rank):
        now = _beat_of(heartbeat)
        # A process that has reopened it since then made the heartbeat its own, and then deleted the closed mark.
        if now[0] and (now != seen or (closed and not mark.file_exists())):
            raise _written_by(path, now[0])
        heartbeat.remove()
        beat(path, rank)
        mark.remove()
    clear_staging(path, rank)


def see_that_none_writes(path: Place) -> None:
    """Raise ``LogError`` if a process other than this one is writing a run; a doubtful one is waited for."""
    settle([path])
    for rank, state in rank_states(path).items():
        writer = owner(path, rank)
        if state == "running" and _lives(writer) is not False:
            raise _written_by(path, writer)


def await_replacement(path: Place, rank: int) -> None:
    """Wait until rank 0, with ``overwrite``, has left nothing of a rank's part of an older run.

    Raises:
        LogError: it has not done so within a minute.
    """
    first, was_there = path / _heartbeat(0), rank in ranks_in(path)
    give_up = time.monotonic() + _REPLACED_SECONDS
    while time.monotonic() < give_up:
        # It renews its heartbeat before it deletes what it had found, and may be on another machine.
        rank_states(path)
        begun = not _doubtful(first) and rank_states(path).get(0) == "running"
        # What was there it has deleted, even if it has closed since.
        if (begun or was_there) and rank not in ranks_in(path):
            return
        time.sleep(_TURN_SECONDS)
    raise LogError(
        f"rank 0 has not replaced the run in {path} within {_REPLACED_SECONDS:.0f} s: attach with overwrite=True on "
        "every rank, or give another path"
    )


def files_of_others(path: Place, rank: int) -> list[str]:
    """The names of the heartbeats and closed marks of a run's other ranks."""
    return [name for name in path.names() if _ranks([name]) not in ([], [rank])]


def _beat_of(file: Place) -> tuple[str, float]:
    """The process that wrote a heartbeat, and when; an empty name and ``_NEVER`` if there is none."""
    with contextlib.suppress(FileNotFoundError):
        if file.file_exists():
            return file.content().decode(errors="replace").strip(), file.modified()
    return "", _NEVER


def _written_by(path: Place, owner: str) -> LogError:
    process = owner.partition("\n")[0]
    return LogError(f"{path} is being written by {process!r} (host, pid): end that first")


@contextlib.contextmanager
def _turn(path: Place, rank: int) -> Iterator[None]:
    """Keep other processes from reopening this rank within the block."""
    name = f"staging/reopening-r{rank:05d}.lock"
    lock = path / name
    give_up = time.monotonic() + HEARTBEAT_STALE_SECONDS
    while True:
        try:
            claim(path, name, _this_process())
            break
        except FileExistsError:
            # A living process holds it for a moment only.
            owner, _ = _beat_of(lock)
            if time.monotonic() > give_up or (owner and _lives(owner) is False):
                lock.remove()
            time.sleep(_TURN_SECONDS)
    try:
        yield
    finally:
        lock.remove()


def clear_staging(path: Place, rank: int) -> list[str]:
    """Delete the files that a process which died was writing as this rank, and return their names."""
    cleared = []
    for name in sorted(path.names("staging")):
        match = _STAGED_FILE.fullmatch(name)
        # Rank 0 writes run.json, before any file has a rank in its name.
        owner = int(match[1]) if match else 0
        file = path / "staging" / name
        # Another process may be merging this rank's parts at this moment.
        if owner == rank and time.time() - _modified(file) > HEARTBEAT_STALE_SECONDS:
            try:
                file.remove()
            except OSError as error:
                if not system.in_use(error):
                    raise
            else:
                cleared.append(name)
    return cleared


def _still_written(path: Place, rank: int, owner: str, beaten: float) -> bool:
    """Whether a heartbeat's process lives; where only that can tell, wait as long as it has to renew it."""
    lives, age_seconds = _lives(owner), time.time() - beaten
    if lives is False or age_seconds > _CLOCKS_DIFFER_SECONDS:
        return False
    if lives and 0 <= age_seconds < HEARTBEAT_STALE_SECONDS:
        return True
    host = owner.partition("\n")[0].rpartition(" ")[0]
    _say_waiting(path, f" on {host}")
    # Only this machine's clock counts: the other's may be ahead.
    stale = time.monotonic() + HEARTBEAT_STALE_SECONDS
    while time.monotonic() < stale and not (path / _closed_mark(rank)).file_exists():
        time.sleep(_LOOK_SECONDS)
        if _modified(path / _heartbeat(rank)) > beaten:
            return True
    return False


def _say_waiting(path: Place, where: str = "") -> None:
    words = f"gradwatch waits up to {HEARTBEAT_STALE_SECONDS:.0f} s: is {path} still being written{where}?"
    say(plain(words))


def _lives(owner: str, or_ours: bool = False) -> bool | None:
    """Whether this is a living process other than ours; None if it is on another machine or in another container."""
    process, _, space = owner.partition("\n")
    host, _, pid = process.rpartition(" ")
    if not pid.isdecimal():
        return False
    # The first logs hold no more than the host and the process.
    if host != host_name() or (space and space != system.pid_space()):
        return None
    try:
        number = int(pid)
    except ValueError:
        # Python reads no number of thousands of digits.
        return False
    return number != 0 and (or_ours or number != os.getpid()) and system.lives(number)


def _modified(file: Place) -> float:
    try:
        return file.modified()
    except FileNotFoundError:
        return _NEVER


def ranks_in(path: Place) -> list[int]:
    """The ranks that have written into a run, ascending: those with a heartbeat or a closed mark."""
    return _ranks(path.names())


def _ranks(names: Iterable[str]) -> list[int]:
    found = {int(match[1] or match[2]) for name in names if (match := _RANK_FILE.fullmatch(name))}
    return sorted(rank for rank in found if rank < schema.BEYOND["rank"])


def state(path: Place) -> State:
    """Whether a run is ``running``, ``closed``, or ``stopped`` without closing.

    A run is closed when every rank has closed, and running while any rank that has not closed has a fresh heartbeat.
    """
    return overall(rank_states(path))


def overall(states: Mapping[int, State]) -> State:
    """The state of a run, from the states of its ranks."""
    different = set(states.values())
    if different == {"closed"}:
        return "closed"
    return "running" if "running" in different else "stopped"


def stopped(states: Mapping[int, State]) -> list[int]:
    """The ranks that have stopped without closing, ascending."""
    return [rank for rank, state in states.items() if state == "stopped"]


def rank_states(path: Place) -> dict[int, State]:
    """The state of each rank that has written into a run, by rank, ascending."""
    # One look at the folder: in an object store each further one is a request.
    written = path.written_times()
    states: dict[int, State] = {}
    for rank in _ranks(written):
        name = _heartbeat(rank)
        if _closed_mark(rank) in written:
            states[rank] = "closed"
        elif name in written and _beat_age_seconds(path / name, written[name]) < HEARTBEAT_STALE_SECONDS:
            states[rank] = "running"
        else:
            states[rank] = "stopped"
    return states


def settle(paths: Iterable[Place]) -> None:
    """Wait until ``rank_states`` is right for these runs, for those who look at them only once.

    Clocks are not believed: that of another machine or a file server may be ahead or behind. A live rank is known by a
    heartbeat that moves, within seconds. One that does not move for as long as a heartbeat counts is dead.
    """
    doubtful = [path for path in paths if not sure(path)]
    # After the first look: what has not moved since then is dead by this time.
    began, said = time.monotonic(), False
    while doubtful and (waited := time.monotonic() - began) < HEARTBEAT_STALE_SECONDS:
        if waited > _MOVES_SECONDS and not said:
            said = True
            _say_waiting(doubtful[0])
        time.sleep(_LOOK_SECONDS)
        doubtful = [path for path in doubtful if not sure(path)]


def sure(path: Place) -> bool:
    """Whether ``rank_states`` is right, whatever the clocks of other machines say."""
    try:
        return not any(
            _doubtful(path / _heartbeat(rank)) for rank, state in rank_states(path).items() if state != "closed"
        )
    except OSError:
        # Who reads the run says so.
        return True


def _doubtful(heartbeat: Place) -> bool:
    written, since, renewed = _seen_beats.get(heartbeat, (_NEVER, _NEVER, False))
    age_seconds = time.time() - written
    silent = time.monotonic() - since >= HEARTBEAT_STALE_SECONDS
    if renewed or silent or age_seconds >= _CLOCKS_DIFFER_SECONDS:
        return False
    lives = _lives(_beat_of(heartbeat)[0], or_ours=True)
    if lives is False:
        _seen_beats[heartbeat] = written, _NEVER, False
        return False
    return lives is None or not 0 <= age_seconds < HEARTBEAT_STALE_SECONDS


def _beat_age_seconds(heartbeat: Place, written: float) -> float:
    """How long ago a heartbeat was written; after it was seen to be renewed, only this machine's clock counts."""
    now = time.monotonic()
    seen = _seen_beats.get(heartbeat)
    if seen is None or seen[0] != written:
        seen = _seen_beats[heartbeat] = written, now, seen is not None and written > seen[0]
    _, since, renewed = seen
    return now - since if renewed else max(now - since, time.time() - written)


def closed_summaries(path: Place) -> list[dict[str, Any]]:
    """The content of each rank's closed mark.

    Raises:
        LogError: a closed mark cannot be read.
    """
    summaries = []
    for rank in ranks_in(path):
        mark = path / _closed_mark(rank)
        try:
            summary = json.loads(mark.content())
            counts = [*summary.get("rows_dropped", {}).values(), *summary.get("published", {}).values()]
            if summary["rank"] != rank:
                raise ValueError("it is another rank's")
            if not all(isinstance(number, int) and 0 <= number < BEYOND_COUNTS for number in counts):
                raise ValueError("one of its counts is no number")
            summaries.append(summary)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LogError(f"{mark} cannot be read ({reason(error)}): delete it if the run has ended") from None
    return summaries


def published_counts(path: Place, table: str) -> dict[int, int]:
    """How many publish numbers of a table each closed rank used, by rank.

    Raises:
        LogError: a closed mark cannot be read.
    """
    return {summary["rank"]: summary.get("published", {}).get(table, 0) for summary in closed_summaries(path)}
