"""Trainer with evaluation and metrics, then a generation: MODEL SEQUENCE_LENGTH BATCH_SIZE."""

import sys

import torch
from datasets import Dataset
from sentences import sentences
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from transformers import DataCollatorForLanguageModeling as Collator

name, length, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
on_cpu = not torch.cuda.is_available()
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(
    name, dtype=torch.bfloat16, device_map=None if on_cpu else {"": 0}
)


def rows(number, seed):
    return Dataset.from_dict(dict(tokenizer(sentences(number, length, seed=seed))))


def accuracy(told):
    counted = told.label_ids[:, 1:] != -100
    return {"accuracy": float((told.predictions[:, :-1] == told.label_ids[:, 1:])[counted].mean())}


trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir="trained", per_device_train_batch_size=batch_size, max_steps=6, eval_strategy="steps",
        eval_steps=1, logging_steps=1, save_strategy="no", report_to="none", use_cpu=on_cpu,
    ),
    train_dataset=rows(64, 0), eval_dataset=rows(16, 1), compute_metrics=accuracy,
    data_collator=Collator(tokenizer, mlm=False),
    preprocess_logits_for_metrics=lambda logits, _labels: logits.argmax(-1),
)  # fmt: skip
trainer.train()
prompt = tokenizer("the old farmer", return_tensors="pt").to(model.device)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=20, do_sample=False)[0]))
