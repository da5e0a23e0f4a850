"""The processes of a stage: how they join, exchange values, and notice that one of them is gone."""

from __future__ import annotations

import atexit
import ctypes
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist

from minillm.errors import UserError

# Exit status of a rank that waited in vain.
GONE = 70
# Programs that oneDNN and torch's layer above it keep, instead of 1,024.
PROGRAMS = 128
# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class World:
    """This process among the processes of the stage."""

    rank: int
    size: int
    device: torch.device
    watch: Watch | None = field(default=None, compare=False)
    # On GPUs: a group of the host processes, which need not wait for the GPUs.
    control: dist.ProcessGroup | None = field(default=None, compare=False)

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.control)

    def at(self, place: str) -> None:
        """Record where this rank is ("step 12"), for the message of a rank that waits for it in vain."""
        if self.watch is not None:
            self.watch.place = place

    def together(self, action: Callable[[], None], what: str) -> None:
        """Run `action` on every rank; a system error on one raises UserError on all, saying which and why."""
        problem = ""
        try:
            action()
        # torch reports a full disk as RuntimeError.
        except (OSError, RuntimeError) as error:
            problem = f"{type(error).__name__}: {error}".split("\n")[0]
        problems = {rank: text for rank, text in enumerate(self.gather(problem)) if text}
        if problems:
            rank, text = next(iter(problems.items()))
            raise UserError(f"{what}: rank {rank}: {text}")


class Watch:
    """A thread that signals every few seconds that this rank lives; it ends the process if another is silent.

    A rank that was stopped, or whose node is gone, leaves the others waiting silently inside a collective.
    The signs of life go through `store`, at which the ranks met: they need no collective, and no clocks of
    different nodes are compared.
    """

    def __init__(self, rank: int, size: int, patience: float, store: dist.Store) -> None:
        self.rank, self.size, self.patience, self.store = rank, size, patience, store
        self.place = "start"
        self._beat = 0
        # rank -> (its newest sign, when it changed)
        self._seen: dict[int, tuple[str, float]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        # A thread inside torch at interpreter exit would abort a process whose work is done.
        atexit.register(self.stop)

    def stop(self) -> None:
        """End the thread; the others notice nothing for `patience` seconds, by when they have ended too."""
        self._stopped.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                silent = self.look(time.monotonic())
            # dist.DistError is a RuntimeError.
            except (RuntimeError, OSError) as error:
                self.end(f"the node of rank 0 does not answer ({str(error).splitlines()[0]})")
                return
            if silent:
                self.end("; ".join(silent))
                return
            self._stopped.wait(min(5.0, self.patience / 4))

    def look(self, now: float) -> list[str]:
        """Give a sign of life, read the others', and describe the ranks silent for `patience` seconds."""
        self._beat += 1
        self.store.set(f"alive/{self.rank}", f"{self._beat} {self.place}")
        silent = []
        for rank in range(self.size):
            key = f"alive/{rank}"
            sign = self.store.get(key).decode() if self.store.check([key]) else ""
            if rank not in self._seen or self._seen[rank][0] != sign:
                self._seen[rank] = sign, now
            elif now - self._seen[rank][1] > self.patience:
                place = sign.partition(" ")[2] or "before its first sign"
                seconds = now - self._seen[rank][1]
                silent.append(
                    f"rank {rank} gave no sign of life for {seconds:.0f} s; it was last at: {place}"
                )
        return silent

    def end(self, why: str) -> None:
        """Print one line and exit at once: the main thread may hang in a collective forever."""
        print(
            f"minillm: error: rank {self.rank} (at: {self.place}): {why}; "
            "run the same command again to resume from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(GONE)


def keep_freed_memory() -> None:
    """Keep freed memory in this process for later allocations, as GPU allocators do; a no-op without glibc.

    glibc requests every block of more than 32 MB from the system and returns it at once: a training step on a
    CPU then spends a seventh of its time on pages that the system clears again and again
    (docs/performance.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def keep_few_programs() -> None:
    """Bound what oneDNN keeps: on a CPU it compiles a program for each shape of a product, 0.1 MB each.

    Batches of sampling have another shape whenever rows end, so that by default a stage grows by some hundred
    MB in its first thousands of steps (docs/performance.md).  Values set in the environment stay.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(PROGRAMS))


def start(seed: int, patience: float = 600) -> World:
    """Join the processes that torchrun started (or be the only one) by nccl on GPUs, gloo on CPUs; seed them.

    If a rank is silent for `patience` seconds the stage ends, with a line that names it.  A rank that is
    alive but hangs cannot be told from one that has much to write: collectives end with torch's own message
    after half an hour, or three times `patience` if that is more.
    """
    for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(key, value)
    cuda = torch.cuda.is_available()
    if not cuda:
        keep_freed_memory()
        keep_few_programs()
    size = int(os.environ["WORLD_SIZE"])
    # NCCL's default of ten minutes may pass while another rank writes a checkpoint.
    timeout = timedelta(seconds=max(1800.0, 3 * patience))
    if not dist.is_initialized():
        backend = "nccl" if cuda else "gloo"
        if size == 1:
            # A store in memory needs no port: two stages on one machine cannot collide.
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend, timeout=timeout)
    local = int(os.environ["LOCAL_RANK"])
    if cuda:
        torch.cuda.set_device(local)
    rank = dist.get_rank()
    watch = None
    if size > 1:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(
            address, port, is_master=False, timeout=timedelta(seconds=max(1.0, min(60.0, patience)))
        )
        watch = Watch(rank, size, patience, dist.PrefixStore("minillm", store))
    control = dist.new_group(backend="gloo", timeout=timeout) if cuda and size > 1 else None
    world = World(rank, size, torch.device("cuda", local) if cuda else torch.device("cpu"), watch, control)
    hosts = Counter(world.gather(host()))
    if size > 1 and rank == 0:
        where = ", ".join(f"{count} on {name}" for name, count in hosts.items())
        print(f"{size} processes: {where}", flush=True)
    seed_all(seed * 1000 + world.rank)
    return world


def leave(status: int) -> NoReturn:
    """End this process, one of several, with `status`, skipping the interpreter's shutdown.

    torch threads that still run would return to an interpreter that is shutting down, which sometimes aborts
    the process ("terminate called without an active exception"): a stage whose work is done would count as
    failed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def host() -> str:
    """Name of this machine; under Slurm, its name for the node."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch: only dropout depends on them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
