"""The teacher's hidden states at the responses of fixed examples: computed in the first epoch, read from disk in the others.

The file lies beside the checkpoints and goes with them when the stage is finished.  What is read is to the bit what was computed when the
example was first seen.  After an interruption as much counts as there was at the checkpoint that the run goes on from: the rest is
computed again from the same batches, so that the steps are the same.
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
    """One file for all processes of a machine, and a byte for each example that says whether it is there."""

    def __init__(
        self, folder: Path, lengths: Sequence[int], width: int, dtype: torch.dtype, world: World
    ) -> None:
        """Of examples whose responses have `lengths` tokens; hidden states of `width` in `dtype`.  Every rank must call."""
        self.folder, self.world = folder, world
        self.ends = np.cumsum([0, *lengths])
        size = int(self.ends[-1]) * width * dtype.itemsize

        def make() -> None:
            if world.rank == 0:
                folder.mkdir(parents=True, exist_ok=True)
                with open(folder / "hidden", "ab") as file:
                    os.posix_fallocate(
                        file.fileno(), 0, size
                    )  # its room now: without it a full disk would kill the process later
                saved = folder / "saved"
                (folder / "there").write_bytes(saved.read_bytes() if saved.exists() else bytes(len(lengths)))

        world.together(
            make,
            f"{folder}: no room for the teacher's hidden states; free some space, or set teacher_cache: false",
        )
        self.there = np.memmap(folder / "there", dtype=np.uint8, mode="r+", shape=(len(lengths),))
        self.bytes = np.memmap(folder / "hidden", dtype=np.uint8, mode="r+", shape=(size,))
        self.states = torch.from_numpy(self.bytes).view(dtype).view(-1, width)

    @staticmethod
    def fits(folder: Path, lengths: Sequence[int], width: int, dtype: torch.dtype) -> bool:
        """Whether the file is there already, or takes less than half of the free space of the disk."""
        size, path = sum(lengths) * width * dtype.itemsize, folder / "hidden"
        return (path.exists() and path.stat().st_size == size) or size < shutil.disk_usage(
            folder.parent
        ).free / 2

    def hidden(self, examples: Sequence[int], compute: Callable[[], Tensor], device: torch.device) -> Tensor:
        """Hidden states of the responses of `examples`, one after the other, (tokens, width); `compute` makes those of all of them."""
        missing = [i for i in examples if not self.there[i]]
        if missing:
            made = compute().cpu().split([int(self.ends[i + 1] - self.ends[i]) for i in examples])
            parts = dict(zip(examples, made, strict=True))
            for i in missing:
                self.states[self.ends[i] : self.ends[i + 1]] = parts[i]
                self.there[i] = 1
        return moved(torch.cat([self.states[self.ends[i] : self.ends[i + 1]] for i in examples]), device)

    def save(self) -> None:
        """What is there now belongs to the checkpoint that comes next: on the disk before the list of what is there."""
        self.world.barrier()
        if self.world.rank == 0:
            self.bytes.flush()
            partial = self.folder / ".saved"
            partial.write_bytes(self.there.tobytes())
            partial.replace(self.folder / "saved")
        self.world.barrier()
