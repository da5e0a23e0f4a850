"""The teacher's hidden states at the responses of fixed examples: computed in epoch 1, then read from disk.

The file is next to the checkpoints and removed with them when the stage is finished.  What is read is bit for
bit what was computed when the example was first seen.  A resumed run keeps only what was there at its
checkpoint and computes the rest again from the same batches, so that the steps are the same.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minillm.data.batching import moved
from minillm.runtime.processes import World


class TeacherCache:
    """One file for all processes of a machine, and one byte per example that says whether it is there."""

    def __init__(
        self, folder: Path, lengths: Sequence[int], width: int, dtype: torch.dtype, world: World
    ) -> None:
        """For responses of `lengths` tokens: states of `width` in `dtype`.  Every rank must call."""
        self.folder, self.world = folder, world
        self.ends = np.cumsum([0, *lengths])
        size = int(self.ends[-1]) * width * dtype.itemsize

        def make() -> None:
            if world.rank == 0:
                folder.mkdir(parents=True, exist_ok=True)
                with open(folder / "hidden", "ab") as file:
                    # Reserve the space now: otherwise a full disk would kill the process later.
                    os.posix_fallocate(file.fileno(), 0, size)
                saved = folder / "saved"
                (folder / "there").write_bytes(saved.read_bytes() if saved.exists() else bytes(len(lengths)))

        advice = "free some space, or set teacher_cache: false"
        world.together(make, f"{folder}: no room for the teacher's hidden states; {advice}")
        self.there = np.memmap(folder / "there", dtype=np.uint8, mode="r+", shape=(len(lengths),))
        self.bytes = np.memmap(folder / "hidden", dtype=np.uint8, mode="r+", shape=(size,))
        self.states = torch.from_numpy(self.bytes).view(dtype).view(-1, width)

    @staticmethod
    def fits(folder: Path, lengths: Sequence[int], width: int, dtype: torch.dtype) -> bool:
        """Whether the file exists already, or takes less than half of the disk's free space."""
        size, path = sum(lengths) * width * dtype.itemsize, folder / "hidden"
        exists = path.exists() and path.stat().st_size == size
        return exists or size < shutil.disk_usage(folder.parent).free / 2

    def hidden(self, examples: Sequence[int], compute: Callable[[], Tensor], device: torch.device) -> Tensor:
        """Hidden states of the responses of `examples`, concatenated, (tokens, width).

        `compute` makes those of all `examples`; it is called if any of them is missing.
        """
        missing = [i for i in examples if not self.there[i]]
        if missing:
            computed = compute().cpu().split([int(self.ends[i + 1] - self.ends[i]) for i in examples])
            parts = dict(zip(examples, computed, strict=True))
            for i in missing:
                self.states[self.ends[i] : self.ends[i + 1]] = parts[i]
                self.there[i] = 1
        return moved(torch.cat([self.states[self.ends[i] : self.ends[i + 1]] for i in examples]), device)

    def save(self) -> None:
        """Make what is there part of the next checkpoint: states reach the disk before the list of them."""
        self.world.barrier()
        if self.world.rank == 0:
            self.bytes.flush()
            partial = self.folder / ".saved"
            partial.write_bytes(self.there.tobytes())
            partial.replace(self.folder / "saved")
        self.world.barrier()
