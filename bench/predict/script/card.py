"""Makes a script believe in a device whose tensors have no data.

torch alone is patched, so that libraries take the paths that they take on the device: meta tensors tell
everybody but torch's innermost files and ours that they are on ``cuda:0``, or for a prediction of the CPU on
``cpu``; what is asked for on the card is made on the meta device.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from sys import _getframe
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils import _device

from bench.errors import UnavailableError
from bench.predict.script.ledger import ScriptState, place
from bench.scenario.catalogue import Card

CUDA, CPU, META = torch.device("cuda", 0), torch.device("cpu"), torch.device("meta")
_OF_BLANKS = torch.device("cpu")
"""What tensors without data say on the CPU: this very object, so that what is made there has none either."""
_TRUE_DEVICE = torch._C.TensorBase.device.__get__
_BENCH, _TORCH = Path(__file__).parents[2], Path(torch.__file__).parent
_INNER = (
    *(f"{_BENCH}/{name}" for name in ("predict/", "probes/")),
    *(f"{_TORCH}/{name}" for name in ("_", "utils/_python_dispatch", "utils/_pytree", "library")),
)
"""Files that are told where a tensor truly is."""
_FACTORIES = """empty zeros ones full arange rand randn randint randperm linspace logspace eye empty_strided
    scalar_tensor tril_indices triu_indices empty_like zeros_like ones_like full_like rand_like randn_like
    randint_like hann_window"""
_METHODS = "new_empty new_zeros new_ones new_full new_tensor new_empty_strided"
_DO_NOTHING = """init set_device synchronize ipc_collect manual_seed manual_seed_all seed seed_all
    set_rng_state set_rng_state_all set_per_process_memory_fraction _lazy_init"""

_OF_ANY = """is_available device_count synchronize current_stream empty_cache memory_stats memory_allocated
    memory_reserved max_memory_allocated max_memory_reserved reset_peak_memory_stats"""
"""What torch.accelerator tells of the card under the same name as torch.cuda."""


class Patches:
    """Replaces names until a stack is closed, and says which are missing in the installed libraries."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Replace one name; raise ``UnavailableError`` if there is none."""
        if not hasattr(owner, name):
            where = getattr(owner, "__name__", owner)
            raise UnavailableError(
                f"scripts cannot be predicted with the libraries installed here: {where} has no {name}, "
                "which a prediction replaces; install the versions that bench names, or use bench plan."
            )
        self._stack.enter_context(patch.object(owner, name, value))


@contextmanager
def pretended(state: ScriptState, card: Card | None) -> Iterator[None]:
    """Let a block run on a card, or where there is none on the CPU, without its tensors' data."""
    _device._device_constructors()
    with ExitStack() as stack:
        patches = Patches(stack)
        _tensors(state, patches)
        _factories(state, patches)
        _left_out(state, patches)
        if card is not None:
            for name, answer in {**_facts_of(card), **_use_of(state, card)}.items():
                patches.put(torch.cuda, name, answer)
                for inner in (torch.cuda.memory, torch.cuda.random):
                    if hasattr(inner, name) and not isinstance(answer, type):
                        patches.put(inner, name, answer)
                if name in _OF_ANY.split():
                    patches.put(torch.accelerator, name, answer)
            for name, told in (("current_accelerator", torch.device("cuda")), ("current_device_index", 0)):
                patches.put(torch.accelerator, name, lambda *_, _told=told, **__: _told)
            for name in ("_record_memory_history", "_dump_snapshot"):
                patches.put(torch.cuda.memory, name, lambda *_, **__: None)
            patches.put(
                torch.nn.DataParallel, "scatter", lambda _, args, kwargs, _cards: ((args,), (kwargs,))
            )
            patches.put(torch, "Generator", _Generator)
            for owner in (torch.cuda.amp, torch.cuda.amp.autocast_mode):
                patches.put(owner, "autocast", _old_autocast)
        yield


