"""What this machine can run and why not, one finding a line. Loads no model.

Of GPUs: what NVML shows, who is on them, and whose its readings can be shown to be. It is read once and
nothing is run: which reading is the worker's own is tested by each run for itself.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from bench.errors import UnavailableError, counted
from bench.io import cache_folder
from bench.metrics import GIB
from bench.probes.nvml.device import GpuProcess, GpuSample
from bench.probes.nvml.library import Nvml, open_nvml
from bench.probes.nvml.visible_devices import resolve_uuid
from bench.records.environment import read_environment
from bench.records.readings import INVALIDATING, GpuFacts, name_events
from bench.records.records import DeviceFacts, Environment
from bench.runner.schedule import FLASH_ATTENTION_CAPABILITY, INT8_CAPABILITY, NF4_CAPABILITY
from bench.workers.classify import count_oom_kills
from bench.workers.launch import Launcher, LocalLauncher
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


@dataclass(frozen=True)
class Finding:
    """One thing this machine has or lacks; ``blocking`` when without it nothing can be run."""

    subject: str
    text: str
    _: KW_ONLY
    good: bool = True
    blocking: bool = False


def _either(subject: str, good: object, text: str, text_if_not: str) -> Finding:
    return Finding(subject, text if good else text_if_not, good=bool(good))


def examine(note: Callable[[str], None] | None = None, launcher: Launcher | None = None) -> list[Finding]:
    """Look at packages and machine, and ask a worker what torch finds.

    Raises ``InfrastructureError`` when no worker starts.
    """
    environment = read_environment()
    packages = [*_packages()]
    if any(finding.blocking for finding in packages):
        return packages
    launcher = launcher or LocalLauncher()
    facts = probe(launcher, note)
    instruments = _instruments(launcher, environment, facts)
    return [*_machine(environment, facts), *packages, *instruments, *_cuda(facts), *find_gpus(facts)]


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
            text = f"{requirement} is needed and {found}; pip install '{requirement}'"
            yield Finding(requirement.name, text, good=False, blocking=True)
    text = f"{len(needed) - lacking} of {len(needed)} as new as needed"
    yield Finding("packages", text, good=not lacking)


def _machine(environment: Environment, facts: DeviceFacts) -> Iterator[Finding]:
    machine, versions = environment.machine, environment.versions
    limit = machine["memory_limit_bytes"]
    limited = "" if limit is None else f", limited to {int(limit) / GIB:.1f} GiB by a control group"
    processor = f"{machine['cpu_model']} ({machine['architecture']}), {machine['cpu_cores']} cores usable"
    yield Finding("python", str(versions["python"]))
    yield Finding("torch", f"{versions.get('torch')}, {facts.cpu_threads} threads on the CPU")
    yield Finding("processor", processor)
    yield Finding("memory", f"{int(machine['memory_bytes'] or 0) / GIB:.1f} GiB{limited}")


def _instruments(launcher: Launcher, environment: Environment, facts: DeviceFacts) -> Iterator[Finding]:
    yield _either(
        "workers",
        launcher.start_method == "forkserver",
        "forked from a server that has imported the libraries",
        "spawned, since importing the libraries touches CUDA here; each start takes seconds longer",
    )
    yield _either(
        "host peak memory",
        facts.host_peak_instrument == "VmHWM",
        "exact per phase (VmHWM can be reset)",
        "VmHWM cannot be reset here (/proc/self/clear_refs), so no host peaks are read; "
        "allow writing to it, or run outside this sandbox",
    )
    yield _either(
        "out-of-memory kills",
        count_oom_kills() is not None,
        "counted by the kernel",
        "not counted where this process can see it, so a kill for memory is recorded as crashed",
    )
    names = ", ".join(sorted(path.parent.name for path in cache_folder().glob("*/complete.json")))
    none = "none yet; bench run fetches what a scenario needs, and then needs a network"
    yield Finding("weights in the cache", f"{cache_folder()}: {names or none}", good=bool(names))
    on_cpu = "nf4, fp4, int8 and 8-bit AdamW work; its paged optimizers run but page nothing"
    yield Finding("bitsandbytes on CPU", f"{environment.versions.get('bitsandbytes')}: {on_cpu}")


def _cuda(facts: DeviceFacts) -> Iterator[Finding]:
    if not facts.cuda_available:
        reason = facts.cuda_unavailable_reason or "torch finds no device"
        text = f'{reason}; cells with device = "cuda" are recorded as unavailable here'
        yield Finding("CUDA", text, good=False)
        return
    capability = facts.cuda_capability or (0, 0)
    total = (facts.cuda_total_bytes or 0) / GIB
    card = f"{facts.cuda_name}, {total:.1f} GiB, capability {'.'.join(map(str, capability))}"
    yield Finding("CUDA", f"{card}, CUDA {facts.cuda_version}")
    no_bf16 = "not on this card; use fp16 or fp32"
    yield _either("bf16 on CUDA", facts.bf16_on_cuda is not False, "supported", no_bf16)
    for subject, needed in (("4-bit on CUDA", NF4_CAPABILITY), ("int8 on CUDA", INT8_CAPABILITY)):
        text_if_not = f"needs capability {needed[0]}.{needed[1]}"
        yield _either(subject, capability >= needed, "supported by bitsandbytes", text_if_not)
    if facts.flash_attention_2:
        new_enough = capability >= FLASH_ATTENTION_CAPABILITY
        yield _either("flash_attention_2", new_enough, "usable", "needs Ampere or newer; use sdpa")
    else:
        yield Finding("flash_attention_2", "not installed; pip install flash-attn, or use sdpa", good=False)


def find_gpus(
    facts: DeviceFacts, *, environment: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> Iterator[Finding]:
    """Ask NVML, if it is there, and hold it against what the worker's ``facts`` say of CUDA."""
    try:
        with open_nvml() as nvml:
            yield Finding("NVIDIA driver", nvml.driver_version or "of unknown version")
            for problem in nvml.problems:
                yield Finding("NVIDIA driver", problem, good=False)
            samples = {gpu.uuid: nvml.gpu(gpu.uuid).sample() for gpu in nvml.gpus()}
            yield from _cards(nvml, samples, root)
            yield from _torchs_gpu(nvml, facts, environment)
            yield _isolation([*samples.values()], environment, root)
    except UnavailableError as error:
        text = f"{error}; nothing is read of a GPU from outside the worker"
        yield Finding("NVIDIA driver", text, good=False)


