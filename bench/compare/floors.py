"""What a run can at least take and at most reach: its weights' bytes, its hardware's data sheet."""

import re
from typing import NamedTuple

from bench.metrics import MIB
from bench.records.records import Record
from bench.scenario.catalogue import Card, cards

_DTYPE_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
_FOUR_BIT_BYTES, _INT8_BYTES = 0.5, 1.0
# Clocks rise above the data sheet's, and makers sell faster variants under the same name.
_SLACK = 1.25
_INT8_SPEED = 2.0  # times bf16, in the white papers of every architecture here
# Advanced Matrix Extensions do 2048 bf16 operations a cycle and core (Intel's optimisation manual, table of
# TDPBF16PS), which at 4 GHz is 8.2e12; nothing else on a CPU comes near.
_CPU_THREAD_FLOPS = 8.2e12
_IN_NO_CACHE_BYTES = 256 * MIB  # larger than the second-level cache of any card


class Limit(NamedTuple):
    """What hardware reaches at most, per second, and its name in a sentence."""

    who: str
    value: float


def weights_floor_bytes(record: Record) -> int | None:
    """Return the fewest bytes the weights can take as the method stores them; None before they are loaded."""
    model, method = record.measurement.model, record.cell.method
    if model is None:
        return None
    trained = _DTYPE_BYTES[record.cell.training.dtype]
    frozen = trained
    if method.kind == "qlora":
        frozen = _FOUR_BIT_BYTES
    elif method.kind == "lora" and method.base == "int8":
        frozen = _INT8_BYTES
    parameters = model.parameters_total - model.parameters_trainable
    return int(parameters * frozen + model.parameters_trainable * trained)


def flops_per_second_limit(record: Record) -> Limit | None:
    """Return the most operations a second; None for a card whose speed is not catalogued."""
    facts, method = record.measurement.device, record.cell.method
    if facts is None:
        return None
    if record.cell.device == "cpu":
        return Limit(f"a CPU with {facts.cpu_threads} threads", facts.cpu_threads * _CPU_THREAD_FLOPS)
    known = [card.peak_bf16_flops for card in cards_named(facts.cuda_name) if card.peak_bf16_flops]
    if not known:
        return None
    int8 = method.kind == "lora" and method.base == "int8"
    return Limit(facts.cuda_name or "cuda", max(known) * _SLACK * (_INT8_SPEED if int8 else 1))


def weights_read_bytes_per_second(record: Record) -> Limit | None:
    """Return the most bytes a second, where every step reads all weights from memory; else None.

    That is so of models too large for a cache that compute with each weight for each token: with two
    operations at least, which a mixture of experts falls short of.
    """
    facts, flops, model = record.measurement.device, record.measurement.flops, record.measurement.model
    floor = weights_floor_bytes(record)
    if facts is None or flops is None or model is None or floor is None or floor < _IN_NO_CACHE_BYTES:
        return None
    if record.cell.device != "cuda" or flops.step_flops < 2 * model.parameters_total * flops.tokens.computed:
        return None
    known = [
        card.bandwidth_bytes_per_s for card in cards_named(facts.cuda_name) if card.bandwidth_bytes_per_s
    ]
    return Limit(facts.cuda_name or "cuda", max(known) * _SLACK) if known else None


def cards_named(device_name: str | None) -> list[Card]:
    """Return the catalogued cards that a device's name can mean, such as both sizes of an A100."""
    words = set(_words(device_name or ""))
    found = [
        (len(title), card)
        for card in cards().values()
        if (title := _words(card.title)) and set(title) <= words
    ]
    longest = max((length for length, _ in found), default=0)
    return [card for length, card in found if length == longest]


def _words(name: str) -> list[str]:
    """Return a name's words in lower case, without sizes of memory."""
    return re.findall(r"[a-z0-9]+", re.sub(r"\b[0-9]+ ?gb\b", " ", name.lower()))
