"""What this machine can run and why not, one finding a line, in the words of doctor.toml. Loads no model.

Of GPUs: what NVML shows, who is on them, and whose its readings can be shown to be. It is read once and
nothing is run: which reading is the worker's own is tested by each run for itself.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from bench.errors import UnavailableError, counted, listed
from bench.io import cache_folder, own_toml
from bench.metrics import GIB
from bench.probes.nvml import MEMORY_VERSION, PROCESSES_VERSION, GpuSample, Nvml, open_nvml, torchs_device
from bench.records.environment import cpu_multiplies_bf16, read_environment
from bench.records.readings import INVALIDATING, GpuFacts, name_events
from bench.records.records import DeviceFacts
from bench.runner.schedule import FLASH_ATTENTION_CAPABILITY, INT8_CAPABILITY, NF4_CAPABILITY
from bench.workers.classify import count_oom_kills
from bench.workers.launch import Launcher
from bench.workers.supervise import probe

# PROC_PID_INIT_INO of include/linux/proc_ns.h: the namespace whose process numbers the driver knows.
_FIRST_NAMESPACE = "pid:[4026531836]"
_CONTAINER_FILES = (".dockerenv", "run/.containerenv")
_CONTAINER_VARIABLES = {
    "container",
    "KUBERNETES_SERVICE_HOST",
    "APPTAINER_CONTAINER",
    "SINGULARITY_CONTAINER",
}
_MOST_NAMED = 4  # processes in a line
_READINGS = {
    "utilisation_percent": "utilisation",
    "power_mw": "power",
    "energy_mj": "energy",
    "sm_clock_mhz": "SM clock",
    "temperature_c": "temperature",
    "event_reasons": "clock event reasons",
}


_TEXTS = own_toml("bench.runner", "doctor.toml")


@dataclass(frozen=True)
class Finding:
    """One thing this machine has or lacks; ``blocking`` when without it nothing can be run."""

    subject: str
    text: str
    _: KW_ONLY
    good: bool = True
    blocking: bool = False


def _find(check: str, good: object, *, blocking: bool = False, **facts: object) -> Finding:
    """Return what doctor.toml says of a check, with the facts it names."""
    texts = _TEXTS[check]
    text = texts.get("text") or texts["good" if good else "bad"]
    subject = texts.get("subject", check)
    return Finding(subject.format(**facts), text.format(**facts), good=bool(good), blocking=blocking)


def examine(note: Callable[[str], None] | None = None, launcher: Launcher | None = None) -> list[Finding]:
    """Look at packages and machine, and ask a worker what torch finds.

    Raises ``InfrastructureError`` when no worker starts.
    """
    environment = read_environment()
    packages = [*_packages()]
    if any(finding.blocking for finding in packages):
        return packages
    launcher = launcher or Launcher()
    facts = probe(launcher, note)
    machine, versions = environment.machine, environment.versions
    limit = machine["memory_limit_bytes"]
    limited = "" if limit is None else f", limited to {int(limit) / GIB:.1f} GiB by a control group"
    cpu = f"{machine['cpu_model']} ({machine['architecture']}), {machine['cpu_cores']} cores usable"
    folder = cache_folder()
    names = sorted(path.parent.name for path in folder.glob("*/complete.json"))
    return [
        Finding("python", str(versions["python"])),
        Finding("torch", f"{versions.get('torch')}, {facts.cpu_threads} threads on the CPU"),
        Finding("processor", cpu),
        Finding("memory", f"{int(machine['memory_bytes'] or 0) / GIB:.1f} GiB{limited}"),
        *packages,
        _find("workers", launcher.start_method == "forkserver"),
        _find("host peak memory", facts.host_peak_instrument == "VmHWM"),
        _find("out-of-memory kills", count_oom_kills() is not None),
        _find("weights in the cache", names, folder=folder, names=", ".join(names)),
        _find("bf16 on CPU", cpu_multiplies_bf16()),
        _find("bitsandbytes on CPU", good=True, version=versions.get("bitsandbytes")),
        *_cuda(facts),
        *find_gpus(facts),
    ]


def _packages() -> Iterator[Finding]:
    requirements = [Requirement(text) for text in metadata.requires("finetune-bench") or []]
    needed = [item for item in requirements if item.marker is None or item.marker.evaluate({"extra": ""})]
    lacking = 0
    for requirement in needed:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            lacking += 1
            found = f"version {version} is installed" if version else "it is not installed"
            yield _find("package", good=False, blocking=True, requirement=requirement, found=found)
    yield _find("packages", not lacking, good_ones=len(needed) - lacking, needed=len(needed))


def _cuda(facts: DeviceFacts) -> Iterator[Finding]:
    capability = facts.cuda_capability or (0, 0)
    yield _find(
        "CUDA",
        facts.cuda_available,
        reason=facts.cuda_unavailable_reason or "torch finds no device",
        name=facts.cuda_name,
        size=_size(facts.cuda_total_bytes or 0),
        capability=".".join(map(str, capability)),
        version=facts.cuda_version,
    )
    if facts.cuda_available:
        yield _find("bf16 on CUDA", facts.bf16_on_cuda is not False)
        for check, needed in (("4-bit on CUDA", NF4_CAPABILITY), ("int8 on CUDA", INT8_CAPABILITY)):
            yield _find(check, capability >= needed, needed=".".join(map(str, needed)))
        if facts.flash_attention_2:
            yield _find("flash_attention_2", capability >= FLASH_ATTENTION_CAPABILITY)
        else:
            yield _find("flash-attn", good=False)


def find_gpus(
    facts: DeviceFacts, *, environment: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> Iterator[Finding]:
    """Ask NVML, if it is there, and hold it against what the worker's ``facts`` say of CUDA."""
    try:
        with open_nvml() as nvml:
            yield _find("NVIDIA driver", good=True, version=nvml.driver_version or "of unknown version")
            yield from (_find("NVIDIA driver", good=False, problem=problem) for problem in nvml.problems)
            samples = {gpu.uuid: nvml.gpu(gpu.uuid).sample() for gpu in nvml.gpus()}
            yield from _cards(nvml, samples, root)
            yield from _torchs_gpu(nvml, facts)
            pids = [pid for sample in samples.values() for pid in sample.processes or ()]
            yield _isolation(pids, environment, root)
    except UnavailableError as error:
        yield _find("no NVML", good=False, error=error)


