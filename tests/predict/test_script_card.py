"""An unchanged script predicted for a card: like the window, out of memory, and refused by its line."""

import json
import shutil
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from bench.errors import UnavailableError
from bench.predict.predict import predict
from bench.predict.script.card import pretended
from bench.predict.script.ledger import ScriptState
from bench.predict.script.predict import predict_script
from bench.records.predictions import Prediction, Refusal, check_fit
from bench.scenario.catalogue import Card, card, card_of_memory
from bench.scenario.platform import Platform
from script_models import EXAMPLES, save_tiny_llama
from tiny_cells import tiny_cell

pytestmark = pytest.mark.filterwarnings("ignore")  # the scripts' and their libraries', whatever they are
CARD = card("rtx4090")
CUDA = Platform(device="cuda", capability=CARD.capability)
LOOP = """
    import sys, torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).to("cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    def step(rows=2):
        ids = torch.randint(5, 30, (rows, 64)).to("cuda")
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return ids, loss
"""
WINDOW = """
    import sys, torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
    method = sys.argv[2]
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, device_map={"": 0},
        quantization_config=four_bits if method == "qlora" else None)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    if method != "full":
        model.enable_input_require_grads()
        if method == "qlora":
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear",
                                                 task_type="CAUSAL_LM"))
    model.train()
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True, foreach=False, weight_decay=0.0)
    def step():
        ids = torch.randint(5, 30, (2, 64))
        inputs = {"input_ids": ids.to("cuda"), "labels": ids.clone().to("cuda")}
        loss = model(**inputs, use_cache=False).loss
        loss.backward()
        del inputs
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for _ in range(3):
        step()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a tiny model's folder without weights."""
    return save_tiny_llama(tmp_path_factory.mktemp("bare"), weights=False)


def predicted(
    tmp_path: Path, folder: str, text: str, *args: str, on: Card = CARD, **options: Any
) -> Prediction | Refusal:
    """Predict a script of so many lines; a loop's beginning stands before those that need one."""
    script = tmp_path / "train.py"
    script.write_text(dedent(text), "utf-8")
    return predict_script([str(script), folder, *args], CUDA, on, **{"steps": 2, **options})[1]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_script_like_the_window_takes_what_the_window_does(
    method: str, tmp_path: Path, folder: str
) -> None:
    """Allocated memory is equal, and what is reserved lies within the window's range."""
    script = predicted(tmp_path, folder, WINDOW, method)
    changes = {"gradient_checkpointing": "non-reentrant", "sequence_length": 64, "micro_batch": 2}
    cell = tiny_cell(
        {"kind": method}, model={"random": None, "path": folder}, training=changes, device="cuda"
    )
    window = predict(cell, CUDA)
    assert isinstance(script, Prediction), script
    assert script.allocated_peak_bytes == window.allocated_peak_bytes
    assert script.categories_at_peak_bytes == window.categories_at_peak_bytes
    assert (script.peak_phase, script.peak_op) == (window.peak_phase, window.peak_op)
    low, high = window.reserved_low_bytes, window.reserved_high_bytes
    assert low is not None
    assert high is not None
    assert low <= (script.reserved_peak_bytes or 0) <= high


@pytest.mark.parametrize("name", ["lora_trainer", "qlora_trainer", "sft_packing", "dpo", "scaler_evaluation"])
def test_libraries_take_their_paths_on_the_card(name: str, folder: str) -> None:
    """Trainers, scalers and paged optimizers believe in the card."""
    if name in {"sft_packing", "dpo"}:
        pytest.importorskip("trl")
    command = [str(EXAMPLES / f"{name}.py"), folder, "64", "4"]
    cell, answer = predict_script(command, CUDA, CARD, steps=2)
    assert isinstance(answer, Prediction), answer
    assert cell is not None
    assert cell.device == "cuda"
    assert answer.reserved_peak_bytes is not None
    assert check_fit(answer, CARD).answer == "fits"
    assert (cell.training.autocast == "fp16") == (name == "scaler_evaluation")


def test_a_generation_ends_at_its_length(folder: str) -> None:
    """Run through, a script that generates text after training makes as many tokens as it asks for."""
    command = [str(EXAMPLES / "generate.py"), folder, "64", "4"]
    _, answer = predict_script(command, CUDA, CARD, through=True)
    assert isinstance(answer, Prediction), answer
    assert "ended by itself after optimizer step 6" in answer.caveats[-1].message


