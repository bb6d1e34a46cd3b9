"""Scripts that train other things than language models: equal to the byte, or refused in a sentence."""

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.predict.script.predict import predict_script
from bench.records.messages import ScriptJob
from bench.records.predictions import Prediction, Refusal
from bench.scenario.catalogue import card
from bench.scenario.platform import Platform
from bench.scenario.types import PeftMethod
from bench.training.scripts.seen import SeenCell
from script_models import real_ledger

pytestmark = pytest.mark.filterwarnings("ignore")  # the scripts' and their libraries', whatever they are
CPU = Platform(device="cpu")
LOOP = """
import torch
from torch import nn
from torch.nn import functional
{model}
optimizer = torch.optim.Adam(model.parameters())
for _ in range(8):
    {step}
"""
ENDS_IN_STEP = "optimizer.step(); optimizer.zero_grad()"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where to write a script; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "train.py"


def write(script: Path, model: str, loss: str) -> list[str]:
    """Write a loop over a model and a loss; return the command."""
    script.write_text(LOOP.format(model=model, step=f"({loss}).backward(); {ENDS_IN_STEP}"), "utf-8")
    return [str(script)]


@pytest.mark.parametrize(
    "loss", ["mse_loss", "smooth_l1_loss", "soft_margin_loss", "huber_loss", "binary_cross_entropy"]
)
def test_a_reduced_loss_keeps_the_memory_that_it_keeps_with_data(script: Path, loss: str) -> None:
    """Losses that torch reduces in place hold as many bytes as before; the others one number."""
    step = f"functional.{loss}(model(torch.randn(32, 64)).sigmoid(), torch.rand(32, 64))"
    command = write(script, "model = nn.Linear(64, 64)", step)
    real = real_ledger(command)
    _, answer = predict_script(command, CPU, None, steps=2)
    assert isinstance(answer, Prediction), answer
    assert answer.phase_peaks_bytes == real.phase_peaks_bytes
    assert answer.categories_at_peak_bytes == real.categories_at_peak_bytes


def test_autocast_casts_a_batch_of_numbers_too(script: Path) -> None:
    """Images come with data, weights without, and on the CPU both are cast."""
    step = "with torch.autocast('cpu', torch.bfloat16): loss = model(torch.randn(2, 4, 64)).float().sum()"
    text = LOOP.format(
        model="model = nn.Conv1d(4, 4, 3)", step=f"{step}\n    loss.backward(); {ENDS_IN_STEP}"
    )
    script.write_text(text, "utf-8")
    real = real_ledger([str(script)])
    _, answer = predict_script([str(script)], CPU, None, steps=2)
    assert isinstance(answer, Prediction), answer
    assert answer.phase_peaks_bytes == real.phase_peaks_bytes


@pytest.mark.parametrize("own", [True, False])
def test_rows_in_an_order_of_their_own_are_caveated(script: Path, own: bool) -> None:  # noqa: FBT001 - a parameter
    """Unless the shuffle has a generator of its own, weights have drawn numbers before it in a real run."""
    generator = "torch.Generator()" if own else "None"
    model = f"""model = nn.Linear(8, 8)
rows = torch.utils.data.DataLoader(torch.ones(40, 8), 4, shuffle=True, generator={generator})"""
    text = LOOP.format(model=model, step=f"model(rows).sum().backward(); {ENDS_IN_STEP}")
    script.write_text(text.replace("for _ in range(8)", "for rows in rows"), "utf-8")
    _, answer = predict_script([str(script)], CPU, None, steps=1)
    assert isinstance(answer, Prediction), answer
    assert own == ("script-shuffled" not in {caveat.code for caveat in answer.caveats})


def test_a_script_for_a_card_is_told_to_name_one(script: Path) -> None:
    """Predicted for the CPU it ends as on a machine without one."""
    script.write_text("raise AssertionError('Torch not compiled with CUDA enabled')", "utf-8")
    _, answer = predict_script([str(script)], CPU, None, steps=1)
    assert isinstance(answer, Refusal)
    assert answer.message.endswith("it was predicted for the CPU; name a card, as by --gpu rtx4090.")


def test_a_product_of_two_dtypes_is_no_prediction(script: Path) -> None:
    """With data it ends the script, though torch's stand-in lets it pass."""
    command = write(script, "model = nn.Linear(8, 8).bfloat16()", "model(torch.randn(2, 8)).sum()")
    _, answer = predict_script(command, CPU, None, steps=1)
    assert isinstance(answer, Refusal)
    assert "train.py:8 ends it with RuntimeError: expected m1 and m2 to have the same dtype" in answer.message


