"""Preferences with trl's DPOTrainer over LoRA: python dpo.py MODEL SEQUENCE_LENGTH BATCH_SIZE."""

import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from sentences import sentences
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

name, length, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16)
pairs = {
    "prompt": sentences(64, length // 2),
    "chosen": sentences(64, length // 4, seed=1),
    "rejected": sentences(64, length // 4, seed=2),
}
arguments = DPOConfig(
    output_dir="trained",
    max_length=length,
    per_device_train_batch_size=batch_size,
    max_steps=8,
    bf16=True,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=not torch.cuda.is_available(),
)
DPOTrainer(
    model=model,
    args=arguments,
    train_dataset=Dataset.from_dict(pairs),
    processing_class=AutoTokenizer.from_pretrained(name),
    peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
).train()
