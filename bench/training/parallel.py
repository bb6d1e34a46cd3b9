"""Several ranks: the group of processes that they are, and the model as each of them has it."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed
from torch.distributed import FileStore, PrefixStore  # type: ignore[attr-defined]  # of its C++ part
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    OffloadPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy
from torch.nn.parallel import DistributedDataParallel

from bench.errors import UnavailableError, UsageError
from bench.scenario.cell import Cell
from bench.scenario.parallel import ParallelDtype
from bench.training.loading.models import DTYPES, OWN_GPU, device_of


@contextmanager
def process_group(cell: Cell, rank: int, rendezvous: str) -> Iterator[None]:
    """Be that rank of the cell's meanwhile: over NCCL, each with a GPU of its own, or over gloo on the CPU.

    ``rendezvous`` is a file that all ranks can write, not there yet. A cell of one process needs no group. In
    a collective the others are waited for as long as a worker may give no sign of life, to begin with longer.
    Raises ``UnavailableError`` where there are fewer GPUs than ranks.
    """
    gpus = cell.parallel.gpus
    if not cell.parallel.several:
        yield
        return
    if cell.device == "cuda":
        if (found := torch.cuda.device_count()) < gpus:
            raise UnavailableError(f"{cell.id} needs {gpus} GPUs and there are {found}; lower parallel.gpus")
        OWN_GPU.set(rank)
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // gpus))
    store = FileStore(rendezvous, gpus)
    store.set(f"rank{rank}", "here")
    store.wait([f"rank{each}" for each in range(gpus)], timedelta(seconds=cell.limits.timeout_s))
    nccl = "cpu:gloo,cuda:nccl" if cell.parallel.cpu_offload else "nccl"  # gradients on the host have a norm
    torch.distributed.init_process_group(
        nccl if cell.device == "cuda" else "gloo",
        store=PrefixStore("group", store),
        rank=rank,
        world_size=gpus,
        timeout=timedelta(seconds=min(cell.limits.timeout_s, cell.limits.heartbeat_timeout_s)),
    )
    yield
    torch.distributed.barrier()  # nobody leaves while another still waits for what it sent
    torch.distributed.destroy_process_group()


@contextmanager
def launched(cell: Cell, *, on: str, device: str) -> Iterator[None]:
    """Have accelerate find this rank of the process group meanwhile, by the variables that torchrun sets.

    A ``device`` that is no GPU stands for one ``on`` CUDA. Processes on the CPU are told so of FSDP as well,
    which accelerate has on GPUs alone.
    """
    from accelerate.state import DistributedType, PartialState

    if not cell.parallel.several:
        yield
        return
    rank, ranks = torch.distributed.get_rank(), cell.parallel.gpus
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    told["OMP_NUM_THREADS"] = torch.get_num_threads()  # or accelerate sets it
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {name: str(value) for name, value in told.items()}))
        if device != "cuda":
            one_of = DistributedType.MULTI_CPU
            if on == "cuda" or cell.parallel.sharded:
                one_of = DistributedType.MULTI_GPU
            found = "nccl" if on == "cuda" else "gloo", one_of
            os.environ["ACCELERATE_TORCH_DEVICE"] = device
            stack.enter_context(patch.object(PartialState, "_prepare_backend", lambda *_: found))
        yield


def spread(model: Any, cell: Cell) -> Any:
    """Return an adapted model ready for a step on this rank of the process group, which has to be there.

    ``ddp`` leaves out the broadcast at the beginning: all ranks load the same weights and draw the same
    adapters. ``fsdp2`` shards each wrapped layer by itself, then what is left together, all with the same
    settings; ``fsdp1`` flattens them first, and what is trained of an adapter by itself.
    Weights that lie on the host come to the device layer by layer.
    """
    if cell.parallel.strategy == "ddp":
        return DistributedDataParallel(model, init_sync=False)
    parallel = cell.parallel
    if parallel.strategy == "fsdp1":
        return _flattened(model, cell)
    mesh = init_device_mesh("cuda" if cell.device == "cuda" else "cpu", (parallel.gpus,))
    policy = MixedPrecisionPolicy(
        param_dtype=_dtype(parallel.param_dtype), reduce_dtype=_dtype(parallel.reduce_dtype)
    )
    offload = CPUOffloadPolicy(pin_memory=cell.device == "cuda") if parallel.cpu_offload else OffloadPolicy()
    for module in (*wrapped_layers(model, cell), model):
        fully_shard(
            module,
            mesh=mesh,
            mp_policy=policy,
            offload_policy=offload,
            reshard_after_forward=parallel.reshard_after_forward,
        )
    return model


def _flattened(model: torch.nn.Module, cell: Cell) -> FullyShardedDataParallel:
    """Shard by FSDP1 as transformers' Trainer has accelerate do it.

    A flat parameter is of one dtype, so that peft's ``fsdp_auto_wrap_policy`` takes each layer of an adapter
    by itself; original parameters stay visible (``use_orig_params``), which accelerate sets by default.
    """
    parallel, classes = cell.parallel, {type(layer) for layer in wrapped_layers(model, cell)}
    adapted, param_dtype = cell.method.kind != "full", _dtype(parallel.param_dtype)

    def wrapped(module: torch.nn.Module) -> bool:
        weight = getattr(module, "weight", None)
        alone = adapted and weight is not None and weight.requires_grad and not any(module.children())
        return type(module) in classes or alone

    full, grad_op = ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP
    return FullyShardedDataParallel(
        model,
        sharding_strategy=full if parallel.reshard_after_forward else grad_op,
        auto_wrap_policy=partial(lambda_auto_wrap_policy, lambda_fn=wrapped),
        mixed_precision=MixedPrecision(
            param_dtype=param_dtype, reduce_dtype=_dtype(parallel.reduce_dtype), buffer_dtype=param_dtype
        ),
        device_id=device_of(cell),
        use_orig_params=True,
    )


def wrapped_layers(model: torch.nn.Module, cell: Cell) -> list[torch.nn.Module]:
    """Return the layers that are sharded each by itself; raise ``UsageError`` where none is so called."""
    listed = (getattr(module, "_no_split_modules", None) or () for module in model.modules())
    names = set(cell.parallel.wrap) or {name for each in listed for name in each}
    found = [module for module in model.modules() if names & {kind.__name__ for kind in type(module).__mro__}]
    if not found:
        wanted = f"no layer of class {' or '.join(sorted(names))}" if names else "no list of layers to wrap"
        advice = "set parallel.wrap to the class of its layers, such as LlamaDecoderLayer"
        raise UsageError(f"this model has {wanted}; {advice}")
    return found


def _dtype(name: ParallelDtype) -> torch.dtype | None:
    return None if name == "as-trained" else DTYPES[name]
