"""Tied embeddings, enlarged and then moved: python tied_resized.py MODEL SEQUENCE_LENGTH BATCH_SIZE."""

import sys

import torch
from sentences import sentences
from transformers import AutoModelForCausalLM, AutoTokenizer

name, length, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
device = "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(name)
tokenizer.add_tokens(["<question>", "<answer>"])
model = AutoModelForCausalLM.from_pretrained(name, tie_word_embeddings=True)
model.resize_token_embeddings(len(tokenizer))
model = model.to(torch.bfloat16).to(device)
model.tie_weights()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
rows = tokenizer(sentences(64, length), return_tensors="pt", truncation=True, max_length=length).input_ids
model.train()
for ids in rows.to(device).split(batch_size):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"{loss.item():.3f}")
