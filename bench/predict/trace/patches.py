"""Makes meta tensors take the code paths that a platform's tensors take. Nothing is allocated here.

torch and its companions choose kernels by device; on the meta device they would choose those of a
reference implementation. Libraries older than the installed ones get back what they did differently.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from itertools import product
from pathlib import PurePath
from traceback import extract_tb
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from bench.errors import UntraceableError
from bench.predict.trace import meta_kernels
from bench.predict.trace.attention import patched_attention
from bench.predict.trace.autocast import patched_autocast
from bench.predict.trace.variants.adapters import of_peft, patched_adapters
from bench.predict.trace.variants.liger import empty_liger_loss, liger_stand_ins
from bench.predict.trace.variants.older_computations import older_computations
from bench.predict.trace.variants.older_models import check_platform, older_models
from bench.records.predictions import KERNELS_NOT_TRACED
from bench.records.readings import Caveat
from bench.scenario.platform import Platform
from bench.training import losses

Patches = Iterator[Any]
"""Patchers of unittest.mock, to be entered."""

_WITHOUT_DATA = ("meta tensor", "Meta tensor", "meta device", "Meta device")
"""What torch's messages say where data was asked for."""


@contextmanager
def patched(platform: Platform) -> Iterator[None]:
    """Run a ``with`` block as if the meta device were the platform's.

    Raises ``UntraceableError`` for a platform that is not known here, for what a model asks of tensors' data
    outside torch's operators, such as ``tolist`` or ``numpy``, and for what torch cannot do without data.
    """
    check_platform(platform)
    with ExitStack() as stack, _refusals():
        for patches in (
            _torch,
            _bitsandbytes,
            _peft,
            patched_adapters,
            heard_implementations,
            liger_stand_ins,
            older_computations,
            older_models,
        ):
            for one in patches(platform):
                stack.enter_context(one)
        for context in (patched_attention, meta_kernels.patched_results, patched_autocast):
            stack.enter_context(context(platform))
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


def _torch(platform: Platform) -> Patches:
    # torch.optim hides its modules behind the classes of the same name.
    for_clipping, for_optimizers = map(import_module, ("torch.utils._foreach_utils", "torch.optim.optimizer"))
    names = ("_get_fused_kernels_supported_devices", "_get_foreach_kernels_supported_devices")
    for owner, name in product((for_clipping, for_optimizers), names):
        listed = getattr(owner, name)()
        # Clipping uses foreach kernels on the CPU as well, optimizers only if they are told to.
        if platform.device in listed or owner is for_clipping:
            yield patch.object(owner, name, lambda listed=listed: [*listed, "meta"])
    if platform.device == "cuda":
        yield patch.object(torch.nn.functional, "dropout", _dropout_on_cuda)
        yield patch.object(losses, "liger_loss", empty_liger_loss)


def _dropout_on_cuda(
    input: Tensor,  # noqa: A002 - torch's own signature
    p: float = 0.5,
    training: bool = True,  # noqa: FBT001, FBT002 - the same
    inplace: bool = False,  # noqa: FBT001, FBT002 - the same
) -> Tensor:
    """Keep one byte for each element, where the meta device would multiply with noise of the input's dtype.

    Source: pytorch aten/src/ATen/native/Dropout.cpp, is_fused_kernel_acceptable.
    """
    if not training or inplace or not 0 < p < 1 or not input.numel():
        return torch.dropout_(input, p, training) if inplace else torch.dropout(input, p, training)
    return torch.native_dropout(input, p, training)[0]


def _bitsandbytes(platform: Platform) -> Patches:
    import bitsandbytes
    from bitsandbytes import functional
    from bitsandbytes.autograd import _functions

    on_cuda = platform.device == "cuda"
    if on_cuda:
        yield patch.object(_functions, "MatMul4Bit", meta_kernels.four_bit_product(platform))
    else:
        yield patch.object(bitsandbytes, "matmul", _int8_matmul_on_cpu)
    paged = meta_kernels.managed_state if on_cuda else meta_kernels.ordinary_state
    yield patch.object(functional, "get_paged", paged)
    for fills_or_moves_pages in ("fill", "prefetch_tensor"):
        yield patch.object(functional, fills_or_moves_pages, lambda *_args, **_options: None)
    yield patch.dict(functional.name2qmap, clear=True)  # a global, which would keep maps without data


def _int8_matmul_on_cpu(  # noqa: PLR0917 - bitsandbytes' own signature
    values: Any, weight: Any, out: Any = None, state: Any = None, threshold: float = 0.0, bias: Any = None
) -> Any:
    """Choose what bitsandbytes chooses for training on a CPU (its autograd/_functions.py, matmul)."""
    from bitsandbytes.autograd import _functions

    if not state.is_training:
        return _functions.matmul(values, weight, out, state, threshold, bias)
    state.threshold = threshold or state.threshold
    return _functions.MatMul8bitFp.apply(values, weight, out, bias, state)


