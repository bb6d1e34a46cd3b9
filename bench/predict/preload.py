"""Imports, once, what every worker that predicts needs; nothing that evaluates or reads data is among it."""

from unittest.mock import patch

import torch

with patch.object(torch, "compile", lambda function=None, **_options: function or (lambda given: given)):
    # What bitsandbytes wraps for the compiler runs in no prediction, and the compiler takes long to import.
    import bitsandbytes  # noqa: F401 - imported for its cost

import peft  # noqa: F401 - the same
import transformers.models.llama.modeling_llama  # noqa: F401 - the family most scenarios name

import bench.predict.jobs  # noqa: F401 - and with it the window and numba