def _tensors(state: ScriptState, patches: Patches) -> None:
    """Let tensors tell where they are said to be, and what is known of their values."""
    told: dict[Any, bool] = {}
    device = _OF_BLANKS if state.on_cpu else CUDA

    def claimed(self: Tensor) -> torch.device:
        true: torch.device = _TRUE_DEVICE(self)
        if true.type != "meta" or state.paused:
            return true
        code = _getframe(1).f_code
        if code not in told:
            told[code] = code.co_filename.startswith(_INNER)
        return META if told[code] else CPU if self in state.hosts else device

    def on_card(self: Tensor) -> bool:
        return self.is_meta and not state.on_cpu and self not in state.hosts

    shown: Any = Tensor.__format__
    moved = partial(_moved, state, Tensor.to)

    def reading(read: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, *args, **kwargs: read(state.values_of(self), *args, **kwargs)

    replaced: dict[str, Any] = {
        **{name: reading(getattr(Tensor, name)) for name in ("tolist", "numpy", "__array__")},
        "__format__": lambda self, how: shown(state.values_of(self) if self.dim() == 0 else self, how),
        "device": property(claimed),
        "is_cuda": property(on_card),
        "is_cpu": property(lambda self: not on_card(self)),
        "to": lambda self, *args, **kwargs: moved(self, *args, **kwargs),  # noqa: PLW0108 - a partial is no method
        "cpu": lambda self, **kwargs: moved(self, "cpu", **kwargs),
        "cuda": lambda self, *_, **__: moved(self, "cuda"),
        "get_device": lambda self: 0 if on_card(self) else -1,
        "pin_memory": lambda self, *_: self,
        "is_pinned": lambda _self, *_: False,
        "record_stream": lambda _self, _stream: None,
    }
    for name, value in replaced.items():
        patches.put(Tensor, name, value)


def _moved(
    state: ScriptState, to: Callable[..., Tensor], tensor: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Move between the host and the device, as Tensor.to does."""
    copy = bool(kwargs.pop("copy", False))
    if args and isinstance(args[0], Tensor):
        on_host = state.on_cpu or not args[0].is_meta or args[0] in state.hosts
        args = (CPU if on_host else CUDA, args[0].dtype, *args[1:])
    parsed: Any = torch._C._nn._parse_to(*args, **kwargs)
    target, dtype = parsed[0], parsed[1] or tensor.dtype
    more = {"memory_format": parsed[3]} if parsed[3] else {}

    def to_meta(*, always: bool = False) -> Tensor:
        return to(tensor, META, dtype, copy=copy or always, **more)

    where = None if target is None else target.type
    if where is None or where == "meta" or (not tensor.is_meta and where == "cpu"):
        return to(tensor, target or _TRUE_DEVICE(tensor), dtype, copy=copy, **more)
    if where == "cuda" and tensor in state.hosts:
        with state.counting():
            return to_meta(always=True)
    if where == "cuda" or state.on_cpu or tensor in state.hosts:
        return to_meta()
    value = state.known.value_of(tensor)
    with state.truthful():
        return state.hosts.add(to_meta(always=True)) if value is None else to(value, CPU, dtype, copy=True)


def _factories(state: ScriptState, patches: Patches) -> None:
    """Make without data what is asked for where tensors have none, and every parameter."""
    for owner, names in ((torch, _FACTORIES), (Tensor, _METHODS)):
        for name in names.split():
            patches.put(owner, name, _making(state, getattr(owner, name)))
    for name in ("tensor", "as_tensor"):
        patches.put(torch, name, _from_data(state, getattr(torch, name)))
    begin, make_parameter = _device.DeviceContext.__init__, torch.nn.Parameter.__new__

    def entered(self: Any, device: Any) -> None:
        begin(self, META if _ours(state, device) else device)

    def parameter(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:  # noqa: FBT001, FBT002 - torch's own
        if type(data) in {Tensor, torch.nn.Parameter} and not data.is_meta and data.is_floating_point():
            data = state.on_host(data)
        return make_parameter(cls, data, requires_grad)

    patches.put(_device.DeviceContext, "__init__", entered)
    patches.put(torch.nn.Parameter, "__new__", parameter)


def _making(state: ScriptState, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        if _ours(state, kwargs.get("device")):
            kwargs["device"] = META
        return make(*args, **kwargs)

    return made


def _from_data(state: ScriptState, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a tensor of given values on the host and move it, as torch does."""

    def made(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        if state.on_cpu or not _ours(state, kwargs.get("device")):
            return make(data, *args, **kwargs)
        if isinstance(data, Tensor):
            return data.to("cuda", kwargs.get("dtype") or data.dtype)
        trained = kwargs.pop("requires_grad", False)
        return make(data, *args, **{**kwargs, "device": "cpu"}).to("cuda").requires_grad_(trained)

    return made


def _ours(state: ScriptState, device: Any) -> bool:
    """Tell whether what is made on a device has no data."""
    if state.on_cpu or device is None:
        return device is _OF_BLANKS
    return isinstance(device, int) or torch.device(device).type == "cuda"


def _left_out(state: ScriptState, patches: Patches) -> None:
    """Compile and save nothing, and say so; refuse to load weights and to join other ranks."""
    import safetensors.torch

    def noted(what: str, result: Callable[[Any], Any] = lambda _given: None) -> Callable[..., Any]:
        def note(given: Any = None, *_args: Any, **_kwargs: Any) -> Any:
            state.notes[f"{what} at {place()}"] = None
            return result(given)

        return note

    def refused(why: str) -> Callable[..., None]:
        def refuse(*_args: Any, **_kwargs: Any) -> None:
            raise state.refuse(why)

        return refuse

    unread = refused("loads tensors from a file, of which a prediction has none.")
    eager = "predicted without torch.compile"
    patches.put(torch, "compile", noted(eager, lambda model: model or (lambda function: function)))
    patches.put(torch.nn.Module, "compile", noted(eager))
    patches.put(torch, "save", noted("nothing is saved"))
    patches.put(safetensors.torch, "_flatten_as_ptr", noted("nothing is saved", lambda _tensors: {}))
    patches.put(torch, "load", unread)
    patches.put(safetensors.torch, "safe_open", unread)
    kept = "runs a recurrent layer; how much it keeps depends on the kernel: measure it with bench watch."
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        patches.put(torch._VF, name, refused(kept))
    if torch.distributed.is_available():
        ranks = refused("joins a group of processes; one process on one card is predicted.")
        patches.put(torch.distributed, "init_process_group", ranks)


class _Idle:
    """Stands for streams, events and guards of a device that does nothing."""

    device, cuda_stream, stream_id = CUDA, 0, 0

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        """Take whatever torch's own take."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def is_capturing(self) -> bool:
        """Say that no graph is recorded."""
        return False

    def __getattr__(self, name: str) -> Callable[..., float]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_args, **_kwargs: 1.0


class _Generator(torch.Generator):
    """A generator of the card: no number is drawn there."""

    def __new__(cls, device: Any = None) -> Self:  # noqa: ARG004 - torch's own signature
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]  # its stub has no __new__


def _old_autocast(enabled: bool = True, dtype: Any = torch.float16, cache_enabled: bool = True) -> Any:  # noqa: FBT001, FBT002 - torch's own
    return torch.autocast("cuda", dtype, enabled, cache_enabled)


def _facts_of(card: Card) -> dict[str, Any]:
    """Return what torch.cuda tells of a card that it has."""
    major, minor = card.capability
    name = f"NVIDIA {card.title}"
    facts = {"name": name, "total_memory": card.usable_bytes, "major": major, "minor": minor}
    usual = {"multi_processor_count": 128, "warp_size": 32, "is_integrated": 0, "is_multi_gpu_board": 0}
    told: dict[str, Any] = {
        **dict.fromkeys(_DO_NOTHING.split()),
        **dict.fromkeys(("is_available", "is_initialized"), True),
        **dict.fromkeys(("current_device", "is_current_stream_capturing"), 0),
        **dict.fromkeys(("current_stream", "default_stream"), _Idle()),
        "device_count": 1,
        "get_device_name": name,
        "get_device_properties": SimpleNamespace(**facts, **usual),
        "get_device_capability": card.capability,
        "is_bf16_supported": card.capability >= (8, 0),
        "get_arch_list": [f"sm_{major}{minor}"],
        "memory_summary": "",
    }
    answers: dict[str, Any] = {name: lambda *_, _told=one, **__: _told for name, one in told.items()}
    return answers | dict.fromkeys(("Stream", "Event", "stream", "device", "device_of"), _Idle)


def _use_of(state: ScriptState, card: Card) -> dict[str, Any]:
    def live(*_: Any, **__: Any) -> int:
        return state.ledger.live_bytes

    def peak(*_: Any, **__: Any) -> int:
        return state.ledger.most_since_reset

    def reset(*_: Any, **__: Any) -> None:
        state.ledger.most_since_reset = state.ledger.live_bytes

    def statistics(*_: Any, **__: Any) -> dict[str, int]:
        now = {"current": live(), "peak": peak()}
        told = {f"{kind}_bytes.all.{when}": now[when] for kind in ("allocated", "reserved") for when in now}
        return Counter(told)  # of all else there was none

    return {
        **dict.fromkeys(("memory_allocated", "memory_reserved"), live),
        **dict.fromkeys(("max_memory_allocated", "max_memory_reserved"), peak),
        **dict.fromkeys(("reset_peak_memory_stats", "reset_max_memory_allocated"), reset),
        "memory_stats": statistics,
        "mem_get_info": lambda *_, **__: (card.torch_bytes - live(), card.usable_bytes),
        "empty_cache": lambda: state.ledger.empty_cache(),  # noqa: PLW0108 - the ledger comes later
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
    }
