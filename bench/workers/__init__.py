"""Processes that do jobs: launching, following and ending them, and what their ends mean. No torch."""
