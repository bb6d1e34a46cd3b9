"""Makes once, in the server that workers are forked from, what each would make anew; imported first.

transformers compiles a thousand patterns for names of weights before the first model of a process is loaded.
And it reads every file of its models for the names in them, twice: first as it is imported, then with
``transformers.models``, for it remembers 128 folders and has four times as many.

bitsandbytes marks what stands for its own kernels on other devices to be compiled, for which torch imports
its whole compiler, a fifth of all imports; here it does so should one be called.
"""

import contextlib
from collections.abc import Callable
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers.utils import import_utils

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
