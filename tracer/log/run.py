"""A run's folder and its run.json: creating, opening and finding runs."""

import contextlib
import difflib
import functools
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

from tracer.log import schema
from tracer.log.place import Place
from tracer.log.text import plain, reason

HOLDS_A_RUN = (
    "{path} already holds a run: give another path, or attach with resume=True to go on with it, or with "
    "overwrite=True to replace it"
)

_REQUIRED = {
    "run_id": str,
    "started": str,
    "host": str,
    "model": str,
    "params": list,
    "settings": dict,
    "versions": dict,
}
# By the setting with which a trace writes metrics of its own, their names. Users may log metrics of any of these names.
OWN_METRICS = {"scaler": ("amp_scale", "skipped"), "budget": ("tracer_cost",)}
# Counts are below this, so that they fit into a column.
BEYOND_COUNTS = 1 << 63
# Where a run is missing, so many that are there are named.
_NAMED = 5


Given = ParamSpec("Given")
Result = TypeVar("Result")


class LogError(Exception):
    """A run that cannot be created, opened or read, in a sentence that says what to do next."""

    def __init__(self, sentence: str) -> None:
        super().__init__(plain(sentence))


class NewerFormatError(LogError):
    """A run was written by a later version, in a format that this one cannot read."""


class NoRunError(LogError):
    """There is no run."""


