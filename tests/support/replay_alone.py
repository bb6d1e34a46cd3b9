"""The replay worker of a gate's side, which fails where two sides work at the same moment.

Both would lock the file that ``REPLAY_ALONE`` names. Workers that take turns at steps write there whose each
was. The package that ``REPLAY_IMPORT`` names is imported,
and its version and place reported in caveats.
"""

import fcntl
import importlib
import multiprocessing
import os
from pathlib import Path
from typing import IO

from bench.records.messages import CellJob, Job, Message, ReadingMade, Send
from bench.records.readings import Caveat
from bench.records.records import StepSample
from bench.training.turns import Turns
from replay_worker import replay


def replay_alone(job: Job, send: Send) -> None:
    """Do as the cell is named after, while no other side does."""
    with Path(os.environ.get("REPLAY_ALONE", os.devnull)).open("ab", buffering=0) as file:
        if isinstance(job, CellJob) and job.turns is not None:
            turns = Turns(job.turns, threads=1)
            turns.begin()
            send(ReadingMade(reading=turns.caveat()))
            parent = multiprocessing.parent_process()
            forked = parent is None or parent.pid != os.getppid()  # by a server, whose child it then is
            send(ReadingMade(reading=Caveat(code="forked", message=str(forked))))
            replay(job, turns.between_steps(_noting(send, file, "first" if job.turns.first else "second")))
            return
        if isinstance(job, CellJob):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if name := os.environ.get("REPLAY_IMPORT"):
                package = importlib.import_module(name)
                send(ReadingMade(reading=Caveat(code="version", message=package.__version__)))
                send(ReadingMade(reading=Caveat(code="place", message=str(package.__file__))))
        replay(job, send)


def _noting(send: Send, file: IO[bytes], name: str) -> Send:
    """Write down each measured step."""

    def sending(message: Message) -> None:
        match message:
            case ReadingMade(reading=StepSample(stage="measured")):
                file.write(name.encode() + b"\n")
        send(message)

    return sending
