"""Names of other trainers: what they are called here, and files translated by the same table."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from transformers import TrainingArguments
from typer.testing import CliRunner

from bench.cli import app
from bench.errors import ScenarioError, UsageError
from bench.scenario.cell import Cell
from bench.scenario.layout import TABLES, fields_of
from bench.scenario.load import load_scenario
from bench.scenario.names import _groups, answer, lever_of, name_of, render_names, sources
from bench.scenario.translate import translate


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("methods", "mine", "lora_r"), 32, "write rank = 32"),
        (("methods", "mine", "load_in_4bit"), True, 'write kind = "qlora"'),
        (("methods", "mine", "lora_target_linear"), True, 'write target_modules = "all-linear"'),
        (("methods", "mine", "modules_to_save"), ["a"], 'write peft = { modules_to_save = ["a"] }'),
        (("training", "lora_r"), 8, "write rank = 8 in [methods.NAME]"),
        (("training", "per_device_train_batch_size"), 2, "write micro_batch = 2"),
        (("micro_batch_size",), 2, "write micro_batch = 2 in [training]"),
        (("training", "bf16"), True, 'write autocast = "bf16" and dtype = "bf16"'),
        (("training", "sample_packing"), True, 'write batching = "pack"'),
        (("training", "sample_packing"), False, "leave it out: so it is here when nothing is written"),
        (("training", "num_epochs"), 3, "no epochs: a window of window.measured_steps is measured"),
        (("training", "warmup_ratio"), 0.1, "training.schedule_warmup_steps is that ratio of the steps"),
        (("training", "neftune_noise_alpha"), 5, "write args = { neftune_noise_alpha = 5 } in [loop], whose"),
        (("training", "wandb_project"), "x", "nothing is saved or reported in a window"),
        (("training", "no_such_thing"), 1, ""),
    ],
)  # fmt: skip
def test_a_name_is_answered_with_what_to_write(path: Any, value: object, expected: str) -> None:
    """With the value in the words used here, and the table unless it is the one at hand."""
    assert answer(path, value).startswith(expected)
    assert bool(answer(path, value)) is bool(expected)


def test_a_scenario_with_other_names_is_answered_line_by_line(tmp_path: Path) -> None:
    """Instead of a guess; a value of another trainer's under a name of ours is answered too."""
    path = tmp_path / "mine.toml"
    path.write_text(
        '[models.m]\nrandom = "tiny-llama-test"\n[methods.lora]\nlora_rank = 4\n'
        '[data]\nsource = "synthetic"\n'
        '[training]\ngradient_checkpointing = true\nrank_of_all = 3\nattention = "xformers"\n'
    )
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path)

    first, second, third, fourth = caught.value.problems
    assert first.endswith("mine.toml:4: methods.lora.lora_rank: there is no such key here; write rank = 4.")
    assert second.endswith('not true; write gradient_checkpointing = "non-reentrant".')
    assert fourth.endswith('or "flex_attention", not "xformers".')
    assert third.endswith("mine.toml:9: training.rank_of_all: there is no such key here.")


def test_every_field_that_the_table_writes_is_there() -> None:
    """No name leads to a key that a scenario refuses, and none is explained twice."""
    names = [name for group in _groups().values() for name in group]
    theirs = [one for name in names for one in name.theirs]
    written = [one for name in names for one in name.write]
    written += [
        one for name in names for value in name.values.values() if isinstance(value, dict) for one in value
    ]
    known = {"device"} | {f"{table}.{key}" for table in TABLES for key in fields_of(table)}

    assert len(theirs) == len(set(theirs)) > 200
    assert {one for one in written if ".".join(one.split(".")[:2]) not in known} == set()
    assert [name for name in names if not (name.write or name.say or name.values)] == []


def test_every_argument_of_the_trainers_is_known() -> None:
    """Of transformers, trl and peft as installed: none is lost for want of a name."""
    trl: Any = pytest.importorskip("trl")
    for kind in (TrainingArguments, trl.SFTConfig, trl.DPOConfig, LoraConfig):
        fields = kind.__dataclass_fields__
        assert [key for key in fields if name_of(key) is None and key not in _OF_PEFT_ONLY] == []


_OF_PEFT_ONLY = {
    "alora_invocation_tokens", "arrow_config", "corda_config", "ensure_weight_tying", "eva_config",
    "kasa_config", "layer_replication", "loftq_config", "lora_ga_config", "megatron_config",
    "monteclora_config", "qalora_group_size", "revision", "runtime_config", "trainable_token_indices",
    "use_bdlora", "use_qalora", "velora_config",
}  # fmt: skip
"""Fields of LoraConfig that a method takes under peft, where the file is told so."""


