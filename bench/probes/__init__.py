"""What is read while the window runs: clock, host memory, torch allocator, ledger."""
