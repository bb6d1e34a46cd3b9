"""Imported last by the one server of a test session, which trains and predicts: finds what ledgers ask for.

A server of plans does not look for tensors that imports have left. Each worker that trains would then thaw
all that the server has imported, which takes longer than to train a toy.
"""

import sys

_plans = sys.modules.pop("bench.predict.preload")
import bench.workers.freeze  # noqa: E402, F401 - which looks for it

sys.modules["bench.predict.preload"] = _plans
