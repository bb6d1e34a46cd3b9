"""One side of a gate with replay workers: ``python replay_serve.py ANSWERS LIFELINE``."""

import os
import sys
from pathlib import Path

HERE = str(Path(__file__).parent)

if __name__ == "__main__":
    sys.path.insert(0, HERE)
    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, os.environ["PYTHONPATH"]])  # for the workers' server
    from bench.gate.serve import serve
    from bench.workers.launch import Launcher
    from replay_alone import replay_alone

    launcher = Launcher(work=replay_alone, preload=["bench.workers.child", "replay_alone"])
    serve(int(sys.argv[1]), int(sys.argv[2]), launcher)
