"""Every metric once: its name in a table, unit, direction, instrument and how it is shown."""

from dataclasses import dataclass
from typing import Literal

from bench.io import own_toml

# What a merge may move a logit by, as a share of the largest one: it rounds each weight once to its dtype,
# and sums run in another order. About twice what trained adapters of rank 8 to 64 did to SmolLM2-135M in bf16
# (0.03 to 0.06) and fp32 (3e-6); fp16 has three bits more than bf16, so an eighth of its share.
MERGE_TOLERANCES = {"fp32": 1e-5, "fp16": 1.25e-2, "bf16": 1e-1}

GIB = 1024**3
MIB = 1024**2

Instrument = Literal[
    "ledger",
    "host_net",
    "host",
    "cuda_allocated",
    "cuda_reserved",
    "nvml_process",
    "nvml_device_delta",
]
"""What reads a peak of memory, in the order in which reports show them."""

INSTRUMENT_NAMES: dict[Instrument, str] = {
    "ledger": "live tensors",
    "host_net": "process, net of start-up",
    "host": "process, start-up included",
    "cuda_allocated": "GPU, allocated",
    "cuda_reserved": "GPU, reserved",
    "nvml_process": "GPU, process by NVML",
    "nvml_device_delta": "GPU, device by NVML less idle",
}
PEAK_TITLES: dict[Instrument, str] = {
    "ledger": "Peak: tensors",
    "host_net": "Peak: process",
    "host": "Peak: process, start-up included",
    "cuda_allocated": "Peak: allocated",
    "cuda_reserved": "Peak: reserved",
    "nvml_process": "Peak: NVML, process",
    "nvml_device_delta": "Peak: NVML, device",
}
"""Of columns, in which a long name would stand in five lines; the methodology says what each is."""
CAPACITY: dict[str, Instrument] = {"cpu": "host_net", "cuda": "cuda_reserved"}
"""By device, the instrument of what has to fit."""
TENSORS: dict[str, Instrument] = {"cpu": "ledger", "cuda": "cuda_allocated"}
"""By device, the instrument of tensors alone: what is predicted and read alike."""
HEADLINES: dict[str, tuple[Instrument, ...]] = {
    "cpu": ("ledger", "host_net", "host"),
    "cuda": ("cuda_reserved", "cuda_allocated", "ledger"),
}
"""By device, what a comparison leads with. A card must hold what is reserved; on a CPU nothing has to fit
a card, so that the exact bytes of tensors come first. The first two read are said in words."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One column of the comparison, as ``metrics.toml`` explains it."""

    name: str
    unit: str
    better: Literal["lower", "higher", "neither"]
    kind: Literal["deterministic", "bounded", "statistical", "paired"]
    instrument: str
    meaning: str
    gated: bool = False
    tolerance: float = 0.0
    relative_tolerance: float = 0.0
    most_tolerated_share: float | None = None
    since: str | None = None

    @property
    def exact(self) -> bool:
        """Whether it is judged without chance, by its values alone."""
        return self.kind in {"deterministic", "bounded"}


_TABLES = own_toml("bench", "metrics.toml")
METRICS: dict[str, Metric] = {name: Metric(name=name, **facts) for name, facts in _TABLES.items()}


def size_text(size_bytes: float) -> str:
    """Write a size for a sentence: in GiB, or in MiB where it is less than one."""
    return f"{size_bytes / GIB:.2f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.2f} MiB"
