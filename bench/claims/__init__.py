"""What is often said of LoRA and QLoRA, judged by what was measured, published or predicted. Runs nothing."""
