"""The training step on tensors without data, as a stream of operators and allocations."""
