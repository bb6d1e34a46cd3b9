"""From a configuration, with accelerate and accumulation: MODEL SEQUENCE_LENGTH BATCH_SIZE."""

import sys

import torch
from accelerate import Accelerator
from sentences import sentences
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, get_scheduler

name, length, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
accelerator = Accelerator(
    mixed_precision="bf16", gradient_accumulation_steps=2, cpu=not torch.cuda.is_available()
)
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name), dtype=torch.float32)
model.gradient_checkpointing_enable()


def collate(rows):
    batch = tokenizer(rows, return_tensors="pt", padding=True, truncation=True, max_length=length)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch


loader = DataLoader(sentences(64, length, vary=True), batch_size=batch_size, collate_fn=collate)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
model, optimizer, loader, schedule = accelerator.prepare(
    model, optimizer, loader, get_scheduler("cosine", optimizer, 1, 32)
)
for batch in loader:
    with accelerator.accumulate(model):
        loss = model(**batch).loss
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    accelerator.print(accelerator.gather(loss.detach()).mean().item())
