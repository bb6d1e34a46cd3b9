"""What a record says about where it was made: machine, versions, source revision, thread settings.

Read without importing torch. Never the host's name, a user's name, or any variable not listed here.
"""

import contextlib
import os
import platform
import re
from importlib import metadata
from pathlib import Path

from bench.io import kernel_text
from bench.records.git import source_state
from bench.records.records import Environment

KEY_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "lm-eval", "finetune-bench")
OTHER_PACKAGES = (
    *("datasets", "tokenizers", "safetensors", "numpy", "triton", "flash-attn", "liger-kernel", "trl"),
    "nvidia-ml-py",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_PROC_BIND")
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "MALLOC_ARENA_MAX")
_HARMLESS = re.compile(r"[A-Za-z0-9_.,:=\[\] -]{1,200}")
_UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63


def read_environment() -> Environment:
    """Return the fingerprint of this machine and installation; what cannot be read is None.

    A thread or allocator setting of an unexpected form is replaced, never copied.
    """
    versions = {"python": platform.python_version()}
    for package in (*KEY_PACKAGES, *OTHER_PACKAGES):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    settings = {name: os.environ.get(name) for name in (*THREAD_VARIABLES, *ALLOCATOR_VARIABLES)}
    harmless = {
        name: value if value is None or _HARMLESS.fullmatch(value) else "(unreadable)"
        for name, value in settings.items()
    }
    return Environment(
        machine={
            "system": platform.system(),
            "kernel": platform.release().partition("-")[0],
            "architecture": platform.machine(),
            "cpu_model": cpu_model(),
            "cpu_cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "memory_limit_bytes": _memory_limit_bytes(),
        },
        versions=versions,
        git=source_state(Path(__file__).resolve().parents[2]),
        threads={**harmless, "cpu_quota_percent": _cpu_quota_percent()},
    )


def cpu_model() -> str | None:
    """Return the processor's name, or on machines that give none its implementer and part number."""
    fields = _cpu_fields()
    if "model name" not in fields and "CPU part" in fields:
        return f"implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']}"
    return fields.get("model name")


def cpu_multiplies_bf16() -> bool:
    """Return whether oneDNN has bf16 products for this processor; without, torch's are many times slower.

    ``mkldnn_bf16_device_check`` of aten/src/ATen/native/mkldnn/Utils.h asks for AVX-512's BW, VL and DQ, or
    Arm's bf16. A processor that tells nothing of itself is believed to have them.
    """
    fields = _cpu_fields()
    flags = set(fields.get("flags", fields.get("Features", "bf16")).split())
    return "bf16" in flags or {"avx512bw", "avx512vl", "avx512dq"} <= flags


def _cpu_fields() -> dict[str, str]:
    lines = [line.partition(":") for line in (kernel_text(Path("/proc/cpuinfo")) or "").splitlines()]
    return {key.strip(): value.strip() for key, _, value in reversed(lines)}  # those of the first core


def _memory_limit_bytes() -> int | None:
    """Return the tightest memory limit of the control groups this process is in."""
    names = ("memory.max", "memory.limit_in_bytes")
    texts = [text for name in names for text in control_group_files("memory", name)]
    limits = [int(text) for text in texts if text.isdigit() and int(text) < _UNLIMITED_BYTES]
    return min(limits, default=None)


def _cpu_quota_percent() -> int | None:
    """Return the tightest CPU quota of the control groups in percent of one core; None without one."""
    v1 = (control_group_files("cpu", f"cpu.cfs_{what}_us") for what in ("quota", "period"))
    v2 = (text.partition(" ")[::2] for text in control_group_files("cpu", "cpu.max"))
    quotas = [
        int(quota) * 100 // int(period)
        for quota, period in (*v2, *zip(*v1, strict=False))
        if quota.isdigit() and period.isdigit()
    ]
    return min(quotas, default=None)


def control_group_files(
    controller: str, name: str, *, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[str]:
    """Return the texts of one control file, from this process's own group up to the root.

    Version 2 names no controller (``0::/path``); version 1 mounts each under its name. The first is the
    process's own group; groups that a container hides are left out.
    """
    texts = []
    for line in (kernel_text(own) or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" or controller in controllers.split(","):
            mount = root if number == "0" else root / controller
            group = mount / path.lstrip("/")
            folders = [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]
            texts += [text.strip() for folder in folders if (text := kernel_text(folder / name)) is not None]
    return texts
