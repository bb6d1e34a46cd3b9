"""Full fine-tuning in a plain loop: python plain.py MODEL SEQUENCE_LENGTH BATCH_SIZE."""

import sys

import torch
from sentences import sentences
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

name, length, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16).to(device)


def collate(rows):
    batch = tokenizer(rows, return_tensors="pt", padding=True, truncation=True, max_length=length)
    batch["labels"] = batch["input_ids"].clone()
    return batch


loader = DataLoader(sentences(64, length), batch_size=batch_size, collate_fn=collate)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
schedule = get_linear_schedule_with_warmup(optimizer, 2, len(loader))
model.train()
for step, batch in enumerate(loader):
    loss = model(**{key: value.to(device) for key, value in batch.items()}).loss
    if torch.isnan(loss):
        raise ValueError("the loss is not a number")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item():.3f}")
model.save_pretrained("trained")
