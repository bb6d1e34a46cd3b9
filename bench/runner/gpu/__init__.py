"""Watching and locking one GPU from the parent process."""
