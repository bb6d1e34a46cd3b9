"""torch.autocast for tensors of the meta device, which has none: the casts of a platform, and their cache.

A dispatch key that no backend uses here takes the place of AutocastCPU or AutocastCUDA, so casts happen
where they do on the device: above autograd, also inside composite operators. Source of the policies and of
the cache: pytorch aten/src/ATen/autocast_mode.cpp and autocast_mode.h.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor

from bench.predict.trace.meta_kernels import registrations
from bench.probes.ledger import name_of
from bench.scenario.platform import Platform

_KEY = "AutocastPrivateUse1"
_DEVICE = "privateuseone"

# By overload, for the CPU and for CUDA; what torch registers besides these is cast to fp32.
_LOWERED = {
    "cpu": """conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding bmm mm linalg_vecdot baddbmm
        addmm _addmm_activation addbmm linear _convolution.deprecated matmul conv_tbc mkldnn_rnn_layer
        conv_transpose1d conv_transpose2d.input conv_transpose3d.input prelu scaled_dot_product_attention
        _native_multi_head_attention""",
    "cuda": """_convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d
        conv_transpose2d.input conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum mm mv
        linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell
        _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
        _scaled_dot_product_flash_attention scaled_dot_product_attention cudnn_convolution
        cudnn_convolution_transpose""",
}
_GIVEN_FP32_AS_DTYPE = {
    "cpu": "",
    "cuda": """prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm
        linalg_matrix_norm linalg_matrix_norm.str_ord sum sum.dim_IntList norm.Scalar
        norm.ScalarOpt_dim""",
}
_PROMOTED = {
    "cpu": "stack cat index_copy",
    "cuda": """addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot
        scatter_add""",
}
_DTYPE_GIVEN_BY = {"norm.Scalar": "ScalarOpt_dtype", "norm.ScalarOpt_dim": "ScalarOpt_dim_dtype"}


class _State:
    """What torch keeps in C++: whether autocast is on, to which dtype, how deep, and the cached casts."""

    def __init__(self, device: str, stack: ExitStack) -> None:
        """Undo on ``stack`` what the first region sets up."""
        self._device, self._stack, self._ready = device, stack, False
        self.casts_on = {"meta", "cpu"} & {"meta", device}
        self.enabled = False
        self.dtype = torch.bfloat16
        self.caches = True
        self.depth = 0
        self.casts: dict[int, tuple[Tensor, Tensor]] = {}  # by id of the weight, which is kept as well

    def prepare(self) -> None:
        """Register the casts; regions that are never entered cost nothing."""
        if self._ready:
            return
        self._ready = True
        rest, aten = (self._stack.enter_context(registrations(namespace)) for namespace in ("_", "aten"))
        rest.fallback(torch.library.fallthrough_kernel, _KEY)
        for name, cast in _policies(self._device).items():
            aten.impl(name, _kernel(name, cast, self), _KEY)
        self._stack.callback(torch.set_autocast_enabled, _DEVICE, torch.is_autocast_enabled(_DEVICE))
        torch.set_autocast_enabled(_DEVICE, True)  # noqa: FBT003 - torch's own signature


class _Region:
    """Stands for torch.autocast on the meta device; other devices get torch's own."""

    state: _State

    def __init__(
        self,
        device_type: str,
        dtype: torch.dtype | None = None,
        enabled: bool = True,  # noqa: FBT001, FBT002 - torch's own signature
        cache_enabled: bool | None = None,  # noqa: FBT001 - the same
    ) -> None:
        self._dtype = dtype or (torch.float16 if device_type == "cuda" else self.state.dtype)
        self._enabled = enabled
        self._caches = self.state.caches if cache_enabled is None else cache_enabled
        self._before: list[tuple[bool, torch.dtype, bool]] = []
        self._guard = ExitStack()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a function, as accelerate does with a model's forward."""
        return torch.amp.autocast_mode.autocast_decorator(self, function)  # type: ignore[no-any-return]  # torch leaves it untyped

    def __enter__(self) -> Self:
        state = self.state
        self._before.append((state.enabled, state.dtype, state.caches))
        state.enabled, state.dtype, state.caches = self._enabled, self._dtype, self._caches
        state.depth += 1
        if self._enabled:
            state.prepare()
            key = getattr(torch._C.DispatchKey, _KEY)
            self._guard.enter_context(torch._C._IncludeDispatchKeyGuard(key))
        return self

    def __exit__(self, *_error: object) -> None:
        state = self.state
        self._guard.close()
        state.depth -= 1
        if state.depth == 0:
            state.casts.clear()
        state.enabled, state.dtype, state.caches = self._before.pop()


