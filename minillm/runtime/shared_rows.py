"""Rows that every rank needs: the processes of one machine hold them once, in memory that they share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from minillm.runtime.processes import World, host

# Memory as files, on Linux.
FOLDER = Path("/dev/shm")  # noqa: S108
# Bytes that processes without common memory exchange at once.
BLOCK = 2**28


def gathered(world: World, lengths: Sequence[int], parts: Mapping[int, Tensor]) -> list[Tensor]:
    """Row i, (lengths[i], width), on the CPU, for every i and on every rank; they must not be changed.

    `parts` are the rows that this rank has.  If one machine's `FOLDER` has no room, every process of every
    machine holds all rows.  Every rank must call.
    """
    if world.size == 1:
        return [parts[i] for i in range(len(lengths))]
    kinds = world.gather([(rows.shape[1], rows.dtype) for rows in parts.values()][:1])
    width, dtype = next(kind for some in kinds for kind in some)
    hosts = world.gather(host())
    table = _shared(world, hosts, sum(lengths) * width, dtype)
    alone = table is None
    if table is None:
        table = torch.empty(sum(lengths) * width, dtype=dtype)
    rows = list(table.view(-1, width).split(list(lengths)))
    for i, values in parts.items():
        rows[i].copy_(values)
    if alone or len(set(hosts)) > 1:
        fills = alone or hosts.index(host()) == world.rank
        for block in _blocks(lengths, width * dtype.itemsize):
            # Clones: a view would be sent with all that is behind it.
            mine = {i: parts[i].clone() for i in block if i in parts}
            for place, theirs in zip(hosts, world.gather(mine), strict=True):
                for i, values in theirs.items() if fills and (alone or place != host()) else ():
                    rows[i].copy_(values)
    world.barrier()
    return rows


def _shared(world: World, hosts: Sequence[str], numbers: int, dtype: torch.dtype) -> Tensor | None:
    """So many numbers, the same memory for all processes of a machine; None if it is short anywhere."""
    path, leader = "", hosts.index(host())
    if leader == world.rank:
        try:
            handle, path = tempfile.mkstemp(prefix="minillm-", dir=FOLDER)
            try:
                # Reserved now: otherwise the process is killed when it writes.
                os.posix_fallocate(handle, 0, numbers * dtype.itemsize)
            except OSError:
                os.unlink(path)
                path = ""
            finally:
                os.close(handle)
        except OSError:
            path = ""
    paths = world.gather(path)
    mapped = None
    if all(paths[hosts.index(place)] for place in hosts):
        mapped = torch.from_file(paths[leader], shared=True, size=numbers, dtype=dtype)
    # By now all have mapped it, so its name can go: the memory goes with the last of them.
    world.barrier()
    if path:
        os.unlink(path)
    return mapped


def _blocks(lengths: Sequence[int], row_bytes: int) -> Iterator[range]:
    """All rows in order, in blocks of at most `BLOCK` bytes, but at least one row."""
    first = held = 0
    for i, length in enumerate(lengths):
        if i > first and held + length * row_bytes > BLOCK:
            yield range(first, i)
            first, held = i, 0
        held += length * row_bytes
    yield range(first, len(lengths))
