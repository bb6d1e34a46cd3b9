"""Imports, once, what every worker needs, so that forked workers start at once. Does nothing else."""

import bitsandbytes  # noqa: F401 - imported for its cost
import lm_eval.evaluator
import lm_eval.models.huggingface  # noqa: F401 - the same
import peft  # noqa: F401 - the same
import transformers.models.llama.modeling_llama  # noqa: F401 - the family most scenarios load

import bench.training.window  # noqa: F401 - and with it the rest of this package
