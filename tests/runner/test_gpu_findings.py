"""What ``bench doctor`` says of GPUs, box by box: virtual cards that the real pynvml shows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.records.records import DeviceFacts
from bench.runner.doctor import Finding, find_gpus
from virtual_gpu import GIB, Box, VirtualCard, VirtualGpus, VirtualSlice

CARD = VirtualCard()
SECOND = VirtualCard(
    uuid="GPU-2", name="NVIDIA T4", total_bytes=16 * GIB, power_limit_mw=70_000, mig_mode=None
)
SLICES = (VirtualSlice(uuid="MIG-a"), VirtualSlice(uuid="MIG-b", compute={7: None}))
ON_CARD = DeviceFacts(cpu_threads=1, cuda_available=True, cuda_uuid=CARD.uuid)
NO_CUDA = DeviceFacts(cpu_threads=1, cuda_available=False, cuda_unavailable_reason="torch is without CUDA")
FIRST_NAMESPACE = "pid:[4026531836]"
EVERYTHING = (
    "memory (v2), processes (v3), utilisation, power, energy, SM clock, temperature, clock event reasons"
)


def look(facts: DeviceFacts, environment: Mapping[str, str], root: Path) -> list[tuple[bool, str, str]]:
    """Return verdict, subject and text of each finding."""
    findings = find_gpus(facts, environment=environment, root=root)
    return [(finding.good, finding.subject, finding.text) for finding in findings]


def bad(findings: Sequence[tuple[bool, str, str]], subject: str) -> str:
    """Return the text of the only finding on a subject that is not good."""
    (text,) = [text for good, about, text in findings if about == subject and not good]
    return text


def make_root(folder: Path, *pids: int, namespace: str = FIRST_NAMESPACE, container: bool = False) -> Path:
    """Return a file system of a machine or container in which these processes are."""
    (folder / "proc/self/ns").mkdir(parents=True)
    (folder / "proc/self/ns/pid").symlink_to(namespace)
    for pid in pids:
        (folder / f"proc/{pid}").mkdir()
    if container:
        (folder / ".dockerenv").touch()
    return folder


def test_one_idle_card_on_a_machine_of_its_own(gpus: VirtualGpus, box: Box, tmp_path: Path) -> None:
    """Everything is good, one finding a line."""
    gpus.write(CARD)
    assert [
        (True, "NVIDIA driver", "575.57.08"),
        (True, "GPU 0", f"NVIDIA H100 80GB HBM3, 80.0 GiB, power limit 700 W, MIG off, {CARD.uuid}"),
        (True, "use of GPU 0", "0.0 GiB used, no process listed"),
        (True, "CUDA and NVML", f"Torch runs on {CARD.uuid}, and NVML shows it."),
        (True, "GPU instruments", f"{EVERYTHING} of {CARD.uuid}"),
        (
            True,
            "isolation",
            (
                "on the machine itself, with the process numbers that NVML lists; each run tests it with a "
                "known block"
            ),
        ),
    ] == box.call(look, ON_CARD, {}, make_root(tmp_path))


def test_two_cards_of_which_one_is_in_use_and_hot(gpus: VirtualGpus, box: Box, tmp_path: Path) -> None:
    """Each card has its lines, and none is taken for torch's if torch does not tell."""
    shares = {7: GIB, 8: None, 9: GIB, 10: GIB, 11: GIB, 12: GIB}
    gpus.write(CARD, replace(SECOND, used_bytes=6 * GIB, compute=shares, event_reasons=0x44))
    facts = ON_CARD.replace(cuda_uuid=None)
    findings = box.call(look, facts, {}, make_root(tmp_path, *shares))
    assert (True, "GPU 1", "NVIDIA T4, 16.0 GiB, power limit 70 W, GPU-2") in findings
    assert (
        "6.0 GiB used, by process 7 (1.0 GiB), process 8 (share unknown), process 9 (1.0 GiB), process 10 "
        "(1.0 GiB) and 2 more; measure when they have ended"
    ) == bad(findings, "use of GPU 1")
    assert (
        "slowed down now: thermal slowdown by the hardware; check its cooling and supply before measuring"
    ) == bad(findings, "clock of GPU 1")
    told = "Torch did not tell which device it runs on; update the driver."
    assert told == bad(findings, "CUDA and NVML")


def test_a_card_cut_into_slices(gpus: VirtualGpus, box: Box, tmp_path: Path) -> None:
    """Slices are told under their card, with what cannot be read of the one that torch runs on."""
    gpus.write(replace(CARD, mig_mode=True, slices=SLICES))
    facts = ON_CARD.replace(cuda_uuid="MIG-b")
    findings = box.call(look, facts, {}, make_root(tmp_path, 7))
    name = "NVIDIA H100 80GB HBM3 MIG 1g.10gb, 10.0 GiB"
    assert [
        (
            True,
            "GPU 0",
            f"NVIDIA H100 80GB HBM3, 80.0 GiB, power limit 700 W, MIG on, 2 slices, {CARD.uuid}",
        ),
        (True, "GPU 0, slice 0", f"{name}, MIG-a"),
        (True, "use of GPU 0, slice 0", "0.0 GiB used, no process listed"),
        (True, "GPU 0, slice 1", f"{name}, MIG-b"),
        (
            False,
            "use of GPU 0, slice 1",
            "0.0 GiB used, by process 7 (share unknown); measure when they have ended",
        ),
        (True, "CUDA and NVML", "Torch runs on MIG-b, and NVML shows it."),
        (
            True,
            "GPU instruments",
            "memory (v2), processes (v3), SM clock, temperature, clock event reasons of MIG-b",
        ),
    ] == findings[1:8]
    assert [
        "power and energy: the card's count all its MIG slices together, so none are stated",
        "clock, temperature and clock event reasons: the card's, which its MIG slices share",
        "memory of processes: the driver does not tell it of all of them (N/A)",
        "utilisation: Not Supported (NVML error 3)",
    ] == [text for good, subject, text in findings if subject == "GPU instruments" and not good]


