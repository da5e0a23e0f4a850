"""What `launch.compile` asks of torch: decoder blocks as compiled programs, in updates alone.

Norms, rotations, activations and softmax are then fused, which read and write all hidden states a dozen times a block otherwise.  A
program is made for each kind of block, not for each block, whatever the rows and their lengths: some ten seconds each at first use,
which torch keeps on the disk for later processes.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

Blocks = list[
    tuple[nn.Module, Callable[..., Any]]
]  # each with the forward pass that takes the place of its own


def lacking() -> str | None:
    """What torch needs to compile and this machine has not: a C++ compiler, Python's headers."""
    compiler, header = os.environ.get("CXX", "g++"), Path(sysconfig.get_path("include")) / "Python.h"
    if not shutil.which(compiler):
        return compiler
    return None if header.is_file() else str(header)


def possible(what: str) -> bool:
    """Whether torch can compile here; where it cannot, a warning that `what` is computed without."""
    missing = lacking()
    if missing:
        warnings.warn(f"compile: there is no {missing} on this machine; {what} without it", stacklevel=3)
    return not missing


def compiled(blocks: Iterable[nn.Module]) -> Blocks:
    """The forward pass of each block as torch compiles it (when it is first called); none where nothing can be compiled."""
    if not possible("blocks are computed"):
        return []
    import torch._inductor.config as inductor

    inductor.fallback_random = (
        True  # the dropout of uncompiled blocks, so that compiling changes rounding alone
    )
    return [(block, torch.compile(block.forward, dynamic=True)) for block in blocks]


@contextmanager
def in_place(blocks: Blocks) -> Iterator[None]:
    """Inside, the blocks run as compiled programs."""
    for block, forward in blocks:
        block.forward = forward  # an attribute of the instance, which shadows the method of its class
    try:
        yield
    finally:
        for block, _ in blocks:
            del block.forward
