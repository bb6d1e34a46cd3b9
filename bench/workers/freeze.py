"""Imported last by the server that workers are forked from: garbage collection leaves its imports alone.

A fork shares memory until one side writes to it, and a collection writes to every object. With torch and
its companions imported that cost each worker 0.6 s at its start; frozen objects are never visited. What
imports leave to collect is a hundredth of that memory, and looking for it would cost the server 0.3 s.
(https://docs.python.org/3/library/gc.html#gc.freeze)
"""

import gc
import sys
import weakref
from typing import Any

from bench.workers.orphan import release

_torch: Any = sys.modules.get("torch")
_measures = _torch and "bench.predict.preload" not in sys.modules  # looking takes a third of a second
TENSORS = (
    [weakref.ref(each) for each in gc.get_objects() if issubclass(type(each), _torch.Tensor)]
    if _measures
    else None
)
"""Those that imports have left, for ledgers to find them though they are frozen; None if nobody looked."""
gc.freeze()
OBJECTS = gc.get_freeze_count()
gc.enable()
release()