def test_arguments_that_the_scenario_sets_are_refused_in_loop_args(tiny: Cell) -> None:
    """By the same table."""
    assert lever_of("max_steps") == "window.measured_steps"
    assert lever_of("adam_beta2") == lever_of("dataloader_num_workers") == lever_of("unheard_of") == ""
    fields = tiny.model_dump() | {
        "loop": {"driver": "hf-trainer", "args": {"optim": "sgd", "adam_beta2": 0.9}}
    }
    with pytest.raises(ValueError, match=r"may not hold optim; set training\.optimizer, as for every loop"):
        Cell.model_validate(fields)


@pytest.fixture
def tiny() -> Cell:
    """Return a cell."""
    from tiny_cells import tiny_cell

    return tiny_cell()


AXOLOTL = """
base_model: my-org/base-8b
load_in_4bit: true
adapter: qlora
lora_r: 16
lora_alpha: 32
lora_target_linear: true
datasets:
  - path: my-org/instructions
    type: alpaca
  - path: more.jsonl
    type: chat_template
sequence_len: 2048
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 4
optimizer: paged_adamw_8bit
learning_rate: 1e-4
bf16: auto
fp16:
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: true}
warmup_ratio: 0.05
deepspeed: zero3.json
hub_token: s3cret
invented_by_me: 7
"""
LLAMA_FACTORY = """
### model
model_name_or_path: my-org/chat-7b
quantization_bit: 4
stage: sft
finetuning_type: lora
lora_target: q_proj, v_proj
dataset: mine
template: qwen
cutoff_len: 1024
per_device_train_batch_size: 1
learning_rate: 1.0e-4
bf16: true
plot_loss: true
"""


def translated(folder: Path, text: str, name: str = "theirs.yml") -> tuple[Cell, list[str], str]:
    """Return the one cell of a translated file, what was said, and the scenario."""
    (folder / name).write_text(text, encoding="utf-8")
    scenario, remarks = translate(folder / name)
    path = folder / "ours.toml"
    path.write_text(scenario, encoding="utf-8")
    (cell,) = load_scenario(path).cells
    return cell, remarks, scenario


def test_axolotl_s_file_becomes_a_scenario(tmp_path: Path) -> None:
    """Values in the words used here, with their lines; what has no equivalent is listed, with its line."""
    cell, remarks, scenario = translated(tmp_path, AXOLOTL)
    method, training = cell.method.model_dump(), cell.training

    assert (cell.device, cell.model.hub, cell.loop.driver) == ("cuda", "my-org/base-8b", "hf-trainer")
    assert ("qlora", 16, 32, "all-linear") == tuple(
        method[key] for key in ("kind", "rank", "alpha", "target_modules")
    )
    assert cell.data.model_dump()["dataset"] == "my-org/instructions"
    assert (training.sequence_length, training.micro_batch, training.gradient_accumulation) == (2048, 2, 4)
    assert (training.optimizer, training.learning_rate) == ("paged-adamw-8bit", 1e-4)
    assert (training.batching, training.gradient_checkpointing) == ("pack", "reentrant")
    assert (training.dtype, training.autocast, training.schedule) == ("bf16", "bf16", "cosine")
    said = "\n".join(remarks)
    for lost in ("datasets, 2", "warmup_ratio = 0.05 (theirs.yml:23)", "deepspeed = ", "invented_by_me = 7"):
        assert lost in said
        assert lost in scenario
    assert "rank = 16  # lora_r (theirs.yml:5)" in scenario
    assert 'schedule = "cosine"  # default of axolotl' in scenario
    assert "s3cret" not in said + scenario


def test_no_key_of_a_file_is_lost_silently(tmp_path: Path) -> None:
    """Each stands in the scenario: where it was taken, or in a remark."""
    saved = json.loads(TrainingArguments(output_dir="out", use_cpu=True, report_to=[]).to_json_string())
    for text in (AXOLOTL, LLAMA_FACTORY, json.dumps(saved, indent=1)):
        _, _, scenario = translated(tmp_path, text)
        keys = [
            line.split(":")[0].strip(' "') for line in text.splitlines() if ":" in line and line[:2] != "  "
        ]
        assert [key for key in keys if key not in scenario] == []


