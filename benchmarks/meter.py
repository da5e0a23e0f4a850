"""The memory of this process, in MB.  Imports only torch: another trainer's environment uses it too."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

MB = 2**20


class Meter:
    """What the process holds, its peak since `begin`: of the GPU if there is one, else resident (Linux)."""

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()

    def held(self) -> float:
        """What is held once all that can be freed is returned to the system."""
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            return torch.cuda.memory_allocated() / MB
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return status("VmRSS")

    def begin(self) -> None:
        self.held()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            # Resets the kernel's peak of the resident size.
            Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() / MB if self.cuda else status("VmHWM")


def status(field: str) -> float:
    """A field of /proc/self/status, in MB."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":")
    )
    return int(line.split()[1]) / 1024
