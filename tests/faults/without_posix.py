"""A script: uses gradwatch where its modules find nothing of the standard library that Windows lacks."""

import builtins
import importlib
import os
import pkgutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_OURS = ("tracer", "viewer", "gradwatch", "gradwatch_lightning")
_MODULES = {"fcntl", "termios", "pwd", "grp", "resource", "tty", "pty", "curses", "readline", "syslog", "posix"}
_NAMES = {
    os: "register_at_fork fork forkpty killpg getpgid setsid getsid getuid geteuid getgid getegid getgroups uname nice "
    "getloadavg sysconf statvfs mkfifo mknod chown fchown lchown chroot fchdir fdatasync sync pread pwrite openpty "
    "sched_getaffinity wait WNOHANG O_NOFOLLOW O_NONBLOCK O_CLOEXEC O_DIRECTORY O_SYNC getxattr pipe2",
    signal: "SIGKILL SIGHUP SIGALRM SIGUSR1 SIGUSR2 SIGCHLD SIGPIPE alarm setitimer pause pthread_sigmask",
    socket: "AF_UNIX",
    time: "tzset clock_gettime",
}


def _asked_by_us() -> bool:
    asking = str(sys._getframe(2).f_globals.get("__name__"))
    return asking.partition(".")[0] in _OURS


def _without(names: frozenset[str]) -> type[ModuleType]:
    class AsOnWindows(ModuleType):
        def __getattribute__(self, name: str) -> Any:
            if name in names and _asked_by_us():
                raise AttributeError(f"Windows has no {name}")
            return super().__getattribute__(name)

    return AsOnWindows


def hide() -> None:
    """From now on our modules find neither these names nor these modules; all others find them."""
    for module, names in _NAMES.items():
        module.__class__ = _without(frozenset(names.split()))
    real_import = builtins.__import__

    def imported(name: str, *args: Any, **kwargs: Any) -> ModuleType:
        if name.partition(".")[0] in _MODULES and _asked_by_us():
            raise ImportError(f"Windows has no {name}")
        return real_import(name, *args, **kwargs)

    builtins.__import__ = imported
    # What calls of the system can do.
    for able in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        able.clear()


def _import_all() -> None:
    for package in map(importlib.import_module, ("tracer", "viewer")):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            try:
                if not module.name.endswith("__main__"):
                    importlib.import_module(module.name)
            except ImportError as error:
                # Triton, or a framework that is not installed here.
                missing = error.__cause__ or error
                if not isinstance(missing, ModuleNotFoundError):
                    raise


def _train(steps: int, **options: Any) -> list[int]:
    """Train, and return the steps that the log holds then."""
    import torch

    import tracer

    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, "run", **options) as trace:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(torch.ones(2, 3)).square().mean()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)
    return list(tracer.scan("run").collect()["step"].unique().sort())


def _command(main: Callable[[Sequence[str]], None], line: str) -> None:
    try:
        main(line.split())
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{line} ended with {end.code}") from end


def _use() -> None:
    from tracer.cli import main as tracer_main
    from viewer.cli import main as viewer_main
    from viewer.surfaces.token import kept_secret

    assert _train(3) == [0, 1, 2]
    assert _train(2, resume=True) == [0, 1, 2, 3, 4]
    for line in ("verify run", "merge run", "info run", "runs .", "export run --to csv"):
        _command(tracer_main, line)
    for line in ("run --save figure.png", "run --save figure.csv", "run --text", "check run", "diff run run"):
        _command(viewer_main, line)
    assert _train(1, overwrite=True) == [0]
    assert kept_secret() == kept_secret()


if __name__ == "__main__":
    hide()
    _import_all()
    _use()
