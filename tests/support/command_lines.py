"""Runs command lines in the test's own process, so that its imports and its server serve all of them."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
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


CommandLine = Callable[..., Answer]
"""Runs ``bench`` in a folder, the first argument, with the others as its own."""


def run_command_line(folder: Path, *arguments: str) -> Answer:
    """Run ``bench`` with these arguments as if it were typed in the folder."""
    from bench.cli import main

    out, err = io.StringIO(), io.StringIO()
    with _as_at_start(folder, arguments), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return Answer(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _as_at_start(folder: Path, arguments: tuple[str, ...]) -> Iterator[None]:
    """Make the process what a command finds, and afterwards what it was: a command changes some of it."""
    handler = signal.getsignal(signal.SIGTERM)
    with (
        contextlib.chdir(folder),
        patch.dict(os.environ, {"COLUMNS": "200"}),
        patch.object(sys, "argv", ["bench", *arguments]),
        patch.object(sys, "path", [str(folder), *sys.path]),  # as by python -m bench
    ):
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)


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