def test_what_is_invented_is_told_by_its_line(tmp_path: Path, folder: str) -> None:
    """A loss that is printed has no value; a count of what the batch holds has its own."""
    text = LOOP + (
        "    for _ in range(3):\n"
        "        ids, loss = step()\n"
        "        assert int((ids >= 5).sum()) == 128\n"
        "        print(loss.item())\n"
    )
    answer = predicted(tmp_path, folder, text)
    assert isinstance(answer, Prediction), answer
    (caveat,) = (one for one in answer.caveats if one.code == "values-assumed")
    assert f"{tmp_path.name}/train.py:16 (1 times)" in caveat.message
    assert "train.py:15" not in caveat.message


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("while step()[1].item() > 0.5: pass", "train.py:13 waits for a value"),
        ("model(input_ids=step()[0]).logits[model(step()[0]).logits > 0]", "train.py:13 indexes by a mask"),
        ("torch.load('weights.bin')", "train.py:13 loads tensors from a file"),
        ("torch.distributed.init_process_group('gloo')", "train.py:13 joins a group of processes"),
        ("model(torch.ones(1, 8).long())", "train.py:13 ends it with RuntimeError: Expected all tensors"),
        ("undefined", "train.py:13 ends it with NameError"),
        ("sys.exit(3)", "exited with 3 after 0 optimizer steps, and 1 are needed; does it run"),
        ("raise OSError('hub') from ConnectionError()", "OSError: hub; it has no network; download first"),
        ("torch.unique(step()[1])", "calls aten::_unique2"),
    ],
)
def test_what_cannot_be_told_is_refused_by_its_line(
    lines: str, message: str, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong number is worse than none, also where the script would catch the error."""
    monkeypatch.setattr("bench.predict.script.ledger.MOST_ANSWERS", 9)
    answer = predicted(tmp_path, folder, f"{LOOP}    {lines}\n", steps=20)
    assert isinstance(answer, Refusal), answer
    assert message in answer.message


def test_a_refusal_is_not_caught_by_the_script(tmp_path: Path, folder: str) -> None:
    """A script that goes on after any error cannot make a number of a refusal."""
    text = (
        LOOP
        + "    try:\n        torch.load('x')\n    except Exception: pass\n    for _ in range(3): step()\n"
    )
    answer = predicted(tmp_path, folder, text)
    assert isinstance(answer, Refusal)
    assert "train.py:14 loads tensors" in answer.message


SMALL = card_of_memory("1GiB").model_copy(update={"read_usable_bytes": None, "read_context_bytes": 900 << 20})


def test_a_script_runs_out_of_memory(tmp_path: Path, folder: str) -> None:
    """What does not fit ends the script; what it catches is tried again with less."""
    grows = "    for rows in (2048, 2):\n        try: step(rows)\n        except {}: pass\n    step()\n"
    caught = predicted(tmp_path, folder, LOOP + grows.format("torch.OutOfMemoryError"), on=SMALL)
    assert isinstance(caught, Prediction), caught
    assert caught.allocated_peak_bytes <= SMALL.torch_bytes
    assert "script-retried" in {one.code for one in caught.caveats}
    ended = predicted(tmp_path, folder, LOOP + grows.format("KeyError"), on=SMALL)
    assert isinstance(ended, Prediction), ended
    assert check_fit(ended, SMALL).answer == "does not fit"
    assert "script-out-of-memory" in {one.code for one in ended.caveats}


def test_offloading_is_refused(tmp_path: Path, folder: str) -> None:
    """A device map that leaves part of a model on the CPU is not predicted."""
    text = """
        import sys
        from transformers import AutoModelForCausalLM
        AutoModelForCausalLM.from_pretrained(sys.argv[1], device_map={"model": 0, "lm_head": "cpu"})
    """
    answer = predicted(tmp_path, folder, text)
    assert isinstance(answer, Refusal)
    assert "spreads the model over" in answer.message


def test_the_card_is_torchs_accelerator_too(tmp_path: Path, folder: str) -> None:
    """As in torch's own tutorials; one that trains on the CPU all the same is refused."""
    text = LOOP.replace('"cuda"', "device") + "    assert torch.accelerator.max_memory_allocated() >= 0\n"
    text += (
        "    torch.cuda.memory._record_memory_history()\n    torch.cuda.memory_stats()['num_alloc_retries']\n"
    )
    text += "    model = torch.nn.DataParallel(model)\n"
    found = "    device = torch.accelerator.is_available() and torch.accelerator.current_accelerator()\n"
    steps = "    for _ in range(3): step()\n"
    on_card = predicted(tmp_path, folder, "\n    import torch\n" + found + text + steps)
    assert isinstance(on_card, Prediction), on_card
    assert on_card.allocated_peak_bytes > 0
    on_cpu = predicted(tmp_path, folder, LOOP.replace('"cuda"', "'cpu'") + steps)
    assert isinstance(on_cpu, Refusal)
    assert "trains a model on the CPU; move it to the card" in on_cpu.message


def test_a_dtype_that_is_not_configured_is_the_weights(tmp_path: Path, folder: str) -> None:
    """Configurations of older models name none; without weights it is fp32, which the answer says."""
    bare = tmp_path / "older"
    shutil.copytree(folder, bare)
    config = json.loads((bare / "config.json").read_text("utf-8"))
    (bare / "config.json").write_text(json.dumps({**config, "dtype": None}), "utf-8")
    text = LOOP + "    step(); step()\n"
    assumed = predicted(tmp_path, str(bare), text)
    assert isinstance(assumed, Prediction), assumed
    assert "none is configured, so fp32 is taken" in str(assumed.caveats)
    save_file({"weight": torch.zeros(1, dtype=torch.bfloat16)}, bare / "model.safetensors")
    read = predicted(tmp_path, str(bare), text)
    assert isinstance(read, Prediction), read
    assert "none is configured" not in str(read.caveats)
    of_weights = [one.categories_at_peak_bytes["weights"] for one in (assumed, read)]
    assert of_weights[0] > 1.9 * of_weights[1]


def test_a_model_beside_the_trained_one_is_among_the_weights(tmp_path: Path, folder: str) -> None:
    """An average of weights is a copy on the card, and as large."""
    alone = predicted(tmp_path, folder, LOOP + "    step(); step()\n")
    both = predicted(tmp_path, folder, LOOP + "    import copy; ema = copy.deepcopy(model); step(); step()\n")
    assert isinstance(alone, Prediction)
    assert isinstance(both, Prediction), both
    weights = [one.categories_at_peak_bytes["weights"] for one in (alone, both)]
    assert weights[1] == 2 * weights[0]


def test_a_private_name_that_is_gone_is_named(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of a library is refused at the start, in one sentence."""
    monkeypatch.delattr(PreTrainedModel, "_load_pretrained_model")
    _, answer = predict_script([str(EXAMPLES / "plain.py"), folder, "64", "4"], CUDA, CARD)
    assert isinstance(answer, Refusal)
    assert "PreTrainedModel has no _load_pretrained_model" in answer.message


def test_the_card_is_gone_afterwards() -> None:
    """torch.cuda and tensors are what they were."""
    before = [dict(vars(owner)) for owner in (torch, torch.Tensor, torch.cuda, torch.cuda.memory)]
    state = ScriptState(on_cpu=False)
    with pytest.raises(UnavailableError), pretended(state, CARD):
        raise UnavailableError("stop")
    assert [dict(vars(owner)) for owner in (torch, torch.Tensor, torch.cuda, torch.cuda.memory)] == before


LOADED = """
    rows = [torch.arange(5, 5 + (200 if at == 37 else 16)) % 30 for at in range(40)]
    pad = lambda batch: torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=1)
    for ids in torch.utils.data.DataLoader(rows, 4, num_workers=2, persistent_workers=True, collate_fn=pad):
        ids = ids.to("cuda")
        model(input_ids=ids, labels=ids).loss.backward(); optimizer.step(); optimizer.zero_grad()
"""


def test_the_longest_batch_of_the_data_is_stepped_through(tmp_path: Path, folder: str) -> None:
    """It stands at the end of the data and decides what is needed; data of one length takes no more steps.

    What a loader's workers would fetch is fetched here.
    """
    long = predicted(tmp_path, folder, LOOP + LOADED)
    short = predicted(tmp_path, folder, LOOP + LOADED.replace("200", "16"))
    assert isinstance(long, Prediction)
    assert isinstance(short, Prediction)
    logits = 4 * 30 * 4  # bytes of a row of four at one position, at least
    assert long.allocated_peak_bytes > short.allocated_peak_bytes + 180 * logits
    codes = [{caveat.code for caveat in one.caveats} for one in (long, short)]
    assert ["script-longest-batch" in one for one in codes] == [True, False]
    assert "largest input until then was 4 by 200" in str(long.caveats)
    assert "after optimizer step 4" in str(long.caveats)
    assert "after optimizer step 2" in str(short.caveats)