def without_inner_calls(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Let a public function's ``LogError`` come without the calls below it: its sentence says all that they could."""

    @functools.wraps(function)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        # IPython leaves out a frame with that name where another error comes through it.
        __tracebackhide__ = True
        try:
            return function(*args, **kwargs)
        except LogError as error:
            raise error.with_traceback(None) from None

    return called


@dataclass(frozen=True)
class Run:
    """A run's folder and the content of its run.json."""

    path: Place
    info: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def config(self) -> Mapping[str, Any]:
        """The hyper-parameters that the training was begun with; older logs have none."""
        config = self.info.get("config")
        return config if isinstance(config, dict) else {}

    @property
    def names(self) -> list[str]:
        """The names of all rows of extremes, in the model's order: each parameter's, and behind it those of its slices.

        Parameters that have joined later are not among them.
        """
        names = []
        for param in self.info["params"]:
            count = param.get("slices")
            known = isinstance(count, int) and 0 < count <= schema.MOST_SLICES
            names += [param["name"], *slice_names(param["name"], count if known else 0)]
        return names

    @property
    def own_metrics(self) -> frozenset[str]:
        """Names of the metrics that the trace writes itself; all that it could, where the log does not say which."""
        settings = self.info["settings"]
        return own_metrics_of(given for given in OWN_METRICS if given not in settings or settings[given])


def slice_names(param: str, count: int) -> list[str]:
    """The names under which the slices of a parameter's first dimension have rows."""
    return [f"{param}[{index}]" for index in range(count)]


def own_metrics_of(given: Iterable[str]) -> frozenset[str]:
    """Names of the metrics that a trace writes itself to which this was given."""
    return frozenset(name for each in given for name in OWN_METRICS.get(each, ()))


def own_metrics_since(detail: str) -> frozenset[str]:
    """Names of the metrics that the trace writes itself since a ``resumed`` or ``adopted`` event with this detail."""
    return own_metrics_of(detail.split(", "))


def create_run(path: Place, info: Mapping[str, Any]) -> Run:
    """Make a run's folders and write its run.json.

    Args:
        path: The run's folder; it may exist as long as it holds no run.
        info: The content of run.json beside the format version, the run id, the start time and the host.

    Raises:
        LogError: the folder holds a run, which another process may have made at this moment; or it is a file, or cannot
            be written.
    """
    prepare_folders(path)
    full = _with_origin(info)
    begin(path, "run.json", as_json(full))
    return Run(path, full)


def replace_run(path: Place, info: Mapping[str, Any]) -> None:
    """Write a run.json as ``create_run`` does, but over that of the run which this one replaces.

    Raises:
        OSError: it cannot be written.
    """
    if path.on_disk is None:
        # Not every store puts a file over another.
        (path / "run.json").remove()
    with path.stage(f"run-{uuid.uuid4().hex}") as staged:
        staged.write(as_json(_with_origin(info)))
        staged.publish("run.json")


def _with_origin(info: Mapping[str, Any]) -> dict[str, Any]:
    origin = {"run_id": uuid.uuid4().hex, "started": datetime.now(UTC).isoformat(), "host": host_name()}
    return {"format": schema.FORMAT, **origin, **info}


def host_name() -> str:
    """This machine's name; what UTF-8 cannot hold of it is escaped."""
    return socket.gethostname().encode(errors="backslashreplace").decode()


def begin(path: Place, name: str, content: bytes) -> None:
    """Write the first file of a run, or of a rank's part of it.

    Raises:
        LogError: the file exists, or cannot be written.
    """
    try:
        claim(path, name, content)
    except FileExistsError:
        raise LogError(HOLDS_A_RUN.format(path=path)) from None
    except OSError as error:
        raise LogError(f"{path} cannot be written: {reason(error)}; give a path that can be written") from None


def claim(path: Place, name: str, content: bytes) -> None:
    """Write a file of a run that no process has written.

    Raises:
        FileExistsError: the file exists, or another process is writing it at this moment.
    """
    file = path / name
    # Not every disk can tell that when the file gets its name.
    if file.file_exists():
        raise FileExistsError(file)
    with path.stage(f"{file.name.partition('.')[0]}-{uuid.uuid4().hex}") as staged:
        staged.write(content)
        staged.claim(name)


def as_json(content: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON file of a run."""
    return (json.dumps(content, indent=1) + "\n").encode()


def prepare_folders(path: Place, tables: Iterable[str] = schema.ALWAYS) -> None:
    """Make a run's folders where they are missing: one for each of these tables, and ``staging/``.

    Raises:
        LogError: ``path`` is a file, cannot be made, or is not UTF-8.
    """
    _see_that_it_is_utf8(path)
    try:
        path.make_folders((*tables, "staging"))
    except (FileExistsError, NotADirectoryError) as error:
        raise LogError(f"{path} cannot be a run's folder: {error.filename} is a file; give another path") from None
    except OSError as error:
        raise LogError(f"{path} cannot be made: {reason(error)}; give a path that can be written") from None


def _see_that_it_is_utf8(path: Place) -> None:
    """Raise ``LogError`` for a path that no library that reads Parquet could open."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise LogError(f"{shown} is not UTF-8, so no reader could open it: give another path") from None


def remake_folders(path: Place, tables: Iterable[str]) -> None:
    """Make those of a run's folders that somebody deleted; none, if the run itself was deleted."""
    if holds_run(path):
        path.remake_folders((*tables, "staging"))


def holds_run(path: Place) -> bool:
    """Whether a folder holds a run, of this or any format version."""
    return (path / "run.json").file_exists()


def open_run(path: Place) -> Run:
    """Open a run that exists.

    Raises:
        NoRunError: there is no run.
        LogError: its run.json cannot be read, its format is newer than this reader's, or its path is not UTF-8.
    """
    _see_that_it_is_utf8(path)
    try:
        info = json.loads((path / "run.json").content())
        version = int(info["format"])
        if version <= schema.FORMAT:
            _check(info)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_run(path) from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise LogError(f"{path / 'run.json'} cannot be read ({reason(error)}); is {path} a run's folder?") from None
    if version > schema.FORMAT:
        raise NewerFormatError(
            f"{path} has log format {version}, and this gradwatch reads formats up to {schema.FORMAT}: "
            "upgrade gradwatch to read it"
        )
    return Run(path, info)


def _check(info: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a run.json lacks something that readers rely on."""
    for name, kind in _REQUIRED.items():
        if not isinstance(info.get(name), kind):
            raise ValueError(f"it lacks {name}, or its {name} is no {kind.__name__}")
    datetime.fromisoformat(info["started"]).timestamp()
    if not all(isinstance(param, dict) and isinstance(param.get("name"), str) for param in info["params"]):
        raise ValueError("one of its params has no name")
    counts = dict.fromkeys(("total_steps", "every", "fold", "update_every"), int)
    for name, kinds in {"stats": list, "budget": float, **counts}.items():
        value = info["settings"].get(name)
        if not isinstance(value, kinds | None) or (isinstance(value, int) and not 0 < value < BEYOND_COUNTS):
            raise ValueError(f"{name} in its settings is no {kinds.__name__} that it could be")


def runs_at(path: Place) -> list[Place]:
    """The run in a folder, or those in its folders, in the order of their beginning.

    Raises:
        LogError: there is none.
    """
    found = _runs_of(path)
    if not found:
        raise _no_run(path)
    return found


def runs_or_itself(path: Place) -> list[Place]:
    """The runs in a folder of runs; else the folder itself, which is a run, or may become one."""
    return _runs_of(path) or [path]


def _runs_of(path: Place) -> list[Place]:
    return [path] if holds_run(path) else runs_in(path)


def _no_run(path: Place) -> NoRunError:
    """What is wrong with a folder without a run, and which runs are in it or beside it."""
    words = f"{path} holds no run: it has no run.json"
    with contextlib.suppress(OSError):
        if inside := runs_in(path):
            return NoRunError(f"{words}; in it are the runs {_nearest(path.name, inside)}: name one of them")
        if beside := _runs_among(path.beside()):
            return NoRunError(f"{words}; beside it are the runs {_nearest(path.name, beside)}")
    return NoRunError(f"{words}; is the path right?")


def _nearest(name: str, runs: Sequence[Place]) -> str:
    """The names of some of these runs, first those that are spelled as this one, then the newest."""
    names = [run.name for run in reversed(runs)]
    near = difflib.get_close_matches(name, names, n=_NAMED)
    named = list(dict.fromkeys([*near, *names]))[:_NAMED]
    return ", ".join(named) + (f" and {len(names) - len(named)} more" if len(names) > len(named) else "")


def runs_in(folder: Place) -> list[Place]:
    """The runs in a folder, in the order of their beginning."""
    return _runs_among(folder.folders())


def _runs_among(folders: Iterable[Place]) -> list[Place]:
    described = [(path, path / "run.json") for path in folders]
    begun = [(_written(file), path.name, path) for path, file in described if file.file_exists()]
    return [path for _, _, path in sorted(begun, key=lambda each: each[:2])]


def began(path: Place) -> float:
    """When a run began, in seconds since 1970; 0 where there is none."""
    return _written(path / "run.json")


def _written(file: Place) -> float:
    try:
        return file.modified()
    except FileNotFoundError:
        return 0.0


def newest_run(folder: Place) -> Place | None:
    """The run in ``folder`` that was started last; None where there is none."""
    return next(reversed(runs_in(folder)), None)
