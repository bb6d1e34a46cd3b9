"""QLoRA with transformers' Trainer, as in peft's documentation: MODEL SEQUENCE_LENGTH BATCH_SIZE."""

import sys

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from sentences import sentences
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments
from transformers import DataCollatorForLanguageModeling as Collator

name, length, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
on_cpu = not torch.cuda.is_available()
four_bits = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)  # fmt: skip
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(
    name, quantization_config=four_bits, dtype=torch.bfloat16, device_map={"": "cpu"} if on_cpu else "auto"
)
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
rows = Dataset.from_dict(dict(tokenizer(sentences(64, length), truncation=True, max_length=length)))
arguments = TrainingArguments(
    output_dir="trained", per_device_train_batch_size=batch_size, gradient_accumulation_steps=2,
    max_steps=10, bf16=True, optim="paged_adamw_8bit", gradient_checkpointing=True,
    gradient_checkpointing_kwargs={"use_reentrant": False}, logging_steps=1, save_strategy="no",
    report_to="none", use_cpu=on_cpu,
)  # fmt: skip
collate = Collator(tokenizer, mlm=False)
Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate).train()
model.save_pretrained("trained")
