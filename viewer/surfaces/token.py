"""The token of the page's address: it stays the same for a user, a machine and a port, and nobody else can read it.

The user's state folder has a file with a secret. Each port has a token of its own, made of the secret: a page that
knows one viewer's token knows nothing of another's.
"""

import base64
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import socket
import stat
from pathlib import Path

from tracer.log import system

# As secrets.token_urlsafe() makes it.
_SECRET = re.compile(rb"[A-Za-z0-9_-]{43}")
_PRIVATE, _OTHERS = 0o700, 0o077


def token_of(secret: str, port: int) -> str:
    """The token of the page at a port."""
    digest = hmac.digest(secret.encode(), f"page at port {port}".encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def kept_secret(new: bool = False) -> str:
    """The secret of this user and machine; it is made where there is none, or one that others could have read.

    Args:
        new: Whether to make another one in any case: every address of before is then refused.

    Raises:
        OSError: it can be kept nowhere; the message says why, and names the folder.
    """
    folder = _state_folder()
    folder.parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(_PRIVATE)
    # Machines may share a home folder.
    name = f"page-{re.sub(r'[^A-Za-z0-9.-]', '_', socket.gethostname())}"
    # Of two viewers that start together, the second one reads what the first has written.
    with system.entered(folder, stat.S_IWGRP | stat.S_IWOTH) as (before, opened):
        return (None if new else _read(before / name, opened)) or _written(before / name, opened)


def _state_folder() -> Path:
    given = os.environ.get("XDG_STATE_HOME", "")
    # The specification passes over a path that is not absolute.
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "state") / "gradwatch"


def _read(path: Path, folder: int | None) -> str | None:
    """The secret in a file; None where there is none that this user alone can have read and written."""
    try:
        # A pipe would be waited for.
        file = system.patiently(os.open, path, os.O_RDONLY | system.NO_LINK_NOR_PIPE, dir_fd=folder)
    except OSError:
        return None
    try:
        status = os.fstat(file)
        # A second name may be a link by which somebody makes this user's other file the secret.
        if not (stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and system.is_ours(status, _OTHERS)):
            return None
        content = os.read(file, 64)
    finally:
        os.close(file)
    return content.decode() if _SECRET.fullmatch(content) else None


def _written(path: Path, folder: int | None) -> str:
    """A new secret, whole under its name: what stands there is replaced, and not followed if it is a link."""
    secret = secrets.token_urlsafe()
    staged = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | system.NO_LINK, 0o600, dir_fd=folder)
    try:
        try:
            os.write(file, secret.encode())
        finally:
            os.close(file)
        system.patiently(os.replace, staged, path, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        os.unlink(staged, dir_fd=folder)
        raise
    return secret
