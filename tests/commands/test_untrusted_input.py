"""What strangers may put into scenarios and results folders, and what comes of it."""

import dataclasses
import json
import re
from pathlib import Path

import msgspec
import pytest
from pydantic import ValidationError

from bench.compare.comparison import compare
from bench.records.records import decode_record, encode_record
from command_lines import CommandLine
from records_factory import make_cell, make_record
from tiny_cells import tiny_cell


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules", "inference_mode"])
def test_peft_fields_with_another_home_are_refused(field: str) -> None:
    """A method's own levers, and what would stop it training, may not come in through the peft table."""
    with pytest.raises(ValidationError, match="may not hold"):
        tiny_cell({"kind": "lora", "peft": {field: 1}})


@pytest.mark.parametrize(
    "options",
    [
        {"megatron_core": "planted"},
        {"corda_config": {"cache_file": "covariance.pt"}},
        {"prompt_tuning_init_state_dict_path": "weights.bin"},
        {"tokenizer_name_or_path": "elsewhere", "tokenizer_kwargs": {"trust_remote_code": True}},
        {"adapters": {"one": "../outside"}},
        {"some_later_cache_path": "x"},
    ],
)
def test_options_of_peft_that_load_code_or_files_are_refused(options: dict[str, object]) -> None:
    """A scenario cannot have peft import a module, unpickle a file or fetch a tokenizer, at any depth."""
    for method in (
        {"kind": "lora", "peft": options},
        {"kind": "peft", "type": "prompt-tuning", "config": {"num_virtual_tokens": 4, **options}},
    ):
        with pytest.raises(ValidationError, match="may not hold"):
            tiny_cell(method)


@pytest.mark.parametrize(
    "options",
    [
        {"deepspeed": "/etc/hostname"},
        {"push_to_hub": True},
        {"model_init_kwargs": {"trust_remote_code": True}},
        {"chat_template_path": "/etc/hostname"},
        {"resume_from_checkpoint": "elsewhere"},
    ],
)
def test_arguments_of_trainers_that_reach_outside_are_refused(options: dict[str, object]) -> None:
    """Neither files nor a hub nor remote code by way of ``loop.args``."""
    with pytest.raises(ValidationError, match="may not hold"):
        tiny_cell({"kind": "full"}, loop={"driver": "trl-sft", "args": options})


def test_every_option_of_the_installed_peft_that_names_a_file_or_module_is_refused() -> None:
    """What the libraries call paths, files and tokenizers today is among what is refused by name."""
    mapping = pytest.importorskip("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING
    names = {field.name for kind in mapping.values() for field in dataclasses.fields(kind)}
    reaching = {name for name in names if re.search("path|_file|tokenizer|megatron|revision", name)}
    assert len(reaching) >= 6
    for name in reaching:
        with pytest.raises(ValidationError, match=f"may not hold {name}"):
            tiny_cell({"kind": "lora", "peft": {name: "x"}})


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


REFUSED = "is code from outside bench; read it, and give --allow-code trap:train to bench run, gate or"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run s.toml", REFUSED),
        ("run s.toml --allow-code trap:other --allow-code trap", REFUSED),
        ("plan s.toml", "code of yours, which a prediction does not run"),
        ("plan s.toml --gpu rtx4090 --details", "code of yours, which a prediction does not run"),
        ("cells s.toml", "m/full-trap_train"),
        ("cells s.toml --check", "m/full-trap_train"),
        ("gate s.toml --base HEAD", REFUSED),
        ("gate s.toml --base . --allow-code trap:other", REFUSED),
        ("gate records --baseline b --scenario s.toml", "baseline"),
        ("calibrate s.toml", REFUSED),
        ("compare records records --scenario s.toml", None),
        ("report records", "full-trap_train"),
        ("report records -o page.html", None),
        ("table records", None),
        ("baseline accept records --name b --reason r", None),
        ("export records -o steps.json", None),
        ("fit s.toml --gpu rtx4090", "s.toml"),
        ("claims records", None),
    ],
)
def test_code_that_a_scenario_names_is_not_imported_unasked(
    command: str, message: str | None, bench: CommandLine, tmp_path: Path
) -> None:
    """No command imports what a scenario or a record names, unless told exactly that name."""
    (tmp_path / "s.toml").write_text(FUNCTION)
    (tmp_path / "trap.py").write_text("open('sprung', 'w').close()\ndef train(*_): pass\n")
    own = make_cell(id="m/full-trap_train/b1", method={"kind": "full"}, loop={"driver": "trap:train"})
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "r.json").write_bytes(encode_record(make_record(cell=own)))
    result = bench(tmp_path, *command.split())
    assert not (tmp_path / "sprung").exists()
    assert "Traceback" not in result.stderr
    assert message is None or message in " ".join((result.stdout + result.stderr).split())


@pytest.mark.parametrize(
    "name", ["\x1b[2Jgone", "=HYPERLINK(1)", "<script>", "a\nb", "", "a" * 500, "\u202eevil"]
)
def test_a_record_whose_cell_has_a_hostile_id_is_refused(name: str) -> None:
    """An id is letters, digits and a few marks, so that no terminal, page or sheet takes it for more."""
    stored = json.loads(encode_record(make_record()))
    stored["cell"]["id"] = name
    with pytest.raises(msgspec.ValidationError):
        decode_record(json.dumps(stored).encode())


def test_an_evaluation_that_counts_a_question_twice_is_refused() -> None:
    """Right answers that are repeated would raise the accuracy of both sides alike, which no pair shows."""
    stored = json.loads(encode_record(make_record()))
    items = stored["measurement"]["evaluations"][0]["items"]
    for field, value in ("items", 2 * items), ("truncated_items", len(items) + 1):
        changed = json.loads(json.dumps(stored))
        changed["measurement"]["evaluations"][0][field] = value
        with pytest.raises(ValueError, match=r"twice|truncated"):
            decode_record(json.dumps(changed).encode())
