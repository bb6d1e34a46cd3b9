"""The replay worker of a gate's side, which fails where two sides work at the same moment.

Both would lock the file that ``REPLAY_ALONE`` names. The package that ``REPLAY_IMPORT`` names is imported,
and its version and place reported in caveats.
"""

import fcntl
import importlib
import os
from pathlib import Path

from bench.results.messages import CellJob, Job, ReadingMade
from bench.results.records import Caveat
from bench.run.child import Send
from replay_worker import replay


def replay_alone(job: Job, send: Send) -> None:
    """Do as the cell is named after, while no other side does."""
    with Path(os.environ.get("REPLAY_ALONE", os.devnull)).open("ab") as file:
        if isinstance(job, CellJob):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if name := os.environ.get("REPLAY_IMPORT"):
                package = importlib.import_module(name)
                send(ReadingMade(reading=Caveat(code="version", message=package.__version__)))
                send(ReadingMade(reading=Caveat(code="place", message=str(package.__file__))))
        replay(job, send)
