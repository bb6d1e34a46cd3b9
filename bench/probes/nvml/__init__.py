"""The driver's view of a GPU, through NVML."""
