"""One rank of several on meta tensors: a process group that does nothing, and streams that only have numbers.

Collectives give what they would in size. Blocks are born on the stream that is current then, since CUDA's
caching allocator has a pool for each.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import distributed
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # it is in torch's C++ part
from torch.nn.parallel import DistributedDataParallel

from bench.scenario.cell import Cell
from bench.scenario.platform import Platform
from bench.training import parallel

MAIN_STREAM = 0


class _Event:
    """Is always over."""

    def record(self, *_stream: object) -> Self:
        return self

    def wait(self, *_stream: object) -> None:
        """Wait for nothing."""

    synchronize = wait


class _Stream:
    """A stream by its number; waits for nothing."""

    def __init__(self, number: int) -> None:
        self.number = number

    def wait_stream(self, _other: object) -> None:
        """Wait for nothing."""

    wait_event = synchronize = wait_stream

    def record_event(self, _event: object = None) -> _Event:
        return _Event()


class Streams:
    """What FSDP2 asks of ``torch.cuda``: streams, and which is current."""

    Event = _Event

    def __init__(self) -> None:
        self.current = MAIN_STREAM
        self.receive: Callable[[Iterable[torch.Tensor]], object] = list
        """Told of the tensors of each layer that comes to the device to be sharded."""
        self.offload: Callable[[torch.Tensor], object] = id
        """Told of each shard that goes back to the host."""
        self._made = MAIN_STREAM

    def now(self) -> int:
        return self.current

    def Stream(self, **_options: object) -> _Stream:  # noqa: N802 - torch's name
        self._made += 1
        return _Stream(self._made)

    def is_available(self) -> bool:
        return True

    def current_stream(self, _device: object = None) -> _Stream:
        return _Stream(self.current)

    @contextmanager
    def stream(self, stream: _Stream | None) -> Iterator[None]:
        before, self.current = self.current, self.current if stream is None else stream.number
        try:
            yield
        finally:
            self.current = before


class _SilentDdp(DistributedDataParallel):
    """All-reduces nothing: what a bucket holds afterwards is as large as before.

    The kernel of that collective for meta tensors has no result that could be waited for.
    """

    def __init__(self, module: torch.nn.Module, **options: Any) -> None:
        options.pop("device_ids", None)  # accelerate's, of a GPU
        options.pop("output_device", None)
        super().__init__(module, **options)
        self.register_comm_hook(None, _reduced)


_SilentDdp.__name__ = DistributedDataParallel.__name__  # by which the ledger calls it


def _reduced(_state: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    distributed.all_reduce(bucket.buffer())
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


@contextmanager
def one_of_several(cell: Cell, platform: Platform, rank: int) -> Iterator[Streams]:
    """Run a ``with`` block as that rank of the cell's; of one alone nothing is different."""
    streams = Streams()
    if not cell.parallel.several:
        yield streams
        return
    # Kernels of collectives for the meta device are registered by this import.
    import torch.distributed._tools.fake_collectives
    from torch.distributed.fsdp import _init_utils
    from torch.distributed.fsdp._fully_shard import _fsdp_init, _fully_shard
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
    from torch.distributed.tensor import _sharding_prop
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=cell.parallel.gpus)

    def arrive(parameters: Sequence[torch.Tensor], buffers: Sequence[torch.Tensor], _device: object) -> None:
        streams.receive((*parameters, *buffers))

    def arrive_flat(module: torch.nn.Module, ignored: set[torch.nn.Parameter], *_beside: object) -> None:
        arrive([*_init_utils._get_orig_params(module, ignored)], [*module.buffers()], None)

    handle = streams if platform.device == "cuda" else torch.cpu
    with ExitStack() as stack:
        stack.callback(distributed.destroy_process_group)
        for owner, name, stand_in in (
            (_fully_shard, "_get_device_from_mesh", lambda _mesh: torch.device("meta")),
            (_fsdp_init, "_move_states_to_device", arrive),
            (FSDPParamGroup, "_validate_no_meta_params", lambda _group: None),
            (_init_utils, "_need_to_materialize_module", lambda *_of: (False, False)),
            (_init_utils, "_get_device_from_device_id", lambda device, *_of: device),
            (_init_utils, "_move_module_to_device", arrive_flat),
            (torch.UntypedStorage, "data_ptr", lambda storage: storage._cdata if storage.nbytes() else 0),
            (torch.Tensor, "data_ptr", lambda tensor: tensor.untyped_storage().data_ptr()),
            (parallel, "DistributedDataParallel", _SilentDdp),
            (torch.nn.parallel, "DistributedDataParallel", _SilentDdp),
            (torch.nn.parallel.distributed, "_verify_param_shape_across_processes", lambda *_of: None),
        ):
            stack.enter_context(patch.object(owner, name, stand_in))
        stack.enter_context(patch.object(torch, "meta", handle, create=True))
        # Of placements that FSDP alone does not make; for a list of parameters it looks at each for each.
        strided = patch.object(_sharding_prop, "_propagate_use_strided_shard_flag", create=True)
        stack.enter_context(strided)
        if cell.parallel.cpu_offload:
            stack.enter_context(_offloaded(streams) if platform.device == "cuda" else _left_on_host())
        yield streams


@contextmanager
def _offloaded(streams: Streams) -> Iterator[None]:
    """Have FSDP2 take shards to the host, and copies of them back to the device to be gathered."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    kind: Any = _fsdp_param.FSDPParam
    shard, inputs = kind._init_sharded_param, kind.all_gather_inputs.fget

    def shard_to_host(param: Any, *args: Any) -> None:
        shard(param, *args)
        streams.offload(param._sharded_param_data)

    def brought_inputs(param: Any) -> Any:
        if param.sharded_state != _fsdp_param.ShardedState.SHARDED:
            return inputs(param)
        brought = torch.empty(param._sharded_param_data.shape, dtype=param.orig_dtype, device="meta")
        return [brought if param.param_dtype is None else brought.to(param.param_dtype)]

    with (
        patch.object(kind, "_init_sharded_param", shard_to_host),
        patch.object(kind, "all_gather_inputs", property(brought_inputs)),
        patch.object(FSDPParamGroup, "_validate_cpu_offload_params", lambda _group: None),
    ):
        yield


@contextmanager
def _left_on_host() -> Iterator[None]:
    """On a CPU leave to the host what is there already, as torch does of tensors that are not meta."""
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    move, host = torch.Tensor.to, torch.device("cpu")

    def moved(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        return tensor if tensor.is_meta and args[:1] == (host,) else move(tensor, *args, **options)

    with (
        patch.object(torch.Tensor, "to", moved),
        patch.object(FSDPParamGroup, "_validate_cpu_offload_params", lambda _group: None),
    ):
        yield
