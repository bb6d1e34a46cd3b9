"""What is predicted for the CPU is what the ledger reads of a real run, to the byte and the operator.

Each cell below must agree in every field of its reading. Known to differ elsewhere, by a few operators but
not in the peak: peft's prompt, prefix and token methods, whose index tensors are older than the ledger.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import UNSET

from bench.predict.trace.trace import read_cpu_ledger
from bench.scenario.platform import Platform
from tiny_cells import tiny_cell
from toy_families import configuration, true_reading

METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora", "rank": 4},
    "dropout": {"kind": "lora", "rank": 4, "dropout": 0.1, "target_modules": "all-linear"},
    "dora": {"kind": "lora", "rank": 4, "peft": {"use_dora": True}},
    "int8": {"kind": "lora", "rank": 4, "base": "int8"},
    "nf4": {"kind": "qlora", "rank": 4},
    "nf4-plain": {"kind": "qlora", "rank": 4, "double_quantisation": False, "kbit_preparation": False},
    "fp4": {"kind": "qlora", "rank": 4, "quantisation": "fp4"},
    "nf4-reference": {"kind": "qlora", "rank": 4, "implementation": "reference"},
    "int8-reference": {"kind": "lora", "rank": 4, "base": "int8", "implementation": "reference"},
    "ia3": {"kind": "peft", "type": "ia3"},
    "adalora": {"kind": "peft", "type": "adalora", "config": {"total_step": 10}},
    "vera": {"kind": "peft", "type": "vera"},
    "randlora": {"kind": "peft", "type": "randlora", "config": {"r": 4}},
    "vblora": {"kind": "peft", "type": "vblora", "config": {"num_vectors": 16, "vector_length": 8}},
    "waveft": {"kind": "peft", "type": "waveft", "config": {"n_frequency": 32}},
    "adamss": {"kind": "peft", "type": "adamss", "config": {"r": 16, "num_subspaces": 4, "subspace_rank": 1}},
    "lokr": {"kind": "peft", "type": "lokr", "adapter_dtype": "weights"},
}
REENTRANT: dict[str, Any] = {"gradient_checkpointing": "reentrant"}
NON_REENTRANT: dict[str, Any] = {"gradient_checkpointing": "non-reentrant"}
FP32_CAST: dict[str, Any] = {"dtype": "fp32", "autocast": "bf16"}
EAGER: dict[str, Any] = {"attention": "eager"}  # the only attention of Gemma 2 in transformers

# Every family with every kind of method, checkpointing and optimizer, though not each with each.
CELLS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "full", {}),
    ("llama", "lora", {"mask": "padded"}),
    ("llama", "lora", {"batching": "pack"}),
    ("qwen2", "full", {"batching": "pack", **EAGER}),
    ("gemma3", "nf4", {"batching": "pack", **NON_REENTRANT}),
    ("starcoder2", "full", {"batching": "pad-to-length"}),
    ("llama", "lora", {"mask": "ones", "optimizer": "sgd"}),
    ("llama", "lora", {**REENTRANT, "gradient_accumulation": 2}),
    ("llama", "lora", {**FP32_CAST, **REENTRANT}),
    ("llama", "lora", {"dtype": "fp32", "autocast": "fp16", "gradient_accumulation": 2}),
    ("llama", "lora", {"keep_outputs": True, "upcast_outputs": True, "autocast": "bf16"}),
    ("llama", "lora", {"loss": "chunked", "loss_chunk_tokens": 8, "max_grad_norm": 0}),
    ("llama", "full", {"loss": "chunked", "loss_chunk_tokens": 5, "autocast": "bf16", **REENTRANT}),
    ("llama", "dropout", {"loss": "chunked", "loss_chunk_tokens": 8, **FP32_CAST}),
    ("llama", "lora", {"loss": "chunked-logits", "loss_chunk_tokens": 5, "autocast": "bf16"}),
    ("llama", "full", {"optimizer": "adamw-foreach"}),
    ("llama", "full", {"optimizer": "adamw-loop", "dtype": "fp32"}),
    ("llama", "full", {"optimizer": "adamw-8bit", **NON_REENTRANT}),
    ("llama", "full", {"optimizer": "paged-adamw-32bit", **EAGER}),
    ("llama", "dropout", {"optimizer": "paged-adamw-8bit", **NON_REENTRANT}),
    ("llama", "dora", {}),
    ("llama", "int8", {"autocast": "bf16"}),
    ("llama", "nf4", {**REENTRANT, "optimizer": "paged-adamw-8bit"}),
    ("llama", "nf4-plain", {**EAGER, "autocast": "bf16"}),
    ("llama", "nf4-reference", {}),
    ("falcon", "nf4-reference", {**REENTRANT}),
    ("qwen2", "int8-reference", {**NON_REENTRANT, "autocast": "bf16"}),
    ("llama", "ia3", {**NON_REENTRANT}),
    ("llama", "randlora", {}),
    ("llama", "vblora", {}),
    ("llama", "adalora", {}),
    ("llama", "vera", {"optimizer": "adamw-8bit"}),
    ("qwen2", "lokr", {}),
    ("mistral", "full", {"mask": "padded", **EAGER}),
    ("mistral", "nf4", {"optimizer": "adamw-loop"}),
    ("mistral", "ia3", {"dtype": "fp16"}),
    ("mixtral", "full", {**NON_REENTRANT}),
    ("mixtral", "lora", {**FP32_CAST}),
    ("mixtral", "nf4", {"mask": "padded", "optimizer": "adamw-foreach"}),
    ("qwen2", "full", {"optimizer": "sgd", "gradient_accumulation": 2}),
    ("qwen2", "nf4", {**REENTRANT}),
    ("qwen2", "int8", {"optimizer": "adamw-8bit"}),
    ("qwen3", "lora", {"dtype": "fp32"}),
    ("qwen3", "fp4", {**NON_REENTRANT}),
    ("gemma2", "full", {**EAGER, **FP32_CAST}),
    ("gemma2", "nf4", {**EAGER, **REENTRANT}),
    ("gemma3", "lora", {"mask": "padded"}),
    ("gemma3", "nf4", {**NON_REENTRANT, "autocast": "bf16"}),
    ("phi3", "full", {"optimizer": "adamw-foreach", **REENTRANT}),
    ("phi3", "dora", {"autocast": "bf16"}),
    ("phi3", "fp4", {"optimizer": "adamw-loop"}),
    ("falcon", "full", {"optimizer": "adamw-8bit"}),
    ("falcon", "lora", {**REENTRANT, "mask": "padded"}),
    ("falcon", "nf4", {"keep_outputs": True}),
    ("gpt2", "full", {**FP32_CAST, **NON_REENTRANT}),
    ("gpt2", "dropout", {**EAGER}),
    ("gpt2", "lora", {"mask": "padded"}),
    ("gpt_bigcode", "full", {"optimizer": "sgd"}),
    ("gpt_bigcode", "int8", {**REENTRANT}),
    ("starcoder2", "lora", {**FP32_CAST}),
    ("starcoder2", "nf4", {**NON_REENTRANT}),
    ("gpt_neox", "full", {**REENTRANT}),
    ("gpt_neox", "int8", {"dtype": "fp16", "optimizer": "adamw-foreach"}),
    ("gpt_neox", "dropout", {"autocast": "bf16", **EAGER}),
]


def _marked(cells: list[tuple[str, str, dict[str, Any]]]) -> Iterator[Any]:
    """Yield the cells, slow where family, method and each lever were there in cells before."""
    seen = set[object]()
    for family, method, levers in cells:
        parts = {family, method, *levers.items()}
        yield pytest.param(family, method, levers, marks=[pytest.mark.slow] if parts <= seen else [])
        seen |= parts


@pytest.mark.filterwarnings(
    "ignore:Paged optimizers are not supported on CPU",
    "ignore:fan_in_fan_out is set to False",
    "ignore:The following (rank|alpha)_pattern keys did not match",
)
@pytest.mark.parametrize(("family", "method", "levers"), [*_marked(CELLS)], ids=str)
def test_the_prediction_is_the_reading(family: str, method: str, levers: dict[str, Any]) -> None:
    """Every field of the reading is as in the real run: peak, categories, phases, operators, allocations."""
    data = {"source": "synthetic", "attention_mask": levers.get("mask", "none")}
    if "batching" in levers:  # laid out as real data would be
        data = {"source": "task", "task": "longest-word"}
    training = {"sequence_length": 16} | {key: value for key, value in levers.items() if key != "mask"}
    cell = tiny_cell(METHODS[method], data=data, training=training)
    truth = true_reading(cell, configuration(family))
    predicted = read_cpu_ledger(cell, Platform(device="cpu"), configuration(family))
    beside = {"device": "", "timeline": None, "retained": UNSET}  # a prediction has no process around it
    assert truth.replace(**beside) == predicted.replace(**beside)
    # Which of two storages dies first within one operator may differ, so single points may.
    assert truth.timeline is not None
    assert predicted.timeline is not None
    assert truth.timeline.phases == predicted.timeline.phases
    assert truth.timeline.last_entry == predicted.timeline.last_entry
    assert max(truth.timeline.live_bytes) == max(predicted.timeline.live_bytes)


@pytest.mark.parametrize("method", ["waveft", "adamss"])
def test_adapters_made_of_real_weights_peak_as_predicted(method: str) -> None:
    """Places drawn by a seed, subspaces by k-means: in the peak, its parts and what is saved nothing differs.

    A few index tensors are older than the ledger of the real run.
    """
    cell = tiny_cell(METHODS[method], training={"sequence_length": 16})
    truth = true_reading(cell, configuration("llama"))
    predicted = read_cpu_ledger(cell, Platform(device="cpu"), configuration("llama"))
    for field in ("peak_bytes", "peak_phase", "peak_op", "peak_module", "saved_for_backward_bytes"):
        assert getattr(truth, field) == getattr(predicted, field)
    assert truth.categories_at_peak_bytes == predicted.categories_at_peak_bytes
