"""LoRA with trl's SFTTrainer, rows packed: python sft_packing.py MODEL SEQUENCE_LENGTH BATCH_SIZE."""

import sys

import torch
from datasets import Dataset
from peft import LoraConfig
from sentences import sentences
from trl import SFTConfig, SFTTrainer

name, length, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
arguments = SFTConfig(
    output_dir="trained",
    max_length=length,
    packing=True,
    packing_strategy="wrapped",
    per_device_train_batch_size=batch_size,
    max_steps=8,
    bf16=True,
    model_init_kwargs={"dtype": "bfloat16"},
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    use_cpu=not torch.cuda.is_available(),
)
SFTTrainer(
    model=name,
    args=arguments,
    train_dataset=Dataset.from_dict({"text": sentences(256, length // 2, vary=True)}),
    peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
).train()
