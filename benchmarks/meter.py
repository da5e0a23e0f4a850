"""The memory of this process, in MB.  Imports torch alone: another trainer's environment uses it too."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

MB = 2**20


class Meter:
    """What the process holds, and its peak since `begin`: of the GPU where there is one, else the resident size (Linux)."""

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()

    def held(self) -> float:
        """After what can be freed is given back to the system."""
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
            Path("/proc/self/clear_refs").write_text(
                "5"
            )  # the kernel's peak of the resident size starts anew

    def peak(self) -> float:
        return torch.cuda.max_memory_allocated() / MB if self.cuda else status("VmHWM")


def status(field: str) -> float:
    """A field of /proc/self/status, in MB."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":")
    )
    return int(line.split()[1]) / 1024
