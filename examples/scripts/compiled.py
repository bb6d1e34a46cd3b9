"""A compiled model and timing by CUDA events: python compiled.py MODEL SEQUENCE_LENGTH BATCH_SIZE."""

import sys

import torch
from sentences import sentences
from transformers import AutoModelForCausalLM, AutoTokenizer

name, length, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_float32_matmul_precision("high")
device = "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(name)
model = torch.compile(AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16, device_map=device))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device == "cuda")
rows = tokenizer(sentences(64, length), return_tensors="pt", truncation=True, max_length=length).input_ids
model.train()
for ids in rows.split(batch_size):
    ids = ids.to(device, non_blocking=True)
    if device == "cuda":
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if device == "cuda":
        ended.record()
        torch.cuda.synchronize()
        print(f"{began.elapsed_time(ended):.0f} ms, {torch.cuda.max_memory_allocated() >> 20} MiB")
