"""LoRA with transformers' Trainer: python lora_trainer.py MODEL SEQUENCE_LENGTH BATCH_SIZE."""

import sys

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from sentences import sentences
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

name, length, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(name)
rows = Dataset.from_dict(dict(tokenizer(sentences(64, length), truncation=True, max_length=length)))
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
adapter = LoraConfig(task_type="CAUSAL_LM", r=8, lora_dropout=0.05, target_modules=["q_proj", "v_proj"])
trainer = Trainer(
    model=get_peft_model(model, adapter),
    args=TrainingArguments(
        output_dir="trained",
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    ),
    train_dataset=rows,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
trainer.train()