def test_labels_that_are_expanded_are_known(script: Path) -> None:
    """As for the best five of each row: an expanded tensor says one value at many places."""
    step = """out = model(torch.randn(2, 8)); out.sum().backward(); optimizer.step()
    hits = out.topk(5)[1].eq(torch.ones(2, 1).long().expand(2, 5)).float().sum()"""
    script.write_text(LOOP.format(model="model = nn.Linear(8, 8)", step=step), "utf-8")
    _, answer = predict_script([str(script)], CPU, None, steps=1)
    assert isinstance(answer, Prediction), answer


def test_a_method_of_peft_is_described_with_its_numbers() -> None:
    """Prompt tuning is no method without the number of its tokens."""
    from peft import PromptTuningConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7)
    seen = SeenCell(ScriptJob(command=("train.py",)))
    seen.found(get_peft_model(LlamaForCausalLM(config), prompts))
    method = seen.cell().method
    assert isinstance(method, PeftMethod)
    assert (method.type, method.config["num_virtual_tokens"]) == ("prompt_tuning", 7)


def test_what_several_optimizers_train_is_in_the_ledger(script: Path) -> None:
    """Weights that another module than the watched one has, their gradients, and each optimizer's state."""
    model = """model = nn.Linear(64, 32, bias=False)
head = nn.Linear(32, 16, bias=False)
other = torch.optim.SGD(head.parameters(), momentum=0.9)"""
    step = "head(model(torch.randn(2, 64))).sum().backward(); optimizer.step(); other.step()"
    script.write_text(LOOP.format(model=model, step=f"{step}; model.zero_grad(False)"), "utf-8")
    real = real_ledger([str(script)])
    _, answer = predict_script([str(script)], CPU, None, steps=2)
    assert isinstance(answer, Prediction), answer
    assert answer.categories_at_peak_bytes == real.categories_at_peak_bytes
    weights, head = 4 * (64 * 32 + 32 * 16), 4 * 32 * 16
    assert real.categories_at_peak_bytes["weights"] == weights
    assert real.categories_at_peak_bytes["gradients"] == weights
    assert real.categories_at_peak_bytes["optimizer_state"] == 2 * (weights - head) + 4 + head


def test_a_model_that_is_never_trained_is_in_the_ledger(script: Path) -> None:
    """A frozen teacher's weights count among the weights, in the reading and in the prediction."""
    model = """model = nn.Linear(64, 32, bias=False)
teacher = nn.Linear(64, 512, bias=False).requires_grad_(False)"""
    command = write(script, model, "model(torch.randn(2, 64)).sum() + teacher(torch.ones(1, 64)).sum()")
    real = real_ledger(command)
    _, answer = predict_script(command, CPU, None, steps=2)
    assert isinstance(answer, Prediction), answer
    assert real.categories_at_peak_bytes["weights"] == 4 * 64 * (32 + 512)
    assert answer.categories_at_peak_bytes == real.categories_at_peak_bytes


def test_an_evaluation_in_inference_mode_takes_what_one_without_gradients_does(script: Path) -> None:
    """There operators come whole that are made of others, and what these take on the way counts as well."""
    step = """functional.mse_loss(model(torch.randn(2, 64)), torch.ones(2, 64)).backward(); optimizer.step()
    optimizer.zero_grad()
    with torch.{mode}():
        loss = functional.cross_entropy(model(torch.randn(512, 64)), torch.ones(512).long())
        assert loss or True"""
    peaks = []
    for mode in ("no_grad", "inference_mode"):
        text = LOOP.format(model="model = nn.Linear(64, 64)", step=step.format(mode=mode))
        script.write_text(text, "utf-8")
        real = real_ledger([str(script)])
        _, answer = predict_script([str(script)], CPU, None, steps=2)
        assert isinstance(answer, Prediction), answer
        assert answer.phase_peaks_bytes == real.phase_peaks_bytes
        peaks.append(real.peak_bytes)
    assert peaks[0] == peaks[1] > 2 * 512 * 64 * 4  # logits and their logarithms


def test_a_loss_that_is_summed_up_without_being_read_counts_as_in_the_run(script: Path) -> None:
    """It lies in a tensor with data, made before the steps; and computed losses are taken to be finite."""
    step = """loss = model(torch.randn(2, 8)).pow(2).mean()
    if torch.isnan(loss) or not torch.isfinite(loss): continue
    loss.backward(); optimizer.step(); total += loss.detach()"""
    script.write_text(
        LOOP.format(model="model, total = nn.Linear(8, 8), torch.zeros(())", step=step), "utf-8"
    )
    real = real_ledger([str(script)])
    _, answer = predict_script([str(script)], CPU, None, steps=2)
    assert isinstance(answer, Prediction), answer
    assert answer.phase_peaks_bytes == real.phase_peaks_bytes
    (assumed,) = (one.message for one in answer.caveats if one.code == "values-assumed")
    assert "(yes: numbers are finite)" in assumed


