"""NVML as the parent reads it: the real pynvml over a library that tells what a test wants."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from bench.probes.nvml import GpuProcess, GpuSample
from bench.probes.nvml_library import open_nvml
from virtual_gpu import GIB, Box, VirtualCard, VirtualGpus

CARD = VirtualCard()


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> VirtualGpus:
    """Return virtual GPUs that every test writes anew."""
    return VirtualGpus(tmp_path_factory.mktemp("gpus"))


@pytest.fixture(scope="module")
def box(gpus: VirtualGpus) -> Iterator[Box]:
    """Return a process in which they are."""
    with gpus.box() as box:
        yield box


def sample_once(uuid: str = CARD.uuid) -> tuple[GpuSample, tuple[str, ...], str | None, str | None]:
    """Open NVML and ask one device once."""
    with open_nvml() as nvml:
        gpu = nvml.gpu(uuid)
        sample = gpu.sample()
        return sample, gpu.problems, gpu.memory_version, gpu.processes_version


def test_a_card_tells_everything(gpus: VirtualGpus, box: Box) -> None:
    """Every reading is what the driver said, with the versions that spoke and without a problem."""
    gpus.write(replace(CARD, used_bytes=5 * GIB, compute={7: GIB, 9: 2 * GIB}, graphics={3: 100, 7: GIB}))
    sample, problems, memory, processes = box.call(sample_once)
    assert ("v2", "v3", ()) == (memory, processes, problems)
    assert (
        GpuSample(
            at_ns=sample.at_ns,
            device_used_bytes=5 * GIB,
            processes=(
                GpuProcess(pid=3, used_bytes=100),
                GpuProcess(pid=7, used_bytes=GIB),
                GpuProcess(pid=9, used_bytes=2 * GIB),
            ),
            utilisation_percent=0,
            power_mw=70_000,
            energy_mj=1_000_000,
            sm_clock_mhz=1_980,
            temperature_c=35,
            event_reasons=1,
        )
        == sample
    )
