"""The real command line in a process of its own, with replay workers in the place of training.

``python replay_bench.py run FILE …`` is ``bench run FILE …``, but cells do what their method is named after.
"""

import functools

from bench import cli
from bench.run import sweep
from bench.run.launch import Launcher
from replay_worker import replay

if __name__ == "__main__":
    replaying = functools.partial(Launcher, work=replay, preload=["bench.run.child"])
    sweep.Launcher = replaying  # type: ignore[misc,assignment] # the one way in: the command makes its own
    cli.main()
