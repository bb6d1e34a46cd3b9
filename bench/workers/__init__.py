"""Processes that do jobs: launching, following and ending them, and what their ends mean. No torch."""

PARENT_VARIABLE = "FINETUNE_BENCH_PARENT"
"""The process that starts the server which workers are forked from."""