def test_llama_factory_s_file_becomes_a_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own defaults; its data set is found through dataset_info.json, or said not to be."""
    monkeypatch.chdir(tmp_path)
    cell, remarks, _ = translated(tmp_path, LLAMA_FACTORY)
    method = cell.method.model_dump()

    assert ("qlora", ("q_proj", "v_proj"), 8, 16) == tuple(
        method[key] for key in ("kind", "target_modules", "rank", "alpha")
    )
    assert cell.training.gradient_checkpointing == "reentrant"
    assert cell.data.source == "synthetic"
    assert any("no data/dataset_info.json here has it" in one for one in remarks)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
    data = translated(tmp_path, LLAMA_FACTORY)[0].data.model_dump()
    assert (data["source"], data["path"], data["template"]) == ("jsonl", "data/mine.json", "chat")


@pytest.mark.parametrize(
    ("more", "dtype", "autocast"),
    [("bf16: true", "fp32", "bf16"), ("pure_bf16: true", "bf16", "off"), ("fp16: true", "fp32", "fp16")],
)
def test_full_fine_tuning_of_llama_factory_keeps_its_weights_as_it_does(
    tmp_path: Path, more: str, dtype: str, autocast: str
) -> None:
    """It casts what is trained to fp32 (its model/adapter.py), unless asked for bf16 alone."""
    text = f"model_name_or_path: my-org/chat-7b\nstage: sft\nfinetuning_type: full\n{more}\n"
    cell, _, _ = translated(tmp_path, text)

    assert (cell.method.kind, cell.training.dtype, cell.training.autocast) == ("full", dtype, autocast)


def test_saved_arguments_become_a_scenario_and_what_stands_in_is_said(tmp_path: Path) -> None:
    """Every argument of transformers' is known; model, data and length are invented, and named."""
    arguments = TrainingArguments(
        output_dir="out", use_cpu=True, per_device_train_batch_size=4, learning_rate=2e-5, adam_beta2=0.95,
        optim="adafactor", report_to=[],
    )  # fmt: skip
    cell, remarks, _ = translated(tmp_path, arguments.to_json_string(), "args.json")

    assert (cell.method.kind, cell.training.micro_batch, cell.training.optimizer) == ("full", 4, "adafactor")
    assert cell.loop.args == {"adam_beta2": 0.95}
    said = "\n".join(remarks)
    assert "no setting of that name" not in said
    for part in ("names no model", "leads to no data", "names no adapter", "no sequence length", "no dtype"):
        assert part in said


def test_what_a_scenario_refuses_is_taken_out_for_its_reason(tmp_path: Path) -> None:
    """A translated file always loads."""
    text = "base_model: a/b\nadapter: lora\nlora_r: 0\nlr_scheduler: polynomial\noptimizer: muon\n"
    text += "sequence_len: x\n"
    _, remarks, _ = translated(tmp_path, text)
    said = "\n".join(remarks)

    for lost in ("lora_r = 0", 'lr_scheduler = "polynomial"', 'optimizer = "muon"', 'sequence_len = "x"'):
        assert lost in said
    assert 'must be "constant", "linear" or "cosine"' in said


BOMB = "base_model: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("base_model: !!python/object/apply:os.system [touch pwned]\n", r":1 is not plain YAML or JSON \("),
        (BOMB, "uses aliases"),
        ("base_model: a\nbase_model: b\n", r":2: \"base_model\" is given twice"),
        ("- a\n- b\n", "holds no settings by name"),
        ("a: [1\n", "is not plain YAML"),
        ("base_model: " + "[" * 5000 + "]" * 5000, "is nested too deeply"),
        ("base_model: " + "[" * 200_000, "is nested too deeply"),  # the scanner alone takes minutes over it
        ("lr: " + "9" * 5000, "is not plain YAML or JSON .Exceeds the limit"),
        ("since: 2026-99-99", "is not plain YAML or JSON .month must be in"),
        ("color: red\n", "has no key that is known of axolotl, LLaMA-Factory"),
        ("x" * 300_000, "larger than 262,144 bytes"),
        ("", "holds no settings"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_of_theirs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    """In one sentence, and nothing of it is run."""
    monkeypatch.chdir(tmp_path)
    Path("theirs.yml").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        translate(Path("theirs.yml"))
    assert not Path("pwned").exists()
    with pytest.raises(UsageError, match="would run code"):
        translate(Path("training_args.bin"))


def test_names_and_values_of_a_stranger_stay_within_comments(tmp_path: Path) -> None:
    """A key with a line end, and text with quotes, are written so that the scenario is what it says."""
    text = 'base_model: "a/b\\"c"\n"evil\\n[exclude]\\nx": 1\nadapter: lora\n'
    text += 'lora_target_modules: ["q\\"]\\nx"]\n'
    cell, _, scenario = translated(tmp_path, text)

    assert cell.model.hub == 'a/b"c'
    assert "\n[exclude]" not in scenario


def test_init_writes_a_scenario_that_cells_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the file's name, never over what is there, with what was not taken over on the terminal."""
    monkeypatch.chdir(tmp_path)
    Path("theirs.yml").write_text(AXOLOTL)
    result = CliRunner().invoke(app, ["init", "--from", "theirs.yml"])

    assert (result.exit_code, "warmup_ratio = 0.05 (theirs.yml:23)" in result.output) == (0, True)
    assert "qlora" in CliRunner().invoke(app, ["cells", "theirs.toml"]).stdout
    again = CliRunner().invoke(app, ["init", "--from", "theirs.yml"])
    assert "is there already" in str(again.exception)


def test_the_table_is_shown_in_the_docs() -> None:
    """As it is now: make pages writes it."""
    assert render_names() in Path("docs/scenarios.md").read_text(encoding="utf-8")
    assert all(source.marks for source in sources())