@contextmanager
def patched_autocast(platform: Platform) -> Iterator[None]:
    """Let torch.autocast cast tensors of the meta device as the platform casts its own."""
    import transformers.utils.generic

    theirs, asked, dtype_asked = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype
    available, ours = torch.amp.is_autocast_available, ("meta", platform.device)
    with ExitStack() as stack:
        state = _State(platform.device, stack)
        region = type("MetaAutocast", (_Region,), {"state": state})

        def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
            return (region if device_type in ours else theirs)(device_type, *args, **kwargs)

        def is_enabled(device: str = "cuda") -> bool:
            return state.enabled if device in ours else asked(device)

        replaced: list[tuple[Any, str, Callable[..., Any]]] = [
            (torch, "autocast", autocast),
            (torch.amp, "autocast", autocast),
            (torch.amp.autocast_mode, "autocast", autocast),
            (torch.amp, "is_autocast_available", lambda device: device in ours or available(device)),
            (torch, "is_autocast_enabled", is_enabled),
            (torch, "get_autocast_dtype", lambda d: state.dtype if d in ours else dtype_asked(d)),
            # What maybe_autocast(..., enabled=False) returns for tensors of the meta device: it switches off.
            (transformers.utils.generic, "nullcontext", lambda: region("meta", enabled=False)),
        ]
        for owner, name, function in replaced:
            stack.enter_context(patch.object(owner, name, function))
        yield


@cache
def _policies(device: str) -> dict[str, "Cast"]:
    """Return, for each overload that torch registers for the device's autocast, what is done to it."""
    key = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}[device]
    registered = torch._C._dispatch_get_registrations_for_dispatch_key(key)
    names = (name.removeprefix("aten::") for name in registered if name.startswith("aten::"))
    by_name: dict[str, Cast] = dict.fromkeys(names, _to_fp32)
    for cast, listed in ((_lowered, _LOWERED), (_with_dtype, _GIVEN_FP32_AS_DTYPE), (_promoted, _PROMOTED)):
        by_name.update({name: cast for name in listed[device].split() if name in by_name})
    return by_name


Cast = Callable[[Any, tuple[Any, ...], dict[str, Any], _State], tuple[Any, tuple[Any, ...], dict[str, Any]]]


def _kernel(name: str, cast: Cast, state: _State) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _KEY))

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            if not state.enabled:
                return operator(*args, **kwargs)
            call, args, kwargs = cast(operator, args, kwargs, state)
            return call(*args, **kwargs)

    return kernel


def _lowered(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], state: _State) -> Any:
    """Cast to the region's dtype; casts of trained fp32 leaves are made once a region."""
    return operator, *_cast(args, kwargs, lambda tensor: _cached_cast(tensor, state), state)


def _to_fp32(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], state: _State) -> Any:
    return operator, *_cast(args, kwargs, lambda tensor: tensor.to(torch.float32), state)


def _with_dtype(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], state: _State) -> Any:
    """Ask for a result in fp32 unless the caller asks for another dtype."""
    if not _eligible(args[0], state):
        return operator, args, kwargs
    name = name_of(operator).removeprefix("aten::")
    longer = _DTYPE_GIVEN_BY.get(f"{name}.{operator._overloadname}")
    if longer is not None:
        return getattr(getattr(torch.ops.aten, name), longer), args, {**kwargs, "dtype": torch.float32}
    place = [argument.name for argument in operator._schema.arguments].index("dtype")
    given = args[place] if place < len(args) else kwargs.get("dtype")
    if given is not None:
        return operator, args, kwargs
    return operator, args[:place], {**kwargs, "dtype": torch.float32}


def _promoted(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any], state: _State) -> Any:
    """Cast all to fp32 if one is."""
    dtypes: set[torch.dtype] = set()

    def note(tensor: Tensor) -> Tensor:
        dtypes.add(tensor.dtype)
        return tensor

    _cast(args, kwargs, note, state)
    if torch.float32 not in dtypes:
        return operator, args, kwargs
    return _to_fp32(operator, args, kwargs, state)


def _cached_cast(tensor: Tensor, state: _State) -> Tensor:
    if tensor.dtype == state.dtype:
        return tensor
    leaf = tensor.requires_grad and tensor.is_leaf and not tensor._is_view()
    if not (leaf and tensor.dtype == torch.float32 and state.caches):
        return tensor.to(state.dtype)
    known = state.casts.get(id(tensor))
    if known is None:
        known = state.casts[id(tensor)] = (tensor, tensor.to(state.dtype))
    return known[1]


def _cast(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor], state: _State
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def changed(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [changed(item) for item in value]
        return change(value) if _eligible(value, state) else value

    # The last argument first, as the compiler of torch's wheels evaluates them.
    named = {name: changed(kwargs[name]) for name in reversed(kwargs)}
    return tuple(reversed([changed(value) for value in reversed(args)])), named


def _eligible(value: object, state: _State) -> bool:
    return (
        isinstance(value, Tensor)
        and value.device.type in state.casts_on
        and value.is_floating_point()
        and value.dtype != torch.float64
    )
