"""Makes a script believe in a device whose tensors have no data.

torch alone is patched, so that libraries take the paths that they take on the device: meta tensors tell
everybody but torch's innermost files and ours that they are on ``cuda:0``, or for a prediction of the CPU on
``cpu``; what is asked for on the card is made on the meta device.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from sys import _getframe
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils import _device

import bench
from bench.errors import UnavailableError
from bench.predict.script.ledger import ScriptState, place
from bench.scenario.catalogue import Card

CUDA, CPU, META = torch.device("cuda", 0), torch.device("cpu"), torch.device("meta")
_OF_BLANKS = torch.device("cpu")
"""What tensors without data say on the CPU: this very object, so that what is made there has none either."""
_TRUE_DEVICE = torch._C.TensorBase.device.__get__  # type: ignore[attr-defined]  # noqa: SLF001 - under the patch
_TORCH = Path(torch.__file__).parent
_INNER = tuple(
    str(path)
    for path in (
        *(Path(str(files(bench))) / name for name in ("predict", "probes")),
        *(_TORCH / name for name in ("_", "utils/_python_dispatch", "utils/_pytree", "library")),
    )
)
"""Files that are told where a tensor truly is."""
_FACTORIES = """empty zeros ones full arange rand randn randint randperm linspace logspace eye empty_strided
    scalar_tensor tril_indices triu_indices empty_like zeros_like ones_like full_like rand_like randn_like
    randint_like hann_window""".split()
_METHODS = "new_empty new_zeros new_ones new_full new_tensor new_empty_strided".split()
_LEFT_OUT = """init set_device synchronize ipc_collect manual_seed manual_seed_all seed seed_all set_rng_state
    set_rng_state_all set_per_process_memory_fraction _lazy_init""".split()
"""Functions of torch.cuda that have nothing to do here."""


class Patches:
    """Replaces names until a stack is closed, and says which are missing in the installed libraries."""

    def __init__(self, stack: ExitStack) -> None:
        """Undo everything on ``stack``."""
        self._stack = stack

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Replace one name; raise ``UnavailableError`` if there is none."""
        if not hasattr(owner, name):
            where = f"{getattr(owner, '__module__', '')} {getattr(owner, '__name__', owner)}".strip()
            raise UnavailableError(
                f"scripts cannot be predicted with the libraries installed here: {where} has no {name}, which "
                "a prediction replaces; install the versions that bench names, or use bench plan."
            )
        self._stack.enter_context(patch.object(owner, name, value))


@contextmanager
def pretended(state: ScriptState, card: Card | None) -> Iterator[None]:
    """Let a block run on a card, or where there is none on the CPU, without its tensors' data."""
    _device._device_constructors()  # type: ignore[no-untyped-call]  # noqa: SLF001 - cached: what torch.device(...) acts on
    with ExitStack() as stack:
        patches = Patches(stack)
        _tensors(state, patches)
        _factories(state, patches)
        _left_out(state, patches)
        if card is not None:
            _cuda(state, card, patches)
        yield


def _tensors(state: ScriptState, patches: Patches) -> None:
    told: dict[Any, bool] = {}
    device = _OF_BLANKS if state.on_cpu else CUDA

    def claimed(self: Tensor) -> torch.device:
        true = _TRUE_DEVICE(self)
        if true.type != "meta" or state.paused:
            return true  # type: ignore[no-any-return]  # torch leaves its getter untyped
        code = _getframe(1).f_code
        if code not in told:
            told[code] = code.co_filename.startswith(_INNER)
        return META if told[code] else CPU if self in state.hosts else device

    def on_card(self: Tensor) -> bool:
        return self.is_meta and not state.on_cpu and self not in state.hosts

    values = {name: getattr(Tensor, name) for name in ("tolist", "numpy", "__array__")}
    for name, method in values.items():
        patches.put(Tensor, name, lambda self, *a, _of=method, **k: _of(state.values_of(self), *a, **k))
    shown = Tensor.__format__

    def formatted(self: Tensor, how: str) -> str:
        return shown(state.values_of(self) if self.dim() == 0 else self, how)

    moved = partial(_moved, state, Tensor.to)
    for name, value in {
        "device": property(claimed),
        "is_cuda": property(on_card),
        "is_cpu": property(lambda self: not on_card(self)),
        "__format__": formatted,
        "to": lambda self, *args, **kwargs: moved(self, *args, **kwargs),
        "cpu": lambda self, **kwargs: moved(self, "cpu", **kwargs),
        "cuda": lambda self, _device=None, non_blocking=False, **kwargs: moved(self, "cuda", **kwargs),
        "get_device": lambda self: 0 if on_card(self) else -1,
        "pin_memory": lambda self, *_: self,
        "is_pinned": lambda _self, *_: False,
        "record_stream": lambda _self, _stream: None,
    }.items():
        patches.put(Tensor, name, value)


