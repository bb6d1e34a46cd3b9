"""Runs one command line after another in one process, so that what they import is imported once.

A line of JSON with a folder and the arguments comes in, one with exit code, stdout and stderr goes out.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

from bench.predict import pool
from bench.workers import launch


@dataclass(frozen=True)
class Answer:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class CommandLine:
    """A process that is waiting for commands."""

    process: subprocess.Popen[str]

    def __call__(self, folder: Path, *arguments: str) -> Answer:
        """Run ``bench`` with these arguments as if it were typed in the folder."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps([str(folder), arguments]), file=self.process.stdin, flush=True)
            return Answer(*json.loads(self.process.stdout.readline()))
        except BaseException:  # a test's time is up: the answer would be taken for the next command's
            self.process.kill()
            raise


@contextlib.contextmanager
def open_command_line() -> Iterator[CommandLine]:
    """Start the process, and end it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # python is this one
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PATH": path}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, __file__], stdin=pipe, stdout=pipe, env=environment, text=True
    ) as it:
        yield CommandLine(it)


@contextlib.contextmanager
def one_server() -> Iterator[None]:
    """Have the server that this process forks workers from import everything, whichever launcher starts it.

    A process has one, with the modules that its first launcher names. Were that one of stand-ins, each later
    worker that trains would have to import torch and its family itself.
    """
    heavy = [*launch.PRELOAD, *launch.EVALUATES, *pool.PRELOAD]
    everything = ["bench.workers.orphan", *heavy, "tests.support.freeze_both"]
    preload = forkserver.set_forkserver_preload
    with patch.object(forkserver, "set_forkserver_preload", lambda _: preload(everything)):
        yield


def _run(folder: str, arguments: list[str]) -> tuple[int, str, str]:
    from bench.cli import main

    os.chdir(folder)
    sys.path[0] = folder  # as by python -m bench
    sys.argv = ["bench", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    with one_server():
        for line in sys.stdin:
            sys.stdout.write(json.dumps(_run(*json.loads(line))) + "\n")
            sys.stdout.flush()
