"""What this machine can run, as torch and its companions see it. Loads no model."""

import importlib.util

import torch

from bench.probes import host_memory
from bench.records.records import DeviceFacts


def read_facts() -> DeviceFacts:
    """Return the device facts of this process. Touches CUDA, so never call it in a process that forks."""
    available = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if available else None
    return DeviceFacts(
        cpu_threads=torch.get_num_threads(),
        cuda_available=available,
        cuda_unavailable_reason=None if available else _why_no_cuda(),
        cuda_name=properties.name if properties else None,
        cuda_uuid=name_uuid(properties.name, properties.uuid) if properties else None,
        cuda_capability=(properties.major, properties.minor) if properties else None,
        cuda_total_bytes=properties.total_memory if properties else None,
        cuda_version=torch.version.cuda,
        bf16_on_cuda=torch.cuda.is_bf16_supported(including_emulation=False) if available else None,
        flash_attention_2=importlib.util.find_spec("flash_attn") is not None,
        host_peak_instrument="VmHWM" if host_memory.can_reset_peak() else "unavailable",
    )


def name_uuid(device_name: str, uuid: object) -> str:
    """Return torch's bare UUID as NVML and CUDA_VISIBLE_DEVICES write it.

    torch/csrc/cuda/Module.cpp writes cudaDeviceProp.uuid as 8-4-4-4-12 hex digits and no more. CUDA adds the
    profile to the name of a MIG slice ("NVIDIA A100-SXM4-40GB MIG 1g.5gb"), and gives it its own UUID since
    CUDA 12, before that its card's.
    """
    return f"{'MIG' if ' MIG ' in device_name else 'GPU'}-{uuid}"


def _why_no_cuda() -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    return "torch has CUDA but finds no usable device; check the driver with nvidia-smi"
