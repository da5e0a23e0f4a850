"""How the files of a checkpoint are written: hashed on the way, and without what follows from other files."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from minillm.config.launch import KILLED_AFTER
from minillm.models.adapters import is_adapted
from minillm.runtime import trust
from minillm.runtime.processes import World

# Bytes of a write from which on a second thread pays.
LARGE = 2**20
# Bytes written to measure a disk, and of a checkpoint below which it is not worth measuring.
PROBE = 2**28
SMALL = 2**30
# Bytes of a trained parameter in a checkpoint: float32 weight and two moments; without ZeRO also the weight
# that is computed with.
BYTES, BYTES_ZERO_0 = 12, 16


class Hashed:
    """A file to write to from start to end, and the SHA-256 of what was written, in hex, once it is closed.

    A second thread hashes while this one writes.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)

    def write(self, data: bytes | memoryview) -> int:
        if memoryview(data).nbytes < LARGE:
            self._hash.update(data)
            return self._file.write(data)
        hashing = self._thread.submit(self._hash.update, data)
        try:
            return self._file.write(data)
        finally:
            # The memory is the caller's again afterwards.
            hashing.result()

    def flush(self) -> None:
        self._file.flush()

    def __enter__(self) -> Hashed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        self._file.close()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


@contextmanager
def hashing(engine: Any, folder: Path) -> Iterator[dict[str, str]]:
    """Inside, the hash of each file that DeepSpeed's `engine` saves below `folder` is noted by its name."""
    hashes: dict[str, str] = {}
    writer = engine.checkpoint_engine

    def save(state_dict: Any, path: str) -> None:
        with Hashed(Path(path)) as file:
            # mypy: torch needs no more of a file than to write to it.
            target: Any = file
            torch.save(state_dict, target, _use_new_zipfile_serialization=writer.zipfile_serialization)
        hashes[Path(path).relative_to(folder).as_posix()] = file.hexdigest()

    # An attribute of the instance, which shadows the method of its class.
    writer.save = save
    try:
        yield hashes
    finally:
        del writer.save


@contextmanager
def without_weights(engine: Any, zero: int) -> Iterator[None]:
    """Inside, `engine` saves no weights that something else has.

    Those below an adapter are the base model's; those that are trained the optimizer has in float32 under
    ZeRO 1 and 2.  Under ZeRO 3 DeepSpeed does not save weights anyway.
    """
    adapted = is_adapted(engine.module)
    elsewhere = {
        name
        for name, weight in engine.module.named_parameters(remove_duplicate=False)
        if (zero in (1, 2) if weight.requires_grad else adapted)
    }
    if zero == 3 or not elsewhere:
        yield
        return

    def module_state_dict(**_: Any) -> dict[str, Any]:
        return {name: value for name, value in engine.module.state_dict().items() if name not in elsewhere}

    engine.module_state_dict = module_state_dict
    try:
        yield
    finally:
        del engine.module_state_dict


def restore_weights(engine: Any, zero: int) -> None:
    """The weights in the computing precision from the float32 ones that were just loaded, as a step does."""
    if zero in (1, 2):
        engine.optimizer.update_lp_params()


def checkpoint_bytes(model: nn.Module, zero: int) -> int:
    """Of all ranks' files together, before the weights are sharded."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained * (BYTES if zero else BYTES_ZERO_0)


def announce(size: int, folder: Path, world: World, say: Callable[[str], None]) -> None:
    """Say at the start whether a checkpoint of `size` bytes can be saved between SIGTERM and the kill."""
    if size > SMALL:
        say(fits_before_the_kill(size, disk_speed(folder, world)))


def disk_speed(folder: Path, world: World) -> float:
    """Bytes per second that all ranks together write to `folder`, from a probe of `PROBE` bytes."""
    probe = folder / f".probe-{world.rank}"
    data = os.urandom(2**20)
    count = max(1, PROBE // len(data) // world.size)

    def write() -> None:
        with trust.only_ours(), open(probe, "wb") as file:
            for _ in range(count):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())

    world.barrier()
    started = time.monotonic()
    try:
        world.together(write, f"{folder}: cannot be written to; free some space or check the disk")
    finally:
        probe.unlink(missing_ok=True)
    return float(world.size * count * len(data) / max(1e-6, time.monotonic() - started))


def fits_before_the_kill(size: int, speed: float) -> str:
    """How long a checkpoint of `size` bytes takes, and whether that fits between SIGTERM and the kill."""
    seconds = size / speed
    line = f"a checkpoint of {size / 1e9:.1f} GB takes about {seconds:.0f} s at {speed / 1e9:.2f} GB/s"
    if seconds <= KILLED_AFTER:
        return f"{line}, less than the {KILLED_AFTER} s between SIGTERM and the kill: a stopped run saves"
    return (
        f"{line}, more than the {KILLED_AFTER} s between SIGTERM and the kill: a stopped run resumes from "
        "its last checkpoint; launch.save_minutes limits what it loses"
    )