def _cards(nvml: Nvml, samples: Mapping[str, GpuSample], root: Path) -> Iterator[Finding]:
    for card in (gpu for gpu in nvml.gpus() if gpu.parent_uuid is None):
        slices = [gpu for gpu in nvml.gpus() if gpu.parent_uuid == card.uuid]
        name, sample, mode = f"GPU {card.index}", samples[card.uuid], nvml.mig_mode(card.uuid)
        parts = [*_describe(card)]
        if mode is not None:
            parts.insert(-1, f"MIG on, {counted(len(slices), 'slice')}" if mode else "MIG off")
        if empty := mode is True and not slices:
            parts.append("CUDA shows nothing of it; make slices with nvidia-smi mig -cgi, or switch MIG off")
        yield Finding(name, ", ".join(parts), good=not empty)
        if not slices:  # else its processes are those of its slices, each under its own
            yield _use(name, sample, root)
        if events := name_events(sample.event_reasons or 0, INVALIDATING):
            text = f"slowed down now: {', '.join(events)}; check its cooling and supply before measuring"
            yield Finding(f"clock of {name}", text, good=False)
        for place, part in enumerate(slices):
            yield Finding(f"{name}, slice {place}", ", ".join(_describe(part)))
            yield _use(f"{name}, slice {place}", samples[part.uuid], root)


