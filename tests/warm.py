"""Programs that train, started warm: they are forked from a process that has imported PyTorch already.

Behind ``[*warm(), ...]`` stands what would stand behind ``sys.executable``: ``-c`` and code, ``-m`` and a module, or a
file, each with its arguments; no options of Python. It runs in a process of its own, with the same streams, folder,
environment, signals and exit code. So it is spared the three seconds of a core in which PyTorch is imported, with what
a first optimizer imports. The fork server of ``multiprocessing`` is none for this: it gives a program no streams of its
own, and ends it without what it has registered with ``atexit``.

The process that is started is not the one that trains: it hands on signals and the exit code. So a test that depends on
the id of a process, or on the moment at which one is killed, starts its program cold.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
import warnings
from functools import cache
from pathlib import Path

_HANDED_ON = (signal.SIGINT, signal.SIGTERM)


@cache
def warm() -> tuple[str, ...]:
    """The words in front of a program's, where processes can be forked and watched; else those that start it cold."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return (sys.executable,)
    address = str(Path(tempfile.mkdtemp(prefix="warm"), "socket"))
    command = [sys.executable, "-P", __file__, "serve", address]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.read() == b""
    # It ends when its standard input does, as at the end of this process.
    atexit.register(server.communicate)
    return (sys.executable, "-I", "-S", __file__, "run", address)


def _ask(address: str, arguments: list[str]) -> int:
    """Have a program run; its exit status, as of ``os.waitpid``."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [b"\0"], [0, 1, 2])
        server.sendall(json.dumps([arguments, str(Path.cwd()), dict(os.environ)]).encode() + b"\n")
        for number in _HANDED_ON:
            signal.signal(number, lambda number, _: server.sendall(bytes([number])))
        return int(server.makefile().readline())


def _serve(address: str) -> list[str] | None:
    """Fork a program for each that asks, until standard input ends; in a program itself, its arguments."""
    import torch

    # The first one has PyTorch import its compiler.
    torch.optim.SGD([torch.zeros(1)])
    # What is here already is never looked at again, which would copy its memory into each program.
    gc.freeze()
    # Who keeps a program is waited for by nobody.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    warnings.filterwarnings("ignore", ".*use of fork.*", DeprecationWarning)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(64)
        # Whoever waits for the end of what is said here knows now that programs can be asked for.
        os.dup2(2, 1)
        while sys.stdin.fileno() not in select.select([listening.fileno(), sys.stdin.fileno()], [], [])[0]:
            connection = listening.accept()[0]
            with connection:
                if not os.fork():
                    return _keep(connection)
    shutil.rmtree(Path(address).parent)
    return None


def _keep(connection: socket.socket) -> list[str]:
    """Fork the program, hand signals to it, and tell how it ended; in the program itself, its arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    streams = socket.recv_fds(connection, 1, 3)[1]
    arguments, folder, environment = json.loads(connection.makefile().readline())
    program = os.fork()
    if not program:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        return list(arguments)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(program)
    while ended not in select.select([ended, connection.fileno()], [], [])[0]:
        # Where nobody waits any more, nobody would end it.
        os.kill(program, (connection.recv(1) or bytes([signal.SIGKILL]))[0])
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{os.waitpid(program, 0)[1]}\n".encode())
    os._exit(0)


def _run(arguments: list[str]) -> None:
    """Run a program in this process, as its main module."""
    if "PYTHONPATH" in os.environ:
        sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)
    kind, *others = arguments
    if kind == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = others
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if kind == "-c":
        sys.path.insert(0, "")
        code, *others = others
    else:
        main.__file__ = kind
        sys.path.insert(0, str(Path(kind).resolve().parent))
        code = Path(kind).read_text(encoding="utf-8")
    sys.argv = [kind, *others]
    exec(compile(code, getattr(main, "__file__", "<string>"), "exec"), main.__dict__)


def _main(action: str, address: str, *arguments: str) -> None:
    if action == "run":
        status = _ask(address, list(arguments))
        if os.WIFSIGNALED(status):
            if os.WTERMSIG(status) in _HANDED_ON:
                signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
            os.kill(os.getpid(), os.WTERMSIG(status))
        sys.exit(os.waitstatus_to_exitcode(status))
    elif program := _serve(address):
        _run(program)


if __name__ == "__main__":
    _main(*sys.argv[1:])
