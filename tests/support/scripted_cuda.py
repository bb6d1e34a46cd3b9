"""torch.cuda played from a script, for tests of the CUDA branch on machines without a GPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

Observer = Callable[[int, int, int, int], None]


class ScriptedCuda:
    """Counters that a test sets, calls that it can look at, and the allocator's observers."""

    def __init__(self) -> None:
        """Begin with nothing allocated."""
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.calls: list[str] = []
        self.devices: set[torch.device | int | None] = set()
        self.observers: list[Observer] = []
        self.recording: Any = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the script in the place of what the probes call."""
        cuda, memory = torch.cuda, torch.cuda.memory
        monkeypatch.setattr(cuda, "init", lambda: None)
        monkeypatch.setattr(cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(cuda, "synchronize", self._call("synchronize"))
        monkeypatch.setattr(cuda, "reset_peak_memory_stats", self._call("reset"))
        monkeypatch.setattr(cuda, "empty_cache", lambda: self.calls.append("empty_cache"))
        for name in ("memory_allocated", "max_memory_allocated"):
            monkeypatch.setattr(cuda, name, self._counter("allocated_bytes"))
        for name in ("memory_reserved", "max_memory_reserved"):
            monkeypatch.setattr(cuda, name, self._counter("reserved_bytes"))
        monkeypatch.setattr(cuda, "mem_get_info", lambda _: (0, 0))
        monkeypatch.setattr(memory, "_record_memory_history", self._record)
        monkeypatch.setattr(memory, "_snapshot", self.snapshot)
        monkeypatch.setattr(
            torch._C, "_cuda_attach_out_of_memory_observer", self.observers.append, raising=False
        )

    def run_out(self, requested_bytes: int, allocated_bytes: int, reserved_bytes: int) -> None:
        """Fail to allocate as torch does: first its observers, while nothing has died, then the error."""
        self.allocated_bytes, self.reserved_bytes = allocated_bytes, reserved_bytes
        for observer in self.observers:
            observer(0, requested_bytes, 24 * 1024**3, 0)
        self.allocated_bytes = 0  # as the stack unwinds, tensors die
        raise torch.OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {requested_bytes / 1024**2:.2f} MiB. GPU 0 has a total "
            "capacity of 23.64 GiB of which 1.12 GiB is free."
        )

    def snapshot(self) -> dict[str, Any]:
        """Return what torch.cuda.memory._snapshot() would, with the size allocated now."""
        return {"segments": [{"total_size": self.allocated_bytes}], "device_traces": [[]]}

    def _record(self, enabled: object = "all", **options: object) -> None:
        self.recording = None if enabled is None else options

    def _call(self, name: str) -> Callable[[torch.device], None]:
        def call(device: torch.device) -> None:
            self.devices.add(device)
            self.calls.append(name)

        return call

    def _counter(self, name: str) -> Callable[[torch.device | int], int]:
        def read(device: torch.device | int) -> int:
            self.devices.add(device)
            return int(getattr(self, name))

        return read
