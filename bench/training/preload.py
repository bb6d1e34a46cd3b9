"""Makes once, in the server that workers are forked from, what each would make anew as it loads its model.

transformers compiles a thousand patterns for names of weights before the first model of a process is loaded,
for a quarter of a second.
"""

import contextlib

with contextlib.suppress(ImportError):  # of transformers 4, which has none
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")