def test_steps_of_another_model_are_part_of_the_watched_ones(script: Path) -> None:
    """A critic's are; a script that leaves its model for another ends in a sentence."""
    model = "model, other = nn.Linear(8, 8), nn.Linear(8, 8)\nsecond = torch.optim.Adam(other.parameters())"
    step = "model(torch.randn(2, 8)).sum().backward(); optimizer.step()\n    optimizer.zero_grad()"
    another = "other(torch.randn(2, 8)).sum().backward(); second.step(); second.zero_grad()"
    script.write_text(LOOP.format(model=model, step=f"{step}; {another}"), "utf-8")
    real = real_ledger([str(script)])
    cell, answer = predict_script([str(script)], CPU, None, steps=2)
    assert isinstance(answer, Prediction), answer
    assert answer.phase_peaks_bytes == real.phase_peaks_bytes
    assert cell is not None
    assert cell.training.gradient_accumulation == 1
    left = LOOP.format(model=model, step=step).replace("range(8)", "range(2)")
    script.write_text(f"{left}\nfor _ in range(50):\n    {another}\n", "utf-8")
    with pytest.raises(BenchError, match="has not run for 20 optimizer steps"):
        real_ledger([str(script)])


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_are_refused(script: Path, layer: str) -> None:
    """Their kernels keep more than torch's stand-in for them does."""
    command = write(script, f"model = nn.{layer}(8, 16)", "model(torch.randn(5, 2, 8))[0].sum()")
    _, answer = predict_script(command, CPU, None, steps=2)
    assert isinstance(answer, Refusal)
    assert "train.py:8 runs a recurrent layer" in answer.message


def test_an_optimizer_inside_backward_is_refused_by_both(script: Path) -> None:
    """Where a step ends cannot be seen, so neither counts any."""
    model = """model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
for one in model.parameters():
    def step(one, optimizer=torch.optim.SGD([one])):
        optimizer.step()
    one.register_post_accumulate_grad_hook(step)"""
    command = write(script, model, "model(torch.randn(2, 8)).sum()")
    with pytest.raises(BenchError, match="steps inside the backward pass"):
        real_ledger(command)
    _, answer = predict_script(command, CPU, None, steps=2)
    assert isinstance(answer, Refusal)
    assert "steps inside the backward pass" in answer.message


def test_a_loop_that_an_invented_value_ends_is_told_by_its_line(script: Path) -> None:
    """The advice to train for longer would lead nowhere."""
    step = "loss = model(torch.randn(2, 8)).pow(2).mean(); loss.backward(); optimizer.step()"
    ends = f"{step}\n    if not loss > 1e-12: break"
    script.write_text(LOOP.format(model="model = nn.Linear(8, 8)", step=ends), "utf-8")
    _, answer = predict_script([str(script)], CPU, None, steps=2)
    assert isinstance(answer, Refusal)
    assert "after 1 optimizer steps" in answer.message
    assert "lastly at" in answer.message
    assert "train.py:9; measure it" in answer.message


def test_convolutions_on_a_card_are_caveated(script: Path) -> None:
    """Their workspace is chosen by cuDNN as it runs; on the CPU nothing is left out."""
    command = write(script, "model = nn.Conv1d(4, 4, 3)", "model(torch.randn(2, 4, 8)).sum()")
    _, on_cpu = predict_script(command, CPU, None, steps=2)
    assert isinstance(on_cpu, Prediction), on_cpu
    assert all("cuDNN" not in caveat.message for caveat in on_cpu.caveats)
    model = "model = nn.Conv1d(4, 4, 3).cuda()"
    command = write(script, model, "model(torch.randn(2, 4, 8, device='cuda')).sum()")
    _, on_card = predict_script(command, Platform(), card("rtx4090"), steps=2)
    assert isinstance(on_card, Prediction), on_card
    assert any("the workspace that cuDNN takes" in caveat.message for caveat in on_card.caveats)


def test_the_ledger_passes_nested_tensors_and_names_sparse_ones(script: Path) -> None:
    """An encoder's evaluation makes the former; the latter have no storage to count."""
    encoder = "model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)"
    step = """model.train(); model(torch.randn(2, 4, 8)).sum().backward(); optimizer.step(); model.eval()
    with torch.no_grad():
        model(torch.randn(2, 4, 8), src_key_padding_mask=torch.arange(4).expand(2, 4) > 2)"""
    script.write_text(LOOP.format(model=encoder, step=step), "utf-8")
    assert real_ledger([str(script)]).peak_bytes > 0
    model = "model = nn.Embedding(8, 8, sparse=True)\ntorch.optim.Adam = torch.optim.SparseAdam"
    with pytest.MonkeyPatch.context() as patches:
        import torch

        patches.setattr(torch.optim, "Adam", torch.optim.Adam)  # the script replaces it
        with pytest.raises(BenchError, match="--no-ledger"):
            real_ledger(write(script, model, "model(torch.arange(4)).sum()"))
