"""A script around a library's trainer, and that trainer as a loop: one training, predicted twice."""

from pathlib import Path

import pytest

from bench.predict.predict import predict
from bench.predict.script.predict import predict_script
from bench.records.predictions import Prediction
from bench.scenario.catalogue import card
from bench.scenario.platform import Platform
from script_models import save_tiny_llama
from tiny_cells import tiny_cell

pytestmark = pytest.mark.filterwarnings("ignore")  # the scripts' and their libraries', whatever they are
CARD = card("rtx4090")
CUDA = Platform(device="cuda", capability=CARD.capability)
MODEL = """
import sys, torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
method = sys.argv[2]
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, device_map={"": 0},
    quantization_config=four_bits if method == "qlora" else None)
if method == "qlora":
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
if method != "full":
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear",
                                             task_type="CAUSAL_LM"))
same = dict(output_dir="x", save_strategy="no", report_to=[], max_steps=3, weight_decay=0.0,
    per_device_train_batch_size=2, optim="adamw_torch_fused", warmup_steps=0,
    lr_scheduler_type="constant_with_warmup")
ids = torch.randint(5, 30, (40, 64))
"""
TRAINERS = {
    "hf-trainer": """
from transformers import Trainer, TrainingArguments, default_data_collator
rows = [{"input_ids": row, "labels": row} for row in ids]
Trainer(model, TrainingArguments(**same), train_dataset=rows, data_collator=default_data_collator).train()
""",
    "trl-sft": """
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, "<unk>"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>")
rows = Dataset.from_list([{"input_ids": row.tolist(), "labels": row.tolist()} for row in ids])
arguments = SFTConfig(**same, bf16=False, gradient_checkpointing=False, max_length=64,
    dataset_kwargs={"skip_prepare_dataset": True})
SFTTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer).train()
""",
}


@pytest.mark.parametrize("method", ["full", "qlora"])
@pytest.mark.parametrize("driver", list(TRAINERS))
def test_a_trainer_takes_the_same_in_a_script_and_as_a_loop(driver: str, method: str, tmp_path: Path) -> None:
    """On a card, by two tracers: the script believes in one, the loop is told that its device is meta."""
    if driver == "trl-sft":
        pytest.importorskip("trl")
    folder = save_tiny_llama(tmp_path, weights=False)
    script = tmp_path / "train.py"
    script.write_text(MODEL + TRAINERS[driver], "utf-8")
    _, of_script = predict_script([str(script), folder, method], CUDA, CARD, steps=2)
    cell = tiny_cell(
        {"kind": method},
        model={"random": None, "path": folder},
        training={"sequence_length": 64},
        device="cuda",
        loop={"driver": driver},
    )
    of_loop = predict(cell, CUDA)
    assert isinstance(of_script, Prediction), of_script
    assert of_script.allocated_peak_bytes == of_loop.allocated_peak_bytes
    assert of_script.categories_at_peak_bytes == of_loop.categories_at_peak_bytes
    assert (of_script.peak_phase, of_script.peak_op) == (of_loop.peak_phase, of_loop.peak_op)
    low, high = of_loop.reserved_low_bytes, of_loop.reserved_high_bytes
    assert low is not None
    assert high is not None
    assert low <= (of_script.reserved_peak_bytes or 0) <= high
