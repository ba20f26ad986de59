"""The page's token: it lasts, and nobody but its user learns it."""

import os
import socket
import stat
from pathlib import Path as Folder

import pytest

from tracer.log.store import Local as Path
from viewer.surfaces.token import kept_secret, token_of


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """The folder in which the secret of this test is kept; it does not exist yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Folder(tmp_path / "state" / "gradwatch")


def file_in(state: Folder) -> Folder:
    """The only file of a state folder."""
    (file,) = state.iterdir()
    return file


def test_a_secret_lasts_and_is_its_users_alone(state: Folder) -> None:
    """It is made once, in a file of mode 0600 that names the machine, in a folder of mode 0700."""
    secret = kept_secret()
    assert kept_secret() == secret
    file = file_in(state)
    assert file.name.endswith(socket.gethostname())
    assert [stat.S_IMODE(each.stat().st_mode) for each in (state, file)] == [0o700, 0o600]
    assert file.read_text() == secret


def test_each_port_has_a_token_of_its_own(state: Folder) -> None:
    """The same port has the same token each time, and no token tells the secret or another port's token."""
    secret = kept_secret()
    tokens = {port: token_of(secret, port) for port in (8088, 8089)}
    assert tokens[8088] == token_of(secret, 8088) != tokens[8089]
    assert all(len(token) == 43 and secret not in token for token in tokens.values())


def test_a_new_one_takes_its_place(state: Folder) -> None:
    """Who asks for a new one gets another, which lasts from then on."""
    old = kept_secret()
    new = kept_secret(new=True)
    assert old != new == kept_secret()
    file_in(state)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602])
def test_a_secret_that_others_could_have_read_or_written_is_renewed(state: Folder, mode: int) -> None:
    """It is no secret any more."""
    old = kept_secret()
    file_in(state).chmod(mode)
    assert kept_secret() != old
    assert stat.S_IMODE(file_in(state).stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 44, b"\xff" * 43, b"a" * 42 + b"/"])
def test_what_is_no_secret_is_replaced(state: Folder, content: bytes) -> None:
    """A file that is cut off, or damaged, is not used."""
    kept_secret()
    file = file_in(state)
    file.write_bytes(content)
    assert kept_secret().encode() not in (content, b"")
    assert kept_secret() == file.read_text()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_is_not_followed(state: Folder, link: object) -> None:
    """Neither to read a secret that somebody else knows, nor to overwrite the file that it leads to."""
    kept_secret()
    file = file_in(state)
    known = state.parent / "known"
    known.write_text("k" * 43)
    known.chmod(0o600)
    file.unlink()
    link(known, file)  # type: ignore[operator]
    assert kept_secret() != "k" * 43
    assert known.read_text() == "k" * 43
    assert not file.is_symlink()


def test_a_pipe_in_its_place_is_not_waited_for(state: Folder) -> None:
    """It is replaced."""
    kept_secret()
    file = file_in(state)
    file.unlink()
    os.mkfifo(file, 0o600)
    assert kept_secret() == file.read_text()


def test_a_folder_that_others_can_write_to_is_not_used(state: Folder, tmp_path: Path) -> None:
    """Nor one to which a link leads: whoever made it could put a secret there that he knows."""
    state.parent.mkdir()
    state.mkdir()
    state.chmod(0o770)
    with pytest.raises(OSError, match="others may write there"):
        kept_secret()
    state.rmdir()
    elsewhere = Folder(tmp_path / "elsewhere")
    elsewhere.mkdir()
    state.symlink_to(elsewhere)
    with pytest.raises(OSError, match="Not a directory"):
        kept_secret()
    assert list(elsewhere.iterdir()) == []


def test_a_path_that_is_not_absolute_is_passed_over(
    tmp_path: Path, state: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the specification of these folders wants it: then it is in the user's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    kept_secret()
    file_in(Folder(tmp_path / ".local" / "state" / "gradwatch"))
