"""Imports what predicts, for the server that workers are forked from.

There is little garbage meanwhile, and looking for it, then and among all that once more, would take a quarter
of the time.
"""

import gc
from importlib import import_module

gc.disable()
try:
    import_module("bench.predict.jobs")
finally:
    gc.freeze()
    gc.enable()
