"""LoRA with a gradient scaler, evaluated after each step: MODEL SEQUENCE_LENGTH BATCH_SIZE."""

import sys

import torch
from peft import LoraConfig, get_peft_model
from sentences import sentences
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

name, length, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
device = "cuda" if torch.cuda.is_available() else "cpu"
half = torch.float16 if device == "cuda" else torch.bfloat16
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")).to(device)
optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-4)
scaler = torch.amp.GradScaler("cuda", enabled=device == "cuda")


def batches(rows):
    for start in DataLoader(rows, batch_size=batch_size):
        batch = tokenizer(
            start, return_tensors="pt", padding="max_length", truncation=True, max_length=length
        )
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        yield batch.to(device)


for batch in batches(sentences(64, length, vary=True)):
    with torch.autocast(device, dtype=half):
        loss = model(**batch).loss
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    with torch.no_grad():
        dev = sum(model(**batch).loss.item() for batch in batches(sentences(8, length, seed=1)))
    print(f"loss {float(loss):.3f}, on held-out sentences {dev:.3f}")
