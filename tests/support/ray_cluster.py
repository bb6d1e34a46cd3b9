"""Two nodes of a Ray cluster on this machine: prints its address; told to, kills the second."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster  # after what it reads when imported


@contextmanager
def ahead() -> Iterator[None]:
    """Start processes ahead of others, where that is allowed: Ray gives a node's agents fifteen seconds."""
    priority = Path("/proc/self/autogroup")  # sched(7): of a session of its own
    os.setsid()
    with suppress(OSError):
        priority.write_text("-15")
    yield
    with suppress(OSError):
        priority.write_text("0")


if __name__ == "__main__":
    with ahead():
        head = {"num_cpus": 1, "include_dashboard": False, "no_monitor": True}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        second = cluster.add_node(num_cpus=1)
    sys.stdout.write(f"{cluster.address}\n")
    sys.stdout.flush()
    if sys.stdin.readline().strip() == "kill":
        cluster.remove_node(second, allow_graceful=False)
        sys.stdin.readline()
    cluster.shutdown()
