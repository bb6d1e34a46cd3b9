"""What strangers may put into scenarios and results folders, and what comes of it."""

import json
import subprocess
import sys
from pathlib import Path

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


FUNCTION = """
title = "t"
description = "d"
[models.m]
random = "tiny-llama-test"
[methods.full]
[data]
source = "synthetic"
[training]
sequence_length = 16
[loop]
driver = "trap:train"
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "is code from outside bench; read it, and run it with bench run --allow-code trap:train"),
        (
            ["run", "--allow-code", "trap:other", "--allow-code", "trap"],
            "run it with bench run --allow-code trap:train",
        ),
        (["plan"], "code of yours, which a prediction does not run"),
        (["cells"], None),
        (["cells", "--check"], None),
        (["gate", "--base", "HEAD"], "(no other command does)"),
    ],
)
def test_code_that_a_scenario_names_is_not_imported_unasked(
    arguments: list[str], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No command imports it; bench run does only for exactly the name on its command line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.toml").write_text(FUNCTION)
    (tmp_path / "trap.py").write_text("open('sprung', 'w').close()\ndef train(*_): pass\n")
    command = [sys.executable, "-m", "bench", arguments[0], "s.toml", *arguments[1:]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not (tmp_path / "sprung").exists()
    if message is not None:
        assert message in " ".join((result.stdout + result.stderr).split())
