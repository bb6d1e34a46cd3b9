"""What this machine can run and why not, one finding a line. Loads no model.

Of GPUs: what NVML shows, who is on them, and how far its readings can be told apart here. It is read once and
nothing is run: which reading is the worker's own is tested by each run for itself.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from bench.errors import UnavailableError
from bench.io import cache_folder
from bench.metrics import GIB
from bench.probes.nvml.device import Gpu, GpuProcess, GpuSample
from bench.probes.nvml.library import Nvml, open_nvml
from bench.probes.nvml.visible_devices import Address, resolve_uuid
from bench.records.clock_events import INVALIDATING, name_events
from bench.records.environment import read_environment
from bench.records.gpu import GpuFacts
from bench.records.records import DeviceFacts, Environment
from bench.runner.schedule import FLASH_ATTENTION_CAPABILITY, INT8_CAPABILITY, NF4_CAPABILITY
from bench.workers.classify import count_oom_kills
from bench.workers.launch import Launcher, LocalLauncher
from bench.workers.supervise import probe

# PROC_PID_INIT_INO of include/linux/proc_ns.h: the namespace whose process numbers the driver knows.
_FIRST_NAMESPACE = "pid:[4026531836]"
_CONTAINER_FILES = (".dockerenv", "run/.containerenv")
_CONTAINER_VARIABLES = (
    "container",
    "KUBERNETES_SERVICE_HOST",
    "APPTAINER_CONTAINER",
    "SINGULARITY_CONTAINER",
)
_MOST_NAMED = 4  # processes in a line
_READINGS = {
    "utilisation_percent": "utilisation",
    "power_mw": "power",
    "energy_mj": "energy",
    "sm_clock_mhz": "SM clock",
    "temperature_c": "temperature",
    "event_reasons": "clock event reasons",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing this machine has or lacks; ``blocking`` when without it nothing can be run."""

    subject: str
    good: bool
    text: str
    blocking: bool = False


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
    start = Finding(
        subject="workers",
        good=launcher.start_method == "forkserver",
        text="forked from a server that has imported the libraries"
        if launcher.start_method == "forkserver"
        else "spawned, since importing the libraries touches CUDA here; each start takes seconds longer",
    )
    return [
        *_machine(environment, facts),
        *packages,
        start,
        *_instruments(facts),
        _weights(),
        *_cuda(environment, facts),
        *find_gpus(facts),
    ]


def _packages() -> Iterator[Finding]:
    """Yield what is missing or too old, and how many packages are as required."""
    requirements = [Requirement(text) for text in metadata.requires("finetune-bench") or []]
    needed = [item for item in requirements if item.marker is None or item.marker.evaluate({"extra": ""})]
    good = 0
    for requirement in needed:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            good += 1
            continue
        found = f"version {version} is installed" if version else "it is not installed"
        yield Finding(
            subject=requirement.name,
            good=False,
            text=f"{requirement} is needed and {found}; pip install '{requirement}'",
            blocking=True,
        )
    yield Finding(
        subject="packages", good=good == len(needed), text=f"{good} of {len(needed)} as new as needed"
    )


def _machine(environment: Environment, facts: DeviceFacts) -> Iterator[Finding]:
    machine, versions = environment.machine, environment.versions
    yield Finding(subject="python", good=True, text=versions["python"])
    yield Finding(
        subject="torch", good=True, text=f"{versions.get('torch')}, {facts.cpu_threads} threads on the CPU"
    )
    yield Finding(
        subject="processor",
        good=True,
        text=f"{machine['cpu_model']} ({machine['architecture']}), {machine['cpu_cores']} cores usable",
    )
    limit = machine["memory_limit_bytes"]
    memory = f"{int(machine['memory_bytes'] or 0) / GIB:.1f} GiB"
    if limit is not None:
        memory += f", limited to {int(limit) / GIB:.1f} GiB by a control group"
    yield Finding(subject="memory", good=True, text=memory)


def _instruments(facts: DeviceFacts) -> Iterator[Finding]:
    if facts.host_peak_instrument == "VmHWM":
        yield Finding(subject="host peak memory", good=True, text="exact per phase (VmHWM can be reset)")
    else:
        yield Finding(
            subject="host peak memory",
            good=False,
            text="VmHWM cannot be reset here (/proc/self/clear_refs), so no host peaks are read; "
            "allow writing to it, or run outside this sandbox",
        )
    counted = count_oom_kills() is not None
    yield Finding(
        subject="out-of-memory kills",
        good=counted,
        text="counted by the kernel"
        if counted
        else "not counted where this process can see it, so a kill for memory is recorded as crashed",
    )


def _weights() -> Finding:
    folder = cache_folder()
    names = sorted(path.parent.name for path in folder.glob("*/complete.json"))
    held = ", ".join(names) or "none yet; bench run fetches what a scenario needs, and then needs a network"
    return Finding(subject="weights in the cache", good=bool(names), text=f"{folder}: {held}")


