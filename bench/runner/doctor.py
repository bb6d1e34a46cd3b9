"""What this machine can run and why not, one finding a line. Loads no model.

Of GPUs: what NVML shows, who is on them, and whose its readings can be shown to be. It is read once and
nothing is run: which reading is the worker's own is tested by each run for itself.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from bench.errors import UnavailableError, counted
from bench.io import cache_folder
from bench.metrics import GIB
from bench.probes.nvml.device import Gpu, GpuProcess, GpuSample
from bench.probes.nvml.library import Nvml, open_nvml
from bench.probes.nvml.visible_devices import Address, resolve_uuid
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
    return [
        *_machine(environment, facts),
        *packages,
        _either(
            "workers",
            launcher.start_method == "forkserver",
            "forked from a server that has imported the libraries",
            "spawned, since importing the libraries touches CUDA here; each start takes seconds longer",
        ),
        *_instruments(facts),
        *_cuda(environment, facts),
        *find_gpus(facts),
    ]


def _packages() -> Iterator[Finding]:
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
        text = f"{requirement} is needed and {found}; pip install '{requirement}'"
        yield Finding(requirement.name, text, good=False, blocking=True)
    yield Finding("packages", f"{good} of {len(needed)} as new as needed", good=good == len(needed))


def _machine(environment: Environment, facts: DeviceFacts) -> Iterator[Finding]:
    machine, versions = environment.machine, environment.versions
    yield Finding("python", str(versions["python"]))
    yield Finding("torch", f"{versions.get('torch')}, {facts.cpu_threads} threads on the CPU")
    cores = f"{machine['cpu_cores']} cores usable"
    yield Finding("processor", f"{machine['cpu_model']} ({machine['architecture']}), {cores}")
    limit = machine["memory_limit_bytes"]
    limited = "" if limit is None else f", limited to {int(limit) / GIB:.1f} GiB by a control group"
    yield Finding("memory", f"{int(machine['memory_bytes'] or 0) / GIB:.1f} GiB{limited}")


def _instruments(facts: DeviceFacts) -> Iterator[Finding]:
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
    folder = cache_folder()
    names = sorted(path.parent.name for path in folder.glob("*/complete.json"))
    held = ", ".join(names) or "none yet; bench run fetches what a scenario needs, and then needs a network"
    yield Finding("weights in the cache", f"{folder}: {held}", good=bool(names))


def _cuda(environment: Environment, facts: DeviceFacts) -> Iterator[Finding]:
    quantisation_on_cpu = "nf4, fp4, int8 and 8-bit AdamW work; its paged optimizers run but page nothing"
    version = environment.versions.get("bitsandbytes")
    yield Finding("bitsandbytes on CPU", f"{version}: {quantisation_on_cpu}")
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
            yield from _findings(nvml, facts, environment, root)
    except UnavailableError as error:
        text = f"{error}; nothing is read of a GPU from outside the worker"
        yield Finding("NVIDIA driver", text, good=False)


def _findings(
    nvml: Nvml, facts: DeviceFacts, environment: Mapping[str, str], root: Path
) -> Iterator[Finding]:
    yield Finding("NVIDIA driver", nvml.driver_version or "of unknown version")
    for problem in nvml.problems:
        yield Finding("NVIDIA driver", problem, good=False)
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
    parts = [gpu.name or "name unknown", _size(gpu.total_bytes)]
    mode, slices = nvml.mig_mode(gpu.uuid), len(_slices_of(nvml, gpu.uuid))
    if gpu.power_limit_mw is not None:
        parts.append(f"power limit {gpu.power_limit_mw / 1000:.0f} W")
    if mode is not None:
        parts.append(f"MIG on, {counted(slices, 'slice')}" if mode else "MIG off")
    parts.append(gpu.uuid)
    empty = mode is True and not slices
    if empty:
        parts.append("CUDA shows nothing of it; make slices with nvidia-smi mig -cgi, or switch MIG off")
    return Finding(_subject(nvml, gpu), ", ".join(parts), good=not empty)


def _subject(nvml: Nvml, gpu: GpuFacts) -> str:
    if gpu.parent_uuid is None:
        return f"GPU {gpu.index}"
    card = next(card for card in nvml.gpus() if card.uuid == gpu.parent_uuid)
    place = [one.uuid for one in _slices_of(nvml, card.uuid)].index(gpu.uuid)
    return f"GPU {card.index}, slice {place}"


def _slices_of(nvml: Nvml, uuid: str) -> list[GpuFacts]:
    return [gpu for gpu in nvml.gpus() if gpu.parent_uuid == uuid]


def _use(nvml: Nvml, gpu: GpuFacts, sample: GpuSample, root: Path) -> Finding:
    known = sample.device_used_bytes is not None
    used = f"{_size(sample.device_used_bytes)} used" if known else "memory use unknown"
    subject = f"use of {_subject(nvml, gpu)}"
    if sample.processes is None:
        return Finding(subject, f"{used}; NVML does not list processes here", good=False)
    if not sample.processes:
        return Finding(subject, f"{used}, no process listed")
    named = []
    for process in sample.processes[:_MOST_NAMED]:
        share = "share unknown" if process.used_bytes is None else _size(process.used_bytes)
        here = "" if _is_here(process, root) else ", not visible from here"
        named.append(f"process {process.pid} ({share}{here})")
    more = len(sample.processes) - len(named)
    text = f"{used}, by {', '.join(named)}{f' and {more} more' if more else ''}; measure when they have ended"
    return Finding(subject, text, good=False)


def _is_here(process: GpuProcess, root: Path) -> bool:
    return (root / "proc" / str(process.pid)).exists()


def _clock_events(nvml: Nvml, gpu: GpuFacts, sample: GpuSample) -> Iterator[Finding]:
    events = name_events(sample.event_reasons or 0, INVALIDATING)
    if events and gpu.parent_uuid is None:
        text = f"slowed down now: {', '.join(events)}; check its cooling and supply before measuring"
        yield Finding(f"clock of {_subject(nvml, gpu)}", text, good=False)


def _agreement(address: Address, facts: DeviceFacts) -> Finding:
    """Tell whether NVML knows the device that CUDA calls its first."""
    reason = facts.cuda_unavailable_reason or "torch finds no device"
    return Finding(
        "CUDA and NVML",
        address.reason if facts.cuda_available else f"NVML shows GPUs, and torch uses none: {reason}",
        good=facts.cuda_available and address.gpu is not None and not address.contradiction,
    )


def _gpu_instruments(gpu: Gpu, sample: GpuSample) -> Iterator[Finding]:
    """Yield what can be read of the device that runs use, and why not the rest."""
    usable = [f"memory ({gpu.memory_version})"] if sample.device_used_bytes is not None else []
    if sample.processes is not None:
        usable.append(f"processes ({gpu.processes_version})")
    usable += [words for name, words in _READINGS.items() if getattr(sample, name) is not None]
    text = ", ".join(usable) or "none"
    yield Finding("GPU instruments", f"{text} of {gpu.facts.uuid}", good=bool(usable))
    for problem in gpu.problems:
        yield Finding("GPU instruments", problem, good=False)


def _isolation(samples: Sequence[GpuSample], environment: Mapping[str, str], root: Path) -> Finding:
    """Tell by what numbers NVML can know our processes; a run tests what its readings are worth."""
    listed = [process for sample in samples for process in sample.processes or ()]
    strange = next((process.pid for process in listed if not _is_here(process, root)), None)
    own_numbers = _namespace(root) not in {None, _FIRST_NAMESPACE}
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


def _namespace(root: Path) -> str | None:
    try:
        return str((root / "proc/self/ns/pid").readlink())
    except OSError:
        return None


def _size(size_bytes: int | None) -> str:
    return "memory unknown" if size_bytes is None else f"{size_bytes / GIB:.1f} GiB"