def _moved(state: ScriptState, to: Callable[..., Tensor], tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Move between the host and the device, as Tensor.to does."""
    copy = bool(kwargs.pop("copy", False))
    if args and isinstance(args[0], Tensor):
        args = (_claimed_device(state, args[0]), args[0].dtype, *args[1:])
    target, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)  # type: ignore[attr-defined]  # noqa: SLF001 - what Module.to calls
    more = {"copy": copy, "memory_format": layout} if layout else {"copy": copy}
    where = None if target is None else target.type

    def to_meta(*, always: bool = False) -> Tensor:
        return to(tensor, META, dtype or tensor.dtype, **{**more, "copy": copy or always})

    if where is None or where == "meta" or (not tensor.is_meta and where == "cpu"):
        return to(tensor, target or _TRUE_DEVICE(tensor), dtype or tensor.dtype, **more)
    if state.on_cpu and where == "cpu":
        return to_meta()
    if where == "cuda":
        if tensor not in state.hosts:
            return to_meta()
        with state.counting():
            return to_meta(always=True)
    if tensor in state.hosts:
        return to_meta()
    value = state.known.value_of(tensor)
    with state.truthful():
        return state.hosts.add(to_meta(always=True)) if value is None else value.to(dtype or tensor.dtype, copy=True)


def _claimed_device(state: ScriptState, tensor: Tensor) -> torch.device:
    return CPU if state.on_cpu or not tensor.is_meta or tensor in state.hosts else CUDA


def _factories(state: ScriptState, patches: Patches) -> None:
    """Make what is asked for on the card, and the CPU's likes of tensors without data, on the meta device."""
    def making(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **kwargs: Any) -> Any:
            if _ours(state, kwargs.get("device")):
                kwargs["device"] = META
            return make(*args, **kwargs)

        return made

    def from_data(make: Callable[..., Tensor]) -> Callable[..., Any]:
        def made(data: Any, *args: Any, **kwargs: Any) -> Any:
            if state.on_cpu or not _ours(state, kwargs.get("device")):
                return make(data, *args, **kwargs)
            if isinstance(data, Tensor):
                return data.to("cuda", kwargs.get("dtype") or data.dtype)
            trained = kwargs.pop("requires_grad", False)
            return make(data, *args, **{**kwargs, "device": "cpu"}).to("cuda").requires_grad_(trained)

        return made

    for name in _FACTORIES:
        patches.put(torch, name, making(getattr(torch, name)))
    for name in _METHODS:
        patches.put(Tensor, name, making(getattr(Tensor, name)))
    for name in ("tensor", "as_tensor"):
        patches.put(torch, name, from_data(getattr(torch, name)))
    made_parameter = torch.nn.Parameter.__new__

    def parameter(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:  # noqa: FBT001, FBT002 - torch's own
        if type(data) in {Tensor, torch.nn.Parameter} and not data.is_meta and data.is_floating_point():
            data = state.on_host(data)
        return made_parameter(cls, data, requires_grad)

    patches.put(torch.nn.Parameter, "__new__", parameter)
    begin = _device.DeviceContext.__init__
    patches.put(
        _device.DeviceContext,
        "__init__",
        lambda self, device: begin(self, META if _ours(state, device) else device),
    )


def _ours(state: ScriptState, device: Any) -> bool:
    """Tell whether what is made on a device has no data."""
    if state.on_cpu or device is None:
        return device is _OF_BLANKS
    return isinstance(device, int) or torch.device(device).type == "cuda"


def _left_out(state: ScriptState, patches: Patches) -> None:
    """Compile and save nothing, and say so; refuse to load weights."""

    def noted(what: str, result: Any = None) -> Callable[..., Any]:
        def note(first: Any = None, *_args: Any, **_kwargs: Any) -> Any:
            state.notes[f"{what} at {place()}"] = None
            return result(first) if result else None

        return note

    def refused(*_args: Any, **_kwargs: Any) -> None:
        raise state.refuse("loads tensors from a file, of which a prediction has none.")

    import safetensors.torch

    eager = "predicted without torch.compile"
    patches.put(torch, "compile", noted(eager, lambda model: model or (lambda function: function)))
    patches.put(torch.nn.Module, "compile", noted(eager))
    patches.put(torch, "save", noted("nothing is saved"))
    patches.put(safetensors.torch, "_flatten_as_ptr", noted("nothing is saved", lambda _tensors: {}))
    patches.put(torch, "load", refused)
    patches.put(safetensors.torch, "safe_open", refused)


class _Idle:
    """Stands for streams, events and guards of a device that does nothing."""

    device, cuda_stream, stream_id = CUDA, 0, 0

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        """Take whatever torch's own take."""

    def __enter__(self) -> "_Idle":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., float]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_args, **_kwargs: 1.0


class _Generator(torch.Generator):
    """A generator of the card: no number is drawn there."""

    def __new__(cls, device: Any = None) -> "_Generator":  # noqa: ARG004 - torch's own signature
        return super().__new__(cls, "cpu")


def _cuda(state: ScriptState, card: Card, patches: Patches) -> None:
    """Let torch.cuda tell of one card and of what the ledger says is on it."""
    major, minor = card.capability
    facts = SimpleNamespace(
        name=f"NVIDIA {card.title}", total_memory=card.usable_bytes, major=major, minor=minor, uuid="0",
        multi_processor_count=128, warp_size=32, is_integrated=0, is_multi_gpu_board=0, gcnArchName="",
        max_threads_per_multi_processor=1536, regs_per_multiprocessor=65536, shared_memory_per_block=49152,
        shared_memory_per_block_optin=101376, L2_cache_size=72 << 20,
    )  # fmt: skip

    def live(*_: Any, **__: Any) -> int:
        return state.ledger.live_bytes

    def peak(*_: Any, **__: Any) -> int:
        return state.ledger.most_since_reset

    def reset(*_: Any, **__: Any) -> None:
        state.ledger.most_since_reset = state.ledger.live_bytes

    def statistics(*_: Any, **__: Any) -> dict[str, int]:
        kinds = {"current": live(), "peak": peak()}
        byte_counts = {f"{of}_bytes.all.{k}": n for of in ("allocated", "reserved") for k, n in kinds.items()}
        return {**byte_counts, "num_alloc_retries": 0, "num_ooms": 0}

    constants: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "utilization": 0,
        "get_device_name": facts.name, "get_device_properties": facts, "get_device_capability": card.capability,
        "is_bf16_supported": major >= 8, "get_arch_list": [f"sm_{major}{minor}"], "memory_summary": "",  # noqa: PLR2004 - Ampere
        "can_device_access_peer": False, "_is_in_bad_fork": False, **dict.fromkeys(_LEFT_OUT),
    }  # fmt: skip
    answers: dict[str, Any] = {name: lambda *_, _it=it, **__: _it for name, it in constants.items()}
    answers |= dict.fromkeys(("memory_allocated", "memory_reserved"), live)
    answers |= dict.fromkeys(("max_memory_allocated", "max_memory_reserved"), peak)
    answers |= dict.fromkeys(("reset_peak_memory_stats", "reset_max_memory_allocated"), reset)
    answers |= dict.fromkeys(("Stream", "Event", "stream", "device", "device_of"), _Idle)
    answers |= dict.fromkeys(("current_stream", "default_stream"), lambda *_: _Idle())
    answers |= {
        "mem_get_info": lambda *_, **__: (card.torch_bytes - live(), card.usable_bytes),
        "memory_stats": statistics,
        "empty_cache": lambda: state.ledger.empty_cache(),
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
    }
    for name, answer in answers.items():
        patches.put(torch.cuda, name, answer)
        for inner in (torch.cuda.memory, torch.cuda.random):
            if hasattr(inner, name) and name not in {"device", "device_of"}:
                patches.put(inner, name, answer)
    patches.put(torch._C, "_cuda_getDeviceCount", lambda: 1) if hasattr(torch._C, "_cuda_getDeviceCount") else None
    patches.put(torch, "Generator", _Generator)

    def old_autocast(enabled: bool = True, dtype: Any = torch.float16, cache_enabled: bool = True) -> Any:  # noqa: FBT001, FBT002 - torch's own
        return torch.autocast("cuda", dtype, enabled, cache_enabled)

    for owner in (torch.cuda.amp, torch.cuda.amp.autocast_mode):
        patches.put(owner, "autocast", old_autocast)
