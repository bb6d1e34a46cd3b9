"""Makes meta tensors take the code paths that a platform's tensors take. Nothing is allocated here.

torch and its companions choose kernels by device; on the meta device they would choose those of a
reference implementation. Everything is put back when the ``with`` block ends.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from itertools import product
from pathlib import PurePath
from traceback import extract_tb
from typing import Any
from unittest.mock import patch

import torch

from bench.errors import UntraceableError
from bench.predict.trace.autocast import staged_autocast
from bench.predict.trace.four_bit import four_bit_product
from bench.predict.trace.liger import empty_liger_loss
from bench.predict.trace.meta_kernels import staged_results
from bench.predict.trace.older_caches import staged_caches
from bench.predict.trace.older_losses import staged_loss
from bench.predict.trace.peft_initialisation import staged_initialisation
from bench.predict.trace.staging_attention import staged_attention
from bench.scenario.platforms import Platform
from bench.training import losses

_WITHOUT_DATA = ("meta tensor", "Meta tensor", "meta device", "Meta device")
"""What torch's messages say where data was asked for."""


@contextmanager
def staged(platform: Platform) -> Iterator[None]:
    """Run a ``with`` block as if the meta device were the platform's.

    Raises ``UntraceableError`` for what a model asks of tensors' data outside torch's operators, such as
    ``tolist`` or ``numpy``, and for what torch itself cannot do without data.
    """
    with ExitStack() as stack, _refusals():
        for owner, name, replacement in _replacements(platform):
            stack.enter_context(patch.object(owner, name, replacement))
        stack.enter_context(_fresh_quantisation_maps())
        stack.enter_context(staged_attention(platform))
        stack.enter_context(staged_initialisation(platform))
        stack.enter_context(staged_results(platform))
        stack.enter_context(staged_loss(platform))
        stack.enter_context(staged_caches(platform))
        stack.enter_context(staged_autocast(platform))
        yield


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn torch's complaint about missing data into a refusal that names the line."""
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        if not any(word in str(error) for word in _WITHOUT_DATA):
            raise
        frames = [frame for frame in extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
        place = f"{PurePath(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "torch"
        raise UntraceableError(
            f"this cell cannot be predicted: {place} needs the data of a tensor "
            f"({' '.join(str(error).split())[:150]}); measure it with bench run."
        ) from error


def _replacements(platform: Platform) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """Yield what is put in the place of functions that choose by device: owner, name, replacement."""
    # torch.optim hides its modules behind the classes of the same name.
    for_clipping, for_optimizers = map(import_module, ("torch.utils._foreach_utils", "torch.optim.optimizer"))
    names = ("_get_fused_kernels_supported_devices", "_get_foreach_kernels_supported_devices")
    for owner, name in product((for_clipping, for_optimizers), names):
        listed = getattr(owner, name)()
        # Clipping uses foreach kernels on the CPU as well, optimizers only if they are told to.
        if platform.device in listed or owner is for_clipping:
            yield owner, name, lambda listed=listed: [*listed, "meta"]
    from peft.tuners.tuners_utils import BaseTunerLayer

    yield BaseTunerLayer, "_move_adapter_to_device_of_base_layer", _move_adapter_to_base_layer
    if platform.device == "cuda":
        from bitsandbytes.autograd import _functions

        yield _functions, "MatMul4Bit", four_bit_product(platform)
        yield torch.nn.functional, "dropout", _dropout_on_cuda
        yield losses, "liger_loss", empty_liger_loss
    if platform.device == "cpu":
        import bitsandbytes

        yield bitsandbytes, "matmul", _int8_matmul_on_cpu


def _move_adapter_to_base_layer(
    self: Any,
    adapter_name: str,
    device: torch.device | None = None,  # noqa: ARG001 - peft's own signature
) -> None:
    """Give a new adapter the dtype of its layer, as peft does on every device but the meta device.

    Source: peft's tuners/tuners_utils.py, the method of this name. Parameters that are not in a module of
    their own become trainable by it, AdaLoRA's ranknum among them.
    """
    _, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
    if dtype is None or not dtype.is_floating_point:
        return
    for name in self.adapter_layer_names + self.other_param_names:
        held = getattr(self, name, None)
        if isinstance(held, torch.nn.ModuleDict | torch.nn.ParameterDict) and adapter_name in held:
            item = held[adapter_name]
            if isinstance(item, torch.nn.Module) or item.is_floating_point():
                held[adapter_name] = item.to(dtype=dtype)


def _dropout_on_cuda(
    input: torch.Tensor,  # noqa: A002 - torch's own signature
    p: float = 0.5,
    training: bool = True,  # noqa: FBT001, FBT002 - the same
    inplace: bool = False,  # noqa: FBT001, FBT002 - the same
) -> torch.Tensor:
    """Keep one byte for each element, where the meta device would multiply with noise of the input's dtype.

    Source: pytorch aten/src/ATen/native/Dropout.cpp, is_fused_kernel_acceptable.
    """
    if not training or inplace or not 0 < p < 1 or not input.numel():
        return torch.dropout_(input, p, training) if inplace else torch.dropout(input, p, training)
    return torch.native_dropout(input, p, training)[0]


def _int8_matmul_on_cpu(  # noqa: PLR0913, PLR0917 - bitsandbytes' own signature
    values: Any,
    weight: Any,
    out: Any = None,
    state: Any = None,
    threshold: float = 0.0,
    bias: Any = None,
) -> Any:
    """Choose what bitsandbytes chooses for training on a CPU (its autograd/_functions.py, matmul)."""
    from bitsandbytes.autograd import _functions

    if not state.is_training:
        return _functions.matmul(values, weight, out, state, threshold, bias)
    state.threshold = threshold or state.threshold
    return _functions.MatMul8bitFp.apply(values, weight, out, bias, state)


@contextmanager
def _fresh_quantisation_maps() -> Iterator[None]:
    """Keep maps without data out of the global in which bitsandbytes keeps its quantisation maps."""
    import bitsandbytes.functional

    maps = bitsandbytes.functional.name2qmap
    before = dict(maps)
    maps.clear()
    try:
        yield
    finally:
        maps.clear()
        maps.update(before)