def _cards(nvml: Nvml, samples: Mapping[str, GpuSample], root: Path) -> Iterator[Finding]:
    for card in (gpu for gpu in nvml.gpus() if gpu.parent_uuid is None):
        slices = [gpu for gpu in nvml.gpus() if gpu.parent_uuid == card.uuid]
        name, sample, mode = f"GPU {card.index}", samples[card.uuid], nvml.mig_mode(card.uuid)
        cut = f"MIG on, {counted(len(slices), 'slice')}" if mode else "MIG off"
        yield _find(
            "card", slices or not mode, name=name, facts=_describe(card, None if mode is None else cut)
        )
        if not slices:  # else its processes are those of its slices, each under its own
            yield _use(name, sample, root)
        if events := name_events(sample.event_reasons or 0, INVALIDATING):
            yield _find("clock", good=False, name=name, events=", ".join(events))
        for place, part in enumerate(slices):
            yield _find("card", good=True, name=f"{name}, slice {place}", facts=_describe(part))
            yield _use(f"{name}, slice {place}", samples[part.uuid], root)


def _describe(gpu: GpuFacts, cut: str | None = None) -> str:
    limit = None if gpu.power_limit_mw is None else f"power limit {gpu.power_limit_mw / 1000:.0f} W"
    parts = gpu.name or "name unknown", _size(gpu.total_bytes), limit, cut, gpu.uuid
    return ", ".join(part for part in parts if part is not None)


def _use(name: str, sample: GpuSample, root: Path) -> Finding:
    used_bytes, processes = sample.device_used_bytes, sample.processes
    used = "memory use unknown" if used_bytes is None else f"{_size(used_bytes)} used"
    if processes is None:
        return _find("unknown use", good=False, name=name, used=used)
    named = []
    for pid, share_bytes in processes.items():
        share = "share unknown" if share_bytes is None else _size(share_bytes)
        here = "" if _is_here(pid, root) else ", not visible from here"
        named.append(f"process {pid} ({share}{here})")
    return _find("use", not named, name=name, used=used, processes=listed(named, _MOST_NAMED))


def _is_here(pid: int, root: Path) -> bool:
    return (root / "proc" / str(pid)).exists()


def _torchs_gpu(nvml: Nvml, facts: DeviceFacts) -> Iterator[Finding]:
    """Tell whether NVML knows the device that CUDA calls its first, and what can be read of it."""
    own, why = torchs_device(nvml.gpus(), facts.cuda_uuid)
    why_none = facts.cuda_unavailable_reason or "torch finds no device"
    none = f"NVML shows GPUs, and torch uses none: {why_none}"
    yield Finding(
        "CUDA and NVML", why if facts.cuda_available else none, good=facts.cuda_available and own is not None
    )
    gpu = nvml.gpu((own or nvml.gpus()[0]).uuid)
    sample = gpu.sample()
    usable = [f"memory ({MEMORY_VERSION})"] if sample.device_used_bytes is not None else []
    if sample.processes is not None:
        usable.append(f"processes ({PROCESSES_VERSION})")
    usable += [words for name, words in _READINGS.items() if getattr(sample, name) is not None]
    yield Finding("GPU instruments", f"{', '.join(usable) or 'none'} of {gpu.facts.uuid}", good=bool(usable))
    yield from (Finding("GPU instruments", problem, good=False) for problem in gpu.problems)


def _isolation(pids: list[int], environment: Mapping[str, str], root: Path) -> Finding:
    """Tell by what numbers NVML can know our processes; a run tests what its readings are worth."""
    strange = next((pid for pid in pids if not _is_here(pid, root)), None)
    own_numbers = False
    with contextlib.suppress(OSError):
        own_numbers = str((root / "proc/self/ns/pid").readlink()) != _FIRST_NAMESPACE
    contained = any((root / name).exists() for name in _CONTAINER_FILES)
    contained |= not _CONTAINER_VARIABLES.isdisjoint(environment)
    where = "in a container" if contained else "on the machine itself"
    if own_numbers:
        where = "in a container with process numbers of its own"
    why = ", and NVML may list others or none"
    if strange is not None:
        why = f"; NVML lists process {strange}, which is not visible from here"
    return _find("isolation", strange is None and not own_numbers, where=where, why=why)


def _size(size_bytes: int | None) -> str:
    return "memory unknown" if size_bytes is None else f"{size_bytes / GIB:.1f} GiB"