def _describe(gpu: GpuFacts) -> Iterator[str]:
    yield gpu.name or "name unknown"
    yield _size(gpu.total_bytes)
    if gpu.power_limit_mw is not None:
        yield f"power limit {gpu.power_limit_mw / 1000:.0f} W"
    yield gpu.uuid


def _use(name: str, sample: GpuSample, root: Path) -> Finding:
    known = sample.device_used_bytes is not None
    used = f"{_size(sample.device_used_bytes)} used" if known else "memory use unknown"
    if sample.processes is None:
        return Finding(f"use of {name}", f"{used}; NVML does not list processes here", good=False)
    if not sample.processes:
        return Finding(f"use of {name}", f"{used}, no process listed")
    named = []
    for process in sample.processes[:_MOST_NAMED]:
        share = "share unknown" if process.used_bytes is None else _size(process.used_bytes)
        here = "" if _is_here(process, root) else ", not visible from here"
        named.append(f"process {process.pid} ({share}{here})")
    more = len(sample.processes) - len(named)
    text = f"{used}, by {', '.join(named)}{f' and {more} more' if more else ''}; measure when they have ended"
    return Finding(f"use of {name}", text, good=False)


def _is_here(process: GpuProcess, root: Path) -> bool:
    return (root / "proc" / str(process.pid)).exists()


def _torchs_gpu(nvml: Nvml, facts: DeviceFacts, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Tell whether NVML knows the device that CUDA calls its first, and what can be read of it."""
    address = resolve_uuid(
        nvml.gpus(),
        visible_devices=environment.get("CUDA_VISIBLE_DEVICES"),
        device_order=environment.get("CUDA_DEVICE_ORDER"),
        worker_uuid=facts.cuda_uuid,
    )
    reason = facts.cuda_unavailable_reason or "torch finds no device"
    yield Finding(
        "CUDA and NVML",
        address.reason if facts.cuda_available else f"NVML shows GPUs, and torch uses none: {reason}",
        good=facts.cuda_available and address.gpu is not None and not address.contradiction,
    )
    gpu = nvml.gpu((address.gpu or nvml.gpus()[0]).uuid)
    sample = gpu.sample()
    usable = [f"memory ({gpu.memory_version})"] if sample.device_used_bytes is not None else []
    if sample.processes is not None:
        usable.append(f"processes ({gpu.processes_version})")
    usable += [words for name, words in _READINGS.items() if getattr(sample, name) is not None]
    yield Finding("GPU instruments", f"{', '.join(usable) or 'none'} of {gpu.facts.uuid}", good=bool(usable))
    yield from (Finding("GPU instruments", problem, good=False) for problem in gpu.problems)


def _isolation(samples: Sequence[GpuSample], environment: Mapping[str, str], root: Path) -> Finding:
    """Tell by what numbers NVML can know our processes; a run tests what its readings are worth."""
    listed = [process for sample in samples for process in sample.processes or ()]
    strange = next((process.pid for process in listed if not _is_here(process, root)), None)
    own_numbers = False
    with contextlib.suppress(OSError):
        own_numbers = str((root / "proc/self/ns/pid").readlink()) != _FIRST_NAMESPACE
    contained = any((root / name).exists() for name in _CONTAINER_FILES)
    contained |= not _CONTAINER_VARIABLES.isdisjoint(environment)
    where = "in a container" if contained else "on the machine itself"
    if own_numbers:
        where = "in a container with process numbers of its own"
    advice = "each run tests which reading moves with a known block; --pid=host would settle it"
    if strange is not None:
        text = f"{where}; NVML lists process {strange}, which is not visible from here: {advice}"
    elif own_numbers:
        text = f"{where}, and NVML may list others or none: {advice}"
    else:
        text = f"{where}, with the process numbers that NVML lists; each run tests it with a known block"
    return Finding("isolation", text, good=strange is None and not own_numbers)


def _size(size_bytes: int | None) -> str:
    return "memory unknown" if size_bytes is None else f"{size_bytes / GIB:.1f} GiB"