def _cuda(environment: Environment, facts: DeviceFacts) -> Iterator[Finding]:
    quantisation_on_cpu = "nf4, fp4, int8 and 8-bit AdamW work; its paged optimizers run but page nothing"
    version = environment.versions.get("bitsandbytes")
    yield Finding(subject="bitsandbytes on CPU", good=True, text=f"{version}: {quantisation_on_cpu}")
    if not facts.cuda_available:
        reason = facts.cuda_unavailable_reason or "torch finds no device"
        yield Finding(
            subject="CUDA",
            good=False,
            text=f'{reason}; cells with device = "cuda" are recorded as unavailable here',
        )
        return
    capability = facts.cuda_capability or (0, 0)
    total = (facts.cuda_total_bytes or 0) / GIB
    card = f"{facts.cuda_name}, {total:.1f} GiB, capability {'.'.join(map(str, capability))}"
    yield Finding(subject="CUDA", good=True, text=f"{card}, CUDA {facts.cuda_version}")
    bf16 = facts.bf16_on_cuda is not False
    yield Finding(
        subject="bf16 on CUDA", good=bf16, text="supported" if bf16 else "not on this card; use fp16 or fp32"
    )
    for subject, needed in (("4-bit on CUDA", NF4_CAPABILITY), ("int8 on CUDA", INT8_CAPABILITY)):
        enough = capability >= needed
        text = "supported by bitsandbytes" if enough else f"needs capability {needed[0]}.{needed[1]}"
        yield Finding(subject=subject, good=enough, text=text)
    yield _flash_attention(facts, capability)


def _flash_attention(facts: DeviceFacts, capability: tuple[int, int]) -> Finding:
    subject = "flash_attention_2"
    if not facts.flash_attention_2:
        return Finding(subject=subject, good=False, text="not installed; pip install flash-attn, or use sdpa")
    enough = capability >= FLASH_ATTENTION_CAPABILITY
    return Finding(
        subject=subject, good=enough, text="usable" if enough else "needs Ampere or newer; use sdpa"
    )


