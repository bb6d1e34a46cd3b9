"""One side of a gate with replay workers: ``python replay_serve.py ANSWERS LIFELINE``.

Two processes that work at the same moment would both hold the file named by ``REPLAY_ALONE``: then it fails.
"""

import fcntl
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bench.gate.serve import serve
from bench.results.messages import CellJob, Job
from bench.run.child import Send
from bench.run.launch import Launcher
from replay_worker import replay


def replay_alone(job: Job, send: Send) -> None:
    """Do as the cell is named after, while no other side does."""
    with Path(os.environ.get("REPLAY_ALONE", os.devnull)).open("ab") as file:
        if isinstance(job, CellJob):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        replay(job, send)


if __name__ == "__main__":
    import replay_serve  # workers find what they are to do by its module's name

    launcher = Launcher(work=replay_serve.replay_alone, preload=["bench.run.child"])
    serve(int(sys.argv[1]), int(sys.argv[2]), launcher)
