"""The rules of torch's caching allocator, replayed over a stream of allocations."""
