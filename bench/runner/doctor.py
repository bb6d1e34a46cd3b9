"""What this machine can run and why not, one finding a line. Loads no model."""

from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from bench.io import cache_folder
from bench.metrics import GIB
from bench.records.environment import read_environment
from bench.records.records import DeviceFacts, Environment
from bench.runner.availability import FLASH_ATTENTION_CAPABILITY, INT8_CAPABILITY, NF4_CAPABILITY
from bench.runner.finding import Finding
from bench.runner.gpu.findings import find_gpus
from bench.runner.observe import Observer
from bench.workers.classify import count_oom_kills
from bench.workers.launch import Launcher
from bench.workers.supervise import probe

__all__ = ["Finding", "examine"]


def examine(observer: Observer, launcher: Launcher | None = None) -> list[Finding]:
    """Look at packages and machine, and ask a worker what torch finds.

    Raises ``InfrastructureError`` when no worker starts.
    """
    environment = read_environment()
    packages = [*_packages()]
    if any(finding.blocking for finding in packages):
        return packages
    launcher = launcher or Launcher()
    facts = probe(launcher, observer.note)
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
