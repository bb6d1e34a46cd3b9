"""What is read while the training runs: machine, phases, ledger, FLOPs, and NVML by the parent."""