def find_gpus(
    facts: DeviceFacts, *, environment: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> Iterator[Finding]:
    """Ask NVML, if it is there, and hold it against what the worker's ``facts`` say of CUDA."""
    try:
        with open_nvml() as nvml:
            yield from _findings(nvml, facts, environment, root)
    except UnavailableError as error:
        text = f"{error}; nothing is read of a GPU from outside the worker"
        yield Finding(subject="NVIDIA driver", good=False, text=text)


def _findings(
    nvml: Nvml, facts: DeviceFacts, environment: Mapping[str, str], root: Path
) -> Iterator[Finding]:
    yield Finding(subject="NVIDIA driver", good=True, text=nvml.driver_version or "of unknown version")
    for problem in nvml.problems:
        yield Finding(subject="NVIDIA driver", good=False, text=problem)
    gpus = {gpu.uuid: nvml.gpu(gpu.uuid) for gpu in nvml.gpus()}
    samples = {uuid: gpu.sample() for uuid, gpu in gpus.items()}
    for uuid, gpu in gpus.items():
        yield _describe(nvml, gpu.facts)
        # The processes of a card that is cut are those of its slices, each under its own.
        if not _slices_of(nvml, uuid):
            yield _use(nvml, gpu.facts, samples[uuid], root)
        yield from _clock_events(nvml, gpu.facts, samples[uuid])
    address = resolve_uuid(
        nvml.gpus(),
        visible_devices=environment.get("CUDA_VISIBLE_DEVICES"),
        device_order=environment.get("CUDA_DEVICE_ORDER"),
        worker_uuid=facts.cuda_uuid,
    )
    yield _agreement(address, facts)
    chosen = (address.gpu or nvml.gpus()[0]).uuid
    yield from _gpu_instruments(gpus[chosen], samples[chosen])
    yield _isolation([*samples.values()], environment, root)


def _describe(nvml: Nvml, gpu: GpuFacts) -> Finding:
    """Tell a card or slice by name, UUID and memory, and how it is cut."""
    parts = [gpu.name or "name unknown", _size(gpu.total_bytes)]
    mode, slices = nvml.mig_mode(gpu.uuid), len(_slices_of(nvml, gpu.uuid))
    if gpu.power_limit_mw is not None:
        parts.append(f"power limit {gpu.power_limit_mw / 1000:.0f} W")
    if mode is not None:
        parts.append(f"MIG on, {slices} slices" if mode else "MIG off")
    parts.append(gpu.uuid)
    empty = mode is True and not slices
    if empty:
        parts.append("CUDA shows nothing of it; make slices with nvidia-smi mig -cgi, or switch MIG off")
    return Finding(subject=_subject(nvml, gpu), good=not empty, text=", ".join(parts))


def _subject(nvml: Nvml, gpu: GpuFacts) -> str:
    if gpu.parent_uuid is None:
        return f"GPU {gpu.index}"
    card = next(card for card in nvml.gpus() if card.uuid == gpu.parent_uuid)
    place = [one.uuid for one in _slices_of(nvml, card.uuid)].index(gpu.uuid)
    return f"GPU {card.index}, slice {place}"


def _slices_of(nvml: Nvml, uuid: str) -> list[GpuFacts]:
    return [gpu for gpu in nvml.gpus() if gpu.parent_uuid == uuid]


def _use(nvml: Nvml, gpu: GpuFacts, sample: GpuSample, root: Path) -> Finding:
    """Tell who is on a device now."""
    known = sample.device_used_bytes is not None
    used = f"{_size(sample.device_used_bytes)} used" if known else "memory use unknown"
    subject = f"use of {_subject(nvml, gpu)}"
    if sample.processes is None:
        return Finding(subject=subject, good=False, text=f"{used}; NVML does not list processes here")
    if not sample.processes:
        return Finding(subject=subject, good=True, text=f"{used}, no process listed")
    named = [_name(process, root) for process in sample.processes[:_MOST_NAMED]]
    more = len(sample.processes) - len(named)
    text = f"{used}, by {', '.join(named)}{f' and {more} more' if more else ''}; measure when they have ended"
    return Finding(subject=subject, good=False, text=text)


def _name(process: GpuProcess, root: Path) -> str:
    share = "share unknown" if process.used_bytes is None else _size(process.used_bytes)
    here = "" if _is_here(process, root) else ", not visible from here"
    return f"process {process.pid} ({share}{here})"


def _is_here(process: GpuProcess, root: Path) -> bool:
    return (root / "proc" / str(process.pid)).exists()


def _clock_events(nvml: Nvml, gpu: GpuFacts, sample: GpuSample) -> Iterator[Finding]:
    events = name_events(sample.event_reasons or 0, INVALIDATING)
    if events and gpu.parent_uuid is None:
        text = f"slowed down now: {', '.join(events)}; check its cooling and supply before measuring"
        yield Finding(subject=f"clock of {_subject(nvml, gpu)}", good=False, text=text)


def _agreement(address: Address, facts: DeviceFacts) -> Finding:
    """Tell whether NVML knows the device that CUDA calls its first."""
    reason = facts.cuda_unavailable_reason or "torch finds no device"
    return Finding(
        subject="CUDA and NVML",
        good=facts.cuda_available and address.gpu is not None and not address.contradiction,
        text=address.reason if facts.cuda_available else f"NVML shows GPUs, and torch uses none: {reason}",
    )


def _gpu_instruments(gpu: Gpu, sample: GpuSample) -> Iterator[Finding]:
    """Yield what can be read of the device that runs use, and why not the rest."""
    usable = [f"memory ({gpu.memory_version})"] if sample.device_used_bytes is not None else []
    if sample.processes is not None:
        usable.append(f"processes ({gpu.processes_version})")
    usable += [words for name, words in _READINGS.items() if getattr(sample, name) is not None]
    text = ", ".join(usable) or "none"
    yield Finding(subject="GPU instruments", good=bool(usable), text=f"{text} of {gpu.facts.uuid}")
    for problem in gpu.problems:
        yield Finding(subject="GPU instruments", good=False, text=problem)


def _isolation(samples: Sequence[GpuSample], environment: Mapping[str, str], root: Path) -> Finding:
    """Tell by what numbers NVML can know our processes; a run tests what its readings are worth."""
    listed = [process for sample in samples for process in sample.processes or ()]
    strange = next((process.pid for process in listed if not _is_here(process, root)), None)
    own_numbers = _namespace(root) not in {None, _FIRST_NAMESPACE}
    where = "in a container" if _in_container(environment, root) else "on the machine itself"
    if own_numbers:
        where = "in a container with process numbers of its own"
    advice = "each run tests which reading moves with a known block; --pid=host would settle it"
    if strange is not None:
        text = f"{where}; NVML lists process {strange}, which is not visible from here: {advice}"
    elif own_numbers:
        text = f"{where}, and NVML may list others or none: {advice}"
    else:
        text = f"{where}, with the process numbers that NVML lists; each run tests it with a known block"
    return Finding(subject="isolation", good=strange is None and not own_numbers, text=text)


def _namespace(root: Path) -> str | None:
    try:
        return str((root / "proc/self/ns/pid").readlink())
    except OSError:
        return None


def _in_container(environment: Mapping[str, str], root: Path) -> bool:
    files = any((root / name).exists() for name in _CONTAINER_FILES)
    return files or any(name in environment for name in _CONTAINER_VARIABLES)


def _size(size_bytes: int | None) -> str:
    return "memory unknown" if size_bytes is None else f"{size_bytes / GIB:.1f} GiB"
