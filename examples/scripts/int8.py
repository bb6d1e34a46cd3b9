"""LoRA over an int8 base: python int8.py MODEL SEQUENCE_LENGTH BATCH_SIZE."""

import sys

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from sentences import sentences
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

name, length, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
device = "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(
    name,
    quantization_config=BitsAndBytesConfig(load_in_8bit=True),
    device_map="auto" if device == "cuda" else {"": "cpu"},
)
model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": True})
model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-4)
rows = tokenizer(sentences(64, length), return_tensors="pt", truncation=True, max_length=length).input_ids
model.train()
for ids in rows.split(batch_size):
    ids = ids.to(device)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
