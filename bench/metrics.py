"""Every metric once: its name in a table, unit, direction, instrument and how it is shown."""

from dataclasses import dataclass
from typing import Literal

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
    """One column of the comparison. ``kind`` says how two values may be compared.

    ``gated`` and ``tolerance`` are what a gate goes by unless a scenario's ``[gate]`` says otherwise. The
    tolerance is the smallest change for the worse that matters: in ``unit`` where the metric is
    deterministic (0: any), else a share of the value, or for accuracy of the questions.
    """

    name: str
    unit: str
    better: Literal["lower", "higher", "neither"]
    kind: Literal["deterministic", "statistical", "paired"]
    instrument: str
    meaning: str
    gated: bool = False
    tolerance: float = 0.0


_ALL = (
    Metric(
        name="ledger_peak_bytes",
        unit="bytes",
        better="lower",
        kind="deterministic",
        instrument="ledger",
        meaning="Most live tensor bytes at once over a steady pair of steps.",
        gated=True,
        tolerance=MIB,
    ),
    Metric(
        name="host_peak_bytes",
        unit="bytes",
        better="lower",
        kind="statistical",
        instrument="VmHWM",
        meaning="Most resident memory of the worker over the training phases, Python and libraries included.",
        tolerance=0.05,
    ),
    Metric(
        name="cuda_allocated_peak_bytes",
        unit="bytes",
        better="lower",
        kind="deterministic",
        instrument="torch allocator",
        meaning="Most bytes torch had allocated on the device over the training phases.",
        gated=True,
        tolerance=MIB,
    ),
    Metric(
        name="cuda_reserved_peak_bytes",
        unit="bytes",
        better="lower",
        kind="statistical",
        instrument="torch allocator",
        meaning="Most bytes torch's caching allocator held from the device.",
        tolerance=0.05,
    ),
    Metric(
        name="paged_bytes",
        unit="bytes",
        better="neither",
        kind="deterministic",
        instrument="bitsandbytes",
        meaning="Optimizer state in CUDA's managed memory after the first step; in no other metric.",
    ),
    Metric(
        name="nvml_process_peak_bytes",
        unit="bytes",
        better="lower",
        kind="statistical",
        instrument="NVML process",
        meaning="Most bytes NVML gave the worker's process over the training phases; the largest sample.",
    ),
    Metric(
        name="nvml_device_delta_peak_bytes",
        unit="bytes",
        better="lower",
        kind="statistical",
        instrument="NVML device",
        meaning="Where NVML tells no process: most bytes used on the device, less those before the worker.",
    ),
    Metric(
        name="non_torch_bytes",
        unit="bytes",
        better="lower",
        kind="statistical",
        instrument="NVML less torch allocator",
        meaning="CUDA context, kernels and libraries: NVML less torch's reserved bytes after the last step.",
    ),
    Metric(
        name="tokens_per_second",
        unit="tokens/s",
        better="higher",
        kind="statistical",
        instrument="clock",
        meaning="Non-padding tokens per second of a measured step; the median over steps.",
        gated=True,
        tolerance=0.05,
    ),
    Metric(
        name="step_time_ns",
        unit="ns",
        better="lower",
        kind="statistical",
        instrument="clock",
        meaning="Median time of a measured optimizer step.",
        tolerance=0.05,
    ),
    Metric(
        name="energy_per_token_mj",
        unit="mJ/token",
        better="lower",
        kind="statistical",
        instrument="NVML energy counter",
        meaning="Energy of the card per non-padding token over the measured steps.",
    ),
    Metric(
        name="load_time_ns",
        unit="ns",
        better="lower",
        kind="statistical",
        instrument="clock",
        meaning="Time to read the weights, quantising included.",
        tolerance=0.2,
    ),
    Metric(
        name="step_flops",
        unit="FLOP",
        better="lower",
        kind="deterministic",
        instrument="torch FLOP counter",
        meaning="Floating-point operations of one step as executed.",
        gated=True,
    ),
    Metric(
        name="op_count",
        unit="ops",
        better="neither",
        kind="deterministic",
        instrument="ledger",
        meaning="Operators dispatched in a steady pair of steps.",
    ),
    Metric(
        name="saved_for_backward_bytes",
        unit="bytes",
        better="lower",
        kind="deterministic",
        instrument="ledger",
        meaning="Tensor bytes the forward pass leaves alive for the backward pass.",
        gated=True,
        tolerance=MIB,
    ),
    Metric(
        name="parameters_trainable",
        unit="parameters",
        better="neither",
        kind="deterministic",
        instrument="count",
        meaning="Parameters that receive a gradient.",
        gated=True,
    ),
    Metric(
        name="adapter_file_bytes",
        unit="bytes",
        better="lower",
        kind="deterministic",
        instrument="file size",
        meaning="Size of the saved adapter.",
        gated=True,
        tolerance=MIB,
    ),
    Metric(
        name="accuracy_before",
        unit="share",
        better="neither",
        kind="paired",
        instrument="lm-eval",
        meaning="Share of items answered correctly before training.",
        tolerance=0.05,
    ),
    Metric(
        name="accuracy_after",
        unit="share",
        better="higher",
        kind="paired",
        instrument="lm-eval",
        meaning="Share of items answered correctly after training.",
        gated=True,
        tolerance=0.05,
    ),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
