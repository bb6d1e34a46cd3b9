"""Makes once, in the server that workers are forked from, what each would make anew; imported first.

transformers compiles a thousand patterns for names of weights before the first model of a process is loaded.
And it reads every file of its models for the names in them, twice: first as it is imported, then with
``transformers.models``, for it remembers 128 folders and has four times as many.
"""

import contextlib
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
