"""Runs commands as `python -m` and `python FILE` do, each in a fresh process that has the heavy imports behind it.

Started as a process: it imports torch, MONAI and what else is slow and not ours, then forks once for every command (a
line of JSON on stdin, the fork's number on stdout; asked with that number, it says the exit status). Nothing of the
project is imported before the fork.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

START_SECONDS = 120  # until the imports are done


class Warm:
    """The process that forks, from here; a context manager."""

    def __enter__(self) -> Warm:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def run(
        self, arguments: Sequence[str], cwd: Path, log: Path, seconds: float, environment: Mapping[str, str]
    ) -> int:
        """The exit status of a command.

        Args:
            arguments: what stands behind `python`: "-m", a module and its arguments, or a file and its arguments.
            cwd: where it runs.
            log: file that its output is appended to.
            seconds: how long it may take.
            environment: variables beside those of this process.

        Raises:
            TimeoutError: it took longer.
        """
        return self.wait(self.start(arguments, cwd, log, environment), seconds)

    def start(self, arguments: Sequence[str], cwd: Path, log: Path, environment: Mapping[str, str]) -> int:
        """The process id of a command that has been started; see `run`."""
        told = {"arguments": list(arguments), "cwd": str(cwd), "log": str(log), "environment": dict(environment)}
        return self._ask(told, START_SECONDS)

    def wait(self, process: int, seconds: float) -> int:
        """The exit status of what was started; TimeoutError, and the end of all that was, where it takes longer."""
        return self._ask(process, seconds)

    def _ask(self, told: Any, seconds: float) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(told) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            self.__exit__(None, None, None)
            self.__enter__()
            raise TimeoutError(f"{told}: longer than {seconds:g} s")
        return int(self.process.stdout.readline())


def _import_what_is_slow() -> None:
    import ignite.engine  # noqa: F401
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot  # noqa: F401
    import monai.bundle  # noqa: F401
    import pandas  # noqa: F401
    import pydicom  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import scipy.stats  # noqa: F401
    import SimpleITK  # noqa: F401
    import skimage.measure  # noqa: F401
    import torch._dynamo  # noqa: F401, torch.optim asks for it
    import torch.utils.tensorboard  # noqa: F401


def _become(arguments: list[str], cwd: str, log: str, environment: dict[str, str]) -> None:
    """In the forked process: what python does with its arguments."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in ((0, nothing), (1, output), (2, output)):
        os.dup2(file, number)
    os.environ.update(environment)
    os.chdir(cwd)
    if arguments[0] == "-m":
        sys.path[0] = cwd
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(arguments[0]).resolve().parent)
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def _status_of(arguments: list[str], cwd: str, log: str, environment: dict[str, str]) -> int:
    """The exit status that python would end with; an error is shown as python shows it."""
    try:
        _become(arguments, cwd, log, environment)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(status: int) -> None:
    """Ends as python does, but for taking apart every module that was imported, which takes a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def main() -> None:
    _import_what_is_slow()
    gc.freeze()
    for line in iter(sys.stdin.readline, ""):
        told = json.loads(line)
        if isinstance(told, int):
            print(os.waitstatus_to_exitcode(os.waitpid(told, 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            _end(_status_of(**told))
        print(child, flush=True)


if __name__ == "__main__":
    main()
