"""One side of a gate with replay workers: ``python replay_serve.py ANSWERS LIFELINE``.

Two sides that work at the same moment would both lock the file that ``REPLAY_ALONE`` names: then cells fail.
The package that ``REPLAY_IMPORT`` names is imported, and its version and place reported in caveats.
"""

import fcntl
import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bench.gate.serve import serve
from bench.results.messages import CellJob, Job, ReadingMade
from bench.results.records import Caveat
from bench.run.child import Send
from bench.run.launch import Launcher
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


if __name__ == "__main__":
    import replay_serve  # workers find what they are to do by its module's name

    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [here, os.environ["PYTHONPATH"]]
    )  # the server finds it likewise
    launcher = Launcher(work=replay_serve.replay_alone, preload=["bench.run.child", "replay_serve"])
    serve(int(sys.argv[1]), int(sys.argv[2]), launcher)
