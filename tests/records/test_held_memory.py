"""Growth over the measured steps from what was held after each: a leak, and nothing else, is one."""

from collections.abc import Sequence

import msgspec
import pytest

from bench.records.derived_metrics import read_metrics
from bench.records.readings import Held, Retained
from bench.records.records import Record, decode_record, encode_record
from records_factory import MIB, make_ledger, make_measurement, make_phases, make_record, make_steps

STEPS = 30
KIB = 1024


def _record(heap: Sequence[int], cuda: Sequence[int | None] | None = None) -> Record:
    """Return a run after whose measured steps so many bytes were held."""
    first, second, third, *measured = make_steps((1000.0,) * len(heap))
    held = zip(heap, cuda or [None] * len(heap), strict=True)
    steps = [step.replace(held=Held(*each)) for step, each in zip(measured, held, strict=True)]
    phases = tuple(
        one.replace(heap_start_bytes=100 * MIB) if one.name == "load" else one for one in make_phases()
    )
    return make_record(measurement=make_measurement(steps=(first, second, third, *steps), phases=phases))


def _growth(increments: Sequence[int]) -> float | int | None:
    heap = [200 * MIB + sum(increments[: step + 1]) for step in range(len(increments))]
    return read_metrics(_record(heap))["heap_growth_bytes_per_step"]


def test_a_steady_leak_is_found_to_the_byte() -> None:
    """Of 64 KiB a step, in long windows and in the shortest."""
    assert [64 * KIB] * 3 == [_growth([64 * KIB] * steps) for steps in (STEPS, 7, 4)]


@pytest.mark.parametrize("step", range(STEPS))
def test_what_is_allocated_once_is_no_leak(step: int) -> None:
    """At whatever step."""
    assert 0 == _growth([32 * MIB if each == step else 0 for each in range(STEPS)])


@pytest.mark.parametrize("first", range(10))
def test_a_leak_in_every_tenth_step_is_one(first: int) -> None:
    """Wherever the first of them lies."""
    growth = _growth([640 * KIB if each % 10 == first else 0 for each in range(STEPS)])
    assert growth is not None
    assert growth >= 32 * KIB


def test_garbage_that_waits_for_its_collection_is_none() -> None:
    """The heap goes up and down by far more, and is where it was."""
    assert 0 == _growth([10 * MIB, 10 * MIB, -20 * MIB] * 10)


def test_a_leak_beneath_garbage_is_found() -> None:
    """Of 64 KiB a step, beside it."""
    growth = _growth([10 * MIB + 64 * KIB, 10 * MIB + 64 * KIB, -20 * MIB + 64 * KIB] * 10)
    assert growth is not None
    assert growth > 32 * KIB


def test_a_heap_that_shrinks_has_no_negative_growth() -> None:
    """It is no gain that could hide anything."""
    assert 0 == _growth([-64 * KIB] * STEPS)


def test_too_few_steps_have_no_growth() -> None:
    """Three steps cannot tell it from what came once; what is kept is known all the same."""
    metrics = read_metrics(_record([150 * MIB] * 3))
    assert (None, 50 * MIB) == (metrics["heap_growth_bytes_per_step"], metrics["heap_kept_bytes"])


def test_each_instrument_has_its_own_growth() -> None:
    """The device's is torch's count, the process's is malloc's."""
    metrics = read_metrics(_record([200 * MIB] * 8, [MIB * step for step in range(8)]))
    assert (0, MIB) == (metrics["heap_growth_bytes_per_step"], metrics["cuda_growth_bytes_per_step"])
    assert read_metrics(_record([200 * MIB] * 8))["cuda_growth_bytes_per_step"] is None


def test_what_a_ledger_retains_is_a_metric() -> None:
    """Of all holders; older ledgers, which looked for none, have no value."""
    retained = Retained({"package.KEPT": MIB, "package.Other": 2 * MIB}, 65_536, {"aten::ones in x": 131_072})
    found = read_metrics(make_record(measurement=make_measurement(ledger=make_ledger(retained=retained))))
    assert (3 * MIB, 65_536) == (found["retained_bytes"], found["leaked_bytes_per_step"])
    old = read_metrics(make_record(measurement=make_measurement(ledger=make_ledger())))
    assert (None, None) == (old["retained_bytes"], old["leaked_bytes_per_step"])


def test_records_of_before_keep_their_bytes() -> None:
    """What they lack is not written as something that was not measured."""
    old, new = make_record(), _record([200 * MIB] * 8)
    for name in (b'"held"', b'"retained"', b'"heap_start_bytes"'):
        assert name not in encode_record(old)
    assert encode_record(old) == encode_record(decode_record(encode_record(old)))
    assert b'"held"' in encode_record(new)
    assert new == decode_record(encode_record(new))
    assert msgspec.UNSET is old.measurement.steps[0].held
