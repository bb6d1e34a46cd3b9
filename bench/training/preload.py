"""Makes once, in the server that workers are forked from, what each would make anew; imported first.

transformers compiles a thousand patterns for names of weights before the first model of a process is loaded.
And it reads every file of its models for the names in them, twice: first as it is imported, then with
``transformers.models``, for it remembers 128 folders and has four times as many.

bitsandbytes marks what stands for its own kernels on other devices to be compiled, for which torch imports
its whole compiler, a fifth of all imports; here it does so should one be called. Likewise, losses of
transformers over boxes in images import all of scipy's linear algebra for one function.
"""

import contextlib
import sys
from collections.abc import Callable
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
import transformers.utils
from transformers.utils import import_utils

from bench.scenario.catalogue import architectures

architectures()  # each worker would parse them anew
_MODELS = Path(transformers.__file__).parent / "models"


def _read_before(read: Any) -> Any:
    def reader(path: Any) -> Any:
        # The last that it read, so that this is remembered; as a path, as it was asked for then.
        return read(_MODELS if Path(path) == _MODELS / "__init__.py" else path)

    return reader


with contextlib.suppress(AttributeError):  # of other versions, which read files of models when these are used
    name = "create_import_structure_from_path"
    with patch.object(import_utils, name, _read_before(getattr(import_utils, name))):
        import transformers.models

with contextlib.suppress(ImportError):  # of transformers 4, which has none
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")


def when_called(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """Mark a function to be compiled, as ``torch.compile`` does, but compile it at its first call."""
    if function is None:
        return partial(when_called, **options)

    @cache
    def compiled() -> Any:
        return torch.compile(function, **options)

    @wraps(function)
    def called(*args: Any, **named: Any) -> Any:
        return compiled()(*args, **named)

    return called


with contextlib.suppress(ImportError), patch.object(torch, "compile", when_called):
    import bitsandbytes  # noqa: F401 - imported for its cost; whoever needs it says that it is missing


def linear_sum_assignment(*args: Any, **named: Any) -> Any:
    """Call scipy's function of this name, which is imported by then and no sooner."""
    from scipy import optimize

    return optimize.linear_sum_assignment(*args, **named)


with contextlib.suppress(ImportError), patch.object(transformers.utils, "is_scipy_available", lambda: False):
    import transformers.loss.loss_utils
for _name in ("loss_for_object_detection", "loss_deformable_detr", "loss_grounding_dino"):
    if (_loss := sys.modules.get(f"transformers.loss.{_name}")) is not None:
        vars(_loss).update(
            linear_sum_assignment=linear_sum_assignment, is_scipy_available=import_utils.is_scipy_available
        )
