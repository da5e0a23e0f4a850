"""Ranks as threads of one process, which exchange values as those of a World do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from minillm.runtime.processes import World


class ThreadWorld(World):
    """One of several ranks; all of them share `meeting` and `values`."""

    def __init__(self, rank: int, meeting: threading.Barrier, values: list[Any]) -> None:
        super().__init__(rank, meeting.parties, torch.device("cpu"))
        self.__dict__.update(meeting=meeting, values=values, sent=[])

    def gather(self, value: Any) -> list[Any]:
        self.sent.append(value)
        self.values[self.rank] = value
        self.barrier()
        found = list(self.values)
        self.barrier()
        return found

    def barrier(self) -> None:
        self.meeting.wait(timeout=60)


def ranks(size: int, run: Callable[[World], Any]) -> list[Any]:
    """What `run` returns of each rank; the first error of any."""
    meeting, values = threading.Barrier(size), [None] * size

    def of_rank(rank: int) -> Any:
        try:
            return run(ThreadWorld(rank, meeting, values))
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        done = [pool.submit(of_rank, rank) for rank in range(size)]
    broken = [error for future in done if (error := future.exception())]
    for error in sorted(broken, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in done]
