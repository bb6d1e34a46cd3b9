"""Real classes of transformers at toy widths, each with every method: what is loaded and what it peaks at.

A prediction for the CPU must equal the real run to the byte, and the model on meta the one that is loaded, or
the cell is in the table of exceptions with its reason. By default each family has one of the methods in turn;
CONFIGURATIONS=full runs each with all.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.predict.trace.patches import patched
from bench.predict.trace.trace import read_cpu_ledger
from bench.scenario.platform import Platform
from bench.training.loading.models import build_empty_model, quantise_empty
from tiny_cells import tiny_cell
from toy_families import FAMILIES, configuration, loaded, reading_over

CPU = Platform(device="cpu")
METHODS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora", "rank": 4},
    "nf4": {"kind": "qlora", "rank": 4},
    "int8": {"kind": "lora", "rank": 4, "base": "int8"},
}
EAGER = {"bloom", "gemma2", "gpt_oss", "gptj", "mamba", "mpt"}
"""Families that have no attention through torch's scaled_dot_product_attention, or none at all."""
TARGETS = {"mamba": ["in_proj", "x_proj"], "falcon_h1": ["q_proj", "in_proj", "gate_proj"]}
"""Where peft refuses all-linear: it adapts no out_proj beside a scan that reads its weight."""
EXCEPTIONS: dict[tuple[str, str], str] = {}
"""Cells whose prediction differs from the run, each with why. One that no longer differs fails."""
CELLS = [
    (family, method)
    for number, family in enumerate(FAMILIES)
    for turn, method in enumerate(METHODS)
    if "CONFIGURATIONS" in os.environ or turn == number % len(METHODS)
]


def _bytes_by_dtype(model: Any) -> Counter[torch.dtype]:
    """Return the bytes of a model's storages by dtype: weights, buffers and what quantised ones carry."""
    found: Counter[torch.dtype] = Counter()
    seen: set[int] = set()
    for tensor in (*model.parameters(), *model.buffers()):
        for one in (tensor, *_carried(tensor)):
            storage = one.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                found[one.dtype] += storage.nbytes()
    return found


def _carried(holder: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors among a quantised weight's attributes: scales, and the state of their own scales."""
    for name in ("SCB", "absmax", "offset"):
        value = getattr(holder, name, None)
        if isinstance(value, torch.Tensor):
            yield value
    for name in ("quant_state", "state2"):
        if (state := getattr(holder, name, None)) is not None:
            yield from _carried(state)


@pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to False", "ignore:The following (rank|alpha)_pattern keys did not match"
)
@pytest.mark.parametrize(("family", "method"), CELLS, ids=map("-".join, CELLS))
def test_loaded_and_trained_as_predicted(family: str, method: str) -> None:
    """Bytes by dtype after loading, the peak of training and its parts: all to the byte."""
    training = {"sequence_length": 16, "attention": "eager" if family in EAGER else "sdpa"}
    targets = {} if method == "full" else {"target_modules": TARGETS.get(family, "all-linear")}
    cell = tiny_cell(METHODS[method] | targets, training=training)
    real = loaded(cell, configuration(family))
    with patched(CPU):
        empty = build_empty_model(cell, configuration(family))
        for module in empty.modules():
            quantise_empty(module)
    alike = _bytes_by_dtype(real) == _bytes_by_dtype(empty)
    truth = reading_over(real, cell)
    predicted = read_cpu_ledger(cell, CPU, configuration(family))
    alike = alike and (truth.peak_bytes, truth.categories_at_peak_bytes) == (
        predicted.peak_bytes,
        predicted.categories_at_peak_bytes,
    )
    reason = EXCEPTIONS.get((family, method))
    assert alike == (reason is None), reason or "differs; where it must, give the reason in EXCEPTIONS"


def test_enough_families_are_covered() -> None:
    """At least thirty of transformers' classes for language models, and every method among the default."""
    assert len(FAMILIES) >= 30
    assert {method for _, method in CELLS} == set(METHODS)
    assert all(family in FAMILIES and method in METHODS for family, method in EXCEPTIONS)
