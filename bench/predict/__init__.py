"""Predicts memory without a GPU: the window traced on meta tensors, then replayed through the allocator."""
