"""Makes meta tensors take the code paths that a platform's tensors take. Nothing is allocated here.

torch and its companions choose kernels by device; on the meta device they would choose those of a
reference implementation. Everything is put back when the ``with`` block ends.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch

from bench.memory.staging_attention import Attention
from bench.spec.platforms import Platform



@contextmanager
def staged(platform: Platform) -> Iterator[None]:
    """Run a ``with`` block as if the meta device were the platform's."""
    import bitsandbytes.functional

    with ExitStack() as stack:
        for module, name in _device_lists():
            listed = getattr(module, name)()
            stack.enter_context(patch.object(module, name, lambda listed=listed: [*listed, "meta"]))
        stack.enter_context(
            patch.object(torch.nn.functional, "scaled_dot_product_attention", Attention(platform))
        )
        # bitsandbytes keeps its quantisation maps in a global; those made here have no data.
        maps = dict(bitsandbytes.functional.name2qmap)
        stack.callback(bitsandbytes.functional.name2qmap.update, maps)
        stack.callback(bitsandbytes.functional.name2qmap.clear)
        yield


def _device_lists() -> list[tuple[Any, str]]:
    """Return torch's functions that list the devices with fused and foreach kernels, where imported."""
    names = ("_get_fused_kernels_supported_devices", "_get_foreach_kernels_supported_devices")
    # torch.optim hides its modules behind the classes of the same name.
    modules = [import_module(f"torch.{name}") for name in ("utils._foreach_utils", "optim.optimizer")]
    return [(module, name) for module in modules for name in names if hasattr(module, name)]
