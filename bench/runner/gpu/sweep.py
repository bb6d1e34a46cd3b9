"""The GPU that a sweep's workers see: found by UUID, held against other sweeps, or why NVML is not asked."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from bench.errors import UnavailableError
from bench.probes.nvml.device import Gpu
from bench.probes.nvml.library import open_nvml
from bench.probes.nvml.visible_devices import resolve_uuid
from bench.records.records import DeviceFacts
from bench.runner.gpu.lock import hold_gpu
from bench.runner.observe import Observer


@dataclass(kw_only=True)
class SweepGpu:
    """What NVML is asked of; where ``gpu`` is None and ``unwatched`` not, that is the sentence why."""

    gpu: Gpu | None = None
    unwatched: str | None = None

    def give_up(self, why: str) -> None:
        """Ask NVML no more in this sweep."""
        self.gpu, self.unwatched = None, why


@contextlib.contextmanager
def sweep_gpu(facts: DeviceFacts, observer: Observer) -> Iterator[SweepGpu]:
    """Open NVML on torch's device 0 and hold that GPU meanwhile; without NVML, torch's own UUID is held.

    Raises ``InfrastructureError`` when another sweep holds it.
    """
    with contextlib.ExitStack() as stack:
        found = SweepGpu()
        try:
            found.gpu = _open(stack, facts, observer)
        except UnavailableError as error:
            found.unwatched = str(error)
        uuid = found.gpu.facts.uuid if found.gpu else facts.cuda_uuid
        if uuid is not None:
            stack.enter_context(hold_gpu(uuid))
        yield found


def _open(stack: contextlib.ExitStack, facts: DeviceFacts, observer: Observer) -> Gpu:
    nvml = stack.enter_context(open_nvml())
    address = resolve_uuid(
        nvml.gpus(),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        device_order=os.environ.get("CUDA_DEVICE_ORDER"),
        worker_uuid=facts.cuda_uuid,
    )
    if address.contradiction:
        observer.note(address.reason)
    if address.gpu is None:
        raise UnavailableError(address.reason)
    gpu: Gpu = nvml.gpu(address.gpu.uuid)
    return gpu
