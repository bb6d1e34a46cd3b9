"""Rows of any length, the loss on the second half of each: MODEL SEQUENCE_LENGTH BATCH_SIZE."""

import sys

import torch
from sentences import sentences
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

name, length, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16).to(device)


def collate(texts):
    rows = [torch.tensor(tokenizer(text, truncation=True, max_length=length).input_ids) for text in texts]
    ids = pad_sequence(rows, batch_first=True, padding_value=0)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    answers = torch.arange(ids.shape[1]) >= mask.sum(1, keepdim=True) // 2
    return ids, mask, torch.where(answers & mask.bool(), ids, -100)


optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
for ids, mask, labels in DataLoader(sentences(64, length, vary=True), batch_size, collate_fn=collate):
    ids, mask, labels = ids.to(device), mask.to(device), labels.to(device)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    answered = labels[:, 1:] != -100
    loss = torch.nn.functional.cross_entropy(logits[answered].float(), labels[:, 1:][answered])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"{tuple(ids.shape)}, {int(answered.sum())} tokens, loss {loss.item():.3f}")