def _peft(platform: Platform) -> Patches:
    """Yield what peft's adapters need: initialisations that read tensors they have just made, too.

    Neither guesses: UniLoRA's indices follow from its seed, and a permutation's matrix is as large as it is
    long.
    """
    from peft.tuners import tuners_utils
    from peft.tuners.boft.layer import BOFTLayer

    name = "_move_adapter_to_device_of_base_layer"
    move = _as_on_a_device(getattr(tuners_utils.BaseTunerLayer, name), tuners_utils)
    yield patch.object(tuners_utils.BaseTunerLayer, name, move)
    if unilora := of_peft("tuners.unilora.model"):
        name = "_assign_unilora_indices_and_scales"
        assign = getattr(unilora.UniLoraModel, name)
        yield patch.object(unilora.UniLoraModel, name, _on_cpu(assign))
    yield patch.object(BOFTLayer, "perm2mat", lambda _self, indices: torch.empty(len(indices), len(indices)))
    if platform.device == "cuda":
        yield patch.object(BOFTLayer, "update_layer", _leaving_permutations(BOFTLayer.update_layer))


class _NoMeta:
    """torch, but for a module that asks for the meta device: it gets one that no tensor is on."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def device(*asked: Any) -> Any:
        return object() if asked == ("meta",) else torch.device(*asked)


def _as_on_a_device(move: Callable[..., None], module: Any) -> Callable[..., None]:
    """Let peft give a new adapter the dtype of its layer, which it leaves on the meta device as it is.

    Source: peft's tuners/tuners_utils.py, the method of this name. Parameters that are not in a module of
    their own become trainable by it, AdaLoRA's ranknum among them.
    """

    def moved(self: Any, *args: Any, **kwargs: Any) -> None:
        with patch.object(module, "torch", _NoMeta()):
            move(self, *args, **kwargs)

    return moved


def _on_cpu(assign: Callable[..., None]) -> Callable[..., None]:
    """Draw and count indices on the CPU, as peft does; it moves them to the layer's device by itself."""

    def assign_on_cpu(self: Any, adapter_name: str) -> None:
        with torch.device("cpu"):
            assign(self, adapter_name)

    return assign_on_cpu


def _leaving_permutations(update: Callable[..., None]) -> Callable[..., None]:
    """Keep BOFT's permutations on the CPU: peft moves adapters to the device, but not this buffer.

    Each forward pass copies it to the device (``boft_P.to(x)`` in peft's tuners/boft/layer.py).
    """

    def update_and_leave(self: Any, *args: Any, **kwargs: Any) -> None:
        update(self, *args, **kwargs)
        self.boft_P = torch.empty_like(self.boft_P, device="cpu")

    return update_and_leave


_FELL_BACK = re.compile(r"`(\w+)` is falling back to .* because `([\w.-]+)` is not installed")
_heard: set[tuple[str, str]] = set()
_EXPERTS = "experts"


class _Listening:
    """transformers' logger, heard for functions that fell back: also for those it has warned of before."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def warning_once(self, message: str, *args: Any) -> None:
        """Note a function and the package it would have come from."""
        if found := _FELL_BACK.search(message):
            _heard.add((found[2].replace("_", "-"), found[1]))
        else:
            self._logger.warning_once(message, *args)


def heard_implementations(platform: Platform) -> Iterator[Any]:
    """Yield what hears which of several implementations transformers runs for a card; a CPU has one of each.

    The library says so itself: hub_kernels.use_kernel_func_from_hub_with_fallback warns of each function that
    ran as its reference in torch, and moe.ExpertsInterface is asked for the products of experts.
    """
    if platform.device == "cpu":
        return
    from transformers.integrations import hub_kernels, moe

    _heard.clear()
    asked = "get_interface" if hasattr(moe.ExpertsInterface, "get_interface") else "__getitem__"  # until 5.0
    interface = getattr(moe.ExpertsInterface, asked)

    def heard(self: Any, name: str, *default: Any) -> Any:
        _heard.add((_EXPERTS, name))
        return interface(self, name, *default)

    yield patch.object(hub_kernels, "logger", _Listening(hub_kernels.logger))
    yield patch.object(moe.ExpertsInterface, asked, heard)


def implementations_of() -> Iterator[Caveat]:
    """Yield which implementations ran in the last trace for a card, where there are others."""
    fell_back = sorted((package, name) for package, name in _heard if package != _EXPERTS)
    if fell_back:
        packages = " and ".join(dict.fromkeys(package for package, _ in fell_back))
        names = ", ".join(name for _, name in fell_back)
        message = (
            f"Traced as without {packages}: {names} ran as transformers' reference in torch. With {packages} "
            "installed a card runs their kernels, which keep fewer tensors by design and were not measured "
            "here; what does not fit without them is too close to call."
        )
        yield Caveat(code=KERNELS_NOT_TRACED, message=message)
    for name in sorted(name for package, name in _heard if package == _EXPERTS):
        message = (
            f"Products of experts were traced as transformers' {name}; another experts_implementation takes "
            "other memory."
        )
        yield Caveat(code="experts-implementation", message=message)
