"""A program that is started warm cannot tell, nor can who started it."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.waiting import wait_until
from tests.warm import warm
from tracer.log.store import Local as Path

pytestmark = pytest.mark.slow

PROGRAMS = {
    "says where it is": "import os, sys; print(sys.argv, os.getcwd(), os.environ['WHERE'], __name__, sys.path[0])",
    "reads": "print(input())",
    "complains": "import sys; print('no', file=sys.stderr); sys.exit('never')",
    "ends with a code": "import sys; sys.exit(3)",
    "ends with an error": "raise RuntimeError('uncaught')",
    "says good-bye": "import atexit; atexit.register(print, 'bye')",
    "is terminated": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("how", ["-c", "file", "-m"])
@pytest.mark.parametrize("code", PROGRAMS.values(), ids=PROGRAMS)
def test_a_warm_program_ends_as_a_cold_one(code: str, how: str, tmp_path: Path) -> None:
    """Streams, arguments, folder, environment and exit code are the same; a traceback has more lines above its last."""
    (tmp_path / "program.py").write_text(code)
    words = {"-c": ("-c", code), "file": ("program.py",), "-m": ("-m", "program")}[how]
    ended = [
        subprocess.run(
            [*python, *words, "word"],
            cwd=tmp_path,
            env={**os.environ, "WHERE": "here"},
            input="a line\n",
            capture_output=True,
            text=True,
            check=False,
        )
        for python in ((sys.executable,), warm())
    ]
    cold, hot = ((done.returncode, done.stdout, done.stderr.splitlines()[-1:]) for done in ended)
    assert cold == hot


def test_a_signal_reaches_a_warm_program() -> None:
    """Ctrl-C ends it as it would end a cold one."""
    code = "import time\ntry:\n    print('on', flush=True)\n    time.sleep(100)\nfinally: print('end')"
    with subprocess.Popen([*warm(), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "on\n"
        program.send_signal(signal.SIGINT)
        said, complained = program.communicate()
    assert (program.returncode, said, complained.splitlines()[-1]) == (-signal.SIGINT, "end\n", "KeyboardInterrupt")


def test_nobody_is_left_where_who_started_it_is_gone() -> None:
    """A warm program ends with the process that stands for it, however that ends."""
    code = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(1000)"
    with subprocess.Popen([*warm(), "-c", code], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        trains = int(program.stdout.readline())
        program.kill()
        wait_until(lambda: not psutil.pid_exists(trains))