def test_mig_mode_without_slices_is_a_card_that_cuda_does_not_show(
    gpus: VirtualGpus, box: Box, tmp_path: Path
) -> None:
    """The line says what to do."""
    gpus.write(replace(CARD, mig_mode=True))
    findings = box.call(look, NO_CUDA, {}, make_root(tmp_path))
    good, _, text = findings[1]
    assert not good
    assert text.endswith("CUDA shows nothing of it; make slices with nvidia-smi mig -cgi, or switch MIG off")
    assert "NVML shows GPUs, and torch uses none: torch is without CUDA" == bad(findings, "CUDA and NVML")


def test_a_card_that_tells_little(gpus: VirtualGpus, box: Box, tmp_path: Path) -> None:
    """N/A and unknown are words, never nought, and each has its line."""
    silent = replace(CARD, total_bytes=None, used_bytes=None, power_mw=None, power_limit_mw=None)
    gpus.write(silent, fail={"nvmlDeviceGetComputeRunningProcesses_v3": 4})
    findings = box.call(look, ON_CARD, {}, make_root(tmp_path))
    assert (True, "GPU 0", f"NVIDIA H100 80GB HBM3, memory unknown, MIG off, {CARD.uuid}") in findings
    assert "memory use unknown; NVML does not list processes here" == bad(findings, "use of GPU 0")
    assert [
        "device memory: not available (N/A)",
        "processes: Insufficient Permissions (NVML error 4)",
        "power: not available (N/A)",
    ] == [text for good, subject, text in findings if subject == "GPU instruments" and not good]


@pytest.mark.parametrize(
    ("compute", "namespace", "container", "good", "words"),
    [
        ({}, FIRST_NAMESPACE, True, True, "in a container, with the process numbers that NVML lists"),
        (
            {},
            "pid:[4026532999]",
            True,
            False,
            "in a container with process numbers of its own, and NVML may list others or none: each run",
        ),
        (
            {4711: GIB},
            "pid:[4026532999]",
            True,
            False,
            "in a container with process numbers of its own; NVML lists process 4711, which is not visible",
        ),
        ({7: 0}, "pid:[4026532999]", True, False, "in a container with process numbers of its own, and NVML"),
        ({4711: GIB}, FIRST_NAMESPACE, False, False, "on the machine itself; NVML lists process 4711"),
    ],
)
def test_isolation_is_told_without_running_anything(
    gpus: VirtualGpus,
    box: Box,
    tmp_path: Path,
    *,
    compute: Mapping[int, int],
    namespace: str,
    container: bool,
    good: bool,
    words: str,
) -> None:
    """Namespace, container and strange numbers decide what a run can hope for."""
    gpus.write(replace(CARD, compute=compute))
    root = make_root(tmp_path, 7, namespace=namespace, container=container)
    (*_, last) = box.call(look, ON_CARD, {}, root)
    assert (good, "isolation") == last[:2]
    assert last[2].startswith(words)


def test_a_container_is_known_by_its_variables(gpus: VirtualGpus, box: Box, tmp_path: Path) -> None:
    """Kubernetes leaves no file."""
    gpus.write(CARD)
    (*_, last) = box.call(look, ON_CARD, {"KUBERNETES_SERVICE_HOST": "x"}, make_root(tmp_path))
    assert last[2].startswith("in a container, with the process numbers")


def test_a_driver_that_does_not_fit_its_library(gpus: VirtualGpus, box: Box, tmp_path: Path) -> None:
    """One line says so, and nothing else is guessed."""
    gpus.write(CARD, fail={"nvmlInit": 18})
    ((good, subject, text),) = box.call(look, NO_CUDA, {}, make_root(tmp_path))
    assert (False, "NVIDIA driver") == (good, subject)
    assert text.startswith("NVML cannot be asked: the driver's kernel module and its library have different")
    assert text.endswith("nothing is read of a GPU from outside the worker")


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real search for the library, which finds none, is one line."""

    def find_nothing(name: str) -> None:
        raise OSError(name)

    pynvml = pytest.importorskip("pynvml")
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", find_nothing)
    assert [
        Finding(
            subject="NVIDIA driver",
            good=False,
            text="NVML cannot be asked: no NVIDIA driver is installed here (libnvidia-ml.so.1 is not found); "
            "install it, or start the container with its GPUs; nothing is read of a GPU from outside the "
            "worker",
        )
    ] == list(find_gpus(NO_CUDA))
