"""What strangers may put into scenarios and results folders, and what comes of it."""

import json

import msgspec
import pytest
from pydantic import ValidationError

from bench.compare.comparison import compare
from bench.records.records import decode_record, encode_record
from records_factory import make_cell, make_record
from tiny_cells import tiny_cell


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules", "inference_mode"])
def test_peft_fields_with_another_home_are_refused(field: str) -> None:
    """A method's own levers, and what would stop it training, may not come in through the peft table."""
    with pytest.raises(ValidationError, match="may not hold"):
        tiny_cell({"kind": "lora", "peft": {field: 1}})


@pytest.mark.parametrize("value", [0, -1, 2**63, 10**400])
def test_numbers_nobody_can_have_measured_are_refused(value: int) -> None:
    """A record with an impossible step time does not validate, so it never reaches the arithmetic."""
    stored = json.loads(encode_record(make_record()))
    stored["measurement"]["steps"][0]["step_time_ns"] = value
    with pytest.raises(msgspec.ValidationError):
        decode_record(json.dumps(stored).encode())


def test_no_saving_is_stated_across_windows() -> None:
    """Full fine-tuning over another number of steps saw other batches, and is no reference."""
    full = make_record(cell=make_cell(id="t/full/b4", method={"kind": "full"}, window={"measured_steps": 3}))
    rows = {row.kind: row for row in compare([full, make_record()]).rows}
    assert rows["lora"].reference is None
