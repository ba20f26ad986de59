"""The file systems that pyarrow or fsspec opens for a URI: each opened once, and made to give up before long.

Credentials come from the environment, as these libraries read it. What a URI says beside its path is used to connect,
and never shown.
"""

import functools
import re
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_SERVER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:]*)(:\d*)?")
# A store under load refuses a request now and then. Left to themselves, S3 tries 31 times and GCS for 15 minutes; but
# the end of a process waits for the request that is under way.
_GCS_SECONDS = 10.0


def split(uri: str) -> tuple[str, str, str, str, str]:
    """Scheme, host, path, query and nothing; in every store what follows a # belongs to the path."""
    return urlsplit(uri, allow_fragments=False)


def shown(uri: str) -> str:
    """A URI without its password and its query."""
    scheme, host, path, _, _ = split(uri)
    user, _, server = host.rpartition("@")
    if not _SERVER.fullmatch(server):
        # A secret that contains an unescaped slash looks like a host and a path.
        return f"{scheme}://…"
    if ":" in user:
        host = server
    return urlunsplit((scheme, host, path.rstrip("/"), "", ""))


def opened(uri: str) -> "tuple[FileSystem, str]":
    """The file system of a URI, and the path in it.

    Raises:
        OSError: it cannot be opened; the message holds no secret.
    """
    scheme, host, path, query, _ = split(uri)
    system, root = _file_system(urlunsplit((scheme, host, "/", query, "")))
    return system, f"{root.rstrip('/')}{path}".rstrip("/")


@functools.lru_cache(maxsize=64)
def _file_system(uri: str) -> "tuple[FileSystem, str]":
    """The file system of a URI that ends behind the host, and that host's path in it."""
    import pyarrow as pa
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        try:
            system, root = FileSystem.from_uri(uri)
        except pa.ArrowInvalid as error:
            if "Unrecognized filesystem type" not in str(error):
                raise
            from fsspec.core import url_to_fs

            made, root = url_to_fs(uri)
            system = PyFileSystem(FSSpecHandler(made))
        return _impatient(system), root
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).replace(uri, "it").split())
        raise OSError(f"{shown(uri)} cannot be opened: {reason}") from None


def _impatient(system: "FileSystem") -> "FileSystem":
    """The same file system, but one that gives up before long, and puts a small file in one request."""
    from pyarrow.fs import AwsStandardS3RetryStrategy

    limits = {
        "s3": {"retry_strategy": AwsStandardS3RetryStrategy(max_attempts=1), "allow_delayed_open": True},
        "gcs": {"retry_time_limit": timedelta(seconds=_GCS_SECONDS)},
    }
    if system.type_name not in limits:
        return system
    make, (options,) = system.__reduce__()
    return make({**options, **limits[system.type_name]})


def modified(system: "FileSystem", file: "FileInfo") -> float:
    """When a file was last written, in seconds since 1970 by the store's clock."""
    if file.mtime_ns is None:
        # Asked in this way, some file systems of fsspec do not say.
        return float(system.handler.fs.modified(file.path).timestamp())
    return float(file.mtime_ns) / 1e9
