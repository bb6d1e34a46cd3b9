"""Imported by the server that predicting workers are forked from: makes once what each would make anew.

Where the allocator's replay was never compiled on this machine, a process of its own compiles it while the
libraries are imported, which takes half as long.
"""

import contextlib
import os
import signal
from importlib import import_module

from bench.predict.allocator import compiled
from bench.predict.allocator.replay import replay
from bench.workers.orphan import ask_for

_FAMILY = "transformers.models.llama.modeling_llama"  # that most scenarios load


def _compiling() -> int:
    """Start a process that compiles; return its number."""
    if process := os.fork():
        return process
    try:
        ask_for(signal.SIGKILL)
        replay([0, 0], [1])
    finally:  # whatever comes: beyond this it would be a second server
        os._exit(0)


_process = None if compiled.is_kept() else _compiling()

for _name in ("bench.training.preload", "peft", _FAMILY, "bench.predict.jobs"):  # while the other compiles
    import_module(_name)
if _process is not None:
    os.waitpid(_process, 0)
with contextlib.suppress(Exception):  # a worker meets it again, and says so of its cell
    replay([0, 0], [1])
