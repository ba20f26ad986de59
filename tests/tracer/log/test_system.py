"""What differs between Linux, macOS and Windows, as far as it shows on one of them."""

import os
import sys
from pathlib import PureWindowsPath
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.logs import extremes, new_run, publish_next
from tracer.log import system
from tracer.log.parts import Part
from tracer.log.place import Place
from tracer.log.store import Local as Path
from tracer.log.store import at

FULL_SYNC = 51
"""macOS' ``F_FULLFSYNC``."""


@pytest.mark.parametrize("path", ["C:\\runs\\x", "C:/runs/x", "c://runs", "\\\\server\\share\\x", "D:x"])
def test_a_path_of_windows_is_no_uri(path: str) -> None:
    """A drive's letter is no scheme."""
    assert isinstance(at(path), Path)


def test_a_part_on_a_disk_of_windows_knows_its_table() -> None:
    """Whichever separators its path has."""
    for path in ("C:\\runs\\a/b\\metrics\\part", "C:/runs/a/metrics/part"):
        assert Part(0, 0, 0, 0, cast("Place", PureWindowsPath(path))).table == "metrics"


@pytest.mark.parametrize(
    ("windows", "word", "expected"),
    [
        (True, "C:\\runs\\a", "C:\\runs\\a"),
        (True, "C:\\my runs\\a", '"C:\\my runs\\a"'),
        (False, "/my runs/a", "'/my runs/a'"),
    ],
)
def test_a_path_is_quoted_as_its_shells_take_it(
    monkeypatch: pytest.MonkeyPatch, windows: bool, word: str, expected: str
) -> None:
    """A command that is printed can be copied: cmd.exe does not know single quotes."""
    monkeypatch.setattr(system, "WINDOWS", windows)
    assert system.quoted(word) == expected


@pytest.mark.parametrize(("windows", "expected"), [(True, "10_00_00.csv"), (False, "10:00:00.csv")])
def test_a_runs_name_becomes_that_of_a_file(monkeypatch: pytest.MonkeyPatch, windows: bool, expected: str) -> None:
    """Where a run of an object store is exported on Windows, its name may hold what no file's name may."""
    monkeypatch.setattr(system, "WINDOWS", windows)
    assert system.file_name("10:00:00.csv") == expected


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that tells what a descriptor leads to")
@pytest.mark.parametrize("can", [True, False])
def test_on_macos_the_drive_is_asked_to_write_its_own_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can: bool
) -> None:
    """Before a part gets its name, and after; a drive that cannot be asked takes the part all the same."""
    import fcntl

    run = new_run(tmp_path / "run")
    asked: list[tuple[str, bool]] = []

    def full_sync(descriptor: int, command: int, *_: Any) -> int:
        assert command == FULL_SYNC
        asked.append((Path(f"/proc/self/fd/{descriptor}").readlink().parent.name, bool(found())))
        if not can:
            raise OSError(45, "Operation not supported")
        return 0

    def found() -> list[str]:
        return os.listdir(run / "extremes")

    monkeypatch.setattr(system, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL_SYNC, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full_sync)
    publish_next(run, "extremes", extremes([0]))
    assert asked == [("staging", False), ("run", True)]
    assert len(found()) == 1


def test_a_link_is_refused_where_no_flag_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever put it there may have let it lead anywhere."""
    monkeypatch.setattr(system, "NO_LINK_NOR_PIPE", 0)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "run.json").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="it is a link"):
        (tmp_path / "run.json").content()


@pytest.mark.parametrize("pid", [2**22 + 1, 10**30])
def test_no_process_has_a_number_beyond_all(pid: int) -> None:
    """Neither one that no process has, nor one that none can have."""
    assert not system.lives(pid)


def test_a_process_of_anybody_lives() -> None:
    """Ours, and the first one, which another user may have begun."""
    assert system.lives(os.getpid())
    assert system.lives(1)
